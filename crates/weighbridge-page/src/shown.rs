//! Which dtype and how many bytes are told of a tensor that its file stores in blocks, as GGUF does.

use weighbridge::TensorRef;

/// What of such a tensor is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shown {
    /// The blocks that the file stores: `Q4_K`, and their bytes.
    #[default]
    Stored,
    /// The weights that they stand for: `F32`, and the bytes of these.
    Weights,
}

impl Shown {
    /// The dtype, or the type of the blocks.
    pub fn dtype(self, tensor: &TensorRef<'_>) -> &'static str {
        let blocks = tensor.block_type().filter(|_| self == Self::Stored);
        blocks.map_or(tensor.dtype().name(), weighbridge::BlockType::name)
    }

    /// The bytes.
    pub fn bytes(self, tensor: &TensorRef<'_>) -> u64 {
        match self {
            Self::Stored => tensor.stored_len(),
            Self::Weights => tensor.byte_len(),
        }
    }
}
