//! Which names tensors get: options that several verbs have.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::error::ErrorKind;
use clap::{ArgMatches, Args, Command, FromArgMatches};
use weighbridge::Renames;

use crate::pattern;
use crate::show::safe;
use crate::term::Term;

/// Renaming tensors: rules are applied in the order in which they are given, each to what the ones before it
/// made.
#[derive(Clone, Debug, Default)]
pub(crate) struct Renaming(Vec<Rule>);

#[derive(Clone, Debug)]
enum Rule {
    Glob(Pair),
    Prefix(Pair),
    Regex(Pair),
    Map(PathBuf),
}

#[derive(Clone, Debug)]
struct Pair {
    from: String,
    to: String,
}

/// The options as clap sees them, which loses the order among them.
#[derive(Debug, Args)]
#[command(next_help_heading = "Renaming")]
struct Options {
    /// Renames what matches a glob as a whole: each `*` and `?` of TO becomes what the one of the same number
    /// in FROM stood for. Of all options here several may be given; they are applied in their order
    #[arg(long, value_name = "FROM=TO", value_parser = Pair::parse)]
    rename: Vec<Pair>,

    /// Replaces the beginning of names: `model.=` takes it away, `=model.` puts it before every name
    #[arg(long, value_name = "FROM=TO", value_parser = Pair::parse)]
    rename_prefix: Vec<Pair>,

    /// Replaces every match of a regular expression; `$1` or `${name}` in TO is what a group matched
    #[arg(long, value_name = "FROM=TO", value_parser = Pair::parse)]
    rename_regex: Vec<Pair>,

    /// Renames the tensors that a file of JSON lists: `{"old": "new", ...}`
    #[arg(long, value_name = "FILE")]
    rename_map: Vec<PathBuf>,
}

impl Pair {
    fn parse(text: &str) -> Result<Self, String> {
        let (from, to) = text.split_once('=').ok_or("it has no `=` between the old and the new")?;
        Ok(Self { from: from.to_owned(), to: to.to_owned() })
    }
}

impl Renaming {
    /// Whether every tensor keeps its name.
    pub(crate) fn is_none(&self) -> bool {
        self.0.is_empty()
    }

    /// The rules, ready to be applied.
    pub(crate) fn renames(&self) -> Result<Renames> {
        self.0.iter().try_fold(Renames::new(), |renames, rule| rule.add_to(renames))
    }

    /// The rules that change no name, given what the ones before them made of these.
    pub(crate) fn idle<N: AsRef<str>>(&self, names: &[N]) -> Result<Idle> {
        let mut names: Vec<_> = names.iter().map(|name| name.as_ref().to_owned()).collect();
        let mut said = Vec::new();
        for rule in &self.0 {
            let renames = rule.add_to(Renames::new())?;
            let renamed: Vec<_> = names.iter().map(|name| renames.apply(name)).collect();
            if renamed == names {
                said.push(rule.idle(&names));
            }
            names = renamed;
        }
        Ok(Idle { are_all: said.len() == self.0.len(), said })
    }

    /// Warns of rules that change no name: there may be some in a list that is given for many checkpoints.
    pub(crate) fn warn<N: AsRef<str>>(&self, location: &Path, names: &[N], term: &Term) -> Result<()> {
        for said in self.idle(names)?.said {
            term.warn(format_args!("{}: {said}", location.display()));
        }
        Ok(())
    }
}

/// Rules that change no name.
pub(crate) struct Idle {
    /// What is to be said of each.
    pub(crate) said: Vec<String>,
    /// Whether there are no others.
    pub(crate) are_all: bool,
}

impl Rule {
    fn add_to(&self, renames: Renames) -> Result<Renames> {
        Ok(match self {
            Self::Glob(Pair { from, to }) => renames.glob(from, to)?,
            Self::Prefix(Pair { from, to }) => renames.prefix(from, to),
            Self::Regex(Pair { from, to }) => renames.regex(from, to)?,
            Self::Map(file) => with_map(renames, file)?,
        })
    }

    /// What is said of a rule that changes none of these names.
    fn idle(&self, names: &[String]) -> String {
        let pair =
            |option: &str, Pair { from, to }: &Pair| format!("{option} {:?}", safe(&format!("{from}={to}")));
        let (rule, hint) = match self {
            Self::Glob(rule) => {
                (pair("--rename", rule), pattern::hint(&rule.from, || names.iter().map(String::as_str)))
            }
            Self::Prefix(rule) => (pair("--rename-prefix", rule), String::new()),
            Self::Regex(rule) => (pair("--rename-regex", rule), String::new()),
            Self::Map(file) => (format!("--rename-map {}", file.display()), String::new()),
        };
        format!("{rule} changes no name{hint}")
    }
}

/// All names of a file at once, so that two can be exchanged.
fn with_map(renames: Renames, file: &Path) -> Result<Renames> {
    /// No list of names is longer than the longest header.
    const LIMIT: u64 = 100_000_000;
    let read = || -> Result<serde_json::Map<String, serde_json::Value>> {
        let reader = BufReader::new(File::open(file)?);
        Ok(serde_json::from_reader(reader.take(LIMIT))?)
    };
    let map = read().with_context(|| format!("{}: it is not a JSON object of names", file.display()))?;
    let mut names = Vec::with_capacity(map.len());
    for (from, to) in map {
        let serde_json::Value::String(to) = to else {
            bail!("{}: the new name of {from:?} is not a text", file.display());
        };
        names.push((from, to));
    }
    Ok(renames.map(names))
}

impl Args for Renaming {
    fn augment_args(command: Command) -> Command {
        Options::augment_args(command)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Options::augment_args_for_update(command)
    }
}

impl FromArgMatches for Renaming {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        fn placed<T: Clone + Send + Sync + 'static>(
            matches: &ArgMatches,
            option: &str,
            rule: fn(T) -> Rule,
        ) -> Result<Vec<(usize, Rule)>, clap::Error> {
            let fault = |error| clap::Error::raw(ErrorKind::InvalidValue, format!("{error}\n"));
            let values = matches.try_get_many::<T>(option).map_err(fault)?.into_iter().flatten().cloned();
            Ok(matches.indices_of(option).into_iter().flatten().zip(values.map(rule)).collect())
        }
        let mut rules = placed(matches, "rename", Rule::Glob)?;
        rules.extend(placed(matches, "rename_prefix", Rule::Prefix)?);
        rules.extend(placed(matches, "rename_regex", Rule::Regex)?);
        rules.extend(placed(matches, "rename_map", Rule::Map)?);
        rules.sort_by_key(|&(place, _)| place);
        Ok(Self(rules.into_iter().map(|(_, rule)| rule).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
