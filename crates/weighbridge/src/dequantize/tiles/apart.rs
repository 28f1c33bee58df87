//! Weights as codes and scales apart: the codes of all weights first, then the scales.

use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::Arc;

use super::super::recipe::{Recipe, Second, Value};
use super::super::tables;
use super::{Maker, Weights, unlike};
use crate::buffer::{self, Fault, copied};
use crate::cast::Overflow;
use crate::dtype::Dtype;
use crate::error::{Error, ErrorKind, Result};
use crate::plan::{Input, Piece, Tiles};
use crate::scaled::CodeType;

/// A recipe of codes times scales.
#[derive(Clone, Debug)]
pub(crate) struct Apart {
    /// Without zero points.
    recipe: Arc<Recipe>,
    code_type: CodeType,
    /// What each stored code becomes.
    codes: Arc<[u8; 256]>,
    /// Scales are multiplied by it: a power of two.
    factor: f32,
}

impl Apart {
    /// # Errors
    ///
    /// Fails where codes and scales are not all that the recipe says.
    pub(super) fn new(recipe: &Recipe, inputs: &[Input]) -> Result<Self> {
        let fail = |why: &str| Err(inexact(why));
        if recipe.scale.is_none() || recipe.last.is_some() {
            return fail("it is multiplied by something else, too");
        }
        if recipe.bias.is_some() || recipe.shift.is_some() {
            return fail("its groups have biases");
        }
        if recipe.factor.is_some() {
            return fail("each of its columns has a factor");
        }
        if recipe.groups.is_some() {
            return fail("its columns are in no order (act-order)");
        }
        let (code_type, codes, factor) = recipe.code_type(inputs)?;
        let recipe = Arc::new(Recipe { zero: None, rounded: None, ..recipe.clone() });
        Ok(Self { recipe, code_type, codes: Arc::new(codes), factor })
    }

    pub(crate) fn code_type(&self) -> CodeType {
        self.code_type
    }

    /// The rows and columns that share a scale; `None` if all do.
    pub(crate) fn group(&self) -> Option<[usize; 2]> {
        let Recipe { matrices, rows, columns, ref scale, ref second, .. } = *self.recipe;
        let grid = scale.as_ref()?.grid;
        let size =
            |each: usize, step: usize, all: usize| if step == 0 { all } else { each.clamp(1, all.max(1)) };
        let group = [size(grid.down, grid.row, rows), size(grid.across, grid.column, columns)];
        let second = second.as_ref().map_or(0, |(second, _)| second.grid.matrix);
        let is_one = group == [rows, columns] && (matrices == 1 || grid.matrix == 0 && second == 0);
        (!is_one).then_some(group)
    }

    pub(crate) fn transposed(&self) -> Self {
        let mut recipe = (*self.recipe).clone();
        std::mem::swap(&mut recipe.rows, &mut recipe.columns);
        recipe.across = !recipe.across;
        let second = recipe.second.as_mut().map(|(second, _)| second);
        for companion in recipe.scale.iter_mut().chain(second) {
            let grid = &mut companion.grid;
            std::mem::swap(&mut grid.down, &mut grid.across);
            std::mem::swap(&mut grid.row, &mut grid.column);
        }
        Self { recipe: Arc::new(recipe), ..self.clone() }
    }

