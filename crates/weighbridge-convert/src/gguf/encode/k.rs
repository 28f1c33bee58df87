//! The K formats: 256 values with scales of their groups, which are quantised themselves. Scales are searched
//! for.

use super::{bounds, half};

/// The nearest whole number, halfway the even one, of a value of at most a few thousand.
fn nearest(value: f32) -> i32 {
    /// Its last bit is one, so that the low bits of a sum with it are the whole number.
    const WHOLE: f32 = 12_582_912.0;
    (value + WHOLE).to_bits().wrapping_sub(WHOLE.to_bits()).cast_signed()
}

/// A whole number within bounds.
fn code(value: f32, least: i32, most: i32) -> i32 {
    nearest(value.max(least as f32).min(most as f32))
}

/// How the scale of a group of 32 values with a least one is searched for.
struct Search {
    /// The largest code.
    most: i32,
    /// The first number of codes to try, counted from the largest one, and how many steps of 0.1 are made
    /// from there.
    first: f32,
    steps: i32,
}

/// A scale and how far the least value lies below zero, with the codes that they give.
struct Fit {
    scale: f32,
    below: f32,
    codes: [i32; 32],
}

impl Search {
    /// The scale and the least value for which the weighted square of the errors is smallest, of those that
    /// are tried: for each spacing of codes the best line through the values. What is found to be better is
    /// where the next step begins.
    fn fit(&self, values: &[f32], weights: &[f32; 32]) -> Fit {
        let (mut least, largest) = bounds(values);
        let (mut sum_weights, mut sum) = (weights[0], weights[0] * values[0]);
        for (&value, &weight) in values.iter().zip(weights).skip(1) {
            sum_weights += weight;
            sum += weight * value;
        }
        // Not `min`: which of two zeros that gives is up to the machine, as is that of `max`.
        least = if least > 0.0 { 0.0 } else { least };
        if largest == least {
            return Fit { scale: 0.0, below: -least, codes: [0; 32] };
        }
        let mut factor = self.most as f32 / (largest - least);
        let mut fit = Fit { scale: 1.0 / factor, below: 0.0, codes: [0; 32] };
        fit.codes = self.codes(values, factor, least);
        let mut best = error(values, weights, fit.scale, least, &fit.codes);
        for step in 0..=self.steps {
            factor = (self.first + 0.1 * step as f32 + self.most as f32) / (largest - least);
            let codes = self.codes(values, factor, least);
            let (mut sum_codes, mut sum_squares, mut sum_products) = (0.0, 0.0, 0.0);
            for ((&value, &weight), &code) in values.iter().zip(weights).zip(&codes) {
                let code = code as f32;
                sum_codes += weight * code;
                sum_squares += weight * code * code;
                sum_products += weight * code * value;
            }
            let determinant = sum_weights * sum_squares - sum_codes * sum_codes;
            if determinant > 0.0 {
                let mut scale = (sum_weights * sum_products - sum * sum_codes) / determinant;
                let mut lowest = (sum_squares * sum - sum_codes * sum_products) / determinant;
                if lowest > 0.0 {
                    lowest = 0.0;
                    scale = sum_products / sum_squares;
                }
                let current = error(values, weights, scale, lowest, &codes);
                if current < best {
                    best = current;
                    least = lowest;
                    fit = Fit { scale, below: 0.0, codes };
                }
            }
        }
        Fit { below: -least, ..fit }
    }

    fn codes(&self, values: &[f32], factor: f32, least: f32) -> [i32; 32] {
        let mut codes = [0; 32];
        let made = values.iter().map(|value| code(factor * (value - least), 0, self.most));
        codes.iter_mut().zip(made).for_each(|(out, code)| *out = code);
        codes
    }
}

/// The weighted square of the errors.
fn error(values: &[f32], weights: &[f32; 32], scale: f32, least: f32, codes: &[i32; 32]) -> f32 {
    let mut sum = 0.0;
    for ((&value, &weight), &code) in values.iter().zip(weights).zip(codes) {
        let difference = scale * code as f32 + least - value;
        sum += weight * (difference * difference);
    }
    sum
}

/// Codes of eight groups of 32 with scales and least values of 6 bits, both written with the two numbers that
/// they are multiples of.
fn grouped(values: &[f32], search: &Search, out: &mut [u8]) -> Option<[i32; 256]> {
    let fits: [Fit; 8] = std::array::from_fn(|group| {
        let values = &values[group * 32..][..32];
        let squares = values.iter().fold(0.0, |sum, value| sum + value * value);
        let usual = f32::sqrt(squares / 32.0);
        let weights = std::array::from_fn(|at| usual + values[at].abs());
        search.fit(values, &weights)
    });
    fits.iter().all(|fit| fit.scale.is_finite() && fit.below.is_finite()).then_some(())?;
    let largest = |of: fn(&Fit) -> f32| {
        fits.iter().map(of).fold(0.0, |largest, value| if value > largest { value } else { largest })
    };
    let (scale, below) = (largest(|fit| fit.scale), largest(|fit| fit.below));
    let factor = |largest: f32| if largest > 0.0 { 63.0 / largest } else { 0.0 };
    let (scales, belows) = (factor(scale), factor(below));
    let six = |number: f32| nearest(number).min(63) as u8;
    for (group, fit) in fits.iter().enumerate() {
        let (scale, below) = (six(scales * fit.scale), six(belows * fit.below));
        let packed = &mut out[4..16];
        if group < 4 {
            packed[group] = scale;
            packed[group + 4] = below;
        } else {
            packed[group + 4] = scale & 15 | below << 4;
            packed[group - 4] |= scale >> 4 << 6;
            packed[group] |= below >> 4 << 6;
        }
    }
    let (scale, below) = (half(scale / 63.0, &mut out[..2])?, half(below / 63.0, &mut out[2..4])?);
    let mut codes = [0; 256];
    for (group, fit) in fits.iter().enumerate() {
        let (own, lowest) = super::super::quants::scale_and_least(&out[4..16], group);
        let (scale, below) = (scale * own, below * lowest);
        let codes = &mut codes[group * 32..][..32];
        if scale == 0.0 {
            codes.copy_from_slice(&fit.codes);
            continue;
        }
        let values = &values[group * 32..];
        let made = values.iter().map(|value| code((value + below) / scale, 0, search.most));
        codes.iter_mut().zip(made).for_each(|(out, code)| *out = code);
    }
    Some(codes)
}

