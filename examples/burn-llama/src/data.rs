//! The sums to learn, in batches that follow from the seed and the number of the epoch alone.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use burn::data::dataloader::{DataLoader, DataLoaderIterator, Progress};
use burn::data::dataset::DatasetError;
use burn::tensor::Device;
use burn_lm::learn::{Batch, Example};

use crate::tokens::Tokens;
use examples_support::one_line;
use examples_support::sums::{self, LIMIT, Random};

/// Sums as the model learns them.
fn batch(tokens: &Tokens, sums: &[Sum], device: &Device) -> Result<Batch> {
    let example = |sum: &Sum| {
        Ok(Example { prompt: tokens.prompt(&sum.prompt())?, answer: tokens.answer(&sum.answer())? })
    };
    let examples = sums.iter().map(example).collect::<Result<Vec<_>>>()?;
    Ok(Batch::new(&examples, device))
}

/// Two numbers to add.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sum(u64, u64);

impl Sum {
    pub(crate) fn prompt(self) -> String {
        format!("{}+{}=", self.0, self.1)
    }

    pub(crate) fn answer(self) -> String {
        (self.0 + self.1).to_string()
    }

    /// Whether it is kept away from training, together with its twin: one of 64 is.
    fn is_held_out(self) -> bool {
        sums::is_held_out([self.0, self.1])
    }

    /// Most are of any two numbers, the rest have as many short numbers as long ones.
    fn for_training(random: &mut Random) -> Self {
        loop {
            let [a, b] = sums::drawn(random);
            let sum = Self(a, b);
            if !sum.is_held_out() {
                return sum;
            }
        }
    }

    fn held_out(random: &mut Random) -> Self {
        loop {
            let sum = Self(random.below(LIMIT), random.below(LIMIT));
            if sum.is_held_out() {
                return sum;
            }
        }
    }
}

/// So many held-out sums, the same ones every time.
pub(crate) fn held_out(count: usize) -> Vec<Sum> {
    let mut random = Random::new(0, 0);
    (0..count).map(|_| Sum::held_out(&mut random)).collect()
}

/// A data loader that knows which epoch it is in.
///
/// Burn does not tell loaders the epoch, but it asks for one iterator in each; so the epochs are counted here, from the
/// one in which the run begins.
pub(crate) struct Sums {
    tokens: Arc<Tokens>,
    device: Device,
    source: Drawn,
    batch_size: usize,
    /// Those of an epoch's sums that this loader gives.
    range: Range<usize>,
}

/// Which sums there are.
enum Drawn {
    Training { seed: u64, epoch: AtomicU64 },
    HeldOut,
}

impl Drawn {
    fn draw(&self, random: &mut Random) -> Sum {
        match self {
            Self::Training { .. } => Sum::for_training(random),
            Self::HeldOut => Sum::held_out(random),
        }
    }
}

impl Sums {
    /// For training from that epoch on.
    pub(crate) fn training(
        tokens: &Arc<Tokens>,
        seed: u64,
        epoch: usize,
        batches: usize,
        batch_size: usize,
        device: &Device,
    ) -> Self {
        let source = Drawn::Training { seed, epoch: AtomicU64::new(epoch as u64) };
        let range = 0..batches.saturating_mul(batch_size);
        Self { tokens: Arc::clone(tokens), device: device.clone(), source, batch_size, range }
    }

    /// Held-out sums, the same ones in every epoch.
    pub(crate) fn held_out(tokens: &Arc<Tokens>, count: usize, batch_size: usize, device: &Device) -> Self {
        let (tokens, device) = (Arc::clone(tokens), device.clone());
        Self { tokens, device, source: Drawn::HeldOut, batch_size, range: 0..count }
    }

    fn like_this(&self, device: &Device, range: Range<usize>) -> Self {
        let source = match &self.source {
            Drawn::Training { seed, epoch } => {
                Drawn::Training { seed: *seed, epoch: AtomicU64::new(epoch.load(Ordering::Relaxed)) }
            }
            Drawn::HeldOut => Drawn::HeldOut,
        };
        let (tokens, device) = (Arc::clone(&self.tokens), device.clone());
        Self { tokens, device, source, batch_size: self.batch_size, range }
    }
}

