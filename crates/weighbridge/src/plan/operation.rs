//! How an output is made of stored tensors, tile by tile.

use std::fmt::Debug;
use std::mem::MaybeUninit;
use std::ops::Range;

use super::Input;
use super::convert::{self, Kernel};
use crate::dtype::Dtype;
use crate::error::{Error, ErrorKind, Result};

/// Makes one tensor out of stored ones.
///
/// The engine cuts the output into tiles, asks [`gather`](Operation::gather) which stored bytes a tile needs,
/// reads them one behind the other, and has [`compute`](Operation::compute) turn them into the tile, unless
/// they already are the tile and could be read straight into their place.
pub trait Operation: Debug + Send + Sync {
    /// The dtype and shape of the output.
    ///
    /// # Errors
    ///
    /// Fails when the operation does not take these inputs; the message says which ones it takes.
    fn output(&self, inputs: &[Input]) -> Result<(Dtype, Vec<usize>)>;

    /// What the bytes `tile` of the output need. Tiles start and end between two elements of the
    /// output, if these have whole bytes.
    fn gather(&self, inputs: &[Input], tile: Range<u64>) -> Gather;

    /// Makes the tile out of the gathered bytes; called only where [`gather`](Operation::gather) asked for it.
    /// It returns `tile`, filled.
    ///
    /// # Errors
    ///
    /// Fails when a value has no place in the output's dtype.
    fn compute<'t>(
        &self,
        inputs: &[Input],
        gathered: &[u8],
        tile: &'t mut [MaybeUninit<u8>],
    ) -> Result<&'t mut [u8]>;
}

/// The stored bytes that a tile needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gather {
    /// These, one behind the other, are the tile.
    Direct(Vec<Piece>),
    /// These, one behind the other, are what [`Operation::compute`] makes the tile of.
    Compute(Vec<Piece>),
}

/// Bytes of one input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The input, by its place.
    pub input: usize,
    /// The bytes, counted from the start of the input's data.
    pub bytes: Range<u64>,
}

fn only(inputs: &[Input]) -> Result<&Input> {
    match inputs {
        [input] => Ok(input),
        _ => Err(Error::new(ErrorKind::Internal, format!("one input was expected, not {}", inputs.len()))),
    }
}

/// The stored tensor as it is, in the machine's byte order.
#[derive(Clone, Copy, Debug)]
pub struct Read;

impl Operation for Read {
    fn output(&self, inputs: &[Input]) -> Result<(Dtype, Vec<usize>)> {
        let input = only(inputs)?;
        Ok((input.dtype(), input.shape().to_vec()))
    }

    fn gather(&self, inputs: &[Input], tile: Range<u64>) -> Gather {
        let pieces = vec![Piece { input: 0, bytes: tile }];
        let multibyte = inputs.first().is_some_and(|input| input.dtype().bits() > 8);
        match cfg!(target_endian = "big") && multibyte {
            true => Gather::Compute(pieces),
            false => Gather::Direct(pieces),
        }
    }

    fn compute<'t>(
        &self,
        inputs: &[Input],
        gathered: &[u8],
        tile: &'t mut [MaybeUninit<u8>],
    ) -> Result<&'t mut [u8]> {
        convert::to_native(only(inputs)?.dtype(), gathered, tile)
    }
}

/// The stored tensor, its values in another dtype.
///
/// Floats are rounded to nearest, ties to even; what is too large becomes infinity, and in `F8_E4M3`, which has
/// none, the largest value; NaN stays NaN. Integers, and floats that become integers, must fit; fractions are
/// cut off.
#[derive(Clone, Copy, Debug)]
pub struct Cast {
    dtype: Dtype,
}

impl Cast {
    /// A cast to `dtype`.
    pub fn to(dtype: Dtype) -> Self {
        Self { dtype }
    }

    /// Whether values of dtype `from` can be cast to `to`.
    pub fn exists(from: Dtype, to: Dtype) -> bool {
        convert::kernel(from, to).is_some()
    }

    fn kernel(&self, input: &Input) -> Result<Kernel> {
        convert::kernel(input.dtype(), self.dtype).ok_or_else(|| {
            let message = format!("there is no cast from {} to {}", input.dtype(), self.dtype);
            Error::new(ErrorKind::Dtype, message)
        })
    }
}

impl Operation for Cast {
    fn output(&self, inputs: &[Input]) -> Result<(Dtype, Vec<usize>)> {
        let input = only(inputs)?;
        self.kernel(input)?;
        Ok((self.dtype, input.shape().to_vec()))
    }

    fn gather(&self, inputs: &[Input], tile: Range<u64>) -> Gather {
        let from = inputs.first().map_or(0, |input| u64::from(input.dtype().bits()));
        let to = u64::from(self.dtype.bits());
        let stored = |made: u64| made * 8 / to * from / 8;
        let bytes = stored(tile.start)..stored(tile.end);
        Gather::Compute(vec![Piece { input: 0, bytes }])
    }

    fn compute<'t>(
        &self,
        inputs: &[Input],
        gathered: &[u8],
        tile: &'t mut [MaybeUninit<u8>],
    ) -> Result<&'t mut [u8]> {
        let input = only(inputs)?;
        let elements = |bytes: usize, dtype: Dtype| {
            let bytes_each = dtype.bits() as usize / 8;
            bytes.is_multiple_of(bytes_each).then(|| bytes / bytes_each)
        };
        let (from, to) = (elements(gathered.len(), input.dtype()), elements(tile.len(), self.dtype));
        if from.is_none() || from != to {
            return Err(Error::new(ErrorKind::Internal, "a tile and its input differ in length"));
        }
        (self.kernel(input)?)(gathered, tile).map_err(|convert::OutOfRange| {
            let message = format!("a value of {} does not fit {}", input.dtype(), self.dtype);
            Error::new(ErrorKind::Value, message)
        })
    }
}
