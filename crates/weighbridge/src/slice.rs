//! Parts of tensors, and the bytes that hold them.
//!
//! A [`Slice`] says which part, in the words of NumPy and PyTorch: `0:10, ::2, -1, ...`. Applied to a dtype and a
//! shape it becomes a [`Region`]: the shape of the part and the exact bytes of the tensor that hold it.
//!
//! ```
//! use weighbridge::{Dtype, slice::Slice};
//!
//! # fn main() -> weighbridge::Result<()> {
//! let slice: Slice = "1:3, ..., -1".parse()?; // or Slice::new().range(1..3).ellipsis().select(-1)
//! let region = slice.of(Dtype::F32, &[4, 2, 5])?;
//! assert_eq!(region.shape(), [2, 2]);
//! assert_eq!(region.byte_ranges().collect::<Vec<_>>(), [56..60, 76..80, 96..100, 116..120]);
//! # Ok(())
//! # }
//! ```

use std::fmt;
use std::ops::{Bound, Range, RangeBounds};
use std::str::FromStr;

use crate::dtype::Dtype;
use crate::error::{Error, ErrorKind, Result};
use crate::text::brief;

/// A part of a tensor, one index a dimension, by the rules of Python: negative numbers count from the end, an end
/// left out is the dimension's, ranges are cut to what is there, and what starts behind its end is empty.
/// Dimensions that are not named are taken whole.
///
/// As in NumPy, a step may be negative; the part is then taken backwards. An index that selects one place drops
/// the dimension, and must be there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Slice {
    indices: Vec<Index>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Index {
    Select(i64),
    Range { start: Option<i64>, end: Option<i64>, step: i64 },
    Ellipsis,
}

impl Slice {
    /// The whole tensor, until indices are added.
    pub fn new() -> Self {
        Self::default()
    }

