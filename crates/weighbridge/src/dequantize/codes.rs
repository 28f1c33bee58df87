//! How codes are packed: where in the bytes of a stored matrix the code of a row and column is.

use crate::newer_std::{as_chunks, as_chunks_mut};
use std::ops::Range;

/// A stored matrix of codes, or several behind one another.
#[derive(Clone, Debug)]
pub(crate) struct Codes {
    pub(crate) packing: Packing,
    /// Of a code: 1 to 8.
    pub(crate) bits: u32,
    /// Codes in a column and in a row, without padding.
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// The bytes of a row of words, padding included.
    pub(crate) stride: usize,
    /// The rows of words of a matrix.
    pub(crate) word_rows: usize,
}

/// How codes share words. Words are little-endian.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    /// Each row is a stream of bits, first the low ones.
    Along,
    /// Each row is words of 32 bits that hold as many whole codes as they can, first the low ones.
    Fields,
    /// Codes of 4 bits: of each eight, the places in a word of 32 bits.
    Nibbles([u8; 8]),
    /// Each column is a stream of bits through words of 32 bits, first the low ones.
    Down,
    /// Each column is words of 32 bits that hold as many whole codes as they can, first the low ones.
    FieldsDown,
    /// Rows share rows of words, as many as there are shifts: each row of words holds rows that lie so far apart as there
    /// are rows of words. A word has `word` bytes.
    Planes { word: usize, shifts: Vec<u32> },
    /// The same, but each row of words holds rows that follow each other.
    Interleaved { shifts: Vec<u32> },
    /// AutoAWQ's `gemv_fast`: four rows share a row of 16-bit words, in an order of its own.
    FastGemv,
}

/// The low half of a byte first, then the high one.
pub(crate) const LOW_FIRST: [u8; 8] = [0, 1, 2, 3, 4, 5, 6, 7];
/// The high half of a byte first.
pub(crate) const HIGH_FIRST: [u8; 8] = [1, 0, 3, 2, 5, 4, 7, 6];
/// AWQ's kernels: where the columns of each eight are.
pub(crate) const AWQ: [u8; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// The bytes that were gathered for some rows and columns.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window<'g> {
    pub(crate) bytes: &'g [u8],
    place: Place,
}

/// Where in the stored matrix they are from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    word_row: usize,
    /// The first byte of each row of words.
    start: usize,
    stride: usize,
    rows: usize,
}

impl Place {
    /// The bytes that are gathered.
    pub(crate) fn len(&self) -> usize {
        self.rows * self.stride
    }
}

/// Four bits each, so many codes are in a line of the cache.
pub(crate) const STRIP: usize = 128;

/// Gaps up to this size are read with what is around them.
const READ_THROUGH: usize = 2 << 10;

impl Codes {
    /// The bytes of one stored matrix.
    pub(crate) fn matrix_len(&self) -> usize {
        self.word_rows * self.stride
    }

    /// Whether the number of bytes that it says it has can be counted, and every code is inside of them.
    pub(crate) fn is_sound(&self) -> bool {
        let bits = self.bits as usize;
        let stream = |count: usize| count.checked_mul(bits);
        let (rows, columns) = (self.rows, self.columns);
        let fits = match &self.packing {
            Packing::Along => {
                rows <= self.word_rows && stream(columns).is_some_and(|bits| bits.div_ceil(8) <= self.stride)
            }
            Packing::Fields => {
                rows <= self.word_rows
                    && bits > 0
                    && columns
                        .div_ceil(32 / bits.clamp(1, 32))
                        .checked_mul(4)
                        .is_some_and(|len| len <= self.stride)
            }
            Packing::Nibbles(order) => {
                let padded = if matches!(*order, LOW_FIRST | HIGH_FIRST) { 2 } else { 8 };
                bits == 4 && rows <= self.word_rows && columns.div_ceil(padded) * (padded / 2) <= self.stride
            }
            Packing::Down => {
                stream(rows).is_some_and(|bits| bits.div_ceil(32) <= self.word_rows)
                    && columns.checked_mul(4).is_some_and(|len| len <= self.stride)
            }
            Packing::FieldsDown => {
                rows.div_ceil(32 / bits.clamp(1, 32)) <= self.word_rows
                    && columns.checked_mul(4).is_some_and(|len| len <= self.stride)
            }
            Packing::Planes { word, shifts } => {
                matches!(word, 1 | 4)
                    && self.word_rows.checked_mul(shifts.len()).is_some_and(|most| rows <= most)
                    && columns.checked_mul(*word).is_some_and(|len| len <= self.stride)
                    && shifts.iter().all(|shift| (shift + self.bits) as usize <= 8 * word)
            }
            Packing::Interleaved { shifts } => {
                self.word_rows.checked_mul(shifts.len()).is_some_and(|most| rows <= most)
                    && columns <= self.stride
                    && shifts.iter().all(|shift| shift + self.bits <= 8)
            }
            Packing::FastGemv => {
                bits == 4
                    && columns % 64 == 0
                    && rows % 4 == 0
                    && rows / 4 <= self.word_rows
                    && columns.checked_mul(2).is_some_and(|len| len <= self.stride)
            }
        };
        (1..=8).contains(&self.bits) && fits && self.word_rows.checked_mul(self.stride).is_some()
    }

