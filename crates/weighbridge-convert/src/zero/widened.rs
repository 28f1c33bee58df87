//! Floating-point elements of other widths as F32, made while they are read.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};
use weighbridge::Dtype;
use weighbridge::source::{Hints, Source};

/// Elements that are made at a time.
const PIECE: u64 = 64 << 10;

/// What elements become: those of floating point F32, as `zero_to_fp32.py` makes them, all others stay.
pub(super) fn dtype(dtype: Dtype) -> Dtype {
    if convert(dtype).is_some() { Dtype::F32 } else { dtype }
}

/// The elements as they are to be written.
pub(super) fn to_f32(dtype: Dtype, data: Arc<dyn Source>) -> Arc<dyn Source> {
    match convert(dtype) {
        Some(convert) => Arc::new(Widened { width: u64::from(dtype.bits()) / 8, convert, data }),
        None => data,
    }
}

type Convert = fn(&[u8]) -> f32;

fn convert(dtype: Dtype) -> Option<Convert> {
    Some(match dtype {
        Dtype::F16 => |bytes| bytes.try_into().map_or(f32::NAN, |bytes| f16::from_le_bytes(bytes).to_f32()),
        Dtype::BF16 => |bytes| bytes.try_into().map_or(f32::NAN, |bytes| bf16::from_le_bytes(bytes).to_f32()),
        Dtype::F64 => |bytes| bytes.try_into().map_or(f32::NAN, |bytes| f64::from_le_bytes(bytes) as f32),
        _ => return None,
    })
}

struct Widened {
    /// Bytes of an element as it is stored.
    width: u64,
    convert: Convert,
    data: Arc<dyn Source>,
}

impl Widened {
    /// The stored bytes that a range needs.
    fn stored(&self, range: Range<u64>) -> Range<u64> {
        range.start / 4 * self.width..range.end.div_ceil(4) * self.width
    }
}

impl Source for Widened {
    fn size(&self) -> u64 {
        self.data.size() / self.width * 4
    }

    fn read_at(&self, offset: u64, mut buf: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(buf.len() as u64).filter(|&end| end <= self.size());
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        let (mut at, mut stored, mut made) = (offset, Vec::new(), Vec::new());
        while at < end {
            let stop = end.min((at / 4 + PIECE) * 4);
            let needed = self.stored(at..stop);
            stored.resize((needed.end - needed.start) as usize, 0);
            self.data.read_at(needed.start, &mut stored)?;
            made.clear();
            let values = stored.chunks_exact(self.width as usize).map(self.convert);
            made.extend(values.flat_map(f32::to_le_bytes));
            let (now, rest) = buf.split_at_mut((stop - at) as usize);
            let skip = (at % 4) as usize;
            now.copy_from_slice(&made[skip..skip + now.len()]);
            (at, buf) = (stop, rest);
        }
        Ok(())
    }

    fn prefetch(&self, range: Range<u64>) {
        self.data.prefetch(self.stored(range));
    }

    fn is_cached(&self, range: Range<u64>) -> Option<bool> {
        self.data.is_cached(self.stored(range))
    }

    fn uncached(&self) -> Option<Arc<dyn Source>> {
        let data = self.data.uncached()?;
        Some(Arc::new(Self { width: self.width, convert: self.convert, data }))
    }

    fn hints(&self) -> Hints {
        self.data.hints()
    }
}
