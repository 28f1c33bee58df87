//! From a checkpoint to a model: the part of this program that weighbridge is for.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device};
use examples_support::weights;
use weighbridge::Checkpoint;
use weighbridge_candle::Loader;

use crate::family::{self, Blueprint, Encoder};
use crate::files::Files;
use crate::sentence::Sentence;

/// A checkpoint whose headers and JSON files were found to agree.
pub(crate) struct Found {
    pub(crate) files: Files,
    pub(crate) sentence: Sentence,
    pub(crate) blueprint: Blueprint,
    checkpoint: Checkpoint,
    adapters: Vec<(Checkpoint, f32)>,
    /// The tensors that the model does not read.
    unread: Vec<String>,
    /// When it was opened.
    start: Instant,
}

/// What a load moved, and how long it took.
pub(crate) struct Loaded {
    pub(crate) tensors: usize,
    pub(crate) shards: usize,
    pub(crate) bytes: u64,
    /// From opening the checkpoint to the model built.
    pub(crate) seconds: f64,
    /// What is not as it should be in the files, but did not stand in the way.
    pub(crate) warnings: Vec<String>,
}

impl Found {
    /// Opens a checkpoint, and the adapters that are to be merged into it, each with its weight.
    ///
    /// # Errors
    ///
    /// Whatever is wrong with the checkpoint, the JSON files beside it, or all of them together, before data moves.
    pub(crate) fn open(place: &Path, adapters: &[(PathBuf, f32)]) -> Result<Self> {
        let start = Instant::now();
        let (files, checkpoint) = Files::open(place)?;
        let adapters = adapters
            .iter()
            .map(|(adapter, weight)| Ok((Checkpoint::open(adapter)?, *weight)))
            .collect::<Result<_>>()?;
        let Some(blueprint) = files.read_model("config.json", family::read)? else {
            bail!("{}: there is no config.json beside the weights", place.display());
        };
        let at = || place.display().to_string();
        let sentence = Sentence::read(&files, blueprint.is_causal).with_context(at)?;
        let unread = blueprint.survey(&checkpoint).with_context(at)?;
        Ok(Self { files, sentence, blueprint, checkpoint, adapters, unread, start })
    }

    /// The number of tensors, and of their bytes.
    pub(crate) fn size(&self) -> (usize, u64) {
        (self.checkpoint.len(), self.checkpoint.byte_len())
    }

    /// Loads the model for texts of so many tokens. `dtype` is what it computes in; without one, f32 on the CPU, where
    /// it is both exact and fastest, and elsewhere the type that most of the checkpoint is stored in, if it is right in
    /// that.
    ///
    /// # Errors
    ///
    /// A dtype that is not right, and a failed read.
    pub(crate) fn load(
        &self,
        positions: usize,
        dtype: Option<DType>,
        device: &Device,
    ) -> Result<(Box<dyn Encoder>, Loaded)> {
        let Blueprint { who, only_f32, .. } = self.blueprint;
        if let (Some(dtype), Some(why)) = (dtype.filter(|&dtype| dtype != DType::F32), only_f32) {
            bail!("--dtype {}: {who} is right in f32 only, {why}", dtype.as_str());
        }
        let mut loader = Loader::new(&self.checkpoint).device(device);
        for (adapter, weight) in &self.adapters {
            loader = loader.adapter(adapter, *weight);
        }
        let is_exact = device.is_cpu() || only_f32.is_some();
        if let Some(dtype) = dtype.or(is_exact.then_some(DType::F32)) {
            loader = loader.dtype(dtype);
        }
        let store = loader.var_builder()?;
        let weights = weights::adapt(store, &self.blueprint.names(&self.checkpoint));
        let at = || self.files.place.display().to_string();
        let encoder = weights::caught(|| self.blueprint.build(weights, positions)).with_context(at)?;
        device.synchronize()?;
        Ok((encoder, self.loaded()))
    }

    fn loaded(&self) -> Loaded {
        let mut warnings = self.checkpoint.warnings().to_vec();
        // The parts of a checkpoint that are for tasks: a pooler, the prediction of words.
        let for_tasks = ["pooler.", "cls.", "lm_head.", "head.", "decoder.", "vocab_", "position_ids"];
        let is_other = |name: &&String| !for_tasks.iter().any(|part| name.contains(part));
        let unread: Vec<_> = self.unread.iter().filter(is_other).map(|name| format!("\"{name}\"")).collect();
        if let [first, rest @ ..] = &unread[..] {
            let more = if rest.is_empty() { "" } else { ", ..." };
            warnings.push(format!("the model does not read {} of the tensors: {first}{more}", unread.len()));
        }
        let (tensors, bytes) = self.size();
        Loaded {
            tensors,
            shards: self.checkpoint.file_count(),
            bytes,
            seconds: self.start.elapsed().as_secs_f64(),
            warnings,
        }
    }
}
