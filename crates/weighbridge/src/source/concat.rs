//! Several sources as one.

use std::fmt;
use std::fs::File;
use std::io;
use std::mem::{self, MaybeUninit};
use std::ops::Range;
use std::sync::Arc;

use super::{Hints, Source};
use crate::buffer;

/// Several sources laid end to end: a header in memory before data in a file, a file that was cut into
/// pieces.
///
/// ```
/// use std::sync::Arc;
/// use weighbridge::source::{Concat, MemorySource, Source};
///
/// let parts: [Arc<dyn Source>; 2] =
///     [Arc::new(MemorySource(*b"weigh")), Arc::new(MemorySource(b"bridge".to_vec()))];
/// let both = Concat::new(parts).unwrap();
/// let mut buf = [0; 5];
/// both.read_at(3, &mut buf)?;
/// assert_eq!(&buf, b"ghbri");
/// # std::io::Result::Ok(())
/// ```
#[derive(Clone, Default)]
pub struct Concat {
    /// None is empty; the first starts at 0, each other where the one before it ends.
    parts: Vec<Part>,
}

#[derive(Clone)]
struct Part {
    source: Arc<dyn Source>,
    start: u64,
    end: u64,
}

impl Concat {
    /// The bytes of the sources, in this order; `None` if they are more than [`u64::MAX`]. The size of each
    /// is asked for once, here.
    pub fn new(sources: impl IntoIterator<Item = Arc<dyn Source>>) -> Option<Self> {
        let mut parts = Vec::new();
        let mut start = 0_u64;
        for source in sources {
            let end = start.checked_add(source.size())?;
            if start < end {
                parts.push(Part { source, start, end });
            }
            start = end;
        }
        Some(Self { parts })
    }

    /// The sources that have bytes of a range, and which of their bytes these are.
    fn parts_in(&self, range: Range<u64>) -> impl Iterator<Item = (&Arc<dyn Source>, Range<u64>)> {
        let first = self.parts.partition_point(|part| part.end <= range.start);
        let parts = self.parts[first..].iter().take_while(move |part| part.start < range.end);
        parts.map(move |part| {
            let (start, end) = (range.start.max(part.start), range.end.min(part.end));
            (&part.source, start - part.start..end - part.start)
        })
    }

    /// The same, of a range that is to be read.
    fn parts_of(
        &self,
        offset: u64,
        len: usize,
    ) -> io::Result<impl Iterator<Item = (&Arc<dyn Source>, Range<u64>)>> {
        let end = offset.checked_add(len as u64).filter(|&end| end <= self.size());
        Ok(self.parts_in(offset..end.ok_or(io::ErrorKind::UnexpectedEof)?))
    }
}

/// The length of a range that is not longer than a buffer.
fn len_of(range: &Range<u64>) -> usize {
    (range.end - range.start) as usize
}

impl Source for Concat {
    fn size(&self) -> u64 {
        self.parts.last().map_or(0, |part| part.end)
    }

    fn read_at(&self, offset: u64, mut buf: &mut [u8]) -> io::Result<()> {
        for (source, range) in self.parts_of(offset, buf.len())? {
            let (now, rest) = mem::take(&mut buf).split_at_mut(len_of(&range));
            source.read_at(range.start, now)?;
            buf = rest;
        }
        Ok(())
    }

    fn read_uninit_at<'b>(&self, offset: u64, buf: &'b mut [MaybeUninit<u8>]) -> io::Result<&'b mut [u8]> {
        let mut parts = self.parts_of(offset, buf.len())?;
        buffer::fill(buf, |_, rest| match parts.next() {
            Some((source, range)) => {
                Ok(Some(source.read_uninit_at(range.start, &mut rest[..len_of(&range)])?))
            }
            None => Ok(Some(&[])),
        })
    }

    /// Those of a single source; several are nowhere as a whole.
    fn as_bytes(&self) -> Option<&[u8]> {
        match &*self.parts {
            [] => Some(&[]),
            [part] => part.source.as_bytes(),
            _ => None,
        }
    }

    /// Of a range that is within one of the sources.
    fn in_file(&self, range: Range<u64>) -> Option<(&File, u64)> {
        let mut parts = self.parts_in(range.clone());
        let (source, within) = parts.next()?;
        (within.end - within.start == range.end - range.start).then(|| source.in_file(within))?
    }

    fn populate(&self, range: Range<u64>) -> io::Result<()> {
        self.parts_in(range).try_for_each(|(source, range)| source.populate(range))
    }

    fn prefetch(&self, range: Range<u64>) {
        self.parts_in(range).for_each(|(source, range)| source.prefetch(range));
    }

    /// `Some(false)` where one of the sources says so, `None` where one of the others does not know.
    fn is_cached(&self, range: Range<u64>) -> Option<bool> {
        let mut all = Some(true);
        for (source, range) in self.parts_in(range) {
            match source.is_cached(range) {
                Some(true) => {}
                Some(false) => return Some(false),
                None => all = None,
            }
        }
        all
    }

    /// With those of the sources that there are.
    fn uncached(&self) -> Option<Arc<dyn Source>> {
        let uncached: Vec<_> = self.parts.iter().map(|part| part.source.uncached()).collect();
        uncached.iter().any(Option::is_some).then(|| {
            let parts = self.parts.iter().zip(uncached).map(|(part, uncached)| Part {
                source: uncached.unwrap_or_else(|| Arc::clone(&part.source)),
                ..*part
            });
            Arc::new(Self { parts: parts.collect() }) as _
        })
    }

    /// The largest of the hints of all sources.
    fn hints(&self) -> Hints {
        let hints = self.parts.iter().map(|part| part.source.hints());
        let largest = hints.reduce(|one, other| Hints {
            chunk: one.chunk.max(other.chunk),
            least: one.least.max(other.least),
            read_through: one.read_through.max(other.read_through),
            concurrency: one.concurrency.max(other.concurrency),
        });
        largest.unwrap_or_default()
    }

    fn interrupt(&self) {
        self.parts.iter().for_each(|part| part.source.interrupt());
    }
}

