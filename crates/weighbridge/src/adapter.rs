//! Adapters: small checkpoints that change the weights of a large one.
//!
//! [`Adapter::of`] reads what a checkpoint of an adapter says: [`parts`] knows how its tensors are named, [`config`] what
//! PEFT's `adapter_config.json` and diffusers' metadata say. [`Checkpoint::adapted`] finds the weights that it is for
//! ([`targets`]) and gives the same checkpoint with [merged](merge) ones in their place.

mod config;
mod convert;
mod merge;
mod new;
mod norm;
mod parts;
mod product;
mod targets;

use std::collections::BTreeMap;

use crate::checkpoint::{Checkpoint, TensorRef};
use crate::dtype::Dtype;
use crate::error::{Error, ErrorKind, Result};
use crate::plan::cast_into;
use crate::text::brief;
use config::Config;
pub use new::NewAdapter;
use parts::{Part, Split};
pub use product::{LowRankProduct, Truncation, norm_of_change};

/// A checkpoint that is an adapter, understood.
///
/// These are understood: LoRA, rsLoRA and DoRA of PEFT, with `adapter_config.json` beside the file; what Kohya's scripts, diffusers and
/// ComfyUI write for them, which say all in their names and in tensors named `alpha`; and full differences (`diff`). Tensors
/// that PEFT saved whole (`modules_to_save`, biases) replace those of the model.
///
/// ```no_run
/// use weighbridge::{Adapter, Checkpoint};
///
/// # fn main() -> weighbridge::Result<()> {
/// let base = Checkpoint::open("Llama-3.2-1B")?;
/// let adapter = Adapter::of(&Checkpoint::open("my-adapter")?)?;
/// for module in adapter.modules() {
///     println!("{}: rank {}, scale {}", module.name(), module.rank(), module.scale());
/// }
/// let merged = base.adapted([(&adapter, 1.0)])?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Adapter {
    checkpoint: Checkpoint,
    format: AdapterFormat,
    modules: Vec<Module>,
    /// Names of tensors that replace those of the model, and what these are called.
    whole: Vec<(String, String)>,
    /// Whether weights are stored the other way round.
    is_transposed: bool,
}

/// Who writes adapters of this kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AdapterFormat {
    /// Hugging Face PEFT: `base_model.model.X.lora_A.weight`.
    Peft,
    /// Kohya's scripts: `lora_unet_X.lora_down.weight`, with underscores in the place of dots.
    Kohya,
    /// diffusers and ComfyUI: `transformer.X.lora_A.weight`, `unet.X.lora.down.weight`.
    Diffusers,
}

impl AdapterFormat {
    /// Its name for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Peft => "PEFT",
            Self::Kohya => "Kohya",
            Self::Diffusers => "diffusers",
        }
    }
}

/// What is known of a module that an adapter changes.
#[derive(Clone, Debug)]
struct Module {
    name: String,
    /// The names of its tensors.
    parts: BTreeMap<Part, String>,
    rank: usize,
    /// What the product is multiplied with, without the weight of the adapter.
    scale: f32,
}

/// A module that an adapter changes.
#[derive(Clone, Copy, Debug)]
pub struct AdapterModule<'a> {
    adapter: &'a Adapter,
    module: &'a Module,
}