    /// A row that bands must not go beyond, counted from a multiple of it; `usize::MAX` if there is none.
    pub(crate) fn plane(&self) -> usize {
        match self.packing {
            Packing::Planes { .. } => self.word_rows.max(1),
            _ => usize::MAX,
        }
    }

    /// The rows of words that hold some rows.
    fn word_rows_of(&self, rows: &Range<usize>) -> Range<usize> {
        let bits = self.bits as usize;
        match &self.packing {
            Packing::Along | Packing::Fields | Packing::Nibbles(_) => rows.clone(),
            Packing::Down => rows.start * bits / 32..(rows.end * bits).div_ceil(32),
            Packing::FieldsDown => rows.start / (32 / bits)..rows.end.div_ceil(32 / bits),
            Packing::Planes { .. } => {
                let start = rows.start / self.plane() * self.plane();
                rows.start - start..(rows.end - start).min(self.word_rows)
            }
            Packing::Interleaved { shifts } => {
                let each = shifts.len().max(1);
                rows.start / each..rows.end.div_ceil(each)
            }
            Packing::FastGemv => rows.start / 4..rows.end.div_ceil(4),
        }
    }

    /// The bytes of a row of words that hold some columns.
    fn bytes_of(&self, columns: &Range<usize>) -> Range<usize> {
        let bits = self.bits as usize;
        let Range { start, end } = *columns;
        let bytes = match &self.packing {
            // From the start of a word, for the order within it.
            Packing::Along => start / 32 * 32 * bits / 8..(end * bits).div_ceil(8),
            Packing::Fields => start / (32 / bits) * 4..end.div_ceil(32 / bits) * 4,
            Packing::Nibbles(_) => start / 8 * 4..end.div_ceil(8) * 4,
            Packing::Down | Packing::FieldsDown => start * 4..end * 4,
            Packing::Planes { word, .. } => start * word..end * word,
            Packing::Interleaved { .. } => start..end,
            Packing::FastGemv => start / 64 * 128..end.div_ceil(64) * 128,
        };
        bytes.start..bytes.end.min(self.stride)
    }

    /// What is gathered for some rows and columns.
    pub(crate) fn place(&self, rows: &Range<usize>, columns: &Range<usize>) -> Place {
        let (word_rows, bytes) = (self.word_rows_of(rows), self.bytes_of(columns));
        let is_near = word_rows.len() > 1 && self.stride - bytes.len() <= READ_THROUGH;
        let bytes = if is_near { 0..self.stride } else { bytes };
        Place {
            word_row: word_rows.start,
            start: bytes.start,
            stride: bytes.len(),
            rows: word_rows.end.saturating_sub(word_rows.start),
        }
    }

    /// Appends the ranges of bytes of a place in the matrix that begins at `base`.
    pub(crate) fn ranges(&self, place: &Place, base: u64, out: &mut impl FnMut(Range<u64>)) {
        let at = |row: usize| base + ((place.word_row + row) * self.stride + place.start) as u64;
        if place.stride == self.stride {
            out(at(0)..at(0) + place.len() as u64);
        } else {
            (0..place.rows).for_each(|row| out(at(row)..at(row) + place.stride as u64));
        }
    }

