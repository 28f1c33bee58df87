//! The figures against the same computed value by value.

use half::{bf16, f16};
use proptest::prelude::*;
use weighbridge::write::{Save, TensorData, Values};
use weighbridge::{Checkpoint, Dtype};
use weighbridge_page::BINS;

use super::*;
use crate::global::Global;
use crate::term::Term;

fn bar() -> Bar {
    let color = colorchoice_clap::Color::default();
    Term::new(&Global { color, quiet: true, verbose: false, no_progress: true }).bar("reading", 0)
}

fn figures(tensor: impl TensorData) -> Figures {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("m.safetensors");
    Save::new().file(&path, [("t", tensor)]).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    of(&checkpoint.tensors().collect::<Vec<_>>(), &bar()).unwrap().remove(0).unwrap()
}

fn real(number: Option<Number>) -> Option<f64> {
    number.map(|number| match number {
        Number::Real(value) => value,
        Number::Signed(value) => value as f64,
        Number::Unsigned(value) => value as f64,
    })
}

/// Value by value; the histogram is right where all values have at most 8 significant bits.
fn check(figures: &Figures, values: &[f64]) {
    let finite: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
    let count = |wanted: fn(&f64) -> bool| values.iter().filter(|value| wanted(value)).count() as u64;
    assert_eq!(figures.values, values.len() as u64);
    assert_eq!(figures.zeros, count(|value| *value == 0.0));
    assert_eq!(figures.nans, count(|value| value.is_nan()));
    assert_eq!(figures.infinities, count(|value| *value == f64::INFINITY));
    assert_eq!(figures.negative_infinities, count(|value| *value == f64::NEG_INFINITY));
    assert_eq!(real(figures.min), finite.iter().copied().reduce(f64::min));
    assert_eq!(real(figures.max), finite.iter().copied().reduce(f64::max));
    let Some((mean, std)) = figures.mean.zip(figures.std) else {
        assert!(finite.is_empty());
        return;
    };
    let exact = finite.iter().sum::<f64>() / finite.len() as f64;
    let squares: f64 = finite.iter().map(|value| (value - exact) * (value - exact)).sum();
    let (size, spread) = (finite.iter().fold(0.0_f64, |most, value| most.max(value.abs())), squares);
    assert!((mean - exact).abs() <= 1e-12 * size, "{mean} {exact}");
    assert!((std - (spread / finite.len() as f64).sqrt()).abs() <= 1e-7 * size, "{std}");
    let histogram = figures.histogram.as_ref().unwrap();
    let (low, high) = (histogram.low, histogram.high);
    let mut counts = vec![0; BINS];
    for value in &finite {
        counts[((value - low) / (high - low) * BINS as f64).clamp(0.0, BINS as f64 - 1.0) as usize] += 1;
    }
    assert_eq!(histogram.counts, counts);
}

proptest! {
    #[test]
    fn of_half_precision(codes in prop::collection::vec(any::<u16>(), 1..9000)) {
        let values: Vec<f16> = codes.iter().map(|&code| f16::from_bits(code)).collect();
        let wide: Vec<f64> = values.iter().map(|value| value.to_f64()).collect();
        check(&figures(Values::new(&[values.len()], &values).unwrap()), &wide);
        let values: Vec<bf16> = codes.iter().map(|&code| bf16::from_bits(code & 0xCFFF)).collect();
        let wide: Vec<f64> = values.iter().map(|value| value.to_f64()).collect();
        check(&figures(Values::new(&[values.len()], &values).unwrap()), &wide);
    }

    #[test]
    fn of_wide_values(bits in prop::collection::vec(any::<u16>(), 1..3000)) {
        let values: Vec<f32> = bits.iter().map(|&bits| f32::from_bits(u32::from(bits & 0xCFFF) << 16)).collect();
        let wide: Vec<f64> = values.iter().map(|&value| value.into()).collect();
        check(&figures(Values::new(&[values.len()], &values).unwrap()), &wide);
        let integers: Vec<i64> = bits.iter().map(|&bits| i64::from(bits as u8) - 77).collect();
        let wide: Vec<f64> = integers.iter().map(|&value| value as f64).collect();
        check(&figures(Values::new(&[integers.len()], &integers).unwrap()), &wide);
    }

    #[test]
    fn of_bytes(values in prop::collection::vec(any::<i8>(), 1..3000)) {
        let wide: Vec<f64> = values.iter().map(|&value| value.into()).collect();
        check(&figures(Values::new(&[values.len()], &values).unwrap()), &wide);
    }
}

#[test]
fn integers_of_64_bits_are_exact() {
    let values = [u64::MAX, u64::MAX - 1, 1 << 60];
    let found = figures(Values::new(&[3], &values).unwrap());
    assert_eq!(found.max, Some(Number::Unsigned(u64::MAX)));
    assert_eq!(found.min, Some(Number::Signed(1 << 60)));
}

#[test]
fn spread_survives_a_large_mean() {
    let values: Vec<f32> = (0..100_000).map(|i| 1e6 + (i % 2) as f32).collect();
    let found = figures(Values::new(&[values.len()], &values).unwrap());
    assert_eq!((found.mean, found.std), (Some(1e6 + 0.5), Some(0.5)));
}

#[test]
fn nibbles_are_two_a_byte() {
    struct F4;
    impl TensorData for F4 {
        fn dtype(&self) -> Dtype {
            Dtype::F4
        }

        fn shape(&self) -> &[usize] {
            &[4]
        }

        fn write_to(&self, out: &mut dyn std::io::Write) -> std::io::Result<()> {
            out.write_all(&[0x2F, 0x07])
        }
    }
    let found = figures(F4);
    assert_eq!((found.values, found.zeros, found.mean), (4, 1, Some(0.25)));
    assert_eq!((found.min, found.max), (Some(Number::Real(-6.0)), Some(Number::Real(6.0))));
}
