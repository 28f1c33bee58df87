//! Rules by which a model is cut for ranks.

use std::path::Path;

use super::config::Config;
use super::cut::World;
use super::families;
use super::heads::Heads;
use super::parse;
use super::ranks::Ranks;
use super::share::Share;
use super::stages::Ends;
use super::tp_plan;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::pattern::Names;
use crate::side_file::read_text;

/// No file of rules is larger.
const MOST: u64 = 16 << 20;

/// No run shares a layer by more ranks, or has more stages.
pub(super) const MOST_RANKS: usize = 4096;

/// How a model is cut for the ranks of tensor and pipeline parallelism: rules by names, and how many ranks there are.
///
/// [`of`](Self::of) has the rules for the usual kinds of models; [`parse`](Self::parse) reads [files of
/// rules](super#rules), and plans of transformers.
#[derive(Clone, Debug)]
pub struct ParallelPlan {
    rules: Vec<Rule>,
    /// Whether what no rule is about is in all ranks; otherwise it is an error.
    replicates_others: bool,
    /// Whether parts are those of `torch.chunk`.
    chunks: bool,
    heads: Option<Heads>,
    layers: Option<String>,
    stages: Option<Vec<usize>>,
    tensor: usize,
    pipeline: usize,
}

/// What is said about tensors of some names.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    pub(super) names: Names,
    pub(super) share: Share,
    pub(super) ends: Option<Ends>,
}

impl Default for ParallelPlan {
    fn default() -> Self {
        Self::new()
    }
}

impl ParallelPlan {
    /// One rank, and no rules: a tensor is an error until there is one for it.
    pub fn new() -> Self {
        Self {
            rules: Vec::new(),
            replicates_others: false,
            chunks: false,
            heads: None,
            layers: None,
            stages: None,
            tensor: 1,
            pipeline: 1,
        }
    }

    /// The plan for a model whose names are known: that of the `base_model_tp_plan` in its `config.json`, if there is one, or
    /// else rules for the names of Llama, Qwen, Mistral, Mixtral, DeepSeek, Gemma, Phi, gpt-oss, GPT-2, GPT-NeoX, BLOOM,
    /// Falcon, OPT, GPT-J, MPT, BERT and T5, and of models that use the same names. The number of attention heads is that of
    /// `config.json`.
    ///
    /// Vision and audio towers are replicated. Names that are not known are an error of [`ranks`](Self::ranks); rules
    /// for them can be [put in front](Self::rule).
    ///
    /// # Errors
    ///
    /// Fails when there is a `config.json` that cannot be read.
    pub fn of(checkpoint: &Checkpoint) -> Result<Self> {
        let config = Config::of(checkpoint)?;
        let plan = match config.tp_plan() {
            Some(plan) => tp_plan::parse(plan).map_err(|error| config.names(error))?,
            None => families::plan(&config)?,
        };
        Ok(plan)
    }

