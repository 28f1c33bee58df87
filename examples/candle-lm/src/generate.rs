//! From a prompt to its continuation.

use std::time::Instant;

use anyhow::{Result, bail};
use examples_support::weights::caught;

use crate::cli::Cli;
use crate::model::Model;
use crate::sampling::Sampler;
use crate::text::Text;

/// Answers prompts with one model.
pub(crate) struct Generator<'a> {
    model: &'a mut Model,
    text: &'a Text,
    cli: &'a Cli,
}

/// A continuation.
#[derive(Default)]
pub(crate) struct Answer {
    /// With the token that ended it, where there was one, as in transformers' `generate`.
    pub(crate) tokens: Vec<u32>,
    /// Without special tokens.
    pub(crate) text: String,
    /// For all of it, the prompt included.
    pub(crate) seconds: f64,
}

impl Answer {
    /// Adds the tokens and the time of another one.
    pub(crate) fn add(&mut self, other: &Self) {
        self.tokens.extend(&other.tokens);
        self.seconds += other.seconds;
    }
}

impl<'a> Generator<'a> {
    pub(crate) fn new(model: &'a mut Model, text: &'a Text, cli: &'a Cli) -> Self {
        Self { model, text, cli }
    }

    /// Continues a prompt, and shows pieces of the text as they come.
    pub(crate) fn answer(
        &mut self,
        prompt: &[u32],
        mut show: impl FnMut(&str) -> Result<()>,
    ) -> Result<Answer> {
        // What a token adds to the text depends on those before it, so the stream has to have seen the prompt.
        let mut stream = self.text.tokenizer.decode_stream(true);
        // A decoder may take back text that it gave (a byte that turns out to begin another character). The
        // stream then ends; the whole text is decoded at once below.
        let mut streams = prompt.iter().all(|&token| stream.step(token).is_ok());
        let start = Instant::now();
        let tokens = self.generate(prompt, |token| match stream.step(token) {
            Ok(Some(piece)) if streams => show(&piece),
            Ok(_) => Ok(()),
            Err(_) => {
                streams = false;
                Ok(())
            }
        })?;
        let seconds = start.elapsed().as_secs_f64();
        Ok(Answer { text: self.text.decode(&tokens)?, tokens, seconds })
    }

    /// The loop: the prompt, and then each token on its own; the model remembers those before.
    fn generate(&mut self, prompt: &[u32], mut each: impl FnMut(u32) -> Result<()>) -> Result<Vec<u32>> {
        let Model { language, eos, positions, longest_batch, logit_scale, .. } = &mut *self.model;
        let most = self.cli.max_new_tokens.min(positions.saturating_sub(prompt.len()));
        if prompt.len() > *positions {
            bail!("the text has {} tokens, and there are {positions} positions (--context)", prompt.len());
        }
        let mut sampler = Sampler::new(self.cli.sampling(), prompt);
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
            let token = sampler.choose(&vector, *logit_scale)?;
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
