//! How the next token is chosen.

use anyhow::{Result, ensure};
use clap::Args;

use crate::sums::Random;

/// What the command line says of it. As in transformers, first comes the penalty, then the temperature, and then what
/// keeps only some of the tokens.
#[derive(Args, Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Sampling {
    /// How freely to choose the next token: 0 always takes the likeliest
    #[arg(long, value_name = "T", default_value_t = 0.0, value_parser = parse_not_negative)]
    pub temperature: f64,

    /// Choose among the K likeliest tokens
    #[arg(long, value_name = "K", value_parser = parse_top_k)]
    pub top_k: Option<usize>,

    /// Choose among the likeliest tokens that together are as likely as P
    #[arg(long, value_name = "P", value_parser = parse_part)]
    pub top_p: Option<f64>,

    /// Choose among tokens that are at least P times as likely as the likeliest
    #[arg(long, value_name = "P", value_parser = parse_part)]
    pub min_p: Option<f64>,

    /// Make tokens that are in the text already less likely: above 1
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = parse_penalty)]
    pub repetition_penalty: f64,

    /// Where the random choices start; the same seed gives the same text
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
}

/// Chooses the tokens of one answer.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    random: Random,
    /// The tokens of the text so far.
    seen: Vec<u32>,
}

impl Sampler {
    /// For the answer to a prompt.
    pub fn new(sampling: Sampling, prompt: &[u32]) -> Self {
        Self { sampling, random: Random::new(sampling.seed, 0), seen: prompt.to_vec() }
    }

    /// Chooses a token from its logit for each, which count `scale` times.
    ///
    /// # Errors
    ///
    /// A logit is not finite.
    pub fn choose(&mut self, mut logits: Vec<f32>, scale: f64) -> Result<u32> {
        ensure!(
            logits.iter().all(|logit| logit.is_finite()),
            "the model's output is not finite: the weights are damaged, or too large for the dtype"
        );
        self.penalize(&mut logits);
        let token = if self.sampling.temperature == 0.0 {
            argmax(&logits)
        } else {
            self.keep_some(&mut logits, scale / self.sampling.temperature);
            self.draw(&logits)
        };
        let token = u32::try_from(token)?;
        self.seen.push(token);
        Ok(token)
    }

    /// A token, as likely as its logit says.
    fn draw(&mut self, logits: &[f32]) -> usize {
        let likelihoods = || logits.iter().map(|&logit| f64::from(logit).exp());
        let mut left = f64::from(self.random.unit()) * likelihoods().sum::<f64>();
        for (token, likelihood) in likelihoods().enumerate() {
            if left < likelihood {
                return token;
            }
            left -= likelihood;
        }
        // Sums round; the likeliest is never wrong.
        argmax(logits)
    }

    #[expect(clippy::cast_possible_truncation, reason = "logits are f32")]
    fn penalize(&self, logits: &mut [f32]) {
        let penalty = self.sampling.repetition_penalty as f32;
        if penalty == 1.0 {
            return;
        }
        let mut seen = self.seen.clone();
        seen.sort_unstable();
        seen.dedup();
        for token in seen {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
            }
        }
    }

    /// Scales logits, and puts those of tokens that may not be chosen to minus infinity.
    #[expect(clippy::cast_possible_truncation, reason = "logits are f32")]
    fn keep_some(&self, logits: &mut [f32], scale: f64) {
        let Sampling { top_k, top_p, min_p, .. } = self.sampling;
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        let likelihood = |logit: f32| (f64::from(logit - largest) * scale).exp();
        let mut kept = top_k.unwrap_or(usize::MAX).min(order.len());
        if let Some(p) = top_p {
            let all: f64 = order[..kept].iter().map(|&token| likelihood(logits[token])).sum();
            let mut before = 0.0;
            kept = order[..kept]
                .iter()
                .take_while(|&&token| {
                    let fits = before < p * all;
                    before += likelihood(logits[token]);
                    fits
                })
                .count();
        }
        if let Some(p) = min_p {
            kept = order[..kept].iter().take_while(|&&token| likelihood(logits[token]) >= p).count();
        }
        // One is always left.
        for &token in &order[kept.max(1)..] {
            logits[token] = f32::NEG_INFINITY;
        }
        for logit in logits {
            *logit = (f64::from(*logit - largest) * scale) as f32;
        }
    }
}

