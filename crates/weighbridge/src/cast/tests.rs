use super::*;
use crate::newer_std::{as_chunks, signed};

const POLICIES: [Overflow; 3] = [Overflow::Infinity, Overflow::Saturate, Overflow::Error];

fn castable() -> impl Iterator<Item = Dtype> {
    Dtype::all().filter(|&dtype| Kernel::of(dtype, Dtype::F32, Overflow::Infinity).is_some())
}

/// Dtypes that something can be cast to.
fn targets() -> impl Iterator<Item = Dtype> {
    Dtype::all().filter(|&dtype| Kernel::of(Dtype::F32, dtype, Overflow::Infinity).is_some())
}

/// The bytes of an element, where it has whole ones.
fn size(dtype: Dtype) -> usize {
    bytes(dtype, 1)
}

/// The elements of a cast, natively; `None` if a value was refused.
fn run(kernel: &Kernel, stored: &[u8]) -> Option<Vec<u8>> {
    let elements = stored.len() * 8 / kernel.from.bits() as usize;
    let mut made = vec![MaybeUninit::uninit(); elements * size(kernel.to)];
    Some(kernel.run(stored, &mut made).ok()?.to_vec())
}

fn cast<const S: usize, const D: usize>(
    (from, to): (Dtype, Dtype),
    overflow: Overflow,
    values: &[[u8; S]],
) -> Option<Vec<[u8; D]>> {
    let kernel = Kernel::of(from, to, overflow).unwrap();
    Some(as_chunks(&run(&kernel, values.as_flattened())?).0.to_vec())
}

/// One `F32` in another dtype, as the bits that it gets.
fn single(to: Dtype, overflow: Overflow, value: f32) -> Option<u64> {
    let kernel = Kernel::of(Dtype::F32, to, overflow).unwrap();
    let made = run(&kernel, &value.to_le_bytes())?;
    Some(match *made {
        [byte] => u64::from(byte),
        [a, b] => u64::from(bytemuck::cast::<_, u16>([a, b])),
        [a, b, c, d] => u64::from(bytemuck::cast::<_, u32>([a, b, c, d])),
        _ => bytemuck::pod_read_unaligned(&made),
    })
}

/// A small float by its definition: exponent bits, mantissa bits, bias, and which codes are not numbers.
struct Definition {
    dtype: Dtype,
    mantissa: u32,
    bias: i32,
    bits: u32,
    largest: u64,
    infinity: Option<u64>,
    negative_zero: bool,
}

const DEFINITIONS: [Definition; 6] = [
    definition(Dtype::F16, 10, 15, 16, 0x7BFF, Some(0x7C00), true),
    definition(Dtype::BF16, 7, 127, 16, 0x7F7F, Some(0x7F80), true),
    definition(Dtype::F8_E5M2, 2, 15, 8, 0x7B, Some(0x7C), true),
    definition(Dtype::F8_E4M3, 3, 7, 8, 0x7E, None, true),
    definition(Dtype::F8_E5M2FNUZ, 2, 16, 8, 0x7F, None, false),
    definition(Dtype::F8_E4M3FNUZ, 3, 8, 8, 0x7F, None, false),
];

const fn definition(
    dtype: Dtype,
    mantissa: u32,
    bias: i32,
    bits: u32,
    largest: u64,
    infinity: Option<u64>,
    negative_zero: bool,
) -> Definition {
    Definition { dtype, mantissa, bias, bits, largest, infinity, negative_zero }
}

impl Definition {
    /// What a code without a sign stands for, or would if it were a number.
    fn value(&self, code: u64) -> f64 {
        let (exponent, mantissa) = (code >> self.mantissa, code % (1 << self.mantissa));
        let (exponent, one) = if exponent == 0 { (1, 0) } else { (exponent, 1 << self.mantissa) };
        let power = (exponent as i32) - self.bias - signed(self.mantissa);
        (one + mantissa) as f64 * 2.0_f64.powi(power)
    }

    /// All values from zero on, and the one behind the largest.
    fn values(&self) -> Vec<f64> {
        (0..=self.largest + 1).map(|code| self.value(code)).collect()
    }

