//! Which format the files have, and how they belong together.

use std::path::PathBuf;
use std::sync::Arc;

use weighbridge::header::Decode;
use weighbridge::index::Index;
use weighbridge::source::Source;
use weighbridge::write::Aliases;
use weighbridge::{Checkpoint, Error, ErrorKind, Result};
use weighbridge_convert::{Options, open_source};

use crate::blob::BlobSource;
use crate::checks::Checks;

/// A file that was dropped.
pub(crate) type File = (String, Arc<dyn Source>);

/// All files that were dropped together.
pub(crate) struct Files(Vec<File>);

impl Files {
    pub(crate) fn new(names: Vec<String>, sizes: &[f64]) -> Self {
        let file = |((number, name), &size): ((u32, String), &f64)| {
            let source: Arc<dyn Source> = Arc::new(BlobSource::new(number, size as u64));
            (name, source)
        };
        Self((0..).zip(names).zip(sizes).map(file).collect())
    }

    /// What the page is called.
    pub(crate) fn title(&self) -> String {
        match &*self.0 {
            [(name, _)] => name.clone(),
            [(name, _), rest @ ..] => format!("{name} and {} more", rest.len()),
            [] => String::new(),
        }
    }

    /// Those that are not safetensors.
    pub(crate) fn foreign(&self) -> impl Iterator<Item = &File> {
        self.0.iter().filter(|file| !is_safetensors(file) && !file.0.ends_with(".json"))
    }

    /// Those that are.
    pub(crate) fn safetensors(&self) -> impl Iterator<Item = &File> {
        self.0.iter().filter(|file| is_safetensors(file))
    }

    /// Opens them as one checkpoint.
    pub(crate) fn open(self) -> Result<(Checkpoint, Checks)> {
        let index = self.0.iter().find(|(name, _)| name.ends_with(".safetensors.index.json"));
        if let Some((name, source)) = index {
            let index = read_index(source).map_err(|error| error.in_file(name.as_ref()))?;
            let options = Checkpoint::options().label(name);
            let checkpoint = options.from_sources(self.0.iter().cloned(), Some(&index))?;
            let checks = Checks::of(&checkpoint, "safetensors");
            return Ok((checkpoint, checks));
        }
        if self.foreign().next().is_none() && self.safetensors().next().is_some() {
            let checkpoint = Checkpoint::options().from_sources(self.safetensors().cloned(), None)?;
            let checks = Checks::of(&checkpoint, "safetensors");
            return Ok((checkpoint, checks));
        }
        self.open_foreign()
    }

    /// Opens the file that names the others.
    fn open_foreign(self) -> Result<(Checkpoint, Checks)> {
        let leads = |(name, _): &&File| {
            name.ends_with(".index.json") || name.ends_with(".onnx") || name.contains("-00001-of-")
        };
        let first = self.0.iter().find(leads).or(self.0.first());
        let (name, source) =
            first.cloned().ok_or_else(|| Error::new(ErrorKind::NotFound, "no file was dropped"))?;
        let others = self.0.into_iter().map(|(name, source)| (PathBuf::from(name), source));
        let foreign = open_source(&name, source, others, &Options::new().aliases(Aliases::Each))?;
        let checkpoint = foreign.checkpoint().clone();
        let checks = Checks::of(&checkpoint, foreign.format().name()).with_notes(foreign.notes());
        Ok((checkpoint, checks))
    }
}

fn read_index(source: &Arc<dyn Source>) -> Result<Index> {
    if source.size() > Index::LIMIT {
        return Err(Error::new(ErrorKind::Index, "the index is too long"));
    }
    let mut text = vec![0; source.size() as usize];
    source.read_at(0, &mut text).map_err(|error| Error::io("the index cannot be read", error))?;
    let text = String::from_utf8(text).map_err(|_| Error::new(ErrorKind::Index, "the index is not UTF-8"))?;
    Index::parse(&text)
}

/// By its name, or because its header is one.
fn is_safetensors((name, source): &File) -> bool {
    let looks_so = || {
        let mut start = [0; 9];
        source.read_at(0, &mut start).is_ok() && start[8] == b'{' && start[4..8] == [0; 4]
    };
    name.ends_with(".safetensors") || (looks_so() && Decode::new().read(source).is_ok())
}
