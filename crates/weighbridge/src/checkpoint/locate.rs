//! From a path to the files of one checkpoint.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};
use crate::file_names;
use crate::journal::Journal;

/// The files that make up a checkpoint, and their directory.
#[derive(Debug)]
pub(super) struct Located {
    pub(super) files: Files,
    pub(super) listing: Listing,
}

/// The files that make up a checkpoint, by name.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Files {
    /// One safetensors file.
    Single(String),
    /// An index, whose shards lie beside it.
    Index(String),
    /// Numbered shards without an index, all of them there.
    Set(Vec<String>),
}

/// A directory as it is to be read: where a set of files is being replaced, with the new ones.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) directory: PathBuf,
    names: Vec<String>,
    journals: Vec<Journal>,
}

/// Names of checkpoints that libraries look for, first come first served: those of transformers, of diffusers'
/// models, of PEFT, and of diffusers' LoRA weights.
const CANONICAL: [&str; 4] = ["model", "diffusion_pytorch_model", "adapter_model", "pytorch_lora_weights"];

pub(super) fn locate(path: &Path, variant: Option<&str>) -> Result<Located> {
    if path.is_dir() {
        let located = Listing::read(path).and_then(|listing| in_directory(listing, variant));
        return located.map_err(|error| error.in_file(path));
    }
    let (name, listing) = in_its_directory(path)?;
    Ok(Located { files: if is_index(path) { Files::Index(name) } else { Files::Single(name) }, listing })
}

/// The path of one safetensors file, and its directory.
pub(super) fn locate_file(path: &Path) -> Result<(PathBuf, PathBuf)> {
    if is_index(path) || path.is_dir() {
        let what = if path.is_dir() { "a directory" } else { "an index" };
        let message = format!(
            "this is {what}, and every path of the list must be a safetensors file: open it by itself with \
             Checkpoint::open, and add it with Checkpoint::union"
        );
        return Err(Error::new(ErrorKind::Unsupported, message).in_file(path));
    }
    let (name, listing) = in_its_directory(path)?;
    Ok((listing.place(&name), listing.directory))
}

/// Whether a file has the name of an index.
pub(super) fn is_index(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"))
}

/// The name of a file, and as much of its directory as is needed to find it.
fn in_its_directory(path: &Path) -> Result<(String, Listing)> {
    let Some(name) = path.file_name().and_then(OsStr::to_str) else {
        return Err(Error::new(ErrorKind::NotFound, "the name of the file is not Unicode").in_file(path));
    };
    let listing = Listing::for_file(file_names::directory_of(path), name)?;
    if listing.journals.iter().any(|journal| journal.remove.iter().any(|removed| removed == name)) {
        let message = "another checkpoint has taken its place: it is about to be removed";
        return Err(Error::new(ErrorKind::NotFound, message).in_file(path));
    }
    Ok((name.to_owned(), listing))
}

impl Located {
    /// The stem of the checkpoint, where its files are named after one.
    pub(super) fn stem(&self) -> Option<String> {
        match &self.files {
            Files::Single(name) | Files::Index(name) => file_names::stem(name),
            Files::Set(names) => names.first().and_then(|name| file_names::stem(name)),
        }
    }
}

/// Whether a file that is not there is about to be put there.
pub(super) fn is_coming(path: &Path) -> Result<bool> {
    let Some(name) = path.file_name().and_then(OsStr::to_str) else { return Ok(false) };
    Ok(Listing::for_file(file_names::directory_of(path), name)?
        .journals
        .iter()
        .any(|journal| journal.has(name)))
}

impl Listing {
    fn read(directory: &Path) -> Result<Self> {
        let mut names = Vec::new();
        let entries = fs::read_dir(directory);
        for entry in entries.map_err(|error| Error::io("the directory cannot be read", error))? {
            let entry = entry.map_err(|error| Error::io("the directory cannot be read", error))?;
            names.extend(entry.file_name().into_string());
        }
        let stems = names.iter().filter_map(|name| Journal::stem_of(name));
        let journals = stems.map(|stem| Journal::read(directory, stem));
        let journals: Vec<_> = journals.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
        for journal in &journals {
            let changed: HashSet<_> = journal.remove.iter().chain(&journal.files).collect();
            names.retain(|name| !changed.contains(name));
            names.extend(journal.files.iter().cloned());
        }
        Ok(Self { directory: directory.to_owned(), names, journals })
    }

