//! Data outside the model: files in its directory, or where the model itself is behind a link, and nowhere else.

use std::collections::HashMap;
use std::fs;
use std::path::{Component, Path, PathBuf};

use weighbridge::{Error, ErrorKind, Result};

use super::tensor::External;
use crate::cursor::malformed;
use crate::input::{FilePart, Input};

/// The files beside a model, opened once each.
pub(super) struct Beside {
    directory: PathBuf,
    /// The model, which may be a link.
    model: Input,
    open: HashMap<String, Input>,
}

impl Beside {
    pub(super) fn new(model: &Input) -> Self {
        // A bare name has an empty parent, which is the working directory.
        let parent = model.path().parent().filter(|parent| !parent.as_os_str().is_empty());
        let directory = parent.unwrap_or(Path::new(".")).to_owned();
        Self { directory, model: model.clone(), open: HashMap::new() }
    }

    /// The bytes that are meant, of which there must be `bytes`.
    pub(super) fn part(&mut self, external: &External, bytes: u64) -> Result<FilePart> {
        let External { location, offset, len } = external;
        if len.is_some_and(|len| len != bytes) {
            let len = len.unwrap_or_default();
            return Err(malformed(format!(
                "its shape needs {bytes} bytes, its external data is said to have {len}"
            )));
        }
        let file = self.file(location)?;
        let part = offset.checked_add(bytes).and_then(|end| file.part(*offset..end));
        part.ok_or_else(|| {
            let size = file.size();
            malformed(format!("its {bytes} bytes at {offset} are not within the {size} of {location:?}"))
        })
    }

    fn file(&mut self, location: &str) -> Result<Input> {
        if let Some(file) = self.open.get(location) {
            return Ok(file.clone());
        }
        let path = self.path(location)?;
        let file = self.model.another(&path)?;
        self.open.insert(location.to_owned(), file.clone());
        Ok(file)
    }

    /// Where a location leads. Links are followed as long as they stay in the directory, or lead to where the model is: in the
    /// cache of the hub both are links to a directory of blobs.
    fn path(&self, location: &str) -> Result<PathBuf> {
        let outside = || {
            let message = format!("its external data {location:?} is not within the model's directory");
            Error::new(ErrorKind::Unsafe, message)
        };
        let relative = Path::new(location);
        let within = |part| matches!(part, Component::Normal(_) | Component::CurDir);
        // Windows' separators are part of a name elsewhere, and are meant as separators by whoever wrote them.
        let backwards = location.split(['/', '\\']).any(|part| part == "..");
        if location.is_empty() || backwards || location.contains('\0') || !relative.components().all(within) {
            return Err(outside());
        }
        if !self.model.is_on_disk() {
            let directory = self.model.path().parent().unwrap_or(Path::new(""));
            return Ok(directory.join(relative));
        }
        let unread = |error| Error::io(&format!("its external data {location:?} cannot be opened"), error);
        let directory = fs::canonicalize(&self.directory).map_err(unread)?;
        let path = fs::canonicalize(directory.join(relative)).map_err(unread)?;
        let model = fs::canonicalize(self.model.path()).map_err(unread)?;
        let beside = |directory: &Path| path.starts_with(directory);
        if beside(&directory) || model.parent().is_some_and(beside) { Ok(path) } else { Err(outside()) }
    }
}
