//! How an output is made of stored tensors, tile by tile.
//!
//! [`Read`] gives a stored tensor as it is, [`Part`] a slice of one, [`Join`] several concatenated along a
//! dimension, [`Transpose`] one with two adjacent dimensions swapped; [`Cast`] gives what any of them makes in another dtype,
//! [`BitCast`] its bits under another dtype. [`Blend`] makes one tensor out of those of several models. [`Quantize`] makes
//! the codes and scales of a quantised weight, and [`Encode`] any other encoding in groups.

mod bit_cast;
mod blend;
mod cast;
mod encode;
mod join;
mod low_rank;
mod part;
mod quantize;
mod transpose;

use std::fmt::Debug;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::{Arc, LazyLock};

pub use bit_cast::BitCast;
pub use blend::{Blend, BlendMethod};
pub use cast::Cast;
pub use encode::Encode;
pub use join::Join;
pub use low_rank::{Delta, LowRank};
pub use part::Part;
pub use quantize::{Constant, Quantize, QuantizeMethod, QuantizedWeight};
pub use transpose::Transpose;

use super::{Input, Overflow};
use crate::cast::swap_bytes;
use crate::dtype::Dtype;
use crate::error::{Error, ErrorKind, Result};

/// Makes one tensor out of stored ones.
///
/// It is [bound](Self::bind) to its inputs once, when an [`Entry`](super::Entry) is made; what comes out makes the tensor
/// tile by tile.
///
/// ```
/// use std::mem::MaybeUninit;
/// use std::ops::Range;
/// use std::sync::Arc;
///
/// use weighbridge::plan::{Bound, Input, Operation, Piece, Tiles, copied};
/// use weighbridge::{Checkpoint, Dtype, Entry, Error, ErrorKind, Plan, Result};
///
/// /// The bytes of a tensor of `U8`, each with all bits flipped.
/// #[derive(Debug)]
/// struct Flipped;
///
/// impl Operation for Flipped {
///     fn bind(&self, inputs: &[Input]) -> Result<Bound> {
///         match inputs {
///             [input] if input.dtype() == Dtype::U8 => Ok(Bound::new(Dtype::U8, input.shape(), Flipped)),
///             _ => Err(Error::new(ErrorKind::Dtype, "only one tensor of U8 can be flipped")),
///         }
///     }
/// }
///
/// impl Tiles for Flipped {
///     fn gather(&self, tile: Range<u64>, pieces: &mut Vec<Piece>) {
///         pieces.push(Piece { input: 0, bytes: tile });
///     }
///
///     fn compute<'t>(&self, _: Range<u64>, gathered: &[u8], out: &'t mut [MaybeUninit<u8>]) -> Result<&'t mut [u8]> {
///         let out = copied(out, gathered);
///         out.iter_mut().for_each(|byte| *byte = !*byte);
///         Ok(out)
///     }
/// }
///
/// # fn main() -> Result<()> {
/// # let bytes = b"\x35\0\0\0\0\0\0\0{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}xy".to_vec();
/// let ckpt = Checkpoint::from_bytes(bytes)?;
/// let input = Input::of(&ckpt.tensor("a").unwrap());
/// let session = Plan::new([Entry::new("flipped", vec![input], Arc::new(Flipped))?]).session().start()?;
/// assert_eq!(session.take("flipped", None)?.1.as_bytes(), [!b'x', !b'y']);
/// # Ok(())
/// # }
/// ```
pub trait Operation: Debug + Send + Sync {
    /// Works out how the output is made of `inputs`.
    ///
    /// # Errors
    ///
    /// Fails when the operation does not take these inputs; the message says which ones it takes.
    fn bind(&self, inputs: &[Input]) -> Result<Bound>;
}

/// An operation on given inputs: what it makes, and how.
#[derive(Clone, Debug)]
pub struct Bound {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    pub(super) tiles: Arc<dyn Tiles>,
}

impl Bound {
    /// An output of this dtype and shape, made by `tiles`.
    pub fn new(dtype: Dtype, shape: impl Into<Vec<usize>>, tiles: impl Tiles + 'static) -> Self {
        Self { dtype, shape: shape.into(), tiles: Arc::new(tiles) }
    }

    /// The dtype of the output.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The shape of the output.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// How it is made.
    pub fn tiles(&self) -> &Arc<dyn Tiles> {
        &self.tiles
    }
}

/// Makes any part of an output: a *tile*, some of its bytes.
///
/// The engine cuts the output into tiles, asks [`gather`](Self::gather) which stored bytes a tile needs, and reads them
/// into one contiguous buffer. Of tiles that [are direct](Self::is_direct) these bytes are the tile, and are read straight
/// into their destination; otherwise [`compute`](Self::compute) makes the tile of them.
///
/// Bytes are those of the file, little-endian, on every machine; the engine swaps them at the end where it has to,
/// unless `compute` [has done so](Self::is_native).
pub trait Tiles: Debug + Send + Sync {
    /// Appends to `pieces` what the bytes `tile` of the output need. Tiles start and end between two elements of the
    /// output, if these have whole bytes.
    fn gather(&self, tile: Range<u64>, pieces: &mut Vec<Piece>);