    /// The code of a row and a column.
    pub(crate) fn code(&self, window: &Window<'_>, row: usize, column: usize) -> u8 {
        let bits = self.bits as usize;
        let mask = ((1_u32 << self.bits) - 1) as u8;
        let code = match &self.packing {
            Packing::Along => window.bits(row, column * bits, bits),
            Packing::Fields => {
                let each = 32 / bits;
                window.bits(row, column / each * 32 + column % each * bits, bits)
            }
            Packing::Nibbles(order) => {
                window.bits(row, column / 8 * 32 + usize::from(order[column % 8]) * 4, 4)
            }
            Packing::Down => {
                let first = row * bits;
                let (word, shift) = (first / 32, first % 32);
                let low = u64::from(window.word(word, column * 4));
                let high = if shift + bits > 32 { u64::from(window.word(word + 1, column * 4)) } else { 0 };
                ((low | high << 32) >> shift) as u8
            }
            Packing::FieldsDown => {
                let each = 32 / bits;
                (window.word(row / each, column * 4) >> (row % each * bits)) as u8
            }
            Packing::Planes { word, shifts } => {
                let plane = self.plane();
                let shift = shifts.get(row / plane).copied().unwrap_or(0);
                match word {
                    1 => window.byte(row % plane, column) >> (shift & 7),
                    _ => (window.word(row % plane, column * 4) >> (shift & 31)) as u8,
                }
            }
            Packing::Interleaved { shifts } => {
                let each = shifts.len().max(1);
                window.byte(row / each, column) >> (shifts.get(row % each).copied().unwrap_or(0) & 7)
            }
            Packing::FastGemv => {
                let (word, nibble) = fast_gemv(row, column);
                let byte = window.byte(row / 4, word * 2 + nibble / 2);
                byte >> (nibble % 2 * 4)
            }
        };
        code & mask
    }

    /// The codes of columns of one row, one in each byte of `out`.
    #[inline(always)]
    pub(crate) fn row(&self, window: &Window<'_>, row: usize, columns: Range<usize>, out: &mut [u8]) {
        let fast = match (&self.packing, self.bits) {
            (Packing::Along, 8) => {
                window.row(row, columns.start, columns.len()).map(|bytes| out.copy_from_slice(bytes))
            }
            (Packing::Along, 4) => self.nibbles(window, row, &columns, [0, 4], out),
            (Packing::Nibbles(LOW_FIRST), _) => self.nibbles(window, row, &columns, [0, 4], out),
            (Packing::Nibbles(HIGH_FIRST), _) => self.nibbles(window, row, &columns, [4, 0], out),
            (Packing::Along, _) => self.stream(window, row, &columns, out),
            (Packing::Planes { word: 1, shifts }, _) => self.plane_row(window, row, &columns, shifts, out),
            (Packing::Down, _) => self.down(window, row, &columns, out),
            _ => None,
        };
        if fast.is_none() {
            self.row_one_by_one(window, row, columns, out);
        }
    }

    /// The same, code by code.
    pub(crate) fn row_one_by_one(
        &self,
        window: &Window<'_>,
        row: usize,
        columns: Range<usize>,
        out: &mut [u8],
    ) {
        columns.zip(out).for_each(|(column, out)| *out = self.code(window, row, column));
    }

    /// Columns that are unpacked together where rows are unpacked across: those of a few lines of the processor's cache.
    pub(crate) fn strip(&self) -> usize {
        match (&self.packing, self.bits) {
            (Packing::Nibbles(_), _) | (Packing::Along, 4) => STRIP,
            _ => STRIP / 2,
        }
    }

