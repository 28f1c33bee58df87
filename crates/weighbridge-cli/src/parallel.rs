//! How a model is cut for ranks: what `plan` and `shard` have in common.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::Args;
use weighbridge::parallel::{ParallelPlan, Ranks};
use weighbridge::{Checkpoint, Names};

use crate::dense;

/// What rules are, for help texts.
pub(crate) const RULES: &str = "\
A plan has a rule on each line: a glob of names, and what each rank has of these tensors. The first that matches counts.
  *.{gate,up}_proj.weight: column        a part of the outputs, dimension 0
  *.down_proj.weight: row                a part of the inputs, dimension 1; a bias whole
  *.gate_up_proj.weight: column packed 2 a part of each of two pieces that lie one after the other
  *.q_proj.weight: column by heads       whole attention heads
  *.{k,v}_proj.weight: column by kv_heads those that the rank's heads need, in several ranks if they are few
  *.qkv_proj.weight: column by qkv       all three, of one tensor; `by groups` for GPT-NeoX and Falcon
  lm_head.weight: vocab, last            equally many rows, zeros added; in the last pipeline stage
  *.experts.*: experts                   whole experts
  *norm.weight: replicated
A dimension, counted from 0, may stand in the place of `column`, and `by 128` cuts at multiples of 128. Lines with an @
set what else there is: `@tensor_parallel 8`, `@pipeline_parallel 2`, `@heads 32 8`, `@layers model.layers`,
`@stages 10 12 10`. A JSON file is taken for the base_model_tp_plan of transformers, or a config.json that has one.";

/// How a model is cut.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Ranks")]
pub(crate) struct Parallel {
    /// Cut the model by the rules in this file, or by a plan of transformers (JSON); otherwise by the names that
    /// Llama, Qwen, Mixtral, DeepSeek, GPT-2, GPT-NeoX, Falcon, BERT, T5 and others have
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,

    /// A rule that counts before the others, such as '*.extra.weight: replicated'. May be given several times
    #[arg(long, value_name = "RULE")]
    rule: Vec<String>,

    /// Tensor parallelism: how many ranks share each layer
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    tp: Option<u32>,

    /// Pipeline parallelism: how many stages share the layers
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pp: Option<u32>,
}

impl Parallel {
    /// What each rank has of a checkpoint; of the weights of quantised modules.
    pub(crate) fn ranks(&self, input: &Path, checkpoint: &Checkpoint) -> Result<Ranks> {
        const ADVICE: &str = "only weights can be cut for ranks";
        let weights =
            dense::weights(checkpoint, &Names::all(), ADVICE).map_err(|error| error.in_file(input))?;
        let mut plan = match &self.plan {
            Some(file) => ParallelPlan::read(file)?,
            None => ParallelPlan::of(&weights)?,
        };
        for rule in self.rule.iter().rev() {
            plan = plan.rule_line(rule)?;
        }
        if let Some(ranks) = self.tp {
            plan = plan.tensor_parallel(ranks as usize);
        }
        if let Some(stages) = self.pp {
            plan = plan.pipeline_parallel(stages as usize);
        }
        if plan.tensor_ranks().saturating_mul(plan.pipeline_stages()) == 1 {
            bail!(
                "say for how many ranks: --tp N, --pp N, or @tensor_parallel and @pipeline_parallel in a plan"
            );
        }
        Ok(plan.ranks(&weights).map_err(|error| error.in_file(input))?)
    }
}
