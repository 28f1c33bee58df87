//! Which dtypes tensors get: options that several verbs have.

use anyhow::Result;
use clap::{Args, ValueEnum};
use weighbridge::plan::Overflow;
use weighbridge::{Dtype, Names, TensorRef};

use crate::dtype::{can_read, parse_dtype};

/// Choosing dtypes.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Dtypes")]
pub(crate) struct Casts {
    /// The dtype to cast to: `bf16` casts all floats, `'*.bias=f32'` whatever the glob matches, integers included. May be
    /// given several times: the last one that speaks of a tensor counts
    #[arg(long, value_name = "[GLOB=]DTYPE", value_parser = To::parse)]
    to: Vec<To>,

    /// Tensors whose whole name matches stay as they are; may be given several times
    #[arg(long, value_name = "GLOB")]
    keep: Vec<String>,

    /// What becomes of values that the new dtype does not reach to
    #[arg(long, value_enum, value_name = "HOW", default_value_t)]
    overflow: OnOverflow,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum OnOverflow {
    /// Fail, and write nothing
    #[default]
    Error,
    /// Take the largest value that there is; infinities stay infinite where the dtype has them
    Saturate,
    /// Become infinite, or the largest value where the dtype has no infinities
    Infinity,
}

#[derive(Clone, Debug)]
struct To {
    /// `None` means all floats.
    glob: Option<String>,
    dtype: Dtype,
}

impl To {
    fn parse(text: &str) -> Result<Self, String> {
        // The name of a dtype holds no `=`, a glob may.
        let (glob, dtype) = match text.rsplit_once('=') {
            Some((glob, dtype)) => (Some(glob.to_owned()), dtype),
            None => (None, text),
        };
        Ok(Self { glob, dtype: parse_dtype(dtype)? })
    }
}

impl Casts {
    /// Whether every tensor stays as it is.
    pub(crate) fn is_none(&self) -> bool {
        self.to.is_empty()
    }

    /// The rules, ready to be asked.
    pub(crate) fn rules(&self) -> Result<Rules> {
        let mut rules = Rules { overflow: self.overflow.into(), ..Rules::default() };
        for To { glob, dtype } in &self.to {
            let names = glob.as_deref().map(Names::glob).transpose()?;
            rules.to.push((names, *dtype));
        }
        for glob in &self.keep {
            rules.keep.push(Names::glob(glob)?);
        }
        Ok(rules)
    }
}

impl From<OnOverflow> for Overflow {
    fn from(how: OnOverflow) -> Self {
        match how {
            OnOverflow::Error => Self::Error,
            OnOverflow::Saturate => Self::Saturate,
            OnOverflow::Infinity => Self::Infinity,
        }
    }
}

/// What the library says that a caller could do, in the words of the command line.
pub(crate) fn in_options(error: &str) -> String {
    let error = error.replace("`Overflow::Saturate`", "--overflow saturate");
    error.replace("`Overflow::Infinity`", "--overflow infinity")
}

/// Which tensor gets which dtype.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rules {
    to: Vec<(Option<Names>, Dtype)>,
    keep: Vec<Names>,
    overflow: Overflow,
}

impl Rules {
    /// The dtype for a tensor; `None` keeps the one that it has.
    pub(crate) fn dtype(&self, tensor: &TensorRef<'_>) -> Option<Dtype> {
        if self.keep.iter().any(|names| names.contains(tensor.name())) {
            return None;
        }
        let speaks = |(names, _): &&(Option<Names>, Dtype)| match names {
            Some(names) => names.contains(tensor.name()),
            // Values of 6 bits are floats that nothing can be made of.
            None => tensor.dtype().is_float() && can_read(tensor.dtype()),
        };
        self.to.iter().rev().find(speaks).map(|&(_, dtype)| dtype).filter(|&dtype| dtype != tensor.dtype())
    }

    pub(crate) fn overflow(&self) -> Overflow {
        self.overflow
    }
}
