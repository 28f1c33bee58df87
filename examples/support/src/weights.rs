//! Between the names that a model of Candle's asks for and those that the checkpoint has.
//!
//! Most models ask for what is stored. Some ask for an output projection that is tied to the embeddings, for parts of
//! a tensor that is stored whole, or leave out a multiplier that can as well be in a weight: a [`Recipe`] says so.
//!
//! What a model asks for is known by letting it ask: [`survey`] builds it once over tensors without data, and compares
//! each request with the checkpoint's headers, so that all that is wrong is in one message before a byte of data
//! moves, and what is never read is known, too.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use weighbridge::Checkpoint;

use crate::Inventory;

/// The name of the output projection, which a checkpoint with tied embeddings leaves out.
pub const LM_HEAD: &str = "lm_head.weight";

/// Where a tensor that a model asks for comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Origin {
    /// The stored tensor with this name.
    Stored(String),
    /// The same times a number, plus a number.
    Scaled {
        /// The stored tensor.
        name: String,
        /// The number that it is multiplied with.
        factor: f64,
        /// The number that is added.
        plus: f64,
    },
    /// The same, its first rows times a number.
    ScaledRows {
        /// The stored tensor.
        name: String,
        /// The number of rows.
        rows: usize,
        /// The number that they are multiplied with.
        factor: f64,
    },
    /// Rows of it.
    Rows {
        /// The stored tensor.
        name: String,
        /// The first of them.
        start: usize,
        /// The number of rows that it has in all.
        rows: usize,
    },
    /// Zeros: a bias that the checkpoint does not have.
    Zeros,
    /// Nothing: the model can do without.
    Absent,
}

impl Origin {
    /// A stored tensor times a number.
    pub fn scaled(name: &str, factor: f64) -> Self {
        Self::Scaled { name: name.to_owned(), factor, plus: 0.0 }
    }
}

/// What each name stands for.
pub type Recipe = Arc<dyn Fn(&str) -> Origin + Send + Sync>;

/// A recipe for what is stored as it is asked for.
pub fn as_stored() -> Recipe {
    Arc::new(|name| Origin::Stored(name.to_owned()))
}

/// What a model's requests mean.
#[derive(Clone)]
pub struct Names {
    /// What each name stands for.
    pub recipe: Recipe,
    /// What the output projection is tied to.
    pub tied_to: Option<&'static str>,
    /// Keeps all tensors, because the model is built again for each text.
    pub keeps_all: bool,
}

impl Names {
    /// For a model without an output projection.
    pub fn new(recipe: Recipe) -> Self {
        Self { recipe, tied_to: None, keeps_all: false }
    }
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Names").field("tied_to", &self.tied_to).finish_non_exhaustive()
    }
}

/// Gives a model what its names mean.
struct Adapted {
    store: VarBuilder<'static>,
    names: Names,
    /// Tensors that are asked for more than once. A clone shares the data.
    kept: Mutex<HashMap<String, Tensor>>,
}

/// The same weights for a model that calls them so.
pub fn adapt(store: VarBuilder<'static>, names: &Names) -> VarBuilder<'static> {
    let (dtype, device) = (store.dtype(), store.device().clone());
    let adapted = Adapted { store, names: names.clone(), kept: Mutex::default() };
    VarBuilder::from_backend(Box::new(adapted), dtype, device)
}

impl Adapted {
    fn read(&self, shape: Shape, name: &str, init: Init, dtype: DType) -> candle_core::Result<Tensor> {
        let stored = |name: &str, shape: Shape| self.store.get_with_hints_dtype(shape, name, init, dtype);
        match (self.names.recipe)(name) {
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
            Origin::Absent => candle_core::bail!("{name}: the model has none"),
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
        let Names { tied_to, keeps_all, .. } = self.names;
        let name = match tied_to {
            Some(embeddings) if name == LM_HEAD => embeddings,
            _ => name,
        };
        let read = || self.read(shape, name, init, dtype);
        if keeps_all || tied_to == Some(name) { self.keep(name, read) } else { read() }
    }

    fn get_unchecked(&self, name: &str, dtype: DType, _: &Device) -> candle_core::Result<Tensor> {
        self.store.get_unchecked_dtype(name, dtype)
    }

    /// Only the output projection is asked for like that: whether it is there is what config.json says.
    fn contains_tensor(&self, name: &str) -> bool {
        if name == LM_HEAD { self.names.tied_to.is_none() } else { self.store.contains_tensor(name) }
    }
}

/// Checks that every tensor that a model of so many layers will ask for is there in its shape, and returns the names of
/// those that it will not ask for.
///
/// # Errors
///
/// One line with the first few tensors that are missing or have another shape.
pub fn survey<M>(
    checkpoint: &Checkpoint,
    layers: usize,
    names: &Names,
    build: impl FnOnce(VarBuilder<'static>) -> candle_core::Result<M>,
) -> Result<Vec<String>> {
    let tensors = checkpoint.len();
    ensure!(
        layers <= tensors,
        "config.json: num_hidden_layers is {layers}, but the checkpoint has only {tensors} tensors"
    );
    let requests = Arc::new(Mutex::new(Requests { allowed: 10 * (tensors + 100), made: Vec::new() }));
    let store = VarBuilder::from_backend(
        Box::new(Surveyor { requests: requests.clone(), stored: shapes(checkpoint) }),
        DType::F32,
        Device::Cpu,
    );
    let built = caught(|| build(adapt(store, names)));
    let requests = std::mem::take(&mut requests.lock().unwrap_or_else(PoisonError::into_inner).made);

    let asked: HashSet<String> = requests.iter().map(|(name, _)| name.clone()).collect();
    let stored = |name: &str| checkpoint.tensor(name).map(|tensor| tensor.shape().to_vec());
    let inventory = Inventory::take(layers, tensors, requests.into_iter(), stored)?;
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

/// Calls a model of Candle's. Some unwrap what their layers return: a read that fails there comes as a panic, and goes on
/// as the error that it was.
///
/// # Errors
///
/// What the model returned, or what it unwrapped.
pub fn caught<T>(build: impl FnOnce() -> candle_core::Result<T>) -> Result<T> {
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    let outcome = panic::catch_unwind(AssertUnwindSafe(build));
    panic::set_hook(hook);

    let payload = match outcome {
        Ok(built) => return Ok(built?),
        Err(payload) => payload,
    };
    let message = payload
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| payload.downcast_ref::<&str>().copied())
        .unwrap_or("building the model failed");
    // `Result::unwrap` puts this before the error.
    let (_, cause) = message.split_once("` on an `Err` value: ").unwrap_or(("", message));
    bail!("{cause}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_unwrapped_is_an_error() {
        let read = |fails: bool| -> candle_core::Result<u8> {
            if fails { candle_core::bail!("shard: input/output error") } else { Ok(1) }
        };
        assert_eq!(caught(|| Ok(read(false).unwrap())).unwrap(), 1);
        let error = caught(|| Ok(read(true).unwrap())).unwrap_err();
        assert!(error.to_string().starts_with("shard: input/output error"), "{error}");
    }
}
