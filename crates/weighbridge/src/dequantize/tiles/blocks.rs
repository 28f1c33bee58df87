//! Weights as GGML's blocks: the same codes and scales in other places, where blocks can say them exactly.

use crate::newer_std::as_chunks;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::Arc;

use half::f16;

use super::super::companion::Numbers;
use super::super::recipe::{Recipe, Value};
use super::super::segment::{Along, SEGMENT};
use super::{Maker, Step, Weights, unlike};
use crate::blocks::BlockType;
use crate::buffer::{self, Fault, copied};
use crate::cast::Overflow;
use crate::dtype::Dtype;
use crate::error::{Error, ErrorKind, Result};
use crate::plan::{Input, Piece, Tiles};

/// The weights of a block.
const BLOCK: usize = 32;

/// A recipe that is carried out as blocks.
#[derive(Debug)]
pub(super) struct BlockTiles {
    weights: Weights,
    block_type: BlockType,
    /// What the codes are flipped with, so that they are unsigned.
    flip: u8,
    /// What is added to a code besides.
    add: i16,
}

impl BlockTiles {
    /// # Errors
    ///
    /// Fails where blocks cannot say exactly what the recipe makes.
    pub(super) fn new(recipe: &Arc<Recipe>, inputs: &[Input]) -> Result<Self> {
        let (block_type, flip, add) = recipe.block_type(inputs)?;
        let weights = Weights::new(recipe, Dtype::F32, Overflow::default()).ok_or_else(unlike)?;
        Ok(Self { weights, block_type, flip, add })
    }

    pub(super) fn block_type(&self) -> BlockType {
        self.block_type
    }

    /// The weights of the blocks that have these bytes.
    fn weights_of(&self, bytes: &Range<u64>) -> Range<u64> {
        let (block, weights) = (self.block_type.bytes() as u64, BLOCK as u64);
        // As `Weights` counts: in bytes of `F32`.
        bytes.start / block * weights * 4..bytes.end.div_ceil(block) * weights * 4
    }
}

impl Tiles for BlockTiles {
    fn gather(&self, tile: Range<u64>, pieces: &mut Vec<Piece>) {
        self.weights.gather(self.weights_of(&tile), pieces);
    }

    fn compute<'t>(
        &self,
        tile: Range<u64>,
        gathered: &[u8],
        out: &'t mut [MaybeUninit<u8>],
    ) -> Result<&'t mut [u8]> {
        let mut rest = gathered;
        let (mut codes, mut scales) = (Vec::new(), Vec::new());
        let mut made = Vec::with_capacity(SEGMENT / BLOCK * self.block_type.bytes());
        // A tile may begin and end within a block.
        let mut skip = (tile.start % self.block_type.bytes() as u64) as usize;
        let wanted = [self.weights_of(&tile)];
        let mut bands = self.weights.gathered(&wanted);
        let mut maker: Option<Maker<'_>> = None;
        buffer::fill::<Fault>(out, |_, into| {
            let step = maker.as_mut().and_then(|maker| maker.step(&mut codes, &mut scales));
            let (Some(step), Some(maker)) = (step, &maker) else {
                let Some(band) = bands.next() else { return Ok(Some(&[])) };
                maker = Some(self.weights.maker(band, &mut rest)?);
                return Ok(None);
            };
            made.clear();
            self.blocks(&step, maker, &codes, &scales, &mut made)?;
            let bytes = made.get(skip..).unwrap_or_default();
            skip = 0;
            let len = bytes.len().min(into.len());
            Ok(Some(copied(&mut into[..len], &bytes[..len])))
        })
        .map_err(|Fault(error)| error)
    }

    fn step(&self) -> u64 {
        // As many weights as there are in a step of these.
        self.weights.step() / (4 * BLOCK as u64) * self.block_type.bytes() as u64
    }
}

