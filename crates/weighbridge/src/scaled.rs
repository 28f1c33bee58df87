//! Weights as codes and their scales, which frameworks with quantised tensors of their own compute with.
//!
//! The weight of a quantised module is [had so](ScaledCodes::of) if it is codes times scales and nothing else.

use std::fmt;
use std::sync::Arc;

use crate::checkpoint::TensorRef;
use crate::dequantize::Apart;
use crate::dtype::Dtype;
use crate::error::{Error, ErrorKind, Result};
use crate::plan::{Entry, Input};

/// What a code is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CodeType {
    /// An integer of two bits, from -2 to 1.
    I2,
    /// An integer of four bits, from -8 to 7.
    I4,
    /// An integer of eight bits, from -128 to 127.
    I8,
    /// A float of four bits.
    E2M1,
    /// A float of eight bits without infinities.
    E4M3,
    /// A float of eight bits with infinities.
    E5M2,
}

impl CodeType {
    /// The bits of a code.
    pub fn bits(self) -> u32 {
        match self {
            Self::I2 => 2,
            Self::I4 | Self::E2M1 => 4,
            Self::I8 | Self::E4M3 | Self::E5M2 => 8,
        }
    }
}

impl fmt::Display for CodeType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::I2 => "int2",
            Self::I4 => "int4",
            Self::I8 => "int8",
            Self::E2M1 => "float4 (E2M1)",
            Self::E4M3 => "float8 (E4M3)",
            Self::E5M2 => "float8 (E5M2)",
        })
    }
}

/// The weight of a quantised module as codes and scales: each weight is its code times its scale, in `F32`, and these
/// are the very numbers that the [dequantised](crate::Checkpoint::dequantized) weight has in `F32`.
///
/// ```
/// use weighbridge::{Checkpoint, CodeType, Dtype, Plan, ScaledCodes, TensorView, write::Save};
///
/// # fn main() -> weighbridge::Result<()> {
/// let codes = TensorView::new(Dtype::I8, &[2, 2], &[1, 2, 3, 0xFC])?;
/// let scales = TensorView::new(Dtype::BF16, &[2, 1], &[0x80, 0x3F, 0x00, 0x3F])?; // 1, 0.5
/// let file = Save::new().bytes([("up.weight", codes), ("up.weight_scale", scales)])?;
/// let dense = Checkpoint::from_bytes(file)?.dequantized()?;
/// let scaled = ScaledCodes::of(&dense.tensor("up.weight").unwrap())?.unwrap();
/// assert_eq!((scaled.code_type(), scaled.group()), (CodeType::I8, Some([1, 2]))); // a scale for each row
/// let session = Plan::new([scaled.entry("up", Some([1, 2]))?]).session().start()?;
/// let (_, bytes) = session.take("up", None)?;
/// assert_eq!(bytes.as_bytes(), [1, 2, 3, 0xFC, 0, 0, 0x80, 0x3F, 0, 0, 0, 0x3F]); // codes, then scales
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct ScaledCodes {
    shape: Vec<usize>,
    inputs: Arc<[Input]>,
    apart: Apart,
}

impl ScaledCodes {
    /// A tensor as codes and scales; `None` for a tensor of plain numbers.
    ///
    /// Integers have to be symmetric: without zero points, or with those that lie in the middle of the codes.
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::Unsupported`] where a quantised module cannot be had so, and says which condition it
    /// breaks.
    pub fn of(tensor: &TensorRef<'_>) -> Result<Option<Self>> {
        let blame = |error: Error| tensor.shard().blame(error.in_tensor(tensor.name()));
        if tensor.shard().blocks(tensor.number()).is_some() {
            let message = "it is stored in GGML's blocks, which have their scales between the codes";
            return Err(blame(Error::new(ErrorKind::Unsupported, message)));
        }
        let Some(derived) = tensor.shard().derived(tensor.number()) else { return Ok(None) };
        let apart = derived.apart().map_err(blame)?;
        Ok(Some(Self { shape: tensor.shape().to_vec(), inputs: derived.inputs().into(), apart }))
    }

    /// What its codes are.
    pub fn code_type(&self) -> CodeType {
        self.apart.code_type()
    }

    /// The shape of the weight.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The rows and columns, of the last two dimensions, that share a scale; the last groups of each may have fewer.
    /// `None` if there is one scale for all.
    pub fn group(&self) -> Option<[usize; 2]> {
        self.apart.group()
    }

    /// The same with the last two dimensions transposed.
    #[must_use]
    pub fn transposed(mut self) -> Self {
        if let [.., rows, columns] = &mut *self.shape {
            std::mem::swap(rows, columns);
            self.apart = self.apart.transposed();
        }
        self
    }

    /// What makes it, as a tensor of bytes named `name`: first the codes, row by row and packed into bytes with the
    /// low bits first; then, as little-endian `F32`, a scale for each block of so many rows and columns, row by row,
    /// too. Without `blocks` there is one scale.
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::Unsupported`] if a row of codes is not a whole number of bytes, or the dimensions and
    /// the [groups](Self::group) are not a whole number of blocks.
    pub fn entry(&self, name: &str, blocks: Option<[usize; 2]>) -> Result<Entry> {
        let (len, tiles) = self.apart.tiles(blocks).map_err(|error| error.in_tensor(name))?;
        Entry::tiled(name, Dtype::U8, vec![len], Arc::clone(&self.inputs), tiles)
    }
}
