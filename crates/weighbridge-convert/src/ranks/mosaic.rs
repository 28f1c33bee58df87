//! A tensor whose chunks lie in several places, as one source.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use weighbridge::source::{Concat, Hints, Source};
use weighbridge::{Error, ErrorKind, Result};

use super::cover::{self, Effort};

/// Bytes of the tensor that are put together at a time.
const PIECE: usize = 4 << 20;
/// Runs of at least so many bytes are read straight to where they go.
const DIRECT: u64 = 256 << 10;

/// A part of a tensor: a box of its elements, which lie row by row in a source.
pub(crate) struct Chunk {
    /// Of its first element, in each dimension.
    pub(crate) offsets: Vec<usize>,
    pub(crate) sizes: Vec<usize>,
    pub(crate) data: Arc<dyn Source>,
}

/// The bytes of a tensor, row by row, out of its chunks; `width` is the number of bytes of an element.
pub(crate) fn assemble(
    width: usize,
    shape: &[usize],
    chunks: Vec<Chunk>,
    effort: &mut Effort,
) -> Result<Arc<dyn Source>> {
    let shape: Vec<u64> = shape.iter().map(|&dim| dim as u64).collect();
    let strides = strides(&shape, width as u64)?;
    let mut placed = Vec::with_capacity(chunks.len());
    let mut extents = Vec::with_capacity(chunks.len());
    for chunk in chunks {
        let (extent, data) = within(&shape, width as u64, chunk)?;
        if extent.iter().all(|range| !range.is_empty()) {
            placed.push(Placed::new(&shape, &strides, width as u64, &extent, data));
            extents.push(extent);
        }
    }
    if !shape.contains(&0) {
        cover::check(&shape, &extents, effort)?;
    }
    placed.sort_by_key(|chunk| chunk.start);
    if placed.iter().all(Placed::is_contiguous) {
        let whole = Concat::new(placed.into_iter().map(|chunk| chunk.data));
        return Ok(Arc::new(whole.ok_or_else(too_large)?));
    }
    let size = shape.first().zip(strides.first()).map_or(width as u64, |(dim, stride)| dim * stride);
    Ok(Arc::new(Mosaic { size, strides, chunks: placed }))
}

/// Bytes from one index of each dimension to the next; fails where the whole does not fit 64 bits.
fn strides(shape: &[u64], width: u64) -> Result<Vec<u64>> {
    let mut step = width;
    let mut strides: Vec<u64> = Vec::with_capacity(shape.len());
    for &dim in shape.iter().rev() {
        strides.push(step);
        step = step.checked_mul(dim).ok_or_else(too_large)?;
    }
    strides.reverse();
    Ok(strides)
}

fn too_large() -> Error {
    Error::new(ErrorKind::Overflow, "it is more bytes than a file can have")
}

/// Where the elements of a chunk are, if it is within the tensor and its source has as many bytes as it needs.
fn within(shape: &[u64], width: u64, chunk: Chunk) -> Result<(cover::Extent, Arc<dyn Source>)> {
    let Chunk { offsets, sizes, data } = chunk;
    let outside = || {
        let message =
            format!("its chunk of shape {sizes:?} at {offsets:?} is not within its shape {shape:?}");
        Error::new(ErrorKind::Malformed, message)
    };
    if offsets.len() != shape.len() || sizes.len() != shape.len() {
        return Err(outside());
    }
    let ranges = shape.iter().zip(offsets.iter().zip(&sizes)).map(|(&dim, (&offset, &size))| {
        let end = (offset as u64).checked_add(size as u64)?;
        (end <= dim).then_some(offset as u64..end)
    });
    let extent: cover::Extent = ranges.collect::<Option<_>>().ok_or_else(outside)?;
    let bytes = sizes.iter().try_fold(width, |product, &size| product.checked_mul(size as u64));
    if bytes != Some(data.size()) {
        let message = format!("its chunk of shape {sizes:?} at {offsets:?} has {} bytes", data.size());
        return Err(Error::new(ErrorKind::Malformed, message));
    }
    Ok((extent, data))
}

/// A tensor that is put together while it is read.
struct Mosaic {
    size: u64,
    /// Bytes from one index of each dimension to the next.
    strides: Vec<u64>,
    /// In the order of their first bytes.
    chunks: Vec<Placed>,
}

/// A chunk and where it belongs. What it counts is bytes.
#[derive(Clone)]
struct Placed {
    /// For each dimension, of the tensor: where the chunk begins, and how long it is, in indices.
    extent: cover::Extent,
    /// Of its first byte in the tensor.
    start: u64,
    /// Behind its last byte in the tensor.
    end: u64,
    /// The bytes of it that are contiguous in the tensor, and the number of dimensions that count such runs.
    run: u64,
    cut: usize,
    data: Arc<dyn Source>,
}

impl Placed {
    fn new(shape: &[u64], strides: &[u64], width: u64, extent: &[Range<u64>], data: Arc<dyn Source>) -> Self {
        let len = |dim: usize| extent[dim].end - extent[dim].start;
        let start = extent.iter().zip(strides).map(|(range, stride)| range.start * stride).sum();
        let last: u64 = extent.iter().zip(strides).map(|(range, stride)| (range.end - 1) * stride).sum();
        // Whole dimensions at the end, and the one before them, are contiguous; before it those of one index.
        let cut = (0..shape.len()).rev().find(|&dim| len(dim) != shape[dim]).unwrap_or(0);
        let run = (cut..shape.len()).map(len).product::<u64>() * width;
        let cut = (0..cut).rev().find(|&dim| len(dim) != 1).map_or(0, |dim| dim + 1);
        Self { extent: extent.to_vec(), start, end: last + width, run, cut, data }
    }

