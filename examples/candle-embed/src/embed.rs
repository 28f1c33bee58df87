//! From a checkpoint to an embedder, and from sentences to scores.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail, ensure};
use candle_core::{DType, Device, IndexOp, Tensor};
use candle_transformers::models::bert::BertModel;
use tokenizers::{PostProcessor, Tokenizer, TruncationParams};
use weighbridge::Checkpoint;
use weighbridge_candle::Loader;

use crate::config::{self, Pooling};
use crate::inventory;

/// Turns sentences into vectors.
pub(crate) struct Embedder {
    bert: BertModel,
    tokenizer: Tokenizer,
    pooling: Pooling,
    vocabulary: usize,
    pub(crate) loaded: Loaded,
}

/// What a load moved, and how long it took.
pub(crate) struct Loaded {
    pub(crate) tensors: usize,
    pub(crate) shards: usize,
    pub(crate) bytes: u64,
    /// From opening the checkpoint to the model built.
    pub(crate) seconds: f64,
    /// What is not as it should be in the files, but did not stand in the way.
    pub(crate) warnings: Vec<String>,
}

/// A sentence with its score.
pub(crate) struct Ranked<'a> {
    pub(crate) sentence: &'a str,
    /// Cosine, from -1 to 1.
    pub(crate) score: f32,
    /// Position among the given sentences, from 0.
    pub(crate) index: usize,
}

impl Embedder {
    /// Loads a BERT and its tokenizer; on the CPU in f32, whatever type is stored.
    ///
    /// # Errors
    ///
    /// Whatever is wrong with the checkpoint, the JSON files beside it, or all of them together,
    /// before data moves; a failed read after that.
    pub(crate) fn load(path: &Path) -> Result<Self> {
        let at = || path.display().to_string();
        let start = Instant::now();
        let checkpoint = Checkpoint::open(path)?.dequantized()?;
        if let Some(codes) = checkpoint.quantized().next() {
            return Err(codes.refusal(&codes.weight(), "this program computes with weights").into());
        }
        let directory = checkpoint
            .directory()
            .ok_or_else(|| anyhow!("{}: there is no directory to look for config.json in", path.display()))?;
        let settings = config::read(directory)?;
        let prefix = inventory::check(&checkpoint, &settings.bert).with_context(at)?;

        let mut weights = Loader::new(&checkpoint).dtype(DType::F32).device(&Device::Cpu).var_builder()?;
        if !prefix.is_empty() {
            weights = weights.pp(prefix);
        }
        let bert = BertModel::load(weights, &settings.bert).with_context(at)?;
        let seconds = start.elapsed().as_secs_f64();

        Ok(Self {
            bert,
            tokenizer: read_tokenizer(directory, settings.max_tokens)?,
            pooling: settings.pooling,
            vocabulary: settings.bert.vocab_size,
            loaded: Loaded {
                tensors: checkpoint.len(),
                shards: checkpoint.shards().len(),
                bytes: checkpoint.byte_len(),
                seconds,
                warnings: checkpoint.warnings().to_vec(),
            },
        })
    }

    /// Scores every sentence against the query, the best first.
    pub(crate) fn rank<'a>(&self, query: &str, sentences: &'a [String]) -> Result<Vec<Ranked<'a>>> {
        let query = self.embed(query)?;
        let mut ranking = Vec::with_capacity(sentences.len());
        for (index, sentence) in sentences.iter().enumerate() {
            let score = cosine(&query, &self.embed(sentence)?);
            ranking.push(Ranked { sentence, score, index });
        }
        ranking.sort_by(|a, b| b.score.total_cmp(&a.score));
        Ok(ranking)
    }

    /// The vector of one text. Each goes through the model alone, so there is no padding that would
    /// have to be masked out again.
    fn embed(&self, text: &str) -> Result<Vec<f32>> {
        let encoding = self
            .tokenizer
            .encode_fast(text, true)
            .map_err(|e| anyhow!("the text cannot be tokenized: {e}"))?;
        let tokens = encoding.get_ids();
        ensure!(!tokens.is_empty(), "a text has no tokens");
        if let Some(token) = tokens.iter().find(|&&token| token as usize >= self.vocabulary) {
            bail!(
                "tokenizer.json gives token {token}, but the vocab_size of config.json is {}",
                self.vocabulary
            );
        }
        let tokens = Tensor::new(tokens, &Device::Cpu)?.unsqueeze(0)?;
        let states = self.bert.forward(&tokens, &tokens.zeros_like()?, None)?.squeeze(0)?;
        let vector = match self.pooling {
            Pooling::Mean => states.mean(0)?,
            Pooling::Cls => states.i(0)?,
        };
        let vector: Vec<f32> = vector.to_vec1()?;
        ensure!(
            vector.iter().all(|value| value.is_finite()),
            "the model's output is not finite: the weights are damaged"
        );
        Ok(vector)
    }
}

/// Reads the tokenizer and replaces the padding and truncation that it was saved with: those of
/// all-MiniLM-L6-v2 pad every text to 128 tokens, and cut it there, though the model reads 256.
fn read_tokenizer(directory: &Path, max_tokens: usize) -> Result<Tokenizer> {
    let path = directory.join("tokenizer.json");
    let json = std::fs::read(&path).with_context(|| path.display().to_string())?;
    let at = |e| anyhow!("{}: {e}", path.display());
    let mut tokenizer = Tokenizer::from_bytes(&json).map_err(at)?;
    tokenizer.with_padding(None);

    let added = tokenizer.get_post_processor().map_or(0, |processor| processor.added_tokens(false));
    ensure!(
        max_tokens > added,
        "{}: texts are cut to {max_tokens} tokens, of which the tokenizer adds {added} itself",
        path.display()
    );
    let truncation = TruncationParams { max_length: max_tokens, ..TruncationParams::default() };
    tokenizer.with_truncation(Some(truncation)).map_err(at)?;
    Ok(tokenizer)
}

/// The cosine of the angle between two vectors, summed in double precision. A vector of zeros is at
/// right angles to everything.
#[expect(clippy::cast_possible_truncation, reason = "a score has no more digits than the vectors")]
fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot =
        |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum() };
    let lengths = (dot(a, a) * dot(b, b)).sqrt();
    (dot(a, b) / lengths.max(f64::MIN_POSITIVE)) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosines() {
        assert_eq!(cosine(&[3.0, 4.0], &[6.0, 8.0]), 1.0);
        assert_eq!(cosine(&[3.0, 4.0], &[-3.0, -4.0]), -1.0);
        assert_eq!(cosine(&[1.0, 0.0], &[0.0, 5.0]), 0.0);
        assert_eq!(cosine(&[0.0, 0.0], &[0.0, 5.0]), 0.0);
    }
}
