//! The loops over blocks of values, each written once and compiled for the instructions at hand.
//!
//! A value that is not kept, or does not have the elected sign, is multiplied by zero, so that NaN stays.

use super::mask::Choice;
use crate::cast::Work;

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

    #[inline(always)]
    fn run(self) {
        self.values.iter_mut().for_each(|value| *value /= self.divisor);
    }
}

/// Turns values into their differences from those of the base.
pub(super) struct Subtract<'b> {
    pub(super) base: &'b [f32],
    pub(super) values: &'b mut [f32],
}

impl Work for Subtract<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (value, base) in self.values.iter_mut().zip(self.base) {
            *value -= base;
        }
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

/// Keeps magnitudes from a least one on.
pub(super) struct Trim<'b> {
    pub(super) values: &'b mut [f32],
    /// The bits of the least magnitude.
    pub(super) least: u32,
}

impl Work for Trim<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        // Comparisons of signed integers are what vectors have.
        let least = self.least.cast_signed();
        for value in self.values {
            *value *= if magnitude(*value).cast_signed() >= least { 1.0 } else { 0.0 };
        }
    }
}

/// Keeps values at random, and multiplies them.
pub(super) struct Drop<'b> {
    pub(super) values: &'b mut [f32],
    pub(super) choice: Choice,
    pub(super) factor: f32,
}

impl Work for Drop<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let mut number = 0_u32;
        for value in self.values {
            *value *= if self.choice.keeps(number) { self.factor } else { 0.0 };
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

/// The sums of squares and products of two blocks: of the first, of the second, and of both.
pub(super) struct Products<'b> {
    pub(super) first: &'b [f32],
    pub(super) second: &'b [f32],
}

impl Work for Products<'_> {
    type Output = [f64; 3];

    /// In eight sums each, of every eighth element, which are added up in the end, in order.
    #[inline(always)]
    fn run(self) -> [f64; 3] {
        const LANES: usize = 8;
        let mut lanes = [[0.0_f64; LANES]; 3];
        let (first, first_rest) = self.first.as_chunks::<LANES>();
        let (second, second_rest) = self.second.as_chunks::<LANES>();
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
        lanes.map(|lanes| lanes.iter().sum())
    }
}
