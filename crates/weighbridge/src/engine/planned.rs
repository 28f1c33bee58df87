//! The entries of a session's plan, by index and by name.

use std::collections::HashMap;
use std::sync::Arc;

use super::report::Report;
use crate::error::{Error, ErrorKind, Result};
use crate::plan::{Entry, Plan};

/// The entries of a session's plan.
pub(super) struct Planned {
    pub(super) entries: Vec<Arc<Entry>>,
    pub(super) by_name: HashMap<String, usize>,
    pub(super) report: Report,
}

impl Planned {
    pub(super) fn new(plan: &Plan) -> Result<Self> {
        let entries = plan.entries().to_vec();
        let mut by_name = HashMap::with_capacity(entries.len());
        for (index, entry) in entries.iter().enumerate() {
            if by_name.insert(entry.name().to_owned(), index).is_some() {
                let error = Error::new(ErrorKind::DuplicateTensor, "the plan has two entries of this name");
                return Err(error.in_tensor(entry.name()));
            }
        }
        let report = Report::new(&entries);
        Ok(Self { entries, by_name, report })
    }
}
