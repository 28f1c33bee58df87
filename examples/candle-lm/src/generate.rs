//! From a prompt to its continuation.

use anyhow::{Result, bail};
use candle_core::DType;
use examples_support::lm::{Answer, Sampler, Text};
use examples_support::weights::caught;

use crate::cli::Cli;
use crate::model::Model;

/// Answers prompts with one model.
pub(crate) struct Generator<'a> {
    model: &'a mut Model,
    text: &'a Text,
    cli: &'a Cli,
}

impl<'a> Generator<'a> {
    pub(crate) fn new(model: &'a mut Model, text: &'a Text, cli: &'a Cli) -> Self {
        Self { model, text, cli }
    }

    /// Continues a prompt, and shows pieces of the text as they come.
    pub(crate) fn answer(&mut self, prompt: &[u32], show: impl FnMut(&str) -> Result<()>) -> Result<Answer> {
        let text = self.text;
        text.answer(prompt, show, |each| self.generate(prompt, each))
    }

    /// The loop: the prompt, and then each token on its own; the model remembers those before.
    fn generate(&mut self, prompt: &[u32], each: &mut dyn FnMut(u32) -> Result<()>) -> Result<Vec<u32>> {
        let Model { language, eos, positions, longest_batch, logit_scale, .. } = &mut *self.model;
        let most = self.cli.max_new_tokens.min(positions.saturating_sub(prompt.len()));
        if prompt.len() > *positions {
            bail!("the text has {} tokens, and there are {positions} positions (--context)", prompt.len());
        }
        let mut sampler = Sampler::new(self.cli.sampling, prompt);
        let mut tokens = Vec::new();
        if most == 0 {
            return Ok(tokens);
        }
        caught(|| language.reset())?;
        let mut position = 0;
        let mut logits = None;
        for batch in batches(prompt, *longest_batch) {
            logits = Some(caught(|| language.forward(batch, position))?);
            position += batch.len();
        }
        while let Some(vector) = logits.take() {
            let token = sampler.choose(vector.to_dtype(DType::F32)?.to_vec1()?, *logit_scale)?;
            tokens.push(token);
            each(token)?;
            if eos.contains(&token) || tokens.len() == most {
                break;
            }
            logits = Some(caught(|| language.forward(&[token], position))?);
            position += 1;
        }
        Ok(tokens)
    }
}

/// The whole prompt at once, or where that is longer than what is right, the rest token by token.
fn batches(prompt: &[u32], longest: usize) -> impl Iterator<Item = &[u32]> {
    let (first, rest) = prompt.split_at(prompt.len().min(longest));
    std::iter::once(first).chain(rest.chunks(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_prompts_end_token_by_token() {
        let all = |longest| batches(&[1, 2, 3, 4], longest).map(<[u32]>::to_vec).collect::<Vec<_>>();
        assert_eq!(all(usize::MAX), [vec![1, 2, 3, 4]]);
        assert_eq!(all(4), [vec![1, 2, 3, 4]]);
        assert_eq!(all(2), [vec![1, 2], vec![3], vec![4]]);
    }
}
