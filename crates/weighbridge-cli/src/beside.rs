//! What belongs to a checkpoint beside its tensors: config.json, tokenizer, templates.

mod config;

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use weighbridge::{Checkpoint, Dtype};

use crate::destination::Destination;
use crate::load::is_remote;
pub(crate) use config::Config;

/// A larger configuration is none.
const MOST: u64 = 64 << 20;
/// Files that say how codes are to be read, among other things.
const CONFIGS: [&str; 2] = ["config.json", "params.json"];
/// Files that say nothing else.
const OF_CODES: [&str; 5] = [
    "quantize_config.json",
    "quant_config.json",
    "hf_quant_config.json",
    "quantization_config.json",
    "quanto_qmap.json",
];

/// Where the files beside a checkpoint are.
pub(crate) enum Home {
    Directory(PathBuf),
    /// They are fetched when they are asked for.
    Remote(Checkpoint),
}

impl Home {
    pub(crate) fn of(checkpoint: &Checkpoint) -> Option<Self> {
        match checkpoint.directory() {
            Some(directory) => Some(Self::Directory(directory.to_owned())),
            None => checkpoint.is_remote().then(|| Self::Remote(checkpoint.clone())),
        }
    }

    /// The path of a file; `None` if there is none of that name.
    pub(crate) fn path(&self, name: &str) -> Result<Option<PathBuf>> {
        Ok(match self {
            Self::Directory(directory) => Some(directory.join(name)).filter(|path| path.is_file()),
            Self::Remote(checkpoint) => checkpoint.beside(name)?,
        })
    }

    /// The names of all files.
    pub(crate) fn names(&self) -> Result<Vec<String>> {
        let directory = match self {
            Self::Directory(directory) => directory,
            Self::Remote(checkpoint) => return Ok(checkpoint.names_beside()?),
        };
        let mut names = Vec::new();
        for entry in directory.read_dir().with_context(|| directory.display().to_string())? {
            names.extend(entry?.file_name().into_string());
        }
        names.sort();
        Ok(names)
    }

    /// Whether it is this directory or address.
    pub(crate) fn is(&self, other: &Path) -> Result<bool> {
        Ok(match self {
            Self::Directory(directory) => {
                !is_remote(other)
                    && other.try_exists()?
                    && directory.canonicalize()? == other.canonicalize()?
            }
            Self::Remote(checkpoint) => {
                let shard = checkpoint.shards().first().and_then(|shard| shard.label());
                is_remote(other) && shard.and_then(Path::parent) == Some(other)
            }
        })
    }
}

/// What goes with the tensors of a dequantised checkpoint.
pub(crate) struct Beside {
    /// Where it comes from; `None` if it is in no directory.
    from: Option<Home>,
    configs: Vec<(&'static str, Config)>,
    /// Whether the whole directory belongs to the checkpoint.
    is_directory: bool,
}

impl Beside {
    /// What lies beside a checkpoint that was opened as `input`.
    pub(crate) fn of(input: &Path, checkpoint: &Checkpoint) -> Result<Self> {
        let from = match Home::of(checkpoint) {
            Some(home) => Some(home),
            None => input.is_dir().then(|| Home::Directory(input.to_owned())),
        };
        let mut configs = Vec::new();
        for name in CONFIGS {
            let path = from.as_ref().map(|from| from.path(name)).transpose()?.flatten();
            let Some(path) = path else { continue };
            configs.push((name, read(&path).with_context(|| path.display().to_string())?));
        }
        let is_index = input.to_string_lossy().ends_with(".index.json");
        Ok(Self { from, configs, is_directory: is_index || !input.is_file() })
    }

    /// The dtype that the model says it has.
    pub(crate) fn dtype(&self) -> Option<Dtype> {
        self.configs.iter().find_map(|(_, config)| config.dtype())
    }

    /// The destination with what is to be written into it beside the tensors; fails where something stands in the way.
    pub(crate) fn into(self, destination: &Destination, to: Option<Dtype>) -> Result<Destination> {
        let (Some(from), Some(folder)) = (self.from, destination.folder()?) else {
            return Ok(destination.clone());
        };
        if from.is(folder.path)? {
            bail!("{}: the checkpoint that is read is there; name another directory", folder.path.display());
        }
        if let Some(name) = OF_CODES.into_iter().find(|name| folder.has(name)) {
            let path = folder.path_of(name);
            bail!("{path}: it would speak of weights that are quantised no more; remove it");
        }
        let mut files: Vec<(String, Vec<u8>)> = Vec::new();
        if self.is_directory {
            for name in from.names()? {
                let is_config = self.configs.iter().any(|(config, _)| *config == name);
                if !is_config
                    && belongs(Path::new(&name))
                    && let Some(path) = from.path(&name)?
                {
                    let content = fs::read(&path).with_context(|| path.display().to_string())?;
                    files.push((name, content));
                }
            }
        }
        files.extend(
            self.configs.iter().map(|(name, config)| ((*name).to_owned(), config.dense(to).into_bytes())),
        );
        let taken = files.iter().find(|(name, _)| !destination.is_forced() && folder.has(name));
        if let Some((name, _)) = taken {
            bail!("{}: it is there already; --force replaces it", folder.path_of(name));
        }
        Ok(destination.clone().with_beside(files))
    }
}

/// Whether a file is the model's, but no tensors and nothing that speaks of their codes.
fn belongs(name: &Path) -> bool {
    is_of_model(name) && !OF_CODES.contains(&&*name.to_string_lossy())
}

/// Whether a file beside tensors is the model's: its configuration, tokenizer, templates, code.
pub(crate) fn is_of_model(name: &Path) -> bool {
    let ending = name.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    matches!(ending, "json" | "jinja" | "model" | "py" | "txt" | "tiktoken")
        && !name.to_string_lossy().ends_with(".index.json")
}

fn read(path: &Path) -> Result<Config> {
    let mut text = String::new();
    File::open(path)?.take(MOST).read_to_string(&mut text)?;
    Config::parse(text)
}
