//! Adapters are merged into what a loader gives.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use safetensors::Dtype as St;
use weighbridge::{Checkpoint, ErrorKind, Quantized};
use weighbridge_candle::Loader;
use weighbridge_candle::candle_core::{DType, Tensor};
use weighbridge_tests::{Stored, file};

fn f32(shape: &[usize], values: &[f32]) -> Stored {
    Stored::new(St::F32, shape, values.iter().flat_map(|value| value.to_le_bytes()).collect())
}

fn open(tensors: &[(&str, Stored)]) -> Checkpoint {
    Checkpoint::from_bytes(file(tensors)).unwrap()
}

/// A weight of two rows, and an adapter that adds `[[1, 2, 3], [2, 4, 6]]` to it.
fn both() -> (Checkpoint, Checkpoint) {
    let base = [("up.weight", f32(&[2, 3], &[1.0; 6])), ("norm.weight", f32(&[2], &[5.0, 6.0]))];
    let adapter = [
        ("up.lora_A.weight", f32(&[1, 3], &[1.0, 2.0, 3.0])),
        ("up.lora_B.weight", f32(&[2, 1], &[1.0, 2.0])),
    ];
    (open(&base), open(&adapter))
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn loads_and_builders_have_them_in() {
    let (base, adapter) = both();
    let loader = || Loader::new(&base).adapter(&adapter, 1.0).adapter(&adapter, -0.5).dtype(DType::BF16);
    let wanted = [1.5, 2.0, 2.5, 2.0, 3.0, 4.0];
    let loaded = loader().load().unwrap();
    assert_eq!(values(&loaded.tensors["up.weight"]), wanted);
    assert_eq!(loaded.tensors["up.weight"].dtype(), DType::BF16);
    assert_eq!(values(&loaded.tensors["norm.weight"]), [5.0, 6.0]);
    let vb = loader().var_builder().unwrap();
    assert_eq!(values(&vb.get((2, 3), "up.weight").unwrap()), wanted);
    let shard = weighbridge_candle::candle_nn::var_builder::Shard { dim: 0, rank: 1, world_size: 2 };
    let vb = loader().sharded_var_builder().unwrap();
    assert_eq!(values(&vb.get_with_hints((2, 3), "up.weight", shard).unwrap()), wanted[3..]);
}

#[test]
fn what_does_not_fit_is_an_error() {
    let (base, adapter) = both();
    let other = open(&[("down.weight", f32(&[2, 3], &[1.0; 6]))]);
    let error = Loader::new(&other).adapter(&adapter, 1.0).load().unwrap_err();
    assert!(error.to_string().contains("up.lora_A.weight"), "{error}");
    let error = Loader::new(&base).adapter(&other, 1.0).load().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);

    // Codes as they are stored have nothing added to them.
    let codes = [
        ("up.weight", Stored::new(St::I8, &[2, 3], vec![1; 6])),
        ("up.weight_scale", f32(&[2, 1], &[1.0, 2.0])),
    ];
    let codes = open(&codes);
    let loader = || Loader::new(&codes).adapter(&adapter, 1.0);
    assert_eq!(values(&loader().load().unwrap().tensors["up.weight"]), [2.0, 3.0, 4.0, 4.0, 6.0, 8.0]);
    assert!(loader().quantized(Quantized::Refuse).load().is_err());
    assert!(loader().quantized(Quantized::Raw).load().unwrap_err().to_string().contains("codes"));
}
