//! Makes dense weights, tile by tile.

mod blocks;

use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};

use super::codes::{Codes, Packing, STRIP, Window};
use super::companion::{Companion, Numbers, Patch, Values};
use crate::blocks::BlockType;
use crate::buffer::{self, Fault};
use crate::cast::{Instructions, Kernel, Overflow, Work, e2m1, e4m3};
use crate::dtype::Dtype;
use crate::error::{Error, ErrorKind, Result};
use crate::plan::{Derive, Input, Piece, Tiles};

/// How dense weights are made: `(value - zero) * (scale * second) * last + bias - shift`, times the factor of the column, in
/// `F32` in this order.
#[derive(Clone, Debug)]
pub(crate) struct Recipe {
    /// The weights as matrices, which the output is whatever its shape.
    pub(crate) matrices: usize,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// Of the first input.
    pub(crate) codes: Codes,
    /// Whether rows of codes are columns of weights.
    pub(crate) across: bool,
    pub(crate) value: Value,
    pub(crate) zero: Option<Companion>,
    pub(crate) scale: Option<Companion>,
    /// Times the scale, or its divisor, before that is used.
    pub(crate) second: Option<(Companion, Second)>,
    /// Times the result.
    pub(crate) last: Option<f32>,
    pub(crate) bias: Option<Companion>,
    /// The same, but it is subtracted.
    pub(crate) shift: Option<Companion>,
    /// The dtype in which the library that made it computes, and rounds after each step: if that is what is asked for, so
    /// it is done here.
    pub(crate) rounded: Option<Dtype>,
    /// One for each column: times the result.
    pub(crate) factor: Option<Companion>,
    /// The group of each column, where they are in no order.
    pub(crate) groups: Option<Groups>,
}

/// What a code stands for.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    /// Itself, and this.
    Number(i16),
    /// A number of two's complement, of so many bits as codes have.
    Signed,
    /// What a table says.
    Table(Arc<[f32; 256]>),
    /// An `F8_E4M3`.
    E4M3,
    /// An `E2M1`.
    E2M1,
}

/// The group of each column.
#[derive(Clone, Debug)]
pub(crate) struct Groups {
    pub(crate) of_column: Arc<[u32]>,
    pub(crate) count: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Second {
    Factor,
    Divisor,
}

/// A recipe, and the dtype of what it makes.
#[derive(Debug)]
pub(super) struct Weights {
    recipe: Arc<Recipe>,
    dtype: Dtype,
    /// From `F32`; `None` if that is the dtype.
    round: Option<Kernel>,
    instructions: Instructions,
}

/// Rows of one matrix, of which the first and last may be cut, and only some columns.
#[derive(Clone, Debug)]
struct Band {
    matrix: usize,
    rows: Range<usize>,
    columns: Range<usize>,
    /// Columns that are left out of the first row, and of the last one.
    head: usize,
    tail: usize,
}

/// What is gathered for a band.
struct Gathered<'r> {
    recipe: &'r Recipe,
    band: Band,
    codes: Patch,
    companions: Vec<(&'r Companion, Patch)>,
}

/// So many bytes of codes that are stored across rows are gathered together, so that tiles next to each other find theirs
/// gathered already: less where rows of words are long, so that they stay in the second-level cache.
const BLOCK: usize = 4 << 20;
const BLOCK_DOWN: usize = 2 << 20;

/// Columns that are computed at a time: their values stay in the first-level cache.
const SEGMENT: usize = 1024;

impl Recipe {
    /// Weights `[rows, columns]`, several of them behind one another, that are what their codes stand for.
    pub(crate) fn new([matrices, rows, columns]: [usize; 3], codes: Codes, value: Value) -> Self {
        Self {
            matrices,
            rows,
            columns,
            codes,
            across: false,
            value,
            zero: None,
            scale: None,
            second: None,
            last: None,
            bias: None,
            shift: None,
            rounded: None,
            factor: None,
            groups: None,
        }
    }

