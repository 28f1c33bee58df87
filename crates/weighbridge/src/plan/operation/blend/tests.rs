//! Every method against formulas written down once more, element by element.

use std::ops::Range;
use std::sync::Arc;

use half::bf16;

use super::mask::Mask;
use super::measure::{Passes, along_the_arc};
use super::tiles::BlendTiles;
use super::*;
use crate::cast::Instructions;
use crate::plan::{Tiles, cast_into};
use crate::write::{Save, Values};
use crate::{Checkpoint, Entry, Plan};

const NAME: &str = "w";

/// Numbers of both signs and different sizes, the same for a seed.
fn values(seed: u32, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(99);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next() * next()).collect()
}

/// A tensor in each dtype that models are stored in, in turn.
fn checkpoint(number: usize, values: &[f32]) -> Checkpoint {
    let shape = [values.len()];
    let stored = match number % 3 {
        0 => Save::new().bytes([(NAME, Values::new(&shape, values).unwrap())]),
        1 => {
            let values: Vec<_> = values.iter().map(|&value| bf16::from_f32(value)).collect();
            Save::new().bytes([(NAME, Values::new(&shape, &values).unwrap())])
        }
        _ => {
            let values: Vec<_> = values.iter().map(|&value| half::f16::from_f32(value)).collect();
            Save::new().bytes([(NAME, Values::new(&shape, &values).unwrap())])
        }
    };
    Checkpoint::from_bytes(stored.unwrap()).unwrap()
}

fn input(checkpoint: &Checkpoint) -> Input {
    Input::of(&checkpoint.tensor(NAME).unwrap())
}

fn single(checkpoint: &Checkpoint) -> Vec<f32> {
    let session =
        Plan::of(checkpoint).dtype(|_| Some(Dtype::F32)).build().unwrap().session().start().unwrap();
    floats(session.take(NAME, None).unwrap().1.as_bytes())
}

/// What a session gives is native.
fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(bytemuck::pod_read_unaligned).collect()
}

fn made(blend: &Blend, models: &[Checkpoint], dtype: Dtype) -> Result<Vec<u8>> {
    let inputs = models.iter().map(input).collect();
    let entry = Entry::new(NAME, inputs, Arc::new(blend.clone()))?.recast(dtype)?;
    Ok(Plan::new([entry]).session().start()?.take(NAME, None)?.1.as_bytes().to_vec())
}

/// The blend of each element by itself, of values that are `F32` already.
fn naive(blend: &Blend, inputs: &[Vec<f32>]) -> Vec<f32> {
    let count = inputs[0].len();
    let weights: Vec<f32> = blend.weights.iter().map(|&weight| weight as f32).collect();
    if blend.method == BlendMethod::Linear {
        let blended = |element: usize| {
            let sum =
                inputs.iter().zip(&weights).fold(0.0, |sum, (values, weight)| sum + values[element] * weight);
            if blend.normalize { sum / weights.iter().sum::<f32>() } else { sum }
        };
        return (0..count).map(blended).collect();
    }
    if blend.method == BlendMethod::Slerp {
        let [a, b] = inputs else { panic!("two") };
        let dot =
            |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
        let t = blend.weights[1] / (blend.weights[0] + blend.weights[1]);
        let cosine = dot(a, b) / dot(a, a).sqrt() / dot(b, b).sqrt();
        let angle = cosine.acos();
        let [first, second] = match cosine.abs() > 0.9995 {
            true => [1.0 - t, t],
            false => [((1.0 - t) * angle).sin() / angle.sin(), (t * angle).sin() / angle.sin()],
        };
        return a.iter().zip(b).map(|(a, b)| a * first as f32 + b * second as f32).collect();
    }
    let base = &inputs[0];
    let differences = inputs[1..].iter().enumerate().map(|(model, values)| {
        let differences: Vec<f32> = values.iter().zip(base).map(|(value, base)| value - base).collect();
        let density = blend.density(model);
        let mut sorted: Vec<f32> = differences.iter().map(|difference| difference.abs()).collect();
        sorted.sort_by(f32::total_cmp);
        let kept = ((density * count as f64) as usize).max(1);
        let least = sorted.iter().rev().nth(kept - 1).copied().unwrap_or(0.0);
        let mask = Mask::new(blend.seed, &blend.name, model, density);
        let weighted = differences.into_iter().enumerate().map(|(element, difference)| {
            let kept = match blend.method {
                BlendMethod::Ties if difference.abs() >= least => difference,
                BlendMethod::DareLinear | BlendMethod::DareTies if mask.from(element as u64).0.keeps(0) => {
                    difference * if blend.rescale { (1.0 / density) as f32 } else { 1.0 }
                }
                BlendMethod::TaskArithmetic => difference,
                _ => 0.0,
            };
            kept * weights[model]
        });
        weighted.collect::<Vec<f32>>()
    });
    let differences: Vec<_> = differences.collect();
    let blended = |element: usize| {
        let total = differences.iter().fold(0.0, |sum, values| sum + values[element]);
        let (mut sum, mut weight) = (total, weights.iter().sum::<f32>());
        if blend.method.elects() {
            let sign = if total >= 0.0 { 1.0 } else { -1.0 };
            (sum, weight) = (0.0, 0.0);
            for (values, own) in differences.iter().zip(&weights) {
                let value = values[element];
                if value != 0.0 && value.signum() == sign {
                    sum += value;
                    weight += own;
                }
            }
        }
        if blend.normalize && weight != 0.0 {
            sum /= weight;
        }
        base[element] + sum * blend.lambda as f32
    };
    (0..count).map(blended).collect()
}

