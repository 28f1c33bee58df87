//! The files of a checkpoint: each by itself, and whether they belong together.

use std::collections::HashSet;
use std::collections::btree_map::{BTreeMap, Entry};
use std::path::{Path, PathBuf};

use weighbridge::index::stays_inside;
use weighbridge::{Checkpoint, Error, ErrorKind, Result};

use super::finding::{Findings, Severity, is_finding};
use super::index::Listed;

/// The files that are what they should be, each as a checkpoint of its own.
#[derive(Default)]
pub(super) struct Set {
    pub(super) shards: Vec<Checkpoint>,
}

impl Set {
    /// Looks at the files of one checkpoint. What could not be looked at goes to `failed`.
    pub(super) fn find(
        path: &Path,
        strict: bool,
        findings: &mut Findings,
        failed: &mut Vec<anyhow::Error>,
    ) -> Result<Self> {
        let files = Checkpoint::options().files(path)?;
        let mut look = Look { strict, findings, failed };
        let shards = match &files.index {
            Some(index) => look.indexed(index, &files.directory)?,
            None => look.numbered(&files.shards),
        };
        if path.is_dir() || files.index.is_some() {
            look.orphans(&files.directory, files.index.as_deref(), &files.shards, &shards);
        }
        Ok(Self { shards: shards.into_values().flatten().collect() })
    }
}

/// The shards of a set by name; those that are not what they should be are `None`.
type Shards = BTreeMap<String, Option<Checkpoint>>;

struct Look<'a> {
    strict: bool,
    findings: &'a mut Findings,
    failed: &'a mut Vec<anyhow::Error>,
}

