//! Sums over values of 32 and 64 bits.

use weighbridge::plan::cast_into;
use weighbridge::{Dtype, Result};

use super::tally::{self, Table, Tally};
use super::{Figures, Number, histogram, number};

/// What is known of some values of more than 16 bits.
#[derive(Debug, Default)]
pub(super) struct Wide {
    dtype: Option<Dtype>,
    values: u64,
    zeros: u64,
    nans: u64,
    infinities: u64,
    negative_infinities: u64,
    /// Of finite values, as all that follows.
    moments: Moments,
    /// The extremes of integers of 64 bits, of which not each is an `f64`.
    integers: Option<(i128, i128)>,
    /// Counts by the upper half of the value as an `F32`.
    tally: Tally,
}

/// Count, mean, and the sum of the squared distances from it.
#[derive(Clone, Copy, Debug)]
struct Moments {
    count: u64,
    mean: f64,
    squares: f64,
    min: f64,
    max: f64,
}

impl Default for Moments {
    fn default() -> Self {
        Self { count: 0, mean: 0.0, squares: 0.0, min: f64::INFINITY, max: f64::NEG_INFINITY }
    }
}

impl Wide {
    pub(super) fn of(dtype: Dtype, bytes: &[u8]) -> Result<Self> {
        /// Values at a time; they stay in the first-level cache.
        const BLOCK: usize = 1024;
        // Of a complex number both parts are looked at.
        let real = if dtype == Dtype::C64 { Dtype::F32 } else { dtype };
        let size = real.bits() as usize / 8;
        let mut wide = Self { dtype: Some(dtype), integers: integers(dtype, bytes), ..Self::default() };
        let mut memory = [0.0; BLOCK];
        let mut few = Vec::new();
        let mut table = (bytes.len() > BLOCK * size).then(Table::new);
        for stored in bytes.chunks(BLOCK * size) {
            let block = &mut memory[..stored.len() / size];
            cast_into(real, stored, block)?;
            wide.values += block.len() as u64;
            let block = wide.finite(block);
            wide.zeros += block.iter().map(|&value| u64::from(value == 0.0)).sum::<u64>();
            wide.moments = wide.moments.merge(Moments::of(block));
            let codes = block.iter().map(|&value| code(value));
            match &mut table {
                Some(table) => codes.for_each(|code| table.add(code)),
                None => few.extend(codes),
            }
        }
        wide.tally = match table {
            Some(table) => table.tally(),
            None => tally::of_codes(few.len(), few.into_iter()),
        };
        Ok(wide)
    }

    /// Counts what is not finite, and leaves it out.
    fn finite<'b>(&mut self, block: &'b mut [f64]) -> &'b [f64] {
        let finite = block.iter().map(|value| u64::from(value.is_finite())).sum::<u64>();
        if finite == block.len() as u64 {
            return block;
        }
        let mut kept = 0;
        for place in 0..block.len() {
            let value = block[place];
            if value.is_finite() {
                block[kept] = value;
                kept += 1;
            } else if value.is_nan() {
                self.nans += 1;
            } else if value > 0.0 {
                self.infinities += 1;
            } else {
                self.negative_infinities += 1;
            }
        }
        &block[..kept]
    }

    pub(super) fn merge(self, other: Self) -> Self {
        Self {
            dtype: self.dtype,
            values: self.values + other.values,
            zeros: self.zeros + other.zeros,
            nans: self.nans + other.nans,
            infinities: self.infinities + other.infinities,
            negative_infinities: self.negative_infinities + other.negative_infinities,
            moments: self.moments.merge(other.moments),
            integers: self
                .integers
                .zip(other.integers)
                .map(|(these, those)| (these.0.min(those.0), these.1.max(those.1))),
            tally: tally::merge(&self.tally, &other.tally),
        }
    }

    pub(super) fn figures(self) -> Figures {
        let Moments { count, mean, squares, min, max } = self.moments;
        let known = count > 0;
        let dtype = self.dtype.unwrap_or(Dtype::F64);
        let extremes = match self.integers {
            Some((min, max)) => (exact(min), exact(max)),
            None => (number(dtype, min), number(dtype, max)),
        };
        let cells = self.tally.iter().map(|&(code, count)| {
            let value = f64::from(f32::from_bits(u32::from(code) << 16));
            (value.clamp(min, max), count)
        });
        Figures {
            values: self.values,
            min: known.then_some(extremes.0),
            max: known.then_some(extremes.1),
            mean: known.then_some(mean),
            std: known.then(|| (squares / count as f64).sqrt()),
            zeros: self.zeros,
            nans: self.nans,
            infinities: self.infinities,
            negative_infinities: self.negative_infinities,
            histogram: known.then(|| histogram(min, max, cells)),
        }
    }
}

