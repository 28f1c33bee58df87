//! A weight and what adapters add to it.

mod columns;
mod product;

use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::Arc;

use super::{Bound, Operation, Piece, Tiles};
use crate::buffer::{self, Fault};
use crate::cast::{Instructions, Kernel, swap_bytes};
use crate::dtype::Dtype;
use crate::error::{Error, ErrorKind, Result};
use crate::plan::{Input, Overflow, cast_into};
use crate::text::brief;
use columns::Columns;
use product::{Factors, ROWS, Rows};

/// A weight `W` and what adapters add to it: `W + Σ scale · B A`, and with a magnitude each row of that, or each column, as long as
/// this says.
///
/// `W` has shape `[rows, ...]`, and is the matrix `[rows, columns]` of its rows here. The inputs are `W`, then for each
/// [`Delta`] its `A` and its `B`, or its only tensor, in the order in which deltas were added, and at last the magnitude `[rows]`
/// or `[columns]`.
/// Everything is computed in `F32`, deltas in their order, and rounded once, to the dtype of `W` or any other float that is
/// asked for. The formulas are those of LoRA (arXiv:2106.09685) and DoRA (arXiv:2402.09353).
///
/// ```
/// use std::sync::Arc;
///
/// use weighbridge::plan::{Delta, Input, LowRank};
/// use weighbridge::{Checkpoint, Dtype, Entry, TensorView, write::Save};
///
/// # fn main() -> weighbridge::Result<()> {
/// let f32 = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>();
/// let (w, a, b) = (f32(&[1.0, 2.0, 3.0, 4.0]), f32(&[1.0, 0.5]), f32(&[2.0, -2.0]));
/// let view = |shape, bytes| TensorView::new(Dtype::F32, shape, bytes);
/// let file = Save::new().bytes([("w", view(&[2, 2], &w)?), ("a", view(&[1, 2], &a)?), ("b", view(&[2, 1], &b)?)])?;
/// let ckpt = Checkpoint::from_bytes(file)?;
/// let inputs = ["w", "a", "b"].map(|name| Input::of(&ckpt.tensor(name).unwrap()));
/// let merged = Entry::new("w", inputs.to_vec(), Arc::new(LowRank::new([Delta::new(0.5)])))?;
/// let ckpt = ckpt.with_entries([merged])?;
/// assert_eq!(ckpt.read("w")?.as_bytes(), f32(&[2.0, 2.5, 2.0, 3.5]));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct LowRank {
    deltas: Vec<Delta>,
    magnitude: Option<Along>,
}

/// Which lengths a magnitude says.
#[derive(Clone, Copy, Debug)]
enum Along {
    Rows,
    Columns,
}

/// What one adapter adds.
#[derive(Clone, Debug)]
pub struct Delta {
    scale: f32,
    /// The rows of `W` that it is for, and the row of `B` of the first of them.
    rows: Option<Range<usize>>,
    first: usize,
    is_transposed: bool,
    is_full: bool,
}

impl Delta {
    /// `scale · B A`, with `A` of shape `[rank, ...]` and `B` of shape `[rows, rank, ...]`.
    pub fn new(scale: f32) -> Self {
        Self { scale, rows: None, first: 0, is_transposed: false, is_full: false }
    }

    /// `scale · D`, with `D` of the shape of `W`.
    pub fn full(scale: f32) -> Self {
        Self { is_full: true, ..Self::new(scale) }
    }

    /// `scale · (B A)ᵀ`: for weights that are stored the other way round, as those of GPT-2, and for embeddings.
    #[must_use]
    pub fn transposed(self) -> Self {
        Self { is_transposed: true, ..self }
    }

    /// Only these rows of `W` get it: those of `B` from row `first` on. So an adapter of a query goes into a fused
    /// query, key and value, and one of these into a query.
    #[must_use]
    pub fn rows(self, rows: Range<usize>, first: usize) -> Self {
        Self { rows: Some(rows), first, ..self }
    }
}

impl LowRank {
    /// A weight with these.
    pub fn new(deltas: impl IntoIterator<Item = Delta>) -> Self {
        Self { deltas: deltas.into_iter().collect(), magnitude: None }
    }

