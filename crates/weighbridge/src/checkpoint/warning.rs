//! What is not as it should be but did not keep a checkpoint from being opened.

use std::path::{Path, PathBuf};

use super::shard::Shard;
use crate::error::{Error, ErrorKind};
use crate::text::start_of;

/// A warning, in parts, because a union puts a prefix before the tensor's name.
#[derive(Clone)]
pub(super) struct Warning {
    file: Option<PathBuf>,
    tensor: Option<String>,
    message: String,
}

impl Warning {
    pub(super) fn new(file: Option<&Path>, tensor: Option<&str>, message: String) -> Self {
        let tensor = tensor.map(|name| start_of(name).to_owned());
        Self { file: file.map(Path::to_owned), tensor, message }
    }

    /// The findings of a shard's header.
    pub(super) fn of_header(shard: &Shard) -> impl Iterator<Item = Self> {
        shard.header().findings().iter().map(|finding| {
            let message = format!("{} ({})", finding.rule.message(), finding.rule);
            Self::new(shard.label(), finding.tensor.as_deref(), message)
        })
    }

    pub(super) fn with_prefix(mut self, prefix: &str) -> Self {
        if let Some(tensor) = &mut self.tensor {
            tensor.insert_str(0, prefix);
        }
        self
    }

    /// In the form of an error's line.
    pub(super) fn line(&self) -> String {
        let mut error = Error::new(ErrorKind::Internal, &*self.message);
        if let Some(file) = &self.file {
            error = error.in_file(file);
        }
        if let Some(tensor) = &self.tensor {
            error = error.in_tensor(tensor);
        }
        error.to_string()
    }
}
