//! From a path to the files of one checkpoint.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};

/// The files that make up a checkpoint.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Located {
    /// One safetensors file.
    File(PathBuf),
    /// An index, whose shards lie beside it.
    Index(PathBuf),
    /// Numbered shards without an index, all of them there.
    Set(Vec<PathBuf>),
}

/// Names of checkpoints that libraries look for, first come first served: those of transformers, of diffusers'
/// models, of PEFT, and of diffusers' LoRA weights.
const CANONICAL: [&str; 4] = ["model", "diffusion_pytorch_model", "adapter_model", "pytorch_lora_weights"];

pub(super) fn locate(path: &Path, variant: Option<&str>) -> Result<Located> {
    if !path.is_dir() {
        let index = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
        return Ok(if index { Located::Index(path.into()) } else { Located::File(path.into()) });
    }
    in_directory(path, variant).map_err(|error| error.in_file(path))
}

fn in_directory(directory: &Path, variant: Option<&str>) -> Result<Located> {
    let mut names = Vec::new();
    let entries = fs::read_dir(directory);
    for entry in entries.map_err(|error| Error::io("the directory cannot be read", error))? {
        let entry = entry.map_err(|error| Error::io("the directory cannot be read", error))?;
        names.extend(entry.file_name().into_string());
    }
    let candidates = candidates(&names);

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
    match chosen {
        Some((name, candidate)) => candidate.locate(name, directory),
        None => Err(nothing(directory, &names, variant)),
    }
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
        if let Some(key) = index_key(name) {
            candidates.entry(key).or_default().index = Some(name.clone());
        } else if let Some(stem) = name.strip_suffix(".safetensors") {
            match shard_number(stem) {
                Some((key, number, total)) => {
                    let shards = &mut candidates.entry(key.to_owned()).or_default().shards;
                    shards.entry(total).or_default().push((number, name.clone()));
                }
                None => candidates.entry(stem.to_owned()).or_default().file = Some(name.clone()),
            }
        }
    }
    candidates
}

/// `model.safetensors.index.json` -> `model`, `model.safetensors.index.fp16.json` -> `model.fp16`.
fn index_key(name: &str) -> Option<String> {
    let (stem, rest) = name.strip_suffix(".json")?.split_once(".safetensors.index")?;
    Some(match rest.strip_prefix('.') {
        Some(variant) => format!("{stem}.{variant}"),
        None if rest.is_empty() => stem.to_owned(),
        None => return None,
    })
}

/// `model-00002-of-00003` -> `model`, 2, 3.
fn shard_number(stem: &str) -> Option<(&str, u32, u32)> {
    let (rest, total) = stem.rsplit_once("-of-")?;
    let (key, number) = rest.rsplit_once('-')?;
    let read = |digits: &str| {
        let plain = digits.len() >= 4 && digits.bytes().all(|digit| digit.is_ascii_digit());
        plain.then(|| digits.parse().ok()).flatten()
    };
    Some((key, read(number)?, read(total)?))
}

impl Candidate {
    /// The form that `transformers` would take: the single file, then the index.
    fn locate(&self, name: &str, directory: &Path) -> Result<Located> {
        if let Some(file) = &self.file {
            return Ok(Located::File(directory.join(file)));
        }
        if let Some(index) = &self.index {
            return Ok(Located::Index(directory.join(index)));
        }
        let mut sets = self.shards.iter();
        let (Some((&total, shards)), None) = (sets.next(), sets.next()) else {
            let message = format!("shards of several checkpoints named {name} lie there, and no index");
            return Err(Error::new(ErrorKind::Ambiguous, message));
        };
        let mut shards = shards.clone();
        shards.sort_unstable();
        let numbers = shards.iter().map(|shard| shard.0);
        if let Some(missing) = (1..=total).find(|number| !numbers.clone().any(|n| n == *number)) {
            let message = format!("shard {missing} of {total} of {name} is not there, nor is an index");
            return Err(Error::new(ErrorKind::MissingShard, message));
        }
        Ok(Located::Set(shards.into_iter().map(|shard| directory.join(shard.1)).collect()))
    }

    fn file_name(&self, name: &str) -> String {
        let single = self.file.as_ref().or(self.index.as_ref()).cloned();
        single.unwrap_or_else(|| format!("{name}-*.safetensors"))
    }
}

/// Says what is there instead of a checkpoint.
fn nothing(directory: &Path, names: &[String], variant: Option<&str>) -> Error {
    let ends = |endings: &[&str]| {
        names.iter().find(|name| endings.iter().any(|ending| name.ends_with(ending))).cloned()
    };
    let below = || {
        let mut below: Vec<_> = names
            .iter()
            .filter(|name| {
                let inside = fs::read_dir(directory.join(name)).into_iter().flatten().flatten();
                inside.take(1000).any(|e| e.path().extension().is_some_and(|e| e == "safetensors"))
            })
            .cloned()
            .collect();
        below.sort();
        below
    };
    let mut message = match variant {
        Some(variant) => format!("no safetensors checkpoint of variant {variant} is in this directory"),
        None => "no safetensors checkpoint is in this directory".to_owned(),
    };
    if let Some(pickle) = ends(&[".bin", ".pt", ".pth", ".ckpt"]) {
        message += &format!("; {pickle} is another format (a pickle?)");
    } else if let Some(gguf) = ends(&[".gguf"]) {
        message += &format!("; {gguf} is another format");
    }
    let below = below();
    if !below.is_empty() {
        message += &format!("; there are some in {}", below.join(", "));
    }
    Error::new(ErrorKind::NotFound, message)
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
        let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        match locate(directory.path(), variant) {
            Ok(Located::File(path) | Located::Index(path)) => Ok(name(&path)),
            Ok(Located::Set(paths)) => Ok(paths.iter().map(name).collect::<Vec<_>>().join(" ")),
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
