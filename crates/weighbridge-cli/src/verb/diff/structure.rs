//! What can be compared without reading data: names, dtypes, shapes, metadata.

use std::collections::BTreeMap;
use std::io::Write;

use anyhow::Result;
use serde::{Serialize, Serializer};
use weighbridge::{Checkpoint, Names, TensorRef};

use super::renamed::{self, Renamed};
use crate::load;
use crate::show::{self, safe};

/// How two checkpoints differ but for their values.
#[derive(Serialize)]
pub(super) struct Structure<'a> {
    pub(super) removed: Vec<Tensor<'a>>,
    pub(super) added: Vec<Tensor<'a>>,
    /// Pairs of one removed and one added tensor that may be the same.
    pub(super) renamed: Vec<Renamed<'a>>,
    pub(super) dtypes: Vec<Changed<'a, &'static str>>,
    pub(super) shapes: Vec<Changed<'a, &'a [usize]>>,
    pub(super) metadata: Vec<Changed<'a, Option<&'a str>>>,
    /// Tensors of one name and shape.
    #[serde(skip)]
    pub(super) pairs: Vec<[TensorRef<'a>; 2]>,
}

/// A tensor of one of them.
pub(super) struct Tensor<'a>(pub(super) TensorRef<'a>);

impl Serialize for Tensor<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Shown<'a> {
            name: &'a str,
            dtype: &'static str,
            shape: &'a [usize],
        }
        let Self(tensor) = self;
        Shown { name: tensor.name(), dtype: tensor.dtype().name(), shape: tensor.shape() }
            .serialize(serializer)
    }
}

/// What something of that name is in each.
#[derive(Serialize)]
pub(super) struct Changed<'a, T> {
    pub(super) name: &'a str,
    pub(super) a: T,
    pub(super) b: T,
}

impl<'a> Structure<'a> {
    /// Compares the tensors that have one of these names.
    pub(super) fn of(a: &'a Checkpoint, b: &'a Checkpoint, names: &Names) -> Result<Self> {
        let chosen = |checkpoint: &'a Checkpoint| {
            load::by_name(checkpoint).into_iter().filter(|tensor| names.contains(tensor.name()))
        };
        let (mut dtypes, mut shapes, mut pairs) = (Vec::new(), Vec::new(), Vec::new());
        let mut removed = Vec::new();
        for tensor in chosen(a) {
            let name = tensor.name();
            let Some(other) = b.tensor(name) else {
                removed.push(tensor);
                continue;
            };
            if tensor.dtype() != other.dtype() {
                dtypes.push(Changed { name, a: tensor.dtype().name(), b: other.dtype().name() });
            }
            match tensor.shape() == other.shape() {
                true => pairs.push([tensor, other]),
                false => shapes.push(Changed { name, a: tensor.shape(), b: other.shape() }),
            }
        }
        let added: Vec<_> = chosen(b).filter(|tensor| a.tensor(tensor.name()).is_none()).collect();
        let renamed = renamed::find(&removed, &added)?;
        let [removed, added] = [removed, added].map(|tensors| tensors.into_iter().map(Tensor).collect());
        Ok(Self { removed, added, renamed, dtypes, shapes, metadata: metadata(a, b), pairs })
    }

    pub(super) fn is_same(&self) -> bool {
        self.removed.is_empty()
            && self.added.is_empty()
            && self.dtypes.is_empty()
            && self.shapes.is_empty()
            && self.metadata.is_empty()
    }

    pub(super) fn print(&self, out: &mut impl Write) -> Result<()> {
        use anstyle::AnsiColor::{Green, Red, Yellow};
        let [red, green, yellow] = [Red, Green, Yellow].map(anstyle::AnsiColor::on_default);
        let tensor = |Tensor(tensor): &Tensor<'_>| {
            format!("{} {} {}", safe(tensor.name()), tensor.dtype(), show::shape(tensor.shape()))
        };
        for removed in &self.removed {
            writeln!(out, "{red}- {}{red:#}", tensor(removed))?;
        }
        for added in &self.added {
            writeln!(out, "{green}+ {}{green:#}", tensor(added))?;
        }
        for Renamed { from, to } in &self.renamed {
            writeln!(out, "{yellow}? {} may be {} now{yellow:#}", safe(from), safe(to))?;
        }
        for Changed { name, a, b } in &self.dtypes {
            writeln!(out, "{yellow}~ {}: {a} became {b}{yellow:#}", safe(name))?;
        }
        for Changed { name, a, b } in &self.shapes {
            let (a, b) = (show::shape(a), show::shape(b));
            writeln!(out, "{yellow}~ {}: {a} became {b}{yellow:#}", safe(name))?;
        }
        let value = |value: &Option<&str>| value.map_or_else(|| "nothing".to_owned(), brief);
        for Changed { name, a, b } in &self.metadata {
            let (a, b) = (value(a), value(b));
            writeln!(out, "{yellow}~ metadata {}: {a} became {b}{yellow:#}", safe(name))?;
        }
        Ok(())
    }
}

/// A text for a line: of a long one the start.
fn brief(text: &str) -> String {
    const MOST: usize = 60;
    let start: String = text.chars().take(MOST).collect();
    let more = if start.len() < text.len() { "..." } else { "" };
    format!("{:?}{more}", safe(&start))
}

/// The entries that are not the same in both.
fn metadata<'a>(a: &'a Checkpoint, b: &'a Checkpoint) -> Vec<Changed<'a, Option<&'a str>>> {
    let mut entries = BTreeMap::<&str, [Option<&str>; 2]>::new();
    for (place, checkpoint) in [a, b].into_iter().enumerate() {
        for shard in checkpoint.shards() {
            for (key, value) in shard.header().metadata().into_iter().flatten() {
                // Of two values of one key the first shard's counts.
                entries.entry(key).or_default()[place].get_or_insert(value);
            }
        }
    }
    let changed = entries.into_iter().filter(|(_, [a, b])| a != b);
    changed.map(|(name, [a, b])| Changed { name, a, b }).collect()
}