    /// Reads [rules](super#rules), or, where the text is a JSON object, the `base_model_tp_plan` of transformers, by itself or
    /// in a `config.json`.
    ///
    /// Of such a plan the styles count that cut weights (`colwise`, `rowwise`, `packed_colwise`, `packed_rowwise`,
    /// `embedding_rowwise`, `embedding_colwise`, `grouped_gemm`, and the variants of these that differ in what is done with
    /// activations). As there, what it does not name is replicated, and parts that are not equal are those of
    /// `torch.chunk`. `q_proj`, `k_proj`, `v_proj` and `o_proj` are cut between attention heads if their number is known.
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::Pattern`] where it is neither, and says in which line; and for a style that is not known.
    pub fn parse(text: &str) -> Result<Self> {
        match text.trim_start().starts_with('{') {
            true => tp_plan::parse_text(text),
            false => parse::parse(text, Self::new()),
        }
    }

    /// As [`parse`](Self::parse), from a file.
    ///
    /// # Errors
    ///
    /// Fails when it cannot be read, and as [`parse`](Self::parse).
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::parse(&read_text(path, MOST)?).map_err(|error| error.in_file(path))
    }

    /// Adds a rule, in front of those that are there: it counts before them.
    #[must_use]
    pub fn rule(mut self, names: Names, share: impl Into<Share>) -> Self {
        self.rules.insert(0, Rule { names, share: share.into(), ends: None });
        self
    }

    /// Adds a rule as [a file of rules](super#rules) has it, in front of those that are there.
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::Pattern`] where it is none.
    pub fn rule_line(mut self, line: &str) -> Result<Self> {
        self.rules.insert(0, parse::rule(line)?);
        Ok(self)
    }

    pub(super) fn with_rule(mut self, rule: Rule) -> Self {
        self.rules.push(rule);
        self
    }

    /// What a plan of transformers means where it says nothing.
    pub(super) fn like_transformers(mut self) -> Self {
        (self.replicates_others, self.chunks) = (true, true);
        self
    }

    /// Sets how many attention heads the model has, and how many of keys and values; otherwise its `config.json` says so.
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::Value`] when the one is no multiple of the other.
    pub fn heads(mut self, heads: usize, kv_heads: usize) -> Result<Self> {
        self.heads = Some(Heads::new(heads, kv_heads)?);
        Ok(self)
    }

    /// Sets what stands before the numbers of layers, such as `model.layers`; otherwise it is the list that has the most bytes.
    #[must_use]
    pub fn layers(mut self, prefix: &str) -> Self {
        self.layers = Some(prefix.to_owned());
        self
    }

    /// Sets how many layers each pipeline stage has; otherwise they have equally many, or the first ones one more.
    #[must_use]
    pub fn stages(mut self, layers: &[usize]) -> Self {
        self.stages = Some(layers.to_vec());
        self
    }

    /// Sets how many ranks share each layer, at least one.
    #[must_use]
    pub fn tensor_parallel(mut self, ranks: usize) -> Self {
        self.tensor = ranks.max(1);
        self
    }

    /// Sets how many stages share the layers, at least one.
    #[must_use]
    pub fn pipeline_parallel(mut self, stages: usize) -> Self {
        self.pipeline = stages.max(1);
        self
    }

    /// How many ranks share each layer.
    pub fn tensor_ranks(&self) -> usize {
        self.tensor
    }

    /// How many stages share the layers.
    pub fn pipeline_stages(&self) -> usize {
        self.pipeline
    }

    /// What each rank has of a checkpoint. Nothing is read.
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::Pattern`] for tensors that no rule is about, which it names; with [`ErrorKind::Slice`] and
    /// [`ErrorKind::Shape`] where a rule does not fit a tensor, or would leave a rank without a part; and with [`ErrorKind::Value`] where
    /// attention heads are needed and not known.
    pub fn ranks(&self, checkpoint: &Checkpoint) -> Result<Ranks> {
        Ranks::new(self, checkpoint)
    }

    /// Joins the checkpoints of ranks, given in the order of the ranks, to the one that this plan would make them of: the tensors
    /// that are chosen, each by its rule.
    ///
    /// Nothing is copied; what several ranks have is compared, byte by byte. Rows of zeros that were added to a vocabulary cannot be
    /// told from others and stay. Where the plan has one rank, there are as many as checkpoints, in one stage. Of what
    /// `weighbridge shard` wrote, [`join`](super::join) needs no plan.
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::Pattern`] for a tensor without a rule, with [`ErrorKind::Dtype`] and [`ErrorKind::Shape`] where the
    /// parts of a tensor do not fit together, with [`ErrorKind::MissingTensor`] where a rank lacks a tensor, and with
    /// [`ErrorKind::Malformed`] where ranks have other values for the same place.
    pub fn join(&self, ranks: &[Checkpoint], names: &Names) -> Result<Checkpoint> {
        super::join::by_rules(self, ranks, names)
    }

    /// Fails for more ranks than any run has.
    pub(super) fn bounded(&self) -> Result<()> {
        if self.tensor <= MOST_RANKS && self.pipeline <= MOST_RANKS {
            return Ok(());
        }
        let message = format!(
            "{} ranks for a layer and {} stages are more than {MOST_RANKS}",
            self.tensor, self.pipeline
        );
        Err(Error::new(ErrorKind::Value, message))
    }

    /// How a tensor is cut.
    pub(super) fn share_of(&self, name: &str) -> Result<Share> {
        let share = self.rule_of(name).map(|rule| rule.share);
        share.or(self.replicates_others.then_some(Share::Replicated)).ok_or_else(|| no_rule(name, 0))
    }

    /// The rule about a name.
    pub(super) fn rule_of(&self, name: &str) -> Option<&Rule> {
        self.rules.iter().find(|rule| rule.names.contains(name))
    }

    pub(super) fn replicates_others(&self) -> bool {
        self.replicates_others
    }

    pub(super) fn world(&self, config: Option<&Config>) -> World {
        let heads = self.heads.or_else(|| config.and_then(Config::heads));
        World { size: self.tensor, heads, chunks: self.chunks }
    }

    pub(super) fn layer_prefix(&self) -> Option<&str> {
        self.layers.as_deref()
    }

    pub(super) fn stage_counts(&self) -> Option<&[usize]> {
        self.stages.as_deref()
    }
}

/// That nothing says how tensors are cut.
pub(super) fn no_rule(name: &str, others: usize) -> Error {
    let others = match others {
        0 => String::new(),
        1 => " (nor about 1 other)".to_owned(),
        others => format!(" (nor about {others} others)"),
    };
    let message =
        format!("no rule is about it{others}: add one, such as `GLOB: column`, `row` or `replicated`");
    Error::new(ErrorKind::Pattern, message).in_tensor(name)
}
