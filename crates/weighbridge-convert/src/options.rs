//! How foreign files are read.

use weighbridge::write::Aliases;
use weighbridge::{Dtype, Names};

/// How foreign files are read.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Options {
    pub(crate) aliases: Option<Aliases>,
    pub(crate) dequantise: Option<Dtype>,
    pub(crate) raw_names: bool,
    pub(crate) skip_unsupported: bool,
    pub(crate) allowed: Vec<String>,
    pub(crate) names: Option<Names>,
}

impl Options {
    /// Every name as it is, tied tensors once.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets what quantised tensors become: F32 unless something else is said, or F16 or BF16, rounded to nearest.
    #[must_use]
    pub fn dequantise(mut self, dtype: Dtype) -> Self {
        self.dequantise = Some(dtype);
        self
    }

    /// Sets what becomes of names that mean one tensor, such as tied embeddings; [`Aliases::Once`] otherwise.
    #[must_use]
    pub fn aliases(mut self, aliases: Aliases) -> Self {
        self.aliases = Some(aliases);
        self
    }

    /// Keeps prefixes of names that are left out otherwise: `state_dict.`, `model.`, `module.`.
    #[must_use]
    pub fn raw_names(mut self) -> Self {
        self.raw_names = true;
        self
    }

    /// Leaves out tensors that safetensors cannot hold, such as sparse ones, instead of failing for them.
    #[must_use]
    pub fn skip_unsupported(mut self) -> Self {
        self.skip_unsupported = true;
        self
    }

    /// Reads only tensors of these names; nothing about the others makes an error. The names are those of the result.
    #[must_use]
    pub fn only(mut self, names: Names) -> Self {
        self.names = Some(match self.names {
            Some(others) => others.and(names),
            None => names,
        });
        self
    }

    /// Whether a tensor of this name is to be read.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.names.as_ref().is_none_or(|names| names.contains(name))
    }

    /// Takes objects of a class that a pickle imports, `package.module.Class`, for records of what they are made of, where the
    /// pickle would be refused because of it. Nothing of the class is run. A glob such as `omegaconf.*` allows many, but
    /// nothing that is known to be dangerous.
    #[must_use]
    pub fn allow_global(mut self, global: impl Into<String>) -> Self {
        self.allowed.push(global.into());
        self
    }
}
