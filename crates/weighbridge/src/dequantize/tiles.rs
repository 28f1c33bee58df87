//! Makes dense weights, tile by tile.

mod apart;
mod blocks;

use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::Arc;

use super::codes::{STRIP, Window};
use super::companion::Patch;
use super::recipe::{Band, Gathered, Recipe};
use super::segment::{Parts, SEGMENT, Segment};
use crate::blocks::BlockType;
use crate::buffer::{self, Fault, copied};
use crate::cast::{Instructions, Kernel, Overflow, Work};
use crate::dtype::Dtype;
use crate::error::{Error, ErrorKind, Result};
use crate::plan::{Derive, Input, Piece, Tiles};
pub(crate) use apart::Apart;

/// A recipe, and the dtype of what it makes.
#[derive(Debug)]
pub(super) struct Weights {
    recipe: Arc<Recipe>,
    dtype: Dtype,
    /// From `F32`; `None` if that is the dtype.
    round: Option<Kernel>,
    instructions: Instructions,
}

/// Memory that is used again for every row.
struct Scratch {
    codes: Vec<u8>,
    values: [f32; SEGMENT],
    scales: Vec<f32>,
}

impl Weights {
    pub(super) fn new(recipe: &Arc<Recipe>, dtype: Dtype, overflow: Overflow) -> Option<Self> {
        let round = match dtype {
            Dtype::F32 => None,
            _ => Some(Kernel::of(Dtype::F32, dtype, overflow)?),
        };
        let instructions = Instructions::detect();
        (dtype.bits() % 8 == 0).then(|| Self { recipe: Arc::clone(recipe), dtype, round, instructions })
    }

    fn size(&self) -> u64 {
        u64::from(self.dtype.bits() / 8)
    }

    fn gathered(&self, ranges: &[Range<u64>]) -> impl Iterator<Item = Gathered<'_>> {
        let size = self.size();
        let elements = ranges.iter().map(|range| range.start / size..range.end / size);
        self.recipe.bands(elements).into_iter().map(|band| self.recipe.gathered(band))
    }

    /// What makes the weights of a band out of the start of `rest`, which is taken away.
    fn maker<'w>(&'w self, gathered: Gathered<'w>, rest: &mut &'w [u8]) -> Result<Maker<'w>> {
        let recipe = &*self.recipe;
        let mut take = |len: usize| {
            let (bytes, behind) = rest.split_at_checked(len).ok_or_else(unlike)?;
            *rest = behind;
            Ok::<_, Error>(bytes)
        };
        let Patch { rows, columns, .. } = &gathered.codes;
        let place = recipe.codes.place(rows, columns);
        let window = Window::new(place, take(place.len())?);
        let mut companions = Vec::with_capacity(gathered.companions.len());
        for (companion, patch) in &gathered.companions {
            let values = companion.values(patch, take(companion.len(patch))?)?;
            companions.push((patch.columns.start, companion.grid.across, values));
        }
        let mut companions = companions.into_iter();
        let mut next = |is_there: bool| if is_there { companions.next() } else { None };
        let parts = Parts {
            zero: next(recipe.zero.is_some()),
            scale: next(recipe.scale.is_some()),
            second: next(recipe.second.is_some()),
            bias: next(recipe.bias.is_some()),
            shift: next(recipe.shift.is_some()),
            factor: next(recipe.factor.is_some()),
            is_rounded: recipe.rounded == Some(self.dtype),
        };
        let Band { rows, columns, head, .. } = &gathered.band;
        let (row, column) = (rows.start, columns.start + head);
        let (band, instructions) = (gathered.band, self.instructions);
        Ok(Maker {
            recipe,
            band,
            window,
            parts,
            row,
            column,
            unpacked: 0..0,
            scaled: usize::MAX,
            instructions,
        })
    }
}

/// Makes the weights of a band in their order.
struct Maker<'w> {
    recipe: &'w Recipe,
    band: Band,
    window: Window<'w>,
    parts: Parts,
    /// Where it is.
    row: usize,
    column: usize,
    /// The rows whose codes have been unpacked.
    unpacked: Range<usize>,
    /// The row whose scales have been multiplied.
    scaled: usize,
    instructions: Instructions,
}

impl Maker<'_> {
    /// Makes the next weights, as many as there are until the end of the row or of a segment; none at the end of the
    /// band.
    fn next<'s>(&mut self, scratch: &'s mut Scratch) -> &'s mut [f32] {
        let Some(Step { at, codes }) = self.step(&mut scratch.codes, &mut scratch.scales) else {
            return &mut [];
        };
        let Self { recipe, parts, instructions, .. } = self;
        let codes = scratch.codes.get(codes).unwrap_or_default();
        let values = &mut scratch.values[..codes.len()];
        let scales = if recipe.second.is_some() { &scratch.scales } else { parts.scales(at.0) };
        instructions.run(Segment { recipe, at, codes, parts, scales, out: values });
        values
    }

    /// Finds the codes of the next weights, and their scales if these are products.
    // A call would have to wait until all weights before are in the cache, to read what it returns.
    #[inline(always)]
    fn step(&mut self, codes: &mut Vec<u8>, scales: &mut Vec<f32>) -> Option<Step> {
        let Self { recipe, band, window, parts, row, column, unpacked, scaled, instructions } = self;
        let Band { rows, columns, tail, .. } = band;
        if *row >= rows.end {
            return None;
        }
        let (width, at) = (columns.len(), (*row, *column));
        if !unpacked.contains(row) {
            let (first, end) = match recipe.across {
                // From the start of a word.
                true => {
                    let first = *row / 8 * 8;
                    let last = rows.end.next_multiple_of(8).min(recipe.rows);
                    (first, (first + recipe.codes.strip()).min(last))
                }
                false => (*row, *row + 1),
            };
            *unpacked = first..end;
            codes.resize(unpacked.len() * stride_of(width), 0);
            let (rows, columns) = (unpacked.clone(), columns.clone());
            instructions.run(Unpack { recipe, window, rows, columns, out: codes });
        }
        if *scaled != *row {
            parts.multiply_scales(*row, recipe, scales);
            *scaled = *row;
        }
        let end = columns.end - if *row + 1 == rows.end { *tail } else { 0 };
        let until = end.min((*column / SEGMENT + 1) * SEGMENT);
        let start = (*row - unpacked.start) * stride_of(width) + *column - columns.start;
        let codes = start..start + until - *column;
        *column = until;
        if until == end {
            *row += 1;
            *column = columns.start;
        }
        Some(Step { at, codes })
    }
}