    /// The nearest code, by comparing with all `values`; `None` is refused.
    fn nearest(&self, values: &[f64], value: f64, overflow: Overflow) -> Option<u64> {
        let magnitude = value.abs();
        let above = values.partition_point(|v| *v < magnitude);
        let code = match above {
            0 => 0,
            _ if above == values.len() => above as u64 - 1,
            _ => {
                let (down, up) = (magnitude - values[above - 1], values[above] - magnitude);
                let odd = (above - 1) % 2 == 1;
                above as u64 - u64::from(down < up || (down == up && !odd))
            }
        };
        let code = match (overflow, self.infinity) {
            _ if code <= self.largest => code,
            (_, Some(infinity)) if value.is_infinite() => infinity,
            (Overflow::Error, _) => return None,
            (Overflow::Infinity, Some(infinity)) => infinity,
            _ => self.largest,
        };
        let sign = value.is_sign_negative() && (code > 0 || self.negative_zero);
        Some(code | u64::from(sign) << (self.bits - 1))
    }
}

/// The next value, of one that is not negative.
fn above(value: f32) -> f32 {
    f32::from_bits(value.to_bits() + 1)
}

/// The value before one that is not negative, and zero before zero.
fn below(value: f32) -> f32 {
    f32::from_bits(value.to_bits().saturating_sub(1))
}

#[test]
fn small_floats_are_the_nearest_of_all_values() {
    for definition in DEFINITIONS {
        let values = definition.values();
        let halves = (0..=u16::MAX).map(half::f16::from_bits).map(half::f16::to_f32_const);
        let brains = (0..=u16::MAX).map(|bits| f32::from_bits(u32::from(bits) << 16));
        // Every value and every middle between two, and what is next to them.
        let middles = values.windows(2).flat_map(|pair| [pair[0], (pair[0] + pair[1]) / 2.0]);
        let around = middles.map(|v| v as f32).flat_map(|v| [v, above(v), below(v)]);
        let samples: Vec<f32> =
            halves.chain(brains).chain(around.flat_map(|v| [v, -v])).filter(|v| !v.is_nan()).collect();
        for overflow in POLICIES {
            let expected: Vec<_> =
                samples.iter().map(|v| definition.nearest(&values, f64::from(*v), overflow)).collect();
            let kernel = Kernel::of(Dtype::F32, definition.dtype, overflow).unwrap();
            let (taken, codes): (Vec<_>, Vec<_>) = samples
                .iter()
                .zip(&expected)
                .filter_map(|(v, code)| Some((v.to_le_bytes(), (*code)?)))
                .unzip();
            let made = run(&kernel, taken.as_flattened()).unwrap();
            for (place, made) in made.chunks_exact(size(definition.dtype)).enumerate() {
                let made = match *made {
                    [a] => u64::from(a),
                    _ => u64::from(bytemuck::pod_read_unaligned::<u16>(made)),
                };
                let value = f32::from_le_bytes(taken[place]);
                assert_eq!(made, codes[place], "{value:e} as {}, {overflow:?}", definition.dtype);
            }
            for (value, _) in samples.iter().zip(&expected).filter(|(_, code)| code.is_none()).step_by(97) {
                assert_eq!(single(definition.dtype, overflow, *value), None, "{value:e}");
            }
        }
    }
}

#[test]
fn small_floats_widen_to_the_values_of_their_definitions() {
    for definition in DEFINITIONS {
        let (sign, size) = (1_u64 << (definition.bits - 1), size(definition.dtype));
        for code in 0..2 * sign {
            let kernel = Kernel::of(definition.dtype, Dtype::F32, Overflow::Infinity).unwrap();
            let made = run(&kernel, &code.to_le_bytes()[..size]).unwrap();
            let (made, magnitude) = (bytemuck::pod_read_unaligned::<f32>(&made), code % sign);
            let positive = match magnitude {
                0 if code > 0 && !definition.negative_zero => f64::NAN,
                _ if magnitude <= definition.largest => definition.value(magnitude),
                _ if Some(magnitude) == definition.infinity => f64::INFINITY,
                _ => f64::NAN,
            };
            let expected = if code >= sign { -positive } else { positive };
            let same = f64::from(made).to_bits() == expected.to_bits();
            assert!(same || (made.is_nan() && expected.is_nan()), "{code:#x} of {}", definition.dtype);
        }
    }
}