    /// Sets the lengths of rows: the last input says them.
    #[must_use]
    pub fn magnitude(self) -> Self {
        Self { magnitude: Some(Along::Rows), ..self }
    }

    /// Sets the lengths of columns: the last input says them. For weights that are stored the other way round, as those of
    /// GPT-2, and for embeddings. The weight is read once more, when the first tile is made.
    #[must_use]
    pub fn magnitude_of_columns(self) -> Self {
        Self { magnitude: Some(Along::Columns), ..self }
    }
}

/// Whether it is computed with.
fn is_weight(dtype: Dtype) -> bool {
    dtype.is_float() && dtype.bits() % 8 == 0 && dtype != Dtype::F64 && dtype != Dtype::F8_E8M0
}

impl Operation for LowRank {
    fn bind(&self, inputs: &[Input]) -> Result<Bound> {
        let fail = |kind, message: String| Err(Error::new(kind, message));
        let [weight, rest @ ..] = inputs else {
            return fail(ErrorKind::Internal, "there is no weight that deltas are added to".to_owned());
        };
        if let Some(input) = inputs.iter().find(|input| !is_weight(input.dtype())) {
            let message = format!(
                "a tensor of {} is no weight that adapters are merged into or made of",
                input.dtype()
            );
            return fail(ErrorKind::Dtype, message);
        }
        let [rows, columns] = matrix(weight.shape())?;
        let mut rest = (1..).zip(rest);
        let mut next = || rest.next().ok_or_else(|| Error::new(ErrorKind::Internal, "a delta has no tensor"));
        let mut terms = Vec::with_capacity(self.deltas.len());
        for delta in &self.deltas {
            let wanted = delta.rows.clone().unwrap_or(0..rows);
            if wanted.start > wanted.end || wanted.end > rows {
                return fail(ErrorKind::Shape, format!("there are no rows {wanted:?} among {rows}"));
            }
            let (index, first) = next()?;
            if delta.is_full {
                if matrix(first.shape())? != [rows, columns] {
                    let message =
                        format!("{} cannot be added to {}", brief(first.shape()), brief(weight.shape()));
                    return fail(ErrorKind::Shape, message);
                }
                terms.push(Term::full(delta.scale, index, first.dtype(), columns));
                continue;
            }
            let (_, second) = next()?;
            let ([rank, across], [down, same]) = (matrix(first.shape())?, matrix(second.shape())?);
            // The matrix that they make, and the part of it that is wanted.
            let (height, width) = if delta.is_transposed { (across, down) } else { (down, across) };
            let fits = rank == same
                && width == columns
                && delta.first.checked_add(wanted.len()).is_some_and(|end| end <= height)
                && (delta.rows.is_some() || height == rows);
            if !fits {
                let message = format!(
                    "factors of shapes {} and {} do not make what can be added to a weight of shape {}",
                    brief(second.shape()),
                    brief(first.shape()),
                    brief(weight.shape())
                );
                return fail(ErrorKind::Shape, message);
            }
            let dtypes = [first.dtype(), second.dtype()];
            terms.push(Term {
                scale: delta.scale,
                input: index,
                dtypes,
                rank,
                rows: wanted,
                first: delta.first,
                kind: if delta.is_transposed { Kind::Transposed { height } } else { Kind::Plain },
                columns,
            });
        }
        let magnitude = match self.magnitude {
            Some(along) => {
                let (index, input) = next()?;
                let (count, what) = match along {
                    Along::Rows => (rows, "rows"),
                    Along::Columns => (columns, "columns"),
                };
                if input.shape().iter().product::<usize>() != count {
                    let message = format!(
                        "a magnitude of shape {} is not one for each of {count} {what}",
                        brief(input.shape())
                    );
                    return fail(ErrorKind::Shape, message);
                }
                Some(match along {
                    Along::Rows => Magnitude::Rows(index, input.dtype()),
                    Along::Columns => Magnitude::Columns(Columns::new(&inputs[..index], &self.deltas, input)),
                })
            }
            None => None,
        };
        if rest.next().is_some() {
            return fail(ErrorKind::Internal, "there are more tensors than deltas".to_owned());
        }
        let of = Arc::new(Work { terms, magnitude, weight: weight.dtype(), columns });
        let tiles = LowRankTiles::new(of, weight.dtype(), Overflow::default())?;
        Ok(Bound::new(weight.dtype(), weight.shape(), tiles))
    }
}