impl DataLoader<Batch> for Sums {
    fn iter(&self) -> Box<dyn DataLoaderIterator<Batch> + '_> {
        let mut random = match &self.source {
            Drawn::Training { seed, epoch } => Random::new(*seed, epoch.fetch_add(1, Ordering::Relaxed)),
            Drawn::HeldOut => Random::new(0, 0),
        };
        for _ in 0..self.range.start {
            self.source.draw(&mut random);
        }
        Box::new(Batches { sums: self, random, left: self.range.len() })
    }

    fn num_items(&self) -> usize {
        self.range.len()
    }

    fn to_device(&self, device: &Device) -> Arc<dyn DataLoader<Batch>> {
        Arc::new(self.like_this(device, self.range.clone()))
    }

    fn slice(&self, start: usize, end: usize) -> Arc<dyn DataLoader<Batch>> {
        let range = self.range.start.saturating_add(start)..self.range.start.saturating_add(end);
        Arc::new(self.like_this(&self.device, range.start..range.end.min(self.range.end)))
    }
}

/// The batches of one epoch.
struct Batches<'a> {
    sums: &'a Sums,
    random: Random,
    /// How many sums are still to come.
    left: usize,
}

impl Iterator for Batches<'_> {
    type Item = Result<Batch, DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        let count = self.left.min(self.sums.batch_size);
        if count == 0 {
            return None;
        }
        self.left -= count;
        let sums: Vec<_> = (0..count).map(|_| self.sums.source.draw(&mut self.random)).collect();
        let batch = batch(&self.sums.tokens, &sums, &self.sums.device);
        Some(batch.map_err(|error| DatasetError::new(io::Error::other(one_line(&error)))))
    }
}

impl DataLoaderIterator<Batch> for Batches<'_> {
    fn progress(&self) -> Progress {
        let total = self.sums.range.len();
        Progress::new(total - self.left, total, Some("sums".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Source;

    fn tokens() -> Arc<Tokens> {
        Arc::new(Tokens::new(&Source::sample().unwrap()).unwrap())
    }

    /// The tokens and targets of an epoch.
    fn epoch(sums: &dyn DataLoader<Batch>) -> Vec<(Vec<i64>, Vec<i64>)> {
        let values = |batch: Batch| {
            let tokens = batch.tokens.try_into_vec_as::<i64>().unwrap();
            (tokens, batch.targets.try_into_vec_as::<i64>().unwrap())
        };
        sums.iter().map(|batch| values(batch.unwrap())).collect()
    }

    #[test]
    fn a_batch_asks_for_the_answer_alone() {
        let sums = [Sum(1, 2), Sum(999, 1)];
        let batch = batch(&tokens(), &sums, &Device::flex()).unwrap();
        // <bos> 1 + 2 = 3, and <bos> 9 9 9 + 1 = 1 0 0 0; <eos> is a target only.
        assert_eq!(batch.tokens.dims(), [2, 11]);
        let row: Vec<i64> = batch.tokens.try_into_vec_as().unwrap();
        assert_eq!(row[..11], [1, 5, 14, 6, 15, 7, 0, 0, 0, 0, 0]);
        assert_eq!(row[11..], [1, 13, 13, 13, 14, 5, 15, 5, 4, 4, 4]);
        let places: Vec<i64> = batch.places.try_into_vec_as().unwrap();
        assert_eq!(places, [4, 5, 17, 18, 19, 20, 21]);
        let targets: Vec<i64> = batch.targets.try_into_vec_as().unwrap();
        assert_eq!(targets, [7, 2, 5, 4, 4, 4, 2]);
    }

    #[test]
    fn an_epoch_follows_from_seed_and_number() {
        let (tokens, device) = (tokens(), Device::flex());
        let loader = |seed, first| Sums::training(&tokens, seed, first, 2, 8, &device);
        let whole = loader(1, 1);
        let (first, second) = (epoch(&whole), epoch(&whole));
        assert_eq!(first.len(), 2);
        assert_ne!(first, second);
        assert_eq!(epoch(&loader(1, 1)), first);
        assert_eq!(epoch(&loader(1, 2)), second);
        assert_ne!(epoch(&loader(2, 1)), first);
        assert_eq!(epoch(&*loader(1, 2).to_device(&device)), second);
        assert_eq!(epoch(&*loader(1, 2).slice(8, 16)), second[1..]);
    }

    #[test]
    fn held_out_sums_are_not_trained_with() {
        let held_out = held_out(200);
        assert!(held_out.iter().all(|sum| sum.is_held_out()));
        let mut random = Random::new(0, 1);
        for _ in 0..10_000 {
            let sum = Sum::for_training(&mut random);
            assert!(!sum.is_held_out() && !Sum(sum.1, sum.0).is_held_out());
        }
        let fixed = Sums::held_out(&tokens(), 10, 4, &Device::flex());
        assert_eq!(epoch(&fixed), epoch(&fixed));
        assert_eq!(epoch(&fixed).len(), 3);
    }
}
