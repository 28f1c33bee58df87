//! `weighbridge fetch`.

use std::cell::RefCell;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use weighbridge::Names;
use weighbridge_remote::{Address, CacheMode, Remote};

use crate::outcome::Outcome;
use crate::pattern::{self, Pattern};
use crate::remote::{Files, address};
use crate::select::chosen;
use crate::show::{bytes, plural, safe};
use crate::term::Term;

/// Fetches the files of a repository, a bucket or a web server: resumed after any break, and verified
///
/// Files go into the Hugging Face cache, as its Python client lays it out, so that other programs find them too; the
/// directory of the snapshot is printed. With --to they go into a directory instead. What is there already is not fetched
/// again, and what a break left is gone on with.
///
/// Programs need not fetch first: every verb takes the same addresses, and reads only what it needs.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  weighbridge fetch hf://meta-llama/Llama-3.2-1B
  weighbridge fetch hf://org/name@v2 --only '*.safetensors' --only '*.json' --to models/name
  weighbridge fetch hf://org/name/tokenizer.json
  weighbridge fetch s3://bucket/llama/ --to llama
  weighbridge fetch hf://org/name --list

HF_TOKEN is the token of the hub, HF_HUB_CACHE says where its cache is, HF_ENDPOINT names a mirror; HF_HUB_OFFLINE=1 switches
the network off.")]
pub(crate) struct Fetch {
    /// What to fetch: `hf://org/name[@revision][/path]`, `https://host/file`, `s3://bucket/prefix`, `gs://...`,
    /// `az://...`
    #[arg(value_name = "ADDRESS")]
    address: PathBuf,

    /// Only files whose whole name matches: `*` is any text, `?` one character, `[0-3]` one of several, `{a,b}` either;
    /// may be given several times
    #[arg(long, value_name = "GLOB")]
    only: Vec<String>,

    /// No files whose whole name matches; may be given several times
    #[arg(long, value_name = "GLOB")]
    except: Vec<String>,

    /// Put the files into this directory, and nothing into the cache
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,

    /// Only list the files and their sizes
    #[arg(long)]
    list: bool,
}

/// What is not complete lies here in the directory that it goes to.
const UNFINISHED: &str = ".weighbridge-fetch";

impl Fetch {
    pub(crate) fn run(&self, term: &Term) -> Result<Outcome> {
        let Some(address) = address(&self.address)? else {
            bail!("{}: it is no address, such as hf://org/name", self.address.display());
        };
        let names = chosen(self.only.iter().map(|glob| Names::glob(glob)), &self.except)?;
        let remote = match &self.to {
            Some(directory) => {
                Remote::of_environment()?.cache(CacheMode::At(directory.join(UNFINISHED))).build()?
            }
            None => Remote::shared()?,
        };
        let all = RefCell::new(Vec::new());
        let files = Files::of(&remote, &address, |name| {
            all.borrow_mut().push(name.to_owned());
            names.contains(name)
        })?;
        let all = all.into_inner();
        let only = Pattern::globs("--only", &self.only)?;
        if files.files.is_empty() {
            pattern::must_match("file", &self.address, &only, &all)?;
            bail!("{address}: no file of it is chosen: --except leaves out what there is");
        }
        // Where the address names a file, there is nothing to choose. A list of globs is for many repositories.
        if !all.is_empty() {
            pattern::should_match("file", &self.address, &only, &all, term);
        }
        if self.list {
            let mut out = term.text();
            for file in &files.files {
                writeln!(out, "{:>12}  {}", file.size, safe(&file.name))?;
            }
            out.flush()?;
            term.note(format_args!("{}, {}", plural(files.files.len(), "file"), bytes(files.bytes())));
            return Ok(Outcome::Clean);
        }
        let fetched = plural(files.files.len(), "file");
        let said = format!("{}: {fetched}, {}", files.address(), bytes(files.bytes()));
        let place = match &self.to {
            Some(directory) => {
                into_directory(&files, directory, term)?;
                // Windows removes no directory with files in it that are open, as their locks are.
                drop((files, remote));
                let unfinished = directory.join(UNFINISHED);
                if unfinished.exists() {
                    fs::remove_dir_all(&unfinished).with_context(|| unfinished.display().to_string())?;
                }
                directory.clone()
            }
            None => in_cache(&files, &address, term)?,
        };
        let mut out = term.raw();
        writeln!(out, "{}", place.display())?;
        out.flush()?;
        term.note(said);
        Ok(Outcome::Clean)
    }
}

/// Fetches into the cache; returns the file, or the directory that all of them are in.
fn in_cache(files: &Files, address: &Address, term: &Term) -> Result<PathBuf> {
    if !matches!(address, Address::Hub(_)) {
        bail!("{address}: only files of the hub have a cache; --to says where these go");
    }
    let paths = files.fetch(term)?;
    match (&*paths, &*files.files) {
        ([path], _) => Ok(path.clone()),
        ([path, ..], [file, ..]) => {
            let depth = Path::new(&file.name).components().count();
            Ok(path.ancestors().nth(depth).unwrap_or(path).to_owned())
        }
        _ => bail!("{address}: there is nothing in it"),
    }
}

/// Fetches into a directory what is not there yet.
fn into_directory(files: &Files, directory: &Path, term: &Term) -> Result<()> {
    let targets: Vec<_> = files.files.iter().map(|file| directory.join(&file.name)).collect();
    for (target, file) in targets.iter().zip(&files.files) {
        let is_other = fs::metadata(target).is_ok_and(|data| !data.is_file() || data.len() != file.size);
        if is_other {
            bail!("{}: it is there already, and of another size; move it away", target.display());
        }
    }
    fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    let missing: Vec<_> = files.files.iter().filter(|file| !directory.join(&file.name).exists()).collect();
    files.fetch_into(directory, &missing, term)?;
    Ok(())
}