    /// Whether all that it reads is in inputs of these lengths.
    pub(super) fn is_sound(&self, lens: &[u64]) -> bool {
        let Self { matrices, rows, columns, ref codes, .. } = *self;
        let (code_rows, code_columns) = if self.across { (columns, rows) } else { (rows, columns) };
        let has = |input: usize, len: Option<usize>| {
            len.is_some_and(|len| lens.get(input).is_some_and(|&there| len as u64 <= there))
        };
        let groups = self.groups.as_ref();
        let in_order = groups.is_none_or(|groups| {
            groups.of_column.len() == columns
                && groups.of_column.iter().all(|&group| (group as usize) < groups.count)
        });
        let has_companion = |companion: &Companion| {
            let Companion { input, numbers, grid } = companion;
            let across = match groups {
                Some(groups) if grid.across != usize::MAX => groups.count,
                _ => columns.div_ceil(grid.across.max(1)),
            };
            let down = rows.div_ceil(grid.down.max(1));
            match numbers {
                Numbers::Packed { codes, across: by_column, .. } => {
                    let (rows, columns) = if *by_column { (across, down) } else { (down, across) };
                    let len = codes.matrix_len().checked_mul(matrices);
                    codes.is_sound() && codes.rows >= rows && codes.columns >= columns && has(*input, len)
                }
                numbers => {
                    let last = grid.last(matrices, rows, across);
                    let len = last.and_then(|last| last.checked_add(1)?.checked_mul(numbers.size()));
                    let nested = match numbers {
                        Numbers::Nested { scales, block, .. } => {
                            *block > 0 && last.is_some_and(|last| last / block < scales.len())
                        }
                        Numbers::Stored(dtype) => dtype.bits() % 8 == 0,
                        _ => true,
                    };
                    nested && has(*input, len)
                }
            }
        };
        codes.is_sound()
            && codes.rows >= code_rows
            && codes.columns >= code_columns
            && has(0, codes.matrix_len().checked_mul(matrices))
            && matrices.checked_mul(rows).and_then(|all| all.checked_mul(columns)).is_some()
            && in_order
            && self.companions().all(has_companion)
    }

    /// Rows that have their codes gathered together.
    fn block(&self) -> usize {
        if !self.across {
            return 1;
        }
        let row = (self.codes.matrix_len() / self.rows.max(1)).max(1);
        let block = if self.codes.packing == Packing::Down { BLOCK_DOWN } else { BLOCK };
        (block / row).max(STRIP) / STRIP * STRIP
    }

    /// All companions, in the order in which they are gathered.
    pub(super) fn companions(&self) -> impl Iterator<Item = &Companion> {
        let second = self.second.as_ref().map(|(second, _)| second);
        [
            self.zero.as_ref(),
            self.scale.as_ref(),
            second,
            self.bias.as_ref(),
            self.shift.as_ref(),
            self.factor.as_ref(),
        ]
        .into_iter()
        .flatten()
    }

    /// The groups that companions have, if they are in no order.
    fn group_count(&self) -> Option<usize> {
        self.groups.as_ref().map(|groups| groups.count)
    }

    fn gathered(&self, band: Band) -> Gathered<'_> {
        let Band { matrix, ref rows, ref columns, .. } = band;
        let codes = match self.across {
            true => {
                let block = self.block();
                let start = rows.start / block * block;
                let wide = start..rows.end.div_ceil(block).saturating_mul(block).min(self.rows);
                Patch { matrix, rows: columns.clone(), columns: wide }
            }
            false => Patch { matrix, rows: rows.clone(), columns: columns.clone() },
        };
        let companions = self
            .companions()
            .map(|companion| (companion, companion.patch(matrix, rows, columns, self.group_count())));
        Gathered { recipe: self, companions: companions.collect(), codes, band }
    }

    /// The bands that ranges of elements are; those of the same columns in rows that follow each other are one.
    fn bands(&self, ranges: impl Iterator<Item = Range<u64>>) -> Vec<Band> {
        let (width, each) = (self.columns as u64, (self.rows * self.columns) as u64);
        let mut bands: Vec<Band> = Vec::new();
        let plane = if self.across { usize::MAX } else { self.codes.plane() };
        for Range { mut start, end } in ranges {
            while start < end && each > 0 {
                let matrix = start / each;
                let (row, column) = ((start % each / width) as usize, (start % width) as usize);
                // As far as the plane and the matrix go.
                let most_rows = (row / plane + 1).saturating_mul(plane).min(self.rows);
                let until = end.min(matrix * each + most_rows as u64 * width);
                let last = (((until - 1) % each) / width) as usize;
                let tail = (width - 1 - (until - 1) % width) as usize;
                let band = match last == row {
                    true => Band {
                        matrix: matrix as usize,
                        rows: row..row + 1,
                        columns: column..self.columns - tail,
                        head: 0,
                        tail: 0,
                    },
                    false => Band {
                        matrix: matrix as usize,
                        rows: row..last + 1,
                        columns: 0..self.columns,
                        head: column,
                        tail,
                    },
                };
                start = until;
                match bands.last_mut() {
                    Some(before)
                        if before.matrix == band.matrix
                            && before.columns == band.columns
                            && before.rows.end == band.rows.start
                            && band.rows.start % plane != 0
                            && before.tail == 0
                            && band.head == 0 =>
                    {
                        before.rows.end = band.rows.end;
                        before.tail = band.tail;
                    }
                    _ => bands.push(band),
                }
            }
        }
        bands
    }
}

