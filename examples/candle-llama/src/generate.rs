//! From a prompt to its continuation.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail, ensure};
use candle_core::Tensor;
use candle_transformers::generation::LogitsProcessor;
use candle_transformers::models::llama::{Cache, Config};
use tokenizers::Tokenizer;

use crate::config::eos_tokens;
use crate::model::Model;

/// How the next token is chosen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sampling {
    /// 0 is greedy.
    pub(crate) temperature: f64,
    pub(crate) seed: u64,
}

/// Answers prompts with one model.
pub(crate) struct Prompter<'a> {
    model: &'a Model,
    tokenizer: Tokenizer,
    sampling: Sampling,
}

/// A continuation.
pub(crate) struct Answer {
    /// With the token that ended it, where there was one, as in transformers' `generate`.
    pub(crate) tokens: Vec<u32>,
    /// Without special tokens.
    pub(crate) text: String,
    /// For all of it, the prompt included.
    pub(crate) seconds: f64,
}

impl<'a> Prompter<'a> {
    /// Reads the tokenizer that lies beside the weights.
    pub(crate) fn new(model: &'a Model, sampling: Sampling) -> Result<Self> {
        Ok(Self { model, tokenizer: read_tokenizer(&model.directory)?, sampling })
    }

    /// Continues a prompt with at most `max_new_tokens` tokens, and shows pieces of the text as
    /// they come.
    pub(crate) fn answer(
        &self,
        prompt: &str,
        max_new_tokens: usize,
        mut show: impl FnMut(&str) -> Result<()>,
    ) -> Result<Answer> {
        let prompt = self.encode(prompt)?;

        // What a token adds to the text depends on those before it, so the stream has to have seen
        // the prompt.
        let mut stream = self.tokenizer.decode_stream(true);
        // A decoder may take back text that it gave (a byte that turns out to begin another character). The
        // stream then ends; the whole text is decoded at once below.
        let mut streams = prompt.iter().all(|&token| stream.step(token).is_ok());
        let start = Instant::now();
        let tokens = self.generate(&prompt, max_new_tokens, |token| match stream.step(token) {
            Ok(Some(piece)) if streams => show(&piece),
            Ok(_) => Ok(()),
            Err(_) => {
                streams = false;
                Ok(())
            }
        })?;
        let seconds = start.elapsed().as_secs_f64();

        let text = self.tokenizer.decode(&tokens, true).map_err(|e| anyhow!("tokenizer: {e}"))?;
        Ok(Answer { tokens, text, seconds })
    }

    fn encode(&self, prompt: &str) -> Result<Vec<u32>> {
        let encoding = self
            .tokenizer
            .encode_fast(prompt, true)
            .map_err(|e| anyhow!("the prompt cannot be tokenized: {e}"))?;
        let tokens = encoding.get_ids().to_vec();
        ensure!(
            !tokens.is_empty(),
            "the prompt has no tokens: the text is empty and the tokenizer adds no token of its own"
        );
        let vocabulary = self.model.config.vocab_size;
        if let Some(token) = tokens.iter().find(|&&token| token as usize >= vocabulary) {
            bail!(
                "{}: tokenizer.json gives token {token}, but the vocab_size of config.json is {vocabulary}",
                self.model.directory.display()
            );
        }
        Ok(tokens)
    }

    fn generate(
        &self,
        prompt: &[u32],
        max_new_tokens: usize,
        mut each: impl FnMut(u32) -> Result<()>,
    ) -> Result<Vec<u32>> {
        let Model { llama, config, device, dtype, .. } = self.model;
        // The cache's table of rotations gets as many rows as there can be positions here, be that
        // less or more than the checkpoint's nominal limit.
        let positions = Config { max_position_embeddings: prompt.len() + max_new_tokens, ..config.clone() };
        let mut cache = Cache::new(true, *dtype, &positions, device)?;
        let mut sampler = Sampler::new(self.sampling);
        let eos = eos_tokens(config);

        let mut tokens = Vec::new();
        let mut position = 0;
        while tokens.len() < max_new_tokens {
            let input = match tokens.last() {
                None => prompt,
                Some(last) => std::slice::from_ref(last),
            };
            let batch = Tensor::new(input, device)?.unsqueeze(0)?;
            let logits = llama.forward(&batch, position, &mut cache)?.squeeze(0)?;
            position += input.len();

            let token = sampler.choose(&logits)?;
            tokens.push(token);
            each(token)?;
            if eos.contains(&token) {
                break;
            }
        }
        Ok(tokens)
    }
}

fn read_tokenizer(directory: &Path) -> Result<Tokenizer> {
    let path = directory.join("tokenizer.json");
    let text = std::fs::read(&path).with_context(|| path.display().to_string())?;
    let mut tokenizer = Tokenizer::from_bytes(&text).map_err(|e| anyhow!("{}: {e}", path.display()))?;
    // Both are for training in batches; transformers, too, ignores them unless asked.
    tokenizer.with_padding(None);
    tokenizer.with_truncation(None).map_err(|e| anyhow!("{}: {e}", path.display()))?;
    Ok(tokenizer)
}

enum Sampler {
    Greedy,
    Random(Box<LogitsProcessor>),
}

impl Sampler {
    fn new(sampling: Sampling) -> Self {
        if sampling.temperature == 0.0 {
            return Self::Greedy;
        }
        Self::Random(Box::new(LogitsProcessor::new(sampling.seed, Some(sampling.temperature), None)))
    }

    /// Chooses a token from a vector of logits.
    fn choose(&mut self, logits: &Tensor) -> Result<u32> {
        let values: Vec<f32> = logits.to_vec1()?;
        ensure!(
            values.iter().all(|value| value.is_finite()),
            "the model's output is not finite: the weights are damaged, or too large for the dtype"
        );
        match self {
            Self::Greedy => argmax(&values),
            Self::Random(processor) => Ok(processor.sample(logits)?),
        }
    }
}

/// The first of the largest, as in torch.
fn argmax(values: &[f32]) -> Result<u32> {
    let mut best = 0;
    for (index, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = index;
        }
    }
    Ok(u32::try_from(best)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn choices(temperature: f64, seed: u64) -> Vec<u32> {
        let logits = Tensor::new(&[0.5f32, 2.0, -1.0, 2.0, 1.9], &Device::Cpu).unwrap();
        let mut sampler = Sampler::new(Sampling { temperature, seed });
        (0..32).map(|_| sampler.choose(&logits).unwrap()).collect()
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        assert_eq!(choices(0.0, 1), [1; 32]);
    }

    #[test]
    fn a_seed_decides() {
        assert_eq!(choices(1.0, 1), choices(1.0, 1));
        assert_ne!(choices(1.0, 1), choices(1.0, 2));
        assert!(choices(1e-9, 1).iter().all(|token| [1, 3].contains(token)));
    }

    #[test]
    fn what_is_not_a_number_is_an_error() {
        let logits = Tensor::new(&[0.0f32, f32::NAN], &Device::Cpu).unwrap();
        for temperature in [0.0, 1.0] {
            assert!(Sampler::new(Sampling { temperature, seed: 0 }).choose(&logits).is_err());
        }
    }
}
