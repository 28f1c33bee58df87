//! Parts of entries, and how they are put together into work for one thread.

use std::ops::Range;
use std::sync::Arc;

use super::placement::caught;
use crate::buffer::HugePage;
use crate::checkpoint::Checkpoint;
use crate::plan::{Entry, Piece};
use crate::source::Hints;

/// Work for one thread; `C` is what gives a placement the right to make a part.
pub(super) struct Job<C> {
    /// Where the groups' memory lies, if they share it.
    pub(super) huge_page: Option<HugePage>,
    pub(super) groups: Vec<Group<C>>,
    /// Whether its source was told that it will be read.
    pub(super) announced: bool,
}

/// Parts that are made one after the other.
pub(super) struct Group<C> {
    pub(super) parts: Vec<Part<C>>,
    /// Bytes of a shard that hold what all parts need, to be read at once.
    pub(super) together: Option<(usize, Range<u64>)>,
}

/// A piece of an entry.
pub(super) struct Part<C> {
    pub(super) place: usize,
    pub(super) entry: Arc<Entry>,
    /// Bytes of the entry.
    pub(super) tile: Range<u64>,
    pub(super) chunk: C,
}

impl<C> Part<C> {
    pub(super) fn bytes(&self) -> u64 {
        self.tile.end - self.tile.start
    }
}

impl<C> Group<C> {
    fn of(part: Part<C>) -> Self {
        Self { parts: vec![part], together: None }
    }
}

impl<C> Job<C> {
    pub(super) fn new(huge_page: Option<HugePage>, groups: Vec<Group<C>>) -> Self {
        Self { huge_page, groups, announced: false }
    }

    pub(super) fn of(part: Part<C>) -> Self {
        Self::new(None, vec![Group::of(part)])
    }

    pub(super) fn has(&self, place: usize) -> bool {
        self.groups.iter().any(|group| group.parts.iter().any(|part| part.place == place))
    }

    /// The bytes of entries that it makes.
    pub(super) fn bytes(&self) -> u64 {
        self.groups.iter().flat_map(|group| &group.parts).map(Part::bytes).sum()
    }

    /// The bytes of shards that it will read, as far as they lie together.
    pub(super) fn reads(&self) -> Vec<(usize, Range<u64>)> {
        let of_group = |group: &Group<C>| match &group.together {
            Some(read) => vec![read.clone()],
            None => group.parts.iter().filter_map(|part| read_of(&part.entry, part.tile.clone())).collect(),
        };
        self.groups.iter().flat_map(of_group).collect()
    }
}

/// The bytes of a shard that a tile of an entry needs, if they are one piece of one tensor.
pub(super) fn read_of(entry: &Entry, tile: Range<u64>) -> Option<(usize, Range<u64>)> {
    let [input] = entry.inputs() else { return None };
    let gather = |tile| entry.operation().gather(entry.inputs(), tile);
    // A look at the beginning saves a long list of pieces that would be of no use.
    const BEGINNING: u64 = 16 << 10;
    // An operation that panics does so again when it is carried out, and is reported then.
    let look = || {
        let many = tile.end - tile.start > BEGINNING && gather(tile.start..tile.start + BEGINNING).len() > 1;
        Ok(if many { Vec::new() } else { gather(tile) })
    };
    let pieces = caught("it was planned", look).ok()?;
    let [Piece { input: 0, bytes }] = &*pieces else { return None };
    let start = input.range().start;
    Some((input.shard(), start + bytes.start..start + bytes.end))
}

/// Whether all that an entry is made of lies in one place.
pub(super) fn lies_together(entry: &Entry) -> bool {
    read_of(entry, 0..entry.byte_len()).is_some()
}

/// Groups parts: those that are so small that a read of their own costs more than their bytes do share one.
pub(super) fn coalesce<C>(checkpoint: &Checkpoint, parts: Vec<Part<C>>) -> Vec<Group<C>> {
    let mut groups: Vec<Group<C>> = Vec::new();
    let mut parts: Vec<_> = parts.into_iter().map(|part| (small_read(checkpoint, &part), part)).collect();
    if parts.iter().filter(|(small, _)| small.is_some()).count() > 1 {
        // Stable, and large parts first: what is not coalesced keeps its order.
        parts.sort_by_key(|(small, _)| small.as_ref().map(|small| (small.shard, small.bytes.start)));
    }
    for (small, part) in parts {
        let Some(SmallRead { shard, bytes, hints }) = small else {
            groups.push(Group::of(part));
            continue;
        };
        if let Some(Group { parts, together: Some((last, range)) }) = groups.last_mut() {
            let gap = bytes.start.checked_sub(range.end);
            let near = *last == shard && gap.is_some_and(|gap| gap <= hints.read_through as u64);
            if near && bytes.end - range.start <= most_together(&hints) {
                range.end = bytes.end;
                parts.push(part);
                continue;
            }
        }
        groups.push(Group { parts: vec![part], together: Some((shard, bytes)) });
    }
    for group in &mut groups {
        // One alone is read straight into its place.
        group.together = group.together.take().filter(|_| group.parts.len() > 1);
    }
    groups
}

/// A read that costs more than its bytes.
struct SmallRead {
    shard: usize,
    bytes: Range<u64>,
    hints: Hints,
}

fn small_read<C>(checkpoint: &Checkpoint, part: &Part<C>) -> Option<SmallRead> {
    let [input] = part.entry.inputs() else { return None };
    let hints = checkpoint.shards().get(input.shard())?.hints();
    if part.tile.end > hints.read_through as u64 {
        return None;
    }
    let (shard, bytes) = read_of(&part.entry, part.tile.clone())?;
    Some(SmallRead { shard, bytes, hints })
}

/// So many bytes are read at once for several parts; on a local disk they stay in the cache.
fn most_together(hints: &Hints) -> u64 {
    const MOST: u64 = 4 << 20;
    (hints.read_through as u64).saturating_mul(16).min(MOST)
}
