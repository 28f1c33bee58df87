//! What says how large the change is: PEFT's `adapter_config.json`, diffusers' metadata.

use regex::{Regex, RegexBuilder};
use serde_json::{Map, Value};

use crate::checkpoint::Checkpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::side_file::read_json;
use crate::text::start_of;

/// PEFT's file.
const FILE: &str = "adapter_config.json";

/// The key under which diffusers has the same in a file's metadata.
pub(super) const METADATA: &str = "lora_adapter_metadata";

/// A larger file is none.
const MOST: u64 = 16 << 20;

/// What is said about all modules of an adapter.
pub(super) struct Config {
    /// A component of a pipeline (`transformer.`, or nothing) and what is said about it.
    sections: Vec<(String, Section)>,
    is_peft: bool,
}

struct Section {
    alpha: Option<f64>,
    rank: Option<u64>,
    alphas: Vec<(Regex, f64)>,
    is_rank_stabilised: bool,
    is_transposed: bool,
    /// Whether all modules have a magnitude.
    is_dora: bool,
}

impl Config {
    pub(super) fn of(checkpoint: &Checkpoint) -> Result<Self> {
        let config = match checkpoint.beside(FILE)? {
            Some(path) => read_json(&path, MOST)?.map(|value| (path, value)),
            None => None,
        };
        if let Some((path, value)) = config {
            let parse = || {
                let fields = value.as_object().ok_or_else(|| malformed("it is no JSON object".to_owned()))?;
                refuse_others(fields)?;
                Section::of(fields)
            };
            let section = parse().map_err(|error| error.in_file(&path))?;
            return Ok(Self { sections: vec![(String::new(), section)], is_peft: true });
        }
        let mut sections = Vec::new();
        for shard in checkpoint.shards() {
            let Some(text) = shard.header().metadata_value(METADATA) else { continue };
            let parse = || {
                let value = serde_json::from_str(text);
                let value: Value =
                    value.map_err(|error| malformed(format!("its {METADATA} is not valid JSON: {error}")))?;
                let fields = value
                    .as_object()
                    .ok_or_else(|| malformed(format!("its {METADATA} is no JSON object")))?;
                let mut names: Vec<&str> = fields
                    .keys()
                    .filter_map(|key| {
                        ["lora_alpha", "alpha_pattern", "r"].iter().find_map(|end| key.strip_suffix(end))
                    })
                    .filter(|name| name.is_empty() || name.ends_with('.'))
                    .collect();
                names.sort_unstable();
                names.dedup();
                let section = |name: &&str| {
                    let own = fields.iter().filter_map(|(key, value)| {
                        Some((key.strip_prefix(*name)?.to_owned(), value.clone()))
                    });
                    let own: Map<String, Value> = own.collect();
                    refuse_others(&own)?;
                    Ok(((*name).to_owned(), Section::of(&own)?))
                };
                names.iter().map(section).collect::<Result<Vec<_>>>()
            };
            sections.extend(parse().map_err(|error| shard.blame(error))?);
        }
        Ok(Self { sections, is_peft: false })
    }

    /// Whether it is PEFT's file.
    pub(super) fn is_peft(&self) -> bool {
        self.is_peft
    }

    /// Whether anything is said.
    pub(super) fn is_none(&self) -> bool {
        self.sections.is_empty()
    }

    /// Whether all modules are said to have a magnitude.
    pub(super) fn is_dora(&self) -> bool {
        self.is_peft && self.sections.iter().any(|(_, section)| section.is_dora)
    }

    /// Whether weights are said to be stored the other way round.
    pub(super) fn is_transposed(&self) -> bool {
        self.sections.iter().any(|(_, section)| section.is_transposed)
    }

    /// What the product of a module is multiplied with; `alpha` is what the module says itself.
    pub(super) fn scale(&self, module: &str, rank: usize, alpha: Option<f32>) -> Result<f32> {
        let section = self
            .sections
            .iter()
            .find_map(|(prefix, section)| Some((module.strip_prefix(&**prefix)?, section)));
        let scale = match (alpha, section) {
            (Some(alpha), _) => f64::from(alpha) / rank as f64,
            (None, Some((module, section))) => section.scale(module, rank)?,
            // What most that read such files do: alpha is the rank.
            (None, None) => 1.0,
        };
        match scale as f32 {
            scale if scale.is_finite() => Ok(scale),
            _ => Err(Error::new(
                ErrorKind::Value,
                format!("the scale of {:?} is no finite number", start_of(module)),
            )),
        }
    }
}

/// What PEFT's file says the model is.
pub(super) fn model(checkpoint: &Checkpoint) -> Option<String> {
    let value = read_json(&checkpoint.beside(FILE).ok()??, MOST).ok()??;
    Some(value.get("base_model_name_or_path")?.as_str()?.to_owned())
}

