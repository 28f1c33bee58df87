//! What is learned: sums whose answers are written backwards, as one adds by hand.

use std::fmt;

use anyhow::{Result, bail};
use burn::module::Module;
use burn::tensor::Device;
use burn_lm::learn::{Batch, Example};
use burn_lm::model::{Llama, Lora, floats};
use examples_support::lm::Text;
use examples_support::sums::{LIMIT, Random, drawn, is_held_out};

/// So many answers are shown.
const SHOWN: usize = 5;

/// Makes examples of sums.
pub(crate) struct Task {
    pub(crate) text: Text,
    /// Ends an answer.
    end: u32,
}

/// How many answers were right.
pub(crate) struct Score {
    pub(crate) right: usize,
    pub(crate) asked: usize,
    /// Some of the answers, a line each.
    pub(crate) examples: Vec<String>,
}

impl Task {
    pub(crate) fn new(text: Text, ends: &[u32]) -> Result<Self> {
        match ends.first() {
            Some(&end) => Ok(Self { text, end }),
            None => bail!("config.json has no eos_token_id, so that no answer would end"),
        }
    }

    /// The batch of a step, which follows from the seed and the number of the step.
    pub(crate) fn batch(&self, seed: u64, step: u64, size: usize, device: &Device) -> Result<Batch> {
        let mut random = Random::new(seed, step + 1);
        let mut sum = || {
            loop {
                let sum = drawn(&mut random);
                if !is_held_out(sum) {
                    return sum;
                }
            }
        };
        let examples = (0..size).map(|_| self.example(sum())).collect::<Result<Vec<_>>>()?;
        Ok(Batch::new(&examples, device))
    }

    /// Asks the model so many held-out sums. An answer is right where each of its tokens is the likeliest after those
    /// before it: that is what a greedy answer is.
    pub(crate) fn score(&self, model: &Llama, lora: &Lora, count: usize, device: &Device) -> Result<Score> {
        let mut random = Random::new(0, 0);
        let mut sums = Vec::new();
        while sums.len() < count {
            let sum = [random.below(LIMIT), random.below(LIMIT)];
            if is_held_out(sum) {
                sums.push(sum);
            }
        }
        let examples = sums.iter().map(|sum| self.example(*sum)).collect::<Result<Vec<_>>>()?;
        let device = device.clone().without_autodiff();
        let Batch { tokens, places, .. } = Batch::new(&examples, &device);
        let logits = model.valid().logits_at(tokens, places, Some(&lora.valid()));
        let likeliest: Vec<f32> = floats(logits.argmax(1).float())?;

        let mut likeliest = likeliest.iter().map(|token| *token as u32);
        let mut score = Score { right: 0, asked: sums.len(), examples: Vec::new() };
        for ([a, b], Example { answer, .. }) in sums.into_iter().zip(&examples) {
            let given: Vec<u32> = likeliest.by_ref().take(answer.len()).collect();
            let is_right = given == *answer;
            score.right += usize::from(is_right);
            if score.examples.len() < SHOWN {
                let said = self.text.decode(&given)?;
                score
                    .examples
                    .push(format!("{a}+{b}={said}  {}\n", if is_right { "right" } else { "wrong" }));
            }
        }
        Ok(score)
    }

    fn example(&self, [a, b]: [u64; 2]) -> Result<Example> {
        let backwards: String = (a + b).to_string().chars().rev().collect();
        let mut answer = self.text.encode_plain(&backwards)?;
        answer.push(self.end);
        Ok(Example { prompt: self.text.encode(&format!("{a}+{b}="))?, answer })
    }
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} held-out sums right", self.right, self.asked)
    }
}
