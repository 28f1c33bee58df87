//! The tree of modules that the names make when they are split at dots, with equal numbered siblings folded
//! into one.
//!
//! Sorted by path, the tensors of a module stand side by side, so a node is a range of them and children are
//! found when somebody asks. Nothing is kept for a node, whatever names a file may have.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use weighbridge::{TensorRef, natural_order};

use crate::shown::Shown;

/// Deeper than this, the rest of a name is one name: the tree is walked recursively, and no model is as deep.
const DEEPEST: usize = 64;

/// The order of siblings, and of tensors in a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    /// By name, numbers in it by value
    Name,
    /// The most bytes first
    Size,
    /// As the data lies in the files
    Offset,
}

/// Compares names part by part, so that those that begin with the same parts stand together.
pub fn by_path(a: &str, b: &str) -> Ordering {
    let same = a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
    // The first parts that differ, or of which one ends sooner, begin behind the last dot that both have.
    let start = a.as_bytes()[..same].iter().rposition(|&byte| byte == b'.').map_or(0, |dot| dot + 1);
    let part = |name: &str| name[start..].find('.').map_or(name.len(), |dot| start + dot);
    let (end_a, end_b) = (part(a), part(b));
    natural_order(&a[start..end_a], &b[start..end_b]).then_with(|| a.len().cmp(&b.len()))
}

/// One line of the tree: a module or a tensor, or several siblings that are equal but for their number.
#[derive(Clone, Debug)]
pub struct Node<'t, 'c> {
    /// All tensors, sorted by path.
    tensors: &'t [TensorRef<'c>],
    /// Where the tensors of each of the modules that it stands for begin.
    starts: Vec<usize>,
    /// How many tensors each has.
    len: usize,
    /// Its own part of the name in the first of them.
    part: std::ops::Range<usize>,
    /// The numbers of the siblings that it stands for, if it does.
    numbers: Vec<u64>,
    depth: usize,
    shown: Shown,
}

impl<'t, 'c> Node<'t, 'c> {
    /// The module of all tensors, which must be sorted [`by_path`].
    pub fn root(tensors: &'t [TensorRef<'c>], shown: Shown) -> Self {
        Self {
            tensors,
            starts: vec![0],
            len: tensors.len(),
            part: 0..0,
            numbers: Vec::new(),
            depth: 0,
            shown,
        }
    }

    /// Whether it is the module of all tensors.
    pub fn is_root(&self) -> bool {
        self.depth == 0
    }

    fn first(&self) -> &'t [TensorRef<'c>] {
        self.starts.first().map_or(&[], |&start| &self.tensors[start..start + self.len])
    }

    /// The tensor, if it is one: the first of those that it stands for.
    pub fn tensor(&self) -> Option<TensorRef<'c>> {
        match self.first() {
            [tensor] if self.depth > 0 && self.part.end == tensor.name().len() => Some(*tensor),
            _ => None,
        }
    }

    /// Its part of the name, numbers as ranges: `[0-3,7]`.
    pub fn label(&self) -> String {
        match (&*self.numbers, self.first()) {
            ([], [first, ..]) => first.name()[self.part.clone()].to_owned(),
            (numbers, _) => ranges(numbers),
        }
    }

    /// The name of the module without the last dot, of the first of those that it stands for.
    pub fn path(&self) -> &'c str {
        self.first().first().map_or("", |first| &first.name()[..self.part.end])
    }

    /// What is told of tensors that are stored in blocks.
    pub fn shown(&self) -> Shown {
        self.shown
    }

    /// The numbers that are folded in it; none if nothing is.
    pub fn numbers(&self) -> &[u64] {
        &self.numbers
    }

    /// Its number, if its name is one.
    pub fn number(&self) -> Option<u64> {
        let first = self.first().first()?;
        number(&first.name()[self.part.clone()])
    }

    /// Places of all tensors that it stands for.
    pub fn places(&self) -> impl Iterator<Item = usize> {
        self.starts.iter().flat_map(|&start| start..start + self.len)
    }

    /// How many tensors it stands for.
    pub fn count(&self) -> u64 {
        (self.starts.len() * self.len) as u64
    }

    /// Their bytes.
    pub fn bytes(&self) -> u64 {
        self.first().iter().map(|tensor| self.shown.bytes(tensor)).sum::<u64>() * self.starts.len() as u64
    }

    /// Their elements.
    pub fn elements(&self) -> u64 {
        let sum = self.first().iter().fold(0_u64, |sum, tensor| sum.saturating_add(tensor.elements()));
        sum.saturating_mul(self.starts.len() as u64)
    }

    /// The children, equal ones folded.
    pub fn children(&self, sort: Sort) -> Vec<Self> {
        let mut children = fold(self.parts());
        match sort {
            Sort::Name => {}
            Sort::Size => children.sort_by_cached_key(|child| std::cmp::Reverse(child.bytes())),
            Sort::Offset => children.sort_by_cached_key(Self::position),
        }
        children
    }

    fn position(&self) -> Option<(usize, u64)> {
        self.first().iter().map(position).min()
    }

    /// The children, each for itself.
    pub fn parts(&self) -> Vec<Self> {
        let first = self.first();
        let inside = if self.depth == 0 { 0 } else { self.part.end + 1 };
        let mut children: Vec<Self> = Vec::new();
        if self.tensor().is_some() {
            return children;
        }
        let mut place = 0;
        while let Some(tensor) = first.get(place) {
            let name = tensor.name();
            let end = match name[inside..].find('.') {
                Some(dot) if self.depth + 1 < DEEPEST => inside + dot,
                _ => name.len(),
            };
            // A tensor that has the name of a module stands before it, on its own.
            let belongs = |other: &TensorRef<'_>| {
                let (name, other) = (name.as_bytes(), other.name().as_bytes());
                other.starts_with(&name[..end]) && other.get(end) == name.get(end)
            };
            let len = if end == name.len() { 1 } else { first[place..].partition_point(belongs) };
            children.push(Self {
                tensors: self.tensors,
                starts: self.starts.iter().map(|start| start + place).collect(),
                len,
                part: inside..end,
                numbers: Vec::new(),
                depth: self.depth + 1,
                shown: self.shown,
            });
            place += len;
        }
        children
    }

    /// What must be equal in siblings that are folded: of each tensor the rest of the name, dtype and shape.
    fn structure(&self) -> impl Iterator<Item = (&'c str, &'static str, &'c [usize])> {
        let (inside, shown) = (self.part.end, self.shown);
        self.first().iter().map(move |tensor| (&tensor.name()[inside..], shown.dtype(tensor), tensor.shape()))
    }
}

