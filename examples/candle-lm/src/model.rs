//! From a checkpoint to a model: the part of this program that weighbridge is for.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device};
use examples_support::lm::{Loaded, Progress};
use examples_support::weights::{self, LM_HEAD, caught};
use weighbridge::Checkpoint;
use weighbridge_candle::Loader;

use crate::config;
use crate::family::{Blueprint, LanguageModel};
use crate::gguf::{self, Gguf};

/// A checkpoint whose headers and config.json were found to agree.
pub(crate) struct Found {
    /// As it was asked for.
    pub(crate) place: PathBuf,
    /// The files beside the weights.
    pub(crate) beside: Beside,
    weights: Weights,
    /// The tokens after which a text ends.
    eos: Vec<u32>,
    /// When it was opened.
    start: Instant,
}

/// The files that lie beside weights.
pub(crate) enum Beside {
    /// Wherever a checkpoint is.
    Checkpoint(Checkpoint),
    Directory(PathBuf),
}

enum Weights {
    Safetensors(Box<Safetensors>),
    /// Has its own configuration.
    Gguf(Gguf),
}

struct Safetensors {
    checkpoint: Checkpoint,
    adapters: Vec<(Checkpoint, f32)>,
    blueprint: Blueprint,
    unread: Vec<String>,
}

/// A model on its device.
pub(crate) struct Model {
    pub(crate) language: Box<dyn LanguageModel>,
    pub(crate) eos: Vec<u32>,
    /// So many positions it was made for.
    pub(crate) positions: usize,
    /// So many tokens of a prompt at a time are right.
    pub(crate) longest_batch: usize,
    /// What logits are multiplied with.
    pub(crate) logit_scale: f64,
}

impl Found {
    /// Opens a checkpoint, and the adapters that are to be merged into it, each with its weight.
    ///
    /// # Errors
    ///
    /// Whatever is wrong with the checkpoint, its `config.json`, or the two together.
    pub(crate) fn open(place: &Path, adapters: &[(PathBuf, f32)]) -> Result<Self> {
        let start = Instant::now();
        let found = |beside, weights, eos| Self { place: place.to_owned(), beside, weights, eos, start };
        if gguf::is_gguf(place) {
            ensure!(adapters.is_empty(), "{}: adapters are merged into safetensors only", place.display());
            let directory = place.parent().unwrap_or(Path::new(""));
            let beside = Beside::Directory(directory.to_owned());
            let gguf = Gguf::open(place).with_context(|| place.display().to_string())?;
            let eos = config::eos(&beside)?.unwrap_or_else(|| gguf.eos.clone());
            return Ok(found(beside, Weights::Gguf(gguf), eos));
        }
        let checkpoint = Checkpoint::open(place)?.dequantized()?;
        if let Some(codes) = checkpoint.quantized().next() {
            return Err(codes.refusal(&codes.weight(), "this program computes with weights").into());
        }
        let adapters = adapters
            .iter()
            .map(|(adapter, weight)| Ok((Checkpoint::open(adapter)?, *weight)))
            .collect::<Result<_>>()?;

        let beside = Beside::Checkpoint(checkpoint.clone());
        let (mut blueprint, eos) = config::read(&beside, place)?;
        let at = || place.display().to_string();
        let has_head = checkpoint.tensor(LM_HEAD).is_some();
        if blueprint.always_ties {
            ensure!(
                blueprint.tied_to.is_some() && !has_head,
                "{}: the embeddings and the output projection are two tensors (tie_word_embeddings), this model of \
                 Candle's has one for both",
                at()
            );
        }
        // As in transformers 5, an output projection that is in the checkpoint is used.
        if has_head {
            blueprint.tied_to = None;
        }
        let unread = blueprint.survey(&checkpoint).with_context(at)?;
        let weights = Safetensors { checkpoint, adapters, blueprint, unread };
        Ok(found(beside, Weights::Safetensors(Box::new(weights)), eos))
    }

    /// The number of tokens that the model knows.
    pub(crate) fn vocabulary(&self) -> usize {
        match &self.weights {
            Weights::Safetensors(weights) => weights.blueprint.vocabulary,
            Weights::Gguf(gguf) => gguf.vocabulary,
        }
    }

    /// The number of positions beyond which the model here is not the one that the checkpoint is for.
    pub(crate) fn limit(&self) -> usize {
        self.limited().map_or(usize::MAX, |(positions, _)| *positions)
    }