    /// The codes of columns, of which the first is a multiple of eight, in some rows: `stride` bytes of `out` for each
    /// column.
    #[inline(always)]
    pub(crate) fn strip_of(
        &self,
        window: &Window<'_>,
        rows: Range<usize>,
        columns: Range<usize>,
        stride: usize,
        out: &mut [u8],
    ) {
        let fast = match (&self.packing, self.bits) {
            (Packing::Nibbles(order), _) => self.strip_of_words(window, &rows, &columns, *order, stride, out),
            (Packing::Along, 4) => self.strip_of_words(window, &rows, &columns, LOW_FIRST, stride, out),
            (Packing::Along, 8) => strip_of_bytes(window, &rows, &columns, stride, out),
            (Packing::Down, 2 | 4 | 8) => self.strip_down(window, &rows, &columns, stride, out),
            _ => None,
        };
        if fast.is_none() {
            for (column, out) in columns.zip(out.chunks_mut(stride)) {
                rows.clone().zip(out).for_each(|(row, out)| *out = self.code(window, row, column));
            }
        }
    }

    /// Two codes to a byte, at these shifts.
    #[inline(always)]
    fn nibbles(
        &self,
        window: &Window<'_>,
        row: usize,
        columns: &Range<usize>,
        shifts: [u32; 2],
        out: &mut [u8],
    ) -> Option<()> {
        if columns.start % 2 != 0 {
            return None;
        }
        let bytes = window.row(row, columns.start / 2, columns.len().div_ceil(2))?;
        let (pairs, last) = out.split_at_mut(columns.len() / 2 * 2);
        let (eights, rest_out) = as_chunks_mut::<8, _>(pairs);
        let (fours, rest) = bytes.split_at(eights.len() * 4);
        let fours = as_chunks::<4, _>(fours).0;
        let is_low_first = shifts[0] == 0;
        for (four, eight) in fours.iter().zip(&mut *eights) {
            let spread = spread(u32::from_le_bytes(*four));
            // The high half of a byte first: the two bytes that a byte became change places.
            let ordered = if is_low_first {
                spread
            } else {
                (spread & 0x00FF_00FF_00FF_00FF) << 8 | spread >> 8 & 0x00FF_00FF_00FF_00FF
            };
            *eight = ordered.to_le_bytes();
        }
        for (byte, pair) in rest.iter().zip(rest_out.chunks_exact_mut(2)) {
            pair.copy_from_slice(&[byte >> shifts[0] & 15, byte >> shifts[1] & 15]);
        }
        if let (Some(last), Some(byte)) = (last.first_mut(), bytes.last()) {
            *last = byte >> shifts[0] & 15;
        }
        Some(())
    }

    /// A stream of bits, eight codes at a time: they are `bits` bytes.
    #[inline(always)]
    fn stream(&self, window: &Window<'_>, row: usize, columns: &Range<usize>, out: &mut [u8]) -> Option<()> {
        let bits = self.bits as usize;
        if columns.start % 8 != 0 {
            return None;
        }
        let bytes = window.row(row, columns.start / 8 * bits, (columns.len() * bits).div_ceil(8))?;
        let mask = (1_u64 << bits) - 1;
        for (bytes, out) in bytes.chunks(bits).zip(out.chunks_mut(8)) {
            let mut word = [0; 8];
            word[..bytes.len()].copy_from_slice(bytes);
            let word = u64::from_le_bytes(word);
            out.iter_mut().enumerate().for_each(|(at, out)| *out = (word >> (at * bits) & mask) as u8);
        }
        Some(())
    }

    #[inline(always)]
    fn plane_row(
        &self,
        window: &Window<'_>,
        row: usize,
        columns: &Range<usize>,
        shifts: &[u32],
        out: &mut [u8],
    ) -> Option<()> {
        let shift = shifts.get(row / self.plane())? & 7;
        let mask = ((1_u32 << self.bits) - 1) as u8;
        let bytes = window.row(row % self.plane(), columns.start, columns.len())?;
        bytes.iter().zip(out).for_each(|(byte, out)| *out = byte >> shift & mask);
        Some(())
    }

    /// One row of words that streams go down through.
    #[inline(always)]
    fn down(&self, window: &Window<'_>, row: usize, columns: &Range<usize>, out: &mut [u8]) -> Option<()> {
        let bits = self.bits as usize;
        let shift = row * bits % 32;
        if shift + bits > 32 {
            return None;
        }
        let words = window.row(row * bits / 32, columns.start * 4, columns.len() * 4)?;
        let mask = (1_u32 << bits) - 1;
        for (word, out) in words.chunks_exact(4).zip(out) {
            let word = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
            *out = (word >> shift & mask) as u8;
        }
        Some(())
    }

