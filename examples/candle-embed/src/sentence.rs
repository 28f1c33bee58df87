//! What the JSON files of sentence-transformers say: how token vectors become one, what comes before a text, how two
//! vectors are compared. None of them needs to be there; what is taken instead is said in a note.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use candle_nn::Activation;
use clap::ValueEnum;
use examples_support::{Fields, mismatch};
use serde_json::Value;

use crate::files::Files;

/// All of it.
#[derive(Debug)]
pub(crate) struct Sentence {
    /// Their vectors are joined.
    pub(crate) pooling: Vec<Pooling>,
    /// Whether the tokens of a prompt are pooled, too.
    pub(crate) pools_prompt: bool,
    /// What is done with the pooled vector.
    pub(crate) steps: Vec<Step>,
    /// Longer texts are cut to so many tokens, those that the tokenizer adds included.
    pub(crate) max_tokens: Option<usize>,
    pub(crate) lower_case: bool,
    pub(crate) prompts: BTreeMap<String, String>,
    pub(crate) default_prompt: Option<String>,
    pub(crate) similarity: Similarity,
    /// So many of a vector's elements are kept.
    pub(crate) dimensions: Option<usize>,
    /// What was not said.
    pub(crate) notes: Vec<String>,
}

/// How the vectors of a text's tokens become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pooling {
    /// The first token's.
    Cls,
    /// The greatest of each element.
    Max,
    Mean,
    /// The sum, divided by the root of their number.
    MeanSqrtLen,
    /// Later tokens count more.
    WeightedMean,
    LastToken,
}

/// A module after the pooling.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    Dense(Dense),
    /// The folder with its weights.
    LayerNorm(String),
    Normalize,
}

/// A matrix, and what is done with what it makes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Dense {
    /// The folder with its weights.
    pub(crate) folder: String,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) bias: bool,
    pub(crate) activation: DenseActivation,
    /// What comes in is added to what goes out.
    pub(crate) residual: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum DenseActivation {
    Identity,
    Tanh,
    Of(Activation),
}

/// How two vectors are compared: the more, the nearer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Similarity {
    /// Of the angle between them, from -1 to 1
    #[default]
    Cosine,
    /// The dot product
    Dot,
    /// The negated distance
    Euclidean,
    /// The negated sum of the differences of their elements
    Manhattan,
}

/// What a text is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// One of many of a kind.
    Text,
    Query,
    Document,
}

impl Sentence {
    /// Reads all of the files.
    ///
    /// # Errors
    ///
    /// One line that names the file, and the key or module that is wrong or not computed.
    pub(crate) fn read(files: &Files, is_causal: bool) -> Result<Self> {
        let mut sentence = Self {
            pooling: vec![if is_causal { Pooling::LastToken } else { Pooling::Mean }],
            pools_prompt: true,
            steps: Vec::new(),
            max_tokens: None,
            lower_case: false,
            prompts: BTreeMap::new(),
            default_prompt: None,
            similarity: Similarity::Cosine,
            dimensions: None,
            notes: Vec::new(),
        };
        sentence.read_modules(files)?;
        // Once it was named after the kind of model.
        for kind in ["bert", "roberta", "distilbert", "camembert", "xlm-roberta"] {
            let read = |fields: Fields<'_>| sentence.read_transformer(fields);
            if files.read_model(&format!("sentence_{kind}_config.json"), read)?.is_some() {
                break;
            }
        }
        files.read("config_sentence_transformers.json", |fields| sentence.read_options(fields))?;
        Ok(sentence)
    }

    /// What is put before a text unless the command line says otherwise, as `encode`, `encode_query` and
    /// `encode_document` choose it.
    pub(crate) fn prompt(&self, role: Role) -> &str {
        let named = |name: &str| self.prompts.get(name).map_or("", String::as_str);
        match role {
            Role::Text => self.default_prompt.as_deref().map_or("", named),
            Role::Query => named("query"),
            Role::Document => named("document"),
        }
    }

    /// # Errors
    ///
    /// There is no prompt of that name.
    pub(crate) fn named_prompt(&self, name: &str) -> Result<&str> {
        match self.prompts.get(name) {
            Some(prompt) => Ok(prompt),
            None if self.prompts.is_empty() => bail!("prompt \"{name}\": the model has no prompts"),
            None => {
                let known: Vec<_> = self.prompts.keys().map(String::as_str).collect();
                bail!("prompt \"{name}\": the model has {}", known.join(", "))
            }
        }
    }

