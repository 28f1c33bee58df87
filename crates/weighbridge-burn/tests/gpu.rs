//! A real GPU API: loaded, computed and saved on Vulkan, beside `flex`. Needs a driver; Mesa's lavapipe,
//! which computes on the CPU, will do:
//!
//! ```sh
//! apt-get install mesa-vulkan-drivers
//! cargo test -p weighbridge-burn --features vulkan --test gpu
//! ```

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use burn::module::{Module, Param, ParamId};
use burn::nn::{BatchNorm, BatchNormConfig, Embedding, EmbeddingConfig, Linear, LinearConfig, LinearLayout};
use burn::tensor::{Bool, DType, Device, DeviceKind, FloatDType, Int, Tensor, TensorData, Tolerance};
use weighbridge_burn::weighbridge::write::Save;
use weighbridge_burn::weighbridge::{Checkpoint, Dtype, ErrorKind, TensorView};
use weighbridge_burn::{load, save};

#[derive(Module, Debug)]
struct Model {
    embed: Embedding,
    up: Linear,
    norm: BatchNorm,
    down: Linear,
    mask: Param<Tensor<1, Bool>>,
    steps: Param<Tensor<1, Int>>,
}

fn model(device: &Device) -> Model {
    let steps = TensorData::from([1_i32, -2]);
    Model {
        embed: EmbeddingConfig::new(50, 32).init(device),
        up: LinearConfig::new(32, 48).init(device),
        norm: BatchNormConfig::new(48).init(device),
        down: LinearConfig::new(48, 16).with_layout(LinearLayout::Col).init(device),
        mask: Param::initialized(ParamId::new(), Tensor::from_data([true, false, true], device)),
        steps: Param::initialized(ParamId::new(), Tensor::from_data(steps, (device, DType::I32))),
    }
}

impl Model {
    fn compute(&self, device: &Device) -> TensorData {
        let ids = Tensor::<2, Int>::from_ints([[1, 7, 49], [0, 3, 3]], device);
        let hidden = forward(&self.up, self.embed.forward(ids)).swap_dims(1, 2);
        forward(&self.down, self.norm.forward(hidden).swap_dims(1, 2)).into_data()
    }
}

/// What a linear layer computes, as products and sums: the compiler of lavapipe 22.3, which Debian 12 has,
/// crashes on the kernels of Burn's `matmul`.
fn forward(linear: &Linear, input: Tensor<3>) -> Tensor<3> {
    let product = input.unsqueeze_dim::<4>(3) * linear.weight.val().unsqueeze::<4>();
    let sum = product.sum_dim(2).squeeze_dim::<3>(2);
    match &linear.bias {
        Some(bias) => sum + bias.val().unsqueeze::<3>(),
        None => sum,
    }
}

/// A GPU, or the CPU in the guise of one.
fn gpu() -> Device {
    let device = Device::vulkan(DeviceKind::DefaultDevice);
    eprintln!("{device:?}");
    device
}

#[test]
fn what_is_loaded_computes_and_is_saved_as_on_flex() {
    let (flex, gpu) = (Device::flex(), gpu());
    let first = model(&flex);
    for pytorch in [false, true] {
        let saver = save(&first);
        let saver = if pytorch { saver.pytorch() } else { saver };
        let bytes = saver.bytes().unwrap();
        let ckpt = Checkpoint::from_bytes(bytes.clone()).unwrap();
        let mut second = model(&gpu);
        let loader = if pytorch { load(&ckpt).pytorch() } else { load(&ckpt) };
        let report = loader.into(&mut second).unwrap();
        assert_eq!(report.loaded.len(), ckpt.len());
        assert_eq!(second.up.weight.val().device(), gpu);
        second.compute(&gpu).assert_approx_eq::<f32>(&first.compute(&flex), Tolerance::absolute(1e-4));
        let saver = save(&second);
        let saver = if pytorch { saver.pytorch() } else { saver };
        assert!(saver.bytes().unwrap() == bytes);
    }
}

#[test]
fn large_tensors_come_back_in_pieces() {
    let gpu = gpu();
    // 24 MB: three pieces.
    let first = LinearConfig::new(3000, 2000).init(&gpu);
    let bytes = save(&first).pytorch().bytes().unwrap();
    let mut second = LinearConfig::new(3000, 2000).init(&gpu);
    load(&Checkpoint::from_bytes(bytes.clone()).unwrap()).pytorch().into(&mut second).unwrap();
    assert!(save(&second).pytorch().bytes().unwrap() == bytes);
}

/// Every dtype arrives exactly or is refused before anything is uploaded.
#[test]
fn dtypes_arrive_exactly_or_are_refused() {
    let gpu = gpu();
    #[derive(Module, Debug)]
    struct Floats {
        values: Param<Tensor<1>>,
    }
    #[derive(Module, Debug)]
    struct Ints {
        values: Param<Tensor<1, Int>>,
    }
    let checkpoint = |dtype: Dtype, bytes: &[u8]| {
        let shape = [bytes.len() * 8 / dtype.bits() as usize];
        let view = TensorView::new(dtype, &shape, bytes).unwrap();
        Checkpoint::from_bytes(Save::new().bytes([("values", view)]).unwrap()).unwrap()
    };
    let numbers: Vec<u8> = (0..64).map(|i| i as u8 % 60).collect();
    let (mut arrived, mut refused) = (Vec::new(), Vec::new());
    for dtype in [Dtype::F64, Dtype::F32, Dtype::F16, Dtype::BF16] {
        let len = numbers.len() * 8 / dtype.bits() as usize;
        let mut module = Floats { values: Param::initialized(ParamId::new(), Tensor::zeros([len], &gpu)) };
        let ckpt = checkpoint(dtype, &numbers);
        match load(&ckpt).into(&mut module) {
            Ok(_) => {
                arrived.push(dtype);
                assert!(module.values.val().into_data().as_bytes() == numbers, "{dtype}");
            }
            Err(error) => {
                refused.push(dtype);
                assert_eq!(error.kind(), ErrorKind::Device, "{error}");
                load(&ckpt).dtype(FloatDType::F32).into(&mut module).unwrap();
                assert_eq!(module.values.val().dtype(), DType::F32);
            }
        }
    }
    let integers =
        [Dtype::I8, Dtype::I16, Dtype::I32, Dtype::I64, Dtype::U8, Dtype::U16, Dtype::U32, Dtype::U64];
    for dtype in integers {
        let len = numbers.len() * 8 / dtype.bits() as usize;
        let mut module = Ints { values: Param::initialized(ParamId::new(), Tensor::zeros([len], &gpu)) };
        match load(&checkpoint(dtype, &numbers)).into(&mut module) {
            Ok(_) => {
                arrived.push(dtype);
                assert!(module.values.val().into_data().as_bytes() == numbers, "{dtype}");
            }
            Err(error) => {
                refused.push(dtype);
                assert_eq!(error.kind(), ErrorKind::Device, "{error}");
            }
        }
    }
    eprintln!("exactly: {arrived:?}, refused: {refused:?}");
    assert!(arrived.contains(&Dtype::F32) && arrived.contains(&Dtype::I32));
    assert!(!arrived.contains(&Dtype::BF16) || gpu.supports_dtype(DType::BF16));
}