#[test]
fn not_a_number_stays_so() {
    for to in targets() {
        for overflow in POLICIES {
            for value in [f32::NAN, -f32::NAN, f32::from_bits(0x7F80_0001), f32::from_bits(0xFFFF_FFFF)] {
                let made = cast::<4, 1>((Dtype::F32, to), overflow, &[value.to_le_bytes()]);
                assert_eq!(made.is_some(), to.is_float(), "{to}, {overflow:?}");
                let Some(made) = made.filter(|_| to.is_float()) else { continue };
                // And back; what was made is in the order of the machine.
                let mut made = made.as_flattened().to_vec();
                if cfg!(target_endian = "big") {
                    made.reverse();
                }
                let back = Kernel::of(to, Dtype::F64, Overflow::Infinity).unwrap();
                let back: f64 = bytemuck::pod_read_unaligned(&run(&back, &made).unwrap());
                assert!(back.is_nan(), "{value} as {to}, {overflow:?}");
            }
        }
    }
}

#[test]
fn powers_of_two_take_the_nearest() {
    let made = |value| single(Dtype::F8_E8M0, Overflow::Infinity, value);
    let least = f32::from_bits(1 << 22);
    for (value, code) in [
        (1.0, 127),
        (1.499, 127),
        (1.5, 128),
        (3.0, 129),
        (2.0_f32.powi(127), 254),
        (2.0_f32.powi(127) * 1.499, 254),
        (f32::MAX, 254),
        (f32::INFINITY, 254),
        (f32::NAN, 255),
        (-f32::NAN, 255),
        (least, 0),
        (f32::from_bits(1), 0),
        (above(least), 0),
        (below(least * 1.5), 0),
        (least * 1.5, 1),
        (least * 2.0, 1),
    ] {
        assert_eq!(made(value), Some(code), "{value:e}");
    }
    for overflow in POLICIES {
        for value in [0.0, -0.0, -1.0, f32::NEG_INFINITY, -f32::MIN_POSITIVE] {
            assert_eq!(single(Dtype::F8_E8M0, overflow, value), None, "{value}");
        }
    }
    let strict = |value| single(Dtype::F8_E8M0, Overflow::Error, value);
    assert_eq!(strict(2.0_f32.powi(127) * 1.499), Some(254));
    assert_eq!(strict(2.0_f32.powi(127) * 1.5), None);
    assert_eq!(strict(f32::INFINITY), None);
    let all: Vec<_> = (0..=255).map(|code: u8| [code]).collect();
    let values = cast::<1, 4>((Dtype::F8_E8M0, Dtype::F32), Overflow::Infinity, &all).unwrap();
    for (value, code) in values.into_iter().map(bytemuck::cast::<_, f32>).take(255).zip(0_u8..) {
        assert_eq!(f64::from(value), 2.0_f64.powi(i32::from(code) - 127));
        assert_eq!(made(value), Some(u64::from(code)));
    }
}

#[test]
fn wide_floats_have_their_limits_too() {
    let to_single = |value: f64, overflow| {
        let made = cast::<8, 4>((Dtype::F64, Dtype::F32), overflow, &[value.to_le_bytes()])?;
        Some(bytemuck::cast::<_, f32>(made[0]))
    };
    // Half a step beyond the largest.
    let beyond = f64::from(f32::MAX) + 2.0_f64.powi(103);
    for (value, expected) in [
        (f64::from_bits(beyond.to_bits() - 1), [Some(f32::MAX); 3]),
        (beyond, [Some(f32::INFINITY), Some(f32::MAX), None]),
        (-beyond, [Some(f32::NEG_INFINITY), Some(f32::MIN), None]),
        (f64::INFINITY, [Some(f32::INFINITY); 3]),
        (f64::NEG_INFINITY, [Some(f32::NEG_INFINITY); 3]),
    ] {
        for (overflow, expected) in POLICIES.into_iter().zip(expected) {
            assert_eq!(to_single(value, overflow), expected, "{value:e}, {overflow:?}");
        }
    }
}

