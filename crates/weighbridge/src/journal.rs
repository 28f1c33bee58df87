//! The journal of a set of files that is being replaced.
//!
//! The new files lie in a subdirectory, the staging; the journal says that they are the checkpoint from now on, and
//! which of the old ones are to go. Whoever reads the directory takes each file from the staging if it is still
//! there, and from the directory itself otherwise; so it makes no difference how far the renaming got.
//!
//! A journal comes with a directory, and a directory may come from anywhere: its names are only followed where they
//! are plain names of files of the checkpoint that the journal is for.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};
use crate::names;
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

/// What staging directories and temporary files of a checkpoint's files end with.
pub(crate) const TEMPORARY: &str = ".tmp";

/// Names of shards: no checkpoint has so many.
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
        let mut text = String::new();
        let read = open_regular(&path).and_then(|file| file.take(MOST_BYTES).read_to_string(&mut text));
        match read {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("the journal cannot be read", error).in_file(&path)),
            Ok(_) => {}
        }
        let journal = Self::parse(stem, &text).ok_or_else(|| {
            let message = "the journal of a save that was interrupted is not one of ours";
            Error::new(ErrorKind::Journal, message).in_file(&path)
        })?;
        Ok(Some(journal))
    }

    fn parse(stem: &str, text: &str) -> Option<Self> {
        let json: serde_json::Value = serde_json::from_str(text).ok()?;
        let list = |key: &str| {
            let names = json.get(key)?.as_array()?.iter();
            let ours = |name: &&str| names::is_plain(name) && names::stem(name).as_deref() == Some(stem);
            names.map(|name| name.as_str().filter(ours).map(str::to_owned)).collect::<Option<Vec<_>>>()
        };
        let staging = json.get("staging")?.as_str()?;
        let hidden = staging.starts_with('.') && staging.ends_with(TEMPORARY);
        if json.get("version")?.as_u64()? != 1 || !names::is_plain(staging) || !hidden {
            return None;
        }
        Some(Self {
            stem: stem.to_owned(),
            staging: staging.to_owned(),
            files: list("files")?,
            remove: list("remove")?,
        })
    }

    pub(crate) fn to_json(&self) -> String {
        let Self { staging, files, remove, .. } = self;
        let json = serde_json::json!({"version": 1, "staging": staging, "files": files, "remove": remove});
        format!("{json:#}\n")
    }

    /// Where one of its files is in the staging, and where it belongs.
    pub(crate) fn places(&self, directory: &Path, file: &str) -> (PathBuf, PathBuf) {
        (directory.join(&self.staging).join(file), directory.join(file))
    }

    /// Where one of its files is now.
    pub(crate) fn place(&self, directory: &Path, file: &str) -> PathBuf {
        let (staged, last) = self.places(directory, file);
        if fs::exists(&staged).unwrap_or(false) { staged } else { last }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_is_followed() {
        let journal = Journal {
            stem: "model".into(),
            staging: ".model.safetensors.x.tmp".into(),
            files: vec![names::shard("model", 1, 2), names::index("model", None)],
            remove: vec![names::single("model")],
        };
        let text = journal.to_json();
        assert_eq!(Journal::parse("model", &text), Some(journal));
        assert_eq!(Journal::parse("other", &text), None);
        for (from, to) in [
            ("\"version\": 1", "\"version\": 2"),
            (".model.safetensors.x.tmp", "elsewhere"),
            (".model.safetensors.x.tmp", "../x.tmp"),
            ("model.safetensors\"", "config.json\""),
            ("model-00001-of-00002", "../model-00001-of-00002"),
        ] {
            assert_eq!(Journal::parse("model", &text.replacen(from, to, 1)), None, "{to}");
        }
        assert_eq!(Journal::stem_of(".model.safetensors.journal"), Some("model"));
        assert_eq!(Journal::stem_of("model.safetensors.journal"), None);
    }
}