/// Where the data of a tensor lies.
pub fn position(tensor: &TensorRef<'_>) -> (usize, u64) {
    (tensor.shard_number(), tensor.info().data_offsets().start)
}

/// Makes one node of those that are equal but for their number.
fn fold<'t, 'c>(nodes: Vec<Node<'t, 'c>>) -> Vec<Node<'t, 'c>> {
    let hasher = RandomState::new();
    let mut known: HashMap<u64, Vec<usize>> = HashMap::new();
    let mut folded: Vec<Node<'t, 'c>> = Vec::with_capacity(nodes.len());
    for node in nodes {
        let Some(number) = node.number() else {
            folded.push(node);
            continue;
        };
        // Texts one after the other must not hash like one text: each part is hashed for itself.
        let parts = node.structure().map(|part| hasher.hash_one(part));
        let alike = known.entry(parts.fold(0, |hash, part| hasher.hash_one((hash, part)))).or_default();
        let equal = alike.iter().copied().find(|&other| folded[other].structure().eq(node.structure()));
        match equal {
            Some(other) => {
                folded[other].starts.extend(node.starts);
                folded[other].numbers.push(number);
            }
            None => {
                alike.push(folded.len());
                folded.push(Node { numbers: vec![number], ..node });
            }
        }
    }
    for node in &mut folded {
        if node.numbers.len() == 1 {
            node.numbers.clear();
        }
    }
    folded
}

/// The number that a name is, written as numbers are.
fn number(name: &str) -> Option<u64> {
    let plain = name.bytes().all(|byte| byte.is_ascii_digit()) && (name == "0" || !name.starts_with('0'));
    // The greatest has no next one.
    plain.then(|| name.parse().ok()).flatten().filter(|&number: &u64| number < u64::MAX)
}

/// Ascending numbers, short: `[0-3,5,7-9]`.
pub fn ranges(numbers: &[u64]) -> String {
    let runs = numbers.chunk_by(|a, b| a + 1 == *b);
    let runs: Vec<_> = runs
        .filter_map(|run| {
            let (first, last) = (run.first()?, run.last()?);
            Some(if first == last { first.to_string() } else { format!("{first}-{last}") })
        })
        .collect();
    format!("[{}]", runs.join(","))
}

#[cfg(test)]
mod tests;
