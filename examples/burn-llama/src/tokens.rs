//! Text to tokens and back, with the tokenizer of the checkpoint.

use anyhow::{Result, anyhow, bail};
use tokenizers::Tokenizer;

use crate::source::Source;

/// A tokenizer, and which tokens end a text.
pub(crate) struct Tokens {
    tokenizer: Tokenizer,
    vocabulary: usize,
    ends: Vec<u32>,
    name: String,
}

impl Tokens {
    pub(crate) fn new(source: &Source) -> Result<Self> {
        let name = format!("{}: tokenizer.json", source.name);
        let mut tokenizer =
            Tokenizer::from_bytes(source.tokenizer()?).map_err(|error| anyhow!("{name}: {error}"))?;
        // Both are for training in batches; here rows are padded as tensors.
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| anyhow!("{name}: {error}"))?;
        let (vocabulary, ends) = (source.config.vocabulary, source.config.ends.clone());
        let tokens = Self { tokenizer, vocabulary, ends, name };
        tokens.check(&tokens.ends)?;
        Ok(tokens)
    }

    /// With what the tokenizer puts in front.
    pub(crate) fn prompt(&self, text: &str) -> Result<Vec<u32>> {
        let tokens = self.encode(text, true)?;
        if tokens.is_empty() {
            bail!("{}: {text:?} has no tokens", self.name);
        }
        Ok(tokens)
    }

    /// What should follow a prompt, the end included.
    pub(crate) fn answer(&self, text: &str) -> Result<Vec<u32>> {
        let mut tokens = self.encode(text, false)?;
        tokens.extend(self.ends.first());
        Ok(tokens)
    }

    /// Without special tokens.
    pub(crate) fn text(&self, tokens: &[u32]) -> Result<String> {
        self.tokenizer.decode(tokens, true).map_err(|error| anyhow!("{}: {error}", self.name))
    }

    pub(crate) fn is_end(&self, token: u32) -> bool {
        self.ends.contains(&token)
    }

    fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let encoding = self.tokenizer.encode_fast(text, special);
        let encoding = encoding.map_err(|error| anyhow!("{}: {error}", self.name))?;
        self.check(encoding.get_ids())?;
        Ok(encoding.get_ids().to_vec())
    }

    /// A token that the model does not know would be a panic in its embedding.
    fn check(&self, tokens: &[u32]) -> Result<()> {
        match tokens.iter().find(|&&token| token as usize >= self.vocabulary) {
            Some(token) => bail!(
                "{}: there is a token {token}, but the vocab_size of config.json is {}",
                self.name,
                self.vocabulary
            ),
            None => Ok(()),
        }
    }
}
