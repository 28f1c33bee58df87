//! From text to tokens.

use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail, ensure};
use examples_support::Fields;
use tokenizers::normalizers::{Lowercase, NormalizerWrapper, Sequence};
use tokenizers::{PostProcessor, Tokenizer, TruncationDirection, TruncationParams};

use crate::family::Blueprint;
use crate::files::Files;
use crate::sentence::Sentence;

/// Without any other word, as models of its kind were trained.
const DEFAULT_MAX_TOKENS: usize = 512;

/// The tokenizer that lies beside the weights.
pub(crate) struct Text {
    tokenizer: Tokenizer,
    path: PathBuf,
    vocabulary: usize,
    /// Longer texts are cut to so many tokens, those that the tokenizer adds included.
    pub(crate) max_tokens: usize,
}

impl Text {
    /// Reads the tokenizer and replaces the padding and truncation that it was saved with: those of all-MiniLM-L6-v2
    /// pad every text to 128 tokens, and cut it there, though the model reads 256.
    ///
    /// # Errors
    ///
    /// One line that names the file, or the option.
    pub(crate) fn open(
        files: &Files,
        sentence: &Sentence,
        blueprint: &Blueprint,
        asked: Option<usize>,
    ) -> Result<Self> {
        let path = files.required("tokenizer.json")?;
        let at = |e| anyhow!("{}: {e}", path.display());
        let json = std::fs::read(&path).with_context(|| path.display().to_string())?;
        let mut tokenizer = Tokenizer::from_bytes(&json).map_err(at)?;
        tokenizer.with_padding(None);
        if sentence.lower_case {
            let before = tokenizer.get_normalizer().cloned();
            let all = [NormalizerWrapper::Lowercase(Lowercase)].into_iter().chain(before).collect();
            let all = NormalizerWrapper::Sequence(Sequence::new(all));
            tokenizer.with_normalizer(Some(all)).map_err(at)?;
        }

        let saved = files.read_model("tokenizer_config.json", saved)?.unwrap_or_default();
        let max_tokens = max_tokens(sentence, blueprint, saved.max_tokens, asked)?;
        let added = tokenizer.get_post_processor().map_or(0, |processor| processor.added_tokens(false));
        ensure!(
            max_tokens > added,
            "{}: texts are cut to {max_tokens} tokens, of which the tokenizer adds {added} itself",
            path.display()
        );
        let direction = if saved.cuts_left { TruncationDirection::Left } else { TruncationDirection::Right };
        let truncation =
            TruncationParams { max_length: max_tokens, direction, ..TruncationParams::default() };
        tokenizer.with_truncation(Some(truncation)).map_err(at)?;
        Ok(Self { tokenizer, path, vocabulary: blueprint.vocabulary, max_tokens })
    }

    /// The tokens of texts, each with the prompt before it.
    ///
    /// # Errors
    ///
    /// A text without tokens, and a token that the model does not have.
    pub(crate) fn encode(&self, prompt: &str, texts: &[String]) -> Result<Vec<Vec<u32>>> {
        let prompted = texts.iter().map(|text| format!("{prompt}{text}")).collect();
        let encodings = self
            .tokenizer
            .encode_batch_fast(prompted, true)
            .map_err(|e| anyhow!("a text cannot be tokenized: {e}"))?;
        let mut all = Vec::with_capacity(texts.len());
        for (index, encoding) in encodings.iter().enumerate() {
            let tokens = encoding.get_ids();
            ensure!(
                !tokens.is_empty(),
                "text {index} has no tokens: it is empty and the tokenizer adds no token of its own"
            );
            if let Some(token) = tokens.iter().find(|&&token| token as usize >= self.vocabulary) {
                bail!(
                    "{}: gives token {token}, but the vocab_size of config.json is {}",
                    self.path.display(),
                    self.vocabulary
                );
            }
            all.push(tokens.to_vec());
        }
        Ok(all)
    }

    /// How many tokens a prompt has at the start of a text.
    pub(crate) fn prompt_len(&self, prompt: &str) -> Result<usize> {
        if prompt.is_empty() {
            return Ok(0);
        }
        let alone = self
            .tokenizer
            .encode_fast(prompt, true)
            .map_err(|e| anyhow!("the prompt cannot be tokenized: {e}"))?;
        let ends = alone.get_special_tokens_mask().last() == Some(&1);
        Ok(alone.len() - usize::from(ends))
    }
}

/// What tokenizer_config.json says.
#[derive(Default)]
struct Saved {
    max_tokens: Option<usize>,
    cuts_left: bool,
}

fn saved(fields: Fields<'_>) -> Result<Saved> {
    // Where there is no limit, transformers writes a number of 31 digits.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is in this range")]
    let limit = |limit: f64| (1.0..1e7).contains(&limit).then_some(limit as usize);
    Ok(Saved {
        max_tokens: fields.number("model_max_length")?.and_then(limit),
        cuts_left: fields.text("truncation_side")? == Some("left"),
    })
}

/// What sentence-transformers cuts texts to, if the model has so many positions; `asked` is what the command line says.
fn max_tokens(
    sentence: &Sentence,
    blueprint: &Blueprint,
    saved: Option<usize>,
    asked: Option<usize>,
) -> Result<usize> {
    let limit = blueprint.limit.unwrap_or(usize::MAX);
    if let Some(asked) = asked {
        ensure!(asked <= limit, "--max-length {asked}: {} has {limit} positions here", blueprint.who);
        return Ok(asked);
    }
    let trained = [saved, blueprint.positions].into_iter().flatten().min();
    Ok(sentence.max_tokens.or(trained).unwrap_or(DEFAULT_MAX_TOKENS).min(limit))
}
