//! Numbers that are computed from blocks when they are read.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use weighbridge::{Dtype, Hints, Result, Source};

use super::block::Quant;
use crate::cursor::unsupported;

/// The values of blocks, as floats.
pub(super) struct Dequantised {
    /// Whole blocks.
    blocks: Arc<dyn Source>,
    quant: &'static Quant,
    big: bool,
    dtype: Dtype,
}

/// Blocks that are read at a time, in bytes.
const BATCH: usize = 64 << 10;

impl Dequantised {
    pub(super) fn new(
        blocks: Arc<dyn Source>,
        quant: &'static Quant,
        big: bool,
        dtype: Dtype,
    ) -> Result<Self> {
        match dtype {
            Dtype::F32 | Dtype::F16 | Dtype::BF16 => Ok(Self { blocks, quant, big, dtype }),
            _ => {
                Err(unsupported(format!("{} is dequantised to F32, F16 or BF16, not to {dtype}", quant.name)))
            }
        }
    }

    /// The bytes that a block becomes.
    fn made(&self) -> usize {
        self.quant.values * self.dtype.bits() as usize / 8
    }

    /// The blocks that a range of values is made of.
    fn stored(&self, range: Range<u64>) -> Range<u64> {
        let (stored, made) = (self.quant.bytes as u64, self.made() as u64);
        let end = range.end.min(self.size());
        let start = range.start.min(end) / made * stored;
        start..(end.div_ceil(made) * stored).max(start)
    }
}

impl Source for Dequantised {
    fn size(&self) -> u64 {
        self.blocks.size() / self.quant.bytes as u64 * self.made() as u64
    }

    fn read_at(&self, mut offset: u64, mut buf: &mut [u8]) -> io::Result<()> {
        let (stored, made) = (self.quant.bytes, self.made());
        let batch = BATCH / stored;
        let mut bytes = vec![0; batch.min(buf.len() / made + 2) * stored];
        let mut values = [0.0; 256];
        let mut encoded = [0; 1024];
        while !buf.is_empty() {
            let (block, mut skip) = (offset / made as u64, (offset % made as u64) as usize);
            let count = (skip + buf.len()).div_ceil(made).min(bytes.len() / stored);
            let bytes = &mut bytes[..count * stored];
            self.blocks.read_at(block * stored as u64, bytes)?;
            for block in bytes.chunks_exact_mut(stored) {
                if self.big {
                    self.quant.wide.iter().for_each(|&(at, width)| block[at..at + width].reverse());
                }
                let values = &mut values[..self.quant.values];
                (self.quant.decode)(block, values);
                let encoded = &mut encoded[..made];
                encode(self.dtype, values, encoded);
                let len = (made - skip).min(buf.len());
                let (now, behind) = buf.split_at_mut(len);
                now.copy_from_slice(&encoded[skip..skip + len]);
                (buf, skip) = (behind, 0);
                offset += len as u64;
            }
        }
        Ok(())
    }

    fn prefetch(&self, range: Range<u64>) {
        self.blocks.prefetch(self.stored(range));
    }

    fn is_cached(&self, range: Range<u64>) -> Option<bool> {
        self.blocks.is_cached(self.stored(range))
    }

    fn uncached(&self) -> Option<Arc<dyn Source>> {
        Some(Arc::new(Self { blocks: self.blocks.uncached()?, ..*self }))
    }

    fn hints(&self) -> Hints {
        self.blocks.hints()
    }
}

/// Writes values as a file has them, rounded to nearest where the dtype is narrower.
fn encode(dtype: Dtype, values: &[f32], out: &mut [u8]) {
    fn put<const N: usize>(bytes: impl Iterator<Item = [u8; N]>, out: &mut [u8]) {
        out.chunks_exact_mut(N).zip(bytes).for_each(|(out, bytes)| out.copy_from_slice(&bytes));
    }
    match dtype {
        Dtype::F16 => {
            let mut halves = [f16::ZERO; 256];
            let halves = &mut halves[..values.len()];
            halves.convert_from_f32_slice(values);
            put(halves.iter().map(|half| half.to_le_bytes()), out);
        }
        Dtype::BF16 => put(values.iter().map(|&value| bf16::from_f32(value).to_le_bytes()), out),
        _ => put(values.iter().map(|value| value.to_le_bytes()), out),
    }
}

#[cfg(test)]
mod tests {
    use super::super::block::Kind;
    use super::*;
    use crate::probe::{Asked, Probe};

    #[test]
    fn blocks_are_read_uncached() {
        let Some(Kind::Quantised(quant)) = Kind::of(8) else { panic!("it is unknown") };
        let probe = Probe::new((0..34 * 10).map(|i| (i * 7) as u8).collect());
        let values = Dequantised::new(Arc::new(probe.clone()), quant, false, Dtype::F16).unwrap();
        let (mut usual, mut uncached) = ([0; 100], [1; 100]);
        values.read_at(60, &mut usual).unwrap();
        values.uncached().unwrap().read_at(60, &mut uncached).unwrap();
        assert_eq!(usual, uncached);
        assert_eq!(probe.asked(), [Asked::Read(0..102), Asked::Read(0..102)]);
    }

    #[test]
    fn the_blocks_of_values_are_fetched_ahead() {
        // Q8_0: 34 bytes for 32 values.
        let Some(Kind::Quantised(quant)) = Kind::of(8) else { panic!("it is unknown") };
        let probe = Probe::new(vec![0; 34 * 10]).cached_to(34 * 5);
        let values = Dequantised::new(Arc::new(probe.clone()), quant, false, Dtype::F16).unwrap();
        assert_eq!(values.size(), 640);
        values.prefetch(64..129);
        assert_eq!(values.is_cached(0..320), Some(true));
        assert_eq!(values.is_cached(0..321), Some(false));
        assert_eq!(values.is_cached(640..640), Some(false));
        let asked = [
            Asked::Prefetch(34..102),
            Asked::IsCached(0..170),
            Asked::IsCached(0..204),
            Asked::IsCached(340..340),
        ];
        assert_eq!(probe.asked(), asked);
        // Beyond the end there is nothing to fetch.
        values.prefetch(1000..2000);
        assert_eq!(probe.asked(), [Asked::Prefetch(340..340)]);
    }
}
