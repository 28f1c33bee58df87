//! Several tensors, concatenated.

use std::ops::Range;

use super::{Bound, MOST_PIECES, Operation, Piece, Tiles};
use crate::dtype::Dtype;
use crate::error::{Error, ErrorKind, Result};
use crate::plan::Input;
use crate::slice::{Region, Slice};
use crate::text::brief;

/// Tensors, or parts of them, joined along a dimension: query, key and value as one, gate and up as one.
///
/// Splitting is the other way round: a [`Part`](super::Part) for each piece.
#[derive(Clone, Debug)]
pub struct Join {
    dim: usize,
    /// Of each input; none for whole ones.
    parts: Vec<Slice>,
}

impl Join {
    /// Whole inputs along dimension `dim`.
    pub fn along(dim: usize) -> Self {
        Self { dim, parts: Vec::new() }
    }

    /// Takes of each input the part that the slice of the same index says. A part must keep all dimensions.
    #[must_use]
    pub fn parts(mut self, parts: impl IntoIterator<Item = Slice>) -> Self {
        self.parts = parts.into_iter().collect();
        self
    }

    fn regions(&self, inputs: &[Input]) -> Result<Vec<Region>> {
        if !self.parts.is_empty() && self.parts.len() != inputs.len() {
            let message = format!("{} parts of {} tensors are to be joined", self.parts.len(), inputs.len());
            return Err(Error::new(ErrorKind::Slice, message));
        }
        let whole = Slice::new();
        let part = |index| self.parts.get(index).unwrap_or(&whole);
        inputs.iter().enumerate().map(|(index, input)| part(index).of(input.dtype(), input.shape())).collect()
    }

    /// The dtype and shape of the regions together.
    fn output(&self, regions: &[Region]) -> Result<(Dtype, Vec<usize>)> {
        let fail = |kind, message: String| Err(Error::new(kind, message));
        let Some(first) = regions.first() else {
            return fail(ErrorKind::Shape, "there is nothing to join".to_owned());
        };
        let (dtype, mut shape) = (first.dtype(), first.shape().to_vec());
        if self.dim >= shape.len() {
            let message =
                format!("tensors of shape {} have no dimension {} to join along", brief(&shape), self.dim);
            return fail(ErrorKind::Shape, message);
        }
        if dtype.bits() % 8 != 0 {
            return fail(ErrorKind::Dtype, format!("tensors of {dtype} cannot be joined"));
        }
        for region in &regions[1..] {
            let (own, other) = (region.shape(), first.shape());
            let differ = |dim: usize| dim != self.dim && own[dim] != other[dim];
            if own.len() != other.len() || (0..own.len()).any(differ) {
                let message = format!(
                    "shapes {} and {} cannot be joined along dimension {}",
                    brief(other),
                    brief(own),
                    self.dim
                );
                return fail(ErrorKind::Shape, message);
            }
            if region.dtype() != dtype {
                let message = format!("{dtype} and {} cannot be joined", region.dtype());
                return fail(ErrorKind::Dtype, message);
            }
            shape[self.dim] = shape[self.dim].checked_add(own[self.dim]).ok_or_else(|| {
                Error::new(ErrorKind::Overflow, "the joined dimension does not fit this machine")
            })?;
        }
        Ok((dtype, shape))
    }
}

impl Operation for Join {
    fn bind(&self, inputs: &[Input]) -> Result<Bound> {
        let regions = self.regions(inputs)?;
        let (dtype, shape) = self.output(&regions)?;
        let outer: u64 = shape[..self.dim].iter().map(|&dim| dim as u64).product();
        let shares = regions.into_iter().map(|region| {
            let row = region.byte_len().checked_div(outer).unwrap_or(0);
            Share { region, row }
        });
        let shares: Vec<_> = shares.collect();
        let row = shares.iter().map(|share| share.row).sum();
        Ok(Bound::new(dtype, shape, JoinTiles { shares, row }))
    }
}

#[derive(Debug)]
struct JoinTiles {
    /// Of each input.
    shares: Vec<Share>,
    /// The bytes of a row: the output behind the dimensions outside of the joined one.
    row: u64,
}

/// What one input gives to the output.
#[derive(Debug)]
struct Share {
    region: Region,
    /// The bytes that it gives to each row.
    row: u64,
}

impl Tiles for JoinTiles {
    fn gather(&self, tile: Range<u64>, pieces: &mut Vec<Piece>) {
        let mut at = tile.start;
        while at < tile.end && self.row > 0 {
            let number = at / self.row;
            let mut start = number * self.row;
            for (input, Share { region, row }) in self.shares.iter().enumerate() {
                let (from, to) = (at.max(start), tile.end.min(start + row));
                if from < to {
                    // The same bytes, counted from the start of the part.
                    let within = |byte: u64| number * row + (byte - start);
                    let ranges = region.byte_ranges_in(within(from)..within(to));
                    pieces.extend(ranges.map(|bytes| Piece { input, bytes }));
                }
                start += row;
            }
            at = start;
        }
    }

    fn is_direct(&self) -> bool {
        true
    }

    fn step(&self) -> u64 {
        let runs = self.shares.iter().map(|Share { region, row }| region.run_bytes().min((*row).max(1)));
        (runs.min().unwrap_or(1).saturating_mul(MOST_PIECES) / 48).max(1) * 48
    }
}
