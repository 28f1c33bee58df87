//! `weighbridge quantize`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use weighbridge::plan::{QuantizeMethod, QuantizedWeight};
use weighbridge::write::{Save, TensorData};
use weighbridge::{Checkpoint, Entry, ErrorKind, Plan};

mod beside;
mod choice;
mod config;

use crate::destination::Destination;
use crate::load::open;
use crate::metadata;
use crate::outcome::Outcome;
use crate::pattern::{self, Pattern};
use crate::show::{plural, safe};
use crate::term::Term;
use beside::Beside;
use choice::{Choice, Fate};

/// So many weights that stay as they are get a line; --verbose shows all.
const SHOWN: usize = 5;

/// Quantises weights by rounding to nearest, in the layouts that transformers loads
///
/// Matrices named `.weight` are quantised, but for embeddings, `lm_head`, norms and the routers of experts;
/// all else stays as it is, and so do weights that the method does not take, which are listed. No calibration
/// data is needed. In a directory the tensors get a config.json with the `quantization_config` that goes with
/// them, and the other small files of the input (tokenizer, templates). Memory stays the same however large
/// the checkpoint is. GGUF files are written by `weighbridge convert --type`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  weighbridge quantize Llama-3.2-1B --method fp8 -o llama-fp8
  weighbridge quantize Llama-3.2-1B --method int4-rtn --group-size 64 -o llama-int4
  weighbridge quantize Llama-3.2-1B --method nf4 --keep '*.down_proj.weight' -o llama-nf4
  weighbridge quantize Qwen3-8B --method fp8-block --only '*.mlp.*' -o qwen-fp8 --dry-run")]
pub(crate) struct Quantize {
    /// The checkpoint: a file, a directory, an index, or a repository in the cache
    #[arg(value_name = "PATH")]
    input: PathBuf,

    /// How weights are quantised
    #[arg(long, value_enum, value_name = "METHOD")]
    method: Method,

    /// Of int4-rtn, the number of values in a row that share a scale: a multiple of 8; 128 otherwise
    #[arg(long, value_name = "VALUES")]
    group_size: Option<usize>,

    /// Only weights whose whole name matches are quantised, those included that otherwise are not, such as
    /// `lm_head.weight`; all else stays as it is. May be given several times
    #[arg(long, value_name = "GLOB")]
    only: Vec<String>,

    /// Weights whose whole name matches stay as they are; may be given several times
    #[arg(long, value_name = "GLOB")]
    keep: Vec<String>,

    #[command(flatten)]
    destination: Destination,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Method {
    /// 8-bit floats with a scale a row; activations rounded a token at a time (compressed-tensors'
    /// `FP8_DYNAMIC`)
    Fp8,
    /// 8-bit floats with a scale for each 128 by 128, as DeepSeek has them (transformers' `fp8`)
    Fp8Block,
    /// 8-bit integers with a scale a row; activations rounded a token at a time (compressed-tensors' `W8A8`)
    Int8,
    /// 4-bit integers with a scale a group (compressed-tensors' `W4A16`)
    Int4Rtn,
    /// bitsandbytes' 4-bit NormalFloat in blocks of 64
    Nf4,
    /// 4-bit floats with a power of two for each 32 (compressed-tensors' `MXFP4A16`)
    Mxfp4,
}

impl Quantize {
    pub(crate) fn run(&self, term: &Term) -> Result<Outcome> {
        let method = self.method()?;
        let checkpoint = open(&self.input, term)?;
        if let Some(module) = checkpoint.quantized().next() {
            let codes = module.codes().next().map_or("", |codes| codes.name());
            return Err(module.refusal(codes, "`weighbridge dequantize` makes weights of it first").into());
        }
        let names = pattern::names(&checkpoint);
        pattern::must_match("tensor", &self.input, &Pattern::globs("--only", &self.only)?, &names)?;
        pattern::should_match("tensor", &self.input, &Pattern::globs("--keep", &self.keep)?, &names, term);
        let choice = Choice::new(method, &self.only, &self.keep)?;
        let beside = Beside::of(&checkpoint, &self.destination)?;
        beside.check()?;
        let mut tensors = Tensors::default();
        for tensor in checkpoint.tensors() {
            let fate = choice.fate(&tensor);
            match fate {
                Fate::Quantized => tensors.quantize(method.weight(&tensor)?),
                Fate::Kept(_) => tensors.keep(Entry::of(&tensor, None)?),
            }
            config::note(&mut tensors.ignored, &tensor, &fate);
            if let Fate::Kept(Some(why)) = fate {
                tensors.unfit.push(format!("{}: it stays {}: {why}", safe(tensor.name()), tensor.dtype()));
            }
        }
        tensors.ignored.extend(config::tied_head(&checkpoint));
        if tensors.quantized == 0 {
            bail!("{}: it has no weight that {method} takes{}", self.input.display(), tensors.why());
        }
        self.write(method, &checkpoint, tensors, &beside, term)
    }

