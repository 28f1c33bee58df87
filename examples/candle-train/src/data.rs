//! The sums to learn, in batches that follow from the seed and the number of the step alone.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use candle_core::{Device, Tensor};
use examples_support::sums::{self, Random};
use serde_json::Value;

/// The tokens of characters.
#[derive(Debug)]
pub(crate) struct Tokens {
    of: HashMap<String, u32>,
}

impl Tokens {
    /// Reads a tokenizer that has a token for each character.
    ///
    /// # Errors
    ///
    /// Fails when it is not there, or has no vocabulary.
    pub(crate) fn read(directory: &Path) -> Result<Self> {
        let path = directory.join("tokenizer.json");
        let at = || path.display().to_string();
        let tokenizer: Value = serde_json::from_slice(&fs::read(&path).with_context(at)?).with_context(at)?;
        let of = serde_json::from_value(tokenizer["model"]["vocab"].clone());
        Ok(Self { of: of.with_context(|| format!("{}: the vocabulary", at()))? })
    }

    fn token(&self, text: &str) -> Result<u32> {
        self.of.get(text).copied().ok_or_else(|| anyhow!("the tokenizer has no {text:?}"))
    }

    fn tokens(&self, text: &str) -> Result<Vec<u32>> {
        text.chars().map(|character| self.token(&character.to_string())).collect()
    }
}

/// Some sums, and where in them the answers are.
#[derive(Debug)]
pub(crate) struct Batch {
    /// `[rows, length]`, filled up on the right, where nobody looks.
    pub(crate) tokens: Tensor,
    /// Places, numbered throughout all rows, after which a token of an answer is expected.
    pub(crate) places: Tensor,
    /// That token.
    pub(crate) targets: Tensor,
    /// To which row each target belongs.
    pub(crate) rows: Vec<usize>,
}

impl Batch {
    /// The batch of a step.
    pub(crate) fn of_step(tokens: &Tokens, seed: u64, step: u64, size: u64) -> Result<Self> {
        let mut random = Random::new(seed, step);
        Self::new(tokens, &(0..size).map(|_| sum(&mut random, false)).collect::<Vec<_>>())
    }

    /// Sums that are not trained with, the same ones every time.
    pub(crate) fn held_out(tokens: &Tokens, size: u64) -> Result<Self> {
        let mut random = Random::new(0, 0);
        Self::new(tokens, &(0..size).map(|_| sum(&mut random, true)).collect::<Vec<_>>())
    }

    fn new(tokens: &Tokens, sums: &[[u64; 2]]) -> Result<Self> {
        let mut rows = Vec::new();
        for [a, b] in sums {
            let mut row = vec![tokens.token("<bos>")?];
            row.extend(tokens.tokens(&format!("{a}+{b}="))?);
            let prompt = row.len();
            row.extend(tokens.tokens(&(a + b).to_string())?);
            row.push(tokens.token("<eos>")?);
            rows.push((prompt, row));
        }
        // Nothing follows the last token, so it is a target only.
        let length = rows.iter().map(|(_, row)| row.len() - 1).max().unwrap_or(0);
        let (mut all, mut places, mut targets, mut of) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (number, (prompt, row)) in rows.iter().enumerate() {
            for (at, &target) in row.iter().enumerate().skip(*prompt) {
                places.push((number * length + at - 1) as u32);
                targets.push(target);
                of.push(number);
            }
            all.extend_from_slice(&row[..row.len() - 1]);
            all.resize((number + 1) * length, 0);
        }
        Ok(Self {
            tokens: Tensor::from_vec(all, (rows.len(), length), &Device::Cpu)?,
            places: Tensor::new(places, &Device::Cpu)?,
            targets: Tensor::new(targets, &Device::Cpu)?,
            rows: of,
        })
    }
}

/// Two numbers to add. One sum of 64 is held out, together with its twin.
fn sum(random: &mut Random, held_out: bool) -> [u64; 2] {
    loop {
        let sum = sums::drawn(random);
        if sums::is_held_out(sum) == held_out {
            return sum;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_asks_for_the_answer_alone() {
        let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../samples/adder");
        let batch = Batch::new(&Tokens::read(&sample).unwrap(), &[[1, 2], [999, 1]]).unwrap();
        // <bos> 1 + 2 = 3, and <bos> 9 9 9 + 1 = 1 0 0 0; <eos> is a target only.
        let rows = batch.tokens.to_vec2::<u32>().unwrap();
        assert_eq!(rows[0], [1, 5, 14, 6, 15, 7, 0, 0, 0, 0, 0]);
        assert_eq!(rows[1], [1, 13, 13, 13, 14, 5, 15, 5, 4, 4, 4]);
        assert_eq!(batch.places.to_vec1::<u32>().unwrap(), [4, 5, 17, 18, 19, 20, 21]);
        assert_eq!(batch.targets.to_vec1::<u32>().unwrap(), [7, 2, 5, 4, 4, 4, 2]);
        assert_eq!(batch.rows, [0, 0, 1, 1, 1, 1, 1]);
    }
}