    /// Enough to find one file and what belongs to it.
    fn for_file(directory: &Path, name: &str) -> Result<Self> {
        let journal = match file_names::stem(name) {
            Some(stem) => Journal::read(directory, &stem)?,
            None => None,
        };
        Ok(Self {
            directory: directory.to_owned(),
            names: Vec::new(),
            journals: journal.into_iter().collect(),
        })
    }

    /// Where a file is.
    pub(super) fn place(&self, name: &str) -> PathBuf {
        let journal = self.journals.iter().find(|journal| journal.has(name));
        journal.map_or_else(|| self.directory.join(name), |journal| journal.place(&self.directory, name))
    }
}

fn in_directory(listing: Listing, variant: Option<&str>) -> Result<Located> {
    match choose(&listing.names, variant)? {
        Some(files) => Ok(Located { files, listing }),
        None => {
            let below = with_checkpoints_below(&listing.directory, &listing.names);
            Err(nothing("in this directory", &listing.names, variant, below))
        }
    }
}

/// The checkpoint among files of these names; `None` if there is none.
pub(super) fn choose(names: &[String], variant: Option<&str>) -> Result<Option<Files>> {
    let candidates = candidates(names);
    let canonical = CANONICAL.iter().map(|name| match variant {
        Some(variant) => format!("{name}.{variant}"),
        None => (*name).to_owned(),
    });
    let mut chosen = canonical.filter_map(|name| candidates.get_key_value(&*name)).next();
    if chosen.is_none() {
        let suffix = variant.map(|variant| format!(".{variant}"));
        let fits = |name: &str| suffix.as_deref().is_none_or(|suffix| name.ends_with(suffix));
        let others: Vec<_> = candidates.iter().filter(|(name, _)| fits(name)).collect();
        if let [_, _, ..] = &*others {
            let list: Vec<_> = others.iter().map(|(name, candidate)| candidate.file_name(name)).collect();
            let message = format!("which checkpoint is meant? It holds {}; name one", list.join(", "));
            return Err(Error::new(ErrorKind::Ambiguous, message));
        }
        chosen = others.first().copied();
    }
    chosen.map(|(name, candidate)| candidate.locate(name)).transpose()
}

/// The forms in which a checkpoint of one name is there.
#[derive(Debug, Default)]
struct Candidate {
    file: Option<String>,
    index: Option<String>,
    /// Numbered shards: the total in their names, and number and name of each.
    shards: BTreeMap<u32, Vec<(u32, String)>>,
}

fn candidates(names: &[String]) -> BTreeMap<String, Candidate> {
    let mut candidates = BTreeMap::<String, Candidate>::new();
    for name in names {
        if let Some(key) = file_names::index_stem(name) {
            candidates.entry(key).or_default().index = Some(name.clone());
        } else if let Some(stem) = name.strip_suffix(".safetensors") {
            match file_names::shard_number(stem) {
                Some((key, number, total)) => {
                    let shards = &mut candidates.entry(key.to_owned()).or_default().shards;
                    shards.entry(total).or_default().push((number, name.clone()));
                }
                None => candidates.entry(stem.to_owned()).or_default().file = Some(name.clone()),
            }
        }
    }
    // Shards that an index has in a store are called after it, and are no checkpoint of their own.
    let of_an_index = |key: &str| {
        let stem = file_names::stem_of_fresh(key);
        stem.is_some_and(|stem| candidates.get(stem).is_some_and(|candidate| candidate.index.is_some()))
    };
    let own: Vec<_> = candidates.keys().filter(|key| of_an_index(key)).cloned().collect();
    candidates
        .retain(|key, candidate| !own.contains(key) || candidate.file.is_some() || candidate.index.is_some());
    candidates
}

impl Candidate {
    /// The form that `transformers` would take: the single file, then the index.
    fn locate(&self, name: &str) -> Result<Files> {
        if let Some(file) = &self.file {
            return Ok(Files::Single(file.clone()));
        }
        if let Some(index) = &self.index {
            return Ok(Files::Index(index.clone()));
        }
        let mut sets = self.shards.iter();
        let (Some((&total, shards)), None) = (sets.next(), sets.next()) else {
            let message = format!("shards of several checkpoints named {name} lie there, and no index");
            return Err(Error::new(ErrorKind::Ambiguous, message));
        };
        let mut shards = shards.clone();
        shards.sort_unstable();
        let numbers: HashSet<_> = shards.iter().map(|shard| shard.0).collect();
        if let Some(missing) = (1..=total).find(|number| !numbers.contains(number)) {
            let message = format!("shard {missing} of {total} of {name} is not there, nor is an index");
            return Err(Error::new(ErrorKind::MissingShard, message));
        }
        Ok(Files::Set(shards.into_iter().map(|shard| shard.1).collect()))
    }

