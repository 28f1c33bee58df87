//! `weighbridge lora info`.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use weighbridge::{AdapterModule, natural_order};

use crate::outcome::Outcome;
use crate::show::{bytes, plural, safe};
use crate::term::Term;

/// What an adapter changes: rank, scale and norm of each module
///
/// The norm is that of what is added to the weight, scale · B A (Frobenius), without the magnitude of DoRA.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  weighbridge lora info my-adapter
  weighbridge lora info style.safetensors --json | jq '.modules | max_by(.norm)'")]
pub(crate) struct Info {
    /// The adapter: a directory of PEFT's, or a file
    #[arg(value_name = "ADAPTER")]
    adapter: PathBuf,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report<'a> {
    format: &'static str,
    bytes: u64,
    parameters: u64,
    modules: Vec<Module<'a>>,
    /// Tensors of the model that are replaced.
    replaces: Vec<&'a str>,
}

#[derive(Serialize)]
struct Module<'a> {
    name: &'a str,
    /// `lora`, `dora` or `difference`.
    kind: &'static str,
    rank: usize,
    scale: f32,
    norm: f64,
}

fn kind(module: &AdapterModule<'_>) -> &'static str {
    match (module.factors().is_some(), module.has_magnitude()) {
        (true, true) => "dora",
        (true, false) => "lora",
        (false, _) => "difference",
    }
}

impl Info {
    pub(crate) fn run(&self, term: &Term) -> Result<Outcome> {
        let adapter = super::open(&self.adapter, term)?;
        let mut modules = Vec::new();
        for module in adapter.modules() {
            let (name, rank, scale) = (module.name(), module.rank(), module.scale());
            modules.push(Module { name, kind: kind(&module), rank, scale, norm: module.norm()? });
        }
        modules.sort_by(|one, other| natural_order(one.name, other.name));
        let checkpoint = adapter.checkpoint();
        let report = Report {
            format: adapter.format().name(),
            bytes: checkpoint.byte_len(),
            parameters: checkpoint.tensors().map(|tensor| tensor.elements()).sum(),
            modules,
            replaces: adapter.whole().map(|(name, _)| name).collect(),
        };
        let mut out = term.text();
        if self.json {
            writeln!(out, "{}", serde_json::to_string(&report)?)?;
        } else {
            report.print(&mut out)?;
        }
        Ok(Outcome::Clean)
    }
}

impl Report<'_> {
    fn print(&self, out: &mut impl Write) -> Result<()> {
        let size = bytes(self.bytes);
        writeln!(out, "{} adapter, {}, {size}", self.format, plural(self.modules.len(), "module"))?;
        if !self.modules.is_empty() {
            let width =
                self.modules.iter().map(|module| safe(module.name).chars().count()).max().unwrap_or_default();
            writeln!(
                out,
                "\n{:width$}  {:>10}  {:>5}  {:>8}  {:>9}",
                "module", "kind", "rank", "scale", "norm"
            )?;
            for Module { name, kind, rank, scale, norm } in &self.modules {
                writeln!(out, "{:width$}  {kind:>10}  {rank:>5}  {scale:>8.4}  {norm:>9.4}", safe(name))?;
            }
        }
        if !self.replaces.is_empty() {
            writeln!(out, "\nreplaces")?;
            for name in &self.replaces {
                writeln!(out, "  {}", safe(name))?;
            }
        }
        Ok(())
    }
}
