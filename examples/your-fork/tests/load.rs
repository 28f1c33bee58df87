//! The adapter beside the loaders that Candle brings.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use candle_nn::{Module, VarBuilder};
use tempfile::TempDir;
use weighbridge::{Checkpoint, Plan};
use your_fork::{Weights, var_builder};

const DEVICE: Device = Device::Cpu;

/// A directory with a checkpoint of one linear layer in `dtype`, and positions in `I64`.
fn saved(dtype: DType) -> TempDir {
    let values = |count: u32| Tensor::arange(0_u32, count, &DEVICE).unwrap();
    let weight = (values(6).to_dtype(DType::F32).unwrap() / 7.0).unwrap();
    let bias = values(2).to_dtype(dtype).unwrap();
    let tensors = HashMap::from([
        ("layer.weight".to_owned(), weight.reshape((2, 3)).unwrap().to_dtype(dtype).unwrap()),
        ("layer.bias".to_owned(), bias),
        ("positions".to_owned(), values(4).to_dtype(DType::I64).unwrap()),
    ]);
    let dir = tempfile::tempdir().unwrap();
    candle_core::safetensors::save(&tensors, dir.path().join("model.safetensors")).unwrap();
    dir
}

fn opened(dir: &TempDir) -> Checkpoint {
    Checkpoint::open(dir.path()).unwrap()
}

/// Candle's own builder over the same file.
fn candles_own(dir: &TempDir, dtype: DType) -> VarBuilder<'static> {
    let tensors = candle_core::safetensors::load(dir.path().join("model.safetensors"), &DEVICE).unwrap();
    VarBuilder::from_tensors(tensors, dtype, &DEVICE)
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn every_pair_of_float_dtypes_is_what_candle_makes_of_it() {
    let dtypes = [DType::BF16, DType::F16, DType::F32, DType::F64];
    for stored in dtypes {
        let dir = saved(stored);
        for asked in dtypes {
            let ours = var_builder(&opened(&dir), asked, &DEVICE).unwrap().pp("layer");
            let theirs = candles_own(&dir, asked).pp("layer");
            let (ours, theirs) = (ours.get((2, 3), "weight").unwrap(), theirs.get((2, 3), "weight").unwrap());
            assert_eq!(ours.dtype(), asked);
            assert_eq!(numbers(&ours), numbers(&theirs), "{stored:?} as {asked:?}");
        }
    }
}

#[test]
fn a_layer_is_built_and_run() {
    let dir = saved(DType::BF16);
    let input = Tensor::new(&[[1_f32, 2.0, 3.0]], &DEVICE).unwrap();
    let run = |vb: VarBuilder<'_>| candle_nn::linear(3, 2, vb.pp("layer")).unwrap().forward(&input).unwrap();
    let ours = run(var_builder(&opened(&dir), DType::F32, &DEVICE).unwrap());
    assert_eq!(numbers(&ours), numbers(&run(candles_own(&dir, DType::F32))));
}

#[test]
fn another_dtype_than_the_builder_s() {
    let dir = saved(DType::F32);
    let vb = var_builder(&opened(&dir), DType::F16, &DEVICE).unwrap();
    for dtype in [DType::I64, DType::U32, DType::U8, DType::F64] {
        let positions = vb.to_dtype(dtype).get(4, "positions").unwrap();
        assert_eq!(positions.dtype(), dtype);
        assert_eq!(numbers(&positions), [0.0, 1.0, 2.0, 3.0]);
    }
}

#[test]
fn a_plan_of_one_s_own() {
    let dir = saved(DType::F32);
    let ckpt = opened(&dir);
    let plan = Plan::of(&ckpt)
        .filter(|tensor| tensor.name().starts_with("layer."))
        .rename(|name| name.replace("layer.", "mlp.down_proj."))
        .build()
        .unwrap();
    let vb = VarBuilder::from_backend(Box::new(Weights::new(plan).unwrap()), DType::F32, DEVICE);
    assert!(vb.contains_tensor("mlp.down_proj.weight"));
    assert!(!vb.contains_tensor("layer.weight") && !vb.contains_tensor("positions"));
    assert_eq!(numbers(&vb.get(2, "mlp.down_proj.bias").unwrap()), [0.0, 1.0]);
}

#[test]
fn errors_name_the_tensor() {
    let dir = saved(DType::F32);
    let vb = var_builder(&opened(&dir), DType::F32, &DEVICE).unwrap();
    let missing = vb.get(2, "layer.scale").unwrap_err().to_string();
    assert!(missing.contains("cannot find tensor layer.scale"), "{missing}");
    let shape = vb.get((3, 2), "layer.weight").unwrap_err().to_string();
    assert!(
        shape.contains("layer.weight") && shape.contains("[3, 2]") && shape.contains("[2, 3]"),
        "{shape}"
    );
}

#[test]
fn quantised_checkpoints_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let zeros = |len: usize, dtype| Tensor::zeros(len, dtype, &DEVICE).unwrap();
    let tensors = HashMap::from([
        ("up.weight".to_owned(), zeros(64, DType::U8)),
        ("up.weight.absmax".to_owned(), zeros(2, DType::F32)),
        ("up.weight.quant_map".to_owned(), zeros(16, DType::F32)),
    ]);
    candle_core::safetensors::save(&tensors, dir.path().join("model.safetensors")).unwrap();
    let error = var_builder(&opened(&dir), DType::F32, &DEVICE).err().unwrap().to_string();
    assert!(error.contains("quantised") && error.contains("\"up\""), "{error}");
}

#[cfg(feature = "get_unchecked")]
#[test]
fn without_a_shape() {
    let dir = saved(DType::BF16);
    let vb = var_builder(&opened(&dir), DType::F32, &DEVICE).unwrap();
    assert_eq!(vb.get_unchecked("layer.weight").unwrap().dims(), [2, 3]);
}

/// The page shows the file as it is compiled here.
#[test]
fn the_guide_shows_this_file() {
    let adapter = include_str!("../src/lib.rs").split("#[cfg(test)]").next().unwrap().trim_end();
    let guide = include_str!("../../../docs/book/src/your-fork.md");
    assert!(
        guide.contains(adapter),
        "copy examples/your-fork/src/lib.rs into docs/book/src/your-fork.md, without its tests"
    );
}