    /// The modules, of which the first is the model.
    fn read_modules(&mut self, files: &Files) -> Result<()> {
        let Some(modules) = files.modules()? else {
            let read = |fields: Fields<'_>| self.read_pooling(fields);
            let pooled = files.read("1_Pooling/config.json", read)?.is_some();
            let how = if pooled { "of 1_Pooling" } else { self.pooling[0].name() };
            self.notes.push(format!("there is no modules.json: the pooling is {how}, without normalisation"));
            return Ok(());
        };
        for (index, module) in modules.iter().enumerate() {
            let (name, folder) = (module.name(), &module.folder);
            let at = format!("modules.json: \"{}\"", module.kind);
            let config = format!("{folder}/config.json");
            let wrong_place =
                || format!("{at} is module {index}, after a model and a pooling come other modules");
            match name {
                "Transformer" => ensure!(index == 0, wrong_place()),
                "Pooling" => {
                    ensure!(index == 1, wrong_place());
                    if files.read(&config, |fields| self.read_pooling(fields))?.is_none() {
                        bail!("{at}: there is no {config}");
                    }
                }
                "Dense" | "LayerNorm" | "Normalize" | "Dropout" => {
                    ensure!(index > 1, wrong_place());
                    let step = match name {
                        "Dropout" => None,
                        "LayerNorm" => Some(Step::LayerNorm(folder.clone())),
                        "Dense" => {
                            Some(Step::Dense(match files.read(&config, |fields| dense(fields, folder))? {
                                Some(dense) => dense,
                                None => bail!("{at}: there is no {config}"),
                            }))
                        }
                        _ => {
                            files.read(&config, of_sentences)?;
                            Some(Step::Normalize)
                        }
                    };
                    self.steps.extend(step);
                }
                _ => bail!("{at}: a module that this program does not compute"),
            }
        }
        ensure!(modules.len() > 1, "modules.json: there is no pooling");
        Ok(())
    }

    fn read_pooling(&mut self, fields: Fields<'_>) -> Result<()> {
        self.pooling = pooling(fields)?;
        self.pools_prompt = fields.get("include_prompt").is_none() || fields.flag("include_prompt")?;
        Ok(())
    }

    fn read_transformer(&mut self, fields: Fields<'_>) -> Result<()> {
        self.max_tokens = fields.size("max_seq_length")?;
        self.lower_case = fields.flag("do_lower_case")?;
        for (key, expected) in
            [("transformer_task", "feature-extraction"), ("module_output_name", "token_embeddings")]
        {
            let found = fields.text(key)?.unwrap_or(expected);
            ensure!(found == expected, "{key} is \"{found}\", this program computes \"{expected}\"");
        }
        if let Some(Value::Object(text)) = fields.get("modality_config").and_then(|config| config.get("text"))
        {
            let name = Fields(text).text("method_output_name")?.unwrap_or("last_hidden_state");
            ensure!(
                name == "last_hidden_state",
                "method_output_name is \"{name}\", this program computes \"last_hidden_state\""
            );
        }
        for key in ["query_length", "document_length", "query_expansion", "processing_kwargs"] {
            let is_empty = |value: &Value| value.as_object().is_some_and(serde_json::Map::is_empty);
            if let Some(value) = fields.get(key).filter(|value| !is_empty(value)) {
                bail!("{key} is {value}, which this program does not compute");
            }
        }
        Ok(())
    }

    fn read_options(&mut self, fields: Fields<'_>) -> Result<()> {
        let kind = fields.text("model_type")?.unwrap_or("SentenceTransformer");
        ensure!(
            kind == "SentenceTransformer",
            "model_type is \"{kind}\", this program computes \"SentenceTransformer\""
        );
        if let Some(prompts) = fields.get("prompts") {
            let expected = || mismatch("prompts", "an object of strings", prompts);
            for (name, text) in prompts.as_object().ok_or_else(expected)? {
                let text = if text.is_null() { "" } else { text.as_str().ok_or_else(expected)? };
                self.prompts.insert(name.clone(), text.to_owned());
            }
        }
        if let Some(name) = fields.text("default_prompt_name")? {
            self.named_prompt(name).context("default_prompt_name")?;
            self.default_prompt = Some(name.to_owned());
        }
        if let Some(name) = fields.text("similarity_fn_name")? {
            self.similarity = match Similarity::from_str(name, false) {
                Ok(similarity) => similarity,
                Err(_) => bail!(
                    "similarity_fn_name is \"{name}\", this program computes cosine, dot, euclidean and manhattan"
                ),
            };
        }
        self.dimensions = fields.size("truncate_dim")?;
        Ok(())
    }
}