    /// A range of one dimension, and all others whole: the rows from an offset on, the columns of a rank.
    ///
    /// ```
    /// use weighbridge::{Dtype, slice::Slice};
    ///
    /// # fn main() -> weighbridge::Result<()> {
    /// let (dim, offset, len) = (1, 2, 3);
    /// let region = Slice::along(dim, offset..offset + len).of(Dtype::F32, &[4, 8])?;
    /// assert_eq!(region.shape(), [4, 3]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn along(dim: usize, range: Range<usize>) -> Self {
        let bound = |bound: usize| i64::try_from(bound).unwrap_or(i64::MAX);
        let before = (0..dim).fold(Self::new(), |slice, _| slice.range(..));
        before.range(bound(range.start)..bound(range.end))
    }

    /// Takes one place of the next dimension, and drops the dimension.
    #[must_use]
    pub fn select(mut self, place: i64) -> Self {
        self.indices.push(Index::Select(place));
        self
    }

    /// Takes a range of the next dimension: `1..3`, `..`, `-2..`, `..=5`.
    #[must_use]
    pub fn range(self, range: impl RangeBounds<i64>) -> Self {
        self.range_by(range, 1)
    }

    /// Takes every `step`th place of a range of the next dimension. With a negative step the range's start is
    /// the place to start at, as in Python: `range_by(.., -1)` takes all of it backwards.
    ///
    /// A step of 0 is refused when the slice is applied.
    #[must_use]
    pub fn range_by(mut self, range: impl RangeBounds<i64>, step: i64) -> Self {
        let start = match range.start_bound() {
            Bound::Included(&start) => Some(start),
            // Nothing comes after the last place, nor, backwards, after the first.
            Bound::Excluded(-1) if step > 0 => return self.range_by(0..0, step),
            Bound::Excluded(0) if step < 0 => return self.range_by(0..0, step),
            Bound::Excluded(&start) => Some(start.saturating_add(step.signum())),
            Bound::Unbounded => None,
        };
        let end = match range.end_bound() {
            // The place behind -1 is the dimension's end, for which there is no number.
            Bound::Included(-1) if step > 0 => None,
            Bound::Included(&end) if step > 0 => Some(end.saturating_add(1)),
            Bound::Included(0) => None,
            Bound::Included(&end) => Some(end.saturating_sub(1)),
            Bound::Excluded(&end) => Some(end),
            Bound::Unbounded => None,
        };
        self.indices.push(Index::Range { start, end, step });
        self
    }

    /// Takes as many dimensions whole as are left for it; may stand once.
    #[must_use]
    pub fn ellipsis(mut self) -> Self {
        self.indices.push(Index::Ellipsis);
        self
    }

    /// The part of a tensor of that dtype and shape.
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::Slice`] when there are more indices than dimensions, when a selected place is not
    /// there, when a step is 0 or two ellipses stand there; with [`ErrorKind::SubByte`] when a piece of a part of
    /// 4- or 6-bit values does not start and end on a byte; and with [`ErrorKind::Overflow`] when the shape's size
    /// does not fit 64 bits.
    pub fn of(&self, dtype: Dtype, shape: &[usize]) -> Result<Region> {
        let is_ellipsis = |index: &Index| *index == Index::Ellipsis;
        let (before, after) = match self.indices.iter().position(is_ellipsis) {
            Some(place) => (&self.indices[..place], &self.indices[place + 1..]),
            None => (&*self.indices, &[][..]),
        };
        if after.iter().any(is_ellipsis) {
            return Err(fail("two ellipses stand there".to_owned()));
        }
        let named = before.len() + after.len();
        let Some(whole) = shape.len().checked_sub(named) else {
            return Err(fail(format!("{named} indices stand there, but shape {} has fewer", brief(shape))));
        };
        let indices = before.iter().chain(std::iter::repeat_n(&Index::ALL, whole)).chain(after);
        let axes: Vec<_> = indices.zip(shape).map(|(index, &dim)| index.of(dim)).collect::<Result<_>>()?;
        Region::new(dtype, shape, &axes)
    }
}

impl Index {
    const ALL: Self = Self::Range { start: None, end: None, step: 1 };

    fn of(self, dim: usize) -> Result<Axis> {
        let len = dim as i128;
        let from_end = |place: i64| i128::from(place) + if place < 0 { len } else { 0 };
        match self {
            Self::Select(place) => match from_end(place) {
                start if (0..len).contains(&start) => Ok(Axis { start, step: 1, count: 1, kept: false }),
                _ => Err(fail(format!("place {place} is not in a dimension of {dim}"))),
            },
            Self::Range { step: 0, .. } => Err(fail("a step of 0".to_owned())),
            Self::Range { start, end, step } => {
                // As Python's slice.indices: places are cut to 0..=len forwards and to -1..=len-1 backwards.
                let (least, most) = if step > 0 { (0, len) } else { (-1, len - 1) };
                let (first, last) = if step > 0 { (least, most) } else { (most, least) };
                let cut = |place: i64| from_end(place).clamp(least, most);
                let (start, end) = (start.map_or(first, cut), end.map_or(last, cut));
                let step = i128::from(step);
                let span = (end - start) * step.signum();
                // Rounded up; a span below nothing holds nothing.
                let count = (span.max(0) + step.abs() - 1) / step.abs();
                Ok(Axis { start, step, count, kept: true })
            }
            Self::Ellipsis => Err(fail("an ellipsis is not an index of one dimension".to_owned())),
        }
    }
}

/// What is taken of one dimension.
#[derive(Clone, Copy, Debug)]
struct Axis {
    start: i128,
    step: i128,
    count: i128,
    /// Whether the part has this dimension.
    kept: bool,
}

fn fail(message: String) -> Error {
    Error::new(ErrorKind::Slice, message)
}

impl FromStr for Slice {
    type Err = Error;

    /// Reads `0:10, ::2, -1, ...`, with or without brackets around it.
    fn from_str(text: &str) -> Result<Self> {
        let wrong = |part: &str| {
            let part: String = part.chars().take(64).collect();
            fail(format!("{part:?} is not an index; write a number, start:end, start:end:step, or ..."))
        };
        let inner = text.trim();
        let inner = inner.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(inner);
        let mut slice = Self::new();
        if inner.trim().is_empty() {
            return Ok(slice);
        }
        for part in inner.split(',').map(str::trim) {
            let number = |text: &str| match text.trim() {
                "" => Ok(None),
                text => text.parse().map(Some).map_err(|_| wrong(part)),
            };
            let parts: Vec<_> = part.split(':').collect();
            slice.indices.push(match *parts {
                ["..."] => Index::Ellipsis,
                [place] => Index::Select(number(place)?.ok_or_else(|| wrong(part))?),
                [start, end] => Index::Range { start: number(start)?, end: number(end)?, step: 1 },
                [start, end, step] => {
                    let step = number(step)?.unwrap_or(1);
                    Index::Range { start: number(start)?, end: number(end)?, step }
                }
                _ => return Err(wrong(part)),
            });
        }
        Ok(slice)
    }
}

impl fmt::Display for Slice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |number: Option<i64>| number.map_or_else(String::new, |number| number.to_string());
        let parts = self.indices.iter().map(|index| match *index {
            Index::Select(place) => place.to_string(),
            Index::Range { start, end, step: 1 } => format!("{}:{}", text(start), text(end)),
            Index::Range { start, end, step } => format!("{}:{}:{step}", text(start), text(end)),
            Index::Ellipsis => "...".to_owned(),
        });
        write!(f, "[{}]", parts.collect::<Vec<_>>().join(", "))
    }
}

/// A part of a tensor of known dtype and shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    dtype: Dtype,
    shape: Vec<usize>,
    /// The bits from the tensor's start to the part's first element.
    first: i128,
    /// The bits of the pieces that lie together.
    run: i128,
    /// How pieces repeat, innermost first: how often, and the bits from one to the next.
    repeats: Vec<(i128, i128)>,
}

impl Region {
    fn new(dtype: Dtype, shape: &[usize], axes: &[Axis]) -> Result<Self> {
        let kept = axes.iter().filter(|axis| axis.kept);
        // A count is at most its dimension.
        let made = kept.map(|axis| axis.count as usize).collect();
        let empty = axes.iter().any(|axis| axis.count == 0);
        let bits = i128::from(dtype.bits());
        let mut region = Self { dtype, shape: made, first: 0, run: bits, repeats: Vec::new() };
        if empty {
            region.run = 0;
            return Ok(region);
        }
        // With this proven, no product below can overflow.
        dtype.size_of(shape)?;
        let mut stride = bits;
        for (axis, &dim) in axes.iter().zip(shape).rev() {
            region.first += axis.start * stride;
            if axis.count > 1 {
                let step = axis.step * stride;
                // Adjacent pieces are one; so are repetitions that continue one another.
                match region.repeats.last_mut() {
                    None if step == region.run => region.run *= axis.count,
                    Some((count, inner)) if *inner * *count == step => *count *= axis.count,
                    _ => region.repeats.push((axis.count, step)),
                }
            }
            stride *= dim as i128;
        }
        let mut edges = region.repeats.iter().map(|repeat| repeat.1).chain([region.first, region.run]);
        if edges.any(|bits| bits % 8 != 0) {
            let message = format!("pieces of the part of {dtype} do not start and end on a byte");
            return Err(Error::new(ErrorKind::SubByte, message));
        }
        Ok(region)
    }

    /// The type of the elements.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The shape of the part: selected dimensions are gone.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The bytes that the part has.
    pub fn byte_len(&self) -> u64 {
        let pieces = self.repeats.iter().map(|repeat| repeat.0);
        (pieces.product::<i128>() * self.run / 8) as u64
    }

    /// The bytes of the tensor, counted from its start, which one after the other are the part. Ranges that
    /// adjoin are one; an empty part has none.
    pub fn byte_ranges(&self) -> ByteRanges<'_> {
        self.byte_ranges_in(0..self.byte_len())
    }

    /// The same for some bytes of the part, counted from its start; what lies behind its end has none.
    pub fn byte_ranges_in(&self, part: Range<u64>) -> ByteRanges<'_> {
        let mut ranges = ByteRanges {
            region: self,
            places: vec![0; self.repeats.len()],
            next: self.first,
            skip: 0,
            left: i128::from(part.end.min(self.byte_len()).saturating_sub(part.start)) * 8,
        };
        if ranges.left > 0 {
            let bits = i128::from(part.start) * 8;
            let mut number = bits / self.run;
            ranges.skip = bits % self.run;
            for ((count, step), place) in self.repeats.iter().zip(&mut ranges.places) {
                *place = number % count;
                number /= count;
                ranges.next += *place * step;
            }
        }
        ranges
    }

    /// The bytes of a piece that lies together.
    pub(crate) fn run_bytes(&self) -> u64 {
        (self.run / 8) as u64
    }

    /// The bytes between two pieces that follow one another in the innermost repetition; as many as there can be
    /// if there is one piece only, or they run backwards.
    pub(crate) fn least_gap(&self) -> u64 {
        let gap = self.repeats.first().map(|repeat| (repeat.1 - self.run) / 8);
        gap.and_then(|gap| u64::try_from(gap).ok()).unwrap_or(u64::MAX)
    }
}

/// The bytes of a [`Region`]; made by [`Region::byte_ranges`].
#[derive(Clone, Debug)]
pub struct ByteRanges<'a> {
    region: &'a Region,
    /// How often each of the region's repetitions was done.
    places: Vec<i128>,
    /// The first bit of the piece that comes next.
    next: i128,
    /// Bits of it that are not wanted.
    skip: i128,
    /// Bits that are still to come.
    left: i128,
}

impl ByteRanges<'_> {
    /// The bits of the next piece, as far as they are wanted.
    fn piece(&mut self) -> Range<i128> {
        let start = self.next + std::mem::take(&mut self.skip);
        let end = (self.next + self.region.run).min(start + self.left);
        self.left -= end - start;
        for ((count, step), place) in self.region.repeats.iter().zip(&mut self.places) {
            *place += 1;
            self.next += step;
            if *place < *count {
                break;
            }
            self.next -= step * count;
            *place = 0;
        }
        start..end
    }
}

impl Iterator for ByteRanges<'_> {
    type Item = Range<u64>;

    fn next(&mut self) -> Option<Range<u64>> {
        if self.left <= 0 {
            return None;
        }
        let mut piece = self.piece();
        while self.left > 0 && self.next == piece.end {
            piece.end = self.piece().end;
        }
        Some((piece.start / 8) as u64..(piece.end / 8) as u64)
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, clippy::reversed_empty_ranges)]
mod tests {
    use super::*;

    fn region(slice: &str, shape: &[usize]) -> Region {
        slice.parse::<Slice>().unwrap().of(Dtype::U8, shape).unwrap()
    }

    fn ranges(slice: &str, shape: &[usize]) -> Vec<Range<u64>> {
        region(slice, shape).byte_ranges().collect()
    }

    #[test]
    fn ranges_that_adjoin_are_one() {
        assert_eq!(ranges("", &[2, 3]), [0..6]);
        assert_eq!(ranges("1", &[2, 3]), [3..6]);
        assert_eq!(ranges(":, :, :", &[2, 3, 4]), [0..24]);
        assert_eq!(ranges("1:, :", &[3, 4]), [4..12]);
        assert_eq!(ranges(":, 0", &[3, 1]), [0..3]);
        assert_eq!(ranges(":, ::3", &[2, 4]), [0..1, 3..5, 7..8]);
        assert_eq!(ranges("..., :2", &[2, 2, 4]), [0..2, 4..6, 8..10, 12..14]);
        assert_eq!(ranges("::-1", &[3]), [2..3, 1..2, 0..1]);
        assert_eq!(ranges("::9", &[4, 2]), [0..2]);
        assert_eq!(ranges("", &[]), [0..1]);
        assert_eq!(ranges("...", &[]), [0..1]);
        assert_eq!(ranges("::9223372036854775807, ::-9223372036854775808", &[2, 3]), [2..3]);
    }

    #[test]
    fn what_is_empty_has_a_shape_and_no_bytes() {
        for (slice, shape, made) in [
            ("2:1", &[3][..], &[0][..]),
            ("0:0:2", &[3], &[0]),
            (":, 1:1, :", &[2, 3, 4], &[2, 0, 4]),
            ("", &[0, 2], &[0, 2]),
            (":, 1", &[0, 2], &[0]),
            ("3:", &[3, 2], &[0, 2]),
            ("5:9", &[3], &[0]),
            ("1:2:-1", &[3], &[0]),
            ("::9223372036854775807, ::-9223372036854775808", &[0, 1], &[0, 1]),
            (":", &[0, usize::MAX, usize::MAX], &[0, usize::MAX, usize::MAX]),
        ] {
            let region = region(slice, shape);
            assert_eq!(region.shape(), made, "{slice}");
            assert_eq!((region.byte_len(), region.byte_ranges().next()), (0, None), "{slice}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let kind = |slice: &str, dtype, shape: &[usize]| {
            slice.parse::<Slice>().and_then(|slice| slice.of(dtype, shape)).unwrap_err().kind()
        };
        for slice in ["3", "-4", "0, 0", "..., ...", "::0", "x", "1:2:3:4", ",", "0,", "9223372036854775808"]
        {
            assert_eq!(kind(slice, Dtype::U8, &[3]), ErrorKind::Slice, "{slice}");
        }
        assert_eq!(kind("0", Dtype::U8, &[0]), ErrorKind::Slice);
        assert_eq!(kind("0", Dtype::F4, &[2]), ErrorKind::SubByte);
        assert_eq!(kind(":, :1", Dtype::F4, &[2, 2]), ErrorKind::SubByte);
        assert_eq!(kind("1:", Dtype::F6_E2M3, &[8]), ErrorKind::SubByte);
        assert_eq!(kind("", Dtype::F64, &[usize::MAX, usize::MAX]), ErrorKind::Overflow);
        assert_eq!(kind("", Dtype::F64, &[usize::MAX, 9, usize::MAX]), ErrorKind::Overflow);
    }

    #[test]
    fn pieces_of_less_than_a_byte() {
        let of = |slice: &str, dtype, shape: &[usize]| {
            slice.parse::<Slice>().unwrap().of(dtype, shape).unwrap().byte_ranges().collect::<Vec<_>>()
        };
        assert_eq!(of("2:6", Dtype::F4, &[8]), [1..3]);
        assert_eq!(of(":, 4:8", Dtype::F6_E3M2, &[2, 8]), [3..6, 9..12]);
        assert_eq!(of("1, :", Dtype::F4, &[2, 2]), [1..2]);
    }

    #[test]
    fn builders_are_what_text_says() {
        let same = |slice: Slice, text: &str| assert_eq!(slice, text.parse().unwrap(), "{text}");
        same(Slice::new().range(1..3).ellipsis().select(-1), "[1:3, ..., -1]");
        same(Slice::new().range(..).range(2..=4).range(..=-1).range(-3..), ":, 2:5, :, -3:");
        same(Slice::new().range_by(.., -1).range_by(5..=0, -2).range_by(5..=1, -2), "::-1, 5::-2, 5:0:-2");
        let behind = |place| (Bound::Excluded(place), Bound::Unbounded);
        same(
            Slice::new().range(behind(1)).range_by(behind(5), -1).range_by(behind(-3), 2),
            "2:, 4::-1, -2::2",
        );
        same(Slice::new().range(behind(-1)).range_by(behind(0), -1), "0:0, 0:0:-1");
        assert_eq!("1:3:1, ..., -1, ::2".parse::<Slice>().unwrap().to_string(), "[1:3, ..., -1, ::2]");
    }
}
