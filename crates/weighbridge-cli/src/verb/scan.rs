//! `weighbridge scan`: what pickles would import.

mod code;

use std::collections::{BTreeMap, HashSet};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::{Args, ValueEnum};
use serde::Serialize;
use weighbridge::{Names, hub_snapshot};
use weighbridge_convert::scan::{Pickle, Scan as Found};
use weighbridge_convert::{Verdict, scan};

use crate::load;
use crate::outcome::Outcome;
use crate::show::{plural, safe};
use crate::term::Term;
use crate::{interrupt, show};

/// Lists every global that pickles would import when they are loaded, and says which are dangerous
///
/// Nothing is run. Looks into zip and tar archives, compressed files, archives within archives, several
/// pickles in one file, and NumPy's object arrays. Directories are searched recursively, and links to files
/// are followed.
///
/// A file is harmless if every byte of it belongs to a known format, and its pickles import only what makes
/// data and does nothing else. Dangerous globals run code, or reach something that does. Unknown globals are
/// in no list: look them up before you load the file, then allow them. A file is incomplete if parts of it
/// were not understood or could not be looked into. Programs (`modeling_x.py`) hold no pickles; what they do is not looked
/// into, which is said, and they are counted by themselves.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: 0 where everything that was looked into is harmless, 1 where something is dangerous, unknown or incomplete, 2 where something could not
be read.

Examples:
  weighbridge scan pytorch_model.bin
  weighbridge scan ~/downloads
  weighbridge scan org/name
  weighbridge scan classifier.joblib --allow 'sklearn.*'
  weighbridge scan model.ckpt --format json | jq '.files[].pickles[].globals[]'")]
pub(crate) struct Scan {
    /// Files, directories, and repositories in the Hugging Face cache
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<PathBuf>,

    /// Treat this unknown global as harmless, such as `sklearn.svm._classes.SVC` or `sklearn.*`; may be given
    /// several times. Dangerous globals stay dangerous
    #[arg(long, value_name = "NAME|GLOB")]
    allow: Vec<String>,

    /// Treat all unknown globals as harmless
    #[arg(long)]
    allow_unknown: bool,

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
    complete: bool,
    files: Vec<File>,
    /// Files that could not be read.
    errors: Vec<Unread>,
}

#[derive(Serialize)]
struct Unread {
    path: String,
    error: String,
}

#[derive(Serialize)]
struct File {
    path: String,
    format: &'static str,
    verdict: &'static str,
    complete: bool,
    pickles: Vec<PickleOutput>,
    problems: Vec<ProblemOutput>,
}

#[derive(Serialize)]
struct PickleOutput {
    member: Option<String>,
    offset: u64,
    globals: Vec<Global>,
    problem: Option<String>,
}

#[derive(Serialize)]
struct ProblemOutput {
    member: Option<String>,
    problem: String,
}

#[derive(Serialize)]
struct Global {
    module: String,
    name: String,
    verdict: &'static str,
    allowed: bool,
}

impl Scan {
    pub(crate) fn run(&self, term: &Term) -> Result<Outcome> {
        let allowed = Allowed::of(self)?;
        let mut worst = Verdict::Harmless;
        let mut counts: BTreeMap<Verdict, usize> = BTreeMap::new();
        let (mut files, mut errors) = (Vec::new(), Vec::new());
        let (mut complete, mut programs) = (true, 0);
        let mut out = term.text();
        let mut unread = |path: &Path, error: anyhow::Error| {
            let error = show::one_line(&error);
            term.error(&error);
            errors.push(Unread { path: path.display().to_string(), error });
        };
        for path in &self.paths {
            let local = match load::on_disk(path, |_| true, term) {
                Ok(local) => local,
                Err(error) => {
                    unread(path, error);
                    continue;
                }
            };
            let (found, is_directory) = files_in(local.path(), &mut unread)?;
            for file in found {
                interrupt::check()?;
                let found = match scan(&file) {
                    Ok(found) => found,
                    Err(error) => {
                        unread(&file, error.into());
                        continue;
                    }
                };
                if let Some(language) = code::language(&found) {
                    programs += 1;
                    match self.format {
                        Format::Text => {
                            let path = found.path.display().to_string();
                            writeln!(out, "{}: {}", safe(&path), code::said(language))?;
                        }
                        Format::Json => files.push(File { verdict: "code", ..File::of(&found, &allowed) }),
                    }
                    continue;
                }
                let verdict = found.verdict_without(|global| allowed.contains(global));
                *counts.entry(verdict).or_default() += 1;
                worst = worst.max(verdict);
                complete &= found.is_complete();
                match self.format {
                    Format::Text
                        if is_directory && verdict == Verdict::Harmless && found.pickles.is_empty() => {}
                    Format::Text => text(&found, &allowed, &mut out)?,
                    Format::Json => files.push(File::of(&found, &allowed)),
                }
            }
        }
        let all = counts.values().sum::<usize>() + programs;
        if self.format == Format::Text && all != 1 {
            let mut each: Vec<_> =
                counts.iter().rev().map(|(verdict, count)| format!("{count} {verdict}")).collect();
            each.extend((programs > 0).then(|| format!("{programs} not looked into")));
            let each = if each.is_empty() { "nothing was looked at".to_owned() } else { each.join(", ") };
            writeln!(out, "{}: {each}", plural(all, "file"))?;
        }
        out.flush()?;
        if all == 0 {
            worst = Verdict::Incomplete;
            complete = false;
        }
        let failed = !errors.is_empty();
        if self.format == Format::Json {
            let output =
                Output { schema: "weighbridge.scan/1", verdict: worst.name(), complete, files, errors };
            let mut out = term.raw();
            serde_json::to_writer_pretty(&mut out, &output)?;
            writeln!(out)?;
            out.flush()?;
        }
        Ok(match worst {
            _ if failed => Outcome::Unread,
            Verdict::Harmless => Outcome::Clean,
            _ => Outcome::Findings,
        })
    }
}

