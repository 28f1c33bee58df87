//! How foreign files are read.

/// How foreign files are read.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Options {
    pub(crate) aliases: Aliases,
}

/// What becomes of names that mean one tensor, such as tied embeddings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Aliases {
    /// The tensor is kept once; of the other names the metadata says what they mean, as `huggingface_hub` has it.
    #[default]
    Once,
    /// Each name has a copy.
    Each,
}

impl Options {
    /// Every name as it is, tied tensors once.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets what becomes of names that mean one tensor.
    #[must_use]
    pub fn aliases(mut self, aliases: Aliases) -> Self {
        self.aliases = aliases;
        self
    }
}
