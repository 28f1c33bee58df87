//! `weighbridge scan`: what pickles would import.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use serde::Serialize;
use weighbridge_convert::scan::{Pickle, Scan as Found};
use weighbridge_convert::{Verdict, scan};

use crate::show::{plural, safe};
use crate::term::Term;
use crate::{Outcome, interrupt};

/// Lists every global that pickles would import when they are loaded, and says which are dangerous
///
/// Nothing is run, and the pickles need not be whole. Looks into zip archives, those within them included, at pickles one
/// behind another, and at NumPy arrays of objects. Of a directory, every file below it is looked at; links are not followed.
///
/// Harmless globals make data and nothing else. Dangerous ones run code or reach what does. Of unknown ones nothing is known:
/// look them up before you load the file.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: 0 where nothing dangerous was found, 1 where a global is dangerous (with --deny-unknown also unknown) or a pickle
could not be followed to its end, 2 where a file could not be read.

Examples:
  weighbridge scan pytorch_model.bin
  weighbridge scan ~/downloads --deny-unknown
  weighbridge scan model.ckpt --format json | jq '.files[].pickles[].globals[]'")]
pub(crate) struct Scan {
    /// Files and directories
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<PathBuf>,

    /// Treat globals of which nothing is known like dangerous ones
    #[arg(long)]
    deny_unknown: bool,

    /// The form of the output
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    Text,
    /// One object of the schema weighbridge.scan/1
    Json,
}

#[derive(Serialize)]
struct Output {
    schema: &'static str,
    verdict: &'static str,
    files: Vec<File>,
}

#[derive(Serialize)]
struct File {
    path: String,
    verdict: &'static str,
    complete: bool,
    pickles: Vec<PickleOutput>,
}

#[derive(Serialize)]
struct PickleOutput {
    member: Option<String>,
    offset: u64,
    globals: Vec<Global>,
    problem: Option<String>,
}

#[derive(Serialize)]
struct Global {
    module: String,
    name: String,
    verdict: &'static str,
}

impl Scan {
    pub(crate) fn run(&self, term: &Term) -> Result<Outcome> {
        let mut worst = Verdict::Harmless;
        let mut complete = true;
        let mut files = Vec::new();
        let mut out = term.text();
        for path in &self.paths {
            for file in files_in(path)? {
                interrupt::check()?;
                let found = scan(&file)?;
                worst = worst.max(found.verdict());
                complete &= found.is_complete();
                match self.format {
                    Format::Text if found.pickles.is_empty() && path.is_dir() => {}
                    Format::Text => text(&found, &mut out)?,
                    Format::Json => files.push(File::of(&found)),
                }
            }
        }
        out.flush()?;
        if self.format == Format::Json {
            let output = Output { schema: "weighbridge.scan/1", verdict: worst.name(), files };
            let mut out = term.raw();
            serde_json::to_writer_pretty(&mut out, &output)?;
            writeln!(out)?;
            out.flush()?;
        }
        let denied = if self.deny_unknown { Verdict::Unknown } else { Verdict::Dangerous };
        Ok(if worst >= denied || !complete { Outcome::Findings } else { Outcome::Clean })
    }
}

/// The file, or all files below a directory, by name.
fn files_in(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let (mut files, mut directories) = (Vec::new(), vec![path.to_owned()]);
    while let Some(directory) = directories.pop() {
        interrupt::check()?;
        let unread = || format!("{}: it cannot be read", directory.display());
        for entry in directory.read_dir().with_context(unread)? {
            let entry = entry.with_context(unread)?;
            let kind = entry.file_type().with_context(unread)?;
            if kind.is_dir() {
                directories.push(entry.path());
            } else if kind.is_file() {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    Ok(files)
}

fn text(found: &Found, out: &mut impl Write) -> Result<()> {
    let path = found.path.display().to_string();
    let path = safe(&path);
    if found.pickles.is_empty() {
        return Ok(writeln!(out, "{path}: no pickle is in it")?);
    }
    let (style, verdict) = styled(found.verdict());
    let pickles = plural(found.pickles.len(), "pickle");
    let globals = plural(found.globals().count(), "global");
    writeln!(out, "{path}: {style}{verdict}{style:#}, {globals} in {pickles}")?;
    for pickle in &found.pickles {
        writeln!(out, "  {}", place(pickle))?;
        let mut globals: Vec<_> = pickle.globals.iter().collect();
        globals.sort_by_key(|global| std::cmp::Reverse(global.verdict));
        for global in globals {
            let (style, verdict) = styled(global.verdict);
            let dot = if global.module.is_empty() { "" } else { "." };
            let name = format!("{}{dot}{}", global.module, global.name);
            writeln!(out, "    {style}{verdict:<9}{style:#}  {}", safe(&name))?;
        }
        if let Some(problem) = &pickle.problem {
            let style = anstyle::AnsiColor::Yellow.on_default();
            writeln!(out, "    {style}problem{style:#}    {}", safe(problem))?;
        }
    }
    Ok(())
}

fn place(pickle: &Pickle) -> String {
    match (&pickle.member, pickle.offset) {
        (None, offset) => format!("at byte {offset}"),
        (Some(member), 0) => safe(member).into_owned(),
        (Some(member), offset) => format!("{}, at byte {offset}", safe(member)),
    }
}

fn styled(verdict: Verdict) -> (anstyle::Style, &'static str) {
    let style = match verdict {
        Verdict::Dangerous => anstyle::AnsiColor::Red.on_default().bold(),
        Verdict::Unknown => anstyle::AnsiColor::Yellow.on_default(),
        _ => anstyle::Style::new(),
    };
    (style, verdict.name())
}

impl File {
    fn of(found: &Found) -> Self {
        let pickles = found.pickles.iter().map(|pickle| PickleOutput {
            member: pickle.member.clone(),
            offset: pickle.offset,
            globals: pickle.globals.iter().map(Global::of).collect(),
            problem: pickle.problem.clone(),
        });
        Self {
            path: found.path.display().to_string(),
            verdict: found.verdict().name(),
            complete: found.is_complete(),
            pickles: pickles.collect(),
        }
    }
}

impl Global {
    fn of(global: &weighbridge_convert::scan::Global) -> Self {
        let (module, name) = (global.module.clone(), global.name.clone());
        Self { module, name, verdict: global.verdict.name() }
    }
}
