//! The parts that each checkpoint has, and their files.

use std::collections::BTreeSet;

use super::manifest::Committed;
use crate::error::{Error, ErrorKind, Result};
use crate::file_names;

/// Parts that any run may have: a dead one's are removed by one that has others.
const USUAL: [&str; 4] = ["model", "optimizer", "scheduler", "ema"];

/// The parts that each checkpoint has.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) names: BTreeSet<String>,
    /// The extension of the files that are there while parts are written.
    pub(super) scratch: Option<String>,
}

impl Parts {
    pub(super) fn new(names: impl Iterator<Item = String>) -> Self {
        Self { names: names.collect(), scratch: None }
    }

    pub(super) fn file_name(part: &str) -> String {
        format!("{part}.safetensors")
    }

    /// The file of one of the parts.
    pub(super) fn file(&self, part: &str) -> Result<String> {
        let fail = |why: &str| Err(Error::new(ErrorKind::Value, format!("{part:?} {why}")));
        if !self.names.contains(part) {
            return fail("is none of the parts that these checkpoints have");
        }
        let file = Self::file_name(part);
        if !file_names::is_plain(&file) || part.starts_with('.') {
            return fail("is no name for a part: it would not be a plain file name");
        }
        Ok(file)
    }

    /// The files of all parts.
    pub(super) fn files(&self) -> BTreeSet<String> {
        self.names.iter().map(|part| Self::file_name(part)).collect()
    }

    /// The files that the folder of a checkpoint may have: those that a manifest had of it, and what an attempt may leave.
    pub(super) fn files_of(&self, committed: Option<&Committed>) -> BTreeSet<String> {
        let mut files = self.files();
        files.extend(USUAL.into_iter().map(Self::file_name));
        files.extend(committed.into_iter().flat_map(|committed| committed.bytes.keys().cloned()));
        files
    }

    /// Whether a file is `model.bpk`, or a temporary file for it, `model.bpk.4711-0.tmp`.
    pub(super) fn is_scratch(&self, file: &str, committed: Option<&Committed>) -> bool {
        let Some(extension) = &self.scratch else { return false };
        self.files_of(committed).iter().any(|part| {
            let Some(rest) = file.strip_prefix(&part.replace("safetensors", extension)) else { return false };
            let random =
                rest.strip_prefix('.').and_then(|rest| rest.strip_suffix(".tmp")).unwrap_or_default();
            rest.is_empty()
                || !random.is_empty()
                    && random.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        })
    }
}
