//! Between the names that Candle's model asks for and those that the checkpoint has.
//!
//! Most models ask for what is stored. Some ask for an output projection that is tied to the embeddings, for parts of
//! a tensor that is stored whole, or leave out a multiplier that can as well be in a weight: a [`Recipe`] says so.
//!
//! What a model asks for is known by letting it ask: [`survey`] builds it once over tensors without data, and compares
//! each request with the checkpoint's headers, so that all that is wrong is in one message before a byte of data
//! moves, and what is never read is known, too.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use examples_support::Inventory;
use weighbridge::Checkpoint;

use crate::family::{Blueprint, LanguageModel};
use crate::model::caught;

/// The name of the output projection, which a checkpoint with tied embeddings leaves out.
pub(crate) const LM_HEAD: &str = "lm_head.weight";

/// Where a tensor that a model asks for comes from.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Origin {
    /// The stored tensor with this name.
    Stored(String),
    /// The same times a number, plus a number.
    Scaled { name: String, factor: f64, plus: f64 },
    /// The same, its first `rows` times a number.
    ScaledRows { name: String, rows: usize, factor: f64 },
    /// Rows of it, from `start` on; it has `rows` in all.
    Rows { name: String, start: usize, rows: usize },
    /// Zeros: a bias that the checkpoint does not have.
    Zeros,
}

impl Origin {
    pub(crate) fn scaled(name: &str, factor: f64) -> Self {
        Self::Scaled { name: name.to_owned(), factor, plus: 0.0 }
    }
}

/// What each name stands for.
pub(crate) type Recipe = Arc<dyn Fn(&str) -> Origin + Send + Sync>;

/// A recipe for what is stored as it is asked for.
pub(crate) fn as_stored() -> Recipe {
    Arc::new(|name| Origin::Stored(name.to_owned()))
}

/// Gives a model what its blueprint says.
struct Adapted {
    store: VarBuilder<'static>,
    recipe: Recipe,
    /// What the output projection is tied to.
    tied_to: Option<&'static str>,
    /// Keeps all tensors, because the model is built again for each text.
    keeps_all: bool,
    /// Tensors that are asked for more than once. A clone shares the data.
    kept: Mutex<HashMap<String, Tensor>>,
}

/// The same weights for a model that was made after this blueprint.
pub(crate) fn adapt(store: VarBuilder<'static>, blueprint: &Blueprint) -> VarBuilder<'static> {
    let (dtype, device) = (store.dtype(), store.device().clone());
    let adapted = Adapted {
        store,
        recipe: blueprint.recipe.clone(),
        tied_to: blueprint.tied_to,
        keeps_all: blueprint.is_rebuilt,
        kept: Mutex::default(),
    };
    VarBuilder::from_backend(Box::new(adapted), dtype, device)
}

impl Adapted {
    fn read(&self, shape: Shape, name: &str, init: Init, dtype: DType) -> candle_core::Result<Tensor> {
        let stored = |name: &str, shape: Shape| self.store.get_with_hints_dtype(shape, name, init, dtype);
        match (self.recipe)(name) {
            Origin::Stored(name) => stored(&name, shape),
            Origin::Scaled { name, factor, plus } => stored(&name, shape)?.affine(factor, plus),
            Origin::ScaledRows { name, rows, factor } => {
                let whole = stored(&name, shape)?;
                // In a survey tensors have no data.
                if whole.elem_count() == 0 {
                    return Ok(whole);
                }
                let scaled = whole.narrow(0, 0, rows)?.affine(factor, 0.0)?;
                Tensor::cat(&[&scaled, &whole.narrow(0, rows, whole.dim(0)? - rows)?], 0)
            }
            Origin::Zeros => Tensor::zeros(shape, dtype, self.store.device()),
            Origin::Rows { name, start, rows } => {
                let mut whole = shape.dims().to_vec();
                let Some(count) = whole.first_mut().map(|first| std::mem::replace(first, rows)) else {
                    candle_core::bail!("{name}: a number has no rows")
                };
                let whole = self.keep(&name, || stored(&name, Shape::from(whole)))?;
                // In a survey tensors have no data.
                if whole.elem_count() == 0 { Ok(whole) } else { whole.narrow(0, start, count) }
            }
        }
    }

    fn keep(
        &self,
        name: &str,
        read: impl FnOnce() -> candle_core::Result<Tensor>,
    ) -> candle_core::Result<Tensor> {
        if let Some(tensor) = self.kept.lock().unwrap_or_else(PoisonError::into_inner).get(name) {
            return Ok(tensor.clone());
        }
        let tensor = read()?;
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.insert(name.to_owned(), tensor.clone());
        Ok(tensor)
    }
}

impl SimpleBackend for Adapted {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        init: Init,
        dtype: DType,
        _: &Device,
    ) -> candle_core::Result<Tensor> {
        let name = match self.tied_to {
            Some(embeddings) if name == LM_HEAD => embeddings,
            _ => name,
        };
        let read = || self.read(shape, name, init, dtype);
        if self.keeps_all || self.tied_to == Some(name) { self.keep(name, read) } else { read() }
    }

    fn get_unchecked(&self, name: &str, dtype: DType, _: &Device) -> candle_core::Result<Tensor> {
        self.store.get_unchecked_dtype(name, dtype)
    }

    /// Only the output projection is asked for like that: whether it is there is what config.json says.
    fn contains_tensor(&self, name: &str) -> bool {
        if name == LM_HEAD { self.tied_to.is_none() } else { self.store.contains_tensor(name) }
    }
}