impl<'a> AdapterModule<'a> {
    /// Its name in the adapter, without what says that it is one.
    pub fn name(&self) -> &'a str {
        &self.module.name
    }

    /// The rank of its product; zero if it is a full difference.
    pub fn rank(&self) -> usize {
        self.module.rank
    }

    /// What the product is multiplied with: alpha / rank, or alpha / √rank for rsLoRA.
    pub fn scale(&self) -> f32 {
        self.module.scale
    }

    /// Whether the lengths of rows are learnt, too: DoRA.
    pub fn has_magnitude(&self) -> bool {
        self.module.parts.contains_key(&Part::Magnitude)
    }

    /// What it has beside the factors of a plain product, for people: `None` if there is nothing.
    pub fn other_than_factors(&self) -> Option<&'static str> {
        let plain = [Part::Down, Part::Up, Part::Alpha];
        self.module.parts.keys().find(|part| !plain.contains(part)).map(|part| match part {
            Part::Magnitude => "a magnitude (DoRA)",
            Part::EmbeddingDown | Part::EmbeddingUp => "factors of an embedding",
            Part::BiasUp | Part::FullBias => "a change of its bias",
            _ => "a full difference",
        })
    }

    /// `A` of shape `[rank, inputs]` and `B` of shape `[outputs, rank]`; `None` if it is a full difference.
    pub fn factors(&self) -> Option<[TensorRef<'a>; 2]> {
        let tensor = |part| self.adapter.tensor(self.module, part);
        let plain = || Some([tensor(Part::Down)?, tensor(Part::Up)?]);
        plain().or_else(|| Some([tensor(Part::EmbeddingDown)?, tensor(Part::EmbeddingUp)?]))
    }
}

