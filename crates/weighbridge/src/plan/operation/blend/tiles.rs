//! The tiles of a blend, made block by block.

use std::borrow::Cow;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use super::Blend;
use super::loops::{AddBase, AddScaled, Average, Divide, Drop, Elect, Scale, Subtract, Trim};
use super::measure::{self, Keep, Measured, Term};
use crate::buffer::{self, Fault};
use crate::cast::{Instructions, Kernel, swap_bytes};
use crate::dtype::Dtype;
use crate::error::{Error, ErrorKind, Result};
use crate::plan::operation::{Piece, Tiles};
use crate::plan::{Input, Overflow, cast_into};

/// Elements of a block: with some inputs it stays in the first-level cache.
const BLOCK: usize = 1024;

/// Elements that are made at a time.
const STEP: u64 = 64 << 10;

/// What is blended, in whatever dtype.
#[derive(Debug)]
pub(super) struct Blending {
    pub(super) blend: Blend,
    pub(super) inputs: Vec<Input>,
    pub(super) instructions: Instructions,
    /// What was found out about the whole tensors, when the first tile is made.
    measured: OnceLock<Result<Measured>>,
}

#[derive(Debug)]
pub(super) struct BlendTiles {
    of: Arc<Blending>,
    to: Dtype,
    /// From `F32`.
    kernel: Option<Kernel>,
}

impl BlendTiles {
    pub(super) fn new(blend: &Blend, inputs: &[Input]) -> Self {
        Self::with(blend, inputs, Instructions::detect())
    }

    pub(super) fn with(blend: &Blend, inputs: &[Input], instructions: Instructions) -> Self {
        let (blend, inputs) = (blend.clone(), inputs.to_vec());
        let of = Arc::new(Blending { blend, inputs, instructions, measured: OnceLock::new() });
        Self { of, to: Dtype::F32, kernel: Kernel::of(Dtype::F32, Dtype::F32, Overflow::Infinity) }
    }

    /// The elements of a tile, counted from the first of the tensor.
    fn elements(&self, tile: &Range<u64>) -> Range<u64> {
        let size = u64::from(self.to.bits() / 8);
        tile.start / size..tile.end / size
    }
}

impl Tiles for BlendTiles {
    fn gather(&self, tile: Range<u64>, pieces: &mut Vec<Piece>) {
        let Range { start, end } = self.elements(&tile);
        pieces.extend(self.of.inputs.iter().enumerate().map(|(input, of)| {
            let size = u64::from(of.dtype().bits() / 8);
            Piece { input, bytes: start * size..end * size }
        }));
    }

    fn compute<'t>(
        &self,
        tile: Range<u64>,
        gathered: &[u8],
        out: &'t mut [MaybeUninit<u8>],
    ) -> Result<&'t mut [u8]> {
        let measured = self.of.measured()?;
        let kernel = self.kernel.as_ref().ok_or_else(unlike)?;
        let elements = self.elements(&tile);
        let stored = self.of.split(gathered, elements.end - elements.start)?;
        let size = self.to.bits() as usize / 8;
        let mut blocks = Blocks::new(stored.len());
        buffer::fill::<Fault>(out, |done, rest| {
            let (done, most) = (done / size, (rest.len() / size).min(BLOCK));
            let first = elements.start + done as u64;
            // The choice of elements is by halves of their index.
            let count = most.min(usize::try_from((1 << 32) - (first & 0xFFFF_FFFF)).unwrap_or(most));
            for (block, (dtype, stored)) in blocks.inputs.iter_mut().zip(&stored) {
                let size = dtype.bits() as usize / 8;
                let stored = stored.get(done * size..(done + count) * size).ok_or_else(unlike)?;
                cast_into(*dtype, stored, &mut block[..count])?;
            }
            self.of.block(measured, first, count, &mut blocks);
            let mut made: Cow<'_, [u8]> = Cow::Borrowed(bytemuck::cast_slice(&blocks.sums[..count]));
            if cfg!(target_endian = "big") {
                swap_bytes(Dtype::F32, made.to_mut());
            }
            let made = kernel.run(&made, &mut rest[..count * size]).map_err(Error::from)?;
            Ok(Some(made))
        })
        .map_err(|Fault(error)| error)
    }

    fn step(&self) -> u64 {
        STEP * u64::from(self.to.bits() / 8)
    }

    fn in_dtype(&self, dtype: Dtype, overflow: Overflow) -> Option<Arc<dyn Tiles>> {
        // Elements of a tile are found by whole bytes.
        let kernel = Kernel::of(Dtype::F32, dtype, overflow).filter(|_| dtype.bits() >= 8)?;
        Some(Arc::new(Self { of: Arc::clone(&self.of), to: dtype, kernel: Some(kernel) }))
    }

    fn is_native(&self) -> bool {
        true
    }
}

