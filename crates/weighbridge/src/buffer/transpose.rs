//! The transpose of a matrix, written into uninitialised memory.

#![allow(unsafe_code)]

use crate::newer_std::as_chunks;
use std::mem::MaybeUninit;

use super::fill::{copied, fill, initialised, zeroed};

/// Transposes `from`, a matrix of `rows` rows of `columns` units of `unit` bytes, and fills `to` with what
/// the result has from byte `skipped` on. `None` if the lengths do not fit.
pub(crate) fn transpose<'t>(
    from: &[u8],
    rows: usize,
    columns: usize,
    unit: usize,
    skipped: usize,
    to: &'t mut [MaybeUninit<u8>],
) -> Option<&'t mut [u8]> {
    let whole = rows.checked_mul(columns)?.checked_mul(unit)?;
    if from.len() != whole || skipped.checked_add(to.len())? > whole {
        return None;
    }
    if to.is_empty() {
        return Some(zeroed(to));
    }
    match unit {
        1 => transpose_units::<1>(from, rows, columns, skipped, to),
        2 => transpose_units::<2>(from, rows, columns, skipped, to),
        4 => transpose_units::<4>(from, rows, columns, skipped, to),
        8 => transpose_units::<8>(from, rows, columns, skipped, to),
        _ => {
            let mut at = skipped;
            fill::<std::io::Error>(to, |_, rest| {
                let (number, inside) = (at / unit, at % unit);
                let start = ((number % rows) * columns + number / rows) * unit + inside;
                let len = (unit - inside).min(rest.len());
                at += len;
                Ok(Some(copied(&mut rest[..len], &from[start..start + len])))
            })
            .ok()
        }
    }
}

/// The same for units of `U` bytes, of which `skipped` and the length of `to` are multiples; `to` is not
/// empty and ends within the result.
fn transpose_units<'t, const U: usize>(
    from: &[u8],
    rows: usize,
    columns: usize,
    skipped: usize,
    to: &'t mut [MaybeUninit<u8>],
) -> Option<&'t mut [u8]> {
    /// Units of a block in each direction: its lines stay in the first cache.
    const BLOCK: usize = 32;
    let (from, _) = as_chunks::<U, _>(from);
    if to.len() % U != 0 || skipped % U != 0 {
        return None;
    }
    let (first, end) = (skipped / U, (skipped + to.len()) / U);
    for column in (first / rows..end.div_ceil(rows)).step_by(BLOCK) {
        let some_columns = column..(column + BLOCK).min(columns);
        for row in (0..rows).step_by(BLOCK) {
            let some_rows = row..(row + BLOCK).min(rows);
            for column in some_columns.clone() {
                let line = column * rows;
                let wanted = (line + some_rows.start).max(first)..(line + some_rows.end).min(end);
                for number in wanted {
                    let unit = from[(number - line) * columns + column].map(MaybeUninit::new);
                    to[(number - first) * U..][..U].copy_from_slice(&unit);
                }
            }
        }
    }
    // SAFETY: `to` is whole units (checked above), the units `first..end` of the result, and
    // unit `number` is in its row `number / rows`, one of the `columns`, because `end <= rows * columns`
    // (checked by the caller) and `rows > 0` (`to` is not empty). So the loops over blocks, columns and rows
    // come to every number in `first..end` and write it.
    Some(unsafe { initialised(to) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_the_transpose() {
        for (rows, columns, unit) in
            [(1, 1, 1), (3, 5, 2), (5, 3, 4), (2, 3, 8), (4, 3, 3), (33, 34, 1), (0, 3, 4)]
        {
            let stored: Vec<u8> = (0..rows * columns * unit).map(|i| i as u8).collect();
            let mut expected = Vec::new();
            for (column, row) in (0..columns).flat_map(|column| (0..rows).map(move |row| (column, row))) {
                expected.extend_from_slice(&stored[(row * columns + column) * unit..][..unit]);
            }
            let is_whole = matches!(unit, 1 | 2 | 4 | 8);
            let step = if is_whole { unit } else { 1 };
            let mut memory = vec![MaybeUninit::uninit(); expected.len()];
            for (start, end) in [(0, expected.len()), (step, expected.len()), (0, step), (step, 2 * step)] {
                let Some(wanted) = expected.get(start..end) else { continue };
                let to = &mut memory[..wanted.len()];
                let made = transpose(&stored, rows, columns, unit, start, to);
                assert_eq!(made.as_deref(), Some(wanted), "{rows} {columns} {unit} {start}..{end}");
            }
        }
    }

    #[test]
    fn lengths_that_do_not_fit_are_refused() {
        let mut memory = [MaybeUninit::uninit(); 8];
        assert_eq!(transpose(&[0; 7], 2, 2, 2, 0, &mut memory), None);
        assert_eq!(transpose(&[0; 8], 2, 2, 2, 2, &mut memory), None);
        assert_eq!(transpose(&[0; 8], 2, 2, 2, 0, &mut memory[..3]), None);
        assert_eq!(transpose(&[0; 8], 2, 2, 2, 1, &mut memory[..2]), None);
        assert_eq!(transpose(&[0; 8], usize::MAX, 2, 2, 0, &mut memory), None);
    }
}
