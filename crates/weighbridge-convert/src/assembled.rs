//! A safetensors file that is nowhere: its header is in memory, its tensors are where they are.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use weighbridge::write::{Order, Save};
use weighbridge::{Checkpoint, Error, ErrorKind, Result, Source};

use crate::contents::Tensor;

/// Lays the tensors out, in the order given, for the checkpoint of a file in `directory`.
pub(crate) fn checkpoint(save: &Save, directory: &Path, tensors: Vec<Tensor>) -> Result<Checkpoint> {
    let described = tensors.iter().map(|tensor| (tensor.name.clone(), tensor.dtype, tensor.shape.clone()));
    let layout = save.clone().order(Order::Given).layout(described)?;
    let mut data: HashMap<String, Arc<dyn Source>> =
        tensors.into_iter().map(|tensor| (tensor.name, tensor.data)).collect();
    let header = layout.header().to_vec();
    let mut parts = Vec::with_capacity(data.len());
    for planned in layout.tensors() {
        let fail = |message| Error::new(ErrorKind::Internal, message).in_tensor(planned.name());
        let Some(data) = data.remove(planned.name()) else { return Err(fail("it has no data".to_owned())) };
        if data.size() != planned.byte_len() {
            let (size, len) = (data.size(), planned.byte_len());
            return Err(fail(format!("its data has {size} bytes, its shape needs {len}")));
        }
        // An empty one would hide the next at the same place.
        if data.size() > 0 {
            parts.push(Part { start: header.len() as u64 + planned.data_offsets().start, data });
        }
    }
    let assembled = Assembled { size: layout.size(), header, parts };
    Checkpoint::options().directory(directory).from_source(assembled)
}

struct Assembled {
    header: Vec<u8>,
    /// By `start`; each begins where the one before it ends.
    parts: Vec<Part>,
    size: u64,
}

/// A tensor's bytes and where in the file they are.
struct Part {
    start: u64,
    data: Arc<dyn Source>,
}

impl Assembled {
    /// The part that holds a position behind the header, and the position in it.
    fn part_at(&self, offset: u64) -> Option<(&Part, u64)> {
        let after = self.parts.partition_point(|part| part.start <= offset);
        let part = self.parts.get(after.checked_sub(1)?)?;
        Some((part, offset - part.start))
    }

    /// Calls `each` with what of every part lies in a range.
    fn for_parts(&self, range: Range<u64>, mut each: impl FnMut(&dyn Source, Range<u64>)) {
        let mut at = range.start.max(self.header.len() as u64);
        while at < range.end {
            let Some((part, start)) = self.part_at(at) else { return };
            let end = part.data.size().min(start + (range.end - at));
            if start >= end {
                return;
            }
            each(&*part.data, start..end);
            at += end - start;
        }
    }
}

impl Source for Assembled {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, mut offset: u64, mut buf: &mut [u8]) -> io::Result<()> {
        if let Some(rest) = usize::try_from(offset).ok().and_then(|start| self.header.get(start..)) {
            let len = rest.len().min(buf.len());
            let (start, behind) = buf.split_at_mut(len);
            start.copy_from_slice(&rest[..len]);
            (offset, buf) = (offset + len as u64, behind);
        }
        while !buf.is_empty() {
            let end = || io::Error::from(io::ErrorKind::UnexpectedEof);
            let (part, start) = self.part_at(offset).ok_or_else(end)?;
            let left = part.data.size().checked_sub(start).filter(|&left| left > 0).ok_or_else(end)?;
            let len = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
            let (now, behind) = buf.split_at_mut(len);
            part.data.read_at(start, now)?;
            (offset, buf) = (offset + len as u64, behind);
        }
        Ok(())
    }

    fn in_file(&self, range: Range<u64>) -> Option<(&File, u64)> {
        let (part, start) = self.part_at(range.start)?;
        let end = start.checked_add(range.end.checked_sub(range.start)?)?;
        if end > part.data.size() {
            return None;
        }
        part.data.in_file(start..end)
    }

    fn prefetch(&self, range: Range<u64>) {
        self.for_parts(range, |data, range| data.prefetch(range));
    }

    fn is_cached(&self, range: Range<u64>) -> Option<bool> {
        let mut cached = Some(true);
        self.for_parts(range, |data, range| {
            cached = match (cached, data.is_cached(range)) {
                (Some(all), Some(this)) => Some(all && this),
                _ => None,
            };
        });
        cached
    }
}