    fn file_name(&self, name: &str) -> String {
        let single = self.file.as_ref().or(self.index.as_ref()).cloned();
        single.unwrap_or_else(|| format!("{name}-*.safetensors"))
    }
}

/// Says what is there instead of a checkpoint.
pub(super) fn nothing(place: &str, names: &[String], variant: Option<&str>, below: Vec<String>) -> Error {
    let ends = |endings: &[&str]| {
        names.iter().find(|name| endings.iter().any(|ending| name.ends_with(ending))).cloned()
    };
    let mut message = match variant {
        Some(variant) => format!("no safetensors checkpoint of variant {variant} is {place}"),
        None => format!("no safetensors checkpoint is {place}"),
    };
    if let Some(pickle) = ends(&[".bin", ".pt", ".pth", ".ckpt"]) {
        message += &format!("; {pickle} is another format (a pickle?)");
    } else if let Some(gguf) = ends(&[".gguf"]) {
        message += &format!("; {gguf} is another format");
    }
    if !below.is_empty() {
        message += &format!("; there are some in {}", below.join(", "));
    }
    Error::new(ErrorKind::NotFound, message)
}

/// The directories below that hold safetensors files.
fn with_checkpoints_below(directory: &Path, names: &[String]) -> Vec<String> {
    let holds_some = |name: &&String| {
        let inside = fs::read_dir(directory.join(name)).into_iter().flatten().flatten();
        inside.take(1000).any(|e| e.path().extension().is_some_and(|e| e == "safetensors"))
    };
    let mut below: Vec<_> = names.iter().filter(holds_some).cloned().collect();
    below.sort();
    below
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(files: &[&str], variant: Option<&str>) -> std::result::Result<String, (ErrorKind, String)> {
        let directory = tempfile::tempdir().unwrap();
        for file in files {
            let path = directory.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        match locate(directory.path(), variant).map(|located| located.files) {
            Ok(Files::Single(name) | Files::Index(name)) => Ok(name),
            Ok(Files::Set(names)) => Ok(names.join(" ")),
            Err(error) => Err((error.kind(), error.to_string())),
        }
    }

    #[test]
    fn transformers_precedence() {
        let all = [
            "model.safetensors",
            "model.safetensors.index.json",
            "model-00001-of-00001.safetensors",
            "diffusion_pytorch_model.safetensors",
            "adapter_model.safetensors",
            "consolidated.safetensors",
            "model.fp16.safetensors",
        ];
        for (skip, expected) in [(0, all[0]), (1, all[1]), (2, all[2]), (3, all[3]), (4, all[4])] {
            assert_eq!(find(&all[skip..], None).unwrap(), expected);
        }
        assert_eq!(find(&all[5..6], None).unwrap(), all[5]);
        assert_eq!(find(&all, Some("fp16")).unwrap(), all[6]);
    }

    #[test]
    fn variants() {
        let files = ["model.safetensors.index.fp16.json", "model.fp16-00001-of-00002.safetensors"];
        assert_eq!(find(&files, Some("fp16")).unwrap(), files[0]);
        assert_eq!(find(&files, None).unwrap(), files[0]);
        assert_eq!(find(&files, Some("bf16")).unwrap_err().0, ErrorKind::NotFound);
    }

    #[test]
    fn numbered_shards_without_an_index() {
        let (first, second) = ("m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors");
        assert_eq!(find(&[second, first], None).unwrap(), format!("{first} {second}"));
        let (kind, message) = find(&[second], None).unwrap_err();
        assert_eq!(kind, ErrorKind::MissingShard);
        assert!(message.contains("shard 1 of 2"), "{message}");
    }

    #[test]
    fn several_without_a_canonical_name() {
        let (kind, message) = find(&["a.safetensors", "b.safetensors"], None).unwrap_err();
        assert_eq!(kind, ErrorKind::Ambiguous);
        assert!(message.contains("a.safetensors, b.safetensors"), "{message}");
    }

    #[test]
    fn nothing_to_load_says_what_is_there() {
        for (files, word) in [
            (vec![], "no safetensors"),
            (vec!["pytorch_model.bin"], "pickle"),
            (vec!["unet/diffusion_pytorch_model.safetensors"], "unet"),
        ] {
            let (kind, message) = find(&files, None).unwrap_err();
            assert_eq!(kind, ErrorKind::NotFound);
            assert!(message.contains(word), "{message}");
        }
    }
}