fn blends() -> Vec<Blend> {
    let weights = [0.3, 1.0, -0.45];
    let mut all = vec![
        Blend::new(BlendMethod::Linear, [0.25, 0.75]),
        Blend::new(BlendMethod::Linear, [0.25, 0.75, 2.0]),
        Blend::new(BlendMethod::Linear, [1.5, 0.75]).normalize(false),
        Blend::new(BlendMethod::Slerp, [0.7, 0.3]),
        Blend::new(BlendMethod::Slerp, [1.0, 3.0]),
        Blend::new(BlendMethod::TaskArithmetic, weights),
        Blend::new(BlendMethod::TaskArithmetic, [0.5]).lambda(1.5),
        Blend::new(BlendMethod::TaskArithmetic, weights).normalize(true),
    ];
    for method in [BlendMethod::Ties, BlendMethod::DareLinear, BlendMethod::DareTies] {
        let blend = Blend::new(method, weights).seed(7, NAME);
        all.push(blend.clone().densities([0.5]));
        all.push(blend.clone().densities([0.1, 1.0, 0.73]).normalize(!method.normalizes()));
        all.push(blend.densities([0.5]).rescale(false).lambda(0.7));
    }
    all
}

fn models(blend: &Blend, count: usize) -> Vec<Checkpoint> {
    (0..blend.inputs()).map(|number| checkpoint(number, &values(number as u32, count))).collect()
}

fn close(ours: &[f32], expected: &[f32], what: &str) {
    assert_eq!(ours.len(), expected.len());
    for (element, (ours, expected)) in ours.iter().zip(expected).enumerate() {
        // The angle of slerp is added up in another order.
        let most = 4.0 * f32::EPSILON * expected.abs().max(1e-3);
        assert!((ours - expected).abs() <= most, "{what}: element {element}: {ours} is not {expected}");
    }
}

#[test]
fn every_method_is_its_formula() {
    for blend in blends() {
        for count in [0, 1, 5, 1023, 1025, 70_001] {
            let models = models(&blend, count);
            let inputs: Vec<_> = models.iter().map(single).collect();
            let expected = naive(&blend, &inputs);
            let what = format!("{blend:?}, {count}");
            let ours = floats(&made(&blend, &models, Dtype::F32).unwrap());
            match blend.method {
                BlendMethod::Slerp => close(&ours, &expected, &what),
                _ => assert!(ours == expected, "{what}"),
            }
            // Rounded once.
            let rounded: Vec<u16> = ours.iter().map(|&value| bf16::from_f32(value).to_bits()).collect();
            let narrow = made(&blend, &models, Dtype::BF16).unwrap();
            assert!(narrow == bytemuck::cast_slice::<u16, u8>(&rounded), "{what}");
        }
    }
}

