//! Between text and tokens.

use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail, ensure};
use tokenizers::Tokenizer;

use crate::model::Found;

/// The tokenizer that lies beside the weights.
pub(crate) struct Text {
    pub(crate) tokenizer: Tokenizer,
    vocabulary: usize,
    place: PathBuf,
}

impl Text {
    pub(crate) fn open(found: &Found) -> Result<Self> {
        let name = "tokenizer.json";
        let Some(path) = found.beside.find(name)? else {
            bail!("{}: there is no such file beside the weights", found.place.join(name).display());
        };
        let at = || path.display().to_string();
        let text = std::fs::read(&path).with_context(at)?;
        let mut tokenizer = Tokenizer::from_bytes(&text).map_err(|e| anyhow!("{}: {e}", at()))?;
        // Both are for training in batches; transformers, too, ignores them unless asked.
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|e| anyhow!("{}: {e}", at()))?;
        Ok(Self { tokenizer, vocabulary: found.vocabulary(), place: found.place.clone() })
    }

    /// The tokens of a text that the model is to continue.
    pub(crate) fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.tokens(text, true)
    }

    /// The tokens of a conversation, whose template wrote the special ones.
    pub(crate) fn encode_chat(&self, text: &str) -> Result<Vec<u32>> {
        self.tokens(text, false)
    }

    pub(crate) fn decode(&self, tokens: &[u32]) -> Result<String> {
        self.tokenizer.decode(tokens, true).map_err(|e| anyhow!("tokenizer: {e}"))
    }

    fn tokens(&self, text: &str, adds_special: bool) -> Result<Vec<u32>> {
        let encoding = self
            .tokenizer
            .encode_fast(text, adds_special)
            .map_err(|e| anyhow!("the prompt cannot be tokenized: {e}"))?;
        let tokens = encoding.get_ids().to_vec();
        ensure!(
            !tokens.is_empty(),
            "the prompt has no tokens: the text is empty and the tokenizer adds no token of its own"
        );
        let vocabulary = self.vocabulary;
        if let Some(token) = tokens.iter().find(|&&token| token as usize >= vocabulary) {
            bail!(
                "{}: tokenizer.json gives token {token}, but the vocab_size of config.json is {vocabulary}",
                self.place.display()
            );
        }
        Ok(tokens)
    }
}
