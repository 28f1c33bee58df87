//! `weighbridge dequantize`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use weighbridge::{Checkpoint, Dtype, Names, Plan, TensorRef};
use weighbridge_convert::Options;

use crate::beside::Beside;
use crate::casts::OnOverflow;
use crate::dense;
use crate::destination::Destination;
use crate::dtype::parse_weight_dtype;
use crate::load;
use crate::outcome::Outcome;
use crate::pattern;
use crate::select::Select;
use crate::show::plural;
use crate::term::Term;

/// Makes the weights that quantised modules stand for: FP8, GPTQ, AWQ, bitsandbytes, MXFP4, MLX and others
///
/// The codes, scales and zero points of a module `up` become `up.weight`, made in F32 by the formula of its method
/// and rounded once. All other tensors stay as they are; 8-bit floats without scales are cast. In a directory
/// the tensors get the other files of the checkpoint (tokenizer, templates), and a config.json that does not
/// speak of quantisation any more. Nothing is written if there is a module that cannot be dequantised. Memory
/// stays the same however large the checkpoint is.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  weighbridge dequantize Qwen3-8B-FP8 -o qwen-bf16
  weighbridge dequantize Llama-3.1-8B-GPTQ --to bf16 -o llama-bf16 --max-shard-size 2GB
  weighbridge dequantize gpt-oss-20b --only 'model.layers.0.*' -o first-layer.safetensors
  weighbridge dequantize Llama-3.1-8B-AWQ-INT4 -o llama-f16 --dry-run")]
pub(crate) struct Dequantize {
    /// The checkpoint: a file, a directory, an index, or a repository in the cache
    #[arg(value_name = "PATH")]
    input: PathBuf,

    /// The dtype of the weights: bf16, f16 or f32; otherwise that of their scales if it is F16 or BF16, or else that
    /// of the model
    #[arg(long, value_name = "DTYPE", value_parser = parse_weight_dtype)]
    to: Option<Dtype>,

    /// What to do with values outside the range of the dtype
    #[arg(long, value_enum, value_name = "HOW", default_value_t)]
    overflow: OnOverflow,

    #[command(flatten)]
    select: Select,

    #[command(flatten)]
    destination: Destination,
}

/// Whether it is an 8-bit float that is a number like any other.
fn is_small_float(tensor: &TensorRef<'_>) -> bool {
    let of_weights = [Dtype::F8_E4M3, Dtype::F8_E5M2, Dtype::F8_E4M3FNUZ, Dtype::F8_E5M2FNUZ];
    of_weights.contains(&tensor.dtype())
}

impl Dequantize {
    pub(crate) fn run(&self, term: &Term) -> Result<Outcome> {
        let options = self.to.map_or_else(Options::new, |to| Options::new().dequantise(to));
        let (checkpoint, foreign) = load::any(&self.input, &options, term)?;
        load::tell(&self.input, &checkpoint, term);
        self.select.check(&self.input, &pattern::names(&checkpoint), term)?;
        let names = self.select.names()?;
        let advice = "nothing is written; --except leaves modules out";
        let dense = dense::weights(&checkpoint, &names, advice)?;
        let weights = dense::dequantised(&checkpoint, &dense);
        // Of modules that are not chosen nothing is left over.
        let left = dense.quantized().flat_map(|module| module.tensors().map(|tensor| tensor.name()));
        let names = names.except(Names::list(left.collect::<Vec<_>>()));
        let beside = Beside::of(&self.input, &checkpoint)?;
        let small = self.to.or(beside.dtype()).unwrap_or(Dtype::BF16);
        let plan = Plan::of(&dense)
            .only(names.clone())
            .dtype(|tensor| match weights.contains(tensor.name()) {
                true => self.to,
                false => is_small_float(tensor).then_some(small),
            })
            .overflow(self.overflow.into())
            .build()?;
        let is_cast = |tensor: &TensorRef<'_>| is_small_float(tensor) && !weights.contains(tensor.name());
        let cast = chosen(&dense, &names).filter(is_cast).count();
        if plan.entries().is_empty() {
            return Err(pattern::nothing_left(&self.input, dense.len()));
        }
        // Blocks of GGUF are weights as soon as they are read.
        if weights.is_empty() && cast == 0 && foreign.is_none() {
            bail!(
                "{}: nothing that is chosen of it is quantised; `weighbridge cast` casts it, `weighbridge split` copies it",
                self.input.display()
            );
        }
        let destination = beside.into(&self.destination, self.to)?;
        let outcome = dense::write(&plan, &dense, &destination, term)?;
        let casts = match cast {
            0 => String::new(),
            cast => format!("{} cast to {small}, ", plural(cast, "tensor")),
        };
        let others = plan.entries().len() - weights.len() - cast;
        term.note(format_args!("{} dequantised, {casts}{others} as before", plural(weights.len(), "weight")));
        Ok(outcome)
    }
}

fn chosen<'c>(checkpoint: &'c Checkpoint, names: &Names) -> impl Iterator<Item = TensorRef<'c>> {
    checkpoint.tensors().filter(|tensor| names.contains(tensor.name()))
}
