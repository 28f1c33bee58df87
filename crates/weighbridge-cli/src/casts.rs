//! Which dtypes tensors get: options that several verbs have.

use std::path::Path;

use anyhow::Result;
use clap::{Args, ValueEnum};
use weighbridge::plan::{OutOfRange, Overflow};
use weighbridge::{Checkpoint, Dtype, Error, Names, QuantizedModule, TensorRef};

use crate::dense;
use crate::dtype::{can_read, parse_dtype};
use crate::pattern::{self, Pattern};
use crate::show::{plural, safe};
use crate::term::Term;

/// Choosing dtypes.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Dtypes")]
pub(crate) struct Casts {
    /// The dtype to cast to: `bf16` casts all floats, `'*.bias=f32'` whatever the glob matches, integers
    /// included. May be given several times: the last one that speaks of a tensor counts
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
    /// What to do with quantised modules (FP8 with scales, GPTQ, AWQ, bitsandbytes and others) whose values are
    /// asked for
    #[arg(long = "quantized", value_enum, value_name = "HOW", default_value_t)]
    how: HowQuantized,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum HowQuantized {
    /// Take the weights that they stand for, under the names of weights: `up.weight`
    #[default]
    Dequantize,
    /// Fail, and write nothing: their values are codes, not weights
    Refuse,
    /// Take the codes and the scales like any other numbers
    Raw,
}

impl OnQuantized {
    pub(crate) fn is_raw(self) -> bool {
        self.how == HowQuantized::Raw
    }

