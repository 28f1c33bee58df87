//! What belongs to a checkpoint beside its tensors: config.json, tokenizer, templates.

mod config;

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use weighbridge::write::OutputFile;
use weighbridge::{Checkpoint, Dtype};

use crate::destination::Destination;
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

    /// Whether it is this directory.
    pub(crate) fn is(&self, other: &Path) -> Result<bool> {
        Ok(match self {
            Self::Directory(directory) => {
                other.try_exists()? && directory.canonicalize()? == other.canonicalize()?
            }
            Self::Remote(_) => false,
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

    /// What is to be written into a directory; fails where something stands in the way, before anything is written.
    pub(crate) fn into(self, destination: &Destination, to: Option<Dtype>) -> Result<Option<Copies>> {
        let (Some(from), Some(into)) = (self.from, destination.directory()) else { return Ok(None) };
        if from.is(into)? {
            bail!("{}: the checkpoint that is read is there; name another directory", into.display());
        }
        for name in OF_CODES {
            let path = into.join(name);
            if path.try_exists()? {
                bail!("{}: it would speak of weights that are quantised no more; remove it", path.display());
            }
        }
        let configs = self.configs.iter().map(|(name, config)| (*name, config.dense(to)));
        let configs: Vec<_> = configs.collect();
        let mut files = Vec::new();
        if self.is_directory {
            for name in from.names()? {
                let is_config = configs.iter().any(|(config, _)| *config == name);
                if !is_config
                    && belongs(Path::new(&name))
                    && let Some(path) = from.path(&name)?
                {
                    files.push((name, path));
                }
            }
        }
        let names = configs
            .iter()
            .map(|(name, _)| Path::new(name))
            .chain(files.iter().map(|(name, _)| Path::new(name)));
        for path in names.map(|name| into.join(name)) {
            if !destination.is_forced() && path.try_exists()? {
                bail!("{}: it is there already; --force replaces it", path.display());
            }
        }
        Ok(Some(Copies { into: into.to_owned(), configs, files }))
    }
}

/// Files to be written.
pub(crate) struct Copies {
    into: PathBuf,
    configs: Vec<(&'static str, String)>,
    /// Their names, and where they are.
    files: Vec<(String, PathBuf)>,
}

impl Copies {
    /// Writes them; each appears when it is whole.
    pub(crate) fn write(&self) -> Result<()> {
        for (name, from) in &self.files {
            let mut source = File::open(from).with_context(|| from.display().to_string())?;
            self.file(Path::new(name), |out| io::copy(&mut source, out).map(drop))?;
        }
        for (name, text) in &self.configs {
            self.file(Path::new(name), |out| out.write_all(text.as_bytes()))?;
        }
        Ok(())
    }

    fn file(&self, name: &Path, write: impl FnOnce(&mut OutputFile) -> io::Result<()>) -> Result<()> {
        let path = self.into.join(name);
        let mut file = OutputFile::atomic(&path)?;
        write(&mut file).with_context(|| path.display().to_string())?;
        Ok(file.commit()?)
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
