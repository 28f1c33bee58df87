//! A range of another source.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::Arc;

use super::{Hints, Source};

/// A range of bytes of another source, as a source of its own: a shard inside an archive, a tensor inside a
/// file.
///
/// Everything that the other source can do with these bytes, the window can: it lends them where they are in
/// memory, says in which file they are, and prefetches them.
///
/// ```
/// use std::sync::Arc;
/// use weighbridge::source::{MemorySource, Source, Window};
///
/// let whole = MemorySource(Arc::<[u8]>::from(*b"headtail"));
/// let tail = Window::new(whole, 4..8).unwrap();
/// assert_eq!(tail.size(), 4);
/// assert_eq!(tail.as_bytes(), Some(&b"tail"[..]));
/// assert!(tail.narrow(2..5).is_none(), "it ends beyond the window");
/// ```
#[derive(Clone, Debug)]
pub struct Window<S> {
    source: S,
    /// Within the source; checked when the window is made.
    range: Range<u64>,
}

impl<S: Source> Window<S> {
    /// The bytes of `source` in `range`; `None` if the range ends before it starts, or beyond the source.
    pub fn new(source: S, range: Range<u64>) -> Option<Self> {
        (range.start <= range.end && range.end <= source.size()).then_some(Self { source, range })
    }

    /// All bytes of `source`.
    pub fn whole(source: S) -> Self {
        let range = 0..source.size();
        Self { source, range }
    }

    /// A window onto a part of this one. `range` counts from the start of this window; `None` if it ends
    /// before it starts, or beyond this window.
    pub fn narrow(&self, range: Range<u64>) -> Option<Self>
    where
        S: Clone,
    {
        Some(Self { source: self.source.clone(), range: self.locate(range)? })
    }

    /// The source whose bytes these are.
    pub fn source(&self) -> &S {
        &self.source
    }

    /// Where in that source they are.
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// The same range counted from the start of the source; `None` if it is not within the window.
    fn locate(&self, range: Range<u64>) -> Option<Range<u64>> {
        let is_within = range.start <= range.end && range.end <= self.range.end - self.range.start;
        is_within.then(|| self.range.start + range.start..self.range.start + range.end)
    }

    /// The offset in the source of `len` bytes of the window.
    fn offset_of(&self, offset: u64, len: usize) -> io::Result<u64> {
        let range = offset.checked_add(len as u64).and_then(|end| self.locate(offset..end));
        Ok(range.ok_or(io::ErrorKind::UnexpectedEof)?.start)
    }
}

impl<S: Source> Source for Window<S> {
    fn size(&self) -> u64 {
        self.range.end - self.range.start
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.source.read_at(self.offset_of(offset, buf.len())?, buf)
    }

    fn read_as_it_comes(
        &self,
        offset: u64,
        buf: &mut [u8],
        arrived: &mut dyn FnMut(&[u8]),
    ) -> io::Result<()> {
        self.source.read_as_it_comes(self.offset_of(offset, buf.len())?, buf, arrived)
    }

    fn read_uninit_at<'b>(&self, offset: u64, buf: &'b mut [MaybeUninit<u8>]) -> io::Result<&'b mut [u8]> {
        self.source.read_uninit_at(self.offset_of(offset, buf.len())?, buf)
    }

    fn as_bytes(&self) -> Option<&[u8]> {
        let (start, end) = (usize::try_from(self.range.start).ok()?, usize::try_from(self.range.end).ok()?);
        self.source.as_bytes()?.get(start..end)
    }

    fn in_file(&self, range: Range<u64>) -> Option<(&File, u64)> {
        self.source.in_file(self.locate(range)?)
    }

    fn populate(&self, range: Range<u64>) -> io::Result<()> {
        self.source.populate(self.locate(range).ok_or(io::ErrorKind::UnexpectedEof)?)
    }

    fn prefetch(&self, range: Range<u64>) {
        if let Some(range) = self.locate(range) {
            self.source.prefetch(range);
        }
    }

    fn is_cached(&self, range: Range<u64>) -> Option<bool> {
        self.source.is_cached(self.locate(range)?)
    }

    fn uncached(&self) -> Option<Arc<dyn Source>> {
        Some(Arc::new(Window { source: self.source.uncached()?, range: self.range.clone() }))
    }

    fn hints(&self) -> Hints {
        self.source.hints()
    }

    fn interrupt(&self) {
        self.source.interrupt();
    }
}

#[cfg(test)]
mod tests {
    use super::super::probe::{Asked, Probe, read_uninit};
    use super::*;
    use crate::source::MemorySource;

    #[test]
    fn everything_is_asked_of_the_source_at_its_own_offsets() {
        let probe = Probe::new((0..40).collect());
        let window = Window::new(probe.clone(), 10..30).unwrap().narrow(5..15).unwrap();
        assert_eq!((window.size(), window.range()), (10, 15..25));
        let mut buf = [0; 3];
        window.read_at(7, &mut buf).unwrap();
        assert_eq!(buf, [22, 23, 24]);
        assert_eq!(read_uninit(&window, 0, 2).unwrap(), [15, 16]);
        assert!(window.in_file(0..10).is_none());
        window.populate(1..2).unwrap();
        window.prefetch(0..10);
        assert_eq!(window.is_cached(3..4), Some(true));
        assert_eq!(window.hints(), probe.hints());
        let asked = [
            Asked::Read(22..25),
            Asked::ReadUninit(15..17),
            Asked::InFile(15..25),
            Asked::Populate(16..17),
            Asked::Prefetch(15..25),
            Asked::IsCached(18..19),
        ];
        assert_eq!(probe.asked(), asked);
    }

    #[test]
    fn an_uncached_window_is_one_onto_the_uncached_source() {
        let probe = Probe::new((0..40).collect());
        let window = Window::new(probe.clone(), 10..30).unwrap().uncached().unwrap();
        assert_eq!(read_uninit(&window, 7, 2).unwrap(), [17, 18]);
        assert!(window.read_at(19, &mut [0; 2]).is_err());
        assert_eq!(probe.asked(), [Asked::ReadUninit(17..19)]);
        assert!(Window::whole(MemorySource([0_u8; 4])).uncached().is_none());
    }

    #[test]
    fn nothing_beyond_a_window_is_read() {
        let probe = Probe::new((0..40).collect());
        let window = Window::new(probe.clone(), 10..20).unwrap();
        for offset in [1, 9, 10, 11, u64::MAX - 9, u64::MAX] {
            let error = window.read_at(offset, &mut [0; 10]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "at {offset}");
            assert!(read_uninit(&window, offset, 10).is_err(), "at {offset}");
        }
        window.prefetch(5..11);
        assert!(window.populate(5..11).is_err());
        assert_eq!(window.is_cached(5..11), None);
        assert!(window.in_file(0..11).is_none());
        assert_eq!(probe.asked(), []);
    }

    #[test]
    fn a_window_is_within_its_source() {
        let source = || MemorySource(vec![0_u8; 10]);
        assert!(Window::new(source(), 0..10).is_some());
        assert!(Window::new(source(), 10..10).is_some());
        assert!(Window::new(source(), 0..11).is_none());
        assert!(Window::new(source(), 11..11).is_none());
        #[expect(clippy::reversed_empty_ranges, reason = "it is what is refused")]
        let backwards = Window::new(source(), 5..4);
        assert!(backwards.is_none());
        let window = Window::new(source(), 4..8).unwrap();
        assert!(window.narrow(0..4).is_some());
        assert!(window.narrow(1..5).is_none(), "the source has it, the window does not");
        assert!(window.narrow(u64::MAX..u64::MAX).is_none());
    }
}