    /// The same, if it is one piece of the first input, and there is no other input. What it returns must be what
    /// [`gather`](Self::gather) appends; override it where that is known without a list.
    fn run(&self, tile: &Range<u64>) -> Option<Range<u64>> {
        /// A look at the beginning saves a long list of pieces that would be of no use.
        const BEGINNING: u64 = 16 << 10;
        let (mut pieces, beginning) = (Vec::new(), tile.start.saturating_add(BEGINNING));
        if beginning < tile.end {
            self.gather(tile.start..beginning, &mut pieces);
            if pieces.len() > 1 {
                return None;
            }
            pieces.clear();
        }
        self.gather(tile.clone(), &mut pieces);
        match &*pieces {
            [Piece { input: 0, bytes }] => Some(bytes.clone()),
            _ => None,
        }
    }

    /// Whether what is gathered for a tile is the tile.
    fn is_direct(&self) -> bool {
        false
    }

    /// Makes the bytes `tile` of the output out of what was gathered for them, into `out`, which has the same length, and
    /// returns `out`, fully initialised. It is not called for direct tiles.
    ///
    /// # Errors
    ///
    /// Fails when a value does not fit the output's dtype.
    fn compute<'t>(
        &self,
        tile: Range<u64>,
        gathered: &[u8],
        out: &'t mut [MaybeUninit<u8>],
    ) -> Result<&'t mut [u8]> {
        let _ = (tile, gathered, out);
        Err(Error::new(ErrorKind::Internal, "there is nothing to compute"))
    }

    /// The number of bytes of the output that are best made at a time: 256 KiB unless there is a reason for another, so
    /// that what is computed and what it is made of stay in the cache. Direct tiles are also read in the chunks that
    /// their source prefers, if those are smaller.
    fn step(&self) -> u64 {
        256 << 10
    }

    /// The same output in another dtype, where that is made in one go instead of by a [`Cast`] of it afterwards.
    fn in_dtype(&self, dtype: Dtype, overflow: Overflow) -> Option<Arc<dyn Tiles>> {
        let _ = (dtype, overflow);
        None
    }

    /// Whether [`compute`](Self::compute) writes values in the machine's byte order instead of little-endian.
    fn is_native(&self) -> bool {
        false
    }
}

/// Bytes of one input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The index of the input.
    pub input: usize,
    /// The bytes, counted from the start of the input's data.
    pub bytes: Range<u64>,
}

/// No more pieces than this are gathered at a time.
const MOST_PIECES: u64 = 4096;

/// The bytes of a tile, little-endian: what was gathered for it, or what `tiles` make of that in `scratch`.
fn made_by<'s>(
    tiles: &dyn Tiles,
    dtype: Dtype,
    tile: Range<u64>,
    gathered: &'s [u8],
    scratch: &'s mut Vec<u8>,
) -> Result<&'s [u8]> {
    if tiles.is_direct() {
        return Ok(gathered);
    }
    let len = (tile.end - tile.start) as usize;
    scratch.reserve_exact(len);
    let made = tiles.compute(tile, gathered, &mut scratch.spare_capacity_mut()[..len])?;
    if cfg!(target_endian = "big") && tiles.is_native() {
        swap_bytes(dtype, made);
    }
    Ok(made)
}

fn only(inputs: &[Input]) -> Result<&Input> {
    match inputs {
        [input] => Ok(input),
        _ => Err(Error::new(ErrorKind::Internal, format!("one input was expected, not {}", inputs.len()))),
    }
}

/// The stored tensor as it is.
#[derive(Clone, Copy, Debug)]
pub struct Read;

/// One for all: most entries of most plans have it.
static READ: LazyLock<Arc<dyn Tiles>> = LazyLock::new(|| Arc::new(Read));

impl Read {
    /// Whether these are its tiles.
    pub(super) fn is(tiles: &Arc<dyn Tiles>) -> bool {
        Arc::ptr_eq(tiles, &READ)
    }
}

impl Operation for Read {
    fn bind(&self, inputs: &[Input]) -> Result<Bound> {
        let input = only(inputs)?;
        Ok(Bound { dtype: input.dtype(), shape: input.shape().to_vec(), tiles: Arc::clone(&READ) })
    }
}

impl Tiles for Read {
    fn gather(&self, tile: Range<u64>, pieces: &mut Vec<Piece>) {
        pieces.push(Piece { input: 0, bytes: tile });
    }

    fn run(&self, tile: &Range<u64>) -> Option<Range<u64>> {
        Some(tile.clone())
    }

    fn is_direct(&self) -> bool {
        true
    }

    fn step(&self) -> u64 {
        u64::MAX
    }
}
