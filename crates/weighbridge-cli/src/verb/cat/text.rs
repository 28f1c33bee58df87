//! Arrays as text, laid out as NumPy does: brackets for each dimension, lines of at most 75 characters, and
//! of large ones only the first and the last three places of each dimension.

use std::io::Write;
use std::ops::Range;

use anyhow::{Context, Result, bail};
use weighbridge::engine::Streamed;
use weighbridge::plan::cast_into;
use weighbridge::slice::Region;
use weighbridge::{Dtype, Slice, TensorRef};

use super::npy::MOST_DIMS;
use super::number::{Pass, Style, Value};
use super::stream::stream;
use crate::dtype::can_read;
use crate::interrupt;
use crate::term::Bar;

/// The values to print.
pub(super) struct Values<'c> {
    dtype: Dtype,
    shape: Vec<usize>,
    source: Source<'c>,
}

enum Source<'c> {
    /// Read where they are needed.
    Stored(TensorRef<'c>, Region),
    Made(Vec<u8>),
}

/// Of more values than this the middle is left out.
const THRESHOLD: usize = 1000;
/// So many places are kept at each end.
const EDGE: usize = 3;
const LINE: usize = 75;

impl<'c> Values<'c> {
    /// Those of a tensor, or of a part of it, as they are stored.
    pub(super) fn stored(tensor: &TensorRef<'c>, slice: Option<&Slice>) -> Result<Self> {
        let whole = Slice::new();
        let region = slice.unwrap_or(&whole).of(tensor.dtype(), tensor.shape())?;
        let shape = region.shape().to_vec();
        Ok(Self { dtype: tensor.dtype(), shape, source: Source::Stored(*tensor, region) })
    }

    /// Those that a cast makes, all in memory.
    pub(super) fn made(tensor: &Streamed, bar: &Bar) -> Result<Self> {
        const MOST: u64 = 1 << 30;
        let entry = tensor.entry();
        if entry.byte_len() > MOST {
            bail!("tensor {:?}: it is too large to be cast for printing; take a slice", entry.name());
        }
        let mut bytes = Vec::new();
        stream(tensor, &mut bytes, bar)?;
        Ok(Self { dtype: entry.dtype(), shape: entry.shape().to_vec(), source: Source::Made(bytes) })
    }

    /// Prints them, all or with the middle left out.
    pub(super) fn print(&self, full: bool, out: &mut dyn Write) -> Result<()> {
        if self.shape.len() > MOST_DIMS {
            bail!("it has {} dimensions, too many to print; use --format raw", self.shape.len());
        }
        if !can_read(self.dtype) {
            bail!("values of {} have no agreed packing; --format raw gives their bytes", self.dtype);
        }
        if self.shape.contains(&0) {
            return Ok(writeln!(out, "[]")?);
        }
        // Not zero and proven to fit when the header was read.
        let elements = self.shape.iter().fold(1_usize, |product, &dim| product.saturating_mul(dim));
        let cut = !full && elements > THRESHOLD;
        let mut style = Style::of(self.dtype);
        for pass in [Pass::Size, Pass::Width] {
            self.see(0, 0, cut, &mut style, pass)?;
        }
        if self.shape.is_empty() {
            return Ok(writeln!(out, "{}", self.scalar(&style)?)?);
        }
        self.dimension(0, 0, cut, &style, out)?;
        Ok(writeln!(out)?)
    }

    /// A number without brackets has a digit behind the point.
    fn scalar(&self, style: &Style) -> Result<String> {
        let text = style.write(*self.read(0..1)?.first().context("a value is missing")?);
        let is_real = self.dtype.is_float() && text.ends_with('.');
        Ok(if is_real { text + "0" } else { text })
    }

    /// Shows the style all values that will be printed below this place of the first `depth` dimensions.
    fn see(&self, depth: usize, place: usize, cut: bool, style: &mut Style, pass: Pass) -> Result<()> {
        interrupt::check()?;
        let Some(&dim) = self.shape.get(depth) else {
            self.read(place..place + 1)?.into_iter().for_each(|value| style.see(value, pass));
            return Ok(());
        };
        let is_last = depth + 1 == self.shape.len();
        for range in kept(dim, cut) {
            let range = place * dim + range.start..place * dim + range.end;
            if is_last {
                for part in parts(range) {
                    self.read(part)?.into_iter().for_each(|value| style.see(value, pass));
                }
            } else {
                range.into_iter().try_for_each(|place| self.see(depth + 1, place, cut, style, pass))?;
            }
        }
        Ok(())
    }

    fn dimension(
        &self,
        depth: usize,
        place: usize,
        cut: bool,
        style: &Style,
        out: &mut dyn Write,
    ) -> Result<()> {
        interrupt::check()?;
        let dim = self.shape[depth];
        let below = self.shape.len() - depth - 1;
        if below == 0 {
            return self.row(place * dim, dim, cut, style, out);
        }
        write!(out, "[")?;
        let mut first = true;
        let mut next = |out: &mut dyn Write| {
            if !std::mem::take(&mut first) {
                write!(out, "{}{:2$}", "\n".repeat(below), "", depth + 1)?;
            }
            std::io::Result::Ok(())
        };
        for (part, range) in kept(dim, cut).into_iter().enumerate() {
            if part > 0 {
                next(out)?;
                write!(out, "...")?;
            }
            for inner in range {
                next(out)?;
                self.dimension(depth + 1, place * dim + inner, cut, style, out)?;
            }
        }
        Ok(write!(out, "]")?)
    }

