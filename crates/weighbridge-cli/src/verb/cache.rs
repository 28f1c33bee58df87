//! `weighbridge cache`: what fetches and loads have left on the disk.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Result, anyhow, bail};
use clap::{Args, Subcommand};
use weighbridge_remote::cache::{Cache as Files, Prune, Repo, RepoInfo, RepoKind};
use weighbridge_remote::{Address, Remote};

use crate::interrupt;
use crate::outcome::Outcome;
use crate::show::{bytes, plural, safe};
use crate::term::Term;

/// Shows, verifies and clears the Hugging Face cache, which fetches and loads fill
///
/// It is the cache of huggingface_hub: what is said here of a repository is true of what Python has fetched, too.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  weighbridge cache list
  weighbridge cache verify hf://org/name
  weighbridge cache prune --unfinished 7 --unreferenced --dry-run
  weighbridge cache prune hf://org/name@v1

HF_HUB_CACHE says where it is, else HF_HOME/hub, else ~/.cache/huggingface/hub.")]
pub(crate) struct Cache {
    /// The directory, instead of the one that the environment names
    #[arg(long, value_name = "DIR", global = true)]
    cache: Option<PathBuf>,

    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Repositories, their revisions, sizes, and when they were last used
    List {
        /// Only this repository, and its files
        #[arg(value_name = "ADDRESS")]
        repository: Option<String>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Reads every file and compares it with its checksum: exit status 1 and a line for each that is broken
    Verify {
        /// Only this repository
        #[arg(value_name = "ADDRESS")]
        repository: Option<String>,
    },
    /// Removes a repository, a revision of it, or what nobody needs
    Prune {
        /// This repository, `hf://org/name`, or this revision of it, `hf://org/name@v1`
        #[arg(value_name = "ADDRESS", required_unless_present_any = ["unreferenced", "unfinished"])]
        repository: Option<String>,
        /// Commits that no branch or tag was any more when it was last asked for
        #[arg(long)]
        unreferenced: bool,
        /// Files that are not complete and were not written to for so many days
        #[arg(long, value_name = "DAYS")]
        unfinished: Option<u32>,
        /// Only say what would be removed
        #[arg(long)]
        dry_run: bool,
    },
}

impl Cache {
    pub(crate) fn run(&self, term: &Term) -> Result<Outcome> {
        let files = match &self.cache {
            Some(directory) => Files::at(directory),
            None => Remote::shared()?
                .cache()
                .ok_or_else(|| anyhow!("there is no home directory to have a cache in; --cache names one"))?,
        };
        match &self.what {
            What::List { repository, json } => list(&files, repository.as_deref(), *json, term),
            What::Verify { repository } => verify(&files, repository.as_deref(), term),
            What::Prune { repository, unreferenced, unfinished, dry_run } => {
                let named = repository.as_deref().map(|text| named(&files, text)).transpose()?;
                let mut prune = Prune {
                    unreferenced: *unreferenced,
                    partials_older: unfinished.map(|days| Duration::from_secs(u64::from(days) * DAY)),
                    dry_run: *dry_run,
                    ..Prune::default()
                };
                if let Some((repo, revision)) = named {
                    prune.revisions.extend(revision);
                    prune.whole = prune.revisions.is_empty() && !unreferenced && unfinished.is_none();
                    prune.repo = Some(repo);
                }
                remove(&files, &prune, term)
            }
        }
    }
}

/// Seconds.
const DAY: u64 = 24 * 60 * 60;

/// The repository that an address or an id names, and the revision.
fn named(files: &Files, text: &str) -> Result<(Repo, Option<String>)> {
    let address = match Address::parse(text) {
        Some(address) => address?,
        None => {
            Address::parse(&format!("hf://{text}")).ok_or_else(|| anyhow!("{text}: it is no address"))??
        }
    };
    match address {
        Address::Hub(address) if address.path.is_empty() => {
            Ok((files.repo(address.kind, &address.repo)?, address.revision))
        }
        _ => bail!("{text}: it is no repository of the hub, such as hf://org/name"),
    }
}

/// What a repository is called in addresses.
fn address(repo: &Repo) -> String {
    match repo.kind() {
        RepoKind::Model => format!("hf://{}", repo.id()),
        kind => format!("hf://{}/{}", kind.plural(), repo.id()),
    }
}

fn list(files: &Files, only: Option<&str>, json: bool, term: &Term) -> Result<Outcome> {
    let mut repos = files.repos()?;
    if let Some(only) = only {
        let (repo, _) = named(files, only)?;
        repos.retain(|info| address(&info.repo) == address(&repo));
        if repos.is_empty() {
            bail!("{only}: the cache {} does not have it", files.root().display());
        }
    }
    let mut out = term.text();
    if json {
        let list: Vec<_> = repos.iter().map(to_json).collect();
        let root = files.root().to_string_lossy();
        let document =
            serde_json::json!({"schema": "weighbridge.cache/1", "directory": root, "repositories": list});
        writeln!(out, "{document:#}")?;
        out.flush()?;
        return Ok(Outcome::Clean);
    }
    for info in &repos {
        let used = info.used.map_or_else(String::new, |used| format!(", used {}", ago(used)));
        let revisions = plural(info.revisions.len(), "revision");
        writeln!(out, "{:>10}  {}  {revisions}{used}", bytes(info.size), safe(&address(&info.repo)))?;
        for revision in &info.revisions {
            let refs =
                if revision.refs.is_empty() { "no branch".to_owned() } else { revision.refs.join(", ") };
            let count = plural(revision.files.len(), "file");
            let commit = revision.commit.get(..12).unwrap_or(&revision.commit);
            writeln!(out, "{:>10}    {}  {commit}  {count}", bytes(revision.size), safe(&refs))?;
            for file in revision.files.iter().filter(|_| only.is_some()) {
                let size = file.size.map_or_else(|| "missing".to_owned(), bytes);
                writeln!(out, "{size:>10}      {}", safe(&file.path))?;
            }
        }
        for partial in &info.partials {
            writeln!(out, "{:>10}    not complete, written {}", bytes(partial.size), ago(partial.modified))?;
        }
    }
    out.flush()?;
    let total = bytes(repos.iter().map(|info| info.size).sum());
    let repositories =
        if repos.len() == 1 { "1 repository".to_owned() } else { format!("{} repositories", repos.len()) };
    term.note(format_args!("{}: {repositories}, {total}", files.root().display()));
    Ok(Outcome::Clean)
}

fn to_json(info: &RepoInfo) -> serde_json::Value {
    let seconds =
        |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).ok().map(|since| since.as_secs());
    let revisions = info.revisions.iter().map(|revision| {
        let files = revision.files.iter();
        let files =
            files.map(|file| serde_json::json!({"path": file.path, "bytes": file.size, "blob": file.blob}));
        serde_json::json!({
            "commit": revision.commit,
            "refs": revision.refs,
            "bytes": revision.size,
            "files": files.collect::<Vec<_>>(),
        })
    });
    let partials = info.partials.iter().map(|partial| {
        let path = partial.path.to_string_lossy();
        serde_json::json!({"path": path, "bytes": partial.size, "written": seconds(partial.modified)})
    });
    serde_json::json!({
        "repository": address(&info.repo),
        "bytes": info.size,
        "used": info.used.and_then(seconds),
        "revisions": revisions.collect::<Vec<_>>(),
        "unfinished": partials.collect::<Vec<_>>(),
    })
}

