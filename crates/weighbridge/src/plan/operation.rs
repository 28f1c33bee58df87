//! How an output is made of stored tensors, tile by tile.
//!
//! [`Read`] gives a stored tensor as it is, [`Part`] a slice of one, [`Join`] several behind one another along a
//! dimension, [`Transpose`] one with two dimensions exchanged; [`Cast`] gives what any of them makes in another dtype,
//! [`BitCast`] its bits under another dtype.

mod bit_cast;
mod cast;
mod join;
mod part;
mod transpose;

use std::fmt::Debug;
use std::mem::MaybeUninit;
use std::ops::Range;

pub use bit_cast::BitCast;
pub use cast::Cast;
pub use join::Join;
pub use part::Part;
pub use transpose::Transpose;

use super::Input;
use crate::dtype::Dtype;
use crate::error::{Error, ErrorKind, Result};

/// Makes one tensor out of stored ones.
///
/// The engine cuts the output into tiles, asks [`gather`](Operation::gather) which stored bytes a tile needs, and
/// reads them one behind the other. Of an operation that [is direct](Operation::is_direct) these are the tile, and
/// are read straight into their place; otherwise [`compute`](Operation::compute) makes the tile of them.
///
/// Bytes are those of the file, little-endian, on every machine; the engine turns them around at the end where it
/// has to, unless the operation [did](Operation::is_native).
pub trait Operation: Debug + Send + Sync {
    /// The dtype and shape of the output.
    ///
    /// # Errors
    ///
    /// Fails when the operation does not take these inputs; the message says which ones it takes.
    fn output(&self, inputs: &[Input]) -> Result<(Dtype, Vec<usize>)>;

    /// What the bytes `tile` of the output need. Tiles start and end between two elements of the
    /// output, if these have whole bytes.
    fn gather(&self, inputs: &[Input], tile: Range<u64>) -> Vec<Piece>;

    /// Whether what is gathered for a tile is the tile.
    fn is_direct(&self, inputs: &[Input]) -> bool;

    /// Makes the bytes `range` of the output out of what was gathered for them, into `tile`, which has as many; called
    /// only if the operation is not direct; one that is need not have it. It returns `tile`, filled.
    ///
    /// # Errors
    ///
    /// Fails when a value has no place in the output's dtype.
    fn compute<'t>(
        &self,
        inputs: &[Input],
        range: Range<u64>,
        gathered: &[u8],
        tile: &'t mut [MaybeUninit<u8>],
    ) -> Result<&'t mut [u8]> {
        let _ = (inputs, range, gathered, tile);
        Err(Error::new(ErrorKind::Internal, "there is nothing to compute"))
    }

    /// How many bytes of the output are best made at a time: 256 KiB unless there is a reason, so that what is
    /// computed and what it is made of stay in the cache. What is direct is also read in the pieces that its source
    /// likes, whatever is less.
    fn step(&self, inputs: &[Input]) -> u64 {
        let _ = inputs;
        256 << 10
    }

    /// Whether what is computed is in the machine's byte order already.
    fn is_native(&self) -> bool {
        false
    }
}

/// Bytes of one input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The input, by its place.
    pub input: usize,
    /// The bytes, counted from the start of the input's data.
    pub bytes: Range<u64>,
}

/// No more pieces than this are gathered at a time.
const MOST_PIECES: u64 = 4096;

fn only(inputs: &[Input]) -> Result<&Input> {
    match inputs {
        [input] => Ok(input),
        _ => Err(Error::new(ErrorKind::Internal, format!("one input was expected, not {}", inputs.len()))),
    }
}

/// The stored tensor as it is.
#[derive(Clone, Copy, Debug)]
pub struct Read;

impl Operation for Read {
    fn output(&self, inputs: &[Input]) -> Result<(Dtype, Vec<usize>)> {
        let input = only(inputs)?;
        Ok((input.dtype(), input.shape().to_vec()))
    }

    fn gather(&self, _: &[Input], tile: Range<u64>) -> Vec<Piece> {
        vec![Piece { input: 0, bytes: tile }]
    }

    fn is_direct(&self, _: &[Input]) -> bool {
        true
    }

    fn step(&self, _: &[Input]) -> u64 {
        u64::MAX
    }
}