impl Look<'_> {
    /// One file, if it is as it should be.
    fn file(&mut self, path: &Path) -> Option<Checkpoint> {
        let diagnosis = match Checkpoint::options().diagnose(path) {
            Ok(diagnosis) => diagnosis,
            Err(error) => {
                self.failed.push(error.into());
                return None;
            }
        };
        let severity = if self.strict { Severity::Error } else { Severity::Note };
        for finding in diagnosis.findings {
            let (tensor, message) = (finding.tensor.as_deref(), finding.rule.message());
            self.findings.add(finding.rule.name(), severity, Some(path), tensor, message.to_owned());
        }
        if !diagnosis.errors.is_empty() {
            diagnosis.errors.into_iter().for_each(|error| self.findings.add_error(error));
            return None;
        }
        match Checkpoint::open(path) {
            Ok(checkpoint) => Some(checkpoint),
            Err(error) if is_finding(error.kind()) => {
                self.findings.add_error(error);
                None
            }
            Err(error) => {
                self.failed.push(error.into());
                None
            }
        }
    }

    fn numbered(&mut self, paths: &[PathBuf]) -> Shards {
        let name = |path: &PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let shards: Shards = paths.iter().map(|path| (name(path), self.file(path))).collect();
        self.owners(&shards, &BTreeMap::new());
        shards
    }

    fn indexed(&mut self, path: &Path, directory: &Path) -> Result<Shards> {
        let listed = Listed::read(path)?;
        let fail = |kind, message: String| Error::new(kind, message).in_file(path);
        if listed.weight_map.0.is_empty() {
            return Err(fail(ErrorKind::Index, "the index lists no tensors".to_owned()));
        }
        let weights = self.weights(path, &listed);
        let mut shards = Shards::new();
        for (tensor, name) in &weights {
            let plain = plain(name);
            if shards.contains_key(&plain) {
                continue;
            }
            let place = directory.join(&plain);
            let shard = if !stays_inside(name) || plain.is_empty() {
                let message = format!("the shard name {name:?} leads outside the directory of the index");
                self.findings.add_error(fail(ErrorKind::ShardName, message).in_tensor(tensor));
                None
            } else if place.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json")) {
                let message = format!("the shard name {name:?} is that of an index");
                self.findings.add_error(fail(ErrorKind::ShardName, message).in_tensor(tensor));
                None
            } else if std::fs::metadata(&place)
                .is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
            {
                let message = format!("the shard {name:?} that it names is not there");
                self.findings.add_error(fail(ErrorKind::MissingShard, message));
                None
            } else {
                self.file(&place)
            };
            shards.insert(plain, shard);
        }
        let owners = self.owners(&shards, &weights);
        self.agree(path, &weights, &shards, &owners);
        let complete = shards.values().all(Option::is_some);
        if let Some(total) = listed.total_size().filter(|_| complete) {
            let counted =
                owners.iter().filter_map(|(tensor, shard)| shards.get(*shard)?.as_ref()?.tensor(tensor));
            let bytes: u64 = counted.map(|tensor| tensor.byte_len()).sum();
            #[expect(clippy::cast_precision_loss, reason = "some writers have it as a float")]
            let same = total.as_u64() == Some(bytes) || total.as_f64() == Some(bytes as f64);
            if !same {
                let message = format!("total_size is {total}, the tensors have {bytes} bytes");
                self.findings.add("total-size", Severity::Warning, Some(path), None, message);
            }
        }
        Ok(shards)
    }

    /// The tensors that an index lists, each once: the last of a name counts.
    fn weights<'l>(&mut self, path: &Path, listed: &'l Listed) -> BTreeMap<&'l str, &'l str> {
        let severity = if self.strict { Severity::Error } else { Severity::Note };
        let mut weights = BTreeMap::new();
        for (tensor, shard) in &listed.weight_map.0 {
            if weights.insert(&**tensor, &**shard).is_some() {
                let message = "it appears twice in the index".to_owned();
                self.findings.add("duplicate-tensor", severity, Some(path), Some(tensor), message);
            }
        }
        weights
    }

    /// Which shard each tensor is read from. Of two that hold it, it is the one that the index names; if none
    /// is named, readers refuse the set.
    fn owners<'s>(
        &mut self,
        shards: &'s Shards,
        weights: &BTreeMap<&str, &str>,
    ) -> BTreeMap<&'s str, &'s str> {
        let mut owners: BTreeMap<&str, &str> = BTreeMap::new();
        for (name, shard) in shards {
            for tensor in shard.iter().flat_map(Checkpoint::tensors) {
                let mut owner = match owners.entry(tensor.name()) {
                    Entry::Vacant(entry) => {
                        entry.insert(name);
                        continue;
                    }
                    Entry::Occupied(owner) => owner,
                };
                let listed = weights.get(tensor.name()).map(|shard| plain(shard));
                let unused = match &listed {
                    Some(listed) if listed == name => owner.insert(name),
                    _ => name,
                };
                let (severity, message) = match listed {
                    Some(listed) => {
                        let message = format!(
                            "it is not used, because the index says that {listed:?} holds this tensor"
                        );
                        (Severity::Warning, message)
                    }
                    None => (Severity::Error, format!("{:?} holds a tensor of this name, too", owner.get())),
                };
                let file =
                    shards.get(unused).and_then(Option::as_ref).and_then(|shard| shard.shards().first());
                let path = file.and_then(|file| file.path());
                self.findings.add("duplicate-tensor", severity, path, Some(tensor.name()), message);
            }
        }
        owners
    }

    /// Whether the shards hold what the index says, and nothing else.
    fn agree(
        &mut self,
        path: &Path,
        weights: &BTreeMap<&str, &str>,
        shards: &Shards,
        owners: &BTreeMap<&str, &str>,
    ) {
        for (tensor, shard) in weights {
            let plain = plain(shard);
            // Of a shard that is not there one finding is enough.
            let Some(Some(checkpoint)) = shards.get(&plain) else { continue };
            if checkpoint.tensor(tensor).is_some() {
                continue;
            }
            let place = match owners.get(tensor) {
                Some(owner) => format!("but it is in {owner:?}"),
                None => "which does not hold it".to_owned(),
            };
            let message = format!("the index places it in {shard:?}, {place}");
            self.findings
                .add_error(Error::new(ErrorKind::MissingTensor, message).in_tensor(tensor).in_file(path));
        }
        for (tensor, shard) in owners {
            if !weights.contains_key(tensor) {
                let message = format!("it is in {shard}, and the index does not list it");
                self.findings.add("unlisted-tensor", Severity::Warning, Some(path), Some(tensor), message);
            }
        }
    }

    /// Numbered shards beside those that are the checkpoint, of the same name.
    fn orphans(&mut self, directory: &Path, index: Option<&Path>, files: &[PathBuf], shards: &Shards) {
        let text = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
        let used: HashSet<String> =
            shards.keys().cloned().chain(files.iter().filter_map(|file| text(file))).collect();
        let main = index.map(Path::to_owned).or_else(|| files.first().cloned());
        let Some(stem) = main.as_deref().and_then(text).map(|name| stem(&name)) else { return };
        let names = std::fs::read_dir(directory).into_iter().flatten().flatten();
        let mut names: Vec<_> = names.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        for name in names {
            if shard_stem(&name) == Some(&*stem) && !used.contains(&name) {
                let (rule, file) = ("orphaned-shard", directory.join(&name));
                let message = "nothing says that this shard belongs to the checkpoint".to_owned();
                self.findings.add(rule, Severity::Warning, Some(&file), None, message);
            }
        }
    }
}

/// A shard's name without empty parts and dots, as one file may be written in several ways.
fn plain(name: &str) -> String {
    let parts: Vec<_> = name.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    parts.join("/")
}

/// `model-00001-of-00002.safetensors` -> `model`.
fn shard_stem(name: &str) -> Option<&str> {
    let (rest, total) = name.strip_suffix(".safetensors")?.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let is_number = |text: &str| text.len() >= 4 && text.bytes().all(|byte| byte.is_ascii_digit());
    (is_number(number) && is_number(total)).then_some(stem)
}

/// What the names of a checkpoint's files begin with: `model`, of a variant `model.fp16`.
fn stem(name: &str) -> String {
    if let Some(stem) = shard_stem(name) {
        return stem.to_owned();
    }
    match name.split_once(".safetensors") {
        Some((stem, rest)) => {
            match rest.strip_prefix(".index.").and_then(|rest| rest.strip_suffix(".json")) {
                Some(variant) if variant != "json" => format!("{stem}.{variant}"),
                _ => stem.to_owned(),
            }
        }
        None => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_one_checkpoint_have_one_stem() {
        for (name, expected) in [
            ("model.safetensors", "model"),
            ("model.safetensors.index.json", "model"),
            ("model.safetensors.index.fp16.json", "model.fp16"),
            ("model.fp16-00001-of-00002.safetensors", "model.fp16"),
        ] {
            assert_eq!(stem(name), expected, "{name}");
        }
        assert_eq!(shard_stem("model-1-of-2.safetensors"), None);
    }
}
