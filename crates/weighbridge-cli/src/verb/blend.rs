//! `weighbridge blend`.

mod models;
mod recipe;
mod same;
mod settings;
mod tokens;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use clap::Args;
use weighbridge::plan::{Blend as Operation, BlendMethod, Input, Overflow, Read};
use weighbridge::write::Save;
use weighbridge::{Dtype, Entry, Plan};

use crate::beside::Beside;
use crate::casts::{self, OnOverflow};
use crate::destination::Destination;
use crate::dtype::parse_dtype;
use crate::metadata;
use crate::outcome::Outcome;
use crate::pattern;
use crate::select::Select;
use crate::show::plural;
use crate::term::Term;
use models::{Made, Models};
use recipe::Recipe;
use settings::Settings;

/// Blends models of one architecture into one: averages, arcs, task vectors
///
/// Tensors of one name become one, computed in F32 and rounded once, by the formulas that mergekit has for
/// the methods of these names. Integers must be the same in all models. Quantised modules are dequantised
/// first. Models with tensors, shapes or tokens that others lack are refused, and nothing is written. In a
/// directory the tensors get the other files (config.json, tokenizer, templates) of the base or, without one,
/// of the first model. Memory stays the same however large the models are, and the same models, options and
/// seed give the same bytes.
///
/// `merge` joins the files of one model, `blend` averages models, `consolidate` joins rank shards.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  weighbridge blend chat math -o both --method linear --weight 0.25,0.75
  weighbridge blend chat math -o both --method slerp --t 0.3
  weighbridge blend chat math --base Llama-3.2-1B -o both --method task_arithmetic --weight 0.5,0.7
  weighbridge blend chat math code --base Llama-3.2-1B -o all --method ties --weight 0.5,0.3,0.4 --density 0.5
  weighbridge blend chat math --base Llama-3.2-1B -o both --method dare_ties --weight 0.5 --density 0.3 --seed 7
  weighbridge blend chat math -o both --recipe recipe.json

