//! How often each code of 4, 8 or 16 bits occurs, and what follows from that.

use std::cmp::Ordering;

use weighbridge::plan::cast_into;
use weighbridge::{Dtype, Result};

use super::{Figures, histogram, number};

/// Codes and how often each occurs, in ascending order.
pub(super) type Tally = Vec<(u16, u64)>;

/// Counts one byte a value. Four tables, as a processor cannot count the same code twice at once.
pub(super) fn of_bytes(bytes: &[u8]) -> Tally {
    let mut tables = [[0_u32; 256]; 4];
    let (fours, rest) = bytes.as_chunks::<4>();
    for four in fours {
        for (table, &code) in tables.iter_mut().zip(four) {
            table[usize::from(code)] += 1;
        }
    }
    for &code in rest {
        tables[0][usize::from(code)] += 1;
    }
    let sums = (0..256).map(|code| tables.iter().map(|table| u64::from(table[code])).sum());
    listed(sums)
}

/// Counts two values a byte; their order makes no difference.
pub(super) fn of_nibbles(bytes: &[u8]) -> Tally {
    let mut sums = [0; 16];
    for (code, count) in of_bytes(bytes) {
        sums[usize::from(code & 0xF)] += count;
        sums[usize::from(code >> 4)] += count;
    }
    listed(sums.into_iter())
}

/// Counts two bytes a value.
pub(super) fn of_pairs(bytes: &[u8]) -> Tally {
    let codes = bytes.as_chunks::<2>().0;
    of_codes(codes.len(), codes.iter().map(|&code| u16::from_le_bytes(code)))
}

/// Counts codes, about `count` of them.
pub(super) fn of_codes(count: usize, codes: impl Iterator<Item = u16>) -> Tally {
    /// Up to here sorting takes less time than looking through the table.
    const FEW: usize = 4096;
    if count <= FEW {
        let mut codes: Vec<_> = codes.collect();
        codes.sort_unstable();
        return codes.chunk_by(|a, b| a == b).map(|run| (run[0], run.len() as u64)).collect();
    }
    let mut table = Table::new();
    codes.for_each(|code| table.add(code));
    table.tally()
}

/// Counts all codes of 16 bits.
pub(super) struct Table(Box<[u32; 1 << 16]>);

impl Table {
    pub(super) fn new() -> Self {
        Self(Box::new([0; 1 << 16]))
    }

    #[inline(always)]
    pub(super) fn add(&mut self, code: u16) {
        self.0[usize::from(code)] += 1;
    }

    pub(super) fn tally(&self) -> Tally {
        listed(self.0.iter().map(|&count| count.into()))
    }
}

fn listed(counts: impl Iterator<Item = u64>) -> Tally {
    (0..=u16::MAX).zip(counts).filter(|(_, count)| *count > 0).collect()
}

pub(super) fn merge(these: &Tally, those: &Tally) -> Tally {
    let mut merged = Vec::with_capacity(these.len().max(those.len()));
    let (mut left, mut right) = (these.iter().peekable(), those.iter().peekable());
    loop {
        let order = match (left.peek(), right.peek()) {
            (Some(l), Some(r)) => l.0.cmp(&r.0),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return merged,
        };
        let from_left = if order.is_le() { left.next() } else { None };
        let from_right = if order.is_ge() { right.next() } else { None };
        let code = from_left.or(from_right).map_or(0, |entry| entry.0);
        merged.push((code, from_left.map_or(0, |entry| entry.1) + from_right.map_or(0, |entry| entry.1)));
    }
}

/// The figures of values of which each code occurs so often: exact but for the rounding of the last step.
pub(super) fn figures(dtype: Dtype, tally: &Tally) -> Result<Figures> {
    let values = values(dtype, tally)?;
    let count_of = |wanted: fn(f64) -> bool| {
        let matching = values.iter().filter(|(value, _)| wanted(*value));
        matching.map(|(_, count)| count).sum::<u64>()
    };
    let finite: Vec<_> = values.iter().copied().filter(|(value, _)| value.is_finite()).collect();
    let count = finite.iter().map(|(_, count)| count).sum::<u64>() as f64;
    let sum: f64 = finite.iter().map(|&(value, count)| value * count as f64).sum();
    let mean = (!finite.is_empty()).then(|| sum / count);
    let squares = mean.map(|mean| -> f64 {
        finite.iter().map(|&(value, count)| (value - mean) * (value - mean) * count as f64).sum()
    });
    let min = finite.iter().map(|entry| entry.0).reduce(f64::min);
    let max = finite.iter().map(|entry| entry.0).reduce(f64::max);
    Ok(Figures {
        values: count_of(|_| true),
        min: min.map(|min| number(dtype, min)),
        max: max.map(|max| number(dtype, max)),
        mean,
        std: squares.map(|squares| (squares / count).sqrt()),
        zeros: count_of(|value| value == 0.0),
        nans: count_of(f64::is_nan),
        infinities: count_of(|value| value == f64::INFINITY),
        negative_infinities: count_of(|value| value == f64::NEG_INFINITY),
        histogram: min.zip(max).map(|(low, high)| histogram(low, high, finite.into_iter())),
    })
}

/// The values of the codes.
fn values(dtype: Dtype, tally: &Tally) -> Result<Vec<(f64, u64)>> {
    // A code of 4 bits has a byte for itself, and a zero beside it.
    let per_byte = if dtype.bits() == 4 { 2 } else { 1 };
    let size = dtype.bits().div_ceil(8) as usize;
    let codes: Vec<u8> =
        tally.iter().flat_map(|entry| entry.0.to_le_bytes().into_iter().take(size)).collect();
    let mut values = vec![0.0; per_byte * tally.len()];
    cast_into(dtype, &codes, &mut values)?;
    Ok(values.into_iter().step_by(per_byte).zip(tally.iter().map(|entry| entry.1)).collect())
}