/// The rows and columns of a matrix of rows.
fn matrix(shape: &[usize]) -> Result<[usize; 2]> {
    let columns = shape.iter().skip(1).try_fold(1_usize, |product, &dim| product.checked_mul(dim));
    match (shape.first(), columns) {
        (Some(&rows), Some(columns)) => Ok([rows, columns]),
        _ => Err(Error::new(ErrorKind::Shape, format!("a tensor of shape {} has no rows", brief(shape)))),
    }
}

/// What is added, and where.
#[derive(Debug)]
struct Term {
    scale: f32,
    /// The index of `A`, or of the only tensor; `B` is the next.
    input: usize,
    dtypes: [Dtype; 2],
    rank: usize,
    /// Of the weight.
    rows: Range<usize>,
    /// Of what is added.
    first: usize,
    kind: Kind,
    columns: usize,
}

#[derive(Debug)]
enum Kind {
    Full,
    Plain,
    /// Of a matrix of so many rows, which are the columns of `A`.
    Transposed {
        height: usize,
    },
}

impl Term {
    fn full(scale: f32, input: usize, dtype: Dtype, columns: usize) -> Self {
        let (rows, kind) = (0..usize::MAX, Kind::Full);
        Self { scale, input, dtypes: [dtype; 2], rank: 0, rows, first: 0, kind, columns }
    }

    /// Its rows among some of the weight, counted from its own first.
    fn rows_in(&self, rows: &Range<usize>) -> Range<usize> {
        let (start, end) = (rows.start.max(self.rows.start), rows.end.min(self.rows.end));
        let shift = |row: usize| row - self.rows.start + self.first;
        if start < end { shift(start)..shift(end) } else { 0..0 }
    }

    /// Appends the bytes that rows of it need.
    fn gather(&self, rows: &Range<usize>, pieces: &mut Vec<Piece>) {
        let own = self.rows_in(rows);
        if own.is_empty() {
            return;
        }
        let bytes = |dtype: Dtype, elements: Range<usize>| {
            let size = u64::from(dtype.bits() / 8);
            elements.start as u64 * size..elements.end as u64 * size
        };
        let [a, b] = self.dtypes;
        let mut push = |input, bytes| pieces.push(Piece { input, bytes });
        match self.kind {
            Kind::Full => push(self.input, bytes(a, own.start * self.columns..own.end * self.columns)),
            Kind::Plain => {
                push(self.input, bytes(a, 0..self.rank * self.columns));
                push(self.input + 1, bytes(b, own.start * self.rank..own.end * self.rank));
            }
            Kind::Transposed { height } => {
                // Of each row of `A` the columns that are rows here.
                for row in 0..self.rank {
                    push(self.input, bytes(a, row * height + own.start..row * height + own.end));
                }
                push(self.input + 1, bytes(b, 0..self.columns * self.rank));
            }
        }
    }

    /// The bytes that are read for each tile, however small it is.
    fn shared(&self) -> u64 {
        let elements = match self.kind {
            Kind::Full => 0,
            Kind::Plain | Kind::Transposed { .. } => (self.rank * self.columns) as u64,
        };
        elements * u64::from(self.dtypes[0].bits().max(self.dtypes[1].bits()) / 8)
    }