/// The first of the largest, as in torch.
fn argmax(values: &[f32]) -> usize {
    let mut best = 0;
    for (index, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = index;
        }
    }
    best
}

fn parse_top_k(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&k| k > 0).ok_or_else(|| "expected a whole number above zero".into())
}

fn parse_not_negative(text: &str) -> Result<f64, String> {
    parse_number(text, |number| number >= 0.0, "expected a number that is not negative")
}

fn parse_part(text: &str) -> Result<f64, String> {
    parse_number(text, |number| number > 0.0 && number <= 1.0, "expected a number above 0, up to 1")
}

fn parse_penalty(text: &str) -> Result<f64, String> {
    parse_number(text, |number| (1e-3..=1e3).contains(&number), "expected a number from 0.001 to 1000")
}

fn parse_number(text: &str, is_good: fn(f64) -> bool, expected: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|&number: &f64| number.is_finite() && is_good(number))
        .ok_or_else(|| expected.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GREEDY: Sampling = Sampling {
        temperature: 0.0,
        top_k: None,
        top_p: None,
        min_p: None,
        repetition_penalty: 1.0,
        seed: 1,
    };

    fn choices(sampling: Sampling) -> Vec<u32> {
        let logits = [0.5, 2.0, -1.0, 2.0, 1.9];
        let mut sampler = Sampler::new(sampling, &[]);
        (0..64).map(|_| sampler.choose(logits.to_vec(), 1.0).unwrap()).collect()
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        assert_eq!(choices(GREEDY), [1; 64]);
    }

    #[test]
    fn a_seed_decides() {
        let with = |temperature, seed| choices(Sampling { temperature, seed, ..GREEDY });
        assert_eq!(with(1.0, 1), with(1.0, 1));
        assert_ne!(with(1.0, 1), with(1.0, 2));
        assert!(with(1e-9, 1).iter().all(|token| [1, 3].contains(token)));
        let all: std::collections::BTreeSet<_> = with(5.0, 1).into_iter().collect();
        assert_eq!(all.len(), 5, "a high temperature leaves nothing out");
    }

    #[test]
    fn few_are_kept() {
        let hot = Sampling { temperature: 5.0, ..GREEDY };
        let all = |sampling| choices(sampling).into_iter().collect::<std::collections::BTreeSet<_>>();
        assert_eq!(all(Sampling { top_k: Some(3), ..hot }), [1, 3, 4].into());
        assert_eq!(all(Sampling { top_k: Some(1), ..hot }), [1].into());
        // At this temperature the likeliest two are 0.48 of all.
        assert_eq!(all(Sampling { top_p: Some(0.4), ..hot }), [1, 3].into());
        assert_eq!(all(Sampling { top_p: Some(1e-9), ..hot }), [1].into());
        // 0.5 is 0.74 times as likely as 2.0, and -1.0 0.55 times.
        assert_eq!(all(Sampling { min_p: Some(0.7), ..hot }), [0, 1, 3, 4].into());
        assert_eq!(all(Sampling { min_p: Some(1.0), ..hot }), [1, 3].into());
    }

    #[test]
    fn what_was_said_is_less_likely() {
        let choices = choices(Sampling { repetition_penalty: 1.1, ..GREEDY });
        assert_eq!(choices[..4], [1, 3, 4, 1]);
    }

    #[test]
    fn what_is_not_a_number_is_an_error() {
        for temperature in [0.0, 1.0] {
            let sampling = Sampling { temperature, ..GREEDY };
            assert!(Sampler::new(sampling, &[]).choose(vec![0.0, f32::NAN], 1.0).is_err());
        }
    }
}
