//! A source for whoever wants to read and seek.

use std::io::{self, BufRead, Read, Seek, SeekFrom};
use std::ops::Range;
use std::thread;

use super::Source;

/// Bytes that are read ahead of small reads.
const BUFFER: usize = 64 << 10;
/// What a thread reads at least.
const SHARE: usize = 4 << 20;

/// Reads a [`Source`] from front to back, and seeks: what [`Read`] and [`Seek`] are asked for, as by Candle's
/// readers of GGUF.
///
/// Small reads come out of a buffer; large ones go past it, and are divided among as many threads as there
/// are cores.
///
/// ```
/// use std::io::{Read, Seek, SeekFrom};
/// use weighbridge::source::{MemorySource, SourceReader};
///
/// # fn main() -> std::io::Result<()> {
/// let mut reader = SourceReader::new(MemorySource(*b"headtail"));
/// reader.seek(SeekFrom::End(-4))?;
/// let mut tail = String::new();
/// reader.read_to_string(&mut tail)?;
/// assert_eq!(tail, "tail");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct SourceReader<S> {
    source: S,
    /// May be behind the end.
    position: u64,
    /// Where the buffer is from.
    buffered: Range<u64>,
    buffer: Vec<u8>,
    threads: usize,
}

impl<S: Source> SourceReader<S> {
    /// Reads `source` from its start.
    pub fn new(source: S) -> Self {
        let threads = thread::available_parallelism().map_or(1, usize::from);
        Self { source, position: 0, buffered: 0..0, buffer: Vec::new(), threads }
    }

    /// Sets the number of threads that read at a time; at least one.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads.max(1);
        self
    }

    /// The source.
    pub fn source(&self) -> &S {
        &self.source
    }

    fn left(&self) -> usize {
        usize::try_from(self.source.size().saturating_sub(self.position)).unwrap_or(usize::MAX)
    }

    /// What of the buffer is next.
    fn next(&self) -> &[u8] {
        let is_in = self.buffered.contains(&self.position);
        let skipped = if is_in { (self.position - self.buffered.start) as usize } else { self.buffer.len() };
        self.buffer.get(skipped..).unwrap_or_default()
    }
}

/// Has several threads fill a large buffer.
fn read_at(source: &impl Source, offset: u64, buf: &mut [u8], threads: usize) -> io::Result<()> {
    let share = buf.len().div_ceil(threads.max(1)).next_multiple_of(4096).max(SHARE);
    if buf.len() <= share {
        return source.read_at(offset, buf);
    }
    thread::scope(|scope| {
        let mut shares = buf.chunks_mut(share).zip((offset..).step_by(share));
        let own = shares.next();
        let others: Vec<_> = shares.map(|(buf, at)| scope.spawn(move || source.read_at(at, buf))).collect();
        let mut outcome = own.map_or(Ok(()), |(buf, at)| source.read_at(at, buf));
        for other in others {
            let panicked = || Err(io::Error::other("a source panicked"));
            outcome = outcome.and(other.join().unwrap_or_else(|_| panicked()));
        }
        outcome
    })
}

impl<S: Source> Read for SourceReader<S> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.next().is_empty() && buf.len() >= BUFFER {
            let len = buf.len().min(self.left());
            read_at(&self.source, self.position, &mut buf[..len], self.threads)?;
            self.position += len as u64;
            return Ok(len);
        }
        let next = self.fill_buf()?;
        let len = next.len().min(buf.len());
        buf[..len].copy_from_slice(&next[..len]);
        self.consume(len);
        Ok(len)
    }
}

impl<S: Source> BufRead for SourceReader<S> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.next().is_empty() {
            self.buffered = 0..0;
            let len = BUFFER.min(self.left());
            self.buffer.resize(len, 0);
            self.source.read_at(self.position.min(self.source.size()), &mut self.buffer)?;
            self.buffered = self.position..self.position.saturating_add(len as u64);
        }
        Ok(self.next())
    }

    fn consume(&mut self, len: usize) {
        self.position = self.position.saturating_add(len as u64);
    }
}

impl<S: Source> Seek for SourceReader<S> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::End(offset) => self.source.size().checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        let before = || io::Error::new(io::ErrorKind::InvalidInput, "that is before the start");
        self.position = position.ok_or_else(before)?;
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;
    use std::sync::Mutex;

    use super::*;
    use crate::source::MemorySource;

    /// Remembers what it was asked for.
    struct Asked(Vec<u8>, Mutex<Vec<Range<u64>>>);

    impl Source for Asked {
        fn size(&self) -> u64 {
            self.0.len() as u64
        }

        fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
            self.1.lock().unwrap().push(offset..offset + buf.len() as u64);
            MemorySource(&*self.0).read_at(offset, buf)
        }
    }

    fn bytes(len: usize) -> Vec<u8> {
        (0..len).map(|at| (at * 31 % 251) as u8).collect()
    }

    #[test]
    fn it_reads_as_a_cursor_does() {
        let bytes = bytes(3 * BUFFER + 17);
        let (mut own, mut cursor) = (SourceReader::new(MemorySource(&*bytes)), Cursor::new(&*bytes));
        let steps = [
            (SeekFrom::Start(5), 10),
            (SeekFrom::Current(-3), BUFFER + 9),
            (SeekFrom::End(-40), 100),
            (SeekFrom::Start(7), BUFFER * 2),
            (SeekFrom::Current(0), 1),
            (SeekFrom::End(1000), 4),
            (SeekFrom::Start(BUFFER as u64 - 1), 3),
        ];
        for (to, len) in steps {
            assert_eq!(own.seek(to).unwrap(), cursor.seek(to).unwrap());
            let (mut ours, mut its) = (Vec::new(), Vec::new());
            Read::by_ref(&mut own).take(len as u64).read_to_end(&mut ours).unwrap();
            Read::by_ref(&mut cursor).take(len as u64).read_to_end(&mut its).unwrap();
            assert_eq!(ours, its, "{to:?} {len}");
            assert_eq!(own.stream_position().unwrap(), cursor.stream_position().unwrap());
        }
        assert_eq!(own.seek(SeekFrom::Current(i64::MIN)).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        let position = own.seek(SeekFrom::Start(2)).unwrap();
        assert!(own.seek(SeekFrom::End(i64::MIN)).is_err());
        assert_eq!(own.stream_position().unwrap(), position, "it did not move");
        own.read_exact(&mut vec![0; bytes.len()]).unwrap_err();
    }

    #[test]
    fn large_reads_are_shared_and_small_ones_are_buffered() {
        let bytes = bytes(3 * SHARE + 100);
        let mut reader = SourceReader::new(Asked(bytes.clone(), Mutex::default())).threads(2);
        let asked = |reader: &SourceReader<Asked>| {
            let mut asked = std::mem::take(&mut *reader.source().1.lock().unwrap());
            asked.sort_by_key(|range| range.start);
            asked
        };
        let mut few = [0; 8];
        reader.read_exact(&mut few).unwrap();
        reader.read_exact(&mut few).unwrap();
        assert_eq!(few, bytes[8..16]);
        let once = 0..BUFFER as u64;
        assert_eq!(asked(&reader), [once]);
        reader.seek(SeekFrom::Start(BUFFER as u64)).unwrap();
        let mut rest = vec![0; 2 * SHARE + 8192];
        reader.read_exact(&mut rest).unwrap();
        assert_eq!(rest, bytes[BUFFER..][..rest.len()]);
        let (start, share) = (BUFFER as u64, SHARE as u64 + 4096);
        assert_eq!(asked(&reader), [start..start + share, start + share..start + 2 * share]);
    }
}
