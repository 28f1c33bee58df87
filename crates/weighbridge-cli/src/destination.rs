//! Where output goes: one file or the shards of a directory, never over something that is there unless told
//! so.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::Args;
use weighbridge::write::{Save, Split, TensorData, parse_size};
use weighbridge::{Checkpoint, ErrorKind, Progress};

use crate::interrupt;
use crate::load::{below, is_remote};
use crate::outcome::Outcome;
use crate::show::{self, safe};
use crate::term::Term;

/// Where to write a checkpoint.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Output")]
pub(crate) struct Destination {
    /// Where to write: one file if it ends in `.safetensors`, otherwise a directory, in shards with their
    /// index
    #[arg(short, long, value_name = "PATH", required_unless_present = "dry_run")]
    output: Option<PathBuf>,

    /// Replace what is there already
    #[arg(long)]
    force: bool,

    /// The most bytes of tensors in a shard of a directory, such as 500MiB; 5GB otherwise
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    max_shard_size: Option<u64>,

    /// Write nothing, only list what would be written: name, dtype, shape and bytes of each tensor, with tabs
    /// between
    #[arg(long)]
    dry_run: bool,

    /// What is written beside the tensors.
    #[arg(skip)]
    beside: Vec<(String, Vec<u8>)>,
}

/// A directory or an address that a checkpoint of several files is written to.
pub(crate) struct Folder<'d> {
    pub(crate) path: &'d Path,
    /// The files that are there.
    names: HashSet<String>,
}

impl Folder<'_> {
    pub(crate) fn has(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    /// What people call a file of it.
    pub(crate) fn path_of(&self, name: &str) -> String {
        below(self.path, name).display().to_string()
    }
}

impl Destination {
    /// For verbs with options of their own.
    pub(crate) fn new(output: &Path, force: bool) -> Self {
        Self {
            output: Some(output.to_owned()),
            force,
            max_shard_size: None,
            dry_run: false,
            beside: Vec::new(),
        }
    }

    /// Makes a directory get one file, unless a size of shards was given.
    pub(crate) fn in_one_file(&self) -> Self {
        Self { max_shard_size: self.max_shard_size.or(Some(u64::MAX)), ..self.clone() }
    }

    /// Makes a directory get shards of at most so many bytes, unless their size was given.
    pub(crate) fn in_shards_of(&self, bytes: u64) -> Self {
        Self { max_shard_size: self.max_shard_size.or(Some(bytes.min(Split::DEFAULT_SIZE))), ..self.clone() }
    }

    /// The file to write, if it is to be one.
    pub(crate) fn file(&self) -> Option<&Path> {
        let is_file =
            |path: &&Path| path.extension().is_some_and(|end| end.eq_ignore_ascii_case("safetensors"));
        self.output.as_deref().filter(is_file)
    }

