//! Weights in GGML's blocks, which frameworks compute with as they are.
//!
//! A block is a scale, sometimes a minimum, and the codes of a number of weights that follow each other in a
//! row. Tensors [have](Blocks::of) them in two cases: their file stores them so, as GGUF does, or their
//! module is quantised in a way that blocks can say exactly, code by code and scale by scale.

use std::fmt;
use std::sync::Arc;

use crate::checkpoint::TensorRef;
use crate::dtype::Dtype;
use crate::error::{Error, ErrorKind, Result};
use crate::plan::{Entry, Input, Read};

/// A type of blocks: how many weights one has, and in how many bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockType {
    id: u32,
    name: &'static str,
    weights: usize,
    bytes: usize,
    align: usize,
}

impl BlockType {
    /// 32 weights of 4 bits: `(code - 8) * scale`.
    pub const Q4_0: Self = Self::new(2, "Q4_0", 32, 18, 2);
    /// 32 weights of 4 bits: `code * scale + minimum`.
    pub const Q4_1: Self = Self::new(3, "Q4_1", 32, 20, 2);
    /// 32 weights of 5 bits: `(code - 16) * scale`.
    pub const Q5_0: Self = Self::new(6, "Q5_0", 32, 22, 2);
    /// 32 weights of 5 bits: `code * scale + minimum`.
    pub const Q5_1: Self = Self::new(7, "Q5_1", 32, 24, 2);
    /// 32 weights of 8 bits: `code * scale`.
    pub const Q8_0: Self = Self::new(8, "Q8_0", 32, 34, 2);

    /// The type that has this number and this name in GGML; a block of it has so many weights and so many
    /// bytes, and its widest number has `align` bytes: 1, 2 or 4.
    pub const fn new(id: u32, name: &'static str, weights: usize, bytes: usize, align: usize) -> Self {
        Self { id, name, weights, bytes, align }
    }

    /// Its number in GGUF files.
    pub fn id(self) -> u32 {
        self.id
    }

    /// Its name: `Q4_0`.
    pub fn name(self) -> &'static str {
        self.name
    }

    /// The weights of a block.
    pub fn weights(self) -> usize {
        self.weights
    }

    /// The bytes of a block.
    pub fn bytes(self) -> usize {
        self.bytes
    }

    /// The words that memory for blocks is made of, so that it is aligned as they are: of the size of their
    /// widest number.
    pub fn words(self) -> Dtype {
        match self.align {
            4 => Dtype::U32,
            2 => Dtype::U16,
            _ => Dtype::U8,
        }
    }

    /// The shape that weights of this shape have as words; `None` if blocks would go beyond a row.
    pub fn shape_in_words(self, shape: &[usize]) -> Option<Vec<usize>> {
        let (row, outer) = shape.split_last()?;
        let words = self.bytes / self.align.clamp(1, 4);
        let row = (row % self.weights.max(1) == 0).then(|| row / self.weights.max(1))?;
        let mut shape = outer.to_vec();
        shape.push(row.checked_mul(words)?);
        Some(shape)
    }
}

impl fmt::Debug for BlockType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl fmt::Display for BlockType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// A tensor as blocks, to be read by a [plan](crate::Plan).
///
/// ```
/// use weighbridge::{BlockType, Blocks, Checkpoint, Dtype, Plan, TensorView, write::Save};
///
/// # fn main() -> weighbridge::Result<()> {
/// let codes: Vec<u8> = (0..64).map(|code: i8| (code - 32) as u8).collect();
/// let codes = TensorView::new(Dtype::I8, &[2, 32], &codes)?;
/// let scales = TensorView::new(Dtype::BF16, &[2, 1], &[0x80, 0x3F, 0x00, 0x3F])?; // 1, 0.5
/// let file = Save::new().bytes([("up.weight", codes), ("up.weight_scale", scales)])?;
/// let dense = Checkpoint::from_bytes(file)?.dequantized()?;
/// let blocks = Blocks::of(&dense.tensor("up.weight").unwrap(), "up")?.unwrap();
/// assert_eq!(blocks.block_type(), BlockType::Q8_0);
/// let session = Plan::new([blocks.entry().clone()]).session().start()?;
/// let (_, words) = session.take("up", None)?;
/// assert_eq!(words.as_bytes().len(), 2 * 34); // of each row: the scale as F16, and 32 codes
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Blocks {
    block_type: BlockType,
    shape: Vec<usize>,
    entry: Entry,
}

impl Blocks {
    /// A tensor as blocks, to be planned under `name`; `None` for a tensor of plain numbers.
    ///
    /// The weight of a quantised module, as [`Checkpoint::dequantized`](crate::Checkpoint::dequantized) has
    /// it, is its codes and scales in other places, and stands for exactly the weights that it has in `F32`:
    ///
    /// - integers with a scale: `Q4_0`, `Q5_0` or `Q8_0`, the first of them that holds all that codes can be
    ///   without their zero point. Symmetric codes of 4 bits are `Q4_0`, those of 8 bits `Q8_0`. Zero points
    ///   that differ are no obstacle to codes of up to 4 bits, for which `Q5_0` has room enough;
    /// - unsigned integers with a scale and a bias, as MLX has them: `Q4_1` up to 4 bits, `Q5_1` for 5.
    ///
    /// All scales, and biases, have to be numbers of `F16`, and every 32 columns have to be of one group.
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::Unsupported`] where a quantised module cannot be had so, and says which
    /// condition it breaks. What its scales are is not known before they are read: the same error comes from
    /// the session then.
    pub fn of(tensor: &TensorRef<'_>, name: &str) -> Result<Option<Self>> {
        let shape = tensor.shape().to_vec();
        let blame = |error: Error| tensor.shard().blame(error.in_tensor(tensor.name()));
        let beyond = || {
            let message =
                format!("rows of {} weights are not whole blocks", shape.last().copied().unwrap_or(0));
            Error::new(ErrorKind::Unsupported, message)
        };
        if let Some((block_type, input)) = tensor.shard().blocks(tensor.number()) {
            let entry = Entry::new(name, vec![input.clone()], Arc::new(Read)).map_err(blame)?;
            return Ok(Some(Self { block_type: *block_type, shape, entry }));
        }
        let Some(derived) = tensor.shard().derived(tensor.number()) else { return Ok(None) };
        let (block_type, tiles) = derived.blocks().map_err(blame)?;
        let words = block_type.shape_in_words(&shape).ok_or_else(|| blame(beyond()))?;
        let entry =
            Entry::tiled(name, block_type.words(), words, derived.inputs().into(), tiles).map_err(blame)?;
        Ok(Some(Self { block_type, shape, entry }))
    }

    /// The type of the blocks.
    pub fn block_type(&self) -> BlockType {
        self.block_type
    }

    /// The shape of the weights.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// What makes the blocks: rows of [words](BlockType::words), little-endian as in a file, whatever the
    /// machine.
    pub fn entry(&self) -> &Entry {
        &self.entry
    }
}

/// Where the blocks of a shard's tensors are, in the order of its data.
pub(crate) type StoredBlocks = Vec<Option<(BlockType, Input)>>;
