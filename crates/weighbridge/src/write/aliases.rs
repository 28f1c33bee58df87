//! Names that mean one tensor.

/// What becomes of names that mean one tensor, such as tied embeddings; for savers that know of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Aliases {
    /// The tensor is written once, under its first name; of each other name the metadata says what it means,
    /// `other = first`, as `safetensors.torch.save_model` and `huggingface_hub` have it.
    Once,
    /// It is written under each name, so that every reader finds every name.
    Each,
}