    /// The directory or the address to write to, if several files are to be written.
    pub(crate) fn folder(&self) -> Result<Option<Folder<'_>>> {
        let Some(path) = self.output.as_deref().filter(|_| !self.dry_run && self.file().is_none()) else {
            return Ok(None);
        };
        let names = match is_remote(path) {
            true => names_at(path)?,
            false if path.is_dir() => {
                path.read_dir()?.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()
            }
            false => HashSet::new(),
        };
        Ok(Some(Folder { path, names }))
    }

    /// Has these files written beside the tensors, by their names.
    pub(crate) fn with_beside(mut self, files: Vec<(String, Vec<u8>)>) -> Self {
        self.beside = files;
        self
    }

    /// Whether nothing is written.
    pub(crate) fn is_dry_run(&self) -> bool {
        self.dry_run
    }

    /// Whether what is there already is replaced.
    pub(crate) fn is_forced(&self) -> bool {
        self.force
    }

    /// The output, if it is a file with one of these endings and is to be written; fails where something is
    /// there already.
    pub(crate) fn foreign_file(&self, endings: &[&str]) -> Result<Option<&Path>> {
        let named = |path: &&Path| {
            let end = path.extension().unwrap_or_default();
            endings.iter().any(|ending| end.eq_ignore_ascii_case(ending))
        };
        let Some(path) = self.output.as_deref().filter(named).filter(|_| !self.dry_run) else {
            return Ok(None);
        };
        if is_remote(path) {
            bail!("{}: only safetensors can be written to an address", path.display());
        }
        if path.try_exists()? && !self.force {
            bail!("{}: it is there already; --force replaces it", path.display());
        }
        Ok(Some(path))
    }

    /// Writes the tensors, and says so.
    pub(crate) fn save<T: TensorData>(
        &self,
        save: Save,
        tensors: Vec<(String, T)>,
        term: &Term,
    ) -> Result<Outcome> {
        let Some(output) = self.output.as_deref().filter(|_| !self.dry_run) else {
            list(&tensors, term)?;
            return Ok(Outcome::Clean);
        };
        self.check(output)?;
        let (count, bar) = (tensors.len(), term.bar("writing", 0));
        let save = save.max_shard_size(self.max_shard_size.unwrap_or(Split::DEFAULT_SIZE)).progress({
            let bar = bar.clone();
            move |progress: Progress| {
                bar.show(progress);
                if interrupt::requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            }
        });
        let beside = |save: Save, (name, content): &(String, Vec<u8>)| save.beside(name, content.clone());
        let save = self.beside.iter().fold(save, beside);
        let tensors_in = match self.file() {
            Some(file) => {
                save.file(file, tensors)?;
                String::new()
            }
            None => {
                let saved = save.directory(output, "model", tensors)?;
                format!(" in {}", show::plural(saved.shards.len(), "shard"))
            }
        };
        drop(bar);
        let written = Checkpoint::open(output)?.byte_len();
        term.note(format_args!(
            "{}: {}{tensors_in}, {}",
            output.display(),
            show::plural(count, "tensor"),
            show::bytes(written)
        ));
        Ok(Outcome::Clean)
    }

    /// Fails where something is there already.
    pub(crate) fn check(&self, output: &Path) -> Result<()> {
        if output.to_string_lossy().starts_with("share:") {
            bail!(
                "{}: `weighbridge share` keeps what is shared; name a file or a directory",
                output.display()
            );
        }
        if is_remote(output) {
            return self.check_remote(output);
        }
        let taken = match self.file() {
            Some(file) => file.try_exists()?.then(|| file.to_owned()),
            None => weights_in(output)?,
        };
        match taken {
            Some(path) if !self.force => {
                bail!("{}: it is there already; --force replaces it", path.display())
            }
            _ => Ok(()),
        }
    }
}

/// The names of the objects at an address; none where nothing can be written, which says so itself.
fn names_at(path: &Path) -> Result<HashSet<String>> {
    #[cfg(feature = "remote")]
    if is_store(path)
        && let Some(address) = crate::remote::address(path)?
    {
        let names = weighbridge_remote::Remote::shared()?.locate(&address)?.names()?;
        return Ok(names.unwrap_or_default().into_iter().map(|named| named.name).collect());
    }
    let _ = path;
    Ok(HashSet::new())
}

/// Whether an address is one that can be written to.
fn is_store(output: &Path) -> bool {
    let text = output.to_string_lossy();
    ["s3://", "gs://", "az://"].iter().any(|scheme| text.starts_with(scheme))
}

impl Destination {
    /// The same of an address.
    fn check_remote(&self, output: &Path) -> Result<()> {
        if self.force || !is_store(output) {
            // What cannot be written to says so itself.
            return Ok(());
        }
        match Checkpoint::open(output) {
            Ok(_) => bail!("{}: a checkpoint is there already; --force replaces it", output.display()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn list<T: TensorData>(tensors: &[(String, T)], term: &Term) -> Result<()> {
    let mut out = term.text();
    for (name, tensor) in tensors {
        let (dtype, shape) = (tensor.dtype(), tensor.shape());
        writeln!(out, "{}\t{dtype}\t{shape:?}\t{}", safe(name), dtype.size_of(shape)?)?;
    }
    Ok(out.flush()?)
}

/// A checkpoint's file in a directory, if there is one.
fn weights_in(directory: &Path) -> Result<Option<PathBuf>> {
    if !directory.try_exists()? {
        return Ok(None);
    }
    if !directory.is_dir() {
        bail!("{}: it is a file; the name of one to write ends in .safetensors", directory.display());
    }
    for entry in directory.read_dir()? {
        let name = entry?.file_name();
        let text = name.to_string_lossy();
        let own = text.starts_with("model")
            && (text.ends_with(".safetensors") || text.contains(".safetensors.index"));
        if own && OsStr::new(&*text) == name {
            return Ok(Some(directory.join(name)));
        }
    }
    Ok(None)
}