    pub(crate) fn is_dequantize(self) -> bool {
        self.how == HowQuantized::Dequantize
    }
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(crate) enum OnOverflow {
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

    /// Whether the codes of quantised modules are taken as they are.
    pub(crate) fn is_raw(&self) -> bool {
        self.quantized.is_raw()
    }

    /// Fails where a glob of `--to` matches none of these names, and warns where one of `--keep` does not.
    pub(crate) fn check<N: AsRef<str>>(&self, location: &Path, names: &[N], term: &Term) -> Result<()> {
        let globs = self.to.iter().filter_map(|To { glob, dtype }| Some((glob.as_deref()?, dtype)));
        let to = globs.map(|(glob, dtype)| Pattern::part("--to", &format!("{glob}={}", dtype.name()), glob));
        pattern::must_match("tensor", location, &to.collect::<Result<Vec<_>>>()?, names)?;
        pattern::should_match("tensor", location, &Pattern::globs("--keep", &self.keep)?, names, term);
        Ok(())
    }

    /// The rules, ready to be asked.
    pub(crate) fn rules(&self) -> Result<Rules> {
        let mut rules =
            Rules { overflow: self.overflow.into(), quantized: self.quantized, ..Rules::default() };
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

/// An error in the words of the command line: how a value that does not fit could be cast is said as options.
pub(crate) fn in_options(error: anyhow::Error) -> anyhow::Error {
    let option = |how: &Overflow| match how {
        Overflow::Error => Some("--overflow error"),
        Overflow::Saturate => Some("--overflow saturate"),
        Overflow::Infinity => Some("--overflow infinity"),
        _ => None,
    };
    match error.downcast::<weighbridge::Error>() {
        Ok(own) => {
            let told = reworded(own, |remedies| {
                let options: Vec<_> = remedies.iter().filter_map(option).collect();
                if options.is_empty() {
                    String::new()
                } else {
                    format!("; {} would take it", options.join(" or "))
                }
            });
            told.into()
        }
        Err(other) => other,
    }
}

/// An error of a verb that does not let the user choose how values that do not fit are cast.
pub(crate) fn without_options(error: weighbridge::Error) -> weighbridge::Error {
    reworded(error, |_| String::new())
}

fn reworded(error: Error, advice: impl Fn(&[Overflow]) -> String) -> Error {
    let source = std::error::Error::source(&error);
    let Some(value) = source.and_then(|source| source.downcast_ref::<OutOfRange>()) else { return error };
    let mut told = Error::new(error.kind(), format!("{value}{}", advice(&value.remedies)));
    if let Some(file) = error.file() {
        told = told.in_file(file);
    }
    match error.tensor() {
        Some(tensor) => told.in_tensor(tensor),
        None => told,
    }
}

/// What to do about modules that are not dequantised.
const ADVICE: &str = "--keep leaves tensors as they are, --quantized raw casts the codes";

/// Which tensor gets which dtype.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rules {
    to: Vec<(Option<Names>, Dtype)>,
    keep: Vec<Names>,
    overflow: Overflow,
    quantized: OnQuantized,
    /// Whether all weights will be cast later on.
    all: bool,
}

impl Rules {
    /// For tensors all of which will be cast later on, to dtypes that the rules do not know: all quantised modules are
    /// dequantised.
    pub(crate) fn before_casts(self) -> Self {
        Self { all: true, ..self }
    }

    /// The dtype for a tensor; `None` keeps the one that it has.
    pub(crate) fn dtype(&self, tensor: &TensorRef<'_>) -> Option<Dtype> {
        // Values of 6 bits are floats that nothing can be made of.
        self.rule(tensor, tensor.dtype().is_float() && can_read(tensor.dtype()))
    }

    /// The dtype that the rules give a tensor which has another one.
    fn rule(&self, tensor: &TensorRef<'_>, is_float: bool) -> Option<Dtype> {
        self.given(tensor.name(), is_float).filter(|&dtype| dtype != tensor.dtype())
    }

    /// The dtype that the last matching rule gives; rules without a glob match floats.
    fn given(&self, name: &str, is_float: bool) -> Option<Dtype> {
        if self.keeps(name) {
            return None;
        }
        let matches = |(names, _): &&(Option<Names>, Dtype)| match names {
            Some(names) => names.contains(name),
            None => is_float,
        };
        self.to.iter().rev().find(matches).map(|&(_, dtype)| dtype)
    }

    fn keeps(&self, name: &str) -> bool {
        self.keep.iter().any(|names| names.contains(name))
    }

    /// The checkpoint in which each quantised module whose weight is cast is that weight.
    ///
    /// # Errors
    ///
    /// Fails where such a module cannot be dequantised or is refused, and where tensors of others would be cast.
    pub(crate) fn weights(&self, checkpoint: &Checkpoint, chosen: &Names) -> weighbridge::Result<Checkpoint> {
        if self.quantized.is_raw() || self.to.is_empty() && !self.all {
            return Ok(checkpoint.clone());
        }
        if !self.quantized.is_dequantize() {
            self.refuse_quantized(checkpoint, chosen)?;
            return Ok(checkpoint.clone());
        }
        let is_cast = |module: &QuantizedModule<'_>| self.casts_weight(module, chosen);
        let weights = checkpoint.dequantized_where(is_cast)?;
        let refused = weights.quantized().filter(is_cast);
        if let Some(error) = dense::refusal(refused, ADVICE) {
            return Err(error);
        }
        self.refuse_quantized(&weights, chosen)?;
        Ok(weights)
    }

    /// Whether the weight of a module is cast; who keeps its codes keeps the module.
    fn casts_weight(&self, module: &QuantizedModule<'_>, chosen: &Names) -> bool {
        let weight = module.weight();
        chosen.contains(&weight)
            && (self.all || self.given(&weight, true).is_some())
            && !module.codes().any(|codes| self.keeps(codes.name()))
    }

    /// Fails if a quantised module among `chosen` tensors would be cast as it is stored.
    fn refuse_quantized(&self, checkpoint: &Checkpoint, chosen: &Names) -> weighbridge::Result<()> {
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
        Err(module.refusal(tensor.name(), &format!("{more}{}", self.advice(&module))))
    }

    /// What to do about a module whose codes would be cast.
    fn advice(&self, module: &QuantizedModule<'_>) -> String {
        match self.quantized.is_dequantize() {
            // Its codes or scales were named, or its weight was kept without them.
            true => format!(
                "name its weight, {:?}, to cast that; --keep leaves tensors as they are, --quantized raw casts the codes",
                safe(&module.weight())
            ),
            false => format!("--quantized dequantize casts the weights, {ADVICE}"),
        }
    }

    pub(crate) fn overflow(&self) -> Overflow {
        self.overflow
    }
}

#[cfg(test)]
mod tests {
    use weighbridge::Plan;
    use weighbridge::plan::cast_into;
    use weighbridge::write::{Save, Values};

    use super::*;

    #[test]
    fn remedies_are_said_as_options() {
        let bytes = Save::new().bytes([("w", Values::new(&[1], &[1e6_f32]).unwrap())]).unwrap();
        let checkpoint = Checkpoint::from_bytes(bytes).unwrap();
        let plan =
            Plan::of(&checkpoint).dtype(|_| Some(Dtype::F16)).overflow(Overflow::Error).build().unwrap();
        let error = plan.session().start().unwrap().take("w", None).unwrap_err();
        let error = error.in_file(Path::new("`Overflow::Saturate`"));
        let place = "`Overflow::Saturate`: tensor \"w\": 1000000 of F32 does not fit F16";
        assert_eq!(
            in_options(error.clone().into()).to_string(),
            format!("{place}; --overflow saturate or --overflow infinity would take it")
        );
        assert_eq!(without_options(error).to_string(), place);
        // What has no remedies, and what is about something else, stays as it is.
        let error = cast_into(Dtype::F32, &f32::NAN.to_le_bytes(), &mut [0_i8]).unwrap_err();
        assert_eq!(in_options(error.into()).to_string(), "NaN of F32 does not fit I8");
        assert_eq!(in_options(anyhow::anyhow!("`Overflow::Saturate`")).to_string(), "`Overflow::Saturate`");
    }
}
