//! What was found, kept in bounds: a hostile file could have millions of findings.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use anyhow::Result;
use serde::Serialize;
use weighbridge::{Error, ErrorKind};

use crate::show::safe;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Severity {
    /// Readers refuse it.
    Error,
    /// Readers let it pass, but nobody wants it.
    Warning,
    /// The specification forbids it, and the profile lets it pass.
    Note,
}

/// One thing that is wrong.
#[derive(Clone, Debug, Serialize)]
struct Finding {
    severity: Severity,
    rule: &'static str,
    file: Option<String>,
    tensor: Option<String>,
    /// One line, with file and tensor.
    message: String,
}

/// All of one checkpoint.
#[derive(Debug, Default, Serialize)]
pub(super) struct Findings {
    #[serde(rename = "findings")]
    kept: Vec<Finding>,
    /// How many there are of each rule, those included that were not kept.
    rules: BTreeMap<&'static str, Rule>,
}

/// How often a rule was broken.
#[derive(Debug, Serialize)]
struct Rule {
    severity: Severity,
    count: usize,
}

impl Findings {
    /// So many of one rule are kept.
    const MOST: usize = 100;

    /// Why a reader refuses it.
    pub(super) fn add_error(&mut self, error: Error) {
        self.push(error.kind().name(), Severity::Error, error);
    }

    pub(super) fn add(
        &mut self,
        rule: &'static str,
        severity: Severity,
        file: Option<&Path>,
        tensor: Option<&str>,
        message: String,
    ) {
        self.push(rule, severity, described(file, tensor, message));
    }

    fn push(&mut self, rule: &'static str, severity: Severity, error: Error) {
        let broken = self.rules.entry(rule).or_insert(Rule { severity, count: 0 });
        (broken.severity, broken.count) = (broken.severity.min(severity), broken.count + 1);
        if broken.count <= Self::MOST {
            self.kept.push(Finding {
                severity,
                rule,
                file: error.file().map(|file| file.to_string_lossy().into_owned()),
                tensor: error.tensor().map(str::to_owned),
                message: error.to_string(),
            });
        }
    }

    /// Without errors and warnings.
    pub(super) fn is_clean(&self) -> bool {
        self.rules.values().all(|rule| rule.severity == Severity::Note)
    }

    pub(super) fn count(&self, severity: Severity) -> usize {
        self.rules.values().filter(|rule| rule.severity == severity).map(|rule| rule.count).sum()
    }

    /// One line a finding, the worst first, and one for each rule of which some were left out.
    pub(super) fn print(&self, out: &mut impl Write) -> Result<()> {
        let mut sorted: Vec<_> = self.kept.iter().collect();
        sorted.sort_by_key(|finding| finding.severity);
        for finding in sorted {
            let (word, color) = match finding.severity {
                Severity::Error => ("error", anstyle::AnsiColor::Red),
                Severity::Warning => ("warning", anstyle::AnsiColor::Yellow),
                Severity::Note => ("note", anstyle::AnsiColor::Cyan),
            };
            let style = color.on_default().bold();
            writeln!(out, "{style}{word}{style:#}[{}]: {}", finding.rule, safe(&finding.message))?;
        }
        for (rule, Rule { count, .. }) in self.rules.iter().filter(|(_, rule)| rule.count > Self::MOST) {
            writeln!(out, "and {} more of [{rule}]", count - Self::MOST)?;
        }
        Ok(())
    }
}

/// Whether an error is about what is there, and not about looking at it.
pub(super) fn is_finding(kind: ErrorKind) -> bool {
    !matches!(
        kind,
        ErrorKind::Io
            | ErrorKind::NotFound
            | ErrorKind::Ambiguous
            | ErrorKind::Busy
            | ErrorKind::Memory
            | ErrorKind::Cancelled
            | ErrorKind::Internal
    )
}

/// An error about one file and one tensor of it, in our own words.
fn described(file: Option<&Path>, tensor: Option<&str>, message: String) -> Error {
    let mut error = Error::new(ErrorKind::Internal, message);
    if let Some(file) = file {
        error = error.in_file(file);
    }
    match tensor {
        Some(tensor) => error.in_tensor(tensor),
        None => error,
    }
}
