//! The loops over blocks of values, each written once and compiled for the instructions at hand.
//!
//! A value that is not kept, or does not have the elected sign, is multiplied by zero, so that NaN stays.

use super::mask::Choice;
use crate::cast::Work;
use crate::newer_std::{as_chunks, signed};

/// Adds values times a weight to sums.
pub(super) struct AddScaled<'b> {
    pub(super) values: &'b [f32],
    pub(super) weight: f32,
    pub(super) sums: &'b mut [f32],
}

impl Work for AddScaled<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (sum, value) in self.sums.iter_mut().zip(self.values) {
            *sum += value * self.weight;
        }
    }
}

/// Multiplies values.
pub(super) struct Scale<'b> {
    pub(super) values: &'b mut [f32],
    pub(super) factor: f32,
}

impl Work for Scale<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        self.values.iter_mut().for_each(|value| *value *= self.factor);
    }
}

/// Divides values.
pub(super) struct Divide<'b> {
    pub(super) values: &'b mut [f32],
    pub(super) divisor: f32,
}

impl Work for Divide<'_> {
    type Output = ();

    /// What is divided by a power of two may be multiplied by its reciprocal, which is exact and faster.
    #[inline(always)]
    fn run(self) {
        let Self { values, divisor } = self;
        let reciprocal = divisor.recip();
        let is_power = |number: f32| number.is_normal() && number.to_bits() << 9 == 0;
        if is_power(divisor) && is_power(reciprocal) {
            return Scale { values, factor: reciprocal }.run();
        }
        values.iter_mut().for_each(|value| *value /= divisor);
    }
}

/// Adds the values of the base to sums.
pub(super) struct AddBase<'b> {
    pub(super) base: &'b [f32],
    pub(super) sums: &'b mut [f32],
}

impl Work for AddBase<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (sum, base) in self.sums.iter_mut().zip(self.base) {
            *sum += base;
        }
    }
}

/// The bits of a magnitude: they are in the order of magnitudes, NaN above all.
#[inline(always)]
pub(super) fn magnitude(value: f32) -> u32 {
    value.to_bits() & !(1 << 31)
}

/// What is kept of a difference.
pub(super) trait Filter {
    /// The difference that is the `number`-th of its block, or what is left of it.
    fn kept(&self, difference: f32, number: u32) -> f32;
}

/// All of it.
pub(super) struct All;

impl Filter for All {
    #[inline(always)]
    fn kept(&self, difference: f32, _: u32) -> f32 {
        difference
    }
}

/// Magnitudes from a least one on, which is given by its bits.
pub(super) struct From(pub(super) u32);

impl Filter for From {
    #[inline(always)]
    fn kept(&self, difference: f32, _: u32) -> f32 {
        // Comparisons of signed integers are what vectors have.
        let is_kept = signed(magnitude(difference)) >= signed(self.0);
        difference * if is_kept { 1.0 } else { 0.0 }
    }
}

/// Those that are chosen at random, multiplied by a factor.
pub(super) struct Chosen {
    pub(super) choice: Choice,
    pub(super) factor: f32,
}

impl Filter for Chosen {
    #[inline(always)]
    fn kept(&self, difference: f32, number: u32) -> f32 {
        difference * if self.choice.keeps(number) { self.factor } else { 0.0 }
    }
}

/// Makes what is kept of the differences from the base, times a weight, and adds it to sums.
pub(super) struct TakeDifferences<'b, F> {
    pub(super) base: &'b [f32],
    pub(super) values: &'b [f32],
    pub(super) filter: F,
    pub(super) weight: f32,
    pub(super) sums: &'b mut [f32],
    pub(super) differences: &'b mut [f32],
}

impl<F: Filter> Work for TakeDifferences<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let mut number = 0_u32;
        let made = self.sums.iter_mut().zip(self.differences);
        for (((sum, made), value), base) in made.zip(self.values).zip(self.base) {
            *made = self.filter.kept(value - base, number) * self.weight;
            *sum += *made;
            number = number.wrapping_add(1);
        }
    }
}

