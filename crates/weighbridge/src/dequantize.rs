//! The weights that quantised modules stand for, as tensors like any others.
//!
//! [`Checkpoint::dequantized`] gives a checkpoint in which each module that is read has one tensor, its weight, in the place
//! of its codes and companions. What makes it is a [recipe](recipe): where the code of a weight is ([`codes`]), what it stands for
//! ([`tables`]), and which scale, zero point and bias belong to it ([`companion`]). For each method a file in [`family`]
//! writes the recipe, from names, dtypes and shapes, and from the [configuration](config) where these do not say it.
//! [`tiles`] carries recipes out, with the loops in [`segment`].

mod codes;
mod companion;
mod config;
mod family;
mod module;
mod recipe;
mod segment;
mod tables;
mod tiles;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use crate::cast::Overflow;
use crate::checkpoint::{Checkpoint, DerivedTensor, QuantizedModule, Shard, TensorRef, may_be_codes};
use crate::dtype::Dtype;
use crate::error::{Error, ErrorKind, Result};
use crate::plan::{Derive, Derived};
use crate::text::{brief, start_of};
use config::Config;
use module::{Dense, Module};
pub(crate) use tiles::Apart;
use tiles::Weights;

/// Tensors that say something about activations, and markers: without their modules they say nothing.
const LEFT_OUT: &[&str] = &[
    "input_scale",
    "input_global_scale",
    "activation_scale",
    "act_scale",
    "scale_input",
    "qscale_act",
    "output_scale",
    "k_scale",
    "v_scale",
    "q_scale",
    "kv_scale",
    "input_zero_point",
    "output_zero_point",
    "weight_format",
    "weight_shape",
    "scaled_fp8",
    "comfy_quant",
];

/// Of these, one with more numbers is a parameter of the model.
const ONE_EACH: &[&str] = &["output_scale", "k_scale", "v_scale", "q_scale", "kv_scale"];

/// What stands for the whole file.
const MARKERS: &[&str] = &["scaled_fp8", "comfy_quant"];

impl Checkpoint {
    /// The same checkpoint with the weights that its quantised modules stand for, in the place of their codes.
    ///
    /// The weight of a module `up`, stored as `up.qweight`, `up.scales` and so on, is the tensor `up.weight` of shape
    /// `[outputs, inputs]`; the tensors that it is made of are not in the checkpoint any more, nor are those that describe
    /// activations. It is made when it is read, tile by tile, in `F32` by the formula of its method and rounded once, to
    /// whatever dtype is asked for; [its own](TensorRef::dtype) is that of its scales if that is `F16` or `BF16`, else the
    /// model's. So it can be [planned](crate::Plan), cast, sliced, renamed and saved as any other tensor.
    ///
    /// How modules are quantised is read from names, dtypes and shapes, module by module; what these do not show is taken from
    /// `config.json` and the files that belong to it in the checkpoint's [`directory`](Self::directory).
    ///
    /// A module of a method that is not read, or whose tensors contradict each other or the configuration, stays as it is:
    /// it is still among the [`quantized`](Self::quantized) modules, and [`refusal`](crate::QuantizedModule::refusal) says
    /// why.
    ///
    /// ```
    /// use weighbridge::{Checkpoint, Dtype, TensorView, write::Save};
    ///
    /// # fn main() -> weighbridge::Result<()> {
    /// let codes = TensorView::new(Dtype::I8, &[2, 2], &[1, 2, 3, 0xFC])?;
    /// let scales = TensorView::new(Dtype::BF16, &[2, 1], &[0x80, 0x3F, 0x00, 0x3F])?; // 1, 0.5
    /// let file = Save::new().bytes([("up.weight", codes), ("up.weight_scale", scales)])?;
    /// let dense = Checkpoint::from_bytes(file)?.dequantized()?;
    /// assert_eq!(dense.len(), 1);
    /// assert_eq!(dense.tensor("up.weight").unwrap().dtype(), Dtype::BF16);
    /// let bytes = dense.read("up.weight")?; // 1, 2, 1.5, -2
    /// assert_eq!(bytes.as_bytes(), [0x80, 0x3F, 0x00, 0x40, 0xC0, 0x3F, 0x00, 0xC0]);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Fails when a configuration file cannot be read, and when a weight would have the name of a tensor that is stored,
    /// too.
    pub fn dequantized(&self) -> Result<Self> {
        self.dequantized_where(|_| true)
    }

