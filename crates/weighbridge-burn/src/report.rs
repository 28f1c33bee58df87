//! What became of a module's parameters.

use std::fmt;

use burn::tensor::DType;
use weighbridge::{Dtype, Error};

/// What a load did, or would do.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct LoadReport {
    /// The parameters that were loaded, by their paths in the module.
    pub loaded: Vec<String>,
    /// Those of them that came in another dtype than they are stored in.
    pub cast: Vec<Conversion>,
    /// Parameters for which there is no tensor.
    pub missing: Vec<Missing>,
    /// Parameters whose tensor does not fit them, and what else stands in the way;
    /// [`into`](crate::Loader::into) fails if there are any.
    pub problems: Vec<Error>,
    /// Parameters that were [left out](crate::Loader::only).
    pub skipped: Vec<String>,
    /// Tensors that no parameter took, by their stored names.
    pub unused: Vec<String>,
    /// The bytes of what was loaded, as it is in memory.
    pub bytes: u64,
}

/// A parameter that came in another dtype.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Conversion {
    /// Its path in the module.
    pub path: String,
    /// As it is stored.
    pub from: Dtype,
    /// As it was loaded.
    pub to: DType,
}

/// A parameter for which there is no tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Missing {
    /// Its path in the module.
    pub path: String,
    /// The name under which it was looked for.
    pub name: String,
    /// The stored name that is most like it; not searched for when many are missing.
    pub nearest: Option<String>,
    /// What [renaming](crate::Loader::rename) makes of that, if it changes it.
    pub nearest_renamed: Option<String>,
}

impl Missing {
    /// What to say of it beside its name.
    pub(crate) fn remark(&self) -> String {
        let path = match self.path == self.name {
            true => String::new(),
            false => format!(" for {:?}", self.path),
        };
        match (&self.nearest, &self.nearest_renamed) {
            (None, _) => path,
            (Some(nearest), None) => format!("{path}, nearest is {nearest:?}"),
            (Some(nearest), Some(renamed)) => format!("{path}, nearest is {nearest:?}, renamed {renamed:?}"),
        }
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}{}", self.name, self.remark())
    }
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} loaded ({} cast)", self.loaded.len(), self.cast.len())?;
        write!(f, ", {} missing, {} unused", self.missing.len(), self.unused.len())?;
        if !self.problems.is_empty() {
            write!(f, ", {} that do not fit", self.problems.len())?;
        }
        match self.skipped.len() {
            0 => Ok(()),
            skipped => write!(f, ", {skipped} left out"),
        }
    }
}
