//! Several tensors, one behind the other.

use std::ops::Range;

use super::{MOST_PIECES, Operation, Piece};
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

    /// Of each input the part that the slice of the same place says. A part must keep all dimensions.
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
        let part = |place| self.parts.get(place).unwrap_or(&whole);
        inputs.iter().enumerate().map(|(place, input)| part(place).of(input.dtype(), input.shape())).collect()
    }
}

impl Operation for Join {
    fn output(&self, inputs: &[Input]) -> Result<(Dtype, Vec<usize>)> {
        let regions = self.regions(inputs)?;
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
            let alike = region.shape().len() == shape.len()
                && region
                    .shape()
                    .iter()
                    .zip(&shape)
                    .enumerate()
                    .all(|(dim, (a, b))| a == b || dim == self.dim);
            if !alike {
                let (a, b) = (brief(first.shape()), brief(region.shape()));
                return fail(
                    ErrorKind::Shape,
                    format!("shapes {a} and {b} cannot be joined along {}", self.dim),
                );
            }
            if region.dtype() != dtype {
                let message = format!("{dtype} and {} cannot be joined", region.dtype());
                return fail(ErrorKind::Dtype, message);
            }
            shape[self.dim] = shape[self.dim].checked_add(region.shape()[self.dim]).ok_or_else(|| {
                Error::new(ErrorKind::Overflow, "the joined dimension does not fit this machine")
            })?;
        }
        Ok((dtype, shape))
    }

    fn gather(&self, inputs: &[Input], tile: Range<u64>) -> Vec<Piece> {
        // What cannot be joined was refused when the output was asked for.
        let Ok(regions) = self.regions(inputs) else { return Vec::new() };
        let outer: u64 = regions
            .first()
            .map_or(0, |region| region.shape().iter().take(self.dim).map(|&dim| dim as u64).product());
        let rows: Vec<u64> =
            regions.iter().map(|region| region.byte_len().checked_div(outer).unwrap_or(0)).collect();
        let row: u64 = rows.iter().sum();
        let mut pieces = Vec::new();
        let mut at = tile.start;
        while at < tile.end && row > 0 {
            let number = at / row;
            let mut start = number * row;
            for (input, (region, &len)) in regions.iter().zip(&rows).enumerate() {
                let (from, to) = (at.max(start), tile.end.min(start + len));
                if from < to {
                    // The same bytes, counted from the start of the part.
                    let place = |byte: u64| number * len + (byte - start);
                    let ranges = region.byte_ranges_in(place(from)..place(to));
                    pieces.extend(ranges.map(|bytes| Piece { input, bytes }));
                }
                start += len;
            }
            at = start;
        }
        pieces
    }

    fn is_direct(&self, _: &[Input]) -> bool {
        true
    }

    fn step(&self, inputs: &[Input]) -> u64 {
        let regions = self.regions(inputs).unwrap_or_default();
        let runs = regions.iter().map(|region| {
            let row =
                region.shape()[self.dim..].iter().fold(1_u64, |bytes, &dim| bytes.saturating_mul(dim as u64));
            region.run_bytes().min(row.max(1) * u64::from(region.dtype().bits()) / 8)
        });
        (runs.min().unwrap_or(1).saturating_mul(MOST_PIECES) / 48).max(1) * 48
    }
}
