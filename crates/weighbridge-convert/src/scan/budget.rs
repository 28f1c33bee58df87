//! What may be spent on a file, so that none takes time or memory without end, however it is made.

/// Members that are looked into, of all archives of a file together.
const MOST_MEMBERS: u64 = 1 << 20;
/// Opcodes that are followed: more than a checkpoint of a million tensors has.
const MOST_OPCODES: u64 = 150_000_000;
/// What is compressed may become this many times as long as the file, and 256 MiB more.
const MOST_RATIO: u64 = 16;
const MOST_MORE: u64 = 256 << 20;
/// Streams of what is compressed, and one more for each kibibyte of the file: bzip2 takes a while for each,
/// however short.
const MOST_STREAMS: u64 = 20_000;
/// What is stored may be read this many times, and a gibibyte more: members may overlap, each as long as the
/// file.
const MOST_READ: u64 = 32;
const MOST_MORE_READ: u64 = 1 << 30;
/// Bytes of what is told.
const MOST_TOLD: u64 = 64 << 20;
/// The longest directory of an archive, or of archives within each other those of all together.
const LONGEST_DIRECTORY: u64 = 64 << 20;
/// Archives that stand before others.
const MOST_BEFORE: u64 = 1000;

/// What is left of everything that a scan spends.
pub(super) struct Budget {
    /// Members that may still be looked into.
    pub(super) members: Left,
    /// Opcodes that may still be followed.
    pub(super) opcodes: u64,
    /// Bytes that may still be decompressed.
    pub(super) decompressed: Left,
    /// Streams that may still be decompressed.
    pub(super) streams: Left,
    /// Bytes of stored members that may still be looked at.
    pub(super) stored: Left,
    /// Bytes that may still be told.
    pub(super) told: Left,
    /// Bytes of the directories of archives that may be open at a time.
    pub(super) directories: Left,
    /// Archives that may still stand before others.
    pub(super) archives_before: Left,
}

impl Budget {
    /// That of a file of `size` bytes.
    pub(super) fn of_file(size: u64) -> Self {
        Self {
            members: Left(MOST_MEMBERS),
            opcodes: MOST_OPCODES,
            decompressed: Left(size.saturating_mul(MOST_RATIO).saturating_add(MOST_MORE)),
            streams: Left(MOST_STREAMS + size / 1024),
            stored: Left(size.saturating_mul(MOST_READ).saturating_add(MOST_MORE_READ)),
            told: Left(MOST_TOLD),
            directories: Left(LONGEST_DIRECTORY),
            archives_before: Left(MOST_BEFORE),
        }
    }
}

/// What is left of one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Left(u64);

impl Left {
    /// Takes some of it; where not as much is left, takes nothing and returns `false`.
    #[must_use]
    pub(super) fn take(&mut self, amount: u64) -> bool {
        let left = self.0.checked_sub(amount);
        self.0 = left.unwrap_or(self.0);
        left.is_some()
    }

    /// Gives back what was taken.
    pub(super) fn give_back(&mut self, amount: u64) {
        self.0 = self.0.saturating_add(amount);
    }
}
