//! Bits under another dtype.

use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::Arc;

use super::{Operation, Piece, Read};
use crate::dtype::Dtype;
use crate::error::{Error, ErrorKind, Result};
use crate::plan::Input;

/// What another operation makes, its bits taken for elements of another dtype of the same size: `-1` of `I32`
/// becomes `4294967295` of `U32`. No value is checked or changed.
///
/// Both dtypes must have the same number of bits an element; `C64`, whose elements are two numbers, has no
/// other.
#[derive(Clone, Debug)]
pub struct BitCast {
    dtype: Dtype,
    of: Arc<dyn Operation>,
}

impl BitCast {
    /// The bits of a stored tensor as `dtype`.
    pub fn to(dtype: Dtype) -> Self {
        Self::of(Arc::new(Read), dtype)
    }

    /// The bits of what `operation` makes as `dtype`.
    pub fn of(operation: Arc<dyn Operation>, dtype: Dtype) -> Self {
        Self { dtype, of: operation }
    }

    /// Whether elements of the two dtypes have the same size.
    pub fn exists(from: Dtype, to: Dtype) -> bool {
        from == to || (from.bits() == to.bits() && from != Dtype::C64 && to != Dtype::C64)
    }
}

impl Operation for BitCast {
    fn output(&self, inputs: &[Input]) -> Result<(Dtype, Vec<usize>)> {
        let (from, shape) = self.of.output(inputs)?;
        if !Self::exists(from, self.dtype) {
            let message = format!("the bits of {from} are not elements of {}", self.dtype);
            return Err(Error::new(ErrorKind::Dtype, message));
        }
        Ok((self.dtype, shape))
    }

    fn gather(&self, inputs: &[Input], tile: Range<u64>) -> Vec<Piece> {
        self.of.gather(inputs, tile)
    }

    fn is_direct(&self, inputs: &[Input]) -> bool {
        self.of.is_direct(inputs)
    }

    fn compute<'t>(
        &self,
        inputs: &[Input],
        range: Range<u64>,
        gathered: &[u8],
        tile: &'t mut [MaybeUninit<u8>],
    ) -> Result<&'t mut [u8]> {
        self.of.compute(inputs, range, gathered, tile)
    }

    fn step(&self, inputs: &[Input]) -> u64 {
        self.of.step(inputs)
    }

    fn is_native(&self) -> bool {
        self.of.is_native()
    }
}
