//! What `hash` writes: the digest of the whole, and a line for each tensor.

use std::cmp::Ordering;
use std::fmt::{self, Write};
use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde_json::json;
use weighbridge::TensorRef;

use super::digest::{Algorithm, Digest};
use crate::show::is_unsafe;

/// The digests of a checkpoint's tensors, sorted by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) algorithm: Algorithm,
    pub(crate) lines: Vec<Line>,
}

/// One tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    digest: Digest,
    dtype: String,
    shape: Vec<u64>,
    name: String,
}

impl Line {
    pub(crate) fn of(tensor: &TensorRef<'_>, digest: Digest) -> Self {
        Self {
            digest,
            dtype: tensor.dtype().name().to_owned(),
            shape: tensor.shape().iter().map(|&dim| dim as u64).collect(),
            name: tensor.name().to_owned(),
        }
    }

    fn parse(line: &str) -> Option<Self> {
        let mut parts = line.splitn(4, ' ');
        let digest = Digest::parse(parts.next()?)?;
        let dtype = parts.next()?.to_owned();
        let shape = serde_json::from_str(parts.next()?).ok()?;
        let name = serde_json::from_str(parts.next()?).ok()?;
        Some(Self { digest, dtype, shape, name })
    }
}

/// `DIGEST BF16 [4096,4096] "model.norm.weight"`
impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} [", self.digest, self.dtype)?;
        for (place, dim) in self.shape.iter().enumerate() {
            let comma = if place > 0 { "," } else { "" };
            write!(f, "{comma}{dim}")?;
        }
        write!(f, "] {}", quoted(&self.name))
    }
}

/// A name as a JSON string, with nothing in it that a terminal would obey.
fn quoted(name: &str) -> String {
    let mut text = String::with_capacity(name.len() + 2);
    text.push('"');
    for character in name.chars() {
        match character {
            '"' | '\\' => text.extend(['\\', character]),
            _ if is_unsafe(character) => {
                let mut units = [0; 2];
                for unit in character.encode_utf16(&mut units) {
                    // Writing into a string does not fail.
                    let _ = write!(text, "\\u{unit:04x}");
                }
            }
            _ => text.push(character),
        }
    }
    text.push('"');
    text
}

impl Manifest {
    /// So many bytes a manifest may have; that of a million tensors has fewer.
    const MOST: u64 = 256 << 20;

