//! Whether the model adds: greedy answers to held-out sums.

use std::fmt;

use anyhow::{Result, ensure};
use burn::tensor::Device;
use burn_lm::learn::{indices, padded, width};
use burn_lm::model::{Llama, floats};

use crate::data::{self, Sum};
use crate::tokens::Tokens;

/// So many answers are shown.
const SHOWN: usize = 5;

/// So many sums are answered at a time.
const AT_A_TIME: usize = 100;

/// An answer ends after so many tokens, if the model does not end it before.
const LONGEST: usize = 8;

/// How many sums were right.
pub(crate) struct Score {
    pub(crate) right: usize,
    pub(crate) asked: usize,
    pub(crate) examples: Vec<Answer>,
}

/// What the model says to a sum.
pub(crate) struct Answer {
    prompt: String,
    text: String,
    is_right: bool,
}

/// Asks the model so many held-out sums.
pub(crate) fn score(model: &Llama, tokens: &Tokens, count: usize, device: &Device) -> Result<Score> {
    let mut score = Score { right: 0, asked: 0, examples: Vec::new() };
    for sums in data::held_out(count).chunks(AT_A_TIME) {
        for answer in answers(model, tokens, sums, device)? {
            score.asked += 1;
            score.right += usize::from(answer.is_right);
            if score.examples.len() < SHOWN {
                score.examples.push(answer);
            }
        }
    }
    Ok(score)
}

/// What the model gives for the token after a text.
pub(crate) fn logits(model: &Llama, tokens: &Tokens, prompt: &str, device: &Device) -> Result<Vec<f32>> {
    let prompt = tokens.prompt(prompt)?;
    Ok(next(model, &[&prompt], device)?.remove(0))
}

fn answers(model: &Llama, tokens: &Tokens, sums: &[Sum], device: &Device) -> Result<Vec<Answer>> {
    let prompts = sums.iter().map(|sum| tokens.prompt(&sum.prompt())).collect::<Result<Vec<_>>>()?;
    let mut rows = prompts.clone();
    let mut open: Vec<usize> = (0..rows.len()).collect();
    for _ in 0..LONGEST {
        if open.is_empty() {
            break;
        }
        let asked: Vec<_> = open.iter().map(|&row| &*rows[row]).collect();
        let logits = next(model, &asked, device)?;
        let mut still_open = Vec::new();
        for (row, logits) in open.into_iter().zip(logits) {
            let token = argmax(&logits)?;
            rows[row].push(token);
            if !tokens.is_end(token) {
                still_open.push(row);
            }
        }
        open = still_open;
    }

    let answer = |(number, sum): (usize, &Sum)| -> Result<Answer> {
        let text = tokens.text(&rows[number][prompts[number].len()..])?;
        let is_right = !open.contains(&number) && text.trim() == sum.answer();
        Ok(Answer { prompt: sum.prompt(), text, is_right })
    };
    sums.iter().enumerate().map(answer).collect()
}

/// What the model gives for the token after each row, of which there is at least one.
fn next(model: &Llama, rows: &[&[u32]], device: &Device) -> Result<Vec<Vec<f32>>> {
    let width = width(rows);
    let last: Vec<_> = rows.iter().enumerate().map(|(number, row)| number * width + row.len() - 1).collect();
    let logits = model.logits_at(padded(rows, device), indices(&last, device), None);
    let [_, vocabulary] = logits.dims();
    let values = floats(logits)?;
    ensure!(
        values.iter().all(|value| value.is_finite()),
        "the model's output is not finite: the weights are damaged, or training went astray"
    );
    Ok(values.chunks(vocabulary).map(<[f32]>::to_vec).collect())
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

impl Score {
    pub(crate) fn accuracy(&self) -> f64 {
        self.right as f64 / self.asked.max(1) as f64
    }
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { right, asked, .. } = self;
        write!(f, "{right} of {asked} held-out sums right ({:.1} %)", 100.0 * self.accuracy())
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { prompt, text, is_right } = self;
        write!(f, "{prompt}{text}  {}", if *is_right { "right" } else { "wrong" })
    }
}
