//! A real GPU API: loaded, computed and saved on Vulkan, beside `flex`. Needs a driver; Mesa's lavapipe,
//! which computes on the CPU, will do:
//!
//! ```sh
//! apt-get install mesa-vulkan-drivers
//! cargo test -p weighbridge-burn --features vulkan --test gpu
//! ```

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

#[path = "gpu/kept.rs"]
mod kept;
#[path = "gpu/live.rs"]
mod live;
#[path = "gpu/placed.rs"]
mod placed;

use burn::module::{Module, Param, ParamId};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{BatchNorm, BatchNormConfig, Embedding, EmbeddingConfig, Linear, LinearConfig, LinearLayout};
use burn::tensor::{Bool, DType, Device, DeviceKind, FloatDType, Int, Tensor, TensorData, Tolerance};
use weighbridge_burn::weighbridge::plan::Transpose;
use weighbridge_burn::weighbridge::write::{Save, Values};
use weighbridge_burn::weighbridge::{Checkpoint, Dtype, ErrorKind, TensorView};
use weighbridge_burn::{Mapping, load, save};

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
    // Not all lengths are multiples of four bytes, as uploads to this API are.
    let numbers: Vec<u8> = (0..56).map(|i| i as u8 % 60).collect();
    let odd = |dtype: Dtype| &numbers[..56 - dtype.bits() as usize / 8];
    let (mut arrived, mut refused) = (Vec::new(), Vec::new());
    for dtype in [Dtype::F64, Dtype::F32, Dtype::F16, Dtype::BF16] {
        let numbers = odd(dtype);
        let len = numbers.len() * 8 / dtype.bits() as usize;
        let mut module = Floats { values: Param::initialized(ParamId::new(), Tensor::zeros([len], &gpu)) };
        let ckpt = checkpoint(dtype, numbers);
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
        let numbers = odd(dtype);
        let len = numbers.len() * 8 / dtype.bits() as usize;
        let mut module = Ints { values: Param::initialized(ParamId::new(), Tensor::zeros([len], &gpu)) };
        match load(&checkpoint(dtype, numbers)).into(&mut module) {
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

#[derive(Module, Debug)]
struct Layers {
    q: Linear,
    k: Linear,
    wide: Linear,
    conv: Conv2d,
    turned: Param<Tensor<2>>,
}

fn layers(device: &Device) -> Layers {
    Layers {
        q: LinearConfig::new(513, 700).init(device),
        k: LinearConfig::new(513, 300).init(device),
        wide: LinearConfig::new(257, 1200).with_layout(LinearLayout::Col).init(device),
        conv: Conv2dConfig::new([5, 7], [3, 3]).init(device),
        turned: Param::initialized(ParamId::new(), Tensor::zeros([3, 5], device)),
    }
}

impl Layers {
    fn parameters(&self) -> Vec<TensorData> {
        let linear = |linear: &Linear| {
            [linear.weight.val().into_data(), linear.bias.as_ref().unwrap().val().into_data()]
        };
        let mut parameters: Vec<_> = [&self.q, &self.k, &self.wide].into_iter().flat_map(linear).collect();
        parameters.push(self.conv.weight.val().into_data());
        parameters.push(self.turned.val().into_data());
        parameters
    }
}

/// Parts of a tensor, one that is joined of several, one that an operation makes; some larger than a staging
/// buffer, with rows of odd lengths; also on a device with autodiff, and cast.
#[test]
fn layouts_arrive_as_on_flex() {
    let number = |index: usize| (index % 8191) as f32 / 8.0 - 300.0;
    let tensor = |shape: &[usize]| {
        let values: Vec<f32> = (0..shape.iter().product()).map(number).collect();
        (shape.to_vec(), values)
    };
    let stored = [
        ("qk.weight", tensor(&[1000, 513])),
        ("qk.bias", tensor(&[1000])),
        ("left.weight", tensor(&[500, 257])),
        ("left.bias", tensor(&[500])),
        ("right.weight", tensor(&[700, 257])),
        ("right.bias", tensor(&[700])),
        ("conv.weight", tensor(&[7, 5, 3, 3])),
        ("conv.bias", tensor(&[7])),
        ("turned", tensor(&[5, 3])),
    ];
    let views = stored.iter().map(|(name, (shape, values))| (*name, Values::new(shape, values).unwrap()));
    let ckpt = Checkpoint::from_bytes(Save::new().bytes(views).unwrap()).unwrap();
    let mapping = Mapping::pytorch()
        .fused("qk", ["q", "k"])
        .separate_sized("wide", [("left", 500), ("right", 700)])
        .operation("turned", Transpose::of(0));
    let gpu = gpu();
    let plain = |device: &Device| {
        let mut module = layers(device);
        load(&ckpt).mapping(mapping.clone()).into(&mut module).unwrap();
        module
    };
    let expected = plain(&Device::flex()).parameters();
    assert!(plain(&gpu).parameters() == expected);
    for device in [gpu.clone().autodiff(), gpu.clone().autodiff().gradient_checkpointing()] {
        let module = plain(&device);
        assert!(module.parameters() == expected);
        let weight = module.q.weight.val();
        assert!(weight.is_require_grad());
        let strategy = weight.device().gradient_checkpointing_strategy();
        assert_eq!(strategy, device.gradient_checkpointing_strategy());
        // Together with a tensor that was made there.
        let product = weight.clone() * Tensor::ones([513, 700], &device);
        assert_eq!(weight.grad(&product.backward()).unwrap().dims(), [513, 700]);
    }
    if gpu.supports_dtype(DType::F16) {
        let cast = |device: &Device| {
            let mut module = layers(device);
            load(&ckpt).mapping(mapping.clone()).dtype(FloatDType::F16).into(&mut module).unwrap();
            module.parameters()
        };
        assert!(cast(&gpu) == cast(&Device::flex()));
    }
}

/// Budgets and numbers of threads change nothing, and nothing is lost if a load fails half-way.
#[test]
fn small_budgets_and_failures() {
    let gpu = gpu();
    let first = model(&gpu);
    let bytes = save(&first).bytes().unwrap();
    let ckpt = Checkpoint::from_bytes(bytes.clone()).unwrap();
    for (threads, read_ahead) in [(1, 0), (2, 1000), (7, u64::MAX)] {
        let mut second = model(&gpu);
        load(&ckpt).threads(threads).read_ahead(read_ahead).into(&mut second).unwrap();
        assert!(save(&second).bytes().unwrap() == bytes);
    }
    let mask = b"\0\x01\x02";
    let at = bytes.windows(3).rposition(|window| window == [1, 0, 1]).unwrap();
    let mut damaged = bytes.clone();
    damaged[at..at + 3].copy_from_slice(mask);
    let mut third = model(&gpu);
    let before = save(&third).bytes().unwrap();
    let error = load(&Checkpoint::from_bytes(damaged).unwrap()).into(&mut third).unwrap_err();
    assert_eq!((error.kind(), error.tensor()), (ErrorKind::Value, Some("mask")));
    assert!(error.to_string().contains("the boolean at index 2 is 2, not 0 or 1"), "{error}");
    assert!(save(&third).bytes().unwrap() == before);
}