    /// The same, of the modules for which `chosen` holds; the others stay as they are stored. So do tensors that look like
    /// codes but are of no module, which are among the [`quantized`](Self::quantized) modules of the result.
    ///
    /// ```
    /// # use weighbridge::{Checkpoint, Dtype, TensorView, write::Save};
    /// # fn main() -> weighbridge::Result<()> {
    /// # let codes = TensorView::new(Dtype::I8, &[1, 2], &[1, 2])?;
    /// # let scales = TensorView::new(Dtype::BF16, &[1, 1], &[0x80, 0x3F])?;
    /// # let all = ["up", "down"].map(|name| [(format!("{name}.weight"), codes), (format!("{name}.weight_scale"), scales)]);
    /// # let ckpt = Checkpoint::from_bytes(Save::new().bytes(all.into_iter().flatten())?)?;
    /// let dense = ckpt.dequantized_where(|module| module.name() == "up")?;
    /// assert_eq!(dense.tensor("up.weight").unwrap().dtype(), Dtype::BF16);
    /// assert_eq!(dense.tensor("down.weight").unwrap().dtype(), Dtype::I8);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`dequantized`](Self::dequantized).
    pub fn dequantized_where(&self, chosen: impl Fn(&QuantizedModule<'_>) -> bool) -> Result<Self> {
        if !self.tensors().any(|tensor| may_be_codes(tensor.dtype())) {
            return Ok(self.clone());
        }
        let (chosen, others): (Vec<_>, Vec<_>) = self.quantized().partition(chosen);
        let mut config = Config::of(self)?;
        if let Some(scales) = self.tensors().find(|tensor| tensor.name().ends_with(".act.scales")) {
            config.note_activation_scales(scales.name());
        }
        let (mut weights, mut refusals, mut stay) = (Vec::new(), HashMap::new(), others);
        for quantized in chosen {
            let module = Module::new(self, &config, quantized);
            match family::dense(&module) {
                Ok(dense) => weights.push((module.weight, dense)),
                Err(error) => {
                    refusals.insert(module.weight, error);
                    stay.push(quantized);
                }
            }
        }
        let alone = alone(self, &config);
        for tensor in &alone {
            refusals.insert(tensor.name().to_owned(), unknown(self, tensor, &config));
        }
        if weights.is_empty() && refusals.is_empty() {
            return Ok(self.clone());
        }
        let of_weights = weights.iter().flat_map(|(_, dense)| dense.tensors.iter().chain(&dense.unused));
        let mut hidden: Vec<_> = of_weights.copied().collect();
        if !weights.is_empty() {
            hidden.extend(useless(self, weights.iter().map(|(name, _)| &**name), &stay));
        }
        // One for each file that holds codes, in the order of the files.
        let mut by_shard = BTreeMap::<usize, Vec<(String, Dense<'_>)>>::new();
        for (name, dense) in weights {
            let shard = dense.tensors.first().map_or(0, TensorRef::shard_number);
            by_shard.entry(shard).or_default().push((name, dense));
        }
        let shards = by_shard.into_iter().map(|(number, weights)| {
            let label = self.shards().get(number).and_then(|shard| shard.label());
            derived_shard(label, weights)
        });
        self.with_derived(shards.collect::<Result<_>>()?, &hidden, &alone, refusals)
    }
}

/// What says nothing now that modules are the weights of these names, and others stay as they are.
fn useless<'c, 'w>(
    checkpoint: &'c Checkpoint,
    weights: impl Iterator<Item = &'w str>,
    stay: &[QuantizedModule<'_>],
) -> Vec<TensorRef<'c>> {
    let kept: HashSet<_> =
        stay.iter().flat_map(|module| module.tensors().map(|tensor| tensor.name())).collect();
    let modules: HashSet<_> = stay.iter().map(QuantizedModule::name).collect();
    // The modules that are weights, and the layers that these are in.
    let names = weights.map(|name| name.strip_suffix(".weight").unwrap_or(name));
    let layers = names.flat_map(|name| [name, name.rsplit_once('.').map_or("", |(layer, _)| layer)]);
    let layers: HashSet<_> = layers.collect();
    let is_useless = |tensor: &TensorRef<'_>| {
        let (layer, last) = tensor.name().rsplit_once('.').unwrap_or(("", tensor.name()));
        let has_one = ONE_EACH.contains(&last);
        // Those of the cache of keys and values are with attention that need not be quantised.
        let is_theirs =
            has_one && layer.contains("attn") || layers.contains(layer) || MARKERS.contains(&last);
        is_left_out(tensor.name())
            && is_theirs
            && (!has_one || tensor.elements() == 1)
            && !kept.contains(tensor.name())
            && !modules.contains(layer)
    };
    checkpoint.tensors().filter(is_useless).collect()
}

/// Whether a tensor says nothing without the codes that it belongs to.
fn is_left_out(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or_default();
    LEFT_OUT.contains(&last) || last.ends_with("_activation_scale") || last.ends_with("_input_scale")
}

/// What tensors of codes are called at the end.
const ENDINGS: &[&str] = &[
    "weight", "qweight", "W_q", "_packed", "_blocks", ".blocks", "codes", "q_weight", "trellis", "._data",
    "qdata", "indices",
];

/// Tensors that no method has, and that look like codes in a checkpoint whose configuration says that it is quantised.
fn alone<'c>(checkpoint: &'c Checkpoint, config: &Config) -> Vec<TensorRef<'c>> {
    let is_quantized = config.method().is_some() || !config.mlx().is_none();
    if !is_quantized {
        return Vec::new();
    }
    let of_modules: HashSet<_> =
        checkpoint.quantized().flat_map(|module| module.tensors().map(|tensor| tensor.name())).collect();
    let is_code = |tensor: &TensorRef<'_>| {
        let dtype = tensor.dtype();
        may_be_codes(dtype)
            && !matches!(dtype, Dtype::I64 | Dtype::U64)
            && tensor.shape().len() >= 2
            && ENDINGS.iter().any(|ending| tensor.name().ends_with(ending))
            && !of_modules.contains(tensor.name())
    };
    checkpoint.tensors().filter(is_code).collect()
}