/// Every pair of a float that has infinities and any other float.
#[test]
fn saturating_leaves_infinities_where_they_have_a_place() {
    let infinities = [
        (Dtype::F8_E5M2, vec![0x7C]),
        (Dtype::F16, vec![0, 0x7C]),
        (Dtype::BF16, vec![0x80, 0x7F]),
        (Dtype::F32, f32::INFINITY.to_le_bytes().to_vec()),
        (Dtype::F64, f64::INFINITY.to_le_bytes().to_vec()),
    ];
    let negative = |infinity: &[u8]| {
        let (last, rest) = infinity.split_last().unwrap();
        [rest, &[last | 0x80]].concat()
    };
    // Elements as the machine has them, made into those of a file.
    let stored = |mut made: Vec<u8>| {
        if cfg!(target_endian = "big") {
            made.reverse();
        }
        made
    };
    for (from, infinity) in &infinities {
        for to in targets().filter(|to| to.is_float()) {
            for overflow in POLICIES {
                let Some(kernel) = Kernel::of(*from, to, overflow) else { continue };
                let kept = infinities.iter().find(|(dtype, _)| *dtype == to).map(|(_, infinity)| infinity);
                match (kept, to) {
                    (Some(kept), _) => {
                        assert_eq!(run(&kernel, infinity).map(stored).as_ref(), Some(kept), "{from} to {to}");
                        let made = run(&kernel, &negative(infinity)).map(stored);
                        assert_eq!(made, Some(negative(kept)), "{from} to {to}, {overflow:?}");
                    }
                    (None, _) if overflow == Overflow::Error => assert_eq!(run(&kernel, infinity), None),
                    (None, Dtype::F8_E8M0) => assert_eq!(run(&kernel, infinity), Some(vec![254])),
                    (None, _) => {
                        let largest = if to == Dtype::F8_E4M3 { 0x7E } else { 0x7F };
                        assert_eq!(run(&kernel, infinity), Some(vec![largest]), "{from} to {to}");
                        assert_eq!(run(&kernel, &negative(infinity)), Some(vec![largest | 0x80]));
                    }
                }
            }
        }
    }
}

#[test]
fn integers_must_fit_or_are_clamped() {
    for overflow in [Overflow::Infinity, Overflow::Error] {
        let cast_u64 = |v: u64| cast::<8, 8>((Dtype::U64, Dtype::I64), overflow, &[v.to_le_bytes()]);
        assert_eq!(cast_u64(i64::MAX as u64), Some(vec![bytemuck::cast(i64::MAX)]));
        assert_eq!(cast_u64(1 << 63), None);
        let to_u8 = |v: f32| cast::<4, 1>((Dtype::F32, Dtype::U8), overflow, &[v.to_le_bytes()]);
        assert_eq!(to_u8(255.9), Some(vec![[255]]));
        assert_eq!(to_u8(-0.9), Some(vec![[0]]));
        for value in [256.0, -1.0, f32::NAN, f32::INFINITY] {
            assert_eq!(to_u8(value), None, "{value}");
        }
        let to_i64 = |v: f64| cast::<8, 8>((Dtype::F64, Dtype::I64), overflow, &[v.to_le_bytes()]);
        assert_eq!(to_i64(-(2.0_f64.powi(63))), Some(vec![bytemuck::cast(i64::MIN)]));
        assert_eq!(to_i64(2.0_f64.powi(63)), None);
    }
    let clamped =
        |v: f32| single(Dtype::I8, Overflow::Saturate, v).map(|bits| i8::from_le_bytes([bits as u8]));
    for (value, expected) in [(128.0, 127), (f32::INFINITY, 127), (-129.0, -128), (-1e30, -128), (-1.9, -1)] {
        assert_eq!(clamped(value), Some(expected));
    }
    assert_eq!(clamped(f32::NAN), None);
    let minus = [(-1_i64).to_le_bytes()];
    assert_eq!(cast((Dtype::I64, Dtype::U16), Overflow::Saturate, &minus), Some(vec![[0, 0]]));
    assert_eq!(cast((Dtype::I64, Dtype::U64), Overflow::Saturate, &minus), Some(vec![[0; 8]]));
    let large = [u64::MAX.to_le_bytes()];
    assert_eq!(
        cast((Dtype::U64, Dtype::I32), Overflow::Saturate, &large),
        Some(vec![bytemuck::cast::<_, [u8; 4]>(i32::MAX)])
    );
}