    /// What `hash` wrote into a file.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let mut text = String::new();
        let read = File::open(path).and_then(|file| file.take(Self::MOST + 1).read_to_string(&mut text));
        read.with_context(|| format!("{}: the manifest cannot be read", path.display()))?;
        if text.len() as u64 > Self::MOST {
            bail!("{}: the manifest is longer than {} bytes", path.display(), Self::MOST);
        }
        Self::parse(&text).with_context(|| format!("{}", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        const NONE: &str = "this is not a manifest that `weighbridge hash` wrote";
        let (first, rest) = text.split_once('\n').context(NONE)?;
        let (algorithm, digest) = first.split_once(' ').context(NONE)?;
        let algorithm = Algorithm::from_str(algorithm, false).ok().context(NONE)?;
        let digest = Digest::parse(digest.trim_end()).context(NONE)?;
        let mut lines = Vec::new();
        for (number, line) in rest.lines().enumerate() {
            let wrong = || format!("line {} of the manifest does not describe a tensor", number + 2);
            lines.push(Line::parse(line).with_context(wrong)?);
        }
        lines.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        if let Some([first, _]) = lines.windows(2).find(|pair| pair[0].name == pair[1].name) {
            bail!("the manifest lists {} twice", quoted(&first.name));
        }
        let manifest = Self { algorithm, lines };
        if manifest.whole() != digest {
            bail!("the manifest was changed or cut: its lines have not the digest that it begins with");
        }
        Ok(manifest)
    }

    fn body(&self) -> String {
        let mut text = String::new();
        for line in &self.lines {
            let _ = writeln!(text, "{line}");
        }
        text
    }

    /// The digest of all lines, as they are written.
    pub(crate) fn whole(&self) -> Digest {
        self.algorithm.of(self.body().as_bytes())
    }

    pub(crate) fn to_json(&self) -> serde_json::Value {
        let tensors = self.lines.iter().map(|line| {
            let Line { digest, dtype, shape, name } = line;
            json!({"digest": digest.to_string(), "dtype": dtype, "shape": shape, "name": name})
        });
        json!({
            "schema": "weighbridge.hash/1",
            "algorithm": self.algorithm.name(),
            "digest": self.whole().to_string(),
            "tensors": tensors.collect::<Vec<_>>(),
        })
    }

    /// How `actual` departs from this manifest, tensor by tensor.
    pub(crate) fn differences(&self, actual: &Self) -> Vec<Difference> {
        let mut found = Vec::new();
        let (mut expected, mut actual) = (self.lines.iter().peekable(), actual.lines.iter().peekable());
        loop {
            let order = match (expected.peek(), actual.peek()) {
                (Some(e), Some(a)) => e.name.cmp(&a.name),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (None, None) => return found,
            };
            let expected = if order.is_le() { expected.next() } else { None };
            let actual = if order.is_ge() { actual.next() } else { None };
            let (what, of) = match (expected, actual) {
                (Some(e), Some(a)) if e.dtype != a.dtype => {
                    (format!("its dtype is {} instead of {}", a.dtype, e.dtype), e)
                }
                (Some(e), Some(a)) if e.shape != a.shape => {
                    (format!("its shape is {:?} instead of {:?}", a.shape, e.shape), e)
                }
                (Some(e), Some(a)) if e.digest != a.digest => ("its values differ".to_owned(), e),
                (Some(e), None) => ("it is missing".to_owned(), e),
                (None, Some(a)) => ("the manifest does not list it".to_owned(), a),
                _ => continue,
            };
            found.push(Difference { name: of.name.clone(), what });
        }
    }
}

/// The digest of the whole, then the lines.
impl fmt::Display for Manifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}\n{}", self.algorithm.name(), self.whole(), self.body())
    }
}

/// A tensor that is not as the manifest says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Difference {
    pub(crate) name: String,
    pub(crate) what: String,
}

impl Difference {
    pub(crate) fn to_json(&self) -> serde_json::Value {
        json!({"tensor": self.name, "message": self.what})
    }
}

/// `"h.3.w": its values differ`
impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", quoted(&self.name), self.what)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn is_read_as_it_is_written(names in prop::collection::btree_set(any::<String>(), 0..8), shape: Vec<u64>) {
            let line = |name: String| {
                let digest = Algorithm::Blake3.of(name.as_bytes());
                Line { digest, dtype: "F32".to_owned(), shape: shape.clone(), name }
            };
            let lines = names.into_iter().map(line).collect();
            let manifest = Manifest { algorithm: Algorithm::Sha256, lines };
            let text = manifest.to_string();
            prop_assert!(!text.contains(|c: char| is_unsafe(c) && c != '\n'));
            prop_assert_eq!(Manifest::parse(&text).unwrap(), manifest);
        }
    }

    #[test]
    fn changed_manifests_are_refused() {
        let digest = Algorithm::Blake3.of(b"");
        let line =
            |name: &str| Line { digest, dtype: "U8".to_owned(), shape: vec![0], name: name.to_owned() };
        let text = Manifest { algorithm: Algorithm::Blake3, lines: vec![line("a"), line("b")] }.to_string();
        let error = |text: &str| Manifest::parse(text).unwrap_err().to_string();
        assert!(error(&text.replace("U8", "I8")).contains("changed"));
        assert!(error(&text.replace("\"b\"", "\"a\"")).contains("twice"));
        assert!(error(&text.replace("\"b\"", "b")).contains("line 3"));
        assert!(error("").contains("not a manifest"));
    }
}