    /// What makes it, with a scale for each block, and the number of bytes.
    ///
    /// # Errors
    ///
    /// Fails if blocks go beyond groups or dimensions, or rows of codes end within a byte.
    pub(crate) fn tiles(&self, blocks: Option<[usize; 2]>) -> Result<(usize, Arc<dyn Tiles>)> {
        let Recipe { matrices, rows, columns, .. } = *self.recipe;
        let bits = self.code_type.bits() as usize;
        // Nothing of a row is more than a scale for each of its codes.
        columns.checked_mul(32).ok_or_else(unlike)?;
        if (columns * bits) % 8 != 0 {
            return Err(inexact(&format!("rows of {columns} codes of {bits} bits are not whole bytes")));
        }
        let (matrices_of_scales, block) = match (blocks, self.group()) {
            (None, None) => (1, [rows, columns]),
            (None, Some(_)) => return Err(inexact("it has more than one scale")),
            (Some(block), group) => {
                let group = group.unwrap_or([rows, columns]);
                let fits = |size: usize, group: usize, all: usize| {
                    size > 0 && all % size == 0 && (group % size == 0 || group >= all)
                };
                if !fits(block[0], group[0], rows) || !fits(block[1], group[1], columns) {
                    return Err(inexact(&format!(
                        "its groups of {} x {} in {rows} x {columns} weights are no whole number of blocks of {} x {}",
                        group[0], group[1], block[0], block[1]
                    )));
                }
                (matrices, block)
            }
        };
        let count = |of: usize, each: usize| of.checked_div(each).unwrap_or(1);
        let grid = [matrices_of_scales, count(rows, block[0]), count(columns, block[1])];
        let codes_len = matrices * rows * (columns * bits / 8);
        let len = grid.iter().try_fold(4_usize, |product, &dim| product.checked_mul(dim));
        let len = len.and_then(|scales| scales.checked_add(codes_len)).ok_or_else(unlike)?;
        let bare = Arc::new(Recipe { scale: None, second: None, ..(*self.recipe).clone() });
        let weights = Weights::new(&bare, Dtype::F32, Overflow::default()).ok_or_else(unlike)?;
        let tiles = ApartTiles { apart: self.clone(), weights, grid, block, codes_len: codes_len as u64 };
        Ok((len, Arc::new(tiles)))
    }
}

/// A recipe that is carried out as codes and scales.
#[derive(Debug)]
struct ApartTiles {
    apart: Apart,
    /// The recipe without scales.
    weights: Weights,
    /// Matrices, rows and columns of scales.
    grid: [usize; 3],
    /// The rows and columns of weights that one is for.
    block: [usize; 2],
    /// The bytes of all codes.
    codes_len: u64,
}

impl ApartTiles {
    /// The bytes of a tile that are codes, and those that are scales, which are counted from the first scale.
    fn split(&self, tile: &Range<u64>) -> [Range<u64>; 2] {
        let (codes, start) = (self.codes_len, tile.start);
        [start.min(codes)..tile.end.min(codes), start.saturating_sub(codes)..tile.end.saturating_sub(codes)]
    }

    /// The weights of these bytes of codes, as `Weights` counts: in bytes of `F32`.
    fn weights_of(&self, codes: &Range<u64>) -> Range<u64> {
        let each = u64::from(8 / self.apart.code_type.bits()) * 4;
        codes.start * each..codes.end * each
    }

    /// The matrices and rows of weights, and the rows of scales of all matrices, that these bytes of scales are of.
    fn rows_of(&self, scales: &Range<u64>) -> impl Iterator<Item = (usize, Range<usize>)> {
        let [_, rows, columns] = self.grid;
        let [down, _] = self.block;
        let row = (columns * 4).max(1) as u64;
        let (mut at, end) = ((scales.start / row) as usize, scales.end.div_ceil(row) as usize);
        let is_some = !scales.is_empty();
        std::iter::from_fn(move || {
            if !is_some || at >= end {
                return None;
            }
            let (matrix, first) = (at / rows.max(1), at % rows.max(1));
            let last = rows.min(first + end - at);
            at += last - first;
            Some((matrix, first * down..last * down))
        })
    }

