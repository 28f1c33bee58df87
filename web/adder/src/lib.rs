//! Sums, answered by a small Llama: its weights come from a web server by ranges, and Candle computes.

mod ranges;

use std::collections::HashMap;
use std::fmt::Display;

use candle_transformers::models::llama::{Cache, Config, Llama, LlamaConfig};
use js_sys::JsString;
use wasm_bindgen::prelude::*;
use weighbridge_candle::Loader;
use weighbridge_candle::candle_core::{DType, Device, Result, Tensor};
use weighbridge_candle::weighbridge::index::Index;
use weighbridge_candle::weighbridge::{Checkpoint, LoadOptions};

use crate::ranges::{RangeSource, told};

/// The model, ready to add.
#[wasm_bindgen]
pub struct Adder {
    model: Llama,
    config: Config,
    vocabulary: HashMap<String, u32>,
}

/// The tokens that begin and end a text.
const BEGIN: u32 = 1;
const END: u32 = 2;
/// An answer has fewer.
const MOST: usize = 8;

#[wasm_bindgen]
impl Adder {
    /// Loads the model of three files, given as text, and of the shards that the index names.
    ///
    /// # Errors
    ///
    /// Fails in one line when something cannot be fetched, or is not what it should be.
    #[wasm_bindgen(constructor)]
    pub fn new(config: &str, tokenizer: &str, index: &str) -> std::result::Result<Adder, JsString> {
        let config: LlamaConfig = serde_json::from_str(config).map_err(line)?;
        let tokenizer: serde_json::Value = serde_json::from_str(tokenizer).map_err(line)?;
        let vocabulary = serde_json::from_value(tokenizer["model"]["vocab"].clone()).map_err(line)?;
        let index = Index::parse(index).map_err(line)?;
        let shards = index.shards().map(|name| Ok((name, RangeSource::open(name)?)));
        let shards = shards.collect::<std::io::Result<Vec<_>>>().map_err(line)?;
        let checkpoint = Checkpoint::options().from_sources(shards, Some(&index)).map_err(line)?;
        let options = LoadOptions::new().progress(|progress| {
            told(progress.bytes_done as f64, progress.bytes_total as f64);
        });
        let weights = Loader::new(&checkpoint).dtype(DType::F32).options(options);
        let weights = weights.var_builder().map_err(line)?;
        let config = config.into_config(false);
        let model = Llama::load(weights, &config).map_err(line)?;
        Ok(Self { model, config, vocabulary })
    }

    /// The answer to a sum such as `12+30`.
    ///
    /// # Errors
    ///
    /// Fails for what is no sum.
    pub fn add(&self, sum: &str) -> std::result::Result<String, JsString> {
        let mut tokens = vec![BEGIN];
        for sign in sum.chars().filter(|sign| !sign.is_whitespace()).chain(['=']) {
            let token = self.vocabulary.get(&*sign.to_string());
            tokens.push(*token.ok_or_else(|| line(format!("{sign:?} is neither a digit nor a plus")))?);
        }
        self.answer(&tokens).map_err(line)
    }

    fn answer(&self, tokens: &[u32]) -> Result<String> {
        let mut cache = Cache::new(true, DType::F32, &self.config, &Device::Cpu)?;
        let (mut given, mut at, mut text) = (tokens.to_vec(), 0, String::new());
        for _ in 0..MOST {
            let input = Tensor::new(&*given, &Device::Cpu)?.unsqueeze(0)?;
            let token =
                self.model.forward(&input, at, &mut cache)?.squeeze(0)?.argmax(0)?.to_scalar::<u32>()?;
            if token == END {
                break;
            }
            let known = self.vocabulary.iter().find(|(_, other)| **other == token);
            text.push_str(known.map_or("?", |(sign, _)| sign));
            at += given.len();
            given = vec![token];
        }
        Ok(text)
    }
}

/// An error as the page shows it.
fn line(error: impl Display) -> JsString {
    error.to_string().into()
}
