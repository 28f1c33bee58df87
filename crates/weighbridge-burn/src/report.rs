//! What a load did to a module's parameters.

use std::fmt;

use burn::tensor::DType;
use weighbridge::{Dtype, Error};

/// What a load did, or would do.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct LoadReport {
    /// The parameters that were loaded, by their paths in the module.
    pub loaded: Vec<String>,
    /// Those of them that were cast to another dtype than the stored one.
    pub cast: Vec<Conversion>,
    /// Those of them that are [kept quantised](crate::Loader::keep_quantized).
    pub quantized: Vec<String>,
    /// Those of them that came dense, because
    /// [`dense_where_needed`](crate::Loader::dense_where_needed) was set.
    pub dense: Vec<Dequantized>,
    /// Parameters for which there is no tensor.
    pub missing: Vec<Missing>,
    /// Parameters whose tensors do not fit, and whatever else is wrong: [`into`](crate::Loader::into) fails
    /// if there is anything.
    pub problems: Vec<Error>,
    /// Parameters that were [left out](crate::Loader::only).
    pub skipped: Vec<String>,
    /// Tensors that no parameter took, by their stored names.
    pub unused: Vec<String>,
    /// The number of bytes that were loaded, as they are in memory.
    pub bytes: u64,
}

/// A parameter that was cast to another dtype than the stored one.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Conversion {
    /// Its path in the module.
    pub path: String,
    /// The stored dtype.
    pub from: Dtype,
    /// The dtype of the parameter.
    pub to: DType,
}

/// A parameter whose quantised weight could not stay as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Dequantized {
    /// Its path in the module.
    pub path: String,
    /// Which condition was broken.
    pub reason: String,
}

/// A parameter for which there is no tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Missing {
    /// Its path in the module.
    pub path: String,
    /// The name under which it was looked for.
    pub name: String,
    /// The stored name that is most like it. It is looked for only for the first few missing parameters.
    pub nearest: Option<String>,
    /// That name after [renaming](crate::Loader::rename), if it is another one then.
    pub nearest_renamed: Option<String>,
}

impl Missing {
    /// What to say about it besides its name.
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
        write!(f, "{} loaded ({} cast", self.loaded.len(), self.cast.len())?;
        if !self.quantized.is_empty() {
            write!(f, ", {} quantised", self.quantized.len())?;
        }
        f.write_str(")")?;
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