fn tile(tiles: &dyn Tiles, models: &[Checkpoint], tile: Range<u64>) -> Vec<u8> {
    let mut pieces = Vec::new();
    tiles.gather(tile.clone(), &mut pieces);
    let mut gathered = Vec::new();
    for piece in pieces {
        let tensor = models[piece.input].tensor(NAME).unwrap();
        let mut bytes = vec![0; (piece.bytes.end - piece.bytes.start) as usize];
        let offset = tensor.info().file_range().start + piece.bytes.start;
        tensor.shard().source().read_at(offset, &mut bytes).unwrap();
        gathered.extend(bytes);
    }
    let mut out = vec![std::mem::MaybeUninit::uninit(); (tile.end - tile.start) as usize];
    tiles.compute(tile, &gathered, &mut out).unwrap().to_vec()
}

/// Wherever a tile begins and ends, on whatever processor.
#[test]
fn any_tile_is_what_it_is_in_the_whole() {
    let count = 5003;
    for blend in blends() {
        let models = models(&blend, count);
        let inputs: Vec<_> = models.iter().map(input).collect();
        for dtype in [Dtype::F32, Dtype::BF16, Dtype::F8_E4M3] {
            let size = u64::from(dtype.bits() / 8);
            let [detected, baseline] = [Instructions::detect(), Instructions::BASELINE].map(|instructions| {
                let tiles = BlendTiles::with(&blend, &inputs, instructions);
                tiles.in_dtype(dtype, crate::plan::Overflow::Infinity).unwrap()
            });
            let whole = tile(&*detected, &models, 0..count as u64 * size);
            assert!(whole == tile(&*baseline, &models, 0..count as u64 * size), "{blend:?}");
            for (start, end) in [(0, 1), (1, 2), (17, 1040), (1023, 3077), (4999, 5003), (2048, 2048)] {
                let bytes = start * size..end * size;
                let part = tile(&*baseline, &models, bytes.clone());
                assert!(part == whole[bytes.start as usize..bytes.end as usize], "{blend:?}: {bytes:?}");
            }
        }
    }
}

#[test]
fn what_is_measured_does_not_depend_on_threads_or_instructions() {
    let count = 400_003;
    let models: Vec<_> = (0..3).map(|number| checkpoint(number, &values(number as u32, count))).collect();
    let inputs: Vec<_> = models.iter().map(input).collect();
    let single: Vec<_> = models.iter().map(single).collect();
    let densities = [0.2, 0.77];
    let mut found = Vec::new();
    for threads in [1, 2, 3, 7] {
        for instructions in [Instructions::BASELINE, Instructions::detect()] {
            let passes = Passes::new(&inputs, instructions, threads).unwrap();
            let products = passes.products().unwrap().map(f64::to_bits);
            found.push((products, passes.least(&densities).unwrap()));
        }
    }
    assert!(found.iter().all(|one| *one == found[0]));
    for (model, density) in densities.into_iter().enumerate() {
        let differences = single[model + 1].iter().zip(&single[0]).map(|(value, base)| (value - base).abs());
        let mut sorted: Vec<f32> = differences.collect();
        sorted.sort_by(|a, b| b.total_cmp(a));
        let kept = (density * count as f64) as usize;
        assert_eq!(found[0].1[model], sorted[kept - 1].to_bits());
    }
}

/// The bits of the smallest difference that is kept, of a model that is given with its base.
fn least(base: &[f32], values: &[f32], density: f64) -> u32 {
    let models = [base, values].map(|values| checkpoint(0, values));
    let inputs: Vec<_> = models.iter().map(input).collect();
    Passes::new(&inputs, Instructions::detect(), 2).unwrap().least(&[density]).unwrap()[0]
}