    /// The values of the last dimension, from `start` on.
    fn row(&self, start: usize, dim: usize, cut: bool, style: &Style, out: &mut dyn Write) -> Result<()> {
        let indent = self.shape.len();
        let mut row =
            Row { out, indent, width: LINE.saturating_sub(indent), column: indent, blanks: 0, first: true };
        write!(row.out, "[")?;
        for (part, range) in kept(dim, cut).into_iter().enumerate() {
            if part > 0 {
                row.word("...")?;
            }
            for part in parts(start + range.start..start + range.end) {
                for value in self.read(part)? {
                    row.word(&style.write(value))?;
                }
            }
        }
        row.end()
    }

    /// The values of these places, counted row by row.
    fn read(&self, places: Range<usize>) -> Result<Vec<Value>> {
        // Two values may share a byte, and only one of them be wanted.
        let (bits, per_byte) = (u64::from(self.dtype.bits()), 8_usize.div_ceil(self.dtype.bits() as usize));
        let bytes = places.start as u64 * bits / 8..(places.end as u64 * bits).div_ceil(8);
        let (skipped, wanted) = (places.start % per_byte, places.len());
        let mut values = self.decoded(bytes)?;
        values.drain(..skipped);
        values.truncate(wanted);
        Ok(values)
    }

    /// All values of these bytes.
    fn decoded(&self, range: Range<u64>) -> Result<Vec<Value>> {
        match &self.source {
            Source::Made(bytes) => {
                let range = range.start as usize..range.end as usize;
                decode(self.dtype, bytes.get(range).unwrap_or_default())
            }
            Source::Stored(tensor, region) => {
                let mut bytes = vec![0; (range.end - range.start) as usize];
                let mut rest = &mut *bytes;
                for piece in region.byte_ranges_in(range) {
                    let (into, behind) = rest.split_at_mut((piece.end - piece.start) as usize);
                    let offset = tensor.info().file_range().start + piece.start;
                    tensor.shard().source().read_at(offset, into).context("its data cannot be read")?;
                    rest = behind;
                }
                decode(self.dtype, &bytes)
            }
        }
    }
}

/// What is printed of a dimension.
fn kept(dim: usize, cut: bool) -> Vec<Range<usize>> {
    match cut && dim > 2 * EDGE {
        true => vec![0..EDGE, dim - EDGE..dim],
        false => std::iter::once(0..dim).collect(),
    }
}

/// A long row is read in pieces.
fn parts(range: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    const MOST: usize = 1 << 16;
    range.clone().step_by(MOST).map(move |start| start..range.end.min(start + MOST))
}

/// One row of values on as many lines as it takes.
struct Row<'o> {
    out: &'o mut dyn Write,
    indent: usize,
    /// Characters in a line, with room for the brackets at its end.
    width: usize,
    column: usize,
    /// Blanks that are due if another word follows in the line.
    blanks: usize,
    first: bool,
}

impl Row<'_> {
    fn word(&mut self, word: &str) -> Result<()> {
        let column = self.column + self.blanks + usize::from(!self.first);
        if !self.first && column + word.len() > self.width {
            write!(self.out, "\n{:1$}", "", self.indent)?;
            self.column = self.indent;
        } else {
            write!(self.out, "{:1$}", "", column - self.column)?;
            self.column = column;
        }
        let visible = word.trim_end();
        write!(self.out, "{visible}")?;
        self.column += visible.len();
        (self.blanks, self.first) = (word.len() - visible.len(), false);
        Ok(())
    }

    /// Behind the last word.
    fn end(self) -> Result<()> {
        Ok(write!(self.out, "{:1$}]", "", self.blanks)?)
    }
}

fn decode(dtype: Dtype, bytes: &[u8]) -> Result<Vec<Value>> {
    if dtype.is_float() {
        return Ok(reals(dtype, bytes)?.into_iter().map(Value::Real).collect());
    }
    Ok(match dtype {
        Dtype::Bool => bytes.iter().map(|&byte| Value::Bool(byte != 0)).collect(),
        Dtype::C64 => {
            let parts = reals(Dtype::F32, bytes)?;
            parts
                .as_chunks::<2>()
                .0
                .iter()
                .map(|&[real, imaginary]| Value::Complex(real, imaginary))
                .collect()
        }
        Dtype::U64 => {
            let values = bytes.as_chunks::<8>().0.iter();
            values.map(|&value| Value::Integer(u64::from_le_bytes(value).into())).collect()
        }
        _ => {
            let mut values = vec![0_i64; bytes.len() / (dtype.bits() as usize / 8)];
            cast_into(dtype, bytes, &mut values)?;
            values.into_iter().map(|value| Value::Integer(value.into())).collect()
        }
    })
}

fn reals(dtype: Dtype, bytes: &[u8]) -> Result<Vec<f64>> {
    let mut values = vec![0.0; bytes.len() * 8 / dtype.bits() as usize];
    cast_into(dtype, bytes, &mut values)?;
    Ok(values)
}
