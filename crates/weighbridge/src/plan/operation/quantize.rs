//! Weights quantised by rounding to nearest, without calibration: the codes and the scales that libraries
//! load.

mod block;
mod method;
mod mxfp4;
mod nf4;
mod scale;
mod symmetric;
#[cfg(test)]
mod tests;
mod weight;

use std::sync::Arc;

pub use method::QuantizeMethod;
pub use weight::{Constant, QuantizedWeight};

use super::{Bound, Cast, Operation, Read};
use crate::dtype::Dtype;
use crate::error::{Error, ErrorKind, Result};
use crate::plan::Input;
use crate::text::brief;
use symmetric::{Kind, Symmetric};

/// The codes or the scales of a matrix `[rows, columns]` of floats, by a [`QuantizeMethod`].
///
/// Both are computed from the values, tile by tile, so that neither needs memory for the matrix. The values
/// are those of the method's library, bit for bit, where that computes in single precision; scales have the
/// dtype of the matrix where the library's have it, else `F32`.
///
/// [`weight`](QuantizeMethod::weight) gives all tensors that take the place of one.
#[derive(Clone, Debug)]
pub struct Quantize {
    method: QuantizeMethod,
    what: What,
    of: Arc<dyn Operation>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Codes,
    Scales,
}

impl Quantize {
    /// The codes of a stored matrix.
    pub fn codes(method: QuantizeMethod) -> Self {
        Self { method, what: What::Codes, of: Arc::new(Read) }
    }

    /// Its scales.
    pub fn scales(method: QuantizeMethod) -> Self {
        Self { method, what: What::Scales, of: Arc::new(Read) }
    }

    /// Those of what `operation` makes, instead of a stored matrix.
    #[must_use]
    pub fn of(mut self, operation: Arc<dyn Operation>) -> Self {
        self.of = operation;
        self
    }

    fn encode(&self, values: Bound, from: Dtype, rows: usize, columns: usize) -> Result<Bound> {
        let scales = scale::dtype(from);
        let by = |kind, group: usize| Symmetric { kind, group, scales };
        match (self.method, self.what) {
            (QuantizeMethod::Fp8, What::Codes) => {
                values.encoded(by(Kind::Fp8, columns).codes(), Dtype::F8_E4M3, [rows, columns])
            }
            (QuantizeMethod::Fp8, What::Scales) => {
                values.encoded(by(Kind::Fp8, columns).scales(), scales, [rows, 1])
            }
            (QuantizeMethod::Int8, What::Codes) => {
                values.encoded(by(Kind::Int8, columns).codes(), Dtype::I8, [rows, columns])
            }
            (QuantizeMethod::Int8, What::Scales) => {
                values.encoded(by(Kind::Int8, columns).scales(), scales, [rows, 1])
            }
            (QuantizeMethod::Int4 { group }, What::Codes) => {
                values.encoded(by(Kind::Int4, group).codes(), Dtype::I32, [rows, columns / 8])
            }
            (QuantizeMethod::Int4 { group }, What::Scales) => {
                values.encoded(by(Kind::Int4, group).scales(), scales, [rows, columns / group])
            }
            (QuantizeMethod::Fp8Block, What::Codes) => {
                values.encoded(block::Codes { columns }, Dtype::F8_E4M3, [rows, columns])
            }
            (QuantizeMethod::Fp8Block, What::Scales) => {
                let grid = [rows.div_ceil(block::SIDE), columns.div_ceil(block::SIDE)];
                values.encoded(block::Scales { columns }, Dtype::F32, grid)
            }
            (QuantizeMethod::Mxfp4, What::Codes) => {
                values.encoded(mxfp4::Codes, Dtype::U8, [rows, columns / 2])
            }
            (QuantizeMethod::Mxfp4, What::Scales) => {
                values.encoded(mxfp4::Scales, Dtype::U8, [rows, columns / mxfp4::GROUP])
            }
            (QuantizeMethod::Nf4, What::Codes) => {
                values.encoded(nf4::Codes, Dtype::U8, [(rows * columns).div_ceil(2), 1])
            }
            (QuantizeMethod::Nf4, What::Scales) => {
                values.encoded(nf4::Scales, Dtype::F32, [(rows * columns).div_ceil(nf4::BLOCK)])
            }
        }
    }
}

impl Operation for Quantize {
    fn bind(&self, inputs: &[Input]) -> Result<Bound> {
        let Bound { dtype: from, shape, .. } = self.of.bind(inputs)?;
        self.method.takes(from, &shape).map_err(|why| {
            let message =
                format!("{from} of shape {} cannot be quantised: {why}", crate::text::brief(&shape));
            Error::new(ErrorKind::Shape, message)
        })?;
        let [rows, columns] = shape[..] else {
            return Err(Error::new(ErrorKind::Internal, "a matrix was expected"));
        };
        let values = match from {
            Dtype::F32 => self.of.bind(inputs)?,
            _ => Cast::of(Arc::clone(&self.of), Dtype::F32).bind(inputs)?,
        };
        self.encode(values, from, rows, columns)
    }
}

fn refusal(dtype: Dtype, shape: &[usize], why: &str) -> Error {
    let message = format!("{dtype} of shape {} cannot be quantised: {why}", brief(shape));
    Error::new(ErrorKind::Shape, message)
}