impl Adapter {
    /// Reads what `checkpoint` says.
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::Unsupported`] for adapters of other kinds (IA³, LoHa, LoKr, OFT, ...) and for those that cannot be
    /// merged into the weights as they are published (PiSSA and others that change them first); the message names the
    /// tensor or the field. Fails when a module lacks a factor, or its shapes are no factors.
    pub fn of(checkpoint: &Checkpoint) -> Result<Self> {
        let config = Config::of(checkpoint)?;
        let mut modules = BTreeMap::<String, BTreeMap<Part, String>>::new();
        let (mut whole, mut format) = (Vec::new(), None);
        for tensor in checkpoint.tensors() {
            let blame = |error: Error| tensor.shard().blame(error.in_tensor(tensor.name()));
            match parts::split(tensor.name(), config.is_peft()).map_err(blame)? {
                Split::Part { module, part, format: own } => {
                    let twice = modules.entry(module).or_default().insert(part, tensor.name().to_owned());
                    if let Some(first) = twice {
                        let message = format!("it and {first:?} are the same part of one module");
                        return Err(blame(Error::new(ErrorKind::DuplicateTensor, message)));
                    }
                    format.get_or_insert(own);
                }
                Split::Whole(name) => whole.push((tensor.name().to_owned(), name)),
            }
        }
        let is_diffs = modules.values().all(|parts| parts.keys().all(|part| *part == Part::Alpha));
        if is_diffs && !config.is_peft() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "it is no adapter: none of its tensors is named as one of LoRA",
            ));
        }
        let format =
            if config.is_peft() { AdapterFormat::Peft } else { format.unwrap_or(AdapterFormat::Diffusers) };
        let has_alpha = modules.values().any(|parts| parts.contains_key(&Part::Alpha));
        if format == AdapterFormat::Peft && config.is_none() && !has_alpha {
            let message = "adapter_config.json is not beside it, which says how large the change is";
            return Err(Error::new(ErrorKind::NotFound, message));
        }
        let mut adapter = Self {
            checkpoint: checkpoint.clone(),
            format,
            modules: Vec::new(),
            whole,
            is_transposed: config.is_transposed(),
        };
        for (name, parts) in modules {
            let module = adapter.module(name, parts, &config)?;
            adapter.modules.push(module);
        }
        Ok(adapter)
    }

    /// The checkpoint that it is.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Who writes such adapters.
    pub fn format(&self) -> AdapterFormat {
        self.format
    }

    /// Whether its configuration says that weights of the model are stored as `[inputs, outputs]`.
    pub fn is_transposed(&self) -> bool {
        self.is_transposed
    }

    /// The model that its configuration says it is for: a name, or a path.
    pub fn model(&self) -> Option<String> {
        config::model(&self.checkpoint)
    }

    /// The modules that it changes, in the order of their names.
    pub fn modules(&self) -> impl Iterator<Item = AdapterModule<'_>> {
        self.modules.iter().map(|module| AdapterModule { adapter: self, module })
    }

    /// The tensors that replace those of the model, and what these are called.
    pub fn whole(&self) -> impl Iterator<Item = (&str, TensorRef<'_>)> {
        self.whole.iter().filter_map(|(own, name)| Some((&**name, self.checkpoint.tensor(own)?)))
    }

    fn tensor(&self, module: &Module, part: Part) -> Option<TensorRef<'_>> {
        self.checkpoint.tensor(module.parts.get(&part)?)
    }

    /// Checks the parts of a module, and works out its rank and its scale.
    fn module(&self, name: String, parts: BTreeMap<Part, String>, config: &Config) -> Result<Module> {
        let mut module = Module { name, parts, rank: 0, scale: 1.0 };
        let fail = |kind, message: String| {
            let named = module.parts.values().next().map_or("", |name| name);
            Err(self.blame(Error::new(kind, message), named))
        };
        let has = |part| module.parts.contains_key(&part);
        for (one, other) in [(Part::Down, Part::Up), (Part::EmbeddingDown, Part::EmbeddingUp)] {
            if has(one) != has(other) {
                let missing = if has(one) { other } else { one };
                return fail(
                    ErrorKind::MissingTensor,
                    format!("the other factor of {:?}, its {}, is missing", module.name, missing.name()),
                );
            }
        }
        let has_factors = has(Part::Down) || has(Part::EmbeddingDown);
        let needs = [Part::Magnitude, Part::BiasUp].into_iter().find(|&part| has(part) && !has_factors);
        if let Some(part) = needs {
            return fail(
                ErrorKind::MissingTensor,
                format!("{:?} has a {} and no factors", module.name, part.name()),
            );
        }
        let down = self.tensor(&module, Part::Down).or_else(|| self.tensor(&module, Part::EmbeddingDown));
        let up = self.tensor(&module, Part::Up).or_else(|| self.tensor(&module, Part::EmbeddingUp));
        if let (Some(down), Some(up)) = (down, up) {
            let (rank, same) = (down.shape().first().copied(), up.shape().get(1).copied());
            let is_empty = down.elements() == 0 || up.elements() == 0;
            let is_flat = up.shape().iter().skip(2).all(|&dim| dim == 1);
            if down.shape().len() < 2 || rank != same || !is_flat || is_empty {
                let message = format!(
                    "{:?}: {} and {} are no factors of a product",
                    module.name,
                    brief(up.shape()),
                    brief(down.shape())
                );
                return fail(ErrorKind::Shape, message);
            }
            if config.is_dora() && !has(Part::Magnitude) {
                let message = format!("{:?} has no magnitude, and use_dora is true", module.name);
                return fail(ErrorKind::MissingTensor, message);
            }
            module.rank = rank.unwrap_or_default();
            let alpha = self.tensor(&module, Part::Alpha).map(|tensor| self.number(&tensor)).transpose()?;
            module.scale = config.scale(&module.name, module.rank, alpha)?;
        }
        Ok(module)
    }

    /// The only number of a tensor.
    fn number(&self, tensor: &TensorRef<'_>) -> Result<f32> {
        let blame = |error| self.blame(error, tensor.name());
        if tensor.elements() != 1 || tensor.dtype() == Dtype::F4 {
            let message = format!("it has shape {}, where one number was expected", brief(tensor.shape()));
            return Err(blame(Error::new(ErrorKind::Shape, message)));
        }
        let range = tensor.info().file_range();
        let mut bytes = vec![0; tensor.dtype().bits() as usize / 8];
        let read = tensor.shard().source().read_at(range.start, &mut bytes);
        read.map_err(|error| blame(Error::io("it cannot be read", error)))?;
        let mut value = [0.0_f32];
        cast_into(tensor.dtype(), &bytes, &mut value).map_err(blame)?;
        match value {
            [value] if value.is_finite() => Ok(value),
            _ => Err(blame(Error::new(ErrorKind::Value, "it is no finite number"))),
        }
    }

    fn blame(&self, error: Error, tensor: &str) -> Error {
        let error = error.in_tensor(tensor);
        match self.checkpoint.tensor(tensor) {
            Some(tensor) => tensor.shard().blame(error),
            None => error,
        }
    }
}
