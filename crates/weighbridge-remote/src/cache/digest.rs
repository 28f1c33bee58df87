//! What a file of the hub is named by: the SHA-256 of its content, or the SHA-1 of the blob that git makes of it.

use std::fmt;

use sha1::{Digest as _, Sha1};
use sha2::Sha256;

use crate::error::{Error, ErrorKind, Result};

/// A file's checksum, which the hub sends as its ETag and which names its blob in the cache.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Digest {
    /// Of the content: files in LFS or Xet.
    Sha256([u8; 32]),
    /// Of `blob`, the length and the content: files in git itself.
    Git([u8; 20]),
}

impl Digest {
    /// Reads 64 or 40 hexadecimal digits.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Malformed`]: it is neither.
    pub fn parse(text: &str) -> Result<Self> {
        let bad = || {
            let shown: String = text.chars().take(80).collect();
            let message = format!("the ETag \"{}\" is not 40 or 64 hexadecimal digits", shown.escape_debug());
            Error::new(ErrorKind::Malformed, message)
        };
        match text.len() {
            64 => hex(text).map(Self::Sha256),
            40 => hex(text).map(Self::Git),
            _ => None,
        }
        .ok_or_else(bad)
    }

    /// Whether these bytes are the whole file.
    pub fn is_of(&self, bytes: &[u8]) -> bool {
        let mut hasher = Hasher::of(self, bytes.len() as u64);
        hasher.update(bytes);
        hasher.finish() == *self
    }
}

fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes: &[u8] = match self {
            Self::Sha256(bytes) => bytes,
            Self::Git(bytes) => bytes,
        };
        bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Computes a digest of the same kind as another.
#[derive(Clone)]
pub(crate) enum Hasher {
    Sha256(Sha256),
    Git(Sha1),
}

impl Hasher {
    pub(crate) fn of(digest: &Digest, size: u64) -> Self {
        match digest {
            Digest::Sha256(_) => Self::Sha256(Sha256::new()),
            Digest::Git(_) => Self::Git(Sha1::new_with_prefix(format!("blob {size}\0"))),
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Git(hasher) => hasher.update(bytes),
        }
    }

    pub(crate) fn finish(self) -> Digest {
        match self {
            Self::Sha256(hasher) => Digest::Sha256(hasher.finalize().into()),
            Self::Git(hasher) => Digest::Git(hasher.finalize().into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_git_and_sha256sum() {
        // printf hello | git hash-object --stdin; printf hello | sha256sum
        let git = Digest::parse("b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0").unwrap();
        let sha = Digest::parse("2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824").unwrap();
        assert!(git.is_of(b"hello") && sha.is_of(b"hello"));
        assert!(!git.is_of(b"hellO") && !sha.is_of(b"hell"));
        assert_eq!(Digest::parse(&sha.to_string().to_uppercase()).unwrap(), sha);
        for bad in ["", "b6fc", &"g".repeat(40), &"+f".repeat(32), &"é".repeat(20)] {
            assert_eq!(Digest::parse(bad).unwrap_err().kind(), ErrorKind::Malformed);
        }
    }
}