impl Gathered<'_> {
    fn ranges(&self, pieces: &mut Vec<Piece>) {
        let Self { recipe, codes: Patch { matrix, rows, columns }, .. } = self;
        let place = recipe.codes.place(rows, columns);
        let base = (matrix * recipe.codes.matrix_len()) as u64;
        recipe.codes.ranges(&place, base, &mut |bytes| pieces.push(Piece { input: 0, bytes }));
        for (companion, patch) in &self.companions {
            companion.ranges(patch, |bytes| pieces.push(Piece { input: companion.input, bytes }));
        }
    }
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
        dtype.bits().is_multiple_of(8).then(|| Self {
            recipe: Arc::clone(recipe),
            dtype,
            round,
            instructions,
        })
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

/// The numbers of companions for a band: the first column of the grid that they are for, how many columns of weights that is,
/// and themselves.
struct Parts {
    zero: Option<Part>,
    scale: Option<Part>,
    second: Option<Part>,
    bias: Option<Part>,
    shift: Option<Part>,
    factor: Option<Part>,
    /// Whether products are rounded before the bias is added.
    is_rounded: bool,
}

type Part = (usize, usize, Values);

impl Parts {
    /// The scales of a row.
    fn scales(&self, row: usize) -> &[f32] {
        self.scale.as_ref().map_or(&[], |(_, _, scales)| scales.row(row))
    }

    /// The same times what they are multiplied or divided by, if there is such a thing.
    fn multiply_scales(&self, row: usize, recipe: &Recipe, room: &mut Vec<f32>) {
        room.clear();
        let (Some((_, _, second)), Some((_, how))) = (&self.second, &recipe.second) else { return };
        let Some(&second) = second.row(row).first() else { return };
        room.extend(self.scales(row).iter().map(|scale| match how {
            Second::Factor => scale * second,
            Second::Divisor => scale / second,
        }));
    }
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

/// The weights of some columns of a row.
struct Segment<'w> {
    recipe: &'w Recipe,
    /// The row and the first column.
    at: (usize, usize),
    codes: &'w [u8],
    parts: &'w Parts,
    scales: &'w [f32],
    out: &'w mut [f32],
}

impl Work for Segment<'_> {
    #[inline(always)]
    fn run(self) {
        self.recipe.segment(self.at, self.codes, self.parts, self.scales, self.out);
    }
}

/// Numbers for each column of a segment: of its groups, one after the other, or by the index of a column.
#[derive(Clone, Copy)]
struct Along<'v> {
    values: &'v [f32],
    first: usize,
    across: usize,
    groups: Option<&'v [u32]>,
}

impl Along<'_> {
    #[inline(always)]
    fn of_column(&self, column: usize) -> f32 {
        let group = match self.groups {
            Some(groups) if self.across != usize::MAX => {
                groups.get(column).map_or(usize::MAX, |&group| group as usize)
            }
            _ => (column / self.across.max(1)).wrapping_sub(self.first),
        };
        self.values.get(group).copied().unwrap_or(f32::NAN)
    }

    /// Runs of columns that share a number, counted from the start of the segment.
    #[inline(always)]
    fn runs(&self, start: usize, len: usize) -> Runs<'_> {
        let across = self.across.max(1);
        let group = (start / across).wrapping_sub(self.first);
        let until = (start / across + 1).saturating_mul(across).min(start + len);
        let values = self.values.get(group..).unwrap_or_default();
        Runs { values, at: 0, until: until - start, len, across }
    }

    /// Whether there are runs.
    fn has_runs(&self) -> bool {
        self.across == usize::MAX || self.groups.is_none() && self.across >= 8
    }

    /// The numbers themselves, where each column has its own.
    fn each(&self, start: usize, len: usize) -> Option<&[f32]> {
        let first = start.checked_sub(self.first).filter(|_| self.across == 1 && self.groups.is_none())?;
        self.values.get(first..first.checked_add(len)?)
    }

    /// Changes each value by its number.
    #[inline(always)]
    fn apply(&self, start: usize, values: &mut [f32], with: impl Fn(f32, f32) -> f32) {
        if self.has_runs() {
            for (run, number) in self.runs(start, values.len()) {
                values[run].iter_mut().for_each(|value| *value = with(*value, number));
            }
        } else if let Some(numbers) = self.each(start, values.len()) {
            values.iter_mut().zip(numbers).for_each(|(value, &number)| *value = with(*value, number));
        } else {
            for (column, value) in (start..).zip(values) {
                *value = with(*value, self.of_column(column));
            }
        }
    }
}

/// Runs of columns, and the number of each.
struct Runs<'v> {
    values: &'v [f32],
    at: usize,
    until: usize,
    len: usize,
    across: usize,
}