/// So many names are looked at for what may belong to a tensor.
const MOST_NAMES: usize = 1000;

/// Why such a tensor is no weight.
fn unknown(checkpoint: &Checkpoint, tensor: &TensorRef<'_>, config: &Config) -> Error {
    let method = config.method().map_or_else(
        || config.mlx().field("bits"),
        |method| format!("{} {method:?}", config.quantization().field("quant_method")),
    );
    let begins_alike =
        |other: &TensorRef<'_>| other.name().strip_prefix(tensor.name()).is_some_and(|rest| !rest.is_empty());
    // Of many such tensors, not each is worth a look at all names.
    let beside = checkpoint.tensors().take(MOST_NAMES).find(begins_alike);
    let beside = beside
        .map_or_else(String::new, |other| format!(" ({:?} is {})", start_of(other.name()), other.dtype()));
    let message = format!(
        "it is {} of shape {} without the scales that would go with it{beside}, in a checkpoint that is quantised ({method}); \
         load the unquantised model",
        tensor.dtype(),
        brief(tensor.shape()),
    );
    tensor.shard().blame(Error::new(ErrorKind::Unsupported, message).in_tensor(tensor.name()))
}

/// A file that is nowhere, of weights in the order of their codes.
fn derived_shard(label: Option<&std::path::Path>, weights: Vec<(String, Dense<'_>)>) -> Result<Shard> {
    let internal = || Error::new(ErrorKind::Internal, "there is no cast from F32 to the dtype of a weight");
    let tensors = weights.into_iter().map(|(name, dense)| {
        let inputs = dense.inputs();
        let (dtype, shape, recipe) = (dense.dtype, dense.shape, Arc::new(dense.recipe));
        let tiles = |dtype| {
            let weights = Weights::new(&recipe, dtype, Overflow::default()).ok_or_else(internal);
            weights.map(|weights| Arc::new(weights) as Arc<dyn Derive>)
        };
        let derived = Derived::new(inputs, tiles(dtype)?, Some(tiles(Dtype::F32)?));
        Ok(DerivedTensor { name, dtype, shape, derived })
    });
    Shard::of_derived(label, tensors.collect::<Result<_>>()?)
}