A recipe is a JSON object of the same settings, with rules for tensors by name. Of each setting the last rule that
matches a name counts, then the option, then what the recipe says outside of its rules:
  {\"method\": \"linear\", \"weight\": [0.5, 0.5], \"rules\": [
     {\"names\": \"*.mlp.*\", \"weight\": [0.2, 0.8]},
     {\"names\": [\"*.q_proj.weight\", \"*.k_proj.weight\"], \"method\": \"slerp\", \"t\": 0.3},
     {\"names\": \"model.embed_tokens.weight\", \"take\": 0}]}
`take` copies a tensor: from a model, counted from 0, or from the \"base\".")]
pub(crate) struct Blend {
    /// The models: files, directories, indexes, or repositories in the cache
    #[arg(value_name = "PATH", required = true)]
    inputs: Vec<PathBuf>,

    /// The model that task vectors are differences from: of task_arithmetic, ties, dare_linear and dare_ties
    #[arg(long, value_name = "PATH")]
    base: Option<PathBuf>,

    #[command(flatten)]
    settings: Settings,

    /// What the random choices of dare_linear and dare_ties depend on; 0 otherwise
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,

    /// A file of settings, with rules for tensors by name
    #[arg(long, value_name = "FILE")]
    recipe: Option<PathBuf>,

    /// Tensors whose whole name matches are copied from the base or, without one, from the first model; may
    /// be given several times
    #[arg(long, value_name = "GLOB")]
    take: Vec<String>,

    /// The dtype of the blended tensors; otherwise the one that holds the values of all models
    #[arg(long, visible_alias = "dtype", value_name = "DTYPE", value_parser = of_weights)]
    to: Option<Dtype>,

    /// What to do with values outside the range of the dtype
    #[arg(long, value_enum, value_name = "HOW", default_value_t)]
    overflow: OnOverflow,

    /// Blend models whose tokenizers mean different tokens by the same numbers
    #[arg(long)]
    any_tokenizer: bool,

    #[command(flatten)]
    select: Select,

    #[command(flatten)]
    destination: Destination,
}

fn of_weights(text: &str) -> Result<Dtype, String> {
    let dtype = parse_dtype(text)?;
    if Operation::takes(dtype) { Ok(dtype) } else { Err(format!("blended values are floats, not {dtype}")) }
}

impl Blend {
    pub(crate) fn run(&self, term: &Term) -> Result<Outcome> {
        let recipe = Recipe::new(&self.settings, self.seed, self.recipe.as_deref(), &self.take)?;
        let names = self.select.names()?;
        let models = Models::open(&self.inputs, self.base.as_deref(), &names, term)?;
        let known: Vec<_> = models.all().flat_map(|model| pattern::names(&model.stored)).collect();
        self.select.check(&models.main().path, &known, term)?;
        if !self.any_tokenizer {
            tokens::check(models.all(), term)?;
        }
        let mut entries = Vec::new();
        let mut tally = Tally::default();
        for (name, made) in models.tensors(&recipe, &names, term)? {
            tally.count(&made);
            entries.push(self.entry(&name, made)?);
        }
        if entries.is_empty() {
            return Err(pattern::nothing_left(&models.main().path, models.main().dense.len()));
        }
        recipe.check_used(tally.uses_base || self.base.is_none())?;
        self.write(entries, &models, &tally, term)
    }

    fn entry(&self, name: &str, made: Made<'_>) -> Result<Entry> {
        let overflow = Overflow::from(self.overflow);
        Ok(match made {
            Made::Blended { blend, inputs, dtype } => {
                let entry = Entry::new(name, inputs, Arc::new(blend))?;
                entry.overflow(overflow).recast(self.to.unwrap_or(dtype))?
            }
            Made::Taken(tensor, _) => {
                let entry = Entry::new(name, vec![Input::of(&tensor)], Arc::new(Read))?;
                match self.to.filter(|_| Operation::takes(tensor.dtype())) {
                    Some(to) => entry.overflow(overflow).recast(to)?,
                    None => entry,
                }
            }
        })
    }

    fn write(&self, entries: Vec<Entry>, models: &Models, tally: &Tally, term: &Term) -> Result<Outcome> {
        let main = models.main();
        let dtype = most_bytes(&entries);
        let destination = Beside::of(&main.path, &main.stored)?.into(&self.destination, dtype)?;
        let metadata = metadata::without_codes(metadata::union(&[&main.stored], term), &[&main.dense]);
        let save = metadata::with(Save::new(), metadata);
        let tensors: Vec<_> = Plan::new(entries).tensors().collect();
        let outcome = destination.save(save, tensors, term).map_err(casts::in_options)?;
        if !self.destination.is_dry_run() {
            term.note(tally.told());
        }
        Ok(outcome)
    }
}

/// The dtype that most bytes of floats have.
fn most_bytes(entries: &[Entry]) -> Option<Dtype> {
    let mut bytes = BTreeMap::<_, u64>::new();
    for entry in entries.iter().filter(|entry| Operation::takes(entry.dtype())) {
        *bytes.entry(entry.dtype().name()).or_default() += entry.byte_len();
    }
    bytes.into_iter().max_by_key(|(_, bytes)| *bytes).and_then(|(name, _)| name.parse().ok())
}

/// How many tensors became what.
#[derive(Default)]
struct Tally {
    blended: BTreeMap<&'static str, usize>,
    taken: usize,
    uses_base: bool,
}

impl Tally {
    fn count(&mut self, made: &Made<'_>) {
        match made {
            Made::Blended { blend, .. } => {
                let method: BlendMethod = blend.method();
                *self.blended.entry(method.name()).or_default() += 1;
                self.uses_base |= method.has_base();
            }
            Made::Taken(_, of_base) => {
                self.taken += 1;
                self.uses_base |= of_base;
            }
        }
    }

    fn told(&self) -> String {
        let blended =
            self.blended.iter().map(|(method, count)| format!("{} by {method}", plural(*count, "tensor")));
        let blended: Vec<_> = blended.collect();
        let blended = if blended.is_empty() { "nothing".to_owned() } else { blended.join(", ") };
        format!("{blended} blended, {} as before", self.taken)
    }
}
