//! `weighbridge lora resize`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use weighbridge::{Dtype, NewAdapter, natural_order};

use super::output::Output;
use super::ranks::{Ranks, Row};
use crate::dtype::parse_weight_dtype;
use crate::interrupt;
use crate::outcome::Outcome;
use crate::show::safe;
use crate::term::Term;

/// Gives an adapter another rank: of each product B A the nearest one
///
/// The factors are taken apart, never the product, so that it takes seconds, and memory for one module. Alpha changes with the rank, so that
/// the scale of each module stays what it was. The format stays, too. Magnitudes (DoRA), full differences and embeddings cannot be resized.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  weighbridge lora resize my-adapter --rank 8 -o smaller
  weighbridge lora resize style.safetensors --rank 32 --energy 0.98 --to f16 -o small.safetensors")]
pub(crate) struct Resize {
    /// The adapter: a directory of PEFT's, or a file
    #[arg(value_name = "ADAPTER")]
    adapter: PathBuf,

    #[command(flatten)]
    ranks: Ranks,

    /// The dtype of the factors: f32, bf16 or f16; otherwise that of each factor A
    #[arg(long, value_name = "DTYPE", value_parser = parse_weight_dtype)]
    to: Option<Dtype>,

    #[command(flatten)]
    output: Output,
}

impl Resize {
    pub(crate) fn run(&self, term: &Term) -> Result<Outcome> {
        let truncation = self.ranks.truncation()?;
        let adapter = super::open(&self.adapter, term)?;
        self.output.check(adapter.format())?;
        let mut made = NewAdapter::new(adapter.format());
        if adapter.is_transposed() {
            made = made.transposed();
        }
        let mut modules: Vec<_> = adapter.modules().collect();
        modules.sort_by(|one, other| natural_order(one.name(), other.name()));
        let mut rows = Vec::new();
        for module in modules {
            interrupt::check()?;
            if let Some(what) = module.other_than_factors() {
                let (path, name) = (self.adapter.display(), safe(module.name()));
                bail!("{path}: {name:?} has {what}, which does not stay the same at another rank");
            }
            let product = module.truncated(truncation)?;
            if product.rank() == 0 {
                continue;
            }
            let stored = module.factors().map_or(Dtype::F32, |[down, _]| down.dtype());
            let dtype = self.to.unwrap_or(if matches!(stored, Dtype::F16 | Dtype::BF16) {
                stored
            } else {
                Dtype::F32
            });
            let alpha = f64::from(module.scale()) * product.rank() as f64;
            made.product(module.name(), &product, alpha, dtype)?;
            rows.push(Row::of(module.name(), &product));
        }
        adapter.keep_whole(&mut made);
        let whole = adapter.whole().count();
        if made.is_empty() {
            bail!("{}: all its products are zero", self.adapter.display());
        }
        self.output.write(&made, adapter.format(), adapter.model().as_deref(), term)?;
        self.ranks.report(&rows, whole, term)?;
        Ok(Outcome::Clean)
    }
}