impl Pooling {
    /// Every mode with its name, and the flag that older versions have for it, in the order in which several are joined.
    const ALL: [(Self, &'static str, &'static str); 6] = [
        (Self::Cls, "cls", "cls_token"),
        (Self::Max, "max", "max_tokens"),
        (Self::Mean, "mean", "mean_tokens"),
        (Self::MeanSqrtLen, "mean_sqrt_len_tokens", "mean_sqrt_len_tokens"),
        (Self::WeightedMean, "weightedmean", "weightedmean_tokens"),
        (Self::LastToken, "lasttoken", "lasttoken"),
    ];

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(mode, ..)| *mode == self).map_or("", |(_, name, _)| name)
    }

    fn of_name(name: &str) -> Result<Self> {
        match Self::ALL.iter().find(|(_, known, _)| *known == name) {
            Some((mode, ..)) => Ok(*mode),
            None => bail!(
                "the pooling mode is \"{name}\", this program computes {}",
                Self::ALL.map(|(_, name, _)| name).join(", ")
            ),
        }
    }
}

fn pooling(fields: Fields<'_>) -> Result<Vec<Pooling>> {
    match fields.get("pooling_mode") {
        Some(Value::String(mode)) => return Ok(vec![Pooling::of_name(mode)?]),
        Some(Value::Array(modes)) if !modes.is_empty() => {
            let name = |mode: &Value| Pooling::of_name(mode.as_str().unwrap_or_default());
            return modes.iter().map(name).collect();
        }
        Some(other) => return Err(mismatch("pooling_mode", "a mode or a list of modes", other)),
        None => {}
    }
    let prefix = "pooling_mode_";
    let known = |key: &str| Pooling::ALL.iter().any(|(_, _, flag)| key.strip_prefix(prefix) == Some(flag));
    let is_set = |(key, value): &(&String, &Value)| key.starts_with(prefix) && **value == Value::Bool(true);
    if let Some((key, _)) = fields.0.iter().filter(is_set).find(|(key, _)| !known(key)) {
        bail!("{key} is true, a mode that this program does not compute");
    }
    let mut modes = Vec::new();
    for (mode, _, flag) in Pooling::ALL {
        if fields.flag(&format!("{prefix}{flag}"))? {
            modes.push(mode);
        }
    }
    // As sentence-transformers does where all flags are false.
    Ok(if modes.is_empty() { vec![Pooling::Mean] } else { modes })
}

fn dense(fields: Fields<'_>, folder: &str) -> Result<Dense> {
    of_sentences(fields)?;
    let name = fields.text("activation_function")?.unwrap_or("torch.nn.modules.activation.Tanh");
    let activation = match name.rsplit('.').next().unwrap_or_default() {
        "Identity" if name.starts_with("torch.") => DenseActivation::Identity,
        "Tanh" if name.starts_with("torch.") => DenseActivation::Tanh,
        "ReLU" if name.starts_with("torch.") => DenseActivation::Of(Activation::Relu),
        "GELU" if name.starts_with("torch.") => DenseActivation::Of(Activation::Gelu),
        "SiLU" if name.starts_with("torch.") => DenseActivation::Of(Activation::Silu),
        "Sigmoid" if name.starts_with("torch.") => DenseActivation::Of(Activation::Sigmoid),
        _ => bail!(
            "activation_function is \"{name}\", this program computes torch's Identity, Tanh, ReLU, GELU, SiLU and Sigmoid"
        ),
    };
    Ok(Dense {
        folder: folder.to_owned(),
        inputs: fields.required_size("in_features")?,
        outputs: fields.required_size("out_features")?,
        bias: fields.get("bias").is_none() || fields.flag("bias")?,
        activation,
        residual: fields.flag("use_residual")?,
    })
}

/// Refuses what works on the vectors of tokens.
fn of_sentences(fields: Fields<'_>) -> Result<()> {
    for key in ["module_input_name", "module_output_name"] {
        let name = fields.text(key)?.unwrap_or("sentence_embedding");
        ensure!(
            name == "sentence_embedding",
            "{key} is \"{name}\", this program computes \"sentence_embedding\""
        );
    }
    Ok(())
}
