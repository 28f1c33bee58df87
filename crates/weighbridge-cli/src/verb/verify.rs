//! `weighbridge verify`: whether checkpoints may be trusted, and everything that speaks against it.

mod blobs;
mod data;
mod finding;
pub(super) mod index;
mod set;

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use serde::Serialize;
use weighbridge::Checkpoint;

use crate::load;
use crate::outcome::Outcome;
use crate::show::{self, safe};
use crate::term::Term;
use crate::verb::hash::manifest::Manifest;
use crate::verb::hash::{self, Digest};
use finding::{Findings, Severity, is_finding};

/// Checks files, whole sharded repositories and their data, and lists everything that is wrong
///
/// Errors are what readers refuse. Warnings are what they let pass, but nobody wants: NaN and infinities,
/// tensors and shards that the index does not list. Notes are departures from the specification that the
/// profile `compat` lets pass; in the profile `strict` they are errors.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: 0 without errors and warnings, 1 with some, 2 where something could not be looked at.

Examples:
  weighbridge verify meta-llama/Llama-3.2-1B
  weighbridge verify model/ --data --profile strict
  weighbridge verify model.safetensors --sha256 ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad
  weighbridge verify model/ --manifest model.b3")]
pub(crate) struct Verify {
    /// Files, directories, indexes or ids of repositories in the cache
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<PathBuf>,

    /// How strictly headers are read
    #[arg(long, value_enum, default_value = "compat")]
    profile: Strictness,

    /// Read every byte, too: NaN, infinities, BOOL bytes other than 0 and 1, and files of the Hugging Face
    /// cache that are not what the names of their blobs say
    #[arg(long)]
    data: bool,

    /// The SHA-256 that the file, which must be one, should have
    #[arg(long, value_name = "HEX", value_parser = parse_digest)]
    sha256: Option<Digest>,

    /// What `hash` wrote of the checkpoint, which must be one
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,

    /// The form of the output
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Strictness {
    /// What the official reader accepts
    Compat,
    /// What the specification allows
    Strict,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// One line a finding
    Text,
    /// JSON
    Json,
}

fn parse_digest(hex: &str) -> Result<Digest, String> {
    Digest::parse(&hex.to_lowercase()).ok_or_else(|| "64 hexadecimal digits are wanted".to_owned())
}

/// What JSON says: `docs/json.md` explains it.
#[derive(Serialize)]
struct Output {
    schema: &'static str,
    profile: &'static str,
    checkpoints: Vec<Report>,
}

/// Of one checkpoint.
#[derive(Serialize)]
struct Report {
    path: String,
    /// No errors and no warnings, in all of it.
    clean: bool,
    shards: usize,
    tensors: usize,
    bytes: u64,
    #[serde(flatten)]
    findings: Findings,
}

impl Verify {
    pub(crate) fn run(&self, term: &Term) -> Result<Outcome> {
        if self.paths.len() > 1 && (self.sha256.is_some() || self.manifest.is_some()) {
            bail!("--sha256 and --manifest are about one checkpoint; several are given");
        }
        let manifest = self.manifest.as_deref().map(Manifest::read).transpose()?;
        let profile = match self.profile {
            Strictness::Compat => "compat",
            Strictness::Strict => "strict",
        };
        let mut output = Output { schema: "weighbridge.verify/1", profile, checkpoints: Vec::new() };
        let mut failed = Vec::new();
        for path in &self.paths {
            // Every byte of it is looked at, so it may as well be here.
            let wanted = |name: &str| name.ends_with(".safetensors") || name.ends_with(".json");
            let local = load::on_disk(path, wanted, term);
            match local.and_then(|local| self.look(local.path(), manifest.as_ref(), &mut failed, term)) {
                Ok(report) => output.checkpoints.push(report),
                Err(error) => failed.push(error),
            }
        }
        self.print(&output, term)?;
        let clean = output.checkpoints.iter().all(|report| report.clean);
        // What was found is not lost because something else could not be looked at.
        let Some(last) = failed.pop() else {
            return Ok(if clean { Outcome::Clean } else { Outcome::Findings });
        };
        failed.iter().for_each(|error| term.warn(show::one_line(error)));
        Err(last)
    }

