//! `weighbridge cat`: one tensor, or a part of one, as text, as a NumPy file, or as bytes.

mod npy;
mod number;
mod stream;
mod text;

use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use weighbridge::plan::{Overflow, Part};
use weighbridge::write::OutputFile;
use weighbridge::{Checkpoint, Dtype, NearestNames, Plan, QuantizedModule, Slice};

use crate::casts::OnQuantized;
use crate::dense;
use crate::dtype::parse_dtype;
use crate::load;
use crate::outcome::Outcome;
use crate::pattern;
use crate::show::safe;
use crate::term::{Bar, Term};
use stream::stream;

/// Writes one tensor, or a slice of it, as text, as a NumPy file or as raw bytes
///
/// Only the bytes of the slice are read. The weight of a quantised module (`up.weight`, where `up.qweight` and others
/// are stored) is made of its codes. Arrays and raw bytes are written while they are read, in constant
/// memory.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  weighbridge cat model.safetensors model.norm.weight
  weighbridge cat model.safetensors 'layers.0.w[0:10, ::2]' --to f32 --format npy -o w.npy
  weighbridge cat model.safetensors layers.0.w --format raw | b3sum")]
pub(crate) struct Cat {
    /// A file, a directory, an index or the id of a repository in the cache
    path: PathBuf,

    /// The name of a tensor, with a slice as in Python behind it if a part is wanted
    #[arg(value_name = "TENSOR[SLICE]")]
    tensor: String,

    /// The form of the output
    #[arg(long, value_enum, default_value = "text")]
    format: Format,

    /// Cast to this dtype; values that have no place in it are an error
    #[arg(long, value_name = "DTYPE", value_parser = parse_dtype)]
    to: Option<Dtype>,

    #[command(flatten)]
    quantized: OnQuantized,

    /// Print all values as text, however many there are
    #[arg(long)]
    full: bool,

    /// Write into this file instead of to standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Replace the file if it is there already
    #[arg(long, requires = "output")]
    force: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// As NumPy prints arrays
    Text,
    /// A NumPy file, version 1.0
    Npy,
    /// The bytes of the values, little-endian, row by row
    Raw,
}

impl Cat {
    pub(crate) fn run(&self, term: &Term) -> Result<Outcome> {
        let checkpoint = self.weights(&load::look(&self.path, term)?)?;
        let (name, slice) = self.find(&checkpoint)?;
        if let Some(module) = checkpoint.quantized_codes(name)
            && self.to.is_some()
            && !self.quantized.is_raw()
        {
            return Err(module.refusal(name, "--quantized raw casts the codes").into());
        }
        let plan = Plan::of(&checkpoint)
            .filter(|tensor| tensor.name() == name)
            .part(|_| Ok(slice.clone().map(Part::of)))
            .dtype(|_| self.to)
            .overflow(Overflow::Error)
            .build()
            .with_context(|| self.path.display().to_string())?;
        let (_, tensor) = plan.tensors().next().context("the tensor is gone")?;
        let dtype = tensor.entry().dtype();
        let header = match self.format {
            Format::Npy => npy::header(dtype, tensor.entry().shape()).with_context(|| self.blame(name))?,
            Format::Text | Format::Raw => Vec::new(),
        };
        let stored = checkpoint.tensor(name).context("the tensor is gone")?;
        let write = |out: &mut dyn Write, bar: &Bar| -> Result<()> {
            if self.format == Format::Text {
                let values = match self.to {
                    None => text::Values::stored(&stored, slice.as_ref())?,
                    Some(_) => {
                        text::Values::made(&tensor, bar).with_context(|| self.path.display().to_string())?
                    }
                };
                return values.print(self.full, out).with_context(|| self.blame(name));
            }
            out.write_all(&header)?;
            stream(&tensor, out, bar).with_context(|| self.path.display().to_string())
        };
        let bar = term.bar("reading", tensor.entry().byte_len());
        match &self.output {
            Some(path) => {
                self.write_file(path, &write, header.len() as u64 + tensor.entry().byte_len(), &bar)?;
            }
            None if self.format != Format::Text && io::stdout().is_terminal() => {
                bail!(
                    "binary data is nothing for a terminal; name a file with -o, or pipe it into a program"
                );
            }
            None => {
                let mut out = BufWriter::with_capacity(1 << 20, io::stdout().lock());
                write(&mut out, &bar)?;
                out.flush()?;
            }
        }
        Ok(Outcome::Clean)
    }

    fn write_file(
        &self,
        path: &Path,
        write: &dyn Fn(&mut dyn Write, &Bar) -> Result<()>,
        bytes: u64,
        bar: &Bar,
    ) -> Result<()> {
        if !self.force && path.try_exists()? {
            bail!("{}: it is there already; --force replaces it", path.display());
        }
        let mut file = OutputFile::atomic(path)?;
        if self.format != Format::Text {
            file.expect(bytes)?;
        }
        write(&mut file, bar)?;
        Ok(file.commit()?)
    }

    /// The checkpoint in which the tensor is a weight where a quantised module stands for it, unless its codes are wanted.
    fn weights(&self, checkpoint: &Checkpoint) -> Result<Checkpoint> {
        let front = self.tensor.split_once_last('[').map_or("", |(front, _)| front.trim_end());
        let is_named = |module: &QuantizedModule<'_>| {
            let weight = module.weight();
            weight == self.tensor || weight == front && checkpoint.tensor(&self.tensor).is_none()
        };
        if self.quantized.is_raw() {
            return Ok(checkpoint.clone());
        }
        let (weights, advice) = match self.quantized.is_dequantize() {
            true => (checkpoint.dequantized_where(is_named)?, "--quantized raw shows the codes"),
            false => {
                (checkpoint.clone(), "--quantized dequantize shows the weights, --quantized raw the codes")
            }
        };
        match dense::refusal(weights.quantized().filter(is_named), advice) {
            Some(error) => Err(error.into()),
            None => Ok(weights),
        }
    }

    /// The tensor of that name, or else the one whose name is in front of a slice.
    fn find<'c>(&self, checkpoint: &'c Checkpoint) -> Result<(&'c str, Option<Slice>)> {
        if let Some(tensor) = checkpoint.tensor(&self.tensor) {
            return Ok((tensor.name(), None));
        }
        let mut name = &*self.tensor;
        if let Some((front, slice)) = self.tensor.split_once_last('[') {
            name = front.trim_end();
            if let Some(tensor) = checkpoint.tensor(name) {
                let slice: Slice = slice.parse().with_context(|| self.blame(name))?;
                return Ok((tensor.name(), Some(slice)));
            }
        }
        let names = pattern::names(checkpoint);
        let near = NearestNames::of(name, names.iter().map(AsRef::as_ref));
        let hint = match near.is_empty() {
            true => format!("`weighbridge inspect {}` lists them", self.path.display()),
            false => near.to_string(),
        };
        bail!("{}: there is no tensor {:?}; {hint}", self.path.display(), safe(name))
    }

    fn blame(&self, name: &str) -> String {
        format!("{}: tensor {:?}", self.path.display(), safe(name))
    }
}

trait SplitLast {
    /// The text before the last `character` where the text ends in a bracket, and the text from it on.
    fn split_once_last(&self, character: char) -> Option<(&str, &str)>;
}

impl SplitLast for str {
    fn split_once_last(&self, character: char) -> Option<(&str, &str)> {
        self.trim_end().ends_with(']').then_some(())?;
        Some(self.split_at(self.rfind(character)?))
    }
}
