//! The random choice of elements: a hash of what an element is, so that any tile can be made alone.

use crate::newer_std::signed;

/// Which elements of a tensor of a model are kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mask {
    keys: [u32; 2],
    /// Of 2^24, so many are kept.
    kept: i32,
}

/// Elements that have the upper half of their index in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct Choice {
    keys: [u32; 2],
    kept: i32,
    /// The lower half of the first one's index.
    first: u32,
}

impl Mask {
    pub(super) fn new(seed: u64, name: &str, model: usize, density: f64) -> Self {
        // FNV-1a.
        let hash = name.bytes().fold(0xCBF2_9CE4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
        });
        let key = mixed_64(mixed_64(seed ^ mixed_64(hash)).wrapping_add(model as u64));
        let kept = (density * f64::from(1 << 24)).round() as i32;
        Self { keys: [key as u32, (key >> 32) as u32], kept }
    }

    /// The choice among elements from `start` on, and how many there may be.
    pub(super) fn from(&self, start: u64) -> (Choice, u64) {
        let (first, upper) = (start as u32, (start >> 32) as u32);
        let keys = [self.keys[0], self.keys[1] ^ mixed(upper)];
        (Choice { keys, kept: self.kept, first }, (1 << 32) - u64::from(first))
    }
}

impl Choice {
    /// Whether an element is kept, counted from the first one.
    #[inline(always)]
    pub(super) fn keeps(&self, element: u32) -> bool {
        let hash = mixed(mixed(self.first.wrapping_add(element) ^ self.keys[0]) ^ self.keys[1]);
        signed(hash >> 8) < self.kept
    }
}

/// A permutation of 32 bits (Chris Wellons's `lowbias32`).
#[inline(always)]
fn mixed(bits: u32) -> u32 {
    let bits = (bits ^ bits >> 16).wrapping_mul(0x7FEB_352D);
    let bits = (bits ^ bits >> 15).wrapping_mul(0x846C_A68B);
    bits ^ bits >> 16
}

/// A permutation of 64 bits (that of SplitMix64).
fn mixed_64(bits: u64) -> u64 {
    let bits = (bits ^ bits >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let bits = (bits ^ bits >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    bits ^ bits >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(mask: &Mask, elements: std::ops::Range<u64>) -> Vec<bool> {
        elements.map(|element| mask.from(element).0.keeps(0)).collect()
    }

    /// Of a seed it must be the same choice forever.
    #[test]
    fn the_choice_is_the_documented_one() {
        let mask = Mask::new(42, "model.norm.weight", 1, 0.5);
        let bits = kept(&mask, 0..32).iter().rev().fold(0_u32, |bits, &kept| bits << 1 | u32::from(kept));
        let upper = kept(&mask, 1 << 32..(1 << 32) + 32);
        let upper = upper.iter().rev().fold(0_u32, |bits, &kept| bits << 1 | u32::from(kept));
        assert_eq!((bits, upper), (GOLDEN[0], GOLDEN[1]));
    }

    /// Computed by a program in Python.
    const GOLDEN: [u32; 2] = [0xE18980A4, 0x35C0CA93];

    #[test]
    fn elements_are_numbered_across_the_halves_of_the_index() {
        let mask = Mask::new(7, "w", 0, 0.3);
        let start = (1_u64 << 32) - 5;
        let (choice, count) = mask.from(start);
        assert_eq!(count, 5);
        let together: Vec<_> = (0..5).map(|element| choice.keeps(element)).collect();
        assert_eq!(together, kept(&mask, start..start + 5));
        assert_eq!(mask.from(1 << 32).1, 1 << 32);
    }

    #[test]
    fn as_many_are_kept_as_the_density_says_independently() {
        const COUNT: u64 = 1 << 20;
        let share = |kept: &[bool]| kept.iter().filter(|kept| **kept).count() as f64 / COUNT as f64;
        let of = |seed, name, model, density| kept(&Mask::new(seed, name, model, density), 0..COUNT);
        for density in [0.01, 0.25, 0.5, 0.9] {
            // Five standard deviations.
            let most = 5.0 * (density * (1.0 - density) / COUNT as f64).sqrt();
            let first = of(1, "a", 0, density);
            assert!((share(&first) - density).abs() < most, "{density}");
            for other in [of(2, "a", 0, density), of(1, "b", 0, density), of(1, "a", 1, density)] {
                let both: Vec<_> = first.iter().zip(&other).map(|(a, b)| *a && *b).collect();
                assert!((share(&both) - density * density).abs() < most, "{density}");
            }
            // Neighbours, too.
            let pairs: Vec<_> = first.windows(2).map(|pair| pair[0] && pair[1]).collect();
            assert!((share(&pairs) - density * density).abs() < most, "{density}");
        }
        assert!(of(1, "a", 0, 1.0).iter().all(|kept| *kept));
    }
}
