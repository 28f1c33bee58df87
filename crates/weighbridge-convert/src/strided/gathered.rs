//! One block of a tensor, gathered from its storage.

use std::io;
use std::ops::Range;

use weighbridge::Source;

/// A region of the storage up to this many bytes is read as a whole.
const REGION: u64 = 64 << 20;
/// Gaps are read through while no more than this many bytes are read for one that is wanted.
const THROUGH: u64 = 16;
/// Blocks of more runs are not fetched ahead.
const MOST_FETCHED: u64 = 4096;

/// A dimension: the number of its elements, and the bytes from one to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Dim {
    pub(super) len: u64,
    pub(super) stride: u64,
}

/// A block that is not made yet: the elements of a box of indices.
pub(super) struct Gathered {
    /// Its bytes in the result.
    pub(super) range: Range<u64>,
    /// Where in the storage its first element is.
    pub(super) start: u64,
    pub(super) dims: Vec<Dim>,
    pub(super) width: usize,
}

/// What is read of the storage to gather a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reads {
    /// Everything from the first element to the last.
    Once,
    /// Along the dimension whose elements are nearest to each other, everything from the first to the last:
    /// so many bytes.
    Runs { nearest: usize, len: u64 },
    /// Along the same dimension, each element by itself.
    Each { nearest: usize },
}

impl Gathered {
    /// The bytes of the storage from its first element to the end of its last.
    pub(super) fn reach(&self) -> Range<u64> {
        let last: u64 = self.dims.iter().map(|dim| (dim.len - 1) * dim.stride).sum();
        self.start..self.start + last + self.width as u64
    }

    fn reads(&self) -> Reads {
        let (width, reach) = (self.width as u64, self.reach());
        let bytes = self.range.end - self.range.start;
        if reach.end - reach.start <= REGION.min(THROUGH.saturating_mul(bytes).max(64 << 10)) {
            return Reads::Once;
        }
        let apart = self.dims.iter().enumerate().filter(|(_, dim)| dim.stride > 0);
        let Some((nearest, run)) = apart.min_by_key(|(_, dim)| dim.stride) else { return Reads::Once };
        match (run.len - 1) * run.stride + width {
            len if len <= THROUGH * run.len * width && len <= REGION => Reads::Runs { nearest, len },
            _ => Reads::Each { nearest },
        }
    }

    /// The dimensions with but one index of one of them.
    fn others(&self, nearest: usize) -> Vec<Dim> {
        let mut dims = self.dims.clone();
        dims[nearest] = Dim { len: 1, stride: 0 };
        dims
    }

    /// Fills `out` with its elements.
    pub(super) fn read(&self, storage: &dyn Source, out: &mut [u8]) -> io::Result<()> {
        let reads = self.reads();
        let (nearest, len) = match reads {
            Reads::Once => {
                let reach = self.reach();
                let mut region = vec![0; (reach.end - reach.start) as usize];
                storage.read_at(self.start, &mut region)?;
                self.for_rows(|from, to, dim| {
                    let (from, to) = (&region[from as usize..], &mut out[to..]);
                    spread(self.width, from, dim.stride as usize, to, self.width, dim.len);
                });
                return Ok(());
            }
            Reads::Runs { nearest, len } => (nearest, len as usize),
            Reads::Each { nearest } => (nearest, self.width),
        };
        let run = self.dims[nearest];
        let strides = out_strides(&self.dims, self.width);
        let step = strides[nearest];
        let mut memory = vec![0; len];
        let mut failed = Ok(());
        for_indices(&self.others(nearest), &strides, |from, to| {
            if failed.is_err() {
                return;
            }
            let from = self.start + from;
            failed = match reads {
                Reads::Each { .. } => (0..run.len).try_for_each(|index| {
                    let to = to + index as usize * step;
                    storage.read_at(from + index * run.stride, &mut out[to..to + self.width])
                }),
                _ => storage.read_at(from, &mut memory).map(|()| {
                    spread(self.width, &memory, run.stride as usize, &mut out[to..], step, run.len);
                }),
            };
        });
        failed
    }

    /// Calls `row` with where a row starts, where in the result it goes, and the dimension along it: for each
    /// index of the others.
    fn for_rows(&self, mut row: impl FnMut(u64, usize, Dim)) {
        let one = Dim { len: 1, stride: 0 };
        let (last, others) =
            self.dims.split_last().map_or((one, &*self.dims), |(last, others)| (*last, others));
        let strides = out_strides(&self.dims, self.width);
        for_indices(others, &strides, |from, to| row(from, to, last));
    }

    /// Has the storage fetch what it will be gathered from. Many runs, or elements that are read one by one,
    /// are not fetched: it would take as long as reading them.
    pub(super) fn prefetch(&self, storage: &dyn Source) {
        match self.reads() {
            Reads::Once => storage.prefetch(self.reach()),
            Reads::Runs { nearest, len } => {
                let others = self.others(nearest);
                if others.iter().map(|dim| dim.len).product::<u64>() <= MOST_FETCHED {
                    for_indices(&others, &vec![0; others.len()], |from, _| {
                        storage.prefetch(self.start + from..self.start + from + len);
                    });
                }
            }
            Reads::Each { .. } => {}
        }
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

/// Copies `count` elements, `from_step` bytes apart, to where they are `to_step` bytes apart.
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
