//! From a prompt to its continuation.

use anyhow::Result;
use examples_support::lm::{Answer, Sampler, Text};

use crate::cli::Cli;
use crate::model::{Cache, Llama};

/// Answers prompts with one model.
pub(crate) struct Generator<'a> {
    model: &'a Llama,
    text: &'a Text,
    /// The tokens after which a text ends.
    ends: &'a [u32],
    cli: &'a Cli,
}

impl<'a> Generator<'a> {
    pub(crate) fn new(model: &'a Llama, text: &'a Text, ends: &'a [u32], cli: &'a Cli) -> Self {
        Self { model, text, ends, cli }
    }

    /// Continues a prompt, and shows pieces of the text as they come.
    pub(crate) fn answer(&self, prompt: &[u32], show: impl FnMut(&str) -> Result<()>) -> Result<Answer> {
        self.text.answer(prompt, show, |each| self.generate(prompt, each))
    }

    /// The loop: the prompt, and then each token on its own; the cache remembers those before.
    fn generate(&self, prompt: &[u32], each: &mut dyn FnMut(u32) -> Result<()>) -> Result<Vec<u32>> {
        let mut sampler = Sampler::new(self.cli.sampling, prompt);
        let mut cache = Cache::default();
        let mut tokens = Vec::new();
        let mut new = prompt.to_vec();
        while tokens.len() < self.cli.max_new_tokens {
            let token = sampler.choose(self.model.next(&new, &mut cache)?, 1.0)?;
            tokens.push(token);
            each(token)?;
            if self.ends.contains(&token) {
                break;
            }
            new = vec![token];
        }
        Ok(tokens)
    }
}