impl BlockTiles {
    /// Appends the blocks of a step, whose codes are whole blocks.
    fn blocks(
        &self,
        step: &Step,
        maker: &Maker<'_>,
        codes: &[u8],
        scales: &[f32],
        made: &mut Vec<u8>,
    ) -> Result<()> {
        let Maker { recipe, parts, .. } = maker;
        let (row, column) = step.at;
        let of = |part| recipe.along(part, row);
        let zero = parts.zero.as_ref().map(of);
        let scale = parts.scale.as_ref().map(of).ok_or_else(unlike)?;
        let scale = if recipe.second.is_some() { Along { values: scales, ..scale } } else { scale };
        let bias = parts.bias.as_ref().map(of);
        let codes = codes.get(step.codes.clone()).unwrap_or_default();
        let (blocks, rest) = as_chunks::<BLOCK, _>(codes);
        if !rest.is_empty() {
            return Err(unlike());
        }
        for (codes, column) in blocks.iter().zip((column..).step_by(BLOCK)) {
            let exact = |what: &str, value: f32| {
                let half = f16::from_f32(value);
                (half.to_f32() == value).then_some(half).ok_or_else(|| {
                    let last = column + BLOCK - 1;
                    inexact(format!(
                        "the {what} of columns {column} to {last} of row {row}, {value:e}, is no F16"
                    ))
                })
            };
            made.extend(exact("scale", scale.of_column(column))?.to_le_bytes());
            if let Some(bias) = &bias {
                made.extend(exact("bias", bias.of_column(column))?.to_le_bytes());
            }
            let zero = zero.as_ref().map_or(0.0, |zero| zero.of_column(column));
            let codes = self.shifted(codes, zero).ok_or_else(|| {
                let name = self.block_type.name();
                inexact(format!(
                    "the zero point of column {column} of row {row}, {zero}, is none that {name} can have"
                ))
            })?;
            self.pack(&codes, made);
        }
        Ok(())
    }

    /// Codes as the block has them: without their zero point, and what the block subtracts added.
    fn shifted(&self, codes: &[u8; BLOCK], zero: f32) -> Option<[u8; BLOCK]> {
        let most = (1_i16 << self.weights.recipe.codes.bits) - 1;
        let (subtracted, range) = match self.block_type {
            BlockType::Q4_0 => (8, 0..=15),
            BlockType::Q4_1 => (0, 0..=15),
            BlockType::Q5_0 => (16, 0..=31),
            BlockType::Q5_1 => (0, 0..=31),
            // Of two's complement.
            _ => (0, -128..=127),
        };
        let whole = zero as i16;
        let offset =
            (f32::from(whole) == zero).then(|| self.add.checked_sub(whole)?.checked_add(subtracted))??;
        let fits = range.contains(&offset) && range.contains(&offset.checked_add(most)?);
        // Of 8 bits, whatever sign they have.
        fits.then(|| codes.map(|code| (code ^ self.flip).wrapping_add(offset as u8)))
    }

    /// Appends the codes of a block, in GGML's order: those of the first half are the low four bits of bytes,
    /// those of the second the high ones, and fifth bits are apart.
    fn pack(&self, codes: &[u8; BLOCK], made: &mut Vec<u8>) {
        if self.block_type == BlockType::Q8_0 {
            made.extend(codes);
            return;
        }
        if matches!(self.block_type, BlockType::Q5_0 | BlockType::Q5_1) {
            let fifths =
                (0..).zip(codes).fold(0_u32, |bits, (at, code)| bits | u32::from(code >> 4 & 1) << at);
            made.extend(fifths.to_le_bytes());
        }
        let (first, second) = codes.split_at(BLOCK / 2);
        let pairs: [u8; BLOCK / 2] = std::array::from_fn(|at| first[at] & 15 | second[at] << 4);
        made.extend(pairs);
    }
}

