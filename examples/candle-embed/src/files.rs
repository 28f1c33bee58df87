//! The files beside the weights: those of transformers, and those of sentence-transformers, which may be a folder above.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use examples_support::{Fields, mismatch};
use serde_json::Value;
use weighbridge::Checkpoint;

/// Where a model's files are.
pub(crate) struct Files {
    /// As it was asked for.
    pub(crate) place: PathBuf,
    /// Lies beside config.json.
    checkpoint: Checkpoint,
    /// Where modules.json is, if not there.
    above: Option<PathBuf>,
}

/// An entry of modules.json.
pub(crate) struct Module {
    /// Its class.
    pub(crate) kind: String,
    pub(crate) folder: String,
}

impl Module {
    /// What the class is called; nothing, if it is code of the model's authors.
    pub(crate) fn name(&self) -> &str {
        match self.kind.rsplit_once('.') {
            None => &self.kind,
            Some((module, class)) if module.starts_with("sentence_transformers.") => class,
            Some(_) => "",
        }
    }
}

impl Files {
    /// Opens the weights, which older models have in a folder of their own, as `0_Transformer`. Pickles are read, too.
    ///
    /// # Errors
    ///
    /// Whatever is wrong with the checkpoint, or with modules.json.
    pub(crate) fn open(place: &Path) -> Result<(Self, Checkpoint)> {
        let modules = place.join("modules.json");
        let mut above = None;
        let mut at = place.to_owned();
        if modules.is_file()
            && let Some(first) = parse_modules(&modules)?.first()
        {
            let kind = &first.kind;
            ensure!(
                first.name() == "Transformer",
                "{}: begins with \"{kind}\", this program computes what begins with a Transformer",
                modules.display()
            );
            if !first.folder.is_empty() {
                above = Some(place.to_owned());
                at = place.join(&first.folder);
            }
        }
        let checkpoint = weighbridge_convert::open_any(&at)?.dequantized()?;
        if let Some(codes) = checkpoint.quantized().next() {
            return Err(codes.refusal(&codes.weight(), "this program computes with weights").into());
        }
        Ok((Self { place: place.to_owned(), checkpoint: checkpoint.clone(), above }, checkpoint))
    }

    /// Where a file of sentence-transformers is, if there is one.
    ///
    /// # Errors
    ///
    /// One that is on a network may not be had.
    pub(crate) fn find(&self, name: &str) -> Result<Option<PathBuf>> {
        match &self.above {
            Some(directory) => Ok(Some(directory.join(name)).filter(|path| path.exists())),
            None => Ok(self.checkpoint.beside(name)?),
        }
    }

    /// A file that lies beside the weights.
    ///
    /// # Errors
    ///
    /// There is none.
    pub(crate) fn required(&self, name: &str) -> Result<PathBuf> {
        let missing =
            || anyhow!("{}: there is no such file beside the weights", self.place.join(name).display());
        self.checkpoint.beside(name)?.ok_or_else(missing)
    }

    /// Takes something from a file of sentence-transformers, a JSON object; `None` if there is no such file.
    ///
    /// # Errors
    ///
    /// One line that names the file.
    pub(crate) fn read<T>(
        &self,
        name: &str,
        parse: impl FnOnce(Fields<'_>) -> Result<T>,
    ) -> Result<Option<T>> {
        self.find(name)?.map(|path| read_object(&path, parse)).transpose()
    }

    /// The same for a file that lies beside the weights.
    ///
    /// # Errors
    ///
    /// One line that names the file.
    pub(crate) fn read_model<T>(
        &self,
        name: &str,
        parse: impl FnOnce(Fields<'_>) -> Result<T>,
    ) -> Result<Option<T>> {
        self.checkpoint.beside(name)?.map(|path| read_object(&path, parse)).transpose()
    }

    /// The modules that a model is a chain of; `None` where nothing is said.
    ///
    /// # Errors
    ///
    /// One line that names the file.
    pub(crate) fn modules(&self) -> Result<Option<Vec<Module>>> {
        self.find("modules.json")?.map(|path| parse_modules(&path)).transpose()
    }
}

fn read_object<T>(path: &Path, parse: impl FnOnce(Fields<'_>) -> Result<T>) -> Result<T> {
    let at = || path.display().to_string();
    match read_json(path)? {
        Value::Object(map) => parse(Fields(&map)).with_context(at),
        _ => bail!("{}: not a JSON object", at()),
    }
}

fn read_json(path: &Path) -> Result<Value> {
    let at = || path.display().to_string();
    let bytes = fs::read(path).with_context(at)?;
    serde_json::from_slice(&bytes).with_context(at)
}

fn parse_modules(path: &Path) -> Result<Vec<Module>> {
    let parse = |entry: &Value| {
        let Value::Object(map) = entry else { return Err(mismatch("modules", "objects", entry)) };
        let fields = Fields(map);
        let kind = fields.text("type")?.ok_or_else(|| anyhow!("a module has no type"))?;
        let folder = fields.text("path")?.unwrap_or_default();
        // It is a folder below, which no absolute path and no `..` is.
        let is_below = |part: &str| !matches!(part, "" | "." | "..") && !part.contains(['\\', ':']);
        ensure!(
            folder.is_empty() || folder.split('/').all(is_below),
            "\"{folder}\" is not the path of a folder below"
        );
        Ok(Module { kind: kind.to_owned(), folder: folder.to_owned() })
    };
    let at = || path.display().to_string();
    match read_json(path)? {
        Value::Array(entries) => entries.iter().map(parse).collect::<Result<_>>().with_context(at),
        _ => bail!("{}: not a list of modules", at()),
    }
}
