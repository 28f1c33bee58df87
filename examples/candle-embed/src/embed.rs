//! From tokens to vectors, in batches.

use std::cmp::Reverse;
use std::io::IsTerminal;

use anyhow::{Result, ensure};
use candle_core::{Device, Tensor};
use examples_support::weights::caught;
use indicatif::{ProgressBar, ProgressStyle};

use crate::family::{Batch, Encoder};
use crate::head::Head;

/// Fewer texts are done before a progress bar can be read.
const MANY: usize = 500;

/// Turns texts into vectors.
pub(crate) struct Embedder {
    pub(crate) encoder: Box<dyn Encoder>,
    pub(crate) head: Head,
    pub(crate) device: Device,
    /// The token that fills up a batch.
    pub(crate) padding: u32,
    /// Texts of different lengths can be in one batch.
    pub(crate) masks_padding: bool,
    pub(crate) batch_size: usize,
}

/// Vectors of one length, one after the other.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Embeddings {
    pub(crate) dimensions: usize,
    pub(crate) values: Vec<f32>,
}

impl Embeddings {
    pub(crate) fn rows(&self) -> impl Iterator<Item = &[f32]> {
        self.values.chunks_exact(self.dimensions)
    }
}

impl Embedder {
    /// A vector for each text, in their order. The first `skipped` tokens of each are not pooled.
    ///
    /// Texts of about the same length share a batch, the longest first: if there is not memory enough, that is known at
    /// once.
    ///
    /// # Errors
    ///
    /// What the model cannot compute, and numbers that are not finite.
    pub(crate) fn embed(&mut self, texts: &[Vec<u32>], skipped: usize) -> Result<Embeddings> {
        let dimensions = self.head.dimensions;
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|&index| Reverse(texts[index].len()));
        let mut values = vec![0.0; texts.len() * dimensions];
        let bar = progress_bar(texts.len());
        let mut rest = &order[..];
        while !rest.is_empty() {
            let (batch, others) = rest.split_at(self.batch_len(rest, texts));
            let vectors = self.forward(batch, texts, skipped)?;
            for (&index, vector) in batch.iter().zip(vectors.chunks_exact(dimensions)) {
                values[index * dimensions..][..dimensions].copy_from_slice(vector);
            }
            if let Some(bar) = &bar {
                bar.inc(batch.len() as u64);
            }
            rest = others;
        }
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        ensure!(
            values.iter().all(|value| value.is_finite()),
            "the model's output is not finite: the weights are damaged"
        );
        Ok(Embeddings { dimensions, values })
    }

    /// How many of the next texts make a batch.
    fn batch_len(&self, order: &[usize], texts: &[Vec<u32>]) -> usize {
        let fits = |index: &&usize| self.masks_padding || texts[**index].len() == texts[order[0]].len();
        order.iter().take(self.batch_size).take_while(fits).count()
    }

    fn forward(&mut self, batch: &[usize], texts: &[Vec<u32>], skipped: usize) -> Result<Vec<f32>> {
        let lengths: Vec<usize> = batch.iter().map(|&index| texts[index].len()).collect();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let mut tokens = Vec::with_capacity(batch.len() * longest);
        let mut mask: Vec<u32> = Vec::with_capacity(batch.len() * longest);
        for (row, &index) in batch.iter().enumerate() {
            let end = (row + 1) * longest;
            tokens.extend_from_slice(&texts[index]);
            mask.resize(tokens.len(), 1);
            tokens.resize(end, self.padding);
            mask.resize(end, 0);
        }
        let shape = (batch.len(), longest);
        let batch = Batch {
            tokens: Tensor::from_vec(tokens, shape, &self.device)?,
            mask: Tensor::from_vec(mask, shape, &self.device)?,
        };
        let states = caught(|| self.encoder.forward(&batch))?;
        Ok(self.head.forward(&states, &lengths, skipped)?.flatten_all()?.to_vec1()?)
    }
}

fn progress_bar(texts: usize) -> Option<ProgressBar> {
    if texts < MANY || !std::io::stderr().is_terminal() {
        return None;
    }
    let style = "{bar:40} {human_pos} of {human_len} texts, {per_sec}, {eta}";
    let style = ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
    Some(ProgressBar::new(texts as u64).with_style(style))
}