/// How long ago something was, roughly.
fn ago(time: SystemTime) -> String {
    let seconds = time.elapsed().unwrap_or_default().as_secs();
    match seconds {
        ..3600 => "within the hour".to_owned(),
        3600..DAY => format!("{} ago", plural((seconds / 3600) as usize, "hour")),
        _ => format!("{} ago", plural((seconds / DAY) as usize, "day")),
    }
}

fn verify(files: &Files, only: Option<&str>, term: &Term) -> Result<Outcome> {
    let repo = only.map(|only| named(files, only)).transpose()?.map(|(repo, _)| repo);
    let mut bar = None;
    let mut told = 0;
    let faults = files.verify(repo.as_ref(), &mut |done, all| {
        let bar = bar.get_or_insert_with(|| term.bar("verifying", all));
        bar.add(done.saturating_sub(told));
        told = told.max(done);
        if interrupt::requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    drop(bar);
    let mut out = term.text();
    for fault in &faults {
        writeln!(out, "{}: {}", safe(&fault.path.to_string_lossy()), safe(&fault.what))?;
    }
    out.flush()?;
    if faults.is_empty() {
        term.note(format_args!("{}: {} as their checksums say", files.root().display(), bytes(told)));
        return Ok(Outcome::Clean);
    }
    Ok(Outcome::Findings)
}

fn remove(files: &Files, prune: &Prune, term: &Term) -> Result<Outcome> {
    let pruned = files.prune(prune)?;
    let mut out = term.text();
    for (path, size) in &pruned.removed {
        writeln!(out, "{:>10}  {}", bytes(*size), safe(&path.to_string_lossy()))?;
    }
    out.flush()?;
    for path in &pruned.busy {
        term.warn(format_args!("{}: in use; it stays", path.display()));
    }
    let done = if prune.dry_run { "would be free" } else { "are free" };
    term.note(format_args!("{}: {} {done}", files.root().display(), bytes(pruned.bytes)));
    Ok(Outcome::Clean)
}
