//! Adapters to be written.

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde_json::{Map, Value, json};

use super::parts::{self, Part};
use super::{Adapter, AdapterFormat, LowRankProduct};
use crate::checkpoint::TensorRef;
use crate::dtype::Dtype;
use crate::error::{Error, ErrorKind, Result};
use crate::text::start_of;
use crate::write::{Stored, TensorData};

/// An adapter to be written: products for modules, and tensors that replace those of the model.
///
/// [`tensors`](Self::tensors) and, for PEFT, [`config`](Self::config) say what its files hold.
#[derive(Clone, Debug)]
pub struct NewAdapter<'a> {
    format: AdapterFormat,
    modules: Vec<NewModule<'a>>,
    /// Tensors of modules that are saved whole, and those of modules that have a product, too: biases.
    whole: Vec<(String, TensorRef<'a>)>,
    biases: Vec<(String, TensorRef<'a>)>,
    is_transposed: bool,
}

#[derive(Clone, Debug)]
struct NewModule<'a> {
    name: String,
    rank: usize,
    alpha: f64,
    parts: BTreeMap<Part, Data<'a>>,
}

/// What a tensor of an adapter holds.
#[derive(Clone, Debug)]
enum Data<'a> {
    Made {
        dtype: Dtype,
        shape: Vec<usize>,
        bytes: Vec<u8>,
    },
    /// Of another adapter, with a shape of its own.
    Stored {
        tensor: TensorRef<'a>,
        shape: Vec<usize>,
    },
}

impl<'a> NewAdapter<'a> {
    /// An adapter of this format, for nothing yet.
    pub fn new(format: AdapterFormat) -> Self {
        Self { format, modules: Vec::new(), whole: Vec::new(), biases: Vec::new(), is_transposed: false }
    }

    /// Says that weights of the model are stored as `[inputs, outputs]`: PEFT's `fan_in_fan_out`.
    #[must_use]
    pub fn transposed(self) -> Self {
        Self { is_transposed: true, ..self }
    }

    /// Whether it is for nothing.
    pub fn is_empty(&self) -> bool {
        self.modules.is_empty() && self.whole.is_empty() && self.biases.is_empty()
    }

    /// Adds `alpha / rank` times a product to the weight of a module; its factors are written as `dtype`: F32, F16 or BF16.
    ///
    /// # Errors
    ///
    /// Fails for other dtypes, and for factors outside the range of `dtype`.
    pub fn product(
        &mut self,
        module: &str,
        product: &LowRankProduct,
        alpha: f64,
        dtype: Dtype,
    ) -> Result<()> {
        let data = |shape: &[usize], values: &[f32]| {
            let bytes = rounded(values, dtype).map_err(|error| error.in_tensor(module))?;
            Ok::<_, Error>(Data::Made { dtype, shape: shape.to_vec(), bytes })
        };
        let down = data(&product.down_shape, &product.down)?;
        let up = data(&product.up_shape, &product.up)?;
        let parts = BTreeMap::from([(Part::Down, down), (Part::Up, up)]);
        self.modules.push(NewModule { name: module.to_owned(), rank: product.rank(), alpha, parts });
        Ok(())
    }

    /// Replaces tensors of a module, which has no product: PEFT's `modules_to_save`.
    pub fn whole(&mut self, name: &str, tensor: TensorRef<'a>) {
        self.whole.push((name.to_owned(), tensor));
    }

    /// Replaces the bias of a module that may have a product: PEFT's `bias="all"`.
    pub fn bias(&mut self, name: &str, tensor: TensorRef<'a>) {
        self.biases.push((name.to_owned(), tensor));
    }

