//! `weighbridge hash`: digests that do not depend on how a checkpoint is cut into files.

mod digest;
pub(crate) mod manifest;

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::{Args, ValueEnum};
use weighbridge::{Checkpoint, Names};

pub(crate) use digest::{Algorithm, Digest, git_blob, of_file};

use crate::dense::Dense;
use crate::load;
use crate::outcome::Outcome;
use crate::show::{self, safe};
use crate::term::Term;
use manifest::{Line, Manifest};

/// Computes a digest of the whole checkpoint and of each tensor, whatever its shards and their order
///
/// The first line is the digest of the whole, of all lines that follow. Each of these is of one tensor: the
/// digest of its bytes as the file has them, its dtype, its shape and its name. Metadata does not count.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  weighbridge hash model.safetensors > model.b3
  weighbridge hash --check model.b3 model-sharded/
  weighbridge hash --dense Llama-3.1-8B-GPTQ --check llama-bf16.b3
  weighbridge hash meta-llama/Llama-3.2-1B --algorithm sha256 | head -n 1")]
pub(crate) struct Hash {
    /// A file, a directory, an index or the id of a repository in the cache
    path: PathBuf,

    /// The hash function; with --check that of the manifest
    #[arg(long, value_enum, default_value = "blake3", conflicts_with = "check")]
    algorithm: Algorithm,

    /// Compare with what `hash` wrote into this file: exit status 1 and a line for each difference
    #[arg(long, value_name = "MANIFEST")]
    check: Option<PathBuf>,

    #[command(flatten)]
    dense: Dense,

    /// The form of the output
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Lines: the whole, then the tensors
    Text,
    /// JSON
    Json,
}

impl Hash {
    pub(crate) fn run(&self, term: &Term) -> Result<Outcome> {
        match &self.check {
            Some(path) => self.check(path, term),
            None => {
                let checkpoint = self.look(term)?;
                let manifest = of_checkpoint(&checkpoint, self.algorithm, term)?;
                let mut out = term.raw();
                match self.format {
                    Format::Text => write!(out, "{manifest}")?,
                    Format::Json => writeln!(out, "{:#}", manifest.to_json())?,
                }
                out.flush()?;
                Ok(Outcome::Clean)
            }
        }
    }

    fn look(&self, term: &Term) -> Result<Checkpoint> {
        let advice = "without --dense the codes are hashed as they are stored";
        Ok(self.dense.of(load::look(&self.path, term)?, &Names::all(), advice)?)
    }

    fn check(&self, path: &Path, term: &Term) -> Result<Outcome> {
        let expected = Manifest::read(path)?;
        let checkpoint = self.look(term)?;
        let actual = of_checkpoint(&checkpoint, expected.algorithm, term)?;
        let differences = expected.differences(&actual);
        let mut out = term.raw();
        if self.format == Format::Json {
            let list: Vec<_> = differences.iter().map(manifest::Difference::to_json).collect();
            let json = serde_json::json!({"schema": "weighbridge.hash-check/1", "differences": list});
            writeln!(out, "{json:#}")?;
        } else {
            for difference in &differences {
                writeln!(out, "{}: tensor {difference}", safe(&self.path.to_string_lossy()))?;
            }
        }
        out.flush()?;
        if differences.is_empty() {
            term.note(format_args!("{}: {} as the manifest says", self.path.display(), tensors(&actual)));
            return Ok(Outcome::Clean);
        }
        Ok(Outcome::Findings)
    }
}

fn tensors(manifest: &Manifest) -> String {
    show::plural(manifest.lines.len(), "tensor")
}

/// The digests of all tensors, sorted by name.
pub(crate) fn of_checkpoint(checkpoint: &Checkpoint, algorithm: Algorithm, term: &Term) -> Result<Manifest> {
    let mut tensors: Vec<_> = checkpoint.tensors().collect();
    tensors.sort_unstable_by_key(weighbridge::TensorRef::name);
    let bar = term.bar("hashing", checkpoint.byte_len());
    let digests = digest::of_tensors(&tensors, algorithm, &bar)?;
    let lines = tensors.iter().zip(digests).map(|(tensor, digest)| Line::of(tensor, digest));
    Ok(Manifest { algorithm, lines: lines.collect() })
}
