//! Elements that lie in any order, as strides say: transposed, expanded, cut out.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use weighbridge::Source;

/// Bytes of the result that are made at a time and kept.
const BLOCK: usize = 16 << 20;
/// A region of the storage up to this many bytes is read as a whole.
const REGION: u64 = 64 << 20;
/// Gaps are read through while no more than this many bytes are read for one that is wanted.
const THROUGH: u64 = 16;

/// A tensor whose elements are gathered from a storage, row by row.
pub(crate) struct Strided {
    storage: Arc<dyn Source>,
    /// Bytes of an element.
    width: usize,
    /// Bytes of the words in it that are turned around; 1 turns nothing.
    swap: usize,
    /// Where the first element is, in bytes.
    start: u64,
    dims: Vec<Dim>,
    /// The block that was made last: readers go through a tensor front to back.
    last: Mutex<Option<Block>>,
}

/// A dimension: so many elements, so many bytes apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Dim {
    len: u64,
    stride: u64,
}

struct Block {
    range: Range<u64>,
    bytes: Arc<Vec<u8>>,
}

impl Strided {
    /// `start` and `strides` count elements. Everything that they reach is within the storage.
    pub(crate) fn new(
        storage: Arc<dyn Source>,
        (width, swap): (usize, usize),
        start: u64,
        shape: &[usize],
        strides: &[u64],
    ) -> Self {
        let bytes = width as u64;
        let mut dims: Vec<Dim> = Vec::with_capacity(shape.len());
        for (&len, &stride) in shape.iter().zip(strides).filter(|(len, _)| **len != 1) {
            let dim = Dim { len: len as u64, stride: stride.saturating_mul(bytes) };
            match dims.last_mut() {
                // Two dimensions that are one.
                Some(outer) if Some(outer.stride) == dim.stride.checked_mul(dim.len) => {
                    *outer = Dim { len: outer.len.saturating_mul(dim.len), stride: dim.stride };
                }
                _ => dims.push(dim),
            }
        }
        Self { storage, width, swap, start: start.saturating_mul(bytes), dims, last: Mutex::default() }
    }

    /// The block that was made last, if it holds the byte `at`.
    fn kept(&self, at: u64) -> Option<(Range<u64>, Arc<Vec<u8>>)> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let block = last.as_ref().filter(|block| block.range.contains(&at))?;
        Some((block.range.clone(), Arc::clone(&block.bytes)))
    }

    /// The block of the result that holds the byte `at`: one index of the outer dimensions, a range of one, all of the inner.
    fn block(&self, at: u64) -> io::Result<(Range<u64>, Vec<u8>)> {
        let mut inner = self.width as u64;
        let mut cut = self.dims.len();
        while let Some(dim) = cut.checked_sub(1).map(|place| self.dims[place]) {
            if inner.saturating_mul(dim.len) > BLOCK as u64 {
                break;
            }
            inner *= dim.len;
            cut -= 1;
        }
        let mut box_dims = self.dims[cut..].to_vec();
        let (mut index, mut start) = (at / inner, self.start);
        let mut range = 0..inner;
        if let Some(outer) = cut.checked_sub(1) {
            // The dimension that is cut: as many of its indices as a block has room for.
            let dim = self.dims[outer];
            let most = (BLOCK as u64 / inner).clamp(1, dim.len);
            let (rows, row) = (index / dim.len, index % dim.len);
            let first = row / most * most;
            let len = most.min(dim.len - first);
            box_dims.insert(0, Dim { len, stride: dim.stride });
            start += first * dim.stride;
            let begin = (rows * dim.len + first) * inner;
            range = begin..begin + len * inner;
            index = rows;
            for dim in self.dims[..outer].iter().rev() {
                start += index % dim.len * dim.stride;
                index /= dim.len;
            }
        }
        let mut bytes = vec![0; (range.end - range.start) as usize];
        self.gather(start, &box_dims, &mut bytes)?;
        if self.swap > 1 {
            bytes.chunks_exact_mut(self.swap).for_each(<[u8]>::reverse);
        }
        Ok((range, bytes))
    }

    /// Fills `out` with the elements of a box of indices whose first is at `start`.
    fn gather(&self, start: u64, dims: &[Dim], out: &mut [u8]) -> io::Result<()> {
        let width = self.width as u64;
        let reach: u64 = dims.iter().map(|dim| (dim.len - 1) * dim.stride).sum::<u64>() + width;
        if reach <= REGION.min(THROUGH.saturating_mul(out.len() as u64).max(64 << 10)) {
            let mut region = vec![0; reach as usize];
            self.storage.read_at(start, &mut region)?;
            let places = Places { dims, width: self.width };
            places.for_rows(|from, to, dim| {
                spread(
                    self.width,
                    &region[from as usize..],
                    dim.stride as usize,
                    &mut out[to..],
                    self.width,
                    dim.len,
                );
            });
            return Ok(());
        }
        // Too far apart: along the dimension whose elements are nearest to each other, run by run.
        let nearest =
            (0..dims.len()).filter(|&place| dims[place].stride > 0).min_by_key(|&place| dims[place].stride);
        let Some(nearest) = nearest else { return Ok(()) };
        let run = dims[nearest];
        let step: usize =
            dims[nearest + 1..].iter().map(|dim| dim.len as usize).product::<usize>() * self.width;
        let len = (run.len - 1) * run.stride + width;
        let whole = len <= THROUGH * run.len * width && len <= REGION;
        let mut memory = vec![0; if whole { len as usize } else { self.width }];
        let others: Vec<Dim> = dims
            .iter()
            .enumerate()
            .map(|(place, dim)| match place == nearest {
                true => Dim { len: 1, stride: 0 },
                false => *dim,
            })
            .collect();
        let mut failed = Ok(());
        let strides = out_strides(dims, self.width);
        for_indices(&others, &strides, |from, to| {
            if failed.is_err() {
                return;
            }
            failed = if whole {
                self.storage.read_at(start + from, &mut memory).map(|()| {
                    spread(self.width, &memory, run.stride as usize, &mut out[to..], step, run.len);
                })
            } else {
                (0..run.len).try_for_each(|place| {
                    let to = to + place as usize * step;
                    self.storage.read_at(start + from + place * run.stride, &mut out[to..to + self.width])
                })
            };
        });
        failed
    }
}