impl Section {
    fn of(fields: &Map<String, Value>) -> Result<Self> {
        /// No adapter has as many patterns, nor such large ones.
        const MOST_PATTERNS: usize = 1024;
        const LARGEST: usize = 256 << 10;
        let field = |key: &str| fields.get(key).filter(|value| !value.is_null());
        let number = |key: &str| match field(key) {
            None => Ok(None),
            Some(value) => value.as_f64().map(Some).ok_or_else(|| wrong(key, value, "a number")),
        };
        let flag = |key: &str| match field(key) {
            None => Ok(false),
            Some(value) => value.as_bool().ok_or_else(|| wrong(key, value, "true or false")),
        };
        let mut alphas = Vec::new();
        if let Some(value) = field("alpha_pattern") {
            let pattern = value.as_object().ok_or_else(|| wrong("alpha_pattern", value, "an object"))?;
            if pattern.len() > MOST_PATTERNS {
                return Err(malformed(format!("alpha_pattern has more than {MOST_PATTERNS} patterns")));
            }
            for (key, value) in pattern {
                let alpha =
                    value.as_f64().ok_or_else(|| wrong("alpha_pattern", value, "an object of numbers"))?;
                // As PEFT has it: the end of a name, from a dot on.
                let regex = RegexBuilder::new(&format!(r"^(?:.*\.)?(?:{key})$")).size_limit(LARGEST).build();
                let regex = regex.map_err(|_| {
                    let message = format!(
                        "alpha_pattern: {:?} is no regular expression that is understood here",
                        start_of(key)
                    );
                    Error::new(ErrorKind::Unsupported, message)
                })?;
                alphas.push((regex, alpha));
            }
        }
        let rank = number("r")?.filter(|rank| *rank >= 1.0).map(|rank| rank as u64);
        let has_ranks =
            field("rank_pattern").and_then(Value::as_object).is_some_and(|pattern| !pattern.is_empty());
        Ok(Self {
            alpha: number("lora_alpha")?,
            rank: rank.filter(|_| !has_ranks),
            alphas,
            is_rank_stabilised: flag("use_rslora")?,
            is_transposed: flag("fan_in_fan_out")?,
            is_dora: flag("use_dora")?,
        })
    }

    fn scale(&self, module: &str, rank: usize) -> Result<f64> {
        if let Some(said) = self.rank.filter(|said| *said != rank as u64) {
            let message = format!(
                "the factors of {:?} have rank {rank}, but r is {said} and there is no rank_pattern",
                start_of(module)
            );
            return Err(Error::new(ErrorKind::Shape, message));
        }
        let mut alphas =
            self.alphas.iter().filter(|(regex, _)| regex.is_match(module)).map(|(_, alpha)| *alpha);
        let pattern = alphas.next();
        // The first one counts for PEFT, and JSON has no order.
        if alphas.any(|other| Some(other) != pattern) {
            let message = format!("several of alpha_pattern are about {:?}, and differ", start_of(module));
            return Err(Error::new(ErrorKind::Ambiguous, message));
        }
        // PEFT's own default.
        let alpha = pattern.or(self.alpha).unwrap_or(8.0);
        let divisor = if self.is_rank_stabilised { (rank as f64).sqrt() } else { rank as f64 };
        Ok(alpha / divisor)
    }
}

/// Refuses what is more or other than adding products to weights.
fn refuse_others(fields: &Map<String, Value>) -> Result<()> {
    let refuse = |message: String| Err(Error::new(ErrorKind::Unsupported, message));
    let text = |key: &str| fields.get(key).and_then(Value::as_str);
    if let Some(other) = text("peft_type").filter(|kind| *kind != "LORA") {
        return refuse(format!("peft_type is {:?}; LORA is what is merged here", start_of(other)));
    }
    if let Some(init) = text("init_lora_weights") {
        let init = init.to_lowercase();
        let changes = ["pissa", "olora", "corda", "lora_ga"].iter().any(|name| init.starts_with(name));
        if init.starts_with("loftq") {
            return refuse(
                "init_lora_weights is \"loftq\": it was made for weights that LoftQ had quantised, not for the model's".to_owned(),
            );
        }
        if changes {
            return refuse(format!(
                "init_lora_weights is {:?}: it was made for weights that were changed before; save it with \
                 path_initial_model_for_weight_conversion, which makes a LoRA of it",
                start_of(&init)
            ));
        }
    }
    let is_set = |key: &&str| match fields.get(*key) {
        None | Some(Value::Null | Value::Bool(false)) => false,
        Some(Value::Array(items)) => !items.is_empty(),
        Some(Value::Object(items)) => !items.is_empty(),
        Some(_) => true,
    };
    let others = [
        "layer_replication",
        "megatron_config",
        "trainable_token_indices",
        "target_parameters",
        "use_qalora",
        "arrow_config",
        "lora_ga_config",
        "alora_invocation_tokens",
        "kasa_config",
        "use_bdlora",
    ];
    match others.iter().find(|key| is_set(key)) {
        Some(key) => refuse(format!("{key} is set, which is not merged here; merge it with PEFT")),
        None => Ok(()),
    }
}

fn wrong(key: &str, value: &Value, wanted: &str) -> Error {
    malformed(format!("{key} is {}, where {wanted} was expected", start_of(&value.to_string())))
}

fn malformed(message: String) -> Error {
    Error::new(ErrorKind::Malformed, message)
}
