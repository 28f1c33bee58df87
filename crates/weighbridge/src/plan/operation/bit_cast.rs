//! Bits under another dtype.

use std::sync::Arc;

use super::{Bound, Operation, Read};
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
    fn bind(&self, inputs: &[Input]) -> Result<Bound> {
        let bound = self.of.bind(inputs)?;
        if !Self::exists(bound.dtype, self.dtype) {
            let message = format!("the bits of {} are not elements of {}", bound.dtype, self.dtype);
            return Err(Error::new(ErrorKind::Dtype, message));
        }
        // Elements of one size have their bytes in the same order.
        Ok(Bound { dtype: self.dtype, ..bound })
    }
}
