//! `F8_E4M3` in blocks of 128 by 128, as DeepSeek's checkpoints have it and transformers makes it.
//!
//! A group is a band: the 128 rows of a row of blocks. The factor is 448 times one divided by the largest
//! magnitude, the scale one divided by the factor; codes are values multiplied by the factor. All in single
//! precision, in this order.

use super::scale::largest;
use super::symmetric::{each, put};
use crate::cast::{Convert, Instructions, to_f8_e4m3};
use crate::error::Result;
use crate::plan::operation::Encode;

/// Rows and columns of a block.
pub(super) const SIDE: usize = 128;

#[derive(Debug)]
pub(super) struct Codes {
    pub(super) columns: usize,
}

#[derive(Debug)]
pub(super) struct Scales {
    pub(super) columns: usize,
}

/// What the values of each block of a band are multiplied by.
fn factors(band: &[f32], columns: usize) -> Result<Vec<f32>> {
    let mut magnitudes = vec![0.0_f32; columns.div_ceil(SIDE)];
    for row in band.chunks_exact(columns) {
        for (magnitude, values) in magnitudes.iter_mut().zip(row.chunks(SIDE)) {
            *magnitude = magnitude.max(largest(values)?);
        }
    }
    let factor = |magnitude: f32| {
        // Of what is next to nothing, nothing is made, as of nothing.
        let factor = (1.0 / magnitude) * 448.0;
        if factor.is_finite() { factor } else { 1.0 }
    };
    Ok(magnitudes.into_iter().map(factor).collect())
}

impl Encode for Scales {
    fn values(&self) -> usize {
        SIDE * self.columns
    }

    fn bytes(&self, _: usize) -> usize {
        4 * self.columns.div_ceil(SIDE)
    }

    fn encode(&self, band: &[f32], out: &mut [u8]) -> Result<()> {
        let factors = factors(band, self.columns)?;
        let places = out.chunks_exact_mut(4);
        places.zip(factors).for_each(|(out, factor)| out.copy_from_slice(&(1.0 / factor).to_le_bytes()));
        Ok(())
    }
}

impl Encode for Codes {
    fn values(&self) -> usize {
        SIDE * self.columns
    }

    fn bytes(&self, values: usize) -> usize {
        values
    }

    fn encode(&self, band: &[f32], out: &mut [u8]) -> Result<()> {
        let (factors, instructions) = (factors(band, self.columns)?, Instructions::detect());
        for (row, out) in band.chunks_exact(self.columns).zip(out.chunks_exact_mut(self.columns)) {
            let blocks = row.chunks(SIDE).zip(out.chunks_mut(SIDE)).zip(&factors);
            blocks.for_each(|((values, out), &factor)| each(instructions, Fp8 { factor }, values, out, put));
        }
        Ok(())
    }
}

#[derive(Clone, Copy)]
struct Fp8 {
    factor: f32,
}

impl Convert for Fp8 {
    type From = f32;
    type To = u8;

    #[inline(always)]
    fn convert(self, value: f32) -> (u8, bool) {
        (to_f8_e4m3(value * self.factor), false)
    }
}
