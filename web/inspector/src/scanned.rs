//! What pickles in the files would import.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::Serialize;
use weighbridge::Result;
use weighbridge_convert::{Verdict, scan_source};

use crate::open::Files;

/// Of all files together.
#[derive(Serialize)]
struct Scanned {
    verdict: &'static str,
    pickles: usize,
    /// The worst first.
    imports: Vec<Import>,
    /// More than these were found.
    more: usize,
    /// Bytes that may hold anything.
    problems: Vec<String>,
}

#[derive(Serialize)]
struct Import {
    name: String,
    verdict: &'static str,
}

/// Lines of a list.
const MOST: usize = 50;

/// Scans what is not safetensors; `None` where there is nothing to scan.
pub(crate) fn scan(files: &Files) -> Result<Option<String>> {
    let (mut worst, mut pickles) = (Verdict::Harmless, 0);
    let (mut imports, mut problems) = (BTreeSet::new(), Vec::new());
    let mut is_any = false;
    for (name, source) in files.foreign() {
        let found = scan_source(name, Arc::clone(source))?;
        worst = worst.max(found.verdict());
        pickles += found.pickles.len();
        imports.extend(found.globals().map(|global| (std::cmp::Reverse(global.verdict), global.to_string())));
        let of_pickles = found.pickles.iter().filter_map(|pickle| pickle.problem.clone());
        let of_members = found.problems.iter().map(|problem| match &problem.member {
            Some(member) => format!("{member}: {}", problem.what),
            None => problem.what.clone(),
        });
        problems.extend(of_pickles.chain(of_members).map(|problem| format!("{name}: {problem}")));
        is_any = true;
    }
    if !is_any {
        return Ok(None);
    }
    let more = imports.len().saturating_sub(MOST);
    let import =
        |(verdict, name): (std::cmp::Reverse<Verdict>, String)| Import { name, verdict: verdict.0.name() };
    let imports = imports.into_iter().take(MOST).map(import).collect();
    problems.truncate(MOST);
    let scanned = Scanned { verdict: worst.name(), pickles, imports, more, problems };
    Ok(Some(serde_json::to_string(&scanned).unwrap_or_default()))
}