    /// Adds a module of another adapter under another name, as it is.
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::Unsupported`] for what the format has no name for.
    pub(super) fn copy(&mut self, adapter: &'a Adapter, index: usize, name: String) -> Result<()> {
        let Some(module) = adapter.modules.get(index) else { return Ok(()) };
        let mut parts = BTreeMap::new();
        for part in module.parts.keys().copied().filter(|part| *part != Part::Alpha) {
            let Some(tensor) = adapter.tensor(module, part) else { continue };
            if parts::ending(self.format, part).is_none() {
                let message = format!("{} has no {}", self.format.name(), part.name());
                return Err(adapter.blame(Error::new(ErrorKind::Unsupported, message), tensor.name()));
            }
            let shape = match part {
                Part::Magnitude => self.magnitude_shape(&tensor, adapter.tensor(module, Part::Up)),
                _ => tensor.shape().to_vec(),
            };
            parts.insert(part, Data::Stored { tensor, shape });
        }
        // What was divided comes back.
        let alpha = f64::from((f64::from(module.scale) * module.rank as f64) as f32);
        let whole = alpha.round();
        let alpha = if (alpha - whole).abs() <= 1e-6 * whole.abs() { whole } else { alpha };
        self.modules.push(NewModule { name, rank: module.rank, alpha, parts });
        Ok(())
    }

    /// PEFT has one number for each row of a matrix and a first dimension of one for convolutions, LyCORIS a dimension of one for each but
    /// the first.
    fn magnitude_shape(&self, tensor: &TensorRef<'_>, up: Option<TensorRef<'_>>) -> Vec<usize> {
        let rows = usize::try_from(tensor.elements()).unwrap_or(usize::MAX);
        let dims = up.map_or(2, |up| up.shape().len());
        let mut shape = vec![1; dims];
        match self.format {
            AdapterFormat::Kohya => shape[0] = rows,
            _ if dims > 2 => shape[1] = rows,
            _ => return vec![rows],
        }
        shape
    }

    /// Its tensors and their names.
    pub fn tensors(&self) -> Vec<(String, Box<dyn TensorData + '_>)> {
        let mut tensors: Vec<(String, Box<dyn TensorData + '_>)> = Vec::new();
        for module in &self.modules {
            for (part, data) in &module.parts {
                tensors.push((parts::join(self.format, &module.name, *part), Box::new(data)));
            }
            if self.format == AdapterFormat::Kohya {
                let alpha = (module.alpha as f32).to_le_bytes().to_vec();
                let data = Data::Made { dtype: Dtype::F32, shape: Vec::new(), bytes: alpha };
                tensors.push((parts::join(self.format, &module.name, Part::Alpha), Box::new(data)));
            }
        }
        for (name, tensor) in &self.whole {
            tensors.push((format!("{}{name}", parts::PEFT), Box::new(*tensor)));
        }
        for (name, tensor) in &self.biases {
            let (module, last) = name.rsplit_once('.').unwrap_or(("", name));
            let is_wrapped = self.modules.iter().any(|own| own.name == module);
            let between = if is_wrapped { ".base_layer." } else { "." };
            tensors.push((format!("{}{module}{between}{last}", parts::PEFT), Box::new(*tensor)));
        }
        tensors
    }

    /// PEFT's `adapter_config.json`. `model` is the name of the model, or its path.
    ///
    /// # Errors
    ///
    /// Fails when some modules have a magnitude and others none: PEFT has one for all or for none.
    pub fn config(&self, model: Option<&str>) -> Result<String> {
        let mut config = self.settings()?;
        let mut saved: Vec<_> =
            self.whole.iter().filter_map(|(name, _)| Some(name.rsplit_once('.')?.0)).collect();
        saved.dedup();
        let rest = json!({
            "auto_mapping": null,
            "base_model_name_or_path": model,
            "bias": if self.biases.is_empty() { "none" } else { "all" },
            "inference_mode": true,
            "init_lora_weights": true,
            "lora_dropout": 0.0,
            "modules_to_save": if saved.is_empty() { Value::Null } else { json!(saved) },
            "peft_type": "LORA",
            "task_type": null,
            "use_rslora": false,
        });
        if let Value::Object(rest) = rest {
            config.extend(rest);
        }
        serde_json::to_string_pretty(&config)
            .map_err(|error| Error::new(ErrorKind::Internal, format!("the configuration: {error}")))
    }

    /// What a file says of itself: for diffusers, the same in its metadata.
    ///
    /// # Errors
    ///
    /// As [`config`](Self::config).
    pub fn metadata(&self) -> Result<Option<(&'static str, String)>> {
        if self.format != AdapterFormat::Diffusers {
            return Ok(None);
        }
        let mut all = Map::new();
        let component = |module: &NewModule<'_>| module.name.split('.').next().unwrap_or_default().to_owned();
        let mut components: Vec<_> = self.modules.iter().map(component).collect();
        components.sort();
        components.dedup();
        for name in components {
            let own =
                self.modules.iter().filter(|module| component(module) == name).map(|module| NewModule {
                    name: module.name[name.len()..].trim_start_matches('.').to_owned(),
                    ..module.clone()
                });
            let part = Self { modules: own.collect(), ..Self::new(self.format) };
            all.extend(part.settings()?.into_iter().map(|(key, value)| (format!("{name}.{key}"), value)));
        }
        Ok(Some((super::config::METADATA, Value::Object(all).to_string())))
    }

    /// Ranks, scales and modules.
    fn settings(&self) -> Result<Map<String, Value>> {
        let with = |module: &&NewModule<'_>| module.parts.contains_key(&Part::Magnitude);
        let count = self.modules.iter().filter(with).count();
        if count > 0 && count < self.modules.len() {
            let without = self.modules.iter().find(|module| !with(module)).map_or("", |module| &module.name);
            let message = format!(
                "{:?} has no magnitude (DoRA) and other modules have; {} has one for all or for none",
                start_of(without),
                self.format.name()
            );
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        let rank = most(self.modules.iter().map(|module| module.rank)).unwrap_or(1);
        let alpha = most(self.modules.iter().map(|module| module.alpha.to_bits()));
        let alpha = alpha.map_or(1.0, f64::from_bits);
        let names: Vec<_> = self.modules.iter().map(|module| &module.name).collect();
        let pattern = |of: &dyn Fn(&NewModule<'_>) -> Option<Value>| -> Map<String, Value> {
            let others = self
                .modules
                .iter()
                .filter_map(|module| Some((format!("^{}", module.name.replace('.', "\\.")), of(module)?)));
            others.collect()
        };
        let ranks = pattern(&|module| (module.rank != rank).then(|| json!(module.rank)));
        let alphas = pattern(&|module| (module.alpha != alpha).then(|| number(module.alpha)));
        let value = json!({
            "alpha_pattern": alphas,
            "fan_in_fan_out": self.is_transposed,
            "lora_alpha": number(alpha),
            "lora_bias": self.modules.iter().any(|module| module.parts.contains_key(&Part::BiasUp)),
            "r": rank,
            "rank_pattern": ranks,
            "target_modules": names,
            "use_dora": count > 0,
        });
        match value {
            Value::Object(map) => Ok(map),
            _ => Ok(Map::new()),
        }
    }
}

/// Whole if it is.
fn number(value: f64) -> Value {
    if value == value.trunc() && value.abs() < 1e15 { json!(value as i64) } else { json!(value) }
}

/// What is most frequent; the smallest of several.
fn most<T: Ord + Copy>(values: impl Iterator<Item = T>) -> Option<T> {
    let mut counts = BTreeMap::<T, usize>::new();
    values.for_each(|value| *counts.entry(value).or_default() += 1);
    counts.into_iter().rev().max_by_key(|(_, count)| *count).map(|(value, _)| value)
}

/// Values as the bytes of a file.
fn rounded(values: &[f32], dtype: Dtype) -> Result<Vec<u8>> {
    let too_large = || {
        let message =
            format!("a factor of its product is outside the range of {dtype}; another dtype holds it");
        Error::new(ErrorKind::Value, message)
    };
    match dtype {
        Dtype::F32 => Ok(values.iter().flat_map(|value| value.to_le_bytes()).collect()),
        Dtype::BF16 => {
            Ok(values.iter().flat_map(|value| half::bf16::from_f32(*value).to_le_bytes()).collect())
        }
        Dtype::F16 => {
            let halves: Vec<_> = values.iter().map(|value| half::f16::from_f32(*value)).collect();
            if halves.iter().any(|value| !value.is_finite()) {
                return Err(too_large());
            }
            Ok(halves.iter().flat_map(|value| value.to_le_bytes()).collect())
        }
        _ => Err(Error::new(ErrorKind::Dtype, format!("factors are F32, F16 or BF16, not {dtype}"))),
    }
}

impl TensorData for Data<'_> {
    fn dtype(&self) -> Dtype {
        match self {
            Self::Made { dtype, .. } => *dtype,
            Self::Stored { tensor, .. } => tensor.dtype(),
        }
    }

    fn shape(&self) -> &[usize] {
        let (Self::Made { shape, .. } | Self::Stored { shape, .. }) = self;
        shape
    }

    fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        match self {
            Self::Made { bytes, .. } => out.write_all(bytes),
            Self::Stored { tensor, .. } => tensor.write_to(out),
        }
    }

    fn stored(&self) -> Option<Stored<'_>> {
        match self {
            Self::Made { .. } => None,
            Self::Stored { tensor, .. } => tensor.stored(),
        }
    }
}
