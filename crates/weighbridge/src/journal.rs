//! The journal of a set of files that is being replaced.
//!
//! The new files lie in a subdirectory, the staging; the journal says that they are the checkpoint from now on, and
//! which of the old ones are to go. Whoever reads the directory takes each file from the staging if it is still
//! there, and from the directory itself otherwise; so it makes no difference how far the renaming got.
//!
//! A journal comes with a directory, and a directory may come from anywhere: its names are only followed where they
//! are plain names of files of the checkpoint that the journal is for.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};
use crate::file_names;
use crate::source::open_regular;

/// Which files are the checkpoint, where they are, and which are not part of it any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Journal {
    pub(crate) stem: String,
    pub(crate) staging: String,
    pub(crate) files: Vec<String>,
    pub(crate) remove: Vec<String>,
}

const START: &str = ".";
const END: &str = ".safetensors.journal";

/// What temporary files end with.
pub(crate) const TEMPORARY: &str = ".tmp";

/// What the directories of new files end with. Not like temporary files: who clears those away must not touch what
/// a journal may speak of.
pub(crate) const STAGING: &str = ".staging";

/// What files end with that were moved aside for a new one of their name, while somebody had them open. They may be
/// removed once there is the new one.
pub(crate) const REPLACED: &str = ".replaced";

/// What the names of temporary files and stagings for a destination start with. A long name is cut, so that the whole
/// is a valid name, and told from others of the same start by a hash.
pub(crate) fn prefix(name: &OsStr) -> String {
    const MOST: usize = 48;
    let whole = name.to_string_lossy();
    let start: String = whole.chars().take(MOST).collect();
    if start.len() == whole.len() {
        return format!(".{start}.");
    }
    let mut hasher = DefaultHasher::new();
    whole.hash(&mut hasher);
    format!(".{start}.{:016x}.", hasher.finish())
}

/// The most names of shards: no checkpoint has as many.
const MOST_BYTES: u64 = 16 << 20;

impl Journal {
    /// `.model.safetensors.journal`
    pub(crate) fn file_name(stem: &str) -> String {
        format!("{START}{stem}{END}")
    }

    /// The stem of the checkpoint that a file is the journal of.
    pub(crate) fn stem_of(file: &str) -> Option<&str> {
        file.strip_prefix(START)?.strip_suffix(END).filter(|stem| !stem.is_empty())
    }

    /// The journal of that checkpoint, if a replacement is under way.
    pub(crate) fn read(directory: &Path, stem: &str) -> Result<Option<Self>> {
        let path = directory.join(Self::file_name(stem));
        let not_ours = || {
            let message = "the journal of a save that was interrupted is not one of ours";
            Error::new(ErrorKind::Journal, message).in_file(&path)
        };
        let mut text = String::new();
        let read = fs::symlink_metadata(&path).and_then(|data| {
            if !data.is_file() {
                return Ok(None);
            }
            open_regular(&path)?.take(MOST_BYTES).read_to_string(&mut text).map(Some)
        });
        match read {
            // A name for which there is no room has no journal either.
            Err(error) if error.kind() == io::ErrorKind::NotFound || is_too_long(&error) => {
                return Ok(None);
            }
            Err(error) => return Err(Error::io("the journal cannot be read", error).in_file(&path)),
            Ok(None) => return Err(not_ours()),
            Ok(Some(_)) => {}
        }
        let journal = Self::parse(stem, &text).ok_or_else(not_ours)?;
        // It is there as long as the journal is; a link could lead anywhere.
        if !fs::symlink_metadata(directory.join(&journal.staging)).is_ok_and(|data| data.is_dir()) {
            let message = format!("{} is gone, in which its new files were", journal.staging);
            return Err(Error::new(ErrorKind::Journal, message).in_file(&path));
        }
        Ok(Some(journal))
    }

    fn parse(stem: &str, text: &str) -> Option<Self> {
        let json: serde_json::Value = serde_json::from_str(text).ok()?;
        let list = |key: &str| {
            let names = json.get(key)?.as_array()?.iter();
            let ours =
                |name: &&str| file_names::is_plain(name) && file_names::stem(name).as_deref() == Some(stem);
            names.map(|name| name.as_str().filter(ours).map(str::to_owned)).collect::<Option<Vec<_>>>()
        };
        let staging = json.get("staging")?.as_str()?;
        let ours =
            staging.starts_with(&prefix(OsStr::new(&file_names::single(stem)))) && staging.ends_with(STAGING);
        if json.get("version")?.as_u64()? != 1 || !file_names::is_plain(staging) || !ours {
            return None;
        }
        let (files, remove) = (list("files")?, list("remove")?);
        let new: HashSet<_> = files.iter().collect();
        if remove.iter().any(|name| new.contains(name)) {
            return None;
        }
        Some(Self { stem: stem.to_owned(), staging: staging.to_owned(), files, remove })
    }

    pub(crate) fn to_json(&self) -> String {
        let Self { staging, files, remove, .. } = self;
        let json = serde_json::json!({"version": 1, "staging": staging, "files": files, "remove": remove});
        format!("{json:#}\n")
    }

    /// Whether a file is one of the new ones.
    pub(crate) fn has(&self, file: &str) -> bool {
        self.files.iter().any(|name| name == file)
    }

    /// Where one of its files is in the staging, and where it belongs.
    pub(crate) fn places(&self, directory: &Path, file: &str) -> (PathBuf, PathBuf) {
        (directory.join(&self.staging).join(file), directory.join(file))
    }

    /// Where one of its files is now.
    pub(crate) fn place(&self, directory: &Path, file: &str) -> PathBuf {
        let (staged, last) = self.places(directory, file);
        match fs::symlink_metadata(&staged) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => last,
            // What is wrong with it shows when it is opened.
            _ => staged,
        }
    }
}

/// Whether the system says that a name is none that it could have. (`ErrorKind::InvalidFilename`, since Rust 1.87.)
fn is_too_long(error: &io::Error) -> bool {
    #[cfg(unix)]
    let codes = [rustix::io::Errno::NAMETOOLONG.raw_os_error(); 2];
    // ERROR_INVALID_NAME and ERROR_FILENAME_EXCED_RANGE
    #[cfg(not(unix))]
    let codes = [123, 206];
    error.raw_os_error().is_some_and(|code| codes.contains(&code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_is_followed() {
        let journal = Journal {
            stem: "model".into(),
            staging: ".model.safetensors.x.staging".into(),
            files: vec![file_names::shard("model", 1, 2), file_names::index("model", None)],
            remove: vec![file_names::single("model")],
        };
        let text = journal.to_json();
        assert_eq!(Journal::parse("model", &text), Some(journal));
        assert_eq!(Journal::parse("other", &text), None);
        for (from, to) in [
            ("\"version\": 1", "\"version\": 2"),
            (".model.safetensors.x.staging", "elsewhere"),
            (".model.safetensors.x.staging", ".other.safetensors.x.staging"),
            (".model.safetensors.x.staging", "../.model.safetensors.x.staging"),
            ("model.safetensors.index.json", "model.safetensors"),
            ("model.safetensors\"", "config.json\""),
            ("model-00001-of-00002", "../model-00001-of-00002"),
        ] {
            assert_eq!(Journal::parse("model", &text.replacen(from, to, 1)), None, "{to}");
        }
        assert_eq!(Journal::stem_of(".model.safetensors.journal"), Some("model"));
        assert_eq!(Journal::stem_of("model.safetensors.journal"), None);
    }
}