    /// Appends the bytes of whole rows of scales.
    fn scales(&self, scales: &Range<u64>, mut gathered: &[u8], made: &mut Vec<u8>) -> Result<()> {
        let Apart { recipe, factor, .. } = &self.apart;
        let ([_, _, columns], [down, across]) = (self.grid, self.block);
        let all = 0..recipe.columns;
        for (matrix, rows) in self.rows_of(scales) {
            let mut values = |companion: &super::super::companion::Companion| {
                let patch = companion.patch(matrix, &rows, &all, None);
                let (bytes, rest) = gathered.split_at_checked(companion.len(&patch)).ok_or_else(unlike)?;
                gathered = rest;
                Ok::<_, Error>((companion.grid.across.max(1), companion.values(&patch, bytes)?))
            };
            let (each, of_groups) = values(recipe.scale.as_ref().ok_or_else(unlike)?)?;
            let second = recipe.second.as_ref();
            let second = second.map(|(second, how)| Ok::<_, Error>((values(second)?.1, how))).transpose()?;
            for row in rows.clone().step_by(down.max(1)) {
                let (of_groups, second) = (
                    of_groups.row(row),
                    second.as_ref().map(|(second, how)| (second.row(row).first().copied(), *how)),
                );
                for column in (0..columns).map(|column| column * across) {
                    let scale = *of_groups.get(column / each).ok_or_else(unlike)?;
                    let product = match second {
                        None => scale,
                        Some((Some(second), Second::Factor)) => scale * second,
                        Some((Some(second), Second::Divisor)) => scale / second,
                        Some((None, _)) => return Err(unlike()),
                    };
                    let scale = product * factor;
                    if product.is_finite() && !scale.is_finite() {
                        let why = format!("the scale of row {row}, column {column}, is too large for F32");
                        return Err(inexact(&why));
                    }
                    made.extend(scale.to_le_bytes());
                }
            }
        }
        Ok(())
    }
}

impl Tiles for ApartTiles {
    fn gather(&self, tile: Range<u64>, pieces: &mut Vec<Piece>) {
        let [codes, scales] = self.split(&tile);
        if !codes.is_empty() {
            self.weights.gather(self.weights_of(&codes), pieces);
        }
        let recipe = &self.apart.recipe;
        for (matrix, rows) in self.rows_of(&scales) {
            for companion in recipe.companions() {
                let patch = companion.patch(matrix, &rows, &(0..recipe.columns), None);
                companion.ranges(&patch, |bytes| pieces.push(Piece { input: companion.input, bytes }));
            }
        }
    }

    fn compute<'t>(
        &self,
        tile: Range<u64>,
        gathered: &[u8],
        out: &'t mut [MaybeUninit<u8>],
    ) -> Result<&'t mut [u8]> {
        let [codes, scales] = self.split(&tile);
        let codes_len = (codes.end - codes.start) as usize;
        // The first row of scales may begin before the tile.
        let row = (self.grid[2] * 4).max(1) as u64;
        let skip = (scales.start % row) as usize;
        let (mut rest, mut unpacked, mut unused, mut made) = (gathered, Vec::new(), Vec::new(), Vec::new());
        let wanted = [self.weights_of(&codes)];
        let mut bands = self.weights.gathered(&wanted);
        let mut maker: Option<Maker<'_>> = None;
        buffer::fill::<Fault>(out, |done, into| {
            let bytes = match done.checked_sub(codes_len) {
                None => {
                    let Some(step) = maker.as_mut().and_then(|maker| maker.step(&mut unpacked, &mut unused))
                    else {
                        let Some(band) = bands.next() else { return Ok(Some(&[])) };
                        maker = Some(self.weights.maker(band, &mut rest)?);
                        return Ok(None);
                    };
                    made.clear();
                    self.apart.pack(unpacked.get(step.codes).unwrap_or_default(), &mut made);
                    &made[..]
                }
                Some(0) => {
                    made.clear();
                    self.scales(&scales, rest, &mut made)?;
                    made.get(skip..).unwrap_or_default()
                }
                Some(done) => made.get(skip + done..).unwrap_or_default(),
            };
            let len = bytes.len().min(into.len());
            Ok(Some(copied(&mut into[..len], &bytes[..len])))
        })
        .map_err(|Fault(error)| error)
    }

    fn step(&self) -> u64 {
        // As many weights as there are in a step of these.
        (self.weights.step() / 4 / u64::from(8 / self.apart.code_type.bits())).max(1)
    }
}

