//! Weights that stay quantised on the CPU against the dense ones: every number bit for bit, and what is multiplied by them.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use burn::module::{Module, Param, ParamId};
use burn::nn::{Linear, LinearConfig, LinearLayout};
use burn::tensor::{DType, Device, FloatDType, Tensor};
use weighbridge_burn::weighbridge::write::Save;
use weighbridge_burn::weighbridge::{Checkpoint, Dtype, Error, ErrorKind, Quantized, Renames, TensorView};
use weighbridge_burn::{Loader, Mapping, burn, load, save};

fn vectors() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/quantized/vectors")
}

fn bits(tensor: Tensor<2>) -> Vec<u32> {
    let values = tensor.into_data().try_to_vec::<f32>().unwrap();
    // Nothing tells NaN from NaN.
    values.iter().map(|value| if value.is_nan() { u32::MAX } else { value.to_bits() }).collect()
}

fn is_quantised(tensor: &Tensor<2>) -> bool {
    matches!(tensor.dtype(), DType::QFloat(_))
}

fn linear(inputs: usize, outputs: usize) -> Linear {
    LinearConfig::new(inputs, outputs).with_bias(false).init(&Device::flex())
}

/// A weight as Burn has it, which is not transposed on the way.
#[derive(Module, Debug)]
struct Plain {
    weight: Param<Tensor<2>>,
}

fn plain(shape: [usize; 2]) -> Plain {
    Plain { weight: Param::initialized(ParamId::new(), Tensor::zeros(shape, &Device::flex())) }
}

/// A load of the tensors of one layer.
fn layer(ckpt: &Checkpoint, name: &str) -> Loader {
    let prefix = name.strip_suffix("weight").unwrap();
    load(ckpt).rename(Renames::new().prefix(prefix, "")).dtype(FloatDType::F32)
}

/// What becomes of some rows with both weights.
fn multiply(kept: &Linear, dense: &Linear) {
    let [inputs, outputs] = dense.weight.val().dims();
    let x: Vec<f32> = (0..3 * inputs).map(|at| ((at * 37 + 11) % 101) as f32 / 50.0 - 1.0).collect();
    let x = Tensor::<1>::from_floats(&x[..], &Device::flex()).reshape([3, inputs]);
    let expected = dense.forward(x.clone());
    let is_within = |ours: Tensor<2>, most: Tensor<2>| {
        (ours - expected.clone()).abs().lower_equal(most).all().into_scalar::<bool>()
    };
    // Sums may be added up in another order.
    let summed = x.clone().abs().matmul(dense.weight.val().abs()).mul_scalar(1e-6);
    assert!(is_within(x.clone().matmul(kept.weight.val()), summed.clone()));
    // `Linear` reshapes the weight, and flex quantises blocks anew for that: of each weight half a step may be lost,
    // of 255 from the largest of a block to its negative.
    let step = dense.weight.val().abs().max().into_scalar::<f32>() / 127.5;
    let most = x.clone().abs().sum_dim(1).mul_scalar(step / 2.0).expand([3, outputs]) + summed;
    assert!(is_within(kept.forward(x.clone()), most.clone()));
    assert!(is_within(kept.forward(x.unsqueeze::<3>()).reshape([3, outputs]), most));
}

/// What becomes of a weight of shape `[outputs, inputs]`: whether it stays quantised, or why not.
fn kept(ckpt: &Checkpoint, name: &str, [outputs, inputs]: [usize; 2]) -> Result<(), Error> {
    let (mut dense, mut module) = (linear(inputs, outputs), linear(inputs, outputs));
    layer(ckpt, name).pytorch().into(&mut dense).unwrap();
    let before = bits(module.weight.val());
    let loader = || layer(ckpt, name).pytorch().keep_quantized();
    let checked = loader().check(&module).unwrap();
    let outcome = loader().into(&mut module);
    assert_eq!(checked.problems.first().map(Error::message), outcome.as_ref().err().map(Error::message));
    let Ok(report) = outcome else {
        let error = outcome.unwrap_err();
        assert!(bits(module.weight.val()) == before);
        let report = loader().dense_where_needed().into(&mut module).unwrap();
        assert!(report.quantized.is_empty());
        let [reason] = &*report.dense else { panic!("{report:?}") };
        assert_eq!(reason.path, "weight");
        assert!(error.message().contains(&reason.reason), "{error}, not {}", reason.reason);
        assert!(!is_quantised(&module.weight.val()));
        assert!(bits(module.weight.val()) == bits(dense.weight.val()), "{name}");
        return Err(error);
    };
    assert_eq!((report.quantized, report.dense.len()), (vec!["weight".to_owned()], 0));
    let weight = module.weight.val();
    assert!(is_quantised(&weight));
    assert_eq!(weight.dims(), [inputs, outputs]);
    assert!(bits(weight.dequantize()) == bits(dense.weight.val()), "{name}");
    multiply(&module, &dense);

    let mut stored = plain([outputs, inputs]);
    layer(ckpt, name).keep_quantized().into(&mut stored).unwrap();
    assert!(is_quantised(&stored.weight.val()));
    let transposed = dense.weight.val().transpose();
    assert!(bits(stored.weight.val().dequantize()) == bits(transposed), "{name} as it is stored");
    Ok(())
}