impl fmt::Debug for Concat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Concat").field("sources", &self.parts.len()).field("size", &self.size()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::super::probe::{Asked, Probe, read_uninit};
    use super::*;
    use crate::source::MemorySource;

    fn concat(parts: &[&Probe]) -> Concat {
        let parts = parts.iter().map(|&part| Arc::new(part.clone()) as Arc<dyn Source>);
        Concat::new(parts).unwrap()
    }

    #[test]
    fn every_range_is_read_from_the_sources_that_have_it() {
        let lens = [3, 0, 1, 5, 0, 0, 2];
        let mut next = 0_u8..;
        let parts: Vec<Probe> =
            lens.iter().map(|&len| Probe::new(next.by_ref().take(len).collect())).collect();
        let whole = concat(&parts.iter().collect::<Vec<_>>());
        let all: Vec<u8> = (0..11).collect();
        assert_eq!(whole.size(), 11);
        for start in 0..=11 {
            for end in start..=11 {
                let mut buf = vec![0xff; end - start];
                whole.read_at(start as u64, &mut buf).unwrap();
                assert_eq!(buf, all[start..end]);
                assert_eq!(read_uninit(&whole, start as u64, end - start).unwrap(), all[start..end]);
            }
            assert!(whole.read_at(start as u64, &mut [0; 12]).is_err());
            assert!(read_uninit(&whole, start as u64, 12).is_err());
        }
        assert!(whole.read_at(u64::MAX, &mut [0; 2]).is_err());
        assert!(whole.read_at(12, &mut []).is_err());
    }

    #[test]
    fn each_source_is_asked_for_its_own_bytes() {
        let (one, two, three) = (Probe::new(vec![1; 4]), Probe::new(vec![2; 4]), Probe::new(vec![3; 4]));
        let whole = concat(&[&one, &two, &three]);
        assert_eq!(read_uninit(&whole, 3, 6).unwrap(), [1, 2, 2, 2, 2, 3]);
        whole.prefetch(5..12);
        whole.populate(0..5).unwrap();
        assert_eq!(whole.is_cached(6..7), Some(true));
        assert!(whole.in_file(4..8).is_none());
        assert!(whole.in_file(3..8).is_none(), "it is in two");
        assert_eq!(one.asked(), [Asked::ReadUninit(3..4), Asked::Populate(0..4)]);
        let two_asked = [
            Asked::ReadUninit(0..4),
            Asked::Prefetch(1..4),
            Asked::Populate(0..1),
            Asked::IsCached(2..3),
            Asked::InFile(0..4),
        ];
        assert_eq!(two.asked(), two_asked);
        assert_eq!(three.asked(), [Asked::ReadUninit(0..1), Asked::Prefetch(0..4)]);
    }

    #[test]
    fn those_that_can_be_read_uncached_are() {
        let probe = Probe::new(vec![1; 4]);
        let memory = || Arc::new(MemorySource([2_u8; 4])) as Arc<dyn Source>;
        let whole = Concat::new([memory(), Arc::new(probe.clone()), memory()]).unwrap();
        let uncached = whole.uncached().unwrap();
        assert_eq!((uncached.size(), uncached.hints().chunk), (12, Hints::default().chunk));
        assert_eq!(read_uninit(&uncached, 3, 6).unwrap(), [2, 1, 1, 1, 1, 2]);
        assert_eq!(probe.asked(), [Asked::ReadUninit(0..4)]);
        assert!(Concat::new([memory(), memory()]).unwrap().uncached().is_none());
    }

    #[test]
    fn it_is_cached_if_all_is() {
        let cached = |answers: &[Option<bool>]| {
            let parts = answers.iter().map(|&answer| Probe::new(vec![0; 2]).cached(answer));
            concat(&parts.collect::<Vec<_>>().iter().collect::<Vec<_>>())
                .is_cached(1..answers.len() as u64 * 2)
        };
        assert_eq!(cached(&[Some(true), Some(true)]), Some(true));
        assert_eq!(cached(&[Some(true), None, Some(true)]), None);
        assert_eq!(cached(&[None, Some(false)]), Some(false));
    }

    #[test]
    fn a_file_has_the_ranges_that_are_within_its_part() {
        let file = Arc::new(tempfile::tempfile().unwrap());
        file.set_len(10).unwrap();
        let parts: [Arc<dyn Source>; 2] =
            [Arc::new(MemorySource([0; 4])), Arc::new(crate::source::FileSource::new(file, 10))];
        let whole = Concat::new(parts).unwrap();
        assert_eq!(whole.in_file(4..14).map(|found| found.1), Some(0));
        assert_eq!(whole.in_file(6..8).map(|found| found.1), Some(2));
        assert!(whole.in_file(3..8).is_none());
        assert!(whole.in_file(6..15).is_none());
        assert!(whole.in_file(20..22).is_none());
    }

    #[test]
    fn sources_of_too_many_bytes_are_refused() {
        let endless = || Arc::new(Probe::new(Vec::new()).sized(u64::MAX)) as Arc<dyn Source>;
        assert!(Concat::new([endless()]).is_some());
        assert!(Concat::new([endless(), Arc::new(MemorySource([0]))]).is_none());
    }
}
