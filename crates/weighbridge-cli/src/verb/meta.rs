//! `weighbridge meta`.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use weighbridge::Checkpoint;
use weighbridge::write::{MetadataEdit, Order, Save};

use crate::destination::Destination;
use crate::interrupt;
use crate::load::open;
use crate::metadata;
use crate::outcome::Outcome;
use crate::show::{plural, safe};
use crate::term::Term;

/// Shows and changes the metadata in the header
#[derive(Debug, Args)]
pub(crate) struct Meta {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    Get(Get),
    Set(Set),
    Unset(Unset),
}

/// Prints the metadata, or the value of one key
///
/// Of a sharded checkpoint, what all shards say together; where they differ, the first one's value is
/// printed, with a warning. Exits with 1 if there is no such key.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  weighbridge meta get model.safetensors
  weighbridge meta get model.safetensors format
  weighbridge meta get lora.safetensors --format json | jq .ss_network_dim")]
struct Get {
    /// The checkpoint: a file, a directory, an index, or a repository in the cache
    #[arg(value_name = "PATH")]
    input: PathBuf,

    /// Print this entry's value as it is
    key: Option<String>,

    /// How to print all entries
    #[arg(long, value_enum, default_value_t, conflicts_with = "key")]
    format: Format,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Format {
    /// One `key = value` a line
    #[default]
    Text,
    /// One object
    Json,
}

/// Sets entries
///
/// A file is written anew beside the old one and renamed to it: whenever the program is stopped, the old file
/// is there or the new one. Shards are changed one after the other.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  weighbridge meta set model.safetensors format=pt
  weighbridge meta set model.safetensors 'license=Apache 2.0' author=me -o tagged.safetensors")]
struct Set {
    /// The checkpoint: a file, a directory, an index, or a repository in the cache
    #[arg(value_name = "PATH")]
    input: PathBuf,

    /// What to set
    #[arg(value_name = "KEY=VALUE", required = true, value_parser = pair)]
    entries: Vec<(String, String)>,

    #[command(flatten)]
    change: Change,
}

/// Removes entries
///
/// Files are changed as by `meta set`. An entry that is not there is no error.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  weighbridge meta unset model.safetensors comment
  weighbridge meta unset lora.safetensors --all -o clean.safetensors")]
struct Unset {
    /// The checkpoint: a file, a directory, an index, or a repository in the cache
    #[arg(value_name = "PATH")]
    input: PathBuf,

    /// Which entries
    #[arg(value_name = "KEY", required_unless_present = "all")]
    keys: Vec<String>,

    /// Remove all entries
    #[arg(long)]
    all: bool,

    #[command(flatten)]
    change: Change,
}

/// How files are changed.
#[derive(Debug, Args)]
#[command(next_help_heading = "Output")]
struct Change {
    /// Write a changed copy: one file if it ends in `.safetensors`, otherwise a directory, in shards of 5 GB
    #[arg(short, long, value_name = "PATH")]
    output: Option<PathBuf>,

    /// Replace what is at the output already; without one, change files that are links, such as those of the
    /// Hugging Face cache
    #[arg(long)]
    force: bool,

    /// Write the new header over the old one where it has room for it: no copy is made, but a machine that
    /// stops in the middle leaves a broken file
    #[arg(long, conflicts_with = "output")]
    in_place: bool,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("it has no `=` between key and value")?;
    Ok((key.to_owned(), value.to_owned()))
}

impl Meta {
    pub(crate) fn run(&self, term: &Term) -> Result<Outcome> {
        match &self.action {
            Action::Get(get) => get.run(term),
            Action::Set(Set { input, entries, change }) => {
                let set = entries.iter().map(|(key, value)| (&**key, Some(&**value)));
                change.run(input, &Edit { clear: false, entries: set.collect() }, term)
            }
            Action::Unset(Unset { input, keys, all, change }) => {
                let unset = keys.iter().map(|key| (&**key, None));
                change.run(input, &Edit { clear: *all, entries: unset.collect() }, term)
            }
        }
    }
}

/// What is to be changed.
struct Edit<'a> {
    /// Whether all entries are removed before.
    clear: bool,
    /// `None` removes.
    entries: Vec<(&'a str, Option<&'a str>)>,
}

impl Get {
    fn run(&self, term: &Term) -> Result<Outcome> {
        let checkpoint = open(&self.input, term)?;
        let metadata = metadata::union(&[&checkpoint], term);
        let mut out = term.text();
        if let Some(key) = &self.key {
            let Some(value) = metadata.get(&**key) else {
                term.warn(format_args!("{}: no entry {:?}", self.input.display(), safe(key)));
                return Ok(Outcome::Findings);
            };
            // As it is: somebody may want to parse it.
            writeln!(term.raw(), "{value}")?;
            return Ok(Outcome::Clean);
        }
        match self.format {
            Format::Json => writeln!(out, "{}", serde_json::to_string_pretty(&metadata)?)?,
            Format::Text => {
                for (key, value) in metadata {
                    writeln!(out, "{} = {}", safe(key), safe(value))?;
                }
            }
        }
        out.flush()?;
        Ok(Outcome::Clean)
    }
}

impl Change {
    fn run(&self, input: &Path, edit: &Edit<'_>, term: &Term) -> Result<Outcome> {
        let checkpoint = open(input, term)?;
        match &self.output {
            Some(output) => copy(&checkpoint, edit, &Destination::new(output, self.force), term),
            None => self.change(&checkpoint, edit, term),
        }
    }

    /// Changes the files themselves.
    fn change(&self, checkpoint: &Checkpoint, edit: &Edit<'_>, term: &Term) -> Result<Outcome> {
        let files: Vec<_> = checkpoint.shards().iter().filter_map(|shard| shard.path()).collect();
        if let (Some(link), false) = (files.iter().find(|file| file.is_symlink()), self.force) {
            bail!(
                "{}: it is a link, perhaps into a cache that knows the file by its content; -o writes a copy, --force \
                 changes what it leads to",
                link.display()
            );
        }
        let mut changes = MetadataEdit::new();
        if edit.clear {
            changes = changes.clear();
        }
        if self.in_place {
            changes = changes.in_place();
        }
        for &(key, value) in &edit.entries {
            changes = match value {
                Some(value) => changes.set(key, value),
                None => changes.remove(key),
            };
        }
        for file in &files {
            interrupt::check()?;
            changes.apply(file)?;
        }
        term.note(format_args!("{} changed", plural(files.len(), "file")));
        Ok(Outcome::Clean)
    }
}

/// Writes the same tensors, in the same order, with the metadata changed.
fn copy(checkpoint: &Checkpoint, edit: &Edit<'_>, destination: &Destination, term: &Term) -> Result<Outcome> {
    let mut metadata = metadata::union(&[checkpoint], term);
    if edit.clear {
        metadata.clear();
    }
    for &(key, value) in &edit.entries {
        match value {
            Some(value) => drop(metadata.insert(key, value)),
            None => drop(metadata.remove(key)),
        }
    }
    let save = metadata::with(Save::new().order(Order::Given), metadata);
    let tensors = checkpoint.tensors().map(|tensor| (tensor.name().to_owned(), tensor)).collect();
    destination.save(save, tensors, term)
}