/// Of some vectors: whether weights stay quantised, or why not.
const EXPECTED: &[(&str, &str)] = &[
    ("awq-gemm-g128", "it has zero points"),
    ("bnb-int8", "it is multiplied by something else"),
    ("bnb-nf4", "of a table of their own"),
    ("ct-float8-channel", "it is float8 (E4M3), and Device<"),
    ("ct-int8-channel-asym", "it has zero points"),
    ("ct-int8-channel-sym", ""),
    ("ct-int8-group-asym", "it has zero points"),
    ("ct-int8-tensor-sym", ""),
    ("ct-mxfp4", "it is float4 (E2M1), and Device<"),
    ("ct-nvfp4", "it is float4 (E2M1), and Device<"),
    ("ct-pack-4bit-sym", "it is int4, and Device<"),
    ("ct-pack-6bit-sym", "its codes have 6 bits"),
    ("ct-pack-8bit-asym", "it has zero points"),
    ("ct-pack-8bit-channel-sym", ""),
    ("ct-pack-8bit-sym", ""),
    ("fp8-block", "it is float8 (E4M3), and Device<"),
    ("gptq-4bit-v1-sym-act", "act-order"),
    ("gptq-8bit-v1-sym", ""),
    ("hqq-axis1", "its zero points are floating-point numbers"),
    ("mlx-affine-8bit-g32", "its groups have biases"),
    ("modelopt-int8", ""),
    ("quanto-int8", ""),
    ("torchao-int8-bfloat16", ""),
    ("torchao-int8-float32", ""),
];

#[test]
fn quantised_tensors_are_the_weights_of_every_method() {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(vectors()).unwrap() {
        let case = entry.unwrap().path();
        let name = case.file_name().unwrap().to_str().unwrap().to_owned();
        let ckpt = Checkpoint::open(case.join("checkpoint")).unwrap();
        let dense = ckpt.dequantized().unwrap();
        let quantised: Vec<_> = ckpt.quantized().map(|module| module.weight()).collect();
        let mut outcomes = Vec::new();
        for tensor in dense.tensors() {
            let (name, &[outputs, inputs]) = (tensor.name(), tensor.shape()) else { continue };
            if !name.ends_with(".weight") || !quantised.iter().any(|weight| weight == name) {
                continue;
            }
            if dense.quantized_codes(name).is_some() {
                continue;
            }
            match kept(&ckpt, name, [outputs, inputs]) {
                Ok(()) => outcomes.push(String::new()),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
                    assert!(error.tensor().is_some());
                    let text = error.to_string();
                    assert!(text.ends_with("`dense_where_needed()` loads such weights dense"), "{text}");
                    assert_eq!(text.lines().count(), 1);
                    outcomes.push(text);
                }
            }
        }
        found.insert(name, outcomes);
    }
    for (name, reason) in EXPECTED {
        let outcomes = &found[*name];
        let is_expected = match reason.is_empty() {
            true => !outcomes.is_empty() && outcomes.iter().all(String::is_empty),
            false => outcomes.iter().any(|own| own.contains(reason)),
        };
        assert!(is_expected, "{name}: {outcomes:?}, not {reason:?}");
    }
    let count = found.values().flatten().filter(|outcome| outcome.is_empty()).count();
    assert!(count >= 10, "{count} weights stayed quantised");
}