#[test]
fn a_threshold_is_exact_whatever_a_sample_says() {
    let count = 700_001;
    let base = vec![0.0; count];
    let expected = |values: &[f32], density: f64| {
        let mut sorted: Vec<_> = values.iter().map(|value| value.abs().to_bits()).collect();
        sorted.sort_unstable_by(|a, b| b.cmp(a));
        sorted[((density * count as f64) as usize).max(1) - 1]
    };
    let random = values(5, count);
    // What is between the runs of a sample is larger than all that is in them; most are the same; nothing but zeros;
    // exponents far apart; some that are no numbers.
    let hidden: Vec<_> =
        (0..count).map(|i| if i % 1024 < 300 { random[i] } else { 100.0 + random[i] }).collect();
    let same: Vec<_> = random.iter().map(|&value| if value < 0.2 { 0.5 } else { value }).collect();
    let wide: Vec<_> =
        random.iter().zip((-100..100).cycle()).map(|(value, power)| value * 2_f32.powi(power)).collect();
    let bad: Vec<_> =
        random.iter().enumerate().map(|(i, &value)| if i % 1000 == 7 { f32::NAN } else { value }).collect();
    for values in [&random, &hidden, &same, &vec![0.0; count], &wide, &bad] {
        for density in [1e-9, 0.001, 0.2, 0.5, 0.9, 0.999_999] {
            assert_eq!(least(&base, values, density), expected(values, density), "{density}");
        }
        assert!(least(&base, values, 1.0) <= expected(values, 1.0));
    }
}

#[test]
fn powers_of_two_divide_as_any_number_does() {
    let all: Vec<_> =
        values(3, 4000).into_iter().chain([0.0, -0.0, f32::MIN_POSITIVE, 1e-44, f32::MAX]).collect();
    for divisor in [1.0, 2.0, 0.25, -8.0, 3.0, 2_f32.powi(126), 2_f32.powi(-126), 2_f32.powi(127), 1e-40] {
        let mut made = all.clone();
        Instructions::detect().run(super::loops::Divide { values: &mut made, divisor });
        let same = made.iter().zip(&all).all(|(made, value)| made.to_bits() == (value / divisor).to_bits());
        assert!(same, "{divisor}");
    }
}

/// All that are as large as the smallest that is kept are kept, too.
#[test]
fn ties_at_the_threshold_are_kept() {
    let blend = Blend::new(BlendMethod::Ties, [1.0]).densities([0.25]);
    let models = [vec![0.0; 8], vec![1.0, -2.0, 3.0, 2.0, 0.5, 2.0, -2.0, 0.0]];
    let models = models.map(|values| checkpoint(0, &values));
    let ours = floats(&made(&blend, &models, Dtype::F32).unwrap());
    assert_eq!(ours, [0.0, -2.0, 3.0, 2.0, 0.0, 2.0, -2.0, 0.0]);
}

#[test]
fn nan_stays_nan_and_slerp_refuses_it() {
    for blend in blends() {
        for place in [0, 1] {
            let mut models: Vec<_> = (0..blend.inputs()).map(|number| values(number as u32, 3000)).collect();
            models[place.min(blend.inputs() - 1)][1500] = f32::NAN;
            let models: Vec<_> = models.iter().map(|values| checkpoint(0, values)).collect();
            let ours = made(&blend, &models, Dtype::F32);
            if blend.method == BlendMethod::Slerp {
                let error = ours.unwrap_err();
                assert_eq!((error.kind(), error.tensor()), (ErrorKind::Value, Some(NAME)));
                continue;
            }
            let ours = floats(&ours.unwrap());
            let places: Vec<_> = (0..3000).filter(|&element| ours[element].is_nan()).collect();
            assert_eq!(places, [1500], "{blend:?}");
        }
    }
}

#[test]
fn vectors_of_one_direction_are_blended_along_the_line() {
    let line = along_the_arc([1.0, 4.0, 2.0], 0.25).unwrap();
    assert_eq!(line, [0.75, 0.25]);
    assert_eq!(along_the_arc([1.0, 1.0, -1.0], 0.25).unwrap(), [0.75, 0.25]);
    let half = along_the_arc([1.0, 1.0, 0.0], 0.5).unwrap();
    assert!(half.iter().all(|weight| (weight - 0.5_f64.sqrt()).abs() < 1e-12), "{half:?}");
    // Nothing has no direction.
    assert_eq!(along_the_arc([0.0, 1.0, 0.0], 0.5).unwrap(), half);
    assert!(along_the_arc([f64::NAN, 1.0, 0.0], 0.5).is_err());
    assert!(along_the_arc([f64::INFINITY, 1.0, 0.0], 0.5).is_err());
}