fn unlike() -> Error {
    Error::new(ErrorKind::Internal, "a blend and what was gathered for it differ in length")
}

/// Memory for a block of each input, and for what is made of them.
struct Blocks {
    inputs: Vec<[f32; BLOCK]>,
    sums: [f32; BLOCK],
    totals: [f32; BLOCK],
    weights: [f32; BLOCK],
}

impl Blocks {
    fn new(inputs: usize) -> Self {
        let zeros = [0.0; BLOCK];
        Self { inputs: vec![zeros; inputs], sums: zeros, totals: zeros, weights: zeros }
    }
}

impl Blending {
    fn measured(&self) -> Result<&Measured> {
        self.measured.get_or_init(|| measure::measure(self)).as_ref().map_err(Clone::clone)
    }

    /// The bytes of each input, and their dtype.
    fn split<'g>(&self, gathered: &'g [u8], elements: u64) -> Result<Vec<(Dtype, &'g [u8])>> {
        let mut rest = gathered;
        let stored = self.inputs.iter().map(|input| {
            let len = elements * u64::from(input.dtype().bits() / 8);
            let (stored, behind) = rest.split_at_checked(len as usize).ok_or_else(unlike)?;
            rest = behind;
            Ok((input.dtype(), stored))
        });
        stored.collect()
    }

    /// Makes the sums of a block whose inputs are there.
    fn block(&self, measured: &Measured, first: u64, count: usize, blocks: &mut Blocks) {
        blocks.sums[..count].fill(0.0);
        match measured {
            Measured::Sum { weights, divisor } => {
                let sums = &mut blocks.sums[..count];
                for (values, &weight) in blocks.inputs.iter().zip(weights) {
                    self.instructions.run(AddScaled { values: &values[..count], weight, sums });
                }
                if let Some(divisor) = *divisor {
                    self.instructions.run(Divide { values: sums, divisor });
                }
            }
            Measured::Differences { terms, divisor } => {
                self.differences(terms, first, count, blocks);
                let sums = &mut blocks.sums[..count];
                if let Some(divisor) = *divisor {
                    self.instructions.run(Divide { values: sums, divisor });
                }
                let factor = self.blend.lambda as f32;
                if factor != 1.0 {
                    self.instructions.run(Scale { values: sums, factor });
                }
                if let Some(base) = blocks.inputs.first() {
                    self.instructions.run(AddBase { base: &base[..count], sums });
                }
            }
        }
    }

    /// Makes the sums of the models' differences from the base, which come first.
    fn differences(&self, terms: &[Term], first: u64, count: usize, blocks: &mut Blocks) {
        let Blocks { inputs, sums, totals, weights } = blocks;
        let Some((base, models)) = inputs.split_first_mut() else { return };
        let (base, sums, totals) = (&base[..count], &mut sums[..count], &mut totals[..count]);
        let how = self.instructions;
        for (values, term) in models.iter_mut().zip(terms) {
            let values = &mut values[..count];
            how.run(Subtract { base, values });
            match &term.keep {
                Keep::All => {}
                Keep::From(least) => how.run(Trim { values, least: *least }),
                Keep::Random { mask, factor } => {
                    how.run(Drop { values, choice: mask.from(first).0, factor: *factor });
                }
            }
            how.run(Scale { values, factor: term.weight });
        }
        let elects = self.blend.method.elects();
        let all = if elects { &mut *totals } else { &mut *sums };
        all.fill(0.0);
        for values in models.iter() {
            how.run(AddBase { base: &values[..count], sums: all });
        }
        if !elects {
            return;
        }
        let weights = &mut weights[..count];
        weights.fill(0.0);
        for (values, term) in models.iter().zip(terms) {
            let (differences, weight) = (&values[..count], term.weight);
            how.run(Elect { differences, weight, totals, sums, weights });
        }
        if self.blend.normalize {
            how.run(Average { sums, weights });
        }
    }
}