/// The globals that are allowed though nothing is known about them.
struct Allowed(Names);

impl Allowed {
    fn of(scan: &Scan) -> Result<Self> {
        if scan.allow_unknown {
            return Ok(Self(Names::all()));
        }
        let mut names = Names::list(scan.allow.iter().cloned());
        for glob in &scan.allow {
            names = names.or(Names::glob(glob)?);
        }
        Ok(Self(names))
    }

    fn contains(&self, global: &weighbridge_convert::scan::Global) -> bool {
        global.verdict == Verdict::Unknown && self.0.contains(&global.to_string())
    }
}

/// The file, or all files below a directory, by name, and whether it is one; what cannot be read is passed
/// on.
fn files_in(path: &Path, unread: &mut impl FnMut(&Path, anyhow::Error)) -> Result<(Vec<PathBuf>, bool)> {
    let root = match path.exists() {
        true => path.to_owned(),
        false => match hub_snapshot(path) {
            Ok(snapshot) => snapshot,
            Err(error) => {
                unread(path, error.into());
                return Ok((Vec::new(), false));
            }
        },
    };
    if !root.is_dir() {
        return Ok((vec![root], false));
    }
    let (mut files, mut directories, mut seen) = (Vec::new(), vec![root], HashSet::new());
    while let Some(directory) = directories.pop() {
        interrupt::check()?;
        // Links may lead in circles.
        if directory.canonicalize().is_ok_and(|real| !seen.insert(real)) {
            continue;
        }
        let entries = match directory.read_dir() {
            Ok(entries) => entries,
            Err(error) => {
                unread(&directory, unreadable(&directory, &error));
                continue;
            }
        };
        for entry in entries {
            let entry = match entry {
                Ok(entry) => entry.path(),
                Err(error) => {
                    unread(&directory, unreadable(&directory, &error));
                    break;
                }
            };
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => directories.push(entry),
                Ok(metadata) if metadata.is_file() => files.push(entry),
                // Sockets and the like hold no bytes.
                Ok(_) => {}
                Err(error) => unread(&entry, unreadable(&entry, &error)),
            }
        }
    }
    files.sort();
    Ok((files, true))
}

fn unreadable(path: &Path, error: &std::io::Error) -> anyhow::Error {
    anyhow::anyhow!("{}: it cannot be read: {error}", path.display())
}

fn text(found: &Found, allowed: &Allowed, out: &mut impl Write) -> Result<()> {
    let path = found.path.display().to_string();
    let path = safe(&path);
    let (style, verdict) = styled(found.verdict_without(|global| allowed.contains(global)));
    let incomplete = if found.is_complete() || verdict == "incomplete" { "" } else { ", incomplete" };
    let what = match found.pickles.len() {
        0 => format!("{}, no pickle in it", found.format),
        count => format!("{} in {}", plural(found.globals().count(), "global"), plural(count, "pickle")),
    };
    writeln!(out, "{path}: {style}{verdict}{style:#}{incomplete}, {what}")?;
    let problem_style = anstyle::AnsiColor::Yellow.on_default();
    let problem = |out: &mut dyn Write, problem: &str| {
        writeln!(out, "    {problem_style}problem{problem_style:#}    {}", safe(problem))
    };
    for pickle in &found.pickles {
        writeln!(out, "  {}", place(pickle))?;
        let mut globals: Vec<_> = pickle.globals.iter().collect();
        globals.sort_by_key(|global| std::cmp::Reverse(global.verdict));
        for global in globals {
            let (style, verdict) = match allowed.contains(global) {
                true => (anstyle::Style::new(), "allowed"),
                false => styled(global.verdict),
            };
            writeln!(out, "    {style}{verdict:<9}{style:#}  {}", safe(&global.to_string()))?;
        }
        if let Some(what) = &pickle.problem {
            problem(out, what)?;
        }
    }
    for of_member in found.problems.chunk_by(|a, b| a.member == b.member) {
        if let Some(member) = of_member.first().and_then(|problem| problem.member.as_deref()) {
            writeln!(out, "  {}", safe(member))?;
        }
        for found in of_member {
            problem(out, &found.what)?;
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
        Verdict::Unknown | Verdict::Incomplete => anstyle::AnsiColor::Yellow.on_default(),
        _ => anstyle::Style::new(),
    };
    (style, verdict.name())
}

impl File {
    fn of(found: &Found, allowed: &Allowed) -> Self {
        let global = |global: &weighbridge_convert::scan::Global| Global {
            module: global.module.clone(),
            name: global.name.clone(),
            verdict: global.verdict.name(),
            allowed: allowed.contains(global),
        };
        let pickles = found.pickles.iter().map(|pickle| PickleOutput {
            member: pickle.member.clone(),
            offset: pickle.offset,
            globals: pickle.globals.iter().map(global).collect(),
            problem: pickle.problem.clone(),
        });
        let problems = found
            .problems
            .iter()
            .map(|problem| ProblemOutput { member: problem.member.clone(), problem: problem.what.clone() });
        Self {
            path: found.path.display().to_string(),
            format: found.format,
            verdict: found.verdict_without(|global| allowed.contains(global)).name(),
            complete: found.is_complete(),
            pickles: pickles.collect(),
            problems: problems.collect(),
        }
    }
}
