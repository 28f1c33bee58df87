//! Where output goes: one file or the shards of a directory, never over something that is there unless told so.

use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::Args;
use weighbridge::write::{Save, TensorData, parse_size};
use weighbridge::{Checkpoint, Progress};

use crate::show::{self, safe};
use crate::term::Term;
use crate::{Outcome, interrupt};

/// Where to write a checkpoint.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Output")]
pub(crate) struct Destination {
    /// Where to write: one file if it ends in `.safetensors`, otherwise a directory, in shards with their index
    #[arg(short, long, value_name = "PATH")]
    output: PathBuf,

    /// Replace what is there already
    #[arg(long)]
    force: bool,

    /// The most bytes of tensors in a shard of a directory, such as 5GB or 500MiB
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "5GB")]
    max_shard_size: u64,
}

impl Destination {
    /// Whether one file is to be written.
    fn is_file(&self) -> bool {
        self.output.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("safetensors"))
    }

    /// Fails where something is there already, before any work is done.
    pub(crate) fn check(&self) -> Result<()> {
        let taken = match self.is_file() {
            true => self.output.try_exists()?.then(|| self.output.clone()),
            false => weights_in(&self.output)?,
        };
        match taken {
            Some(path) if !self.force => {
                bail!("{}: it is there already; --force replaces it", path.display())
            }
            _ => Ok(()),
        }
    }

    /// Writes the tensors, and says so.
    pub(crate) fn save<T: TensorData>(
        &self,
        save: Save,
        tensors: Vec<(String, T)>,
        term: &Term,
    ) -> Result<Outcome> {
        self.check()?;
        let (count, bar) = (tensors.len(), term.bar("writing", 0));
        let save = save.max_shard_size(self.max_shard_size).progress({
            let bar = bar.clone();
            move |progress: Progress| {
                bar.show(progress);
                if interrupt::requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            }
        });
        let tensors_in = match self.is_file() {
            true => {
                save.file(&self.output, tensors)?;
                String::new()
            }
            false => {
                let saved = save.directory(&self.output, "model", tensors)?;
                format!(" in {}", show::plural(saved.shards.len(), "shard"))
            }
        };
        drop(bar);
        let written = Checkpoint::open(&self.output)?.byte_len();
        term.note(format_args!(
            "{}: {}{tensors_in}, {}",
            self.output.display(),
            show::plural(count, "tensor"),
            show::bytes(written)
        ));
        Ok(Outcome::Clean)
    }
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

/// Everything that checkpoints say about themselves in `__metadata__`, for what is made of them; of two values of one
/// key the first counts.
pub(crate) fn with_metadata(mut save: Save, checkpoints: &[&Checkpoint], term: &Term) -> Save {
    for checkpoint in checkpoints {
        for shard in checkpoint.shards() {
            for (key, value) in shard.header().metadata().into_iter().flatten() {
                match save.metadata_value(key) {
                    None => save = save.metadata(key, value),
                    Some(kept) if kept != value => term.warn(format_args!(
                        "{}: metadata {:?} says {:?}, another shard {:?}, which is kept",
                        shard.name(),
                        safe(key),
                        safe(value),
                        safe(kept)
                    )),
                    Some(_) => {}
                }
            }
        }
    }
    save
}
