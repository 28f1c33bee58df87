//! Numbers that are computed from blocks when they are read.

use std::io;
use std::sync::Arc;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use weighbridge::{Dtype, Result, Source};

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
