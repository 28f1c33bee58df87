//! The magnitude from which on the largest differences are kept, found exactly, in one pass over the inputs or in two.
//!
//! Bits of magnitudes are in the order of magnitudes. A sample says between which bits the threshold is all but surely;
//! a pass counts what is above, and how often each of the bits in between comes. If the sample has deceived, two passes
//! over the inputs count what the bits begin with, and what they end with.

use super::block::BLOCK;
use super::loops::{Count, magnitude};
use super::measure::Passes;
use crate::error::Result;
use crate::newer_std::unsigned;

/// Counters of what magnitudes begin with, and of what they end with.
const UPPER: usize = 1 << 16;
const LOWER: usize = 1 << 15;

/// Runs of elements of the sample, and the elements of each.
const RUNS: u64 = 512;
const RUN: u64 = 256;

/// The most counters for what is between two bits; there are as many of each thread and model.
const MOST: u32 = 1 << 19;

/// The bits that a threshold is among.
#[derive(Clone, Copy, Debug)]
struct Bracket {
    first: u32,
    counters: usize,
}

/// What a thread counts of a model.
struct Counted {
    above: u64,
    counters: Vec<u32>,
    places: Vec<u32>,
}

impl Passes {
    /// Of each input behind the first, the bits of the smallest magnitude among its largest differences from
    /// the first: as many as its density says, and at least one. If all are kept, it is less than or equal to that.
    pub(super) fn least(&self, densities: &[f64]) -> Result<Vec<u32>> {
        let kept: Vec<_> =
            densities.iter().map(|density| ((density * self.elements as f64) as u64).max(1)).collect();
        let least = match self.brackets(&kept)? {
            Some(brackets) => self.least_in(&brackets, &kept)?,
            None => None,
        };
        least.map_or_else(|| self.least_in_two_passes(&kept), Ok)
    }

    /// What a sample says; nothing where a sample would be most of it, or does not say enough.
    fn brackets(&self, kept: &[u64]) -> Result<Option<Vec<Bracket>>> {
        let blocks = self.elements / RUN;
        if blocks < 4 * RUNS || self.elements > u64::from(u32::MAX) {
            return Ok(None);
        }
        let mut samples = vec![Vec::with_capacity((RUNS * RUN) as usize); kept.len()];
        let mut memory = self.memory();
        for run in 0..RUNS {
            let start = run * blocks / RUNS * RUN;
            self.read(start..start + RUN, &mut memory, &mut |model, base, values| {
                if let Some(sample) = samples.get_mut(model) {
                    sample.extend(values.iter().zip(base).map(|(value, base)| magnitude(value - base)));
                }
            })?;
        }
        let bracket = |(sample, &kept): (&mut Vec<u32>, &u64)| {
            if kept >= self.elements {
                return Some(Bracket { first: 0, counters: 1 });
            }
            let (count, share) = (sample.len() as f64, kept as f64 / self.elements as f64);
            // Six standard deviations of a sample of independent elements.
            let margin = 6.0 * (count * share * (1.0 - share)).sqrt() + 16.0;
            // The place in descending order, of which there is an element.
            let mut at = |place: f64| {
                let place = ((count - place) as usize).min(sample.len().checked_sub(1)?);
                let (_, found, _) = sample.select_nth_unstable(place);
                Some(*found)
            };
            let place = share * count;
            let last = if place > margin { at(place - margin)? } else { unsigned(i32::MAX) };
            let first = if place + margin < count { at(place + margin)? } else { 0 };
            let counters = last.checked_sub(first)?.checked_add(1)?;
            (counters <= MOST).then_some(Bracket { first, counters: counters as usize })
        };
        Ok(samples.iter_mut().zip(kept).map(bracket).collect())
    }

    /// The thresholds, if they are where the sample says.
    fn least_in(&self, brackets: &[Bracket], kept: &[u64]) -> Result<Option<Vec<u32>>> {
        let empty = |bracket: &Bracket| Counted {
            above: 0,
            counters: vec![0; bracket.counters],
            places: vec![0; BLOCK],
        };
        let counted = self.each(
            || brackets.iter().map(empty).collect::<Vec<_>>(),
            |counted, _, model, base, values| {
                let (Some(Counted { above, counters, places }), Some(bracket)) =
                    (counted.get_mut(model), brackets.get(model))
                else {
                    return;
                };
                let first = bracket.first;
                *above += self.instructions.run(Count { base, values, first, counters, places });
            },
        )?;
        let least = brackets.iter().zip(kept).enumerate().map(|(model, (bracket, &kept))| {
            let of_model = || counted.iter().filter_map(|counted| counted.get(model));
            let above: u64 = of_model().map(|counted| counted.above).sum();
            let mut counters = vec![0; bracket.counters];
            for counted in of_model() {
                for (sum, &count) in counters.iter_mut().zip(&counted.counters) {
                    *sum += u64::from(count);
                }
            }
            if kept >= self.elements {
                return Some(0);
            }
            let rank = kept.checked_sub(above).filter(|&rank| rank > 0 && rank <= counters.iter().sum())?;
            Some(bracket.first + from_the_top(&counters, rank).0 as u32)
        });
        Ok(least.collect())
    }

    fn least_in_two_passes(&self, kept: &[u64]) -> Result<Vec<u32>> {
        let models = kept.len();
        let upper = self.count(models, UPPER, |_, bits| Some((bits >> 15) as usize))?;
        let found: Vec<_> =
            upper.iter().zip(kept).map(|(counts, &kept)| from_the_top(counts, kept)).collect();
        let lower = self.count(models, LOWER, |model, bits| {
            let is_in = found.get(model).is_some_and(|(upper, _)| (bits >> 15) as usize == *upper);
            is_in.then_some((bits & 0x7FFF) as usize)
        })?;
        let least = found.iter().zip(&lower).map(|(&(upper, missing), counts)| {
            let (lower, _) = from_the_top(counts, missing);
            (upper as u32) << 15 | lower as u32
        });
        Ok(least.collect())
    }

    /// How often each counter is named by the bits of a magnitude, for each model.
    fn count(
        &self,
        models: usize,
        counters: usize,
        counter: impl Fn(usize, u32) -> Option<usize> + Sync,
    ) -> Result<Vec<Vec<u64>>> {
        let zeros = || vec![vec![0_u64; counters]; models];
        let counted = self.each(zeros, |counts, _, model, base, values| {
            let Some(counts) = counts.get_mut(model) else { return };
            for (value, base) in values.iter().zip(base) {
                let counter = counter(model, magnitude(value - base));
                if let Some(count) = counter.and_then(|counter| counts.get_mut(counter)) {
                    *count += 1;
                }
            }
        })?;
        Ok(counted.into_iter().fold(zeros(), |mut sums, counts| {
            for (sum, count) in sums.iter_mut().flatten().zip(counts.iter().flatten()) {
                *sum += count;
            }
            sums
        }))
    }
}

/// The counter that the element with this rank is in, counted from the largest as the first, and its rank
/// there.
fn from_the_top(counts: &[u64], rank: u64) -> (usize, u64) {
    let mut rank = rank;
    for (counter, &count) in counts.iter().enumerate().rev() {
        if rank <= count {
            return (counter, rank);
        }
        rank -= count;
    }
    (0, 1)
}
