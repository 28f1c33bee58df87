//! The listing of a commit.

use serde_json::Value;

use crate::address::check_name;
use crate::{Error, ErrorKind, Result};

/// A file of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) path: String,
    pub(crate) size: u64,
    /// The git sha1, 40 hexadecimal digits.
    pub(crate) blob: String,
    /// The sha256 of the content, where git has only a pointer to it.
    pub(crate) sha256: Option<String>,
    /// Its name in the xet store.
    pub(crate) xet: Option<String>,
}

impl Entry {
    /// What the cache names the content by.
    pub(crate) fn tag(&self) -> &str {
        self.sha256.as_deref().unwrap_or(&self.blob)
    }
}

/// One page. What is no file is left out; what has a name that leads elsewhere is an error.
pub(crate) fn parse(json: &[u8]) -> Result<Vec<Entry>> {
    let malformed =
        |what: &str| Error::new(ErrorKind::Malformed, format!("the hub's listing is malformed: {what}"));
    let page: Value = serde_json::from_slice(json).map_err(|_| malformed("it is not JSON"))?;
    let page = page.as_array().ok_or_else(|| malformed("it is no list"))?;
    let mut entries = Vec::new();
    for entry in page.iter().filter(|entry| text(entry, "type") == Some("file")) {
        let path = text(entry, "path").ok_or_else(|| malformed("a file has no path"))?;
        check_name(path).map_err(|error| malformed(error.message()))?;
        let lfs = entry.get("lfs").filter(|lfs| lfs.is_object());
        let size = lfs.and_then(|lfs| lfs.get("size")).or_else(|| entry.get("size")).and_then(Value::as_u64);
        let hex = |value: Option<&str>, digits: usize| {
            value
                .filter(|text| text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit()))
                .map(str::to_ascii_lowercase)
        };
        entries.push(Entry {
            path: path.to_owned(),
            size: size.ok_or_else(|| malformed("a file has no size"))?,
            blob: hex(text(entry, "oid"), 40).ok_or_else(|| malformed("a file has no oid of 40 digits"))?,
            sha256: match lfs {
                None => None,
                Some(lfs) => {
                    let sha256 = hex(text(lfs, "oid").map(|oid| oid.trim_start_matches("sha256:")), 64);
                    Some(sha256.ok_or_else(|| malformed("a file has no sha256 of 64 digits"))?)
                }
            },
            xet: hex(text(entry, "xetHash"), 64),
        });
    }
    Ok(entries)
}

fn text<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get(key)?.as_str()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_alone_and_names_that_stay() {
        let (sha1, sha256) = ("a".repeat(40), "B".repeat(64));
        let json = format!(
            r#"[{{"type":"directory","path":"d","oid":"{sha1}","size":0}},
                {{"type":"file","path":"d/a.json","oid":"{sha1}","size":7}},
                {{"type":"file","path":"m.bin","oid":"{sha1}","size":130,"lfs":{{"oid":"{sha256}","size":9}}}}]"#
        );
        let entries = parse(json.as_bytes()).unwrap();
        assert_eq!(entries.len(), 2);
        assert_eq!(
            (entries[0].path.as_str(), entries[0].size, entries[0].tag()),
            ("d/a.json", 7, sha1.as_str())
        );
        assert_eq!((entries[1].size, entries[1].tag()), (9, sha256.to_lowercase().as_str()));
        for path in ["../a", "/etc/passwd", "a\\\\b", "a/./b", "", "a\\u0000b", "https://x/y", "a//b"] {
            let json = format!(r#"[{{"type":"file","path":"{path}","oid":"{sha1}","size":7}}]"#);
            assert_eq!(parse(json.as_bytes()).unwrap_err().kind(), ErrorKind::Malformed, "{path}");
        }
        for bad in
            ["{}", "[{\"type\":\"file\"}]", "nonsense", "[{\"type\":\"file\",\"path\":\"a\",\"size\":-1}]"]
        {
            assert!(parse(bad.as_bytes()).is_err());
        }
    }
}
