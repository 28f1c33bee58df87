//! Which globals are taken, and what is said of those that are not.

use std::collections::HashSet;

use weighbridge::{Error, ErrorKind, Names, Result};

use super::globals::Callable;
use super::value::{Global, Standing};
use super::verdict::Verdict;

/// Globals that an error names; the others are counted.
const SHOWN: usize = 20;

/// What the caller allows.
pub(super) struct Allowed {
    exact: HashSet<String>,
    globs: Vec<Names>,
}

impl Allowed {
    pub(super) fn of(allowed: &[String]) -> Result<Self> {
        let globs = allowed.iter().filter(|name| name.contains(['*', '?', '[', '{']));
        let globs = globs.map(|glob| Names::glob(glob)).collect::<Result<_>>()?;
        Ok(Self { exact: allowed.iter().cloned().collect(), globs })
    }

    /// A global, and whether it is taken.
    pub(super) fn global(&self, module: &str, name: &str) -> Global {
        let callable = Callable::of(module, name);
        let path = format!("{module}.{name}");
        let verdict = Verdict::of(module, name);
        // Scans ask the archive what classes of TorchScript are. Here they are records, which run nothing.
        let is_script = callable.is_some() && module.split('.').next() == Some("__torch__");
        let standing = if verdict == Verdict::Harmless || is_script {
            Standing::Harmless
        } else if self.exact.contains(&path) {
            Standing::Allowed
        } else if verdict == Verdict::Dangerous {
            // A glob is not meant for it, whatever it matches.
            Standing::Dangerous
        } else if self.globs.iter().any(|glob| glob.contains(&path)) {
            Standing::Allowed
        } else {
            Standing::Unknown
        };
        Global { module: module.into(), name: name.into(), callable, standing }
    }
}

/// Fails where dangerous globals are imported, or `is_refused` unknown ones: names all of both.
pub(super) fn check(globals: &[Global], is_refused: impl Fn(usize) -> bool) -> Result<()> {
    let is_refused = &is_refused;
    let of = |standing| {
        let those = globals.iter().enumerate().filter(move |(_, global)| global.standing == standing);
        those.filter(move |&(number, _)| standing == Standing::Dangerous || is_refused(number))
    };
    let paths = |standing| of(standing).map(|(_, global)| global.path()).collect::<Vec<_>>();
    let (dangerous, unknown) = (paths(Standing::Dangerous), paths(Standing::Unknown));
    let mut parts = Vec::new();
    if !dangerous.is_empty() {
        let are = if dangerous.len() == 1 { "is" } else { "are" };
        let advice = "do not load it with anything that runs pickles";
        parts.push(format!("{}, which {are} dangerous; {advice}", list(&dangerous)));
    }
    if !unknown.is_empty() {
        let are = if unknown.len() == 1 { "is" } else { "are" };
        let mut part = format!("{}, which {are} not known to be harmless", list(&unknown));
        if dangerous.is_empty() {
            part += "; --allow-global reads objects of such classes as plain records";
        }
        parts.push(part);
    }
    if parts.is_empty() {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Unsafe, format!("the pickle imports {}", parts.join("; and "))))
}

/// `"a", "b" and "c"`, or `"a", "b" and 5 more`.
fn list(paths: &[String]) -> String {
    let mut shown: Vec<String> = paths.iter().take(SHOWN).map(|path| format!("{path:?}")).collect();
    if paths.len() > SHOWN {
        shown.push(format!("{} more", paths.len() - SHOWN));
    }
    match shown.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
        None => String::new(),
    }
}
