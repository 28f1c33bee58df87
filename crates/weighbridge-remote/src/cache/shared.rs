//! The store that `huggingface_hub` keeps for blobs of several repositories: `blobs/<2 digits>/<xet hash>` in the
//! cache's root, to which blobs are then links, and beside each a list of these. We never write into it, but what
//! nothing is a link to any more is removed with the last link.

use std::fs;
use std::path::{Component, Path, PathBuf};

use super::Cache;
use super::files::{self, Locked, on_disk};

fn is_hash(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// A relative link's target, without looking at the disk.
fn resolve(link: &Path, target: &Path) -> PathBuf {
    let mut path = link.parent().unwrap_or(link).to_owned();
    for component in target.components() {
        match component {
            Component::ParentDir => drop(path.pop()),
            Component::CurDir => {}
            other => path.push(other),
        }
    }
    path
}

impl Cache {
    /// What a blob is a link to in the shared store.
    pub(super) fn shared(&self, blob: &Path) -> Option<PathBuf> {
        let target = resolve(blob, &fs::read_link(blob).ok()?);
        let store = self.root().join("blobs");
        let inside: Vec<_> =
            target.strip_prefix(&store).ok()?.iter().filter_map(|part| part.to_str()).collect();
        let [prefix, hash] = *inside else { return None };
        let marked = fs::read(store.join(".huggingface-shared-blobs")).is_ok_and(|marker| marker == b"1\n");
        (marked && is_hash(hash) && hash.starts_with(prefix) && prefix.len() == 2).then_some(target)
    }

    /// Removes a file of the store if nothing is a link to it but `gone`; the bytes that are free then.
    pub(super) fn sweep(&self, stored: &Path, gone: &[PathBuf], dry_run: bool) -> u64 {
        let Some(name) = stored.file_name().and_then(|name| name.to_str()) else { return 0 };
        let lock = stored.with_file_name(format!("{name}.lock"));
        let Locked::Ours(Some(_lock)) = files::try_lock(&lock, false) else { return 0 };
        // As huggingface_hub has it: without a list, somebody may need it.
        let list = stored.with_file_name(format!("{name}.refs"));
        let Ok(text) = fs::read_to_string(&list) else { return 0 };
        let needs = |line: &str| {
            let plain = Path::new(line).components().all(|part| matches!(part, Component::Normal(_)));
            let blob = self.root().join(line);
            plain
                && !gone.contains(&blob)
                && fs::read_link(&blob).is_ok_and(|target| resolve(&blob, &target) == stored)
        };
        let Ok(data) = fs::symlink_metadata(stored) else { return 0 };
        if text.lines().any(needs) || !data.is_file() {
            return 0;
        }
        if !dry_run && fs::remove_file(stored).is_err() {
            return 0;
        }
        if !dry_run {
            drop(fs::remove_file(list));
        }
        on_disk(&data)
    }
}
