//! What configuration files say about quantisation.
//!
//! They are asked for what no shape shows, and checked against the shapes: `config.json`, and what writers put beside it.

use serde_json::Value;

use crate::checkpoint::Checkpoint;
use crate::dtype::Dtype;
use crate::error::{Error, ErrorKind, Result};
use crate::side_file::read_json;
use crate::text::start_of;

/// A larger file is none.
const MOST: u64 = 64 << 20;

/// The configuration of a checkpoint.
#[derive(Debug, Default)]
pub(super) struct Config {
    /// `quantization_config` of `config.json`, or the file that holds the same by itself.
    quantization: Named,
    /// `quantization` of `config.json`, as MLX writes it.
    mlx: Named,
    dtype: Option<Dtype>,
    /// The objects of `config.json` that describe the model: the whole, and those of its parts.
    models: Vec<Value>,
    activation_scales: Option<String>,
}

/// An object of a configuration, and what to call it.
#[derive(Debug, Default)]
struct Named {
    place: String,
    value: Value,
}

/// The same, or a part of it.
#[derive(Debug)]
pub(super) struct Section<'v> {
    place: String,
    value: Option<&'v Value>,
}

impl Config {
    /// Reads what lies beside a checkpoint; files that are not there say nothing.
    pub(super) fn of(checkpoint: &Checkpoint) -> Result<Self> {
        let read = |name: &str| match checkpoint.beside(name)? {
            Some(path) => read_json(&path, MOST),
            None => Ok(None),
        };
        let mut config = Self::default();
        if let Some(value) = read("config.json")? {
            let inner = ["text_config", "llm_config", "language_config", "thinker_config"];
            let nested = inner.iter().filter_map(|key| value.get(key));
            let all: Vec<&Value> = std::iter::once(&value).chain(nested).collect();
            let find =
                |key: &str| all.iter().find_map(|value| value.get(key)).filter(|value| !value.is_null());
            config.quantization = Named::of("config.json: quantization_config", find("quantization_config"));
            if config.quantization.is_none() {
                config.quantization =
                    Named::of("config.json: compression_config", find("compression_config"));
            }
            config.mlx = Named::of("config.json: quantization", find("quantization"));
            let dtype = find("dtype").or_else(|| find("torch_dtype")).and_then(Value::as_str);
            config.dtype = dtype.and_then(float);
            config.models = all.into_iter().cloned().collect();
        }
        for (file, key) in SIDE_FILES {
            if !config.quantization.is_none() {
                break;
            }
            if let Some(value) = read(file)? {
                let place = if key.is_empty() { (*file).to_owned() } else { format!("{file}: {key}") };
                let value = if key.is_empty() { Some(&value) } else { value.get(key) };
                config.quantization = Named::of(&place, value);
            }
        }
        Ok(config)
    }

    /// The section about quantisation.
    pub(super) fn quantization(&self) -> Section<'_> {
        self.quantization.section()
    }

    /// MLX's section, which some writers put in the other one's place.
    pub(super) fn mlx(&self) -> Section<'_> {
        if self.mlx.is_none() { self.quantization.section() } else { self.mlx.section() }
    }

    /// Notes the name of a tensor of scales of activations, which AWQ's layers divide by.
    pub(super) fn note_activation_scales(&mut self, name: &str) {
        self.activation_scales = Some(name.to_owned());
    }

    /// The tensor that AWQ's layers divide by, if there is one.
    pub(super) fn activation_scales(&self) -> Option<&str> {
        self.activation_scales.as_deref()
    }

    /// The dtype that the model says it has.
    pub(super) fn dtype(&self) -> Option<Dtype> {
        self.dtype
    }

    /// The architecture.
    pub(super) fn model_type(&self) -> Option<&str> {
        self.models.iter().find_map(|model| model.get("model_type")?.as_str())
    }

    /// A size of the model.
    pub(super) fn size(&self, key: &str) -> Option<usize> {
        usize::try_from(self.models.iter().find_map(|model| model.get(key)?.as_u64())?).ok()
    }

    /// The method, as transformers names it.
    pub(super) fn method(&self) -> Option<&str> {
        let section = self.quantization();
        let is_bnb = ["load_in_4bit", "load_in_8bit"].iter().any(|key| section.flag(key) == Some(true));
        if is_bnb { Some("bitsandbytes") } else { section.text("quant_method") }
    }
}

/// Files that hold what belongs into `config.json`, and under which key.
const SIDE_FILES: &[(&str, &str)] = &[
    ("quantize_config.json", ""),
    ("hf_quant_config.json", "quantization"),
    ("quant_config.json", ""),
    ("params.json", "quantization"),
];

impl Named {
    fn of(place: &str, value: Option<&Value>) -> Self {
        let value = value.filter(|value| value.is_object()).cloned().unwrap_or_default();
        Self { place: place.to_owned(), value }
    }

    fn is_none(&self) -> bool {
        self.value.is_null()
    }

    fn section(&self) -> Section<'_> {
        Section::of(self.place.clone(), Some(&self.value))
    }
}

impl<'v> Section<'v> {
    fn of(place: String, value: Option<&'v Value>) -> Self {
        Self { place, value: value.filter(|value| value.is_object()) }
    }

    /// Whether there is no such section.
    pub(super) fn is_none(&self) -> bool {
        self.value.is_none()
    }

    pub(super) fn get(&self, key: &str) -> Option<&'v Value> {
        self.value?.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn text(&self, key: &str) -> Option<&'v str> {
        self.get(key)?.as_str()
    }

    pub(super) fn flag(&self, key: &str) -> Option<bool> {
        self.get(key)?.as_bool()
    }

    pub(super) fn number(&self, key: &str) -> Option<i64> {
        self.get(key)?.as_i64()
    }

    /// A part of the section.
    pub(super) fn section(&self, key: &str) -> Self {
        Self::of(format!("{}.{}", self.place, start_of(key)), self.get(key))
    }

    /// The parts of an object.
    pub(super) fn sections(&self) -> Vec<Self> {
        let keys = self.value.and_then(Value::as_object).into_iter().flatten().map(|(key, _)| key);
        keys.map(|key| self.section(key)).filter(|section| !section.is_none()).collect()
    }

    /// What to call one of its fields in a message.
    pub(super) fn field(&self, key: &str) -> String {
        match self.is_none() {
            true => key.to_owned(),
            false => format!("{}.{key}", self.place),
        }
    }

    /// The error that a field contradicts the tensors.
    pub(super) fn contradicts(&self, key: &str, why: &str) -> Error {
        let value = self.get(key).map_or_else(|| "nothing".to_owned(), Value::to_string);
        let message = format!("{} says {}, {why}", self.field(key), start_of(&value));
        Error::new(ErrorKind::Shape, message)
    }
}

/// The dtype of floats of that name.
pub(super) fn float(name: &str) -> Option<Dtype> {
    match name.trim_start_matches("torch.") {
        "float32" | "float" => Some(Dtype::F32),
        "float16" | "half" => Some(Dtype::F16),
        "bfloat16" => Some(Dtype::BF16),
        _ => None,
    }
}
