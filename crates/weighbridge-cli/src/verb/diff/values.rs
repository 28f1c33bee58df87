//! Values against values, piece by piece in both files, on all cores.

use std::cell::RefCell;

use anyhow::{Context, Result};
use serde::Serialize;
use weighbridge::plan::cast_into;
use weighbridge::{Dtype, TensorRef};

use crate::chunks::{self, Chunk};
use crate::dtype::can_read;
use crate::show::safe;
use crate::term::Term;

/// When two values are the same.
#[derive(Clone, Copy, Debug)]
pub(in crate::verb) enum Tolerance {
    /// When their bits are; of different dtypes, when they are equal or both NaN.
    Bits,
    /// When |a - b| <= atol + rtol * |b|, or both are NaN.
    Within { rtol: f64, atol: f64 },
}

/// A tensor, and how far its values are from those of the other.
#[derive(Debug, Serialize)]
pub(in crate::verb) struct Moved<'a> {
    pub(in crate::verb) name: &'a str,
    /// How many values differ.
    pub(in crate::verb) differing: u64,
    /// Of how many; of a complex number both parts count.
    pub(in crate::verb) values: u64,
    /// The greatest |a - b| of finite values.
    pub(in crate::verb) max_absolute: Option<f64>,
    /// The greatest |a - b| / max(|a|, |b|).
    pub(in crate::verb) max_relative: Option<f64>,
    /// The norm of a - b, as a share of the norm of a.
    pub(in crate::verb) moved: Option<f64>,
    /// The cosine of the angle between a and b, over values that are finite in both.
    pub(in crate::verb) cosine: Option<f64>,
    #[serde(skip)]
    pub(in crate::verb) distance: Option<f64>,
    #[serde(skip)]
    pub(in crate::verb) norm: Option<f64>,
}