    /// Each row has one word for eight columns. Of eight rows at a time, they are exchanged.
    #[inline(always)]
    fn strip_of_words(
        &self,
        window: &Window<'_>,
        rows: &Range<usize>,
        columns: &Range<usize>,
        order: [u8; 8],
        stride: usize,
        out: &mut [u8],
    ) -> Option<()> {
        let row_bytes = window.place.stride;
        let words = columns.len().div_ceil(8);
        let first = window.offset(rows.start, columns.start / 2)?;
        // The last columns may have no whole word.
        let whole = columns.len() / 8;
        let eights = rows.len() / 8;
        for eight in 0..eights {
            let lines: [&[u8]; 8] = std::array::from_fn(|row| {
                let start = first + (eight * 8 + row) * row_bytes;
                window.bytes.get(start..start + whole * 4).unwrap_or_default()
            });
            if lines.iter().any(|line| line.len() != whole * 4) {
                return None;
            }
            for word in (0..whole).step_by(WORDS) {
                let mut lanes = [[0; WORDS]; 8];
                for (lane, line) in lanes.iter_mut().zip(lines) {
                    let words = as_chunks::<4, _>(line.get(word * 4..).unwrap_or_default()).0;
                    for (spread_word, word) in lane.iter_mut().zip(words) {
                        *spread_word = spread(u32::from_le_bytes(*word));
                    }
                }
                transpose(&mut lanes);
                for (lane, place) in order.iter().enumerate() {
                    let lanes = &lanes[usize::from(*place)];
                    for (at, codes) in lanes.iter().enumerate().take(whole - word) {
                        let start = ((word + at) * 8 + lane) * stride + eight * 8;
                        out.get_mut(start..start + 8)?.copy_from_slice(&codes.to_le_bytes());
                    }
                }
            }
        }
        let rest = |row: usize, column: usize| row >= eights * 8 || column >= whole * 8;
        if eights * 8 < rows.len() || whole < words {
            for (column, out) in columns.clone().zip(out.chunks_mut(stride)) {
                for (row, out) in
                    rows.clone().zip(out).filter(|(row, _)| rest(row - rows.start, column - columns.start))
                {
                    *out = self.code(window, row, column);
                }
            }
        }
        Some(())
    }

    /// Each column is a stream of whole codes; a word of it is in another row of words.
    #[inline(always)]
    fn strip_down(
        &self,
        window: &Window<'_>,
        rows: &Range<usize>,
        columns: &Range<usize>,
        stride: usize,
        out: &mut [u8],
    ) -> Option<()> {
        let (bits, width) = (self.bits as usize, rows.len());
        let each = 32 / bits;
        if rows.start % each != 0 || width % each != 0 {
            return None;
        }
        let mask = (1_u32 << bits) - 1;
        for number in 0..width / each {
            let words = window.row(rows.start / each + number, columns.start * 4, columns.len() * 4)?;
            for (lane, word) in as_chunks::<4, _>(words).0.iter().enumerate() {
                let word = u32::from_le_bytes(*word);
                let start = lane * stride + number * each;
                let codes = out.get_mut(start..start + each)?;
                match bits {
                    4 => codes.copy_from_slice(&spread(word).to_le_bytes()),
                    8 => codes.copy_from_slice(&word.to_le_bytes()),
                    _ => {
                        for (at, code) in codes.iter_mut().enumerate() {
                            *code = (word >> (at * bits) & mask) as u8;
                        }
                    }
                }
            }
        }
        Some(())
    }
}

/// Codes of bytes: rows become columns.
#[inline(always)]
fn strip_of_bytes(
    window: &Window<'_>,
    rows: &Range<usize>,
    columns: &Range<usize>,
    stride: usize,
    out: &mut [u8],
) -> Option<()> {
    for (at, row) in rows.clone().enumerate() {
        let bytes = window.row(row, columns.start, columns.len())?;
        for (out, byte) in out.chunks_mut(stride).zip(bytes) {
            *out.get_mut(at)? = *byte;
        }
    }
    Some(())
}