/// `weight` of int8 with a scale for each row.
fn int8(shape: [usize; 2]) -> Checkpoint {
    let [rows, columns] = shape;
    let codes: Vec<u8> = (0..rows * columns).map(|at| (at * 73 % 256) as u8).collect();
    let scales: Vec<u8> = (0..rows).flat_map(|row| (0.01 + row as f32 / 300.0).to_le_bytes()).collect();
    let codes = TensorView::new(Dtype::I8, &shape, &codes).unwrap();
    let of_rows = [rows, 1];
    let scales = TensorView::new(Dtype::F32, &of_rows, &scales).unwrap();
    Checkpoint::from_bytes(Save::new().bytes([("weight", codes), ("weight_scale", scales)]).unwrap()).unwrap()
}

#[track_caller]
fn refused<M: Module>(loader: Loader, module: &mut M, part: &str) {
    let error = loader.keep_quantized().into(module).unwrap_err().to_string();
    assert!(error.contains(part), "{error}");
}

#[test]
fn groups_are_cut_into_blocks_or_refused() {
    // Rows of 300 have blocks of 150, those of 1024 blocks of 128; 257 is prime.
    for columns in [8, 77, 255, 300, 1024] {
        kept(&int8([5, columns]), "weight", [5, columns]).unwrap();
    }
    for columns in [7, 257, 2 * 257] {
        let error = kept(&int8([5, columns]), "weight", [5, columns]).unwrap_err().to_string();
        assert!(error.contains(&format!("its groups of {columns} x 1 in {columns} x 5 weights")), "{error}");
    }
}

#[test]
fn what_changes_on_the_way_is_refused_by_name() {
    let ckpt = int8([6, 16]);
    let mut column = LinearConfig::new(16, 6).with_layout(LinearLayout::Col).init(&Device::flex());
    refused(load(&ckpt).pytorch().partial(), &mut column, "`LinearLayout::Col`");

    #[derive(Module, Debug)]
    struct Parts {
        one: Linear,
        two: Linear,
    }
    let mut parts = Parts { one: linear(16, 3), two: linear(16, 3) };
    let ckpt = Checkpoint::union([("both.", ckpt)]).unwrap();
    let mapping = Mapping::pytorch().fused("both", ["one", "two"]);
    refused(load(&ckpt).mapping(mapping.clone()), &mut parts, "it is a part of a tensor");
    let report = load(&ckpt).mapping(mapping).keep_quantized().dense_where_needed().into(&mut parts).unwrap();
    assert_eq!((report.quantized.len(), report.dense.len()), (0, 2));

    // Another shape is refused as such.
    let error = load(&int8([6, 16])).pytorch().keep_quantized().into(&mut linear(16, 7)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Shape, "{error}");
}

#[test]
fn what_is_not_asked_to_stay_does_not() {
    let ckpt = int8([6, 16]);
    let mut module = linear(16, 6);
    load(&ckpt).pytorch().into(&mut module).unwrap();
    assert!(!is_quantised(&module.weight.val()));
    let refused = load(&ckpt).pytorch().keep_quantized().quantized(Quantized::Refuse).into(&mut module);
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Dtype);

    // Nor do plain weights become quantised.
    let plain = Checkpoint::from_bytes(save(&module).pytorch().bytes().unwrap()).unwrap();
    let report = load(&plain).pytorch().keep_quantized().into(&mut module).unwrap();
    assert!(report.quantized.is_empty() && report.dense.is_empty());
}

#[test]
fn what_was_kept_is_saved_and_loaded_again() {
    let mut first = linear(16, 6);
    load(&int8([6, 16])).pytorch().keep_quantized().into(&mut first).unwrap();
    let ckpt = Checkpoint::from_bytes(save(&first).bytes().unwrap()).unwrap();
    let mut second = linear(16, 6);
    load(&ckpt).into(&mut second).unwrap();
    assert!(is_quantised(&second.weight.val()));
    assert!(bits(second.weight.val().dequantize()) == bits(first.weight.val().dequantize()));
}

#[test]
fn modules_with_autodiff_keep_them_too() {
    let mut module = LinearConfig::new(16, 6).with_bias(false).init(&Device::flex().autodiff());
    load(&int8([6, 16])).pytorch().keep_quantized().into(&mut module).unwrap();
    assert!(is_quantised(&module.weight.val()));
    let mut dense = linear(16, 6);
    load(&int8([6, 16])).pytorch().dtype(FloatDType::F32).into(&mut dense).unwrap();
    assert!(bits(module.weight.val().dequantize()) == bits(dense.weight.val()));
}