#[test]
fn what_makes_no_sense_is_refused() {
    let refused = |blend: Blend| blend.check().unwrap_err().to_string();
    let linear = |weights: &[f64]| Blend::new(BlendMethod::Linear, weights);
    let ties = Blend::new(BlendMethod::Ties, [1.0, 1.0]);
    for (blend, why) in [
        (linear(&[]), "linear needs the weight of at least one model"),
        (linear(&[1.0, -1.0]), "the weights have the sum zero, which nothing can be divided by"),
        (linear(&[f64::NAN]), "a weight is NaN; it must be a finite number"),
        (linear(&[1e300]), "a weight is 1"),
        (linear(&[1.0]).densities([0.5]), "linear keeps all differences: a density is of ties and dare"),
        (ties.clone().densities([0.0]), "a density is 0; it must be above 0 and at most 1"),
        (ties.clone().densities([0.1, 0.2, 0.3]), "there are 3 densities of 2 models"),
        (ties.lambda(f64::INFINITY), "lambda is inf; it must be a finite number"),
        (
            Blend::new(BlendMethod::Slerp, [1.0; 3]),
            "slerp blends two models, not 3; linear and the others take more",
        ),
    ] {
        let told = refused(blend);
        assert!(told.starts_with(why), "{told}");
    }
    assert!(linear(&[1.0, -1.0]).normalize(false).check().is_ok());
    let (a, b) = (checkpoint(0, &[1.0; 4]), checkpoint(0, &[1.0; 5]));
    let bind = |inputs: &[Input]| linear(&[1.0, 1.0]).bind(inputs).unwrap_err();
    assert_eq!(bind(&[input(&a)]).to_string(), "linear with 2 weights takes 2 tensors, not 1");
    assert_eq!(bind(&[input(&a), input(&b)]).to_string(), "shapes [4] and [5] cannot be blended");
    let integers = Save::new().bytes([(NAME, Values::new(&[4], &[1_i32; 4]).unwrap())]).unwrap();
    let error = bind(&[input(&a), input(&Checkpoint::from_bytes(integers).unwrap())]);
    assert_eq!(error.kind(), ErrorKind::Dtype);
}

/// Weights of codes go in before they are rounded.
#[test]
fn derived_inputs_are_not_rounded_before() {
    let codes: Vec<u8> = (0..64_u8).map(|code| code + 40).collect();
    let scale = [bf16::from_f32(0.3)];
    let tensors = |values: &[u8]| {
        let header = r#"{"up.weight":{"dtype":"F8_E4M3","shape":[8,8],"data_offsets":[0,64]},
            "up.weight_scale":{"dtype":"BF16","shape":[1],"data_offsets":[64,66]}}"#;
        let scale = scale[0].to_bits().to_le_bytes();
        let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), values, &scale].concat();
        Checkpoint::from_bytes(bytes).unwrap().dequantized().unwrap()
    };
    let dense = tensors(&codes);
    let tensor = dense.tensor("up.weight").unwrap();
    assert_eq!(tensor.dtype(), Dtype::BF16);
    let input = Input::of(&tensor);
    let linear = Blend::new(BlendMethod::Linear, [3.0, 1.0]);
    let entry = Entry::new("up.weight", vec![input.clone(), input], Arc::new(linear)).unwrap();
    let session = Plan::new([entry]).session().start().unwrap();
    let ours = floats(session.take("up.weight", None).unwrap().1.as_bytes());
    let mut wide = [0.0_f32; 64];
    cast_into(Dtype::F8_E4M3, &codes, &mut wide).unwrap();
    let expected: Vec<f32> =
        wide.iter().map(|value| value * scale[0].to_f32()).map(|value| (value * 3.0 + value) / 4.0).collect();
    assert_eq!(ours, expected);
}