/// All tensors, those that moved most first.
pub(in crate::verb) fn compare<'a>(
    pairs: &[[TensorRef<'a>; 2]],
    tolerance: Tolerance,
    term: &Term,
) -> Result<Vec<Moved<'a>>> {
    // What has no numbers in common has other values.
    let has_common = |[a, b]: &[TensorRef<'_>; 2]| common(a.dtype(), b.dtype()).is_some();
    let (pairs, others): (Vec<_>, Vec<[TensorRef<'a>; 2]>) = pairs.iter().partition(|pair| has_common(pair));
    let mut found: Vec<_> = others
        .into_iter()
        .filter(|[a, _]| a.elements() > 0)
        .map(|[a, _]| Moved {
            name: a.name(),
            differing: a.elements(),
            values: a.elements(),
            max_absolute: None,
            max_relative: None,
            moved: None,
            cosine: None,
            distance: None,
            norm: None,
        })
        .collect();
    let firsts: Vec<_> = pairs.iter().map(|[a, _]| *a).collect();
    let bar = term.bar("comparing", firsts.iter().map(TensorRef::byte_len).sum());
    let mut sums = Sums::default();
    chunks::map_in_order(
        &firsts,
        &bar,
        |chunk, bytes| {
            let [a, b] = pairs[chunk.place];
            with_other(chunk, b, |other| Sums::of([a.dtype(), b.dtype()], bytes, other, tolerance))
        },
        |chunk, part| {
            sums.add(&part);
            if chunk.range.end == chunk.tensor.byte_len() {
                let sums = std::mem::take(&mut sums);
                found.push(sums.moved(chunk.tensor.name()));
            }
            Ok(())
        },
    )?;
    // Those that could not be compared in front, as if they had moved without end.
    let distance = |moved: &Moved<'_>| moved.moved.unwrap_or(f64::INFINITY);
    found.sort_by(|a, b| {
        distance(b).total_cmp(&distance(a)).then_with(|| weighbridge::natural_order(a.name, b.name))
    });
    Ok(found)
}

/// Calls `with` with the bytes of the other tensor that belong to the piece.
fn with_other<R>(
    chunk: &Chunk<'_>,
    other: TensorRef<'_>,
    with: impl FnOnce(&[u8]) -> Result<R>,
) -> Result<R> {
    thread_local!(static MEMORY: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) });
    let (own, its) = (u64::from(chunk.tensor.dtype().bits()), u64::from(other.dtype().bits()));
    // Pieces start and end between elements, which have `own` and `its` bits.
    let place = |byte: u64| byte / own * its + byte % own * its / own;
    let (start, end) = (place(chunk.range.start), place(chunk.range.end));
    MEMORY.with_borrow_mut(|memory| {
        let len = (end - start) as usize;
        if memory.len() < len {
            memory.resize(len, 0);
        }
        let memory = &mut memory[..len];
        let offset = other.info().file_range().start + start;
        other.shard().source().read_at(offset, memory).with_context(|| {
            let (file, name) = (other.shard().name(), safe(other.name()));
            format!("{file}: tensor {name:?}: its data cannot be read")
        })?;
        with(memory)
    })
}

/// As what elements of two dtypes are compared: both as numbers, or, where the dtype is the same, as bytes.
fn common(a: Dtype, b: Dtype) -> Option<[Dtype; 2]> {
    let is_packed = |dtype| !can_read(dtype);
    match (a, b) {
        (Dtype::C64, Dtype::C64) => Some([Dtype::F32; 2]),
        (Dtype::C64, _) | (_, Dtype::C64) => None,
        _ if is_packed(a) || is_packed(b) => (a == b).then_some([Dtype::U8; 2]),
        _ => Some([a, b]),
    }
}

/// What is known of some pairs of values.
#[derive(Debug, Default)]
struct Sums {
    differing: u64,
    values: u64,
    /// Whether the values are numbers.
    packed: bool,
    max_absolute: f64,
    max_relative: f64,
    /// Of (a - b)² and of a².
    squares: f64,
    all_squares: f64,
    /// Of a², b² and a b where both are finite.
    products: [f64; 3],
}

/// Pairs at a time; they stay in the first-level cache.
const BLOCK: usize = 512;

impl Sums {
    fn of(dtypes: [Dtype; 2], a: &[u8], b: &[u8], tolerance: Tolerance) -> Result<Self> {
        let [from, to] = common(dtypes[0], dtypes[1]).context("there is nothing in common")?;
        let [size, other] = [from, to].map(|dtype| dtype.bits() as usize);
        let mut sums = Self { packed: !can_read(dtypes[0]), ..Self::default() };
        let (mut left, mut right) = ([0.0; BLOCK], [0.0; BLOCK]);
        for (a, b) in a.chunks(BLOCK * size / 8).zip(b.chunks(BLOCK * other / 8)) {
            let count = a.len() * 8 / size;
            let (left, right) = (&mut left[..count], &mut right[..count]);
            sums.values += count as u64;
            cast_into(from, a, left)?;
            let same = from == to && a == b;
            if !same {
                cast_into(to, b, right)?;
                sums.differing += match tolerance {
                    Tolerance::Bits if from == to => differing_bits(size, a, b),
                    Tolerance::Bits => differing(left, right, 0.0, 0.0),
                    Tolerance::Within { rtol, atol } => differing(left, right, rtol, atol),
                };
                sums.measure(left, right);
            }
            let squares =
                left.iter().filter(|value| value.is_finite()).map(|value| value * value).sum::<f64>();
            sums.all_squares += squares;
            if same {
                sums.products.iter_mut().for_each(|product| *product += squares);
            }
        }
        Ok(sums)
    }

    fn measure(&mut self, left: &[f64], right: &[f64]) {
        for (&a, &b) in left.iter().zip(right) {
            let distance = (a - b).abs();
            if distance.is_finite() {
                let size = a.abs().max(b.abs());
                let relative = if distance > 0.0 { distance / size } else { 0.0 };
                self.max_absolute = self.max_absolute.max(distance);
                self.max_relative = self.max_relative.max(relative);
                self.squares += distance * distance;
            }
            if a.is_finite() && b.is_finite() {
                for (sum, product) in self.products.iter_mut().zip([a * a, b * b, a * b]) {
                    *sum += product;
                }
            }
        }
    }

    fn add(&mut self, other: &Self) {
        self.differing += other.differing;
        self.values += other.values;
        self.packed |= other.packed;
        self.max_absolute = self.max_absolute.max(other.max_absolute);
        self.max_relative = self.max_relative.max(other.max_relative);
        self.squares += other.squares;
        self.all_squares += other.all_squares;
        for (sum, product) in self.products.iter_mut().zip(other.products) {
            *sum += product;
        }
    }

    fn moved<'a>(&self, name: &'a str) -> Moved<'a> {
        let number = |value: f64| (!self.packed).then_some(value);
        let [a, b, both] = self.products;
        Moved {
            name,
            differing: self.differing,
            values: self.values,
            max_absolute: number(self.max_absolute),
            max_relative: number(self.max_relative),
            // From nothing everything is infinitely far.
            moved: number((self.squares / self.all_squares).sqrt()).filter(|share| share.is_finite()),
            // Of one and the same the roots may round so that it would be beyond 1.
            cosine: number((both / (a.sqrt() * b.sqrt())).clamp(-1.0, 1.0))
                .filter(|cosine| cosine.is_finite()),
            distance: number(self.squares.sqrt()).filter(|norm| norm.is_finite()),
            norm: number(self.all_squares.sqrt()).filter(|norm| norm.is_finite()),
        }
    }
}

/// The number of elements of `bits` bits that differ.
fn differing_bits(bits: usize, a: &[u8], b: &[u8]) -> u64 {
    if bits == 4 {
        let differ = |byte: u8| u64::from(byte & 0xF != 0) + u64::from(byte >> 4 != 0);
        return a.iter().zip(b).map(|(a, b)| differ(a ^ b)).sum();
    }
    let size = bits / 8;
    a.chunks_exact(size).zip(b.chunks_exact(size)).map(|(a, b)| u64::from(a != b)).sum()
}

fn differing(left: &[f64], right: &[f64], rtol: f64, atol: f64) -> u64 {
    let differs = |(&a, &b): (&f64, &f64)| {
        let near = (a - b).abs() <= atol + rtol * b.abs();
        // Infinities are near to nothing, and equal to themselves.
        let near = near & b.is_finite() & a.is_finite();
        u64::from(!(near | (a == b) | (a.is_nan() & b.is_nan())))
    };
    left.iter().zip(right).map(differs).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tolerance_is_as_in_numpy() {
        let (nan, inf) = (f64::NAN, f64::INFINITY);
        let pairs =
            [(nan, nan, 0), (nan, 1.0, 1), (inf, inf, 0), (inf, -inf, 1), (1.0, inf, 1), (inf, 1.0, 1)];
        for (a, b, expected) in pairs {
            assert_eq!(differing(&[a], &[b], 0.1, 0.1), expected, "{a} {b}");
        }
        assert_eq!(differing(&[1.0, 1.0], &[1.1, 1.2], 0.1, 0.0), 1);
        assert_eq!(differing(&[0.0, 0.0], &[0.1, 0.2], 0.0, 0.1), 1);
    }
}