/// Checks that every tensor that the model will ask for is there in its shape, and returns the names of those that it
/// will not ask for.
///
/// # Errors
///
/// One line with the first few tensors that are missing or have another shape.
pub(crate) fn survey(checkpoint: &Checkpoint, blueprint: &Blueprint) -> Result<Vec<String>> {
    let tensors = checkpoint.len();
    ensure!(
        blueprint.layers <= tensors,
        "config.json: num_hidden_layers is {}, but the checkpoint has only {tensors} tensors",
        blueprint.layers
    );
    let requests = Arc::new(Mutex::new(Requests { allowed: 10 * (tensors + 100), made: Vec::new() }));
    let store = VarBuilder::from_backend(
        Box::new(Surveyor { requests: requests.clone(), stored: shapes(checkpoint) }),
        DType::F32,
        Device::Cpu,
    );
    let built: Result<Box<dyn LanguageModel>> = caught(|| blueprint.build(adapt(store, blueprint), 1));
    let requests = std::mem::take(&mut requests.lock().unwrap_or_else(PoisonError::into_inner).made);

    let asked: HashSet<String> = requests.iter().map(|(name, _)| name.clone()).collect();
    let stored = |name: &str| checkpoint.tensor(name).map(|tensor| tensor.shape().to_vec());
    let inventory = Inventory::take(blueprint.layers, tensors, requests.into_iter(), stored)?;
    let untied = "config.json does not tie the embeddings (tie_word_embeddings)";
    let hint = inventory.lacks_only(LM_HEAD).then_some(untied);
    inventory.check(hint)?;
    built.context("config.json")?;

    let mut unread: Vec<String> =
        shapes(checkpoint).into_keys().filter(|name| !asked.contains(name)).collect();
    // Older files have the frequencies of rotary embeddings, which follow from config.json.
    unread.retain(|name| !name.ends_with("rotary_emb.inv_freq"));
    unread.sort();
    Ok(unread)
}

fn shapes(checkpoint: &Checkpoint) -> HashMap<String, Vec<usize>> {
    checkpoint.tensors().map(|tensor| (tensor.name().to_owned(), tensor.shape().to_vec())).collect()
}

/// What was asked for; a configuration with a nonsensical number of experts, say, may not ask for ever.
struct Requests {
    allowed: usize,
    made: Vec<(String, Vec<usize>)>,
}

/// Notes what it is asked for, and gives tensors without data.
struct Surveyor {
    requests: Arc<Mutex<Requests>>,
    stored: HashMap<String, Vec<usize>>,
}

impl SimpleBackend for Surveyor {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        if requests.made.len() >= requests.allowed {
            candle_core::bail!("the model has more than {} tensors", requests.allowed);
        }
        requests.made.push((name.to_owned(), shape.dims().to_vec()));
        // These are the embeddings. With other sizes, what models allocate by themselves could be any size, too.
        if requests.made.len() == 1 && self.stored.get(name).map(Vec::as_slice) != Some(shape.dims()) {
            candle_core::bail!("{name}: not as the model needs it");
        }
        let mut empty = shape.into_dims();
        if let Some(first) = empty.first_mut() {
            *first = 0;
        }
        Tensor::zeros(empty, dtype, device)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        candle_core::bail!("{name}: the model does not say which shape it needs")
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.stored.contains_key(name)
    }
}