/// Weights that are made next: the row and first column, and where their codes are.
struct Step {
    at: (usize, usize),
    codes: Range<usize>,
}

/// The bytes from the codes of one row to those of the next: not a multiple of a page, which would put all of them into the
/// same places of the cache.
fn stride_of(width: usize) -> usize {
    width.next_multiple_of(64) | 64
}

/// Codes of rows, one to a byte.
struct Unpack<'w> {
    recipe: &'w Recipe,
    window: &'w Window<'w>,
    rows: Range<usize>,
    columns: Range<usize>,
    out: &'w mut [u8],
}

impl Work for Unpack<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { recipe: Recipe { codes, across, .. }, window, rows, columns, out } = self;
        let width = columns.len();
        match across {
            true => codes.strip_of(window, columns, rows, stride_of(width), out),
            false => codes.row(window, rows.start, columns, &mut out[..width]),
        }
    }
}

impl Tiles for Weights {
    fn gather(&self, tile: Range<u64>, pieces: &mut Vec<Piece>) {
        self.gather_all(&[tile], pieces);
    }

    fn compute<'t>(
        &self,
        tile: Range<u64>,
        gathered: &[u8],
        out: &'t mut [MaybeUninit<u8>],
    ) -> Result<&'t mut [u8]> {
        self.compute_all(&[tile], gathered, out)
    }

    fn in_dtype(&self, dtype: Dtype, overflow: Overflow) -> Option<Arc<dyn Tiles>> {
        // Other dtypes take another way than one through `F32`, or may be refused.
        let is_float = matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16);
        let made = is_float.then(|| Self::new(&self.recipe, dtype, overflow))??;
        Some(Arc::new(made))
    }

    fn step(&self) -> u64 {
        /// Of rows that are unpacked together, no less is made than this.
        const ACROSS: u64 = 1 << 20;
        let strips = STRIP as u64 * self.recipe.columns as u64 * self.size();
        match self.recipe.across && strips > 0 {
            true => strips * ACROSS.div_ceil(strips).max(1),
            false => 256 << 10,
        }
    }

    fn is_native(&self) -> bool {
        true
    }
}

impl Derive for Weights {
    fn as_tiles(self: Arc<Self>) -> Arc<dyn Tiles> {
        self
    }

    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn blocks(&self, inputs: &[Input]) -> Result<(BlockType, Arc<dyn Tiles>)> {
        let tiles = blocks::BlockTiles::new(&self.recipe, inputs)?;
        Ok((tiles.block_type(), Arc::new(tiles)))
    }

    fn apart(&self, inputs: &[Input]) -> Result<Apart> {
        Apart::new(&self.recipe, inputs)
    }

    fn gather_all(&self, ranges: &[Range<u64>], pieces: &mut Vec<Piece>) {
        self.gathered(ranges).for_each(|gathered| gathered.ranges(pieces));
    }

    fn compute_all<'t>(
        &self,
        ranges: &[Range<u64>],
        gathered: &[u8],
        out: &'t mut [MaybeUninit<u8>],
    ) -> Result<&'t mut [u8]> {
        let mut rest = gathered;
        let mut scratch = Scratch { codes: Vec::new(), values: [0.0; SEGMENT], scales: Vec::new() };
        let mut bands = self.gathered(ranges);
        let mut maker: Option<Maker<'_>> = None;
        let size = self.size() as usize;
        buffer::fill::<Fault>(out, |_, into| {
            let values = maker.as_mut().map_or(&mut [][..], |maker| maker.next(&mut scratch));
            if values.is_empty() {
                let Some(band) = bands.next() else { return Ok(Some(&[])) };
                maker = Some(self.maker(band, &mut rest)?);
                return Ok(None);
            }
            let into = into.get_mut(..values.len() * size).ok_or_else(unlike)?;
            Ok(Some(match &self.round {
                Some(round) => {
                    // Casts take bytes as a file has them.
                    values.iter_mut().for_each(|value| *value = f32::from_bits(value.to_bits().to_le()));
                    round.run(bytemuck::cast_slice(values), into).map_err(Error::from)?
                }
                None => copied(into, bytemuck::cast_slice(values)),
            }))
        })
        .map_err(|Fault(error)| error)
    }
}

fn unlike() -> Error {
    Error::new(ErrorKind::Internal, "codes and what was gathered for them differ in length")
}
