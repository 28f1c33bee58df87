//! Writes the fixtures of tests/burn_record.rs with an old Burn. It is no test, and no part of the workspace: put it into a
//! project of its own, as src/main.rs, with
//!
//!     burn = { version = "=0.20.1", default-features = false, features = ["std", "ndarray"] }
//!
//! and run it with a directory; 0.21.0 takes it as it is. For 0.16.1 `BatchNorm<B>` is `BatchNorm<B, 2>`; for 0.13.2, besides,
//! bincode must be 2.0.0-rc.3, `array` a Vec, and the gamma of `batch` cannot be set.

use burn::module::{Module, Param};
use burn::nn;
use burn::record::*;
use burn::tensor::{backend::Backend, Bool, Int, Tensor};
type B = burn::backend::ndarray::NdArray<f32>;

#[derive(Module, Debug)]
pub enum Choice<B: Backend> {
    Dense(nn::Linear<B>),
    Norm(nn::LayerNorm<B>),
}

#[derive(Module, Debug)]
pub struct Net<B: Backend> {
    linear: nn::Linear<B>,
    norm: nn::LayerNorm<B>,
    batch: nn::BatchNorm<B>,
    list: Vec<nn::Linear<B>>,
    pair: (nn::LayerNorm<B>, nn::Linear<B>),
    array: [nn::LayerNorm<B>; 2],
    none: Option<nn::Linear<B>>,
    some: Option<nn::Linear<B>>,
    choice: Choice<B>,
    count: usize,
    ids: Param<Tensor<B, 1, Int>>,
    mask: Param<Tensor<B, 2, Bool>>,
}
fn lin(i: usize, o: usize, bias: bool, start: f32) -> nn::Linear<B> {
    let d = Default::default();
    let mut l = nn::LinearConfig::new(i, o).with_bias(bias).init::<B>(&d);
    let w: Vec<f32> = (0..i * o).map(|x| start + x as f32 * 0.25 - 1.0).collect();
    l.weight = Param::from_tensor(Tensor::<B, 1>::from_floats(&w[..], &d).reshape([i, o]));
    if bias {
        let b: Vec<f32> = (0..o).map(|x| start - x as f32 * 0.5).collect();
        l.bias = Some(Param::from_tensor(Tensor::<B, 1>::from_floats(&b[..], &d)));
    }
    l
}
fn main() {
    let d = Default::default();
    let dir = std::env::args().nth(1).unwrap();
    let mut batch = nn::BatchNormConfig::new(3).init(&d);
    batch.gamma = Param::from_tensor(Tensor::from_floats([1.5, -2.0, 3.25], &d));
    let net = Net::<B> {
        linear: lin(2, 3, true, 1.0),
        norm: nn::LayerNormConfig::new(4).init(&d),
        batch,
        list: vec![lin(1, 2, false, 2.0), lin(2, 1, true, 3.0)],
        pair: (nn::LayerNormConfig::new(2).init(&d), lin(2, 2, false, 4.0)),
        array: [nn::LayerNormConfig::new(1).init(&d), nn::LayerNormConfig::new(2).init(&d)],
        none: None,
        some: Some(lin(1, 1, true, 5.0)),
        choice: Choice::Dense(lin(1, 3, true, 6.0)),
        count: 7,
        ids: Param::initialized(burn::module::ParamId::new(), Tensor::from_ints([1, -2, 300], &d)),
        mask: Param::initialized(
            burn::module::ParamId::new(),
            Tensor::<B, 2, Int>::from_ints([[1, 0], [0, 1]], &d).equal_elem(1),
        ),
    };
    let rec = net.clone().into_record();
    NamedMpkFileRecorder::<FullPrecisionSettings>::new().record(rec, format!("{dir}/full").into()).unwrap();
    NamedMpkFileRecorder::<HalfPrecisionSettings>::new()
        .record(net.clone().into_record(), format!("{dir}/half").into())
        .unwrap();
    NamedMpkGzFileRecorder::<FullPrecisionSettings>::new()
        .record(net.clone().into_record(), format!("{dir}/full").into())
        .unwrap();
    NamedMpkFileRecorder::<DoublePrecisionSettings>::new()
        .record(net.clone().into_record(), format!("{dir}/double").into())
        .unwrap();
    BinFileRecorder::<FullPrecisionSettings>::new()
        .record(net.clone().into_record(), format!("{dir}/full").into())
        .unwrap();
    BinGzFileRecorder::<HalfPrecisionSettings>::new()
        .record(net.clone().into_record(), format!("{dir}/half").into())
        .unwrap();
    PrettyJsonFileRecorder::<FullPrecisionSettings>::new()
        .record(net.clone().into_record(), format!("{dir}/full").into())
        .unwrap();
    NamedMpkFileRecorder::<FullPrecisionSettings>::new()
        .record(lin(2, 2, true, 0.0).weight, format!("{dir}/bare").into())
        .unwrap();
}