    fn is_contiguous(&self) -> bool {
        self.cut == 0
    }

    /// How many of its bytes are before a byte of the tensor.
    fn before(&self, strides: &[u64], at: u64) -> u64 {
        if at <= self.start || at >= self.end {
            return if at <= self.start { 0 } else { self.data.size() };
        }
        let (mut rest, mut before, mut left) = (at, 0, self.data.size());
        for (range, stride) in self.extent.iter().zip(strides) {
            let index = rest / stride;
            rest %= stride;
            if index < range.start {
                return before;
            }
            if index >= range.end {
                return before + left;
            }
            left /= range.end - range.start;
            before += (index - range.start) * left;
        }
        before + rest
    }

    /// Calls `each` for the runs of a range of its bytes: with where in the tensor they begin, and their length.
    fn runs(
        &self,
        strides: &[u64],
        bytes: Range<u64>,
        mut each: impl FnMut(u64, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let (mut number, mut skip) = (bytes.start / self.run, bytes.start % self.run);
        let mut index = vec![0; self.cut];
        let mut place = self.start;
        for dim in (0..self.cut).rev() {
            let len = self.extent[dim].end - self.extent[dim].start;
            index[dim] = number % len;
            number /= len;
            place += index[dim] * strides[dim];
        }
        let mut at = bytes.start;
        while at < bytes.end {
            let len = (self.run - skip).min(bytes.end - at);
            each(place + skip, len)?;
            (at, skip) = (at + len, 0);
            for dim in (0..self.cut).rev() {
                let len = self.extent[dim].end - self.extent[dim].start;
                (index[dim], place) = (index[dim] + 1, place + strides[dim]);
                if index[dim] < len {
                    break;
                }
                (index[dim], place) = (0, place - len * strides[dim]);
            }
        }
        Ok(())
    }
}

impl Mosaic {
    /// The chunks that have bytes of a range of the tensor, and which of theirs.
    fn chunks_in(&self, range: Range<u64>) -> impl Iterator<Item = (&Placed, Range<u64>)> {
        let last = self.chunks.partition_point(|chunk| chunk.start < range.end);
        let chunks = self.chunks[..last].iter().filter(move |chunk| chunk.end > range.start);
        chunks.filter_map(move |chunk| {
            let bytes = chunk.before(&self.strides, range.start)..chunk.before(&self.strides, range.end);
            (!bytes.is_empty()).then_some((chunk, bytes))
        })
    }

    fn read_piece(&self, at: u64, out: &mut [u8], memory: &mut Vec<u8>) -> io::Result<()> {
        for (chunk, bytes) in self.chunks_in(at..at + out.len() as u64) {
            let mut from = bytes.start;
            if chunk.run >= DIRECT || chunk.is_contiguous() {
                chunk.runs(&self.strides, bytes, |place, len| {
                    let place = (place - at) as usize;
                    chunk.data.read_at(from, &mut out[place..place + len as usize])?;
                    from += len;
                    Ok(())
                })?;
                continue;
            }
            memory.resize((bytes.end - bytes.start) as usize, 0);
            chunk.data.read_at(from, memory)?;
            let mut rest = &memory[..];
            chunk.runs(&self.strides, bytes, |place, len| {
                let (run, others) = rest.split_at(len as usize);
                let place = (place - at) as usize;
                out[place..place + run.len()].copy_from_slice(run);
                rest = others;
                Ok(())
            })?;
        }
        Ok(())
    }
}

impl Source for Mosaic {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        if offset.checked_add(buf.len() as u64).is_none_or(|end| end > self.size) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut memory = Vec::new();
        let mut at = offset;
        buf.chunks_mut(PIECE).try_for_each(|piece| {
            self.read_piece(at, piece, &mut memory)?;
            at += piece.len() as u64;
            Ok(())
        })
    }

    fn prefetch(&self, range: Range<u64>) {
        self.chunks_in(range).for_each(|(chunk, bytes)| chunk.data.prefetch(bytes));
    }

    fn is_cached(&self, range: Range<u64>) -> Option<bool> {
        let mut all = Some(true);
        for (chunk, bytes) in self.chunks_in(range) {
            match chunk.data.is_cached(bytes) {
                Some(true) => {}
                Some(false) => return Some(false),
                None => all = None,
            }
        }
        all
    }

    fn uncached(&self) -> Option<Arc<dyn Source>> {
        let uncached: Vec<_> = self.chunks.iter().map(|chunk| chunk.data.uncached()).collect();
        uncached.iter().any(Option::is_some).then(|| {
            let chunks = self.chunks.iter().zip(uncached).map(|(chunk, uncached)| Placed {
                data: uncached.unwrap_or_else(|| Arc::clone(&chunk.data)),
                ..chunk.clone()
            });
            let (size, strides) = (self.size, self.strides.clone());
            Arc::new(Self { size, strides, chunks: chunks.collect() }) as _
        })
    }

    fn hints(&self) -> Hints {
        self.chunks.first().map_or_else(Hints::default, |chunk| chunk.data.hints())
    }
}

#[cfg(test)]
mod tests;
