//! Which tensors: options that several verbs have.

use std::path::Path;

use anyhow::Result;
use clap::Args;
use weighbridge::Names;

use crate::pattern::{self, Pattern};
use crate::term::Term;

/// Choosing tensors by name.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Choosing tensors")]
pub(crate) struct Select {
    /// Only tensors whose whole name matches: `*` is any text, dots included, `?` one character, `[0-3]` one
    /// of several, `{a,b}` either; may be given several times
    #[arg(long, value_name = "GLOB")]
    only: Vec<String>,

    /// Only tensors with a match of this regular expression in their name; may be given several times
    #[arg(long, value_name = "REGEX")]
    regex: Vec<String>,

    /// No tensors whose whole name matches; may be given several times
    #[arg(long, value_name = "GLOB")]
    except: Vec<String>,
}

impl Select {
    /// The names chosen: those that one of the positive patterns matches, or all if there is none, without
    /// those that a negative one does.
    pub(crate) fn names(&self) -> Result<Names> {
        let globs = self.only.iter().map(|glob| Names::glob(glob));
        let regexes = self.regex.iter().map(|regex| Names::regex(regex));
        chosen(globs.chain(regexes), &self.except)
    }

    /// Fails where a pattern that chooses matches none of these names, and warns where one that leaves out does not.
    pub(crate) fn check<N: AsRef<str>>(&self, location: &Path, names: &[N], term: &Term) -> Result<()> {
        pattern::must_match("tensor", location, &self.choosing()?, names)?;
        pattern::should_match("tensor", location, &Pattern::globs("--except", &self.except)?, names, term);
        Ok(())
    }

    /// As [`check`](Self::check), where only what was chosen was opened; `all` gives the names of everything, and is asked only
    /// where it may be that a pattern matches nothing.
    pub(crate) fn check_chosen<N: AsRef<str>>(
        &self,
        location: &Path,
        chosen: &[N],
        all: impl FnOnce() -> Result<Vec<String>>,
    ) -> Result<()> {
        let choosing = self.choosing()?;
        let Err(missed) = pattern::must_match("tensor", location, &choosing, chosen) else { return Ok(()) };
        // What else there is may be what cannot be opened.
        let Ok(all) = all() else { return Err(missed) };
        pattern::must_match("tensor", location, &choosing, &all)
    }

    /// The patterns that choose.
    fn choosing(&self) -> Result<Vec<Pattern<'_>>> {
        let mut choosing = Pattern::globs("--only", &self.only)?;
        for regex in &self.regex {
            choosing.push(Pattern::regex("--regex", regex)?);
        }
        Ok(choosing)
    }

    /// Whether nothing is chosen, which is everything.
    pub(crate) fn is_all(&self) -> bool {
        self.only.is_empty() && self.regex.is_empty() && self.except.is_empty()
    }
}

/// What one of the patterns matches, or all if there is none, without what one of the globs does.
pub(crate) fn chosen(
    patterns: impl Iterator<Item = weighbridge::Result<Names>>,
    except: &[String],
) -> Result<Names> {
    let mut chosen: Option<Names> = None;
    for names in patterns {
        let names = names?;
        chosen = Some(match chosen {
            Some(others) => others.or(names),
            None => names,
        });
    }
    let all = chosen.unwrap_or_else(Names::all);
    except.iter().try_fold(all, |names, glob| Ok(names.except(Names::glob(glob)?)))
}