impl Iterator for Runs<'_> {
    type Item = (Range<usize>, f32);

    #[inline(always)]
    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.len {
            return None;
        }
        let run = self.at..self.until;
        let number = match self.values.split_first() {
            Some((&number, rest)) => {
                self.values = rest;
                number
            }
            None => f32::NAN,
        };
        self.at = self.until;
        self.until = self.until.saturating_add(self.across).min(self.len);
        Some((run, number))
    }
}

impl Recipe {
    fn along<'v>(&'v self, (first, across, values): &'v Part, row: usize) -> Along<'v> {
        let groups = self.groups.as_ref().map(|groups| &*groups.of_column);
        Along { values: values.row(row), first: *first, across: *across, groups }
    }

    /// The weights of some columns of a row.
    #[inline(always)]
    fn segment(&self, at: (usize, usize), codes: &[u8], parts: &Parts, scales: &[f32], out: &mut [f32]) {
        let (row, start) = at;
        let zero = parts.zero.as_ref().map(|zero| self.along(zero, row));
        let scale = parts.scale.as_ref().map(|scale| Along { values: scales, ..self.along(scale, row) });
        match (zero, scale) {
            // In one go where both are the same for many columns.
            (None, Some(scale)) if scale.has_runs() => {
                for (run, scale) in scale.runs(start, out.len()) {
                    self.decode(&codes[run.clone()], &mut out[run], |value| value * scale);
                }
            }
            (Some(zero), Some(scale))
                if scale.has_runs() && zero.across == scale.across && !parts.is_rounded =>
            {
                let runs = scale.runs(start, out.len()).zip(zero.runs(start, out.len()));
                for ((run, scale), (_, zero)) in runs {
                    self.decode(&codes[run.clone()], &mut out[run], |value| (value - zero) * scale);
                }
            }
            (zero, scale) => {
                self.decode(codes, out, |value| value);
                if let Some(zero) = zero {
                    zero.apply(start, out, |value, zero| value - zero);
                    if parts.is_rounded {
                        round(out, self.rounded);
                    }
                }
                if let Some(scale) = scale {
                    scale.apply(start, out, |value, scale| value * scale);
                }
            }
        }
        if let Some(last) = self.last {
            out.iter_mut().for_each(|value| *value *= last);
        }
        if parts.is_rounded && (parts.bias.is_some() || parts.shift.is_some()) {
            round(out, self.rounded);
        }
        if let Some(bias) = &parts.bias {
            self.along(bias, row).apply(start, out, |value, bias| value + bias);
        }
        if let Some(shift) = &parts.shift {
            self.along(shift, row).apply(start, out, |value, shift| value - shift);
        }
        if let Some(factor) = &parts.factor {
            self.along(factor, row).apply(start, out, |value, factor| value * factor);
        }
    }

    /// What codes stand for, and what `then` makes of it.
    #[inline(always)]
    fn decode(&self, codes: &[u8], out: &mut [f32], then: impl Fn(f32) -> f32) {
        match &self.value {
            Value::Number(add) => {
                let add = i32::from(*add);
                out.iter_mut()
                    .zip(codes)
                    .for_each(|(out, &code)| *out = then((i32::from(code) + add) as f32));
            }
            Value::Signed => {
                let unused = 8 - self.codes.bits;
                out.iter_mut().zip(codes).for_each(|(out, &code)| {
                    *out = then(f32::from((code << unused).cast_signed() >> unused));
                });
            }
            Value::E4M3 => out.iter_mut().zip(codes).for_each(|(out, &code)| *out = then(e4m3(code))),
            Value::E2M1 => out.iter_mut().zip(codes).for_each(|(out, &code)| *out = then(e2m1(code))),
            Value::Table(table) => {
                out.iter_mut().zip(codes).for_each(|(out, &code)| *out = then(table[usize::from(code)]));
            }
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
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn blocks(&self, inputs: &[Input]) -> Result<(BlockType, Arc<dyn Tiles>)> {
        let tiles = blocks::BlockTiles::new(&self.recipe, inputs)?;
        Ok((tiles.block_type(), Arc::new(tiles)))
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
                None => into.write_copy_of_slice(bytemuck::cast_slice(values)),
            }))
        })
        .map_err(|Fault(error)| error)
    }
}

/// Rounds values to a dtype.
fn round(values: &mut [f32], dtype: Option<Dtype>) {
    match dtype {
        Some(Dtype::BF16) => values.iter_mut().for_each(|value| *value = bf16::from_f32(*value).to_f32()),
        Some(Dtype::F16) => values.iter_mut().for_each(|value| *value = f16::from_f32(*value).to_f32()),
        _ => {}
    }
}

fn unlike() -> Error {
    Error::new(ErrorKind::Internal, "codes and what was gathered for them differ in length")
}