/// Two groups share 32 bytes.
fn pairs(codes: &[i32; 256], out: &mut [u8]) {
    for (out, codes) in out.chunks_exact_mut(32).zip(codes.chunks_exact(64)) {
        let (low, high) = codes.split_at(32);
        let codes = low.iter().zip(high);
        out.iter_mut().zip(codes).for_each(|(out, (low, high))| *out = (low & 15 | (high & 15) << 4) as u8);
    }
}

pub(crate) fn q4_k(values: &[f32], out: &mut [u8]) -> Option<()> {
    let codes = grouped(values, &Search { most: 15, first: -1.0, steps: 20 }, out)?;
    pairs(&codes, &mut out[16..144]);
    Some(())
}

pub(crate) fn q5_k(values: &[f32], out: &mut [u8]) -> Option<()> {
    let codes = grouped(values, &Search { most: 31, first: -0.5, steps: 15 }, out)?;
    for (at, code) in codes.iter().enumerate() {
        out[16 + at % 32] |= ((code >> 4) as u8) << (at / 32);
    }
    pairs(&codes, &mut out[48..176]);
    Some(())
}

/// Groups whose values are this near to zero are zero.
const NOTHING: f32 = 1e-15;

/// The scale of 16 values with codes from -32 to 31, for which the sum of the errors' squares is smallest,
/// each weighted with the square of its value, and the codes, with 32 added.
fn symmetric(values: &[f32]) -> (f32, [i32; 16]) {
    const HALF: i32 = 32;
    let extreme = super::extreme(values);
    if extreme.abs() < NOTHING {
        return (0.0, [0; 16]);
    }
    let codes =
        |factor: f32| -> [i32; 16] { std::array::from_fn(|at| code(factor * values[at], -HALF, HALF - 1)) };
    let sums = |codes: &[i32; 16]| {
        let (mut products, mut squares) = (0.0, 0.0);
        for (&value, &code) in values.iter().zip(codes) {
            let (weight, code) = (value * value, code as f32);
            products += weight * value * code;
            squares += weight * code * code;
        }
        (products, squares)
    };
    let mut chosen = codes(-(HALF as f32) / extreme);
    let (products, squares): (f32, f32) = sums(&chosen);
    let mut scale = if squares == 0.0 { 0.0 } else { products / squares };
    let mut best = scale * products;
    for step in (-9..=9).filter(|&step| step != 0) {
        let tried = codes(-(HALF as f32 + 0.1 * step as f32) / extreme);
        let (products, squares) = sums(&tried);
        if squares > 0.0 && products * products > best * squares {
            chosen = tried;
            scale = products / squares;
            best = scale * products;
        }
    }
    (scale, chosen.map(|code| code + HALF))
}

pub(crate) fn q6_k(values: &[f32], out: &mut [u8]) -> Option<()> {
    let fits: [_; 16] = std::array::from_fn(|group| symmetric(&values[group * 16..][..16]));
    let scales = fits.map(|(scale, _)| scale);
    // Squares of what is far too large are infinite.
    scales.iter().all(|scale| scale.is_finite()).then_some(())?;
    let extreme = super::extreme(&scales);
    if extreme.abs() < NOTHING {
        return Some(());
    }
    let factor = -128.0 / extreme;
    let all = half(1.0 / factor, &mut out[208..210])?;
    let mut codes = [0_u8; 256];
    for (group, (scale, fitted)) in fits.iter().enumerate() {
        let own = nearest(factor * scale).min(127) as i8;
        out[192 + group] = own.cast_unsigned();
        let scale = all * f32::from(own);
        let values = &values[group * 16..];
        for (at, (out, value)) in codes[group * 16..][..16].iter_mut().zip(values).enumerate() {
            *out = match scale {
                0.0 => fitted[at] as u8,
                _ => (code(value / scale, -32, 31) + 32) as u8,
            };
        }
    }
    for (at, code) in codes.iter().enumerate() {
        out[at / 128 * 64 + at % 64] |= (code & 15) << (at % 128 / 64 * 4);
        out[128 + at / 128 * 32 + at % 32] |= (code >> 4) << (at % 128 / 32 * 2);
    }
    Some(())
}
