//! Which dtypes tensors get: options that several verbs have.

use anyhow::Result;
use clap::{Args, ValueEnum};
use weighbridge::plan::Overflow;
use weighbridge::{Checkpoint, Dtype, Names, TensorRef};

use crate::dtype::{can_read, parse_dtype};
use crate::show::plural;

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

    /// What to do with values outside the range of the new dtype
    #[arg(long, value_enum, value_name = "HOW", default_value_t)]
    overflow: OnOverflow,

    #[command(flatten)]
    quantized: OnQuantized,
}

/// What becomes of quantised modules.
#[derive(Clone, Copy, Debug, Default, Args)]
pub(crate) struct OnQuantized {
    /// What to do with quantised modules (FP8 with scales, GPTQ, AWQ, bitsandbytes and others) that would be cast
    #[arg(long, value_enum, value_name = "HOW", default_value_t)]
    quantized: HowQuantized,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum HowQuantized {
    /// Fail, and write nothing: their values are codes, not weights
    #[default]
    Refuse,
    /// Cast the codes and the scales like any other numbers
    Raw,
}

impl OnQuantized {
    pub(crate) fn is_raw(self) -> bool {
        self.quantized == HowQuantized::Raw
    }
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum OnOverflow {
    /// Fail, and write nothing
    #[default]
    Error,
    /// Use the largest finite value; infinities stay infinite if the dtype has them
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
        let raw = self.quantized.is_raw();
        let mut rules = Rules { overflow: self.overflow.into(), raw, ..Rules::default() };
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
    /// Whether quantised modules are cast, too.
    raw: bool,
}

impl Rules {
    /// The dtype for a tensor; `None` keeps the one that it has.
    pub(crate) fn dtype(&self, tensor: &TensorRef<'_>) -> Option<Dtype> {
        // Values of 6 bits are floats that nothing can be made of.
        self.rule(tensor, tensor.dtype().is_float() && can_read(tensor.dtype()))
    }

    /// The dtype that the last matching rule gives; rules without a glob match floats.
    fn rule(&self, tensor: &TensorRef<'_>, is_float: bool) -> Option<Dtype> {
        if self.keep.iter().any(|names| names.contains(tensor.name())) {
            return None;
        }
        let matches = |(names, _): &&(Option<Names>, Dtype)| match names {
            Some(names) => names.contains(tensor.name()),
            None => is_float,
        };
        self.to.iter().rev().find(matches).map(|&(_, dtype)| dtype).filter(|&dtype| dtype != tensor.dtype())
    }

    /// Fails if a quantised module among `chosen` tensors would be cast.
    pub(crate) fn refuse_quantized(
        &self,
        checkpoint: &Checkpoint,
        chosen: &Names,
    ) -> weighbridge::Result<()> {
        if self.raw || self.to.is_empty() {
            return Ok(());
        }
        let mut refused = checkpoint.quantized().filter_map(|module| {
            let is_chosen = |tensor: &TensorRef<'_>| chosen.contains(tensor.name());
            // Codes stand for floats, whatever they are stored as.
            let codes = module.codes().filter(is_chosen).find(|codes| self.rule(codes, true).is_some());
            // Rounded scales change the weights; without the codes they are ordinary numbers.
            let scales = || {
                module.codes().find(is_chosen)?;
                module.tensors().filter(is_chosen).find(|tensor| self.dtype(tensor).is_some())
            };
            Some((module, codes.or_else(scales)?))
        });
        let Some((module, tensor)) = refused.next() else { return Ok(()) };
        let more = match refused.count() {
            0 => String::new(),
            more => format!("so {} {}; ", if more == 1 { "is" } else { "are" }, plural(more, "other module")),
        };
        let advice = format!("{more}--keep leaves tensors as they are, --quantized raw casts the codes");
        Err(module.refusal(tensor.name(), &advice))
    }

    pub(crate) fn overflow(&self) -> Overflow {
        self.overflow
    }
}