    /// The same as floats, out of the start of `gathered`, which is taken away.
    fn take(&self, rows: &Range<usize>, gathered: &mut &[u8]) -> Result<Option<Factors>> {
        let own = self.rows_in(rows);
        if own.is_empty() {
            return Ok(None);
        }
        let ([a, b], count) = (self.dtypes, own.len());
        let start = self.rows.start.max(rows.start) - rows.start;
        let mut next = |dtype, len| floats(dtype, len, gathered);
        Ok(Some(match self.kind {
            Kind::Full => Factors {
                start,
                count,
                rank: 0,
                left: Vec::new(),
                right: next(a, count * self.columns)?,
                scale: self.scale,
            },
            Kind::Plain => {
                let right = next(a, self.rank * self.columns)?;
                let left = next(b, count * self.rank)?;
                Factors { start, count, rank: self.rank, left, right, scale: self.scale }
            }
            Kind::Transposed { .. } => {
                let left = transposed(&next(a, self.rank * count)?, self.rank, count);
                let right = transposed(&next(b, self.columns * self.rank)?, self.columns, self.rank);
                Factors { start, count, rank: self.rank, left, right, scale: self.scale }
            }
        }))
    }
}

/// The next numbers of what was gathered.
fn floats(dtype: Dtype, count: usize, gathered: &mut &[u8]) -> Result<Vec<f32>> {
    let len = count * dtype.bits() as usize / 8;
    let (bytes, behind) = gathered.split_at_checked(len).ok_or_else(unlike)?;
    *gathered = behind;
    let mut values = vec![0.0; count];
    cast_into(dtype, bytes, &mut values)?;
    Ok(values)
}

/// A matrix of so many rows and columns as its columns.
fn transposed(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut out = vec![0.0; values.len()];
    for (row, values) in values.chunks_exact(columns.max(1)).enumerate() {
        for (column, value) in values.iter().enumerate() {
            out[column * rows + row] = *value;
        }
    }
    out
}

/// What is done, whatever the dtype of the output.
#[derive(Debug)]
struct Work {
    terms: Vec<Term>,
    magnitude: Option<Magnitude>,
    weight: Dtype,
    columns: usize,
}

/// What sets lengths.
#[derive(Debug)]
enum Magnitude {
    /// The index of an input, and its dtype.
    Rows(usize, Dtype),
    Columns(Columns),
}

impl Work {
    /// The rows that hold some elements, and what they are with a magnitude: whole.
    fn place(&self, elements: &Range<u64>) -> (Range<usize>, Range<u64>) {
        let columns = (self.columns as u64).max(1);
        let rows = (elements.start / columns) as usize..elements.end.div_ceil(columns) as usize;
        let whole = match self.magnitude {
            Some(Magnitude::Rows(..)) => rows.start as u64 * columns..rows.end as u64 * columns,
            _ => elements.clone(),
        };
        (rows, whole)
    }

    fn gather(&self, elements: &Range<u64>, pieces: &mut Vec<Piece>) {
        let (rows, whole) = self.place(elements);
        if rows.is_empty() || self.columns == 0 {
            return;
        }
        let bytes = |dtype: Dtype, elements: &Range<u64>| {
            let size = u64::from(dtype.bits() / 8);
            elements.start * size..elements.end * size
        };
        pieces.push(Piece { input: 0, bytes: bytes(self.weight, &whole) });
        self.terms.iter().for_each(|term| term.gather(&rows, pieces));
        if let Some(Magnitude::Rows(input, dtype)) = self.magnitude {
            pieces.push(Piece { input, bytes: bytes(dtype, &(rows.start as u64..rows.end as u64)) });
        }
    }
}

/// The same in a dtype.
#[derive(Debug)]
struct LowRankTiles {
    of: Arc<Work>,
    dtype: Dtype,
    round: Kernel,
    instructions: Instructions,
}

impl LowRankTiles {
    fn new(of: Arc<Work>, dtype: Dtype, overflow: Overflow) -> Result<Self> {
        let round = Kernel::of(Dtype::F32, dtype, overflow).ok_or_else(|| {
            Error::new(ErrorKind::Internal, "there is no cast from F32 to the dtype of a weight")
        })?;
        Ok(Self { of, dtype, round, instructions: Instructions::detect() })
    }

    fn elements(&self, tile: &Range<u64>) -> Range<u64> {
        let size = u64::from(self.dtype.bits() / 8);
        tile.start / size..tile.end / size
    }
}

impl Tiles for LowRankTiles {
    fn gather(&self, tile: Range<u64>, pieces: &mut Vec<Piece>) {
        self.of.gather(&self.elements(&tile), pieces);
    }