/// Each four bits in a byte of their own, the lowest first.
#[inline(always)]
fn spread(word: u32) -> u64 {
    let word = u64::from(word);
    let word = (word | word << 16) & 0x0000_FFFF_0000_FFFF;
    let word = (word | word << 8) & 0x00FF_00FF_00FF_00FF;
    (word | word << 4) & 0x0F0F_0F0F_0F0F_0F0F
}

/// Matrices that are transposed at a time: their rows make a vector.
const WORDS: usize = 4;

/// Makes the rows of matrices of 8 by 8 bytes their columns.
// Loops, and no closures or methods of arrays, which are not compiled for the instructions of the loop around them.
#[inline(always)]
fn transpose(rows: &mut [[u64; WORDS]; 8]) {
    const SWAPS: [(usize, u32, u64); 3] =
        [(4, 32, 0x0000_0000_FFFF_FFFF), (2, 16, 0x0000_FFFF_0000_FFFF), (1, 8, 0x00FF_00FF_00FF_00FF)];
    for (distance, bits, mask) in SWAPS {
        for first in 0..8 {
            if first & distance != 0 {
                continue;
            }
            let (mut upper, mut lower) = (rows[first], rows[first + distance]);
            for (upper, lower) in upper.iter_mut().zip(&mut lower) {
                (*upper, *lower) =
                    (*upper & mask | (*lower & mask) << bits, *upper >> bits & mask | *lower & !mask);
            }
            (rows[first], rows[first + distance]) = (upper, lower);
        }
    }
}

/// The word, of the row of words that four rows share, and the four bits of it that hold a code.
fn fast_gemv(row: usize, column: usize) -> (usize, usize) {
    // A run of 32 columns is regrouped, then each eight of them, then four rows take turns every 64 columns.
    const EIGHT: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];
    let (run, within) = (column / 32, column % 32);
    // reshape(4, 4, 2) → (1, 0, 2)
    let (a, b, c) = (within / 8, within / 2 % 4, within % 2);
    let regrouped = b * 8 + a * 2 + c;
    let ordered = run * 32 + regrouped / 8 * 8 + EIGHT[regrouped % 8];
    // [rows / 4, 4, columns / 64, 64] → [rows / 4, columns / 64, 4, 64] → […, 64, 4]
    let (block, inner) = (ordered / 64, ordered % 64);
    let flat = (row % 4) * 64 + inner;
    (block * 64 + flat / 4, flat % 4)
}

impl<'g> Window<'g> {
    pub(crate) fn new(place: Place, bytes: &'g [u8]) -> Self {
        Self { bytes, place }
    }

    /// Where in the gathered bytes a byte of a row of words is.
    fn offset(&self, word_row: usize, byte: usize) -> Option<usize> {
        let column = byte.checked_sub(self.place.start).filter(|column| *column < self.place.stride)?;
        Some(word_row.checked_sub(self.place.word_row)? * self.place.stride + column)
    }

