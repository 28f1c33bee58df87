//! `weighbridge repair`: a valid file out of a broken one, where nothing has to be guessed.

mod header;
mod mend;

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use weighbridge::header::Rule;
use weighbridge::write::{Order, Save, Stored, TensorData};
use weighbridge::{Checkpoint, Dtype};

use crate::destination::Destination;
use crate::outcome::Outcome;
use crate::show::{plural, safe};
use crate::term::Term;
use mend::{Kept, Mended};

/// Writes a valid file from a broken one, if its contents are beyond doubt
///
/// It mends: NUL padding in the header or behind it, gaps between tensors and before the first one, bytes
/// behind the last tensor, a wrong header length if the JSON and the end of the file leave only one
/// possibility, and what `verify` notes about the header (padding, unknown fields, odd forms of entries).
/// Every change is named on standard error; names, dtypes, shapes and the bytes of the tensors are never
/// changed.
///
/// It refuses, and writes nothing, if data is cut short, tensors overlap, the header is not JSON, a name
/// occurs twice, or the dtype and shape of a tensor do not match the number of its bytes.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: 0 when the file is valid or was repaired; 1 when, without -o, there is something to repair; 2 when it cannot be.

Examples:
  weighbridge repair model.safetensors                           what would be done
  weighbridge repair model.safetensors -o repaired.safetensors
  weighbridge repair model.safetensors -o model.safetensors --force")]
pub(crate) struct Repair {
    /// One file, or a directory or repository in the cache that has just one
    #[arg(value_name = "PATH")]
    input: PathBuf,

    /// The file to write; without one, or with --dry-run, nothing is written
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Replace the file if it exists, even if it is the broken one
    #[arg(long, requires = "output")]
    force: bool,

    /// Write nothing, only say what would be done
    #[arg(long)]
    dry_run: bool,
}

impl Repair {
    pub(crate) fn run(&self, term: &Term) -> Result<Outcome> {
        let path = self.file()?;
        let output = self.output.as_deref().filter(|_| !self.dry_run);
        if let Some(output) = output.filter(|output| !is_named_safetensors(output)) {
            bail!("{}: the name of the output must end in .safetensors", output.display());
        }
        let notes = notes(&path)?;
        let Some(notes) = notes else {
            term.note(format_args!("{}: nothing to repair", safe(&path.to_string_lossy())));
            return Ok(Outcome::Clean);
        };
        let named = || path.display().to_string();
        let file = File::open(&path).with_context(named)?;
        let size = file.metadata().with_context(named)?.len();
        let raw = header::read(&file, size).with_context(named)?;
        let Mended { tensors, metadata, mut changes } = mend::prove(&file, size, raw).with_context(named)?;
        changes.extend(notes);
        if changes.is_empty() {
            changes.push("the header is written anew".to_owned());
        }
        for change in &changes {
            term.note(format_args!("{}: {}", safe(&path.to_string_lossy()), safe(change)));
        }
        let Some(output) = output else {
            let what = plural(changes.len(), "change");
            term.note(format_args!("{what} would make it valid; -o FILE writes a repaired file"));
            return Ok(Outcome::Findings);
        };
        let save =
            metadata.into_iter().fold(Save::new().order(Order::Given), |save, (k, v)| save.metadata(k, v));
        let data = |kept| Data { file: &file, path: &path, kept };
        let tensors = tensors.into_iter().map(|(name, kept)| (name, data(kept))).collect();
        Destination::new(output, self.force).save(save, tensors, term)
    }

    /// The file, which must be one.
    fn file(&self) -> Result<PathBuf> {
        if self.input.is_file() {
            return Ok(self.input.clone());
        }
        let files = Checkpoint::options().files(&self.input)?;
        match <[PathBuf; 1]>::try_from(files.shards) {
            Ok([file]) => Ok(file),
            Err(_) => bail!(
                "{}: it has several files; name the one that is broken, `weighbridge verify` says which",
                self.input.display()
            ),
        }
    }
}

fn is_named_safetensors(path: &Path) -> bool {
    path.extension().is_some_and(|end| end.eq_ignore_ascii_case("safetensors"))
}

/// What the specification forbids in the header of a file and readers let pass; `None` if there is nothing to
/// repair.
fn notes(path: &Path) -> Result<Option<Vec<String>>> {
    let diagnosis = Checkpoint::options().diagnose(path)?;
    // What is a matter of names and sizes stays as it is.
    let stays = |rule| matches!(rule, Rule::LargeNumber | Rule::NulInName);
    let notes = diagnosis.findings.iter().filter(|finding| !stays(finding.rule));
    let notes: Vec<_> = notes.map(|finding| format!("{finding}: written anew")).collect();
    Ok(if diagnosis.errors.is_empty() && notes.is_empty() { None } else { Some(notes) })
}

/// A tensor of the broken file.
struct Data<'a> {
    file: &'a File,
    path: &'a Path,
    kept: Kept,
}

impl TensorData for Data<'_> {
    fn dtype(&self) -> Dtype {
        self.kept.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.kept.shape
    }

    fn write_to(&self, mut out: &mut dyn Write) -> io::Result<()> {
        let mut file = self.file;
        file.seek(SeekFrom::Start(self.kept.bytes.start))?;
        let len = self.kept.bytes.end - self.kept.bytes.start;
        io::copy(&mut io::Read::take(file, len), &mut out).map(drop)
    }

    fn stored(&self) -> Option<Stored<'_>> {
        Some(Stored::new(self.file, self.kept.bytes.clone()).with_path(self.path))
    }
}
