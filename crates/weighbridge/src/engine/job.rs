//! Tiles of entries, and how they are put together into work for one thread.

use std::ops::Range;
use std::sync::Arc;

use super::schedule::Queued;
use crate::buffer::HugePage;
use crate::checkpoint::Shard;
use crate::plan::Entry;
use crate::source::Hints;

/// Work for one thread; `C` is what gives a placement the right to make a tile.
pub(super) struct Job<C> {
    /// Where the groups' memory lies, if they share it.
    pub(super) huge_page: Option<HugePage>,
    pub(super) groups: Vec<Group<C>>,
    /// Whether its sources were told that it will be read.
    is_announced: bool,
}

/// Tiles that are made one after the other.
pub(super) struct Group<C> {
    pub(super) tiles: Vec<Tile<C>>,
    /// Bytes that hold what all tiles need, to be read at once.
    pub(super) together: Option<Run>,
}

/// A tile of an entry.
pub(super) struct Tile<C> {
    /// The slot of the entry.
    pub(super) slot: usize,
    pub(super) entry: Arc<Entry>,
    /// Bytes of the entry.
    pub(super) range: Range<u64>,
    /// The bytes of the entry's shard that it needs, if they are one run.
    run: Option<Range<u64>>,
    pub(super) chunk: C,
}

/// Contiguous bytes of a shard.
#[derive(Clone)]
pub(super) struct Run {
    pub(super) shard: Arc<Shard>,
    pub(super) bytes: Range<u64>,
}

impl<C> Tile<C> {
    pub(super) fn new(slot: usize, entry: &Arc<Entry>, range: Range<u64>, chunk: C) -> Self {
        let run = entry.run_of(&range).map(|(_, bytes)| bytes);
        Self { slot, entry: Arc::clone(entry), range, run, chunk }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.range.end - self.range.start
    }

    fn run(&self) -> Option<(&Arc<Shard>, &Range<u64>)> {
        Some((self.entry.inputs().first()?.shard(), self.run.as_ref()?))
    }

    /// The same, if a read costs more than its bytes do.
    fn small_run(&self) -> Option<(&Arc<Shard>, &Range<u64>)> {
        let (shard, bytes) = self.run()?;
        (self.range.end <= shard.hints().read_through as u64).then_some((shard, bytes))
    }
}

impl<C> Group<C> {
    fn of(tile: Tile<C>) -> Self {
        Self { tiles: vec![tile], together: None }
    }
}

impl<C> Job<C> {
    pub(super) fn new(huge_page: Option<HugePage>, groups: Vec<Group<C>>) -> Self {
        Self { huge_page, groups, is_announced: false }
    }

    pub(super) fn of(tile: Tile<C>) -> Self {
        Self::new(None, vec![Group::of(tile)])
    }
}

impl<C> Queued for Job<C> {
    type Read = Run;

    fn is_for(&self, slot: usize) -> bool {
        self.groups.iter().any(|group| group.tiles.iter().any(|tile| tile.slot == slot))
    }

    fn bytes(&self) -> u64 {
        self.groups.iter().flat_map(|group| &group.tiles).map(Tile::bytes).sum()
    }

    fn announce(&mut self) -> Vec<Run> {
        if std::mem::replace(&mut self.is_announced, true) {
            return Vec::new();
        }
        let of_tile = |tile: &Tile<C>| {
            let (shard, bytes) = tile.run()?;
            Some(Run { shard: Arc::clone(shard), bytes: bytes.clone() })
        };
        let of_group = |group: &Group<C>| match &group.together {
            Some(run) => vec![run.clone()],
            None => group.tiles.iter().filter_map(of_tile).collect(),
        };
        self.groups.iter().flat_map(of_group).collect()
    }
}

/// Groups tiles: those that are so small that a read of their own costs more than their bytes do share one.
pub(super) fn coalesce<C>(mut tiles: Vec<Tile<C>>) -> Vec<Group<C>> {
    if tiles.iter().filter(|tile| tile.small_run().is_some()).count() > 1 {
        // Stable, and large tiles first: what is not coalesced keeps its order.
        tiles.sort_by_key(|tile| tile.small_run().map(|(shard, bytes)| (shard.number(), bytes.start)));
    }
    let mut groups: Vec<Group<C>> = Vec::new();
    // Of the last group, the bytes that are wanted.
    let mut wanted = 0;
    for tile in tiles {
        let Some((shard, bytes)) = tile.small_run() else {
            groups.push(Group::of(tile));
            continue;
        };
        let len = bytes.end - bytes.start;
        if let Some(Group { tiles, together: Some(run) }) = groups.last_mut() {
            let hints = shard.hints();
            let is_near = Arc::ptr_eq(&run.shard, shard)
                && bytes.start.checked_sub(run.bytes.end).is_some_and(|gap| {
                    let unwanted = bytes.end - run.bytes.start - wanted - len;
                    gap <= hints.read_through as u64 && (is_slow(&hints) || unwanted <= wanted / 64)
                });
            if is_near && bytes.end - run.bytes.start <= most_together(&hints) {
                run.bytes.end = bytes.end;
                tiles.push(tile);
                wanted += len;
                continue;
            }
        }
        let together = Some(Run { shard: Arc::clone(shard), bytes: bytes.clone() });
        groups.push(Group { tiles: vec![tile], together });
        wanted = len;
    }
    for group in &mut groups {
        // One alone is read straight into its destination.
        group.together = group.together.take().filter(|_| group.tiles.len() > 1);
    }
    groups
}

/// Whether a request costs more than the bytes of a gap. On a local disk it does not, so that little more is read than is
/// needed; what costs is what small tensors that lie together would be one by one.
fn is_slow(hints: &Hints) -> bool {
    let local = Hints::default();
    hints.concurrency > local.concurrency || hints.read_through > local.read_through
}

/// The bytes that are read at once for several tiles; on a local disk they stay in the cache.
fn most_together(hints: &Hints) -> u64 {
    const MOST: u64 = 4 << 20;
    if hints.is_far() {
        return hints.chunk as u64;
    }
    (hints.read_through as u64).saturating_mul(16).min(MOST)
}
