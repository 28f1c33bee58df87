//! Which files a commit has, as `huggingface_hub` 2 keeps it in `trees/<commit>.json`.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::Digest;

const VERSION: u64 = 1;

/// The files of a commit, by path. The paths are the server's, and not checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    /// By path.
    pub files: BTreeMap<String, TreeEntry>,
}

/// One file of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeEntry {
    /// In bytes.
    pub size: u64,
    /// What git has of it: the file itself, or the pointer to it in LFS.
    pub blob: String,
    /// SHA-256 and size of the file in LFS.
    pub lfs: Option<(String, u64)>,
    /// What Xet has it by: 64 hexadecimal digits.
    pub xet: Option<String>,
}

impl TreeEntry {
    /// What its blob in the cache is named by; `None` if the server sent something else.
    pub fn digest(&self) -> Option<Digest> {
        Digest::parse(self.lfs.as_ref().map_or(&*self.blob, |lfs| &*lfs.0)).ok()
    }
}

impl Tree {
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let json: Value = serde_json::from_slice(bytes).ok()?;
        if json.get("format_version")?.as_u64()? != VERSION {
            return None;
        }
        let entry = |(path, value): (&String, &Value)| Some((path.clone(), TreeEntry::parse(value)?));
        let files = json.get("files")?.as_object()?.iter().map(entry).collect::<Option<_>>()?;
        Some(Self { files })
    }

    pub(super) fn json(&self) -> String {
        let files: Map<_, _> = self.files.iter().map(|(path, entry)| (path.clone(), entry.json())).collect();
        json!({ "format_version": VERSION, "files": files }).to_string()
    }
}

impl TreeEntry {
    fn parse(value: &Value) -> Option<Self> {
        let text = |name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
        let size = value.get("size")?.as_u64()?;
        let lfs = text("lfs_sha256").map(|sha256| {
            let size = value.get("lfs_size").and_then(Value::as_u64).unwrap_or(size);
            (sha256, size)
        });
        Some(Self { size, blob: text("blob_id")?, lfs, xet: text("xet_hash") })
    }

    fn json(&self) -> Value {
        let mut value = json!({ "size": self.size, "blob_id": self.blob });
        if let Some((sha256, size)) = &self.lfs {
            value["lfs_sha256"] = json!(sha256);
            value["lfs_size"] = json!(size);
        }
        // An invalid one would make huggingface_hub ignore the whole list.
        let valid = |hash: &&String| {
            hash.len() == 64 && hash.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        };
        if let Some(hash) = self.xet.as_ref().filter(valid) {
            value["xet_hash"] = json!(hash);
        }
        value
    }
}