#[test]
fn large_integers_are_rounded_once() {
    // One above a tie of bf16, in a bit that f64 cannot hold beside the first.
    let above = (1_u64 << 63) + (1 << 55) + 1;
    let to_bf16 = (Dtype::U64, Dtype::BF16);
    let made = cast::<8, 2>(to_bf16, Overflow::Error, &[above.to_le_bytes(), (above - 1).to_le_bytes()]);
    let made: Vec<u16> = made.unwrap().into_iter().map(bytemuck::cast).collect();
    assert_eq!(made, [0x5F01, 0x5F00]);
    let to_f16 = (Dtype::I64, Dtype::F16);
    let made = cast::<8, 2>(to_f16, Overflow::Infinity, &[(-65_520_i64).to_le_bytes()]).unwrap();
    assert_eq!(bytemuck::cast::<_, u16>(made[0]), 0xFC00);
    assert_eq!(cast::<8, 2>(to_f16, Overflow::Error, &[65_520_i64.to_le_bytes()]), None);
}

#[test]
fn doubles_are_rounded_once() {
    let tie = 1.0 + 2.0_f64.powi(-8);
    let values = [tie, tie + 2.0_f64.powi(-50), -tie - 2.0_f64.powi(-50), 1e300, 1e-300, -1e-300];
    let values = values.map(f64::to_le_bytes);
    let made = cast::<8, 2>((Dtype::F64, Dtype::BF16), Overflow::Infinity, &values).unwrap();
    let made: Vec<u16> = made.into_iter().map(bytemuck::cast).collect();
    assert_eq!(made, [0x3F80, 0x3F81, 0xBF81, 0x7F80, 0, 0x8000]);
    assert_eq!(cast::<8, 2>((Dtype::F64, Dtype::BF16), Overflow::Error, &values), None);
    let infinite = [f64::INFINITY.to_le_bytes()];
    assert!(cast::<8, 2>((Dtype::F64, Dtype::BF16), Overflow::Error, &infinite).is_some());
}

#[test]
fn what_has_no_real_values_has_no_cast() {
    for none in [Dtype::F6_E2M3, Dtype::F6_E3M2, Dtype::C64] {
        for other in Dtype::all() {
            assert!(Kernel::of(none, other, Overflow::Infinity).is_none());
            assert!(Kernel::of(other, none, Overflow::Infinity).is_none());
        }
    }
    // Nothing is packed.
    assert!(Dtype::all().all(|from| Kernel::of(from, Dtype::F4, Overflow::Infinity).is_none()));
}

#[test]
fn the_first_refused_value_is_named() {
    let blame = |to, overflow, values: &[f32]| {
        let values: Vec<_> = values.iter().map(|v| v.to_le_bytes()).collect();
        let kernel = Kernel::of(Dtype::F32, to, overflow).unwrap();
        let mut made = vec![MaybeUninit::uninit(); values.len() * size(to)];
        let refused = kernel.run(values.as_flattened(), &mut made).unwrap_err();
        (refused.value, refused.remedies)
    };
    let mut values = vec![1.0; 3000];
    (values[2000], values[2500]) = (-65_520.0, 1e9);
    let both = vec![Overflow::Saturate, Overflow::Infinity];
    assert_eq!(blame(Dtype::F16, Overflow::Error, &values), ("-65520".to_owned(), both));
    assert_eq!(blame(Dtype::U8, Overflow::Error, &values).1, [Overflow::Saturate]);
    assert_eq!(blame(Dtype::U8, Overflow::Saturate, &[f32::NAN]), ("NaN".to_owned(), Vec::new()));
}

