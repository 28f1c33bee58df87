//! The tiles of a blend, made block by block.

use std::borrow::Cow;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use super::Blend;
use super::block::{BLOCK, Block};
use super::loops::{AddBase, AddScaled, All, Average, Chosen, Divide, Elect, From, Scale, TakeDifferences};
use super::measure::{self, Keep, Measured, Term};
use crate::buffer::{self, Fault};
use crate::cast::{Instructions, Kernel, swap_bytes};
use crate::dtype::Dtype;
use crate::error::{Error, ErrorKind, Result};
use crate::plan::operation::{Piece, Tiles};
use crate::plan::{Input, Overflow};

/// Elements that are made at a time.
const STEP: u64 = 64 << 10;

/// What is blended, in whatever dtype.
#[derive(Debug)]
pub(super) struct Blending {
    pub(super) blend: Blend,
    pub(super) inputs: Vec<Input>,
    /// Of each input, to `F32`.
    kernels: Vec<Option<Kernel>>,
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
        let kernel = |input: &Input| Kernel::of(input.dtype(), Dtype::F32, Overflow::Infinity);
        let kernels = inputs.iter().map(kernel).collect();
        let of = Arc::new(Blending { blend, inputs, kernels, instructions, measured: OnceLock::new() });
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
        let kept = if self.of.blend.method.elects() { stored.len() } else { 1 };
        let mut blocks = Blocks::new(kept);
        buffer::fill::<Fault>(out, |done, rest| {
            let (done, most) = (done / size, (rest.len() / size).min(BLOCK));
            let first = elements.start + done as u64;
            // The choice of elements is by halves of their index.
            let count = most.min(usize::try_from((1 << 32) - (first & 0xFFFF_FFFF)).unwrap_or(most));
            let stored = Stored { of: &stored, elements: done..done + count };
            self.of.block(measured, first, &stored, &mut blocks)?;
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

/// The stored elements of a block.
struct Stored<'g> {
    /// Of each input, those of the whole tile.
    of: &'g [(Kernel, &'g [u8], usize)],
    elements: Range<usize>,
}

impl Stored<'_> {
    fn count(&self) -> usize {
        self.elements.len()
    }

    /// The values of an input.
    fn values<'b>(&self, input: usize, block: &'b mut Block) -> Result<&'b [f32]> {
        let (kernel, stored, size) = self.of.get(input).ok_or_else(unlike)?;
        let bytes = self.elements.start * size..self.elements.end * size;
        block.cast(kernel, stored.get(bytes).ok_or_else(unlike)?, self.count())
    }
}

/// Memory for blocks of inputs, and for what is made of them.
struct Blocks {
    base: Block,
    values: Block,
    /// Of each model.
    differences: Vec<[f32; BLOCK]>,
    sums: [f32; BLOCK],
    totals: [f32; BLOCK],
    weights: [f32; BLOCK],
}

impl Blocks {
    fn new(kept: usize) -> Self {
        let zeros = [0.0; BLOCK];
        let (base, values, differences) = (Block::new(), Block::new(), vec![zeros; kept]);
        Self { base, values, differences, sums: zeros, totals: zeros, weights: zeros }
    }
}

impl Blending {
    fn measured(&self) -> Result<&Measured> {
        self.measured.get_or_init(|| measure::measure(self)).as_ref().map_err(Clone::clone)
    }

    /// The bytes of each input, with the size of an element.
    fn split<'g>(&self, gathered: &'g [u8], elements: u64) -> Result<Vec<(Kernel, &'g [u8], usize)>> {
        let mut rest = gathered;
        let stored = self.inputs.iter().zip(&self.kernels).map(|(input, kernel)| {
            let size = input.dtype().bits() as usize / 8;
            let (stored, behind) = rest.split_at_checked(elements as usize * size).ok_or_else(unlike)?;
            rest = behind;
            Ok(((*kernel).ok_or_else(unlike)?, stored, size))
        });
        stored.collect()
    }

    /// Makes the sums of a block.
    fn block(&self, measured: &Measured, first: u64, stored: &Stored<'_>, blocks: &mut Blocks) -> Result<()> {
        let count = stored.count();
        blocks.sums[..count].fill(0.0);
        match measured {
            Measured::Sum { weights, divisor } => {
                let sums = &mut blocks.sums[..count];
                for (input, &weight) in weights.iter().enumerate() {
                    let values = stored.values(input, &mut blocks.values)?;
                    self.instructions.run(AddScaled { values, weight, sums });
                }
                if let Some(divisor) = *divisor {
                    self.instructions.run(Divide { values: sums, divisor });
                }
            }
            Measured::Differences { terms, divisor } => {
                let base = stored.values(0, &mut blocks.base)?;
                let made = Made {
                    values: &mut blocks.values,
                    differences: &mut blocks.differences,
                    sums: &mut blocks.sums[..count],
                    totals: &mut blocks.totals[..count],
                    weights: &mut blocks.weights[..count],
                };
                self.differences(terms, first, stored, base, made)?;
                let sums = &mut blocks.sums[..count];
                if let Some(divisor) = *divisor {
                    self.instructions.run(Divide { values: sums, divisor });
                }
                let factor = self.blend.lambda as f32;
                if factor != 1.0 {
                    self.instructions.run(Scale { values: sums, factor });
                }
                self.instructions.run(AddBase { base, sums });
            }
        }
        Ok(())
    }

    /// Makes the sums of the models' differences from the base, which comes first.
    fn differences(
        &self,
        terms: &[Term],
        first: u64,
        stored: &Stored<'_>,
        base: &[f32],
        made: Made<'_>,
    ) -> Result<()> {
        let Made { values: block, differences, sums, totals, weights } = made;
        let (how, count, elects) = (self.instructions, base.len(), self.blend.method.elects());
        totals.fill(0.0);
        for (model, term) in terms.iter().enumerate() {
            let values = stored.values(model + 1, block)?;
            // Only an election needs those of all models.
            let place = if elects { model } else { 0 };
            let differences = &mut differences.get_mut(place).ok_or_else(unlike)?[..count];
            let (weight, sums) = (term.weight, if elects { &mut *totals } else { &mut *sums });
            match &term.keep {
                Keep::All => {
                    how.run(TakeDifferences { base, values, filter: All, weight, sums, differences });
                }
                Keep::From(least) => {
                    how.run(TakeDifferences {
                        base,
                        values,
                        filter: From(*least),
                        weight,
                        sums,
                        differences,
                    });
                }
                Keep::Random { mask, factor } => {
                    let filter = Chosen { choice: mask.from(first).0, factor: *factor };
                    how.run(TakeDifferences { base, values, filter, weight, sums, differences });
                }
            }
        }
        if !elects {
            return Ok(());
        }
        weights.fill(0.0);
        for (differences, term) in differences.iter().zip(terms) {
            let (differences, weight) = (&differences[..count], term.weight);
            how.run(Elect { differences, weight, totals, sums, weights });
        }
        if self.blend.normalize {
            how.run(Average { sums, weights });
        }
        Ok(())
    }
}

/// What is made of a block.
struct Made<'b> {
    values: &'b mut Block,
    differences: &'b mut [[f32; BLOCK]],
    sums: &'b mut [f32],
    totals: &'b mut [f32],
    weights: &'b mut [f32],
}
