//! What may become a part of a path: checked before it touches the disk.

use crate::error::{Error, ErrorKind, Result};

/// What Windows takes for a device, whatever comes after a dot.
const DEVICES: [&str; 6] = ["con", "prn", "aux", "nul", "conin$", "conout$"];

/// The longest name of a file or directory on the file systems in use.
const LONGEST: usize = 255;

fn refused(what: &str, name: &str, why: &str) -> Error {
    // `escape_debug`: a control character stays on its line.
    Error::new(ErrorKind::Malformed, format!("{what} \"{}\" {why}", name.escape_debug()))
}

/// Whether a name stays in its directory, on Unix and on Windows.
fn component(name: &str) -> std::result::Result<(), &'static str> {
    let start = name.split('.').next().unwrap_or_default().trim_end().to_ascii_lowercase();
    let numbered = |port: &str| {
        start.strip_prefix(port).is_some_and(|rest| matches!(rest, "¹" | "²" | "³") || is_digit(rest))
    };
    if matches!(name, "" | "." | "..") {
        Err("leads out of its directory")
    } else if name.len() > LONGEST {
        Err("is too long")
    } else if name.contains(['/', '\\']) || name.chars().any(char::is_control) {
        Err("has a backslash or a control character in it")
    } else if DEVICES.contains(&&*start) || numbered("com") || numbered("lpt") {
        Err("is a device on Windows")
    } else if cfg!(windows)
        && (name.contains([':', '*', '?', '"', '<', '>', '|']) || name.ends_with(['.', ' ']))
    {
        Err("is no file name on Windows")
    } else {
        Ok(())
    }
}

fn is_digit(text: &str) -> bool {
    matches!(text.as_bytes(), [b'1'..=b'9'])
}

/// The path of a file in a repository.
pub(crate) fn path(path: &str) -> Result<&str> {
    path.split('/').try_for_each(component).map_err(|why| refused("the path", path, why))?;
    Ok(path)
}

/// A branch, a tag, `refs/pr/1`, or a commit.
pub(crate) fn revision(revision: &str) -> Result<&str> {
    revision.split('/').try_for_each(component).map_err(|why| refused("the revision", revision, why))?;
    Ok(revision)
}

/// A commit's 40 hexadecimal digits.
pub(crate) fn commit(commit: &str) -> Result<&str> {
    if is_commit(commit) {
        Ok(commit)
    } else {
        Err(refused("the commit", commit, "is not 40 hexadecimal digits"))
    }
}

pub(crate) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// `name` or `organisation/name`.
pub(crate) fn repository(id: &str) -> Result<&str> {
    let plain = |part: &str| {
        let known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        component(part).is_ok() && part.bytes().all(known)
    };
    // `--` stands for the slash in the names of directories.
    let good = id.len() <= 96 && id.split('/').count() <= 2 && id.split('/').all(plain) && !id.contains("--");
    if good {
        Ok(id)
    } else {
        Err(refused("the repository", id, "is no `name` or `organisation/name` of the hub"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_inside_is_taken() {
        for good in ["a", "onnx/model.onnx", "a b.txt", ".gitattributes", "com0", "console", "..a", "ünïcode"]
        {
            assert_eq!(path(good).unwrap(), good);
        }
        for good in ["main", "refs/pr/1", "refs/convert/parquet", "v1.0"] {
            assert_eq!(revision(good).unwrap(), good);
        }
        for good in ["gpt2", "org/name", "Org-1/na_me.v2"] {
            assert_eq!(repository(good).unwrap(), good);
        }
    }

    #[test]
    fn what_does_not_is_refused() {
        let long = "x".repeat(256);
        for bad in [
            "", ".", "..", "/a", "a/", "a//b", "../a", "a/../b", "a/..", "a\\b", "a\nb", "a\0", "\u{7f}",
            "CON", "con.txt", "a/nul", "Com1", "lpt9.x", "com²", "aux .txt", "\u{85}", &long,
        ] {
            let error = path(bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Malformed, "{bad:?}");
            assert!(!error.to_string().contains(char::is_control));
            assert!(revision(bad).is_err());
        }
        for bad in ["", "a/b/c", "a--b", "a/..", "../a", "a b", "a/", "/a", "a\\b", "org/ñ", "con/a"] {
            assert!(repository(bad).is_err(), "{bad:?}");
        }
        for bad in ["", "main", &"A".repeat(40), &"a".repeat(39), &"g".repeat(40)] {
            assert!(commit(bad).is_err(), "{bad:?}");
        }
    }
}