/// Whatever the target, a value of 4 bits becomes what the same value of 32 bits does.
#[test]
fn both_values_of_a_byte_are_cast_the_first_from_the_low_bits() {
    // By the definition: bit 3 is the sign, two bits of exponent with a bias of 1, one of mantissa.
    let value = |code: u8| {
        let (exponent, mantissa) = (i32::from(code >> 1 & 3), f32::from(code & 1));
        let magnitude = match exponent {
            0 => mantissa / 2.0,
            _ => (1.0 + mantissa / 2.0) * 2.0_f32.powi(exponent - 1),
        };
        if code & 8 == 0 { magnitude } else { -magnitude }
    };
    // As few as a byte, and so many that they are looked up.
    for copies in [1, 40] {
        for to in targets() {
            for overflow in POLICIES {
                let packed = Kernel::of(Dtype::F4, to, overflow).unwrap();
                let single = Kernel::of(Dtype::F32, to, overflow).unwrap();
                let (mut stored, mut values) = (Vec::new(), Vec::new());
                for byte in 0..=u8::MAX {
                    let two = [byte & 0xF, byte >> 4].map(|code| value(code).to_le_bytes());
                    match run(&single, two.as_flattened()) {
                        Some(_) => {
                            stored.push(byte);
                            values.extend(two);
                        }
                        None => assert_eq!(run(&packed, &[byte]), None, "{byte:#x} to {to}"),
                    }
                }
                let (stored, values) = (stored.repeat(copies), values.repeat(copies));
                assert!(run(&packed, &stored) == run(&single, values.as_flattened()), "{to}, {overflow:?}");
            }
        }
    }
    let blame = |to, stored: &[u8]| {
        let mut made = vec![MaybeUninit::uninit(); 2 * stored.len()];
        let refused = Kernel::of(Dtype::F4, to, Overflow::Error).unwrap().run(stored, &mut made).unwrap_err();
        (refused.value, refused.remedies)
    };
    assert_eq!(blame(Dtype::U8, &[0x22, 0xE2, 0x2A]), ("-4".to_owned(), vec![Overflow::Saturate]));
    assert_eq!(blame(Dtype::U8, &[0xAB]), ("-1.5".to_owned(), vec![Overflow::Saturate]));
    assert_eq!(blame(Dtype::F8_E8M0, &[0x21, 0x02]), ("0".to_owned(), Vec::new()));
}

/// Elements as the file has them: all of 8 and of 16 bits, and of the larger ones those of every class and at
/// random.
fn patterns(dtype: Dtype) -> Vec<u8> {
    let mut random = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    match (dtype, bytes(dtype, group(dtype))) {
        (_, 1) => (0..1 << 13).map(|code: u32| code as u8).collect(),
        (_, 2) => (0..=u16::MAX).flat_map(u16::to_le_bytes).collect(),
        (_, 4) => {
            // The steps of `F16`, `BF16` and the floats of 8 bits end at these bits of a mantissa.
            let floats = classes(23, 0..256, &[13, 16, 20, 21, 23]).chain(whole(32));
            let random = (0..1 << 12).map(|_| next());
            floats.chain(random).flat_map(|bits| (bits as u32).to_le_bytes()).collect()
        }
        _ => {
            // Those that an `F32` reaches to, and the ends.
            let exponents = (0..2).chain(1023 - 151..1023 + 129).chain(2045..2048);
            let floats = classes(52, exponents, &[29, 42, 45, 49, 50, 52]).chain(whole(64));
            let random = (0..1 << 12).map(|_| next());
            floats.chain(random).flat_map(u64::to_le_bytes).collect()
        }
    }
}

