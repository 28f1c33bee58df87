//! Between text and tokens.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail, ensure};
use tokenizers::Tokenizer;

/// The tokenizer that lies beside the weights.
#[derive(Debug)]
pub struct Text {
    tokenizer: Tokenizer,
    vocabulary: usize,
    place: PathBuf,
}

/// A continuation.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// With the token that ended it, where there was one, as in transformers' `generate`.
    pub tokens: Vec<u32>,
    /// Without special tokens.
    pub text: String,
    /// For all of it, the prompt included.
    pub seconds: f64,
}

impl Answer {
    /// Adds the tokens and the time of another one.
    pub fn add(&mut self, other: &Self) {
        self.tokens.extend(&other.tokens);
        self.seconds += other.seconds;
    }
}

impl Text {
    /// Reads `tokenizer.json`, which is at `file` if there is one beside the weights at `place`, for a model that knows so
    /// many tokens.
    ///
    /// # Errors
    ///
    /// There is none, or it is wrong.
    pub fn open(file: Option<PathBuf>, place: &Path, vocabulary: usize) -> Result<Self> {
        let Some(path) = file else {
            bail!("{}: there is no such file beside the weights", place.join("tokenizer.json").display());
        };
        let at = || path.display().to_string();
        let text = std::fs::read(&path).with_context(at)?;
        let mut tokenizer = Tokenizer::from_bytes(&text).map_err(|e| anyhow!("{}: {e}", at()))?;
        // Both are for training in batches; transformers, too, ignores them unless asked.
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|e| anyhow!("{}: {e}", at()))?;
        Ok(Self { tokenizer, vocabulary, place: place.to_owned() })
    }

    /// The tokens of a text that the model is to continue.
    ///
    /// # Errors
    ///
    /// It has none, or some that the model does not know.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.tokens(text, true)
    }

    /// The tokens of a text without those that begin one: of a conversation, whose template wrote them, or of an answer.
    ///
    /// # Errors
    ///
    /// As [`encode`](Self::encode).
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        self.tokens(text, false)
    }

    /// The text of tokens, without special ones.
    ///
    /// # Errors
    ///
    /// The tokenizer's decoder fails.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        self.tokenizer.decode(tokens, true).map_err(|e| anyhow!("tokenizer: {e}"))
    }

    /// The continuation of a prompt that `generate` makes, which says each of its tokens as it comes; pieces of the text
    /// are shown as they come.
    ///
    /// # Errors
    ///
    /// Those of `generate` and `show`.
    pub fn answer(
        &self,
        prompt: &[u32],
        mut show: impl FnMut(&str) -> Result<()>,
        generate: impl FnOnce(&mut dyn FnMut(u32) -> Result<()>) -> Result<Vec<u32>>,
    ) -> Result<Answer> {
        // What a token adds to the text depends on those before it, so the stream has to have seen the prompt.
        let mut stream = self.tokenizer.decode_stream(true);
        // A decoder may take back text that it gave (a byte that turns out to begin another character). The
        // stream then ends; the whole text is decoded at once below.
        let mut streams = prompt.iter().all(|&token| stream.step(token).is_ok());
        let start = Instant::now();
        let tokens = generate(&mut |token| match stream.step(token) {
            Ok(Some(piece)) if streams => show(&piece),
            Ok(_) => Ok(()),
            Err(_) => {
                streams = false;
                Ok(())
            }
        })?;
        let seconds = start.elapsed().as_secs_f64();
        Ok(Answer { text: self.decode(&tokens)?, tokens, seconds })
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