impl Recipe {
    /// The blocks that say exactly what it makes, what codes are flipped with to be unsigned, and what is
    /// added to them.
    fn block_type(&self, inputs: &[Input]) -> Result<(BlockType, u8, i16)> {
        let fail = |why: String| Err(inexact(why));
        let bits = self.codes.bits;
        let half = 1_i16 << (bits - 1);
        let (flip, add) = match &self.value {
            Value::Number(add) => (0, *add),
            Value::Signed => (half as u8, -half),
            _ => return fail("its codes stand for floating-point numbers; blocks have integers".to_owned()),
        };
        if self.columns % BLOCK != 0 {
            return fail(format!("rows of {} weights are not whole blocks of {BLOCK}", self.columns));
        }
        if self.scale.is_none() || self.last.is_some() || self.shift.is_some() {
            return fail("its weights are not integers times one scale".to_owned());
        }
        if self.factor.is_some() {
            return fail("each of its columns has a factor".to_owned());
        }
        let grids =
            [&self.scale, &self.zero, &self.bias].into_iter().flatten().map(|companion| companion.grid);
        match &self.groups {
            Some(groups)
                if groups.of_column.chunks(BLOCK).any(|block| block.iter().any(|its| *its != block[0])) =>
            {
                return fail(format!(
                    "its columns are in no order (act-order): {BLOCK} of them have several scales"
                ));
            }
            Some(_) => {}
            None => {
                let mut sizes = grids.map(|grid| grid.across);
                let is_whole = |size: usize| size % BLOCK == 0 || size >= self.columns;
                if let Some(size) = sizes.find(|&size| !is_whole(size)) {
                    return fail(format!("its groups of {size} weights are not whole blocks of {BLOCK}"));
                }
            }
        }
        if self.bias.is_some() {
            let is_plain = (flip, add) == (0, 0) && self.zero.is_none();
            return match bits {
                ..=4 if is_plain => Ok((BlockType::Q4_1, flip, add)),
                5 if is_plain => Ok((BlockType::Q5_1, flip, add)),
                _ => fail(format!("codes of {bits} bits have a bias, which blocks have for up to 5 bits")),
            };
        }
        let Some((least_zero, greatest_zero)) = self.zeros(inputs)? else {
            return fail("its zero points are floating-point numbers".to_owned());
        };
        let (least, most) = (add - greatest_zero, add + (2 * half - 1) - least_zero);
        let types = [(BlockType::Q4_0, 8), (BlockType::Q5_0, 16), (BlockType::Q8_0, 128)];
        let fits = |&&(_, half): &&(BlockType, i16)| -half <= least && most < half;
        match types.iter().find(fits) {
            Some((block_type, _)) => Ok((*block_type, flip, add)),
            None => fail(format!(
                "its zero points are not all in the middle: codes of {bits} bits without them are from {least} to {most}, and \
                 blocks have 8 bits at the most"
            )),
        }
    }

    /// The range of its zero points; `None` if they are no integers.
    pub(super) fn zeros(&self, inputs: &[Input]) -> Result<Option<(i16, i16)>> {
        let Some(zero) = &self.zero else { return Ok(Some((0, 0))) };
        let input = inputs.get(zero.input).ok_or_else(unlike)?;
        let one = only_byte(input)?;
        Ok(Some(match &zero.numbers {
            Numbers::Packed { codes, add, .. } => {
                let mask = ((1_u16 << codes.bits) - 1) as u8;
                // If all bytes are the same, and all codes in them, there is one zero point.
                let field = one.map(|byte| byte & mask).filter(|field| {
                    let times = if 8 % codes.bits == 0 { 8 / codes.bits } else { 0 };
                    times > 0 && one == Some((0..times).fold(0, |byte, at| byte | field << (at * codes.bits)))
                });
                match field {
                    Some(field) => {
                        let value = i16::from(field.wrapping_add(*add) & mask);
                        (value, value)
                    }
                    None => (0, i16::from(mask)),
                }
            }
            Numbers::Stored(Dtype::I8) => match one {
                Some(byte) => (i16::from(i8::from_le_bytes([byte])), i16::from(i8::from_le_bytes([byte]))),
                None => (-128, 127),
            },
            Numbers::Stored(Dtype::U8) => match one {
                Some(byte) => (i16::from(byte), i16::from(byte)),
                None => (0, 255),
            },
            _ => return Ok(None),
        }))
    }
}

/// The byte that a stored tensor has everywhere, if there is one.
fn only_byte(input: &Input) -> Result<Option<u8>> {
    const CHUNK: u64 = 256 << 10;
    let Range { start, end } = input.range();
    let mut only = None;
    let mut chunk = Vec::new();
    for at in (start..end).step_by(CHUNK as usize) {
        chunk.resize((end - at).min(CHUNK) as usize, 0);
        let read = input.shard().source().read_at(at, &mut chunk);
        read.map_err(|error| Error::io("its zero points cannot be read", error))?;
        let first = *only.get_or_insert(*chunk.first().ok_or_else(unlike)?);
        if chunk.iter().any(|&byte| byte != first) {
            return Ok(None);
        }
    }
    Ok(only)
}

/// The error that blocks do not have it exactly.
fn inexact(why: String) -> Error {
    Error::new(ErrorKind::Unsupported, format!("GGML's blocks do not hold it exactly: {why}"))
}