/// Floats of either sign with these exponents, whose mantissas are the ends, and around the middle between two
/// multiples of `1 << step`, of which the first is even or odd.
fn classes(mantissa: u32, exponents: impl Iterator<Item = u64>, steps: &[u32]) -> impl Iterator<Item = u64> {
    let (one, sign) = (1_u64 << mantissa, if mantissa == 23 { 1 << 31 } else { 1 << 63 });
    let middles = steps.iter().flat_map(|step| [1 << (step - 1), 3 << (step - 1)]);
    let around = middles.flat_map(|middle: u64| [middle - 1, middle, middle + 1]);
    let mantissas: Vec<u64> = [0, 1, one - 1].into_iter().chain(around.filter(|bits| *bits < one)).collect();
    exponents.flat_map(move |exponent| {
        let positive = mantissas.clone().into_iter().map(move |mantissa| exponent << one.ilog2() | mantissa);
        positive.flat_map(move |bits| [bits, bits | sign])
    })
}

/// Integers of so many bits: sums of two powers of two, which are the ties of a rounding, what is next to them, and
/// their negatives.
fn whole(bits: u32) -> impl Iterator<Item = u64> {
    let mask = u64::MAX >> (64 - bits);
    let sums = (0..bits).flat_map(|high| (0..=high).map(move |low| (1_u64 << high).wrapping_add(1 << low)));
    let around = sums.flat_map(|sum| [sum.wrapping_sub(1), sum, sum.wrapping_add(1)]);
    around.flat_map(move |sum| [sum & mask, sum.wrapping_neg() & mask])
}

#[test]
fn both_twins_do_the_same() {
    for from in castable() {
        let stored = patterns(from);
        for (to, overflow) in castable().flat_map(|to| POLICIES.map(|overflow| (to, overflow))) {
            let Some(wide) = Kernel::of(from, to, overflow) else { continue };
            let how = How { overflow, instructions: Instructions::BASELINE };
            let plain = Kernel { how, ..wide };
            // One by one, so that nothing is refused for its neighbours.
            let (mut taken, mut expected, mut refused) = (Vec::new(), Vec::new(), Vec::new());
            let [unit, made] = [from, to].map(|dtype| bytes(dtype, group(from)));
            for element in stored.chunks_exact(unit) {
                let mut room = [MaybeUninit::uninit(); MOST_BYTES];
                match plain.steps(element, &mut room[..made]) {
                    Some(made) => {
                        taken.extend_from_slice(element);
                        expected.extend_from_slice(made);
                    }
                    None => refused.push(element),
                }
            }
            assert!(run(&wide, &taken).unwrap() == expected, "{from} to {to}, {overflow:?}");
            assert!(run(&plain, &taken).unwrap() == expected, "{from} to {to}, {overflow:?}");
            for element in refused.iter().step_by(refused.len() / 3 + 1) {
                let place = taken.len() / unit / 2 * unit;
                let one_bad = [&taken[..place], element, &taken[place..]].concat();
                assert_eq!(run(&wide, &one_bad), None, "{from} to {to}, {overflow:?}");
            }
        }
    }
}

#[test]
fn elements_are_turned_one_by_one() {
    let swapped = |dtype| {
        let mut bytes = [1, 2, 3, 4, 5, 6, 7, 8];
        swap_bytes(dtype, &mut bytes);
        bytes
    };
    for dtype in [Dtype::F4, Dtype::F6_E2M3, Dtype::Bool, Dtype::U8, Dtype::F8_E4M3] {
        assert_eq!(swapped(dtype), [1, 2, 3, 4, 5, 6, 7, 8], "{dtype}");
    }
    assert_eq!(swapped(Dtype::BF16), [2, 1, 4, 3, 6, 5, 8, 7]);
    assert_eq!(swapped(Dtype::F32), [4, 3, 2, 1, 8, 7, 6, 5]);
    assert_eq!(swapped(Dtype::C64), [4, 3, 2, 1, 8, 7, 6, 5], "real and imaginary part");
    assert_eq!(swapped(Dtype::I64), [8, 7, 6, 5, 4, 3, 2, 1]);
}