    fn compute<'t>(
        &self,
        tile: Range<u64>,
        gathered: &[u8],
        out: &'t mut [MaybeUninit<u8>],
    ) -> Result<&'t mut [u8]> {
        let Work { terms, magnitude, weight, columns: width } = &*self.of;
        let elements = self.elements(&tile);
        let (rows, whole) = self.of.place(&elements);
        let (size, width) = ((self.dtype.bits() / 8) as usize, *width);
        let mut rest = gathered;
        let len = (whole.end - whole.start) as usize * weight.bits() as usize / 8;
        let (stored, behind) = rest.split_at_checked(len).ok_or_else(unlike)?;
        rest = behind;
        let factors = terms.iter().filter_map(|term| term.take(&rows, &mut rest).transpose());
        let factors: Vec<Factors> = factors.collect::<Result<_>>()?;
        let (lengths, by_column) = match magnitude {
            Some(Magnitude::Rows(_, dtype)) => (Some(floats(*dtype, rows.len(), &mut rest)?), None),
            Some(Magnitude::Columns(columns)) => (None, Some(columns.factors()?)),
            None => (None, None),
        };
        let mut values = Vec::with_capacity((ROWS * width).min((whole.end - whole.start) as usize));
        let mut at = whole.start;
        buffer::fill::<Fault>(out, |_, into| {
            // Up to the end of a block of whole rows.
            let (first, start) = ((at / width.max(1) as u64) as usize, (at % width.max(1) as u64) as usize);
            let block_end = ((first + ROWS) as u64 * width as u64).min(whole.end);
            if at >= block_end {
                return Ok(Some(&[]));
            }
            let count = (block_end - at) as usize;
            values.clear();
            values.resize(count, 0.0);
            let from = (at - whole.start) as usize * weight.bits() as usize / 8;
            let stored = stored.get(from..from + count * weight.bits() as usize / 8).ok_or_else(unlike)?;
            cast_into(*weight, stored, &mut values)?;
            let block =
                Rows { values: &mut values, start, width, first: first - rows.start, factors: &factors };
            self.instructions.run(block);
            if let Some(lengths) = &lengths {
                for (row, values) in (first - rows.start..).zip(values.chunks_exact_mut(width)) {
                    let length = lengths.get(row).copied().ok_or_else(unlike)?;
                    product::set_length(values, length);
                }
            }
            if let Some(factors) = by_column {
                columns::scale(&mut values, factors, start);
            }
            // Of whole rows, what was asked for.
            let wanted = elements.start.max(at)..elements.end.min(block_end);
            let skip = (wanted.start.saturating_sub(at)) as usize;
            let made = values.get_mut(skip..skip + wanted.end.saturating_sub(wanted.start) as usize);
            at = block_end;
            let made = made.ok_or_else(unlike)?;
            if made.is_empty() {
                return Ok(None);
            }
            // Casts take bytes as a file has them.
            if cfg!(target_endian = "big") {
                swap_bytes(Dtype::F32, bytemuck::cast_slice_mut(made));
            }
            let into = into.get_mut(..made.len() * size).ok_or_else(unlike)?;
            Ok(Some(self.round.run(bytemuck::cast_slice(made), into).map_err(Error::from)?))
        })
        .map_err(|Fault(error)| error)
    }

    fn step(&self) -> u64 {
        const LEAST: u64 = 256 << 10;
        const MOST: u64 = 8 << 20;
        // What is read again for each tile is to be little beside it.
        let shared: u64 = self.of.terms.iter().map(Term::shared).sum();
        (8 * shared).clamp(LEAST, MOST) / 48 * 48
    }

    fn in_dtype(&self, dtype: Dtype, overflow: Overflow) -> Option<Arc<dyn Tiles>> {
        let made = Self::new(Arc::clone(&self.of), dtype, overflow).ok().filter(|_| is_weight(dtype))?;
        Some(Arc::new(made))
    }

    fn is_native(&self) -> bool {
        true
    }
}

fn unlike() -> Error {
    Error::new(ErrorKind::Internal, "a weight and what was gathered for it differ in length")
}
