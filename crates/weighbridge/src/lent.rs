//! Bytes of a checkpoint that is in memory, kept there by whoever has them.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::checkpoint::Checkpoint;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::plan::{Entry, Piece};
use crate::source::Source;

/// A tensor's bytes where they are: in memory that the checkpoint was [opened from](Checkpoint::from_bytes), or in a
/// [mapped](crate::OpenOptions::map) file. They stay there as long as this lives; no copy was made.
///
/// Nothing says that the bytes are aligned to the tensor's elements: [`is_aligned`](Self::is_aligned) does.
#[derive(Clone)]
pub struct Lent {
    source: Arc<dyn Source>,
    range: Range<usize>,
    dtype: Dtype,
    shape: Vec<usize>,
}

impl Lent {
    /// The bytes, which are little-endian.
    pub fn as_bytes(&self) -> &[u8] {
        self.source.as_bytes().and_then(|bytes| bytes.get(self.range.clone())).unwrap_or_default()
    }

    /// The type of the elements.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The size of each dimension, in elements.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Whether the bytes begin at a multiple of the elements' size.
    pub fn is_aligned(&self) -> bool {
        let size = (self.dtype.bits() as usize / 8).clamp(1, 8);
        self.as_bytes().as_ptr().addr().is_multiple_of(size)
    }
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl fmt::Debug for Lent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lent")
            .field("dtype", &self.dtype)
            .field("shape", &self.shape)
            .field("range", &self.range)
            .finish_non_exhaustive()
    }
}

impl Checkpoint {
    /// An entry's bytes, if the checkpoint has them in memory just as the entry wants them: in its dtype, one behind
    /// the other, and in the machine's byte order. `None` says that they have to be made.
    ///
    /// # Errors
    ///
    /// Fails when the bytes of a mapped file cannot be brought in; see [`Populate`](crate::Populate).
    pub fn lend(&self, entry: &Entry) -> Result<Option<Lent>> {
        let lent = self.lend_as_it_is(entry);
        if let Some(lent) = &lent {
            self.bring_in(entry, lent)?;
        }
        Ok(lent)
    }

    /// The same, whether or not the bytes of a mapped file are in memory.
    pub(crate) fn lend_as_it_is(&self, entry: &Entry) -> Option<Lent> {
        let (source, range) = self.lendable(entry)?;
        let (source, dtype, shape) = (Arc::clone(source), entry.dtype(), entry.shape().to_vec());
        Some(Lent { source, range, dtype, shape })
    }

    /// Brings in the bytes of what was lent.
    pub(crate) fn bring_in(&self, entry: &Entry, lent: &Lent) -> Result<()> {
        let bytes = lent.range.start as u64..lent.range.end as u64;
        lent.source.populate(bytes).map_err(|error| {
            let error = Error::io("its bytes cannot be brought in", error).in_tensor(entry.name());
            match entry.inputs().first().and_then(|input| self.shards().get(input.shard())) {
                Some(shard) => shard.blame(error),
                None => error,
            }
        })
    }

    /// Where the bytes of an entry are, if they are in memory.
    fn lendable(&self, entry: &Entry) -> Option<(&Arc<dyn Source>, Range<usize>)> {
        let [input] = entry.inputs() else { return None };
        let source = self.shards().get(input.shard())?.source();
        let bytes = source.as_bytes()?;
        let native = cfg!(target_endian = "little") || entry.dtype().bits() <= 8;
        if !native || !entry.operation().is_direct(entry.inputs()) {
            return None;
        }
        let start = match &*entry.operation().gather(entry.inputs(), 0..entry.byte_len()) {
            [] if entry.byte_len() == 0 => input.range().start,
            [Piece { input: 0, bytes }]
                if bytes.end.checked_sub(bytes.start)? == entry.byte_len()
                    && bytes.end <= input.range().end - input.range().start =>
            {
                input.range().start + bytes.start
            }
            _ => return None,
        };
        let range = usize::try_from(start).ok()?..usize::try_from(start + entry.byte_len()).ok()?;
        bytes.get(range.clone()).map(|_| (source, range))
    }
}
