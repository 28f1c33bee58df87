//! `weighbridge lora merge`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use weighbridge::{Dtype, Names, Plan};
use weighbridge_convert::Options;

use crate::beside::Beside;
use crate::casts::OnOverflow;
use crate::dense;
use crate::destination::Destination;
use crate::dtype::parse_weight_dtype;
use crate::load;
use crate::outcome::Outcome;
use crate::show::plural;
use crate::term::Term;

/// Merges adapters into a model: a checkpoint of its own that needs them no more
///
/// Each weight W becomes W + weight · scale · B A, computed in F32 and rounded once. Modules that are fused in the model
/// (qkv_proj, gate_up_proj) and apart in the adapter find their rows, and the other way round. A quantised model is
/// dequantised. In a directory the tensors get the model's other files (tokenizer, templates, config.json). A
/// module that is for no weight of the model is an error, and nothing is written. Memory stays the same however large
/// the model is.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  weighbridge lora merge Llama-3.2-1B my-adapter -o llama-merged
  weighbridge lora merge Llama-3.2-1B style facts --weight 0.7,0.3 -o llama-both
  weighbridge lora merge sdxl/unet/diffusion_pytorch_model.safetensors style.safetensors -o unet.safetensors
  weighbridge lora merge Llama-3.1-8B-GPTQ my-adapter --to bf16 -o llama-bf16 --dry-run

See also `weighbridge merge`, which joins the files of one model.")]
pub(crate) struct Merge {
    /// The model: a file, a directory, an index, or a repository in the cache
    #[arg(value_name = "BASE")]
    base: PathBuf,

    /// Adapters: directories of PEFT's, or files
    #[arg(value_name = "ADAPTER", required = true)]
    adapters: Vec<PathBuf>,

    /// How much of each adapter is merged, in their order [default: 1 of each]
    #[arg(long, value_name = "WEIGHT,...", value_delimiter = ',', allow_hyphen_values = true)]
    weight: Vec<f32>,

    /// The dtype of all weights: bf16, f16 or f32; otherwise each keeps its own
    #[arg(long, value_name = "DTYPE", value_parser = parse_weight_dtype)]
    to: Option<Dtype>,

    /// What to do with values outside the range of the dtype
    #[arg(long, value_enum, value_name = "HOW", default_value_t)]
    overflow: OnOverflow,

    #[command(flatten)]
    destination: Destination,
}

impl Merge {
    pub(crate) fn run(&self, term: &Term) -> Result<Outcome> {
        if !self.weight.is_empty() && self.weight.len() != self.adapters.len() {
            let (weights, adapters) =
                (plural(self.weight.len(), "weight"), plural(self.adapters.len(), "adapter"));
            bail!("{weights} for {adapters}: --weight needs one of each, in their order");
        }
        if let Some(weight) = self.weight.iter().find(|weight| !weight.is_finite()) {
            bail!("--weight {weight} is no number that an adapter can be multiplied with");
        }
        let (stored, _) = load::any(&self.base, &Options::new(), term)?;
        load::tell(&self.base, &stored, term);
        let adapters = self.adapters.iter().map(|adapter| super::open(adapter, term));
        let adapters = adapters.collect::<Result<Vec<_>>>()?;
        let advice = "nothing is written";
        let base = dense::weights(&stored, &Names::all(), advice)?;
        let weights = self.weight.iter().copied().chain(std::iter::repeat(1.0));
        let merged = base.adapted(adapters.iter().zip(weights))?;
        let plan = Plan::of(&merged)
            .dtype(|tensor| self.to.filter(|_| tensor.dtype().is_float()))
            .overflow(self.overflow.into())
            .build()?;
        let destination = Beside::of(&self.base, &stored)?.into(&self.destination, self.to)?;
        let outcome = dense::write(&plan, &merged, &destination, term)?;
        let modules: usize =
            adapters.iter().map(|adapter| adapter.modules().count() + adapter.whole().count()).sum();
        let of = plural(adapters.len(), "adapter");
        term.note(format_args!(
            "{} of {of} merged into {}",
            plural(modules, "module"),
            plural(merged.len(), "tensor")
        ));
        Ok(outcome)
    }
}
