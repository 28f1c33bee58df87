//! `weighbridge lora extract`.

mod model;

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::Args;
use weighbridge::{AdapterFormat, Checkpoint, Dtype, LowRankProduct, NewAdapter, TensorRef, norm_of_change};
use weighbridge_convert::Options;

use super::output::Output;
use super::ranks::{Ranks, Row};
use crate::dense;
use crate::dtype::parse_weight_dtype;
use crate::interrupt;
use crate::load;
use crate::outcome::Outcome;
use crate::pattern;
use crate::select::Select;
use crate::show::{plural, safe};
use crate::term::Term;
use model::{Kind, Layers};

/// Makes an adapter of what training changed: the low-rank part of TUNED - BASE
///
/// Of each weight of a linear layer or a convolution the largest singular values of the difference are kept, so that `lora merge BASE
/// OUT` is the nearest to TUNED that this rank allows. Weights that did not change get no module. What is no such weight (embeddings,
/// norms, biases) and did change is named, and with --full saved whole. Quantised models are dequantised. PEFT loads what comes
/// out. The same models and options give the same bytes on any number of threads.
///
/// Memory: 4 bytes for each element of the largest weight, some columns of that (the rank and an eighth, for both sides), and the adapter.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  weighbridge lora extract Llama-3.2-1B my-tune --rank 32 -o my-adapter
  weighbridge lora extract Llama-3.2-1B my-tune --rank 64 --energy 0.99 --to bf16 -o my-adapter
  weighbridge lora extract Llama-3.2-1B my-tune --rank 16 --full -o my-adapter
  weighbridge lora extract Llama-3.2-1B my-tune --rank 16 --only '*.self_attn.*' -o attention

See also `weighbridge diff`, which says what changed.")]
pub(crate) struct Extract {
    /// The model before training
    #[arg(value_name = "BASE")]
    base: PathBuf,

    /// The model after it
    #[arg(value_name = "TUNED")]
    tuned: PathBuf,

    #[command(flatten)]
    ranks: Ranks,

    /// The dtype of the factors: f32, bf16 or f16
    #[arg(long, value_name = "DTYPE", value_parser = parse_weight_dtype, default_value = "f32")]
    to: Dtype,

    /// Save what changed and is no weight of a linear layer or a convolution whole: PEFT's modules_to_save, and bias="all"
    #[arg(long)]
    full: bool,

    #[command(flatten)]
    select: Select,

    #[command(flatten)]
    output: Output,
}

impl Extract {
    pub(crate) fn run(&self, term: &Term) -> Result<Outcome> {
        let truncation = self.ranks.truncation()?;
        self.output.check(AdapterFormat::Peft)?;
        let [base, tuned] = [self.open(&self.base, term)?, self.open(&self.tuned, term)?];
        let pairs = self.pairs(&base, &tuned, term)?;
        let layers = Layers::of(&base, &pairs)?;
        let mut adapter = NewAdapter::new(AdapterFormat::Peft);
        if layers.has_transposed() {
            adapter = adapter.transposed();
        }
        let (mut rows, mut lost, mut full) = (Vec::new(), Vec::new(), Vec::new());
        let bar = term.bar("comparing", pairs.iter().map(|(_, tuned)| tuned.byte_len()).sum());
        for &(base, tuned) in &pairs {
            interrupt::check()?;
            match layers.kind(&tuned) {
                Kind::Weight { module, is_transposed } => {
                    let product = LowRankProduct::of_change(&base, &tuned, truncation, is_transposed)?;
                    if product.rank() > 0 {
                        adapter.product(module, &product, product.rank() as f64, self.to)?;
                        rows.push(Row::of(module, &product));
                    }
                }
                kind => {
                    if let Some(norm) = change(&base, &tuned)? {
                        if self.full && kind != Kind::Alone {
                            full.push(tuned);
                        } else {
                            lost.push((tuned.name(), norm));
                        }
                    }
                }
            }
            bar.add(tuned.byte_len());
        }
        drop(bar);
        let saved = save_whole(&mut adapter, &tuned, &rows, &full);
        if adapter.is_empty() {
            bail!("{}: {}", self.tuned.display(), nothing(&lost));
        }
        let model = named(&self.base, &base);
        self.output.write(&adapter, AdapterFormat::Peft, model.as_deref(), term)?;
        self.ranks.report(&rows, saved, term)?;
        for (name, norm) in &lost {
            let size = norm.map_or(String::new(), |norm| format!(", by {norm:.4} (norm)"));
            let why = if self.full { "no layer has it" } else { "--full saves it whole" };
            term.warn(format_args!("{} changed{size}, and is not in the adapter: {why}", safe(name)));
        }
        Ok(Outcome::Clean)
    }