impl Source for Strided {
    fn size(&self) -> u64 {
        self.dims.iter().map(|dim| dim.len).product::<u64>() * self.width as u64
    }

    fn read_at(&self, mut offset: u64, mut buf: &mut [u8]) -> io::Result<()> {
        if offset.checked_add(buf.len() as u64).is_none_or(|end| end > self.size()) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        while !buf.is_empty() {
            let (range, bytes) = match self.kept(offset) {
                Some(kept) => kept,
                None => {
                    // Freed before the next is made: one block at a time is in memory.
                    self.last.lock().unwrap_or_else(PoisonError::into_inner).take();
                    let (range, bytes) = self.block(offset)?;
                    let bytes = Arc::new(bytes);
                    let block = Block { range: range.clone(), bytes: Arc::clone(&bytes) };
                    *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(block);
                    (range, bytes)
                }
            };
            let start = (offset - range.start) as usize;
            let len = (bytes.len() - start).min(buf.len());
            let (now, behind) = buf.split_at_mut(len);
            now.copy_from_slice(&bytes[start..start + len]);
            if offset + len as u64 == self.size() {
                // Nobody reads on; many tensors may be waiting for their turn.
                self.last.lock().unwrap_or_else(PoisonError::into_inner).take();
            }
            (offset, buf) = (offset + len as u64, behind);
        }
        Ok(())
    }
}

/// The rows of a box: its last dimension, for each index of the others.
struct Places<'d> {
    dims: &'d [Dim],
    width: usize,
}

impl Places<'_> {
    /// Calls `row` with where a row starts, where in the result it goes, and the dimension along it.
    fn for_rows(&self, mut row: impl FnMut(u64, usize, Dim)) {
        let one = Dim { len: 1, stride: 0 };
        let (last, others) =
            self.dims.split_last().map_or((one, self.dims), |(last, others)| (*last, others));
        let strides = out_strides(self.dims, self.width);
        for_indices(others, &strides, |from, to| row(from, to, last));
    }
}

/// Bytes in the result from one index of each dimension to the next.
fn out_strides(dims: &[Dim], width: usize) -> Vec<usize> {
    let mut strides = vec![0; dims.len()];
    let mut step = width;
    for (stride, dim) in strides.iter_mut().zip(dims).rev() {
        *stride = step;
        step *= dim.len as usize;
    }
    strides
}

