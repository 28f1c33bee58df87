//! Averages of weights.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use burn::module::{Module, Param, ParamId};
use burn::nn::{BatchNorm, BatchNormConfig, Linear, LinearConfig, LinearLayout};
use burn::tensor::{DType, Device, Int, Tensor};
use weighbridge_burn::weighbridge::{Checkpoint, ErrorKind};
use weighbridge_burn::{Ema, load, save};

#[derive(Module, Debug)]
struct Model {
    linear: Linear,
    norm: BatchNorm,
    count: Param<Tensor<1, Int>>,
}

/// Every float is `value`.
fn model(value: f32, device: &Device) -> Model {
    let mut model = Model {
        linear: LinearConfig::new(3, 2).with_layout(LinearLayout::Col).init(device),
        norm: BatchNormConfig::new(2).init(device),
        count: Param::initialized(ParamId::new(), Tensor::from_ints([value as i64], device)),
    };
    model.linear.weight = model.linear.weight.map(|tensor| tensor.zeros_like().add_scalar(value));
    model.linear.bias =
        model.linear.bias.map(|bias| bias.map(|tensor| tensor.zeros_like().add_scalar(value)));
    model.norm.running_mean.update(Tensor::<1>::zeros([2], device).add_scalar(value));
    model
}

fn values(tensor: Tensor<1>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().try_to_vec().unwrap()
}

#[test]
fn floats_are_averaged_and_the_rest_is_what_it_last_was() {
    let device = Device::flex().autodiff();
    let first = model(1.0, &device);
    let mut ema = Ema::new(&first, 0.75).unwrap();
    let decay = 0.75_f32;
    let mut expected = 1.0_f32;
    for value in [5.0, 2.0, 9.5] {
        ema.update(&model(value, &device)).unwrap();
        expected = expected * decay + (1.0 - decay) * value;
        let average = ema.model();
        assert_eq!(values(average.linear.bias.as_ref().unwrap().val()), [expected; 2]);
        assert_eq!(values(average.linear.weight.val().flatten(0, 1)), [expected; 6]);
        assert_eq!(values(average.norm.running_mean.value()), [expected; 2]);
        assert_eq!(
            average.count.val().into_data().convert::<i64>().try_to_vec::<i64>().unwrap(),
            [value as i64]
        );
        assert!(!average.linear.weight.val().is_require_grad());
    }
    // Nothing is shared with the model.
    assert_eq!(values(first.norm.running_mean.value_sync()), [1.0; 2]);
}

#[test]
fn it_is_kept_in_f32_and_applied_in_the_dtype_of_the_model() {
    let device = Device::flex();
    let narrow = |value: f32| {
        let mut model = model(value, &device);
        model.linear.bias = model.linear.bias.map(|bias| bias.map(|tensor| tensor.cast(DType::BF16)));
        model
    };
    let mut ema = Ema::new(&narrow(1.0), 0.999).unwrap();
    (0..3).for_each(|_| ema.update(&narrow(2.0)).unwrap());
    let bias = ema.model().linear.bias.as_ref().unwrap().val();
    assert_eq!(bias.dtype(), DType::F32);
    // In BF16 it would still be 1, its next number being 1.0078.
    let average = values(bias)[0];
    assert!((average - 1.002997).abs() < 1e-6, "{average}");
    let own = narrow(7.0);
    let applied = ema.applied_to(&own).unwrap();
    let bias = applied.linear.bias.as_ref().unwrap().val();
    assert_eq!((bias.dtype(), values(bias)), (DType::BF16, vec![1.0; 2]));
    assert_eq!(values(applied.norm.running_mean.value()), values(ema.model().norm.running_mean.value()));
    assert_eq!(values(own.norm.running_mean.value_sync()), [7.0; 2]);
    assert_eq!(values(own.linear.bias.as_ref().unwrap().val()), [7.0; 2]);
}

#[test]
fn it_is_saved_and_loaded() {
    let device = Device::flex();
    let mut ema = Ema::new(&model(1.0, &device), 0.5).unwrap();
    ema.update(&model(4.0, &device)).unwrap();
    let bytes = save(ema.model()).pytorch().bytes().unwrap();
    let ckpt = Checkpoint::from_bytes(bytes.clone()).unwrap();
    assert_eq!(ckpt.tensor("linear.weight").unwrap().shape(), [2, 3]);
    let mut other = Ema::new(&model(9.0, &device), 0.5).unwrap();
    other.load(load(&ckpt).pytorch()).unwrap();
    assert_eq!(save(other.model()).pytorch().bytes().unwrap(), bytes);
    ema.update(&model(2.0, &device)).unwrap();
    other.update(&model(2.0, &device)).unwrap();
    assert_eq!(save(other.model()).bytes().unwrap(), save(ema.model()).bytes().unwrap());
}

#[test]
fn what_does_not_fit_is_an_error() {
    let device = Device::flex();
    for decay in [-0.1, 1.1, f64::NAN] {
        assert_eq!(Ema::new(&model(1.0, &device), decay).unwrap_err().kind(), ErrorKind::Value);
    }
    let mut ema = Ema::new(&model(1.0, &device), 0.5).unwrap();
    let before = save(ema.model()).bytes().unwrap();
    let mut wide = model(2.0, &device);
    wide.norm = BatchNormConfig::new(3).init(&device);
    let error = ema.update(&wide).unwrap_err();
    assert_eq!((error.kind(), error.tensor()), (ErrorKind::Shape, Some("norm.gamma")), "{error}");
    let mut bare = model(2.0, &device);
    bare.linear.bias = None;
    let error = ema.update(&bare).unwrap_err();
    assert_eq!((error.kind(), error.tensor()), (ErrorKind::MissingTensor, Some("linear.bias")), "{error}");
    assert_eq!(ema.applied_to(&bare).unwrap_err().kind(), ErrorKind::MissingTensor);
    assert_eq!(save(ema.model()).bytes().unwrap(), before);
}