    fn open(&self, location: &Path, term: &Term) -> Result<Checkpoint> {
        let (stored, _) = load::any(location, &Options::new(), term)?;
        load::tell(location, &stored, term);
        Ok(dense::weights(&stored, &self.select.names()?, "nothing is written; --except leaves modules out")?)
    }

    /// The chosen tensors of both, in the order of their names.
    fn pairs<'c>(
        &self,
        base: &'c Checkpoint,
        tuned: &'c Checkpoint,
        term: &Term,
    ) -> Result<Vec<(TensorRef<'c>, TensorRef<'c>)>> {
        let names = self.select.names()?;
        let chosen = |checkpoint: &'c Checkpoint| {
            load::by_name(checkpoint).into_iter().filter(|tensor| names.contains(tensor.name()))
        };
        let lacks = |location: &Path, name: &str| {
            let (location, name) = (location.display(), safe(name));
            anyhow::anyhow!(
                "{location}: {name:?} is not in it, and in the other model; --except leaves it out"
            )
        };
        if let Some(tensor) = chosen(base).find(|tensor| tuned.tensor(tensor.name()).is_none()) {
            return Err(lacks(&self.tuned, tensor.name()));
        }
        self.select.check(&self.tuned, &[pattern::names(base), pattern::names(tuned)].concat(), term)?;
        let mut pairs = Vec::new();
        for tensor in chosen(tuned) {
            let before = base.tensor(tensor.name()).ok_or_else(|| lacks(&self.base, tensor.name()))?;
            if before.shape() != tensor.shape() {
                let name = safe(tensor.name());
                let (old, new) = (before.shape(), tensor.shape());
                bail!("{name:?} has shape {new:?}, and {old:?} in the base; --except leaves it out");
            }
            pairs.push((before, tensor));
        }
        if pairs.is_empty() {
            return Err(pattern::nothing_left(&self.tuned, tuned.len()));
        }
        Ok(pairs)
    }
}

/// What the adapter says of its base. The name of a share is gone with it; the model's own directory is not.
fn named(location: &Path, base: &Checkpoint) -> Option<String> {
    let shown = location.display().to_string();
    match shown.starts_with("share:") {
        true => base.directory().map(|directory| directory.display().to_string()),
        false => Some(shown),
    }
}

fn nothing(lost: &[(&str, Option<f64>)]) -> String {
    match lost {
        [] => "nothing that is chosen of it differs from the base".to_owned(),
        [(first, _), ..] => format!(
            "no weight of a linear layer differs from the base, but {} (of {}) does; --full saves it whole",
            safe(first),
            plural(lost.len(), "tensor")
        ),
    }
}

/// How much a tensor changed that gets no product; `None` if it did not, no number if it has none.
fn change(base: &TensorRef<'_>, tuned: &TensorRef<'_>) -> Result<Option<Option<f64>>> {
    let is_number = |tensor: &TensorRef<'_>| {
        tensor.dtype().is_float() && tensor.dtype().bits() >= 8 && tensor.dtype() != Dtype::F64
    };
    if is_number(base) && is_number(tuned) && !tuned.shape().is_empty() {
        let norm = norm_of_change(base, tuned)?;
        return Ok((norm != 0.0).then_some(Some(norm)));
    }
    let is_same = base.dtype() == tuned.dtype() && bytes(base)? == bytes(tuned)?;
    Ok((!is_same).then_some(None))
}

fn bytes(tensor: &TensorRef<'_>) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    weighbridge::write::TensorData::write_to(tensor, &mut bytes)?;
    Ok(bytes)
}

/// Adds what is saved whole: biases of modules that have a product by themselves, and of other modules all that they have.
/// PEFT takes the name of a module for the end of a name: with `norm` it replaces `layers.0.norm`, too, so that is saved as well.
fn save_whole<'c>(
    adapter: &mut NewAdapter<'c>,
    tuned: &'c Checkpoint,
    rows: &[Row],
    full: &[TensorRef<'c>],
) -> usize {
    let mut modules = Vec::new();
    let mut count = 0;
    for tensor in full {
        let Some((module, _)) = tensor.name().rsplit_once('.') else { continue };
        if rows.iter().any(|row| row.module == module) {
            adapter.bias(tensor.name(), *tensor);
            count += 1;
        } else if !modules.contains(&module) {
            modules.push(module);
        }
    }
    let is_whole = |module: &str| {
        modules.iter().any(|end| module.ends_with(end)) && rows.iter().all(|row| row.module != module)
    };
    for tensor in load::by_name(tuned) {
        if tensor.name().rsplit_once('.').is_some_and(|(module, _)| is_whole(module)) {
            adapter.whole(tensor.name(), tensor);
            count += 1;
        }
    }
    count
}
