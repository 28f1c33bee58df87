//! Weights that stay quantised against the dense ones on the CPU, bit for bit.

use std::path::Path;

use burn::module::{Module, Param, ParamId};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{DType, Device, FloatDType, Tensor};
use weighbridge_burn::weighbridge::{Checkpoint, Renames};
use weighbridge_burn::{Loader, burn, load, save};

use crate::gpu;

fn vector(name: &str) -> Checkpoint {
    let vectors = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/quantized/vectors");
    Checkpoint::open(vectors.join(name).join("checkpoint")).unwrap()
}

fn bits(tensor: Tensor<2>) -> Vec<u32> {
    let values = tensor.into_data().try_to_vec::<f32>().unwrap();
    // Nothing tells NaN from NaN.
    values.iter().map(|value| if value.is_nan() { u32::MAX } else { value.to_bits() }).collect()
}

fn is_quantised(tensor: &Tensor<2>) -> bool {
    matches!(tensor.dtype(), DType::QFloat(_))
}

fn linear([outputs, inputs]: [usize; 2], device: &Device) -> Linear {
    LinearConfig::new(inputs, outputs).with_bias(false).init(device)
}

/// A weight as Burn has it, which is not transposed on the way.
#[derive(Module, Debug)]
struct Plain {
    weight: Param<Tensor<2>>,
}

/// The weight of a layer, in the layout of the file and transposed, against the dense one.
fn kept(ckpt: &Checkpoint, name: &str, shape: [usize; 2], gpu: &Device) -> Result<(), String> {
    let prefix = name.strip_suffix("weight").unwrap();
    let load =
        |ckpt: &Checkpoint| load(ckpt).rename(Renames::new().prefix(prefix, "")).dtype(FloatDType::F32);
    let keep = |loader: Loader| loader.keep_quantized();
    let mut dense = linear(shape, &Device::flex());
    load(ckpt).pytorch().into(&mut dense).unwrap();
    let dense = dense.weight.val();

    let mut module = linear(shape, gpu);
    keep(load(ckpt).pytorch()).into(&mut module).map_err(|error| error.to_string())?;
    let weight = module.weight.val();
    assert!(is_quantised(&weight));
    assert_eq!((weight.dims(), weight.device()), ([shape[1], shape[0]], gpu.clone()));
    assert!(bits(weight.clone().dequantize()) == bits(dense.clone()), "{name}");
    assert!(bits(weight.transpose().dequantize()) == bits(dense.clone().transpose()), "{name} transposed");

    let mut stored = Plain { weight: Param::initialized(ParamId::new(), Tensor::zeros(shape, gpu)) };
    keep(load(ckpt)).into(&mut stored).unwrap();
    assert!(is_quantised(&stored.weight.val()));
    assert!(bits(stored.weight.val().dequantize()) == bits(dense.clone().transpose()), "{name} as stored");

    Ok(())
}

/// Vectors, and why weights of them cannot stay quantised.
const VECTORS: &[(&str, &str)] = &[
    ("comfy-legacy-e5m2", ""),
    ("ct-float8-block", ""),
    ("ct-float8-channel", ""),
    ("ct-float8-group", ""),
    ("ct-float8-tensor", ""),
    ("ct-int8-channel-asym", "it has zero points"),
    ("ct-int8-channel-sym", ""),
    ("ct-int8-tensor-sym", ""),
    ("ct-mxfp4", ""),
    ("ct-nvfp4", ""),
    ("ct-pack-4bit-sym", ""),
    ("ct-pack-8bit-channel-sym", "rows of 77 codes are not whole words"),
    ("ct-pack-8bit-sym", ""),
    ("gptq-2bit-v1-sym", ""),
    ("gptq-4bit-v1-asym", "it has zero points"),
    ("gptq-4bit-v1-sym", ""),
    ("gptq-8bit-v1-sym", ""),
    ("modelopt-nvfp4", ""),
    ("mxfp8", ""),
    ("quanto-int8", ""),
];

#[test]
fn what_was_kept_is_saved_as_it_is() {
    let (gpu, ckpt) = (gpu(), vector("ct-pack-4bit-sym"));
    let name = ckpt.quantized().next().unwrap().weight();
    let &[outputs, inputs] = ckpt.dequantized().unwrap().tensor(&name).unwrap().shape() else { panic!() };
    let renames = Renames::new().prefix(name.strip_suffix("weight").unwrap(), "");
    let mut first = linear([outputs, inputs], &gpu);
    load(&ckpt).rename(renames).pytorch().keep_quantized().into(&mut first).unwrap();
    let saved = Checkpoint::from_bytes(save(&first).bytes().unwrap()).unwrap();
    let mut second = linear([outputs, inputs], &gpu);
    load(&saved).into(&mut second).unwrap();
    assert!(is_quantised(&second.weight.val()));
    assert!(bits(second.weight.val().dequantize()) == bits(first.weight.val().dequantize()));
}

#[test]
fn quantised_tensors_are_the_weights_on_the_device() {
    let gpu = gpu();
    let mut wrong = Vec::new();
    for (vector_name, reason) in VECTORS {
        let ckpt = vector(vector_name);
        let dense = ckpt.dequantized().unwrap();
        let mut outcomes = Vec::new();
        for module in ckpt.quantized() {
            let name = module.weight();
            let Some(tensor) = dense.tensor(&name) else { continue };
            let &[outputs, inputs] = tensor.shape() else { continue };
            outcomes.push(kept(&ckpt, &name, [outputs, inputs], &gpu).err().unwrap_or_default());
        }
        eprintln!("{vector_name}: {outcomes:?}");
        let is_expected = match reason.is_empty() {
            true => !outcomes.is_empty() && outcomes.iter().all(String::is_empty),
            false => outcomes.iter().any(|own| own.contains(reason)),
        };
        if !is_expected {
            wrong.push(format!("{vector_name}: {outcomes:?}, not {reason:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
