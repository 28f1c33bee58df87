//! The loops: codes become values, which scales, zero points and biases turn into weights.

use std::ops::Range;

use half::{bf16, f16};

use super::companion::Values;
use super::recipe::{Recipe, Second, Value};
use crate::cast::{Work, e2m1, e4m3};
use crate::dtype::Dtype;

/// Columns that are computed at a time: their values stay in the first-level cache.
pub(super) const SEGMENT: usize = 1024;

/// The numbers of companions for a band: the first column of the grid that they are for, how many columns of weights that is,
/// and themselves.
pub(super) struct Parts {
    pub(super) zero: Option<Part>,
    pub(super) scale: Option<Part>,
    pub(super) second: Option<Part>,
    pub(super) bias: Option<Part>,
    pub(super) shift: Option<Part>,
    pub(super) factor: Option<Part>,
    /// Whether products are rounded before the bias is added.
    pub(super) is_rounded: bool,
}

pub(super) type Part = (usize, usize, Values);

impl Parts {
    /// The scales of a row.
    pub(super) fn scales(&self, row: usize) -> &[f32] {
        self.scale.as_ref().map_or(&[], |(_, _, scales)| scales.row(row))
    }

    /// The same times what they are multiplied or divided by, if there is such a thing.
    pub(super) fn multiply_scales(&self, row: usize, recipe: &Recipe, room: &mut Vec<f32>) {
        room.clear();
        let (Some((_, _, second)), Some((_, how))) = (&self.second, &recipe.second) else { return };
        let Some(&second) = second.row(row).first() else { return };
        room.extend(self.scales(row).iter().map(|scale| match how {
            Second::Factor => scale * second,
            Second::Divisor => scale / second,
        }));
    }
}

/// The weights of some columns of a row.
pub(super) struct Segment<'w> {
    pub(super) recipe: &'w Recipe,
    /// The row and the first column.
    pub(super) at: (usize, usize),
    pub(super) codes: &'w [u8],
    pub(super) parts: &'w Parts,
    pub(super) scales: &'w [f32],
    pub(super) out: &'w mut [f32],
}

impl Work for Segment<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        self.recipe.segment(self.at, self.codes, self.parts, self.scales, self.out);
    }
}

/// Numbers for each column of a segment: of its groups, one after the other, or by the index of a column.
#[derive(Clone, Copy)]
pub(super) struct Along<'v> {
    pub(super) values: &'v [f32],
    pub(super) first: usize,
    pub(super) across: usize,
    pub(super) groups: Option<&'v [u32]>,
}

impl Along<'_> {
    #[inline(always)]
    pub(super) fn of_column(&self, column: usize) -> f32 {
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
    pub(super) fn has_runs(&self) -> bool {
        self.across == usize::MAX || self.groups.is_none() && self.across >= 8
    }

    /// The numbers themselves, where each column has its own.
    pub(super) fn each(&self, start: usize, len: usize) -> Option<&[f32]> {
        let first = start.checked_sub(self.first).filter(|_| self.across == 1 && self.groups.is_none())?;
        self.values.get(first..first.checked_add(len)?)
    }

    /// Changes each value by its number.
    #[inline(always)]
    pub(super) fn apply(&self, start: usize, values: &mut [f32], with: impl Fn(f32, f32) -> f32) {
        if self.has_runs() {
            for (run, number) in self.runs(start, values.len()) {
                values[run].iter_mut().for_each(|value| *value = with(*value, number));
            }
        } else if let Some(numbers) = self.each(start, values.len()) {
            values.iter_mut().zip(numbers).for_each(|(value, &number)| *value = with(*value, number));
        } else if let Some((groups, last)) = self.index(start, values.len()) {
            for (value, &group) in values.iter_mut().zip(groups) {
                *value = with(*value, self.values[(group as usize).min(last)]);
            }
        } else {
            for (column, value) in (start..).zip(values) {
                *value = with(*value, self.of_column(column));
            }
        }
    }

    /// The groups of columns, where these are in no order, and the last group: there is none beyond it, and to say so
    /// makes vector code of the loop.
    #[inline(always)]
    fn index(&self, start: usize, len: usize) -> Option<(&[u32], usize)> {
        let groups = self.groups.filter(|_| self.across != usize::MAX)?;
        Some((groups.get(start..start.checked_add(len)?)?, self.values.len().checked_sub(1)?))
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
    pub(super) fn along<'v>(&'v self, (first, across, values): &'v Part, row: usize) -> Along<'v> {
        let groups = self.groups.as_ref().map(|groups| &*groups.of_column);
        Along { values: values.row(row), first: *first, across: *across, groups }
    }

    /// The weights of some columns of a row.
    #[inline(always)]
    pub(super) fn segment(
        &self,
        at: (usize, usize),
        codes: &[u8],
        parts: &Parts,
        scales: &[f32],
        out: &mut [f32],
    ) {
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
            (Some(zero), Some(scale))
                if !parts.is_rounded && self.by_index(codes, &zero, &scale, start, out) => {}
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

    /// The weights, where codes are numbers and both companions have an index; false otherwise.
    #[inline(always)]
    fn by_index(
        &self,
        codes: &[u8],
        zero: &Along<'_>,
        scale: &Along<'_>,
        start: usize,
        out: &mut [f32],
    ) -> bool {
        let Value::Number(add) = self.value else { return false };
        let (zeros, scales) = (zero.index(start, out.len()), scale.index(start, out.len()));
        let (Some((groups, last)), Some(_)) = (scales, zeros) else { return false };
        if zero.values.len() != scale.values.len() {
            return false;
        }
        for ((out, &code), &group) in out.iter_mut().zip(codes).zip(groups) {
            let (group, value) = ((group as usize).min(last), (i32::from(code) + i32::from(add)) as f32);
            *out = (value - zero.values[group]) * scale.values[group];
        }
        true
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
                    *out = then(f32::from(i8::from_le_bytes([code << unused]) >> unused));
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

/// Rounds values to a dtype.
fn round(values: &mut [f32], dtype: Option<Dtype>) {
    match dtype {
        Some(Dtype::BF16) => values.iter_mut().for_each(|value| *value = bf16::from_f32(*value).to_f32()),
        Some(Dtype::F16) => values.iter_mut().for_each(|value| *value = f16::from_f32(*value).to_f32()),
        _ => {}
    }
}
