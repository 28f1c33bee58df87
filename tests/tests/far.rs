//! Offsets that 32 bits do not hold, where sources are far larger than memory. The test is worth most where `usize` has 32 bits.
#![allow(clippy::unwrap_used)]

use std::io::{self, Read, Seek, SeekFrom};
use std::sync::Arc;

use weighbridge::source::{Concat, MemorySource, Source, SourceReader, Window};
use weighbridge::write::{Order, Save};
use weighbridge::{Checkpoint, Dtype, HostBuffer, Plan};

/// A header, and behind it bytes that say where they are.
struct Far {
    header: Vec<u8>,
    size: u64,
}

/// The byte at an offset.
fn byte_at(offset: u64) -> u8 {
    (offset % 251) as u8
}

impl Source for Far {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        assert!(offset + buf.len() as u64 <= self.size);
        for (byte, at) in buf.iter_mut().zip(offset..) {
            let of_header = usize::try_from(at).ok().and_then(|at| self.header.get(at));
            *byte = of_header.copied().unwrap_or_else(|| byte_at(at));
        }
        Ok(())
    }
}

/// Seven tensors of 3 GB, and small ones between and behind them.
fn far() -> Far {
    let large = (0..7).map(|number| (format!("large.{number}"), Dtype::U8, vec![3_000_000_000]));
    let small = (0..7).map(|number| (format!("small.{number}"), Dtype::U8, vec![5, 7]));
    let mut tensors: Vec<_> = large.zip(small).flat_map(|(large, small)| [large, small]).collect();
    tensors.push(("last".to_owned(), Dtype::U8, vec![1000]));
    let layout = Save::new().order(Order::Given).layout(tensors).unwrap();
    Far { header: layout.header().to_vec(), size: layout.size() }
}

#[test]
fn tensors_lie_where_the_header_says() {
    let checkpoint = Checkpoint::from_source(far()).unwrap();
    assert_eq!(checkpoint.byte_len(), 21_000_001_245);
    let session = Plan::of(&checkpoint).filter(|tensor| !tensor.name().starts_with("large")).build().unwrap();
    let session = session.session().start().unwrap();
    for tensor in checkpoint.tensors().filter(|tensor| !tensor.name().starts_with("large")) {
        let range = tensor.info().file_range();
        let expected: Vec<u8> = range.clone().map(byte_at).collect();
        let (_, values) = session.take(tensor.name(), None).unwrap();
        assert_eq!(values, HostBuffer::U8(expected), "{} at {range:?}", tensor.name());
    }
    assert!(checkpoint.tensor("last").unwrap().info().file_range().start > 20_000_000_000);
}

#[test]
fn parts_of_sources_are_far_away_too() {
    let far: Arc<dyn Source> = Arc::new(far());
    let size = far.size();
    let end = Window::new(Arc::clone(&far), size - 10..size).unwrap();
    let parts: Vec<Arc<dyn Source>> = vec![far, Arc::new(MemorySource([7; 3])), Arc::new(end)];
    let whole: Arc<dyn Source> = Arc::new(Concat::new(parts).unwrap());
    assert_eq!(whole.size(), size + 13);
    let mut reader = SourceReader::new(whole);
    let mut bytes = [0; 13];
    reader.seek(SeekFrom::End(-13)).unwrap();
    reader.read_exact(&mut bytes).unwrap();
    let expected: Vec<u8> = [7; 3].into_iter().chain((size - 10..size).map(byte_at)).collect();
    assert_eq!(bytes, *expected);
}
