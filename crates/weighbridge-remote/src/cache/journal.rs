//! What a journal looks like: 64 bytes that say of which file it is, then records of 32 bytes.
//!
//! | bytes | header | record |
//! |---|---|---|
//! | 0..8 | `wbcache1` | offset in the file |
//! | 8..16 | the file's size | length of the run, at most [`LONGEST`] |
//! | 16..24 | XXH3 of its name | XXH3 of the run |
//! | 24..32 | XXH3 of bytes 0 to 24 | XXH3 of bytes 0 to 24, seeded with the header's |
//! | 32..40 | the process that writes | |
//! | 40..64 | zero | |
//!
//! All numbers are little-endian. A record counts if its own checksum fits, and then only if that of its run does: so
//! it makes no difference in which order, and whether, the disk got what was written.

use std::fs::File;

use twox_hash::XxHash3_64;

use super::files;
use super::ranges::Record;

const MAGIC: &[u8; 8] = b"wbcache1";
pub(super) const HEADER: u64 = 64;
pub(super) const RECORD: u64 = 32;

/// The longest run of a record: what has to be read once to know that any byte of it is right.
pub(super) const LONGEST: usize = 1 << 20;

/// More records than any file has; a journal with more is none.
const MOST: u64 = 1 << 22;

/// What ties a journal and its records to one file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Format {
    size: u64,
    start: [u8; 32],
    seed: u64,
}

/// The checksum of a run.
pub(super) fn sum(bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot(bytes)
}

fn word(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|word| word.try_into().ok()).map_or(0, u64::from_le_bytes)
}

impl Format {
    pub(super) fn of(name: &str, size: u64) -> Self {
        let mut start = [0; 32];
        start[..8].copy_from_slice(MAGIC);
        start[8..16].copy_from_slice(&size.to_le_bytes());
        start[16..24].copy_from_slice(&sum(name.as_bytes()).to_le_bytes());
        let seed = sum(&start[..24]);
        start[24..].copy_from_slice(&seed.to_le_bytes());
        Self { size, start, seed }
    }

    pub(super) fn header(&self) -> Vec<u8> {
        let mut header = self.start.to_vec();
        header.extend(u64::from(std::process::id()).to_le_bytes());
        header.resize(HEADER as usize, 0);
        header
    }

    /// Whether a journal is one, and of this file.
    pub(super) fn fits(&self, journal: &File) -> bool {
        let mut start = [0; 32];
        files::read_at(journal, 0, &mut start).is_ok() && start == self.start
    }

    pub(super) fn record(&self, record: &Record) -> [u8; RECORD as usize] {
        let mut bytes = [0; RECORD as usize];
        bytes[..8].copy_from_slice(&record.offset.to_le_bytes());
        bytes[8..16].copy_from_slice(&u64::from(record.len).to_le_bytes());
        bytes[16..24].copy_from_slice(&record.sum.to_le_bytes());
        let seal = XxHash3_64::oneshot_with_seed(self.seed, &bytes[..24]);
        bytes[24..].copy_from_slice(&seal.to_le_bytes());
        bytes
    }

    fn parse(&self, bytes: &[u8]) -> Option<Record> {
        if XxHash3_64::oneshot_with_seed(self.seed, &bytes[..24]) != word(bytes, 24) {
            return None;
        }
        let (offset, len, sum) = (word(bytes, 0), word(bytes, 8), word(bytes, 16));
        let fits = len > 0 && len <= LONGEST as u64 && offset.checked_add(len)? <= self.size;
        Some(Record { offset, len: u32::try_from(len).ok().filter(|_| fits)?, sum })
    }

    /// Reads the records from an offset on: where the last whole one ends, and how many were not valid.
    ///
    /// The last one may be being written: unless `all`, it is left for the next time if it is not valid.
    pub(super) fn read(
        &self,
        journal: &File,
        from: u64,
        all: bool,
        mut take: impl FnMut(Record),
    ) -> (u64, u64) {
        let mut at = from.max(HEADER);
        let mut bad = 0;
        let len = journal.metadata().map_or(0, |data| data.len()).min(HEADER + MOST * RECORD);
        let mut buf = Vec::new();
        while at + RECORD <= len {
            let count = ((len - at) / RECORD).min(1 << 15);
            buf.resize((count * RECORD) as usize, 0);
            if files::read_at(journal, at, &mut buf).is_err() {
                break;
            }
            for bytes in buf.chunks_exact(RECORD as usize) {
                match self.parse(bytes) {
                    Some(record) => take(record),
                    None if !all && at + 2 * RECORD > len => return (at, bad),
                    None => bad += 1,
                }
                at += RECORD;
            }
        }
        (at, bad)
    }
}

/// Which process wrote to it last.
pub(super) fn writer(journal: &File) -> Option<u32> {
    let mut id = [0; 8];
    files::read_at(journal, 32, &mut id).ok()?;
    u32::try_from(u64::from_le_bytes(id)).ok().filter(|id| *id != 0)
}