    fn row(&self, word_row: usize, byte: usize, len: usize) -> Option<&'g [u8]> {
        let start = self.offset(word_row, byte)?;
        self.bytes.get(start..start.checked_add(len)?)
    }

    fn byte(&self, word_row: usize, byte: usize) -> u8 {
        self.offset(word_row, byte).and_then(|at| self.bytes.get(at).copied()).unwrap_or(0)
    }

    fn word(&self, word_row: usize, byte: usize) -> u32 {
        u32::from_le_bytes(std::array::from_fn(|at| self.byte(word_row, byte + at)))
    }

    /// Some bits of a row of words, from that one on.
    fn bits(&self, word_row: usize, first: usize, bits: usize) -> u8 {
        let low = u16::from(self.byte(word_row, first / 8));
        let high = if first % 8 + bits > 8 { u16::from(self.byte(word_row, first / 8 + 1)) } else { 0 };
        ((low | high << 8) >> (first % 8)) as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes without a pattern.
    fn noise(len: usize) -> Vec<u8> {
        let mut state = 0x9E37_79B9_u32;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state >> 11) as u8
        };
        (0..len).map(|_| next()).collect()
    }

    /// Every packing, of matrices of these rows and columns.
    fn all(rows: usize, columns: usize) -> Vec<Codes> {
        let along =
            |packing, bits: u32, stride| Codes { packing, bits, rows, columns, stride, word_rows: rows };
        let down =
            |packing, bits, word_rows, stride| Codes { packing, bits, rows, columns, stride, word_rows };
        let mut codes = Vec::new();
        for bits in 1..=8 {
            let (each, bits_of_row) = (32 / bits as usize, columns * bits as usize);
            codes.push(along(Packing::Along, bits, bits_of_row.div_ceil(32) * 4));
            codes.push(along(Packing::Along, bits, bits_of_row.div_ceil(8)));
            codes.push(along(Packing::Fields, bits, columns.div_ceil(each) * 4));
            codes.push(down(Packing::Down, bits, (rows * bits as usize).div_ceil(32), columns * 4));
            codes.push(down(Packing::FieldsDown, bits, rows.div_ceil(each), columns * 4));
        }
        for order in [LOW_FIRST, HIGH_FIRST, AWQ] {
            codes.push(along(Packing::Nibbles(order), 4, columns.div_ceil(8) * 4));
        }
        for (bits, shifts) in [(4, vec![4, 0]), (2, vec![0, 2, 4, 6]), (1, (0..8).rev().collect())] {
            let word_rows = rows.div_ceil(shifts.len());
            let planes = Packing::Planes { word: 1, shifts: shifts.clone() };
            codes.push(down(planes, bits, word_rows, columns));
            codes.push(down(Packing::Interleaved { shifts }, bits, word_rows, columns));
        }
        let shifts = (0..10).rev().map(|at| at * 3).collect();
        codes.push(down(Packing::Planes { word: 4, shifts }, 3, rows.div_ceil(10), columns * 4));
        codes
    }

    #[test]
    fn codes_are_unpacked_together_as_one_by_one() {
        for (rows, columns) in
            [(1, 1), (3, 7), (8, 8), (9, 15), (16, 31), (24, 33), (40, 72), (17, 135), (200, 264)]
        {
            for codes in all(rows, columns) {
                assert!(codes.is_sound(), "{codes:?}");
                let stored = noise(codes.matrix_len());
                let whole = Window::new(codes.place(&(0..rows), &(0..columns)), &stored);
                // The whole, and a part that begins somewhere.
                for (first_row, first) in [(0, 0), (rows / 2, columns / 3), (rows / 3, columns / 2 / 8 * 8)] {
                    let plane = codes.plane();
                    let end = rows.min((first_row / plane + 1).saturating_mul(plane));
                    let (some_rows, some) = (first_row..end, first..columns);
                    let place = codes.place(&some_rows, &some);
                    let mut gathered = Vec::new();
                    codes.ranges(&place, 0, &mut |range| {
                        gathered.extend_from_slice(&stored[range.start as usize..range.end as usize]);
                    });
                    let window = Window::new(place, &gathered);
                    for row in some_rows.clone() {
                        let (mut fast, mut slow) = (vec![255; some.len()], vec![0; some.len()]);
                        codes.row(&window, row, some.clone(), &mut fast);
                        codes.row_one_by_one(&whole, row, some.clone(), &mut slow);
                        assert_eq!(fast, slow, "{codes:?} row {row} of {rows}, from column {first}");
                    }
                    if first % 8 == 0 {
                        let (stride, count) = (some_rows.len() + 3, some.len().min(codes.strip()));
                        let mut strip = vec![255; stride * count];
                        let columns = first..first + count;
                        codes.strip_of(&window, some_rows.clone(), columns.clone(), stride, &mut strip);
                        for (column, made) in columns.zip(strip.chunks(stride)) {
                            let slow: Vec<u8> =
                                some_rows.clone().map(|row| codes.code(&whole, row, column)).collect();
                            assert_eq!(made[..slow.len()], slow, "{codes:?} column {column} of {rows}");
                        }
                    }
                }
            }
        }
    }
}