impl Apart {
    /// Appends codes, one to a byte, as they are packed.
    fn pack(&self, codes: &[u8], made: &mut Vec<u8>) {
        let bits = self.code_type.bits();
        let code = |code: &u8| self.codes[usize::from(*code)];
        match bits {
            8 => made.extend(codes.iter().map(code)),
            _ => made.extend(codes.chunks((8 / bits) as usize).map(|codes| {
                (0..8).step_by(bits as usize).zip(codes).fold(0, |byte, (shift, it)| byte | code(it) << shift)
            })),
        }
    }
}

impl Recipe {
    /// The type of codes that says exactly what its codes stand for, what each of them becomes, and what scales are
    /// multiplied by.
    fn code_type(&self, inputs: &[Input]) -> Result<(CodeType, [u8; 256], f32)> {
        let bits = self.codes.bits;
        let same = || std::array::from_fn(|code| code as u8);
        match &self.value {
            Value::Number(add) => {
                let least = self.least(inputs, *add)?;
                let mask = ((1_u16 << bits) - 1) as u8;
                let codes = std::array::from_fn(|code| (code as u8).wrapping_add(least as u8) & mask);
                Ok((self.integers()?, codes, 1.0))
            }
            Value::Signed => {
                self.least(inputs, -(1 << (bits - 1)))?;
                Ok((self.integers()?, same(), 1.0))
            }
            Value::E4M3 => Ok((CodeType::E4M3, same(), 1.0)),
            Value::E2M1 => Ok((CodeType::E2M1, same(), 1.0)),
            Value::Table(table) => {
                let all = table.get(..1 << bits).unwrap_or(&table[..]);
                let e5m2 = tables::values(Dtype::F8_E5M2, 1.0);
                let found = match bits {
                    4 => [1.0, 2.0].into_iter().find_map(|factor| {
                        Some((CodeType::E2M1, translated(all, &tables::e2m1(factor)[..16])?, factor))
                    }),
                    8 => e5m2.and_then(|e5m2| Some((CodeType::E5M2, translated(all, &e5m2[..])?, 1.0))),
                    _ => None,
                };
                found.ok_or_else(|| {
                    inexact("its codes stand for numbers of a table of their own, such as NF4's")
                })
            }
        }
    }

    /// What the least code stands for, if zero points are in the middle.
    fn least(&self, inputs: &[Input], least: i16) -> Result<i16> {
        let (first, last) =
            self.zeros(inputs)?.ok_or_else(|| inexact("its zero points are floating-point numbers"))?;
        let middle = least + (1 << (self.codes.bits - 1));
        match (first, last) {
            _ if first == middle && last == middle => Ok(least - middle),
            _ if first == last => {
                Err(inexact(&format!("its zero point is {first}; of symmetric codes it is {middle}")))
            }
            _ => Err(inexact("it has zero points")),
        }
    }

    /// The type of its codes, which are integers.
    fn integers(&self) -> Result<CodeType> {
        match self.codes.bits {
            2 => Ok(CodeType::I2),
            4 => Ok(CodeType::I4),
            8 => Ok(CodeType::I8),
            bits => Err(inexact(&format!("its codes have {bits} bits, and not 2, 4 or 8"))),
        }
    }
}

/// For each number of a table the code that it has in another one, to the bit.
fn translated(all: &[f32], table: &[f32]) -> Option<[u8; 256]> {
    let mut codes = [0; 256];
    for (code, value) in codes.iter_mut().zip(all) {
        *code = table.iter().position(|other| other.to_bits() == value.to_bits())? as u8;
    }
    Some(codes)
}

/// The error that it is not codes times scales.
fn inexact(why: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("it is not codes times scales: {why}"))
}
