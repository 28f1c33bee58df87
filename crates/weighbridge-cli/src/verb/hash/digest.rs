//! Digests of bytes, computed on all cores.
//!
//! BLAKE3 is a tree: pieces of one tensor are hashed at the same time and put together. SHA-256 is a chain,
//! so that only tensors are hashed side by side, the largest first.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Mutex;
use std::thread;

use anyhow::{Context, Result};
use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use clap::ValueEnum;
use sha2::{Digest as _, Sha256};
use weighbridge::TensorRef;

use crate::show::safe;
use crate::term::Bar;
use crate::{chunks, interrupt};

/// A hash function of 256 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Algorithm {
    Blake3,
    Sha256,
}

impl Algorithm {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Blake3 => "blake3",
            Self::Sha256 => "sha256",
        }
    }

    pub(crate) fn of(self, bytes: &[u8]) -> Digest {
        Digest(match self {
            Self::Blake3 => blake3::hash(bytes).into(),
            Self::Sha256 => Sha256::digest(bytes).into(),
        })
    }
}

/// Prints as 64 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Digest([u8; 32]);

impl Digest {
    pub(crate) fn parse(hex: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        let (pairs, []) = hex.as_bytes().as_chunks::<2>() else { return None };
        if pairs.len() != bytes.len() {
            return None;
        }
        for (byte, pair) in bytes.iter_mut().zip(pairs) {
            let [high, low] = pair.map(|digit| char::from(digit).to_digit(16));
            *byte = (high? * 16 + low?) as u8;
        }
        Some(Self(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The digest of the bytes of each tensor.
pub(super) fn of_tensors(tensors: &[TensorRef<'_>], algorithm: Algorithm, bar: &Bar) -> Result<Vec<Digest>> {
    match algorithm {
        Algorithm::Blake3 => trees(tensors, bar),
        Algorithm::Sha256 => chains(tensors, bar),
    }
}

/// Bytes of a subtree: a power of two that divides [`chunks::CHUNK`].
const LEAF: usize = 1 << 20;

/// What a piece of a tensor comes to.
enum Piece {
    Whole(Digest),
    Leaves(Vec<ChainingValue>),
}

fn trees(tensors: &[TensorRef<'_>], bar: &Bar) -> Result<Vec<Digest>> {
    let mut digests = vec![Algorithm::Blake3.of(&[]); tensors.len()];
    let mut tree = Tree::default();
    chunks::map_in_order(
        tensors,
        bar,
        |chunk, bytes| {
            if chunk.tensor.byte_len() <= LEAF as u64 {
                return Ok(Piece::Whole(Algorithm::Blake3.of(bytes)));
            }
            let leaf = |(number, leaf): (usize, &[u8])| {
                let offset = chunk.range.start + (number * LEAF) as u64;
                blake3::Hasher::new().set_input_offset(offset).update(leaf).finalize_non_root()
            };
            Ok(Piece::Leaves(bytes.chunks(LEAF).enumerate().map(leaf).collect()))
        },
        |chunk, piece| {
            match piece {
                Piece::Whole(digest) => digests[chunk.place] = digest,
                Piece::Leaves(leaves) => leaves.into_iter().for_each(|leaf| tree.push(leaf)),
            }
            if chunk.range.end == chunk.tensor.byte_len()
                && let Some(digest) = std::mem::take(&mut tree).root()
            {
                digests[chunk.place] = digest;
            }
            Ok(())
        },
    )?;
    Ok(digests)
}

/// BLAKE3's tree over leaves of one size, of which the last may be shorter. The left subtree of every node is
/// the largest full one that leaves something to the right.
#[derive(Default)]
struct Tree {
    leaves: usize,
    /// The roots of full subtrees, from left to right.
    stack: Vec<ChainingValue>,
}

impl Tree {
    fn push(&mut self, leaf: ChainingValue) {
        // Two subtrees of one size become one as soon as there is something to the right of them, which a
        // root has not.
        while self.stack.len() > self.leaves.count_ones() as usize {
            self.join();
        }
        self.stack.push(leaf);
        self.leaves += 1;
    }

    fn join(&mut self) {
        if let (Some(right), Some(left)) = (self.stack.pop(), self.stack.pop()) {
            self.stack.push(merge_subtrees_non_root(&left, &right, Mode::Hash));
        }
    }

    /// `None` of fewer than two leaves.
    fn root(mut self) -> Option<Digest> {
        while self.stack.len() > 2 {
            self.join();
        }
        let [left, right] = &*self.stack else { return None };
        Some(Digest(merge_subtrees_root(left, right, Mode::Hash).into()))
    }
}

fn chains(tensors: &[TensorRef<'_>], bar: &Bar) -> Result<Vec<Digest>> {
    let mut places: Vec<_> = (0..tensors.len()).collect();
    places.sort_by_key(|&place| tensors[place].byte_len());
    let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get).min(tensors.len());
    // The largest stand at the end.
    let (queue, done) = (Mutex::new(places), Mutex::new(BTreeMap::new()));
    let work = || {
        let next = || queue.lock().ok()?.pop();
        while let Some(place) = next() {
            let digest = chain(&tensors[place], bar);
            let failed = digest.is_err();
            if failed && let Ok(mut queue) = queue.lock() {
                queue.clear();
            }
            if let Ok(mut done) = done.lock() {
                done.insert(place, digest);
            }
        }
    };
    thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    let done = done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    done.into_values().collect()
}

fn chain(tensor: &TensorRef<'_>, bar: &Bar) -> Result<Digest> {
    let range = tensor.info().file_range();
    let mut memory = vec![0; (LEAF as u64).min(tensor.byte_len()) as usize];
    let (mut hasher, mut offset) = (Sha256::new(), range.start);
    while offset < range.end {
        interrupt::check()?;
        let part = &mut memory[..(LEAF as u64).min(range.end - offset) as usize];
        tensor.shard().source().read_at(offset, part).with_context(|| {
            let (file, name) = (tensor.shard().name(), safe(tensor.name()));
            format!("{file}: tensor {name:?}: its data cannot be read")
        })?;
        hasher.update(&*part);
        bar.add(part.len() as u64);
        offset += part.len() as u64;
    }
    Ok(Digest(hasher.finalize().into()))
}

/// The SHA-256 of a file, as `sha256sum` has it.
pub(crate) fn of_file(path: &Path, bar: &Bar) -> Result<Digest> {
    let mut hasher = Sha256::new();
    feed(path, |bytes| hasher.update(bytes), bar)?;
    Ok(Digest(hasher.finalize().into()))
}

/// The name that Git gives to a file's content, in hexadecimal digits.
pub(crate) fn git_blob(path: &Path, bar: &Bar) -> Result<String> {
    let len =
        std::fs::metadata(path).with_context(|| format!("{}: it cannot be read", path.display()))?.len();
    let mut hasher = sha1::Sha1::new();
    hasher.update(format!("blob {len}\0"));
    feed(path, |bytes| hasher.update(bytes), bar)?;
    Ok(format!("{:x}", hasher.finalize()))
}

/// Reads a whole file, piece by piece.
fn feed(path: &Path, mut with: impl FnMut(&[u8]), bar: &Bar) -> Result<()> {
    let mut read = || -> std::io::Result<bool> {
        let (mut file, mut memory) = (File::open(path)?, vec![0; LEAF]);
        loop {
            match file.read(&mut memory)? {
                0 => return Ok(true),
                _ if interrupt::requested() => return Ok(false),
                len => {
                    with(&memory[..len]);
                    bar.add(len as u64);
                }
            }
        }
    };
    let is_whole = read().with_context(|| format!("{}: it cannot be read", path.display()))?;
    is_whole.then_some(()).context("interrupted")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_make_the_tree_of_the_whole() {
        let bytes: Vec<u8> = (0..9 * LEAF + 5).map(|i| ((i * i) >> 7) as u8).collect();
        for len in [LEAF + 1, 2 * LEAF, 3 * LEAF, 4 * LEAF - 1, 5 * LEAF, 8 * LEAF, 8 * LEAF + 1, bytes.len()]
        {
            let mut tree = Tree::default();
            for (number, leaf) in bytes[..len].chunks(LEAF).enumerate() {
                let mut hasher = blake3::Hasher::new();
                tree.push(hasher.set_input_offset((number * LEAF) as u64).update(leaf).finalize_non_root());
            }
            assert_eq!(tree.root(), Some(Algorithm::Blake3.of(&bytes[..len])), "{len}");
        }
    }

    #[test]
    fn digests_are_read_as_they_are_written() {
        let digest = Algorithm::Sha256.of(b"abc");
        let text = digest.to_string();
        assert_eq!(text, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(Digest::parse(&text), Some(digest));
        for wrong in ["", &text[1..], &text.replace('a', "x"), &format!("{text}00")] {
            assert_eq!(Digest::parse(wrong), None);
        }
    }
}