    fn look(
        &self,
        path: &Path,
        manifest: Option<&Manifest>,
        failed: &mut Vec<anyhow::Error>,
        term: &Term,
    ) -> Result<Report> {
        let strict = self.profile == Strictness::Strict;
        let mut findings = Findings::default();
        let failed_before = failed.len();
        let set = match set::Set::find(path, strict, &mut findings, failed) {
            Ok(set) => set,
            Err(error) if is_finding(error.kind()) => {
                findings.add_error(error);
                set::Set::default()
            }
            Err(error) => return Err(error.into()),
        };
        if self.data {
            data::census(&set.shards, &mut findings, term)?;
            blobs::check(path, &mut findings, failed, term)?;
        }
        if let Some(expected) = self.sha256 {
            file_digest(path, expected, &mut findings, term)?;
        }
        if let Some(manifest) = manifest {
            match Checkpoint::open(path) {
                Ok(checkpoint) => compare(&checkpoint, path, manifest, &mut findings, term)?,
                // Why it does not open is among the findings.
                Err(error) if is_finding(error.kind()) => {
                    term.warn(format_args!("{}: not compared with the manifest", path.display()));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Report {
            path: path.to_string_lossy().into_owned(),
            clean: findings.is_clean() && failed.len() == failed_before,
            shards: set.shards.len(),
            tensors: set.shards.iter().map(Checkpoint::len).sum(),
            bytes: set.shards.iter().map(Checkpoint::byte_len).sum(),
            findings,
        })
    }

    fn print(&self, output: &Output, term: &Term) -> Result<()> {
        if matches!(self.format, Format::Json) {
            let mut out = term.raw();
            serde_json::to_writer_pretty(&mut out, output)?;
            writeln!(out)?;
            return Ok(out.flush()?);
        }
        let mut out = term.text();
        for report in &output.checkpoints {
            report.findings.print(&mut out)?;
            let (tensors, shards) =
                (show::plural(report.tensors, "tensor"), show::plural(report.shards, "shard"));
            let (path, bytes) = (safe(&report.path), show::bytes(report.bytes));
            if report.clean {
                writeln!(out, "{path}: clean: {tensors} in {shards}, {bytes}")?;
            } else {
                let (errors, warnings) =
                    (report.findings.count(Severity::Error), report.findings.count(Severity::Warning));
                let (errors, warnings) = (show::plural(errors, "error"), show::plural(warnings, "warning"));
                writeln!(out, "{path}: {errors}, {warnings}; could be read: {tensors} in {shards}, {bytes}")?;
            }
        }
        Ok(out.flush()?)
    }
}

fn file_digest(path: &Path, expected: Digest, findings: &mut Findings, term: &Term) -> Result<()> {
    let files = Checkpoint::options().files(path)?;
    let [file] = &*files.shards else {
        bail!("{}: --sha256 is about one file, this is a set of shards; use --manifest", path.display());
    };
    let bar = term.bar("hashing", file.metadata()?.len());
    let actual = hash::of_file(file, &bar)?;
    if actual != expected {
        let message = format!("its SHA-256 is {actual}, not {expected}");
        findings.add("sha256", Severity::Error, Some(file), None, message);
    }
    Ok(())
}

fn compare(
    checkpoint: &Checkpoint,
    path: &Path,
    manifest: &Manifest,
    findings: &mut Findings,
    term: &Term,
) -> Result<()> {
    let actual = hash::of_checkpoint(checkpoint, manifest.algorithm, term)?;
    for difference in manifest.differences(&actual) {
        findings.add("manifest", Severity::Error, Some(path), Some(&difference.name), difference.what);
    }
    Ok(())
}
