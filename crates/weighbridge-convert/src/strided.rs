//! Elements that lie in any order, as strides say: transposed, expanded, cut out.

mod gathered;

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use gathered::{Dim, Gathered};
use weighbridge::Source;

/// Bytes of the result that are made at a time and kept.
const BLOCK: usize = 16 << 20;

/// A tensor whose elements are gathered from a storage, row by row.
pub(crate) struct Strided {
    storage: Arc<dyn Source>,
    /// Bytes of an element.
    width: usize,
    /// Bytes of the words in it that are byte-swapped; 1 swaps nothing.
    swap: usize,
    /// Where the first element is, in bytes.
    start: u64,
    dims: Vec<Dim>,
    /// The block that was made last: readers go through a tensor front to back.
    last: Mutex<Option<Block>>,
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

    /// The block of the result that holds the byte `at`: one index of the outer dimensions, a range of one,
    /// all of the inner.
    fn block_at(&self, at: u64) -> Gathered {
        let mut inner = self.width as u64;
        let mut cut = self.dims.len();
        while let Some(dim) = cut.checked_sub(1).map(|index| self.dims[index]) {
            if inner.saturating_mul(dim.len) > BLOCK as u64 {
                break;
            }
            inner *= dim.len;
            cut -= 1;
        }
        let mut dims = self.dims[cut..].to_vec();
        let (mut index, mut start) = (at / inner, self.start);
        let mut range = 0..inner;
        if let Some(outer) = cut.checked_sub(1) {
            // The dimension that is cut: as many of its indices as a block has room for.
            let dim = self.dims[outer];
            let most = (BLOCK as u64 / inner).clamp(1, dim.len);
            let (rows, row) = (index / dim.len, index % dim.len);
            let first = row / most * most;
            let len = most.min(dim.len - first);
            dims.insert(0, Dim { len, stride: dim.stride });
            start += first * dim.stride;
            let begin = (rows * dim.len + first) * inner;
            range = begin..begin + len * inner;
            index = rows;
            for dim in self.dims[..outer].iter().rev() {
                start += index % dim.len * dim.stride;
                index /= dim.len;
            }
        }
        Gathered { range, start, dims, width: self.width }
    }

    fn make(&self, block: &Gathered) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; (block.range.end - block.range.start) as usize];
        block.read(&*self.storage, &mut bytes)?;
        if self.swap > 1 {
            bytes.chunks_exact_mut(self.swap).for_each(<[u8]>::reverse);
        }
        Ok(bytes)
    }

    /// The blocks that hold bytes of a range.
    fn blocks(&self, range: Range<u64>) -> impl Iterator<Item = Gathered> {
        let mut at = range.start;
        let end = range.end.min(self.size());
        std::iter::from_fn(move || {
            let block = (at < end).then(|| self.block_at(at))?;
            at = block.range.end;
            Some(block)
        })
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
                    let block = self.block_at(offset);
                    let (range, bytes) = (block.range.clone(), Arc::new(self.make(&block)?));
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

    /// What the blocks of the range are gathered from.
    fn prefetch(&self, range: Range<u64>) {
        self.blocks(range).for_each(|block| block.prefetch(&*self.storage));
    }

    fn is_cached(&self, range: Range<u64>) -> Option<bool> {
        let mut all = Some(true);
        for block in self.blocks(range) {
            match self.storage.is_cached(block.reach()) {
                Some(true) => {}
                Some(false) => return Some(false),
                None => all = None,
            }
        }
        all
    }

    fn uncached(&self) -> Option<Arc<dyn Source>> {
        let (storage, dims) = (self.storage.uncached()?, self.dims.clone());
        Some(Arc::new(Self { storage, dims, last: Mutex::default(), ..*self }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::{Asked, Probe};
    use proptest::prelude::*;
    use weighbridge::source::MemorySource;

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

    #[test]
    fn the_storage_is_read_uncached() {
        let probe = Probe::new((0..24).collect());
        let transposed = Strided::new(Arc::new(probe.clone()), (2, 1), 0, &[4, 3], &[1, 4]);
        let (mut usual, mut uncached) = ([0; 24], [1; 24]);
        transposed.read_at(0, &mut usual).unwrap();
        let asked = probe.asked();
        transposed.uncached().unwrap().read_at(0, &mut uncached).unwrap();
        assert_eq!((usual, &probe.asked()), (uncached, &asked));
        assert!(!asked.is_empty());
    }

    fn check(width: usize, start: u64, shape: &[usize], strides: &[u64], offset: u64, len: usize) {
        let reach = start
            + shape.iter().zip(strides).map(|(dim, stride)| (*dim as u64 - 1) * stride).sum::<u64>()
            + 1;
        let storage: Vec<u8> = (0..reach as usize * width).map(|place| (place * 31 / 7) as u8).collect();
        let expected = slowly(&storage, width, start, shape, strides);
        let strided = Strided::new(Arc::new(MemorySource(storage)), (width, 1), start, shape, strides);
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
    fn what_is_gathered_is_fetched_ahead() {
        let strided = |probe: &Probe, start, shape: &[usize], strides: &[u64]| {
            Strided::new(Arc::new(probe.clone()), (4, 1), start, shape, strides)
        };
        // A transposed matrix behind ten others: all of it, for any of its bytes.
        let probe = Probe::new(vec![0; 4 * 1010]);
        let transposed = strided(&probe, 10, &[40, 25], &[1, 40]);
        transposed.prefetch(400..401);
        assert_eq!(transposed.is_cached(0..4000), Some(true));
        assert_eq!(probe.asked(), [Asked::Prefetch(40..4040), Asked::IsCached(40..4040)]);
        transposed.prefetch(4000..4001);
        transposed.prefetch(5..5);
        assert_eq!(probe.asked(), []);
        let cold = strided(&probe.clone().cached_to(4000), 10, &[40, 25], &[1, 40]);
        assert_eq!(cold.is_cached(0..1), Some(false));
        probe.asked();

        // Two columns of three rows that are far apart: a run each.
        let far = 1 << 20;
        let probe = Probe::new(vec![0; 4 * (2 * far + 2)]);
        let columns = strided(&probe, 0, &[2, 3], &[1, far as u64]);
        columns.prefetch(0..24);
        let row = |row: u64| row * 4 * far as u64..row * 4 * far as u64 + 8;
        assert_eq!(probe.asked(), [0, 1, 2].map(|number| Asked::Prefetch(row(number))));

        // Elements that are all far apart are left to the reads.
        let probe = Probe::new(vec![0; 4 * (2 * far + 1)]);
        let apart = strided(&probe, 0, &[3], &[far as u64]);
        apart.prefetch(0..12);
        assert_eq!(probe.asked(), []);
        assert_eq!(apart.is_cached(0..12), Some(true));
    }

    #[test]
    fn words_are_turned_around() {
        let storage = Arc::new(MemorySource((0..12).collect::<Vec<u8>>()));
        let strided = Strided::new(storage, (4, 2), 1, &[2], &[1]);
        let mut buf = [0; 8];
        strided.read_at(0, &mut buf).unwrap();
        assert_eq!(buf, [5, 4, 7, 6, 9, 8, 11, 10]);
    }
}
