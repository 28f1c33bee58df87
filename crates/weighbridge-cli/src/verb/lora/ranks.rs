//! How large products become, and what that leaves of them: options and output of `extract` and `resize`.

use std::io::Write;

use anyhow::{Result, bail};
use clap::Args;
use serde::Serialize;
use weighbridge::{LowRankProduct, Truncation};

use crate::show::{plural, safe};
use crate::term::Term;

#[derive(Clone, Debug, Args)]
pub(super) struct Ranks {
    /// The rank of each module; less where its weight has no more
    #[arg(long, value_name = "RANK")]
    rank: usize,

    /// No larger rank than it takes to keep this share of the change of a weight (of its sum of squares), such as 0.99
    #[arg(long, value_name = "SHARE")]
    energy: Option<f64>,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What became of a module.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    pub(super) module: String,
    rank: usize,
    /// The share that is kept.
    energy: f64,
    /// Of all of it.
    norm: f64,
}

impl Row {
    pub(super) fn of(module: &str, product: &LowRankProduct) -> Self {
        let (rank, energy, norm) = (product.rank(), product.energy(), product.norm());
        Self { module: module.to_owned(), rank, energy, norm }
    }
}

#[derive(Serialize)]
struct Report<'r> {
    modules: &'r [Row],
    /// How many tensors are saved whole.
    whole: usize,
    /// The share that is kept of all modules together.
    energy: f64,
}

impl Ranks {
    pub(super) fn truncation(&self) -> Result<Truncation> {
        if self.rank == 0 {
            bail!("--rank 0 keeps nothing");
        }
        let truncation = Truncation::rank(self.rank);
        match self.energy {
            None => Ok(truncation),
            Some(share) if share > 0.0 && share <= 1.0 => Ok(truncation.energy(share)),
            Some(share) => bail!("--energy {share} is no share; it is above 0 and at most 1"),
        }
    }

    pub(super) fn report(&self, rows: &[Row], whole: usize, term: &Term) -> Result<()> {
        let total: f64 = rows.iter().map(|row| row.norm * row.norm).sum();
        let kept: f64 = rows.iter().map(|row| row.energy * row.norm * row.norm).sum();
        let energy = if total > 0.0 { kept / total } else { 1.0 };
        let mut out = term.text();
        if self.json {
            writeln!(out, "{}", serde_json::to_string(&Report { modules: rows, whole, energy })?)?;
        } else {
            let width = rows.iter().map(|row| safe(&row.module).chars().count()).max().unwrap_or(6).max(6);
            writeln!(out, "{:width$}  {:>5}  {:>8}  {:>9}", "module", "rank", "energy", "norm")?;
            for Row { module, rank, energy, norm } in rows {
                writeln!(out, "{:width$}  {rank:>5}  {:>7.2}%  {norm:>9.4}", safe(module), energy * 100.0)?;
            }
        }
        out.flush()?;
        let saved =
            if whole > 0 { format!(", {} saved whole", plural(whole, "tensor")) } else { String::new() };
        term.note(format_args!(
            "{}{saved}, {:.2}% of the change kept",
            plural(rows.len(), "module"),
            energy * 100.0
        ));
        Ok(())
    }
}
