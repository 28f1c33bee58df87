//! Adapters are merged into what a module gets.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use burn::nn::LinearConfig;
use burn::tensor::Device;
use weighbridge_burn::load;
use weighbridge_burn::weighbridge::write::{Save, Values};
use weighbridge_burn::weighbridge::{Checkpoint, ErrorKind, Renames};

fn open(tensors: &[(&str, &[usize], &[f32])]) -> Checkpoint {
    let values = tensors.iter().map(|(name, shape, values)| (*name, Values::new(shape, values).unwrap()));
    Checkpoint::from_bytes(Save::new().bytes(values).unwrap()).unwrap()
}

#[test]
fn a_linear_gets_the_weight_with_its_adapter() {
    let base = open(&[("up.weight", &[2, 3], &[1.0; 6]), ("up.bias", &[2], &[0.0; 2])]);
    let adapter =
        open(&[("up.lora_A.weight", &[1, 3], &[1.0, 2.0, 3.0]), ("up.lora_B.weight", &[2, 1], &[1.0, 2.0])]);
    let mut linear = LinearConfig::new(3, 2).init(&Device::flex());
    let load = || load(&base).pytorch().rename(Renames::new().prefix("up.", ""));
    load().adapter(&adapter, 0.5).into(&mut linear).unwrap();
    let weight = linear.weight.val().into_data();
    // Transposed, as Burn has it.
    assert_eq!(weight.try_to_vec::<f32>().unwrap(), [1.5, 2.0, 2.0, 3.0, 2.5, 4.0]);

    let error = load().adapter(&base, 1.0).into(&mut linear).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    // What it had stays.
    let weight = linear.weight.val().into_data();
    assert_eq!(weight.try_to_vec::<f32>().unwrap()[0], 1.5);
}