    fn limited(&self) -> Option<&(usize, String)> {
        match &self.weights {
            Weights::Safetensors(weights) => weights.blueprint.limit.as_ref(),
            Weights::Gguf(gguf) => gguf.limit.as_ref(),
        }
    }

    /// Loads the model for texts of so many tokens. `dtype` is what it computes in; without one, f32 on the CPU, where
    /// it is both exact and fastest, and elsewhere the type that most of the checkpoint is stored in.
    ///
    /// # Errors
    ///
    /// More positions than are right, and a failed read.
    pub(crate) fn load(
        &self,
        positions: usize,
        dtype: Option<DType>,
        device: &Device,
    ) -> Result<(Model, Loaded)> {
        if let Some((limit, why)) = self.limited()
            && positions > *limit
        {
            bail!(
                "prompt and answer take up to {positions} positions: {why}; --max-new-tokens says how many"
            );
        }
        let eos = self.eos.clone();
        let at = || self.place.display().to_string();
        match &self.weights {
            Weights::Safetensors(weights) => {
                let (language, dtype) = weights.load(positions, dtype, device).with_context(at)?;
                let blueprint = &weights.blueprint;
                let embedding_scale =
                    if blueprint.tied_to.is_some() { blueprint.embedding_scale } else { 1.0 };
                let model = Model {
                    language,
                    eos,
                    positions,
                    longest_batch: blueprint.longest_batch,
                    logit_scale: blueprint.logit_scale / embedding_scale,
                };
                Ok((model, weights.loaded(dtype, self.start)))
            }
            Weights::Gguf(gguf) => {
                let dtype = dtype.unwrap_or(DType::F32);
                ensure!(dtype == DType::F32, "--dtype: Candle computes a GGUF model in f32");
                let language = gguf.load(positions, device).with_context(at)?;
                let model = Model { language, eos, positions, longest_batch: usize::MAX, logit_scale: 1.0 };
                let loaded = Loaded {
                    tensors: gguf.tensors,
                    shards: 1,
                    dtypes: gguf.dtypes.clone(),
                    bytes: gguf.bytes,
                    dtype: dtype.as_str(),
                    seconds: self.start.elapsed().as_secs_f64(),
                    warnings: Vec::new(),
                };
                Ok((model, loaded))
            }
        }
    }
}

impl Beside {
    /// Where a file is, if there is one.
    ///
    /// # Errors
    ///
    /// One that is on a network may not be had.
    pub(crate) fn find(&self, name: &str) -> Result<Option<PathBuf>> {
        match self {
            Self::Checkpoint(checkpoint) => Ok(checkpoint.beside(name)?),
            Self::Directory(directory) => Ok(Some(directory.join(name)).filter(|path| path.exists())),
        }
    }
}

impl Safetensors {
    fn load(
        &self,
        positions: usize,
        dtype: Option<DType>,
        device: &Device,
    ) -> Result<(Box<dyn LanguageModel>, DType)> {
        let mut loader = Loader::new(&self.checkpoint).device(device);
        for (adapter, weight) in &self.adapters {
            loader = loader.adapter(adapter, *weight);
        }
        if let Some(dtype) = dtype.or(device.is_cpu().then_some(DType::F32)) {
            loader = loader.dtype(dtype);
        }
        if let Some(mut shown) = Progress::of(self.checkpoint.byte_len()) {
            loader = loader.progress(move |progress| shown.show(progress.bytes_done));
        }
        let store = loader.var_builder()?;
        let dtype = store.dtype();
        let built =
            caught(|| self.blueprint.build(weights::adapt(store, &self.blueprint.names()), positions));
        let language = built?;
        device.synchronize()?;
        Ok((language, dtype))
    }

    fn loaded(&self, dtype: DType, start: Instant) -> Loaded {
        let mut dtypes = BTreeMap::new();
        for tensor in self.checkpoint.tensors() {
            *dtypes.entry(tensor.dtype().to_string()).or_default() += 1;
        }
        let mut warnings = self.checkpoint.warnings().to_vec();
        warnings.extend(Loaded::unread(&self.unread));
        Loaded {
            tensors: self.checkpoint.len(),
            shards: self.checkpoint.file_count(),
            dtypes,
            bytes: self.checkpoint.byte_len(),
            dtype: dtype.as_str(),
            seconds: start.elapsed().as_secs_f64(),
            warnings,
        }
    }
}