/// Adds the weighted differences that have the elected sign, and their weights.
pub(super) struct Elect<'b> {
    pub(super) differences: &'b [f32],
    pub(super) weight: f32,
    /// The sums of all differences, which elect.
    pub(super) totals: &'b [f32],
    pub(super) sums: &'b mut [f32],
    pub(super) weights: &'b mut [f32],
}

impl Work for Elect<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let sums = self.sums.iter_mut().zip(self.weights);
        for ((difference, total), (sum, weights)) in self.differences.iter().zip(self.totals).zip(sums) {
            let is_positive = *total >= 0.0;
            let agrees = (*difference > 0.0) & is_positive | (*difference < 0.0) & !is_positive;
            let factor = if agrees { 1.0 } else { 0.0 };
            *sum += difference * factor;
            *weights += self.weight * factor;
        }
    }
}

/// Divides sums by the weights that went into them, if there are any.
pub(super) struct Average<'b> {
    pub(super) sums: &'b mut [f32],
    pub(super) weights: &'b [f32],
}

impl Work for Average<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (sum, &weight) in self.sums.iter_mut().zip(self.weights) {
            *sum /= if weight == 0.0 { 1.0 } else { weight };
        }
    }
}

/// Of how many sums a sum is made: of every eighth element each.
pub(super) const LANES: usize = 8;

/// Adds the squares and products of two blocks to sums: of the first, of the second, and of both. A block that is not
/// the last one has a multiple of so many elements.
pub(super) struct Products<'b> {
    pub(super) first: &'b [f32],
    pub(super) second: &'b [f32],
    pub(super) sums: &'b mut [[f64; LANES]; 3],
}

impl Work for Products<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let mut lanes = *self.sums;
        let (first, first_rest) = as_chunks::<LANES, _>(self.first);
        let (second, second_rest) = as_chunks::<LANES, _>(self.second);
        for (first, second) in first.iter().zip(second) {
            for lane in 0..LANES {
                let (a, b) = (f64::from(first[lane]), f64::from(second[lane]));
                lanes[0][lane] += a * a;
                lanes[1][lane] += b * b;
                lanes[2][lane] += a * b;
            }
        }
        for (lane, (&a, &b)) in first_rest.iter().zip(second_rest).enumerate() {
            let (a, b) = (f64::from(a), f64::from(b));
            lanes[0][lane] += a * a;
            lanes[1][lane] += b * b;
            lanes[2][lane] += a * b;
        }
        *self.sums = lanes;
    }
}

/// Counts the magnitudes of differences: how many are above a range of bits, which is the result, and how many have each
/// of the bits in it.
pub(super) struct Count<'b> {
    pub(super) base: &'b [f32],
    pub(super) values: &'b [f32],
    /// The first bits that are counted.
    pub(super) first: u32,
    /// A counter for these, and for those that follow.
    pub(super) counters: &'b mut [u32],
    /// Memory for as many numbers as there are values.
    pub(super) places: &'b mut [u32],
}

impl Work for Count<'_> {
    type Output = u64;

    #[inline(always)]
    fn run(self) -> u64 {
        let Self { base, values, first, counters, places } = self;
        let last = first + (counters.len() as u32 - 1);
        let mut above = 0_u32;
        for ((place, value), base) in places.iter_mut().zip(values).zip(base) {
            let bits = magnitude(value - base);
            above += u32::from(signed(bits) > signed(last));
            *place = bits.wrapping_sub(first);
        }
        // Few are counted: eight are looked at together.
        let width = counters.len() as u32 - 1;
        let places = &places[..values.len().min(base.len()).min(places.len())];
        let (eights, rest) = as_chunks::<8, _>(places);
        for eight in eights {
            let any = eight.iter().fold(false, |any, &place| any | (place <= width));
            if any {
                for &place in eight {
                    if let Some(counter) = counters.get_mut(place as usize) {
                        *counter += 1;
                    }
                }
            }
        }
        for &place in rest {
            if let Some(counter) = counters.get_mut(place as usize) {
                *counter += 1;
            }
        }
        u64::from(above)
    }
}