    fn method(&self) -> Result<QuantizeMethod> {
        if self.group_size.is_some() && self.method != Method::Int4Rtn {
            bail!("--group-size is of --method int4-rtn only");
        }
        if self.group_size.is_some_and(|group| group == 0 || !group.is_multiple_of(8)) {
            bail!("--group-size must be a multiple of 8");
        }
        Ok(match self.method {
            Method::Fp8 => QuantizeMethod::Fp8,
            Method::Fp8Block => QuantizeMethod::Fp8Block,
            Method::Int8 => QuantizeMethod::Int8,
            Method::Int4Rtn => {
                self.group_size.map_or(QuantizeMethod::INT4, |group| QuantizeMethod::Int4 { group })
            }
            Method::Nf4 => QuantizeMethod::Nf4,
            Method::Mxfp4 => QuantizeMethod::Mxfp4,
        })
    }

    fn write(
        &self,
        method: QuantizeMethod,
        checkpoint: &Checkpoint,
        tensors: Tensors,
        beside: &Beside<'_>,
        term: &Term,
    ) -> Result<Outcome> {
        let Tensors { all, quantized, kept, unfit, ignored, dtype } = tensors;
        let metadata = metadata::union(&[checkpoint], term);
        let save = metadata::with(Save::new(), metadata);
        let quantization = config::of(method, dtype, &ignored);
        let outcome = beside.destination(&quantization)?.save(save, all, term).map_err(of_weight)?;
        beside.tell(&quantization, term);
        for (number, line) in unfit.iter().enumerate() {
            if number < SHOWN { term.note(line) } else { term.detail(line) }
        }
        if unfit.len() > SHOWN && !term.is_verbose() {
            let more = plural(unfit.len() - SHOWN, "weight");
            term.note(format_args!("and more: {more} that {method} does not take; --verbose lists them"));
        }
        term.note(format_args!("{} quantised to {method}, {kept} as before", plural(quantized, "weight")));
        Ok(outcome)
    }
}

/// An error of a value, of the weight that has it instead of what was to be made of that.
fn of_weight(error: anyhow::Error) -> anyhow::Error {
    const WEIGHT: &str = ".weight";
    match error.downcast::<weighbridge::Error>() {
        Ok(error) if error.kind() == ErrorKind::Value => {
            let made = error.tensor().unwrap_or_default();
            let name = made.rfind(WEIGHT).map_or(made, |at| &made[..at + WEIGHT.len()]);
            let message = format!("{}; --keep leaves a tensor as it is", error.message());
            let told = weighbridge::Error::new(error.kind(), message).in_tensor(name);
            error.file().map_or_else(|| told.clone(), |file| told.clone().in_file(file)).into()
        }
        Ok(error) => error.into(),
        Err(other) => other,
    }
}

/// What is to be written.
#[derive(Default)]
struct Tensors {
    all: Vec<(String, Box<dyn TensorData>)>,
    quantized: usize,
    kept: usize,
    /// Weights that the method does not take, and why.
    unfit: Vec<String>,
    /// Modules that have a matrix which is not quantised.
    ignored: Vec<String>,
    /// Of the first weight that is quantised.
    dtype: Option<weighbridge::Dtype>,
}

impl Tensors {
    fn quantize(&mut self, weight: QuantizedWeight) {
        let QuantizedWeight { entries, constants } = weight;
        self.dtype = self.dtype.or_else(|| Some(entries.first()?.inputs().first()?.dtype()));
        self.add(entries);
        let constants = constants.into_iter();
        self.all.extend(constants.map(|(name, constant)| (name, Box::new(constant) as Box<dyn TensorData>)));
        self.quantized += 1;
    }

    fn keep(&mut self, entry: Entry) {
        self.add([entry]);
        self.kept += 1;
    }

    fn add(&mut self, entries: impl IntoIterator<Item = Entry>) {
        let plan = Plan::new(entries);
        self.all.extend(plan.tensors().map(|(name, made)| (name, Box::new(made) as Box<dyn TensorData>)));
    }

    fn why(&self) -> String {
        self.unfit.first().map_or_else(String::new, |first| format!(": {first}"))
    }
}