/// Calls `each` with the position in the storage and in the result of every index.
fn for_indices(dims: &[Dim], out: &[usize], mut each: impl FnMut(u64, usize)) {
    let mut index = vec![0; dims.len()];
    let (mut from, mut to) = (0, 0);
    loop {
        each(from, to);
        let mut place = dims.len();
        loop {
            let Some(at) = place.checked_sub(1) else { return };
            place = at;
            index[at] += 1;
            from += dims[at].stride;
            to += out[at];
            if index[at] < dims[at].len {
                break;
            }
            from -= dims[at].stride * dims[at].len;
            to -= out[at] * dims[at].len as usize;
            index[at] = 0;
        }
    }
}

/// Copies so many elements, `from_step` bytes apart, to places that are `to_step` bytes apart.
fn spread(width: usize, from: &[u8], from_step: usize, to: &mut [u8], to_step: usize, count: u64) {
    if from_step == width && to_step == width {
        let len = count as usize * width;
        return to[..len].copy_from_slice(&from[..len]);
    }
    match width {
        1 => spread_of::<1>(from, from_step, to, to_step, count),
        2 => spread_of::<2>(from, from_step, to, to_step, count),
        4 => spread_of::<4>(from, from_step, to, to_step, count),
        8 => spread_of::<8>(from, from_step, to, to_step, count),
        _ => {
            for place in 0..count as usize {
                let (from, to) = (&from[place * from_step..], &mut to[place * to_step..]);
                to[..width].copy_from_slice(&from[..width]);
            }
        }
    }
}

fn spread_of<const N: usize>(from: &[u8], from_step: usize, to: &mut [u8], to_step: usize, count: u64) {
    for place in 0..count as usize {
        let (from, to) = (&from[place * from_step..], &mut to[place * to_step..]);
        to[..N].copy_from_slice(&from[..N]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::Memory;
    use proptest::prelude::*;

    /// Element by element, by the definition.
    fn slowly(storage: &[u8], width: usize, start: u64, shape: &[usize], strides: &[u64]) -> Vec<u8> {
        let count: usize = shape.iter().product();
        let mut out = Vec::new();
        for mut number in 0..count {
            let mut at = start;
            for (dim, stride) in shape.iter().zip(strides).rev() {
                at += (number % dim) as u64 * stride;
                number /= dim;
            }
            let at = at as usize * width;
            out.extend(&storage[at..at + width]);
        }
        out
    }

    fn check(width: usize, start: u64, shape: &[usize], strides: &[u64], offset: u64, len: usize) {
        let reach = start
            + shape.iter().zip(strides).map(|(dim, stride)| (*dim as u64 - 1) * stride).sum::<u64>()
            + 1;
        let storage: Vec<u8> = (0..reach as usize * width).map(|place| (place * 31 / 7) as u8).collect();
        let expected = slowly(&storage, width, start, shape, strides);
        let strided = Strided::new(Arc::new(Memory(storage)), (width, 1), start, shape, strides);
        assert_eq!(strided.size(), expected.len() as u64);
        let (offset, len) = (offset.min(strided.size()), len.min(expected.len()));
        let len = len.min(expected.len() - offset as usize);
        let mut buf = vec![0; len];
        strided.read_at(offset, &mut buf).unwrap();
        assert_eq!(buf, expected[offset as usize..offset as usize + len]);
        assert!(strided.read_at(strided.size(), &mut [0]).is_err());
    }

    proptest! {
        #[test]
        fn any_strides(
            width in prop::sample::select(vec![1_usize, 2, 4, 8, 16]),
            start in 0_u64..5,
            dims in prop::collection::vec((1_usize..6, 0_u64..40), 0..5),
            offset in 0_u64..100,
            len in 0_usize..400,
        ) {
            let (shape, strides): (Vec<_>, Vec<_>) = dims.into_iter().unzip();
            check(width, start, &shape, &strides, offset, len);
        }
    }

    #[test]
    fn large_ones_are_made_block_by_block() {
        // 48 MB transposed; far apart; an expanded row.
        check(4, 3, &[3000, 4000], &[1, 3000], 16_000_000, 20_000_000);
        check(2, 0, &[40, 500_000], &[1, 70], 0, usize::MAX);
        check(4, 0, &[5_000_000, 2], &[0, 1], 30_000_000, 9_000_000);
        check(1, 0, &[3, 2], &[30_000_000, 15_000_000], 0, 6);
    }

    #[test]
    fn words_are_turned_around() {
        let storage = Arc::new(Memory((0..12).collect::<Vec<u8>>()));
        let strided = Strided::new(storage, (4, 2), 1, &[2], &[1]);
        let mut buf = [0; 8];
        strided.read_at(0, &mut buf).unwrap();
        assert_eq!(buf, [5, 4, 7, 6, 9, 8, 11, 10]);
    }
}
