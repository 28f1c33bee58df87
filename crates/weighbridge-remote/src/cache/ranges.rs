//! Which parts of a file are there: records that do not overlap, each with its checksum.

use std::collections::BTreeMap;
use std::ops::Range;

/// A run of bytes that was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) offset: u64,
    pub(super) len: u32,
    /// XXH3 of the bytes.
    pub(super) sum: u64,
}

impl Record {
    pub(super) fn range(&self) -> Range<u64> {
        self.offset..self.offset + u64::from(self.len)
    }
}

#[derive(Clone, Copy, Debug)]
struct Kept {
    record: Record,
    /// Its bytes were read and fitted, in this process, or come from it.
    proven: bool,
}

/// Records by offset.
#[derive(Debug, Default)]
pub(super) struct Records {
    kept: BTreeMap<u64, Kept>,
    bytes: u64,
}

impl Records {
    /// How many bytes they cover.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Adds a record in place of those that it overlaps: it was written later, because something was wrong with them.
    pub(super) fn add(&mut self, record: Record, proven: bool) {
        self.clear(&record.range());
        self.bytes += u64::from(record.len);
        self.kept.insert(record.offset, Kept { record, proven });
    }

    fn forget(&mut self, offset: u64) {
        if let Some(kept) = self.kept.remove(&offset) {
            self.bytes -= u64::from(kept.record.len);
        }
    }

    /// Takes a record back whose bytes do not fit it, unless it is another by now.
    pub(super) fn refute(&mut self, record: &Record) {
        if self.kept.get(&record.offset).is_some_and(|kept| kept.record == *record) {
            self.forget(record.offset);
        }
    }

    /// Takes all records back that reach into a range.
    pub(super) fn clear(&mut self, range: &Range<u64>) {
        let offsets: Vec<u64> = self.over(range).map(|kept| kept.record.offset).collect();
        offsets.into_iter().for_each(|offset| self.forget(offset));
    }

    pub(super) fn prove(&mut self, record: &Record) {
        if let Some(kept) = self.kept.get_mut(&record.offset).filter(|kept| kept.record == *record) {
            kept.proven = true;
        }
    }

    fn over(&self, range: &Range<u64>) -> impl Iterator<Item = &Kept> {
        // They do not overlap, so that only the last that starts before can reach into the range.
        let first = self.kept.range(..=range.start).next_back().map_or(range.start, |(offset, _)| *offset);
        let (start, end) = (range.start, range.end);
        let reaches = move |kept: &&Kept| start < end && kept.record.range().end > start;
        self.kept.range(first..end.max(first)).map(|(_, kept)| kept).filter(reaches)
    }

    /// The parts of a range that no record covers.
    pub(super) fn gaps(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let mut gaps = Vec::new();
        let mut at = range.start;
        for kept in self.over(&range) {
            let record = kept.record.range();
            if record.start > at {
                gaps.push(at..record.start);
            }
            at = at.max(record.end);
        }
        if at < range.end {
            gaps.push(at..range.end);
        }
        gaps
    }

    /// The records that are not proven yet, of a range that they cover; `None` if they do not.
    pub(super) fn unproven(&self, range: &Range<u64>) -> Option<Vec<Record>> {
        let mut at = range.start;
        let mut found = Vec::new();
        for kept in self.over(range) {
            let record = kept.record;
            if record.offset > at {
                return None;
            }
            at = record.range().end;
            if !kept.proven {
                found.push(record);
            }
        }
        (at >= range.end).then_some(found)
    }

    /// All of them.
    pub(super) fn all(&self) -> Vec<Record> {
        self.kept.values().map(|kept| kept.record).collect()
    }
}

/// Takes the second ranges away from the first. Both are in order and do not overlap.
pub(super) fn without(ranges: Vec<Range<u64>>, taken: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut left = ranges;
    for taken in taken {
        left = left
            .into_iter()
            .flat_map(|range| {
                let before = range.start..range.end.min(taken.start);
                let after = range.start.max(taken.end)..range.end;
                [before, after]
            })
            .filter(|range| range.start < range.end)
            .collect();
    }
    left
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::single_range_in_vec_init)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_taken_is_not_left() {
        assert_eq!(without(vec![0..10, 20..30], &[5..6, 8..25]), [0..5, 6..8, 25..30]);
        assert_eq!(without(vec![0..10], &[0..10]), []);
        assert_eq!(without(vec![0..10], &[]), [0..10]);
    }

    proptest! {
        /// Against an array of bytes.
        #[test]
        fn records_cover_what_was_added(
            added in prop::collection::vec((0..100_u64, 1..30_u32, any::<bool>()), 0..20), start in 0..130_u64, len in 0..60_u64,
        ) {
            let mut records = Records::default();
            let mut owner: Vec<Option<usize>> = vec![None; 200];
            for (index, (offset, len, proven)) in added.iter().enumerate() {
                records.add(Record { offset: *offset, len: *len, sum: index as u64 }, *proven);
                let range = *offset as usize..*offset as usize + *len as usize;
                let gone: Vec<_> = owner[range.clone()].iter().copied().flatten().collect();
                owner.iter_mut().filter(|owner| owner.is_some_and(|owner| gone.contains(&owner))).for_each(|o| *o = None);
                owner[range].fill(Some(index));
            }
            prop_assert_eq!(records.bytes(), owner.iter().flatten().count() as u64);
            let range = start..start + len;
            let gaps = records.gaps(range.clone());
            for at in range.clone() {
                let missing = gaps.iter().any(|gap| gap.contains(&at));
                prop_assert_eq!(missing, owner[at as usize].is_none());
            }
            prop_assert_eq!(records.unproven(&range).is_some(), gaps.is_empty());
            if let Some(unproven) = records.unproven(&range) {
                let mut expected: Vec<usize> = range.filter_map(|at| owner[at as usize]).collect();
                expected.dedup();
                expected.retain(|index| !added[*index].2);
                prop_assert_eq!(unproven.iter().map(|record| record.sum as usize).collect::<Vec<_>>(), expected);
            }
            for record in records.all() {
                records.refute(&record);
            }
            prop_assert_eq!(records.bytes(), 0);
        }
    }
}