impl Moments {
    /// Those of a block. The mean comes first, so that no two large numbers are subtracted.
    fn of(block: &[f64]) -> Self {
        if block.is_empty() {
            return Self::default();
        }
        let count = block.len() as u64;
        let mean = sum(block, |value| value) / count as f64;
        let squares = sum(block, |value| (value - mean) * (value - mean));
        let min = fold(block, f64::INFINITY, |least, value| if value < least { value } else { least });
        let max = fold(block, f64::NEG_INFINITY, |most, value| if value > most { value } else { most });
        Self { count, mean, squares, min, max }
    }

    /// Those of both, as Chan, Golub and LeVeque have it.
    fn merge(self, other: Self) -> Self {
        match (self.count, other.count) {
            (0, _) => return other,
            (_, 0) => return self,
            _ => {}
        }
        let count = self.count + other.count;
        let (distance, share) = (other.mean - self.mean, other.count as f64 / count as f64);
        Self {
            count,
            mean: self.mean + distance * share,
            squares: self.squares + other.squares + distance * distance * share * self.count as f64,
            min: self.min.min(other.min),
            max: self.max.max(other.max),
        }
    }
}

/// A sum in eight lanes, which the compiler puts into vectors.
#[inline(always)]
fn sum(block: &[f64], term: impl Fn(f64) -> f64) -> f64 {
    lanes(block, 0.0, |sum, value| sum + term(value)).iter().sum()
}

#[inline(always)]
fn fold(block: &[f64], start: f64, step: impl Fn(f64, f64) -> f64) -> f64 {
    lanes(block, start, &step).into_iter().fold(start, step)
}

#[inline(always)]
fn lanes(block: &[f64], start: f64, step: impl Fn(f64, f64) -> f64) -> [f64; 8] {
    let mut lanes = [start; 8];
    let (eights, rest) = block.as_chunks::<8>();
    for eight in eights {
        for (lane, &value) in lanes.iter_mut().zip(eight) {
            *lane = step(*lane, value);
        }
    }
    for (lane, &value) in lanes.iter_mut().zip(rest) {
        *lane = step(*lane, value);
    }
    lanes
}

/// The sign, the exponent and seven bits of the mantissa of a value as an `f32`; both zeros are one.
fn code(value: f64) -> u16 {
    ((value as f32 + 0.0).to_bits() >> 16) as u16
}

/// The extremes of integers of 64 bits.
fn integers(dtype: Dtype, bytes: &[u8]) -> Option<(i128, i128)> {
    let values = bytes.as_chunks::<8>().0.iter();
    match dtype {
        Dtype::I64 => {
            let (min, max) = extremes(values.map(|&value| i64::from_le_bytes(value)))?;
            Some((min.into(), max.into()))
        }
        Dtype::U64 => {
            let (min, max) = extremes(values.map(|&value| u64::from_le_bytes(value)))?;
            Some((min.into(), max.into()))
        }
        _ => None,
    }
}

fn extremes<T: Ord + Copy>(mut values: impl Iterator<Item = T>) -> Option<(T, T)> {
    let first = values.next()?;
    Some(values.fold((first, first), |(min, max), value| (min.min(value), max.max(value))))
}

fn exact(value: i128) -> Number {
    match i64::try_from(value) {
        Ok(value) => Number::Signed(value),
        Err(_) => Number::Unsigned(value as u64),
    }
}
