//! The bytes of a file that is nowhere, made as they are read.

use std::io::{self, Write};
use std::ops::Range;
use std::sync::Arc;

use crate::engine::Streamed;
use crate::error::Result;
use crate::plan::{Derived, Entry, Plan};
use crate::source::Source;
use crate::write::{Layout, Ranges};

/// A header, and tensors behind it.
pub(super) struct DerivedSource {
    header: Vec<u8>,
    tensors: Vec<(Range<u64>, Streamed)>,
    size: u64,
}

impl DerivedSource {
    pub(super) fn new(header: Vec<u8>, layout: &Layout, derived: &[Arc<Derived>]) -> Result<Self> {
        let start = header.len() as u64;
        let entries = layout.tensors().iter().zip(derived).map(|(tensor, derived)| {
            let entry = Entry::derived(tensor.name(), tensor.dtype(), tensor.shape(), derived)?;
            Ok(entry)
        });
        let plan = Plan::new(entries.collect::<Result<Vec<_>>>()?);
        let places = layout.tensors().iter().map(|tensor| {
            let place = tensor.data_offsets();
            start + place.start..start + place.end
        });
        let tensors: Vec<_> = places.zip(plan.tensors().map(|(_, streamed)| streamed)).collect();
        let size = tensors.last().map_or(start, |(place, _)| place.end);
        Ok(Self { header, tensors, size })
    }
}

impl Source for DerivedSource {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(buf.len() as u64).filter(|end| *end <= self.size);
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        let start = (offset.min(self.header.len() as u64)) as usize;
        let of_header = &self.header[start..self.header.len().min(end as usize)];
        let (head, mut rest) = buf.split_at_mut(of_header.len());
        head.copy_from_slice(of_header);
        let mut at = offset + of_header.len() as u64;
        let first = self.tensors.partition_point(|(place, _)| place.end <= at);
        for (place, tensor) in self.tensors.iter().skip(first) {
            if rest.is_empty() {
                break;
            }
            let until = place.end.min(end);
            let (into, behind) = rest.split_at_mut((until - at) as usize);
            rest = behind;
            // From one element to another.
            let size = u64::from(tensor.entry().dtype().bits() / 8).max(1);
            let wanted = at - place.start..until - place.start;
            let whole = wanted.start / size * size..wanted.end.div_ceil(size) * size;
            let mut clip = Clip { into, skip: (wanted.start - whole.start) as usize };
            tensor.write_range(whole, &mut clip)?;
            at = until;
        }
        Ok(())
    }
}

/// Takes bytes behind the first few, as many as it has room for.
struct Clip<'b> {
    into: &'b mut [u8],
    skip: usize,
}

impl Write for Clip<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let wanted = bytes.get(self.skip.min(bytes.len())..).unwrap_or_default();
        self.skip -= bytes.len() - wanted.len();
        let len = wanted.len().min(self.into.len());
        let (now, later) = std::mem::take(&mut self.into).split_at_mut(len);
        now.copy_from_slice(&wanted[..len]);
        self.into = later;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
