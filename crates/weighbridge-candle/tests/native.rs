//! Weights that stay quantised against the dense ones: every block's numbers bit for bit, and what is
//! multiplied by them.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::Content;
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Module, Tensor};
use weighbridge::source::{FileSource, SourceReader};
use weighbridge::{Checkpoint, ErrorKind, LoadOptions, Names, Slice};
use weighbridge_candle::{Loader, Weight, open};

fn vectors() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/quantized/vectors")
}

fn vector(name: &str) -> Checkpoint {
    Checkpoint::open(vectors().join(name).join("checkpoint")).unwrap()
}

fn gguf(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gguf").join(name)
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    let values = tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    // Nothing tells NaN from NaN.
    values.iter().map(|value| if value.is_nan() { u32::MAX } else { value.to_bits() }).collect()
}

/// Multiplies by a matrix of blocks and by its dense twin; the results may differ as far as activations of 8
/// bits do.
fn multiply(blocks: &QTensor, weight: &Weight, dense: &Tensor) -> Result<(), String> {
    let (rows, columns) = dense.dims2().unwrap();
    // Debug builds of Candle's kernels assert that these have pairs of blocks, which they make no use of.
    let in_pairs = [GgmlDType::Q4_1, GgmlDType::Q5_0, GgmlDType::Q5_1].contains(&blocks.dtype());
    if cfg!(debug_assertions) && in_pairs && columns % 64 != 0 {
        return Ok(());
    }
    let x: Vec<f32> = (0..4 * columns).map(|at| ((at * 37 + 11) % 101) as f32 / 50.0 - 1.0).collect();
    let x = Tensor::from_vec(x, (4, columns), &Device::Cpu).unwrap();
    let ours = weight.matmul().unwrap().forward(&x).unwrap().to_vec2::<f32>().unwrap();
    let its = x.matmul(&dense.t().unwrap()).unwrap().to_vec2::<f32>().unwrap();
    let sizes = dense.abs().unwrap().sum(1).unwrap().to_vec1::<f32>().unwrap();
    // K-quants take activations with one scale for 256 numbers, the others for 32; all are at most 1, half a
    // step of 127 is lost, and scales are F16.
    let lost = 1.0 / 254.0 + 1.0 / 1024.0;
    for token in 0..4 {
        for row in 0..rows {
            let (ours, its, most) = (ours[token][row], its[token][row], sizes[row] * lost + 1e-5);
            if (ours - its).abs() > most {
                return Err(format!("{:?}: row {row}: {ours} is not {its}, {most} off", blocks.dtype()));
            }
        }
    }
    Ok(())
}

/// What the weights of a vector become: types of blocks, and why others are dense.
fn natively(case: &Path) -> Result<(Vec<GgmlDType>, Vec<String>), String> {
    let ckpt = Checkpoint::open(case.join("checkpoint")).map_err(|error| error.to_string())?;
    let loader = || Loader::new(&ckpt).dtype(DType::F32);
    let loaded = loader().dense_where_needed().load_quantized().map_err(|error| error.to_string());
    let dense = match loader().load() {
        Ok(dense) => dense.tensors,
        // What is refused is refused either way.
        Err(error) if loaded.as_ref().err() == Some(&error.to_string()) => {
            return Ok((Vec::new(), Vec::new()));
        }
        Err(error) => return Err(error.to_string()),
    };
    let loaded = loaded?;
    let reasons: Vec<_> = loaded.dense.iter().map(|dense| dense.reason.clone()).collect();
    // Without leave, the first of them is an error that says the same and names the tensor.
    match loader().load_quantized() {
        Ok(_) if !reasons.is_empty() => return Err("nothing was refused".to_owned()),
        Err(error) => {
            let known = reasons.iter().any(|reason| error.to_string().contains(reason));
            if !known || error.tensor().is_none() || error.kind() != ErrorKind::Unsupported {
                return Err(format!("{error}: not one of {reasons:?}"));
            }
        }
        Ok(_) => {}
    }
    if loaded.tensors.len() != dense.len() {
        return Err(format!("{} tensors, not {}", loaded.tensors.len(), dense.len()));
    }
    let mut types = Vec::new();
    for (name, dense) in &dense {
        let weight = loaded.tensors.get(name).ok_or_else(|| format!("{name} is missing"))?;
        if weight.shape() != dense.shape() || bits(&weight.tensor().unwrap()) != bits(dense) {
            return Err(format!("{name} differs"));
        }
        let Some(blocks) = weight.blocks() else { continue };
        types.push(blocks.dtype());
        if dense.rank() == 2 && bits(dense).iter().all(|&bits| f32::from_bits(bits).is_finite()) {
            multiply(blocks, weight, dense).map_err(|error| format!("{name}: {error}"))?;
        }
    }
    types.sort_by_key(|dtype| format!("{dtype:?}"));
    types.dedup();
    Ok((types, reasons))
}

/// What becomes of some of the vectors: the types of their blocks, and why weights are dense.
const EXPECTED: &[(&str, &[GgmlDType], &str)] = &[
    ("awq-gemm-g128", &[GgmlDType::Q5_0], ""),
    ("awq-gemv-g64", &[GgmlDType::Q5_0], ""),
    ("awq-no-qzeros", &[GgmlDType::Q4_0], ""),
    ("bnb-nf4", &[], "floating-point numbers"),
    ("ct-int8-channel-sym", &[GgmlDType::Q8_0], ""),
    ("ct-int8-group-asym", &[], "zero points are not all in the middle"),
    ("ct-int8-tensor-sym", &[GgmlDType::Q8_0], ""),
    ("ct-mixed", &[GgmlDType::Q4_0], "floating-point numbers"),
    ("ct-pack-8bit-channel-sym", &[], "rows of 77 weights"),
    ("ct-pack-3bit-asym", &[GgmlDType::Q4_0], ""),
    ("ct-pack-4bit-experts", &[GgmlDType::Q4_0], ""),
    ("ct-pack-4bit-shards", &[GgmlDType::Q5_0], ""),
    ("ct-pack-4bit-sym", &[GgmlDType::Q4_0], ""),
    ("ct-pack-5bit-sym", &[GgmlDType::Q5_0], ""),
    ("ct-pack-7bit-asym", &[GgmlDType::Q8_0], ""),
    ("ct-pack-8bit-sym", &[GgmlDType::Q8_0], ""),
    ("fp8-block", &[], "floating-point numbers"),
    ("gptq-4bit-v1-asym", &[GgmlDType::Q5_0], ""),
    ("gptq-4bit-v1-sym", &[GgmlDType::Q4_0], ""),
    ("gptq-4bit-v1-sym-act", &[], "act-order"),
    ("gptq-4bit-v2-sym", &[GgmlDType::Q4_0], ""),
    ("gptq-8bit-v1-sym", &[GgmlDType::Q8_0], ""),
    ("gptq-dynamic", &[GgmlDType::Q4_0, GgmlDType::Q8_0], ""),
    ("hqq-axis1", &[], "zero points are floating-point numbers"),
    ("mlx-affine-3bit-g32", &[GgmlDType::Q4_1], ""),
    ("mlx-affine-4bit-g128", &[GgmlDType::Q4_1], ""),
    ("mlx-affine-4bit-g64", &[], "the scale of columns 0 to 31 of row 0, 1.7620571e-2, is no F16"),
    ("mlx-affine-5bit-g32", &[GgmlDType::Q5_1], ""),
    ("mlx-affine-8bit-g32", &[], "codes of 8 bits have a bias"),
    ("mlx-nvfp4", &[], "floating-point numbers"),
    ("modelopt-int4-awq-pre-quant-scale", &[], "each of its columns has a factor"),
    ("quanto-int4", &[], "not integers times one scale"),
    ("torchao-int8-bfloat16", &[GgmlDType::Q8_0], ""),
];

#[test]
fn blocks_are_the_weights_of_every_method() {
    let mut found = BTreeMap::new();
    let mut wrong = Vec::new();
    for entry in fs::read_dir(vectors()).unwrap() {
        let case = entry.unwrap().path();
        let name = case.file_name().unwrap().to_str().unwrap().to_owned();
        match natively(&case) {
            Ok(outcome) => drop(found.insert(name, outcome)),
            Err(error) => wrong.push(format!("{name}: {error}")),
        }
    }
    for (name, types, reason) in EXPECTED {
        let (own, reasons) = &found[*name];
        let has_reason =
            reasons.iter().any(|own| own.contains(reason)) || reason.is_empty() && reasons.is_empty();
        if own != types || !has_reason {
            wrong.push(format!("{name}: {own:?} {reasons:?}, not {types:?} {reason:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn tiles_may_end_within_blocks() {
    for name in [
        "gptq-4bit-v1-sym",
        "awq-gemm-g32",
        "ct-pack-8bit-sym",
        "mlx-affine-5bit-g32",
        "ct-pack-4bit-experts",
    ] {
        let ckpt = vector(name);
        let load =
            |options: LoadOptions| Loader::new(&ckpt).options(options).load_quantized().unwrap().tensors;
        let whole = load(LoadOptions::new());
        let small = load(LoadOptions::new().chunk(1).threads(3));
        assert_eq!(whole.len(), small.len());
        for (name, weight) in &whole {
            if let (Some(whole), Some(small)) = (weight.blocks(), small[name].blocks()) {
                assert_eq!(whole.data().unwrap(), small.data().unwrap(), "{name}");
            }
        }
    }
}

#[test]
fn rules_count_for_quantised_weights() {
    let ckpt = vector("gptq-4bit-v1-sym");
    let all = Loader::new(&ckpt).dtype(DType::BF16).load_quantized().unwrap();
    let quantised = |(_, weight): &(&String, &Weight)| weight.blocks().is_some();
    let (name, weight) = all.tensors.iter().find(quantised).unwrap();
    let shape = weight.shape().dims().to_vec();
    for weight in all.tensors.values().filter(|weight| weight.blocks().is_none()) {
        assert_eq!(weight.tensor().unwrap().dtype(), DType::BF16);
    }

    let named = Names::exact(name.as_str());
    let renamed =
        Loader::new(&ckpt).only(named.clone()).rename(weighbridge::Renames::new().prefix("model.", "m."));
    let renamed = renamed.load_quantized().unwrap().tensors;
    let new_name = name.replacen("model.", "m.", 1);
    assert_eq!(
        renamed[&new_name].blocks().unwrap().data().unwrap(),
        weight.blocks().unwrap().data().unwrap()
    );
    assert_eq!(renamed.len(), 1);

    let dense =
        |loader: Loader| match loader.only(named.clone()).load_quantized().unwrap().tensors.remove(name) {
            Some(Weight::Dense(tensor)) => tensor,
            other => panic!("{other:?}"),
        };
    let cast = dense(Loader::new(&ckpt).dtype_for(named.clone(), DType::F16));
    assert_eq!((cast.dtype(), cast.dims()), (DType::F16, &*shape));
    let part = dense(Loader::new(&ckpt).dtype(DType::F32).part_for(named.clone(), Slice::along(0, 1..3)));
    let whole = weight.tensor().unwrap();
    assert_eq!(bits(&part), bits(&whole.narrow(0, 1, 2).unwrap()));
}

#[test]
fn weights_are_found_by_name() {
    let ckpt = vector("gptq-4bit-v1-sym");
    let loaded = Loader::new(&ckpt).dtype(DType::F16).load_quantized().unwrap();
    let names: Vec<String> = loaded.tensors.keys().cloned().collect();
    let vb = loaded.var_builder(&Device::Cpu);
    for name in &names {
        let (module, last) = name.rsplit_once('.').unwrap();
        let module = vb.pp(module);
        assert!(module.contains_key(last) && !module.contains_key("none"));
        let blocks = module.get_no_shape(last).unwrap();
        assert_eq!(module.get(blocks.shape(), last).unwrap().shape(), blocks.shape());
        let error = module.get((1, 2, 3), last).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("[1, 2, 3]"), "{error}");
        // What is dense keeps its numbers.
        let weight = module.weight(blocks.shape(), last).unwrap();
        assert_eq!(bits(&blocks.dequantize(&Device::Cpu).unwrap()), bits(&weight.tensor().unwrap()));
        let is_dense = weight.blocks().is_none();
        assert_eq!(blocks.dtype() == GgmlDType::F16, is_dense);
    }
    let error = vb.get_no_shape(&format!("{}s", names[0])).unwrap_err().to_string();
    assert!(error.contains("did you mean"), "{error}");
}

/// The tensors of a GGUF file as Candle's own reader has them.
fn of_candle(reader: &mut (impl std::io::Read + std::io::Seek)) -> BTreeMap<String, QTensor> {
    let content = Content::read(reader).unwrap();
    let names: Vec<_> = content.tensor_infos.keys().cloned().collect();
    names
        .into_iter()
        .map(|name| (name.clone(), content.tensor(reader, &name, &Device::Cpu).unwrap()))
        .collect()
}

#[test]
fn gguf_is_what_candle_reads() {
    let expected = of_candle(&mut fs::File::open(gguf("types.gguf")).unwrap());
    let loaded = Loader::new(&open(gguf("types.gguf")).unwrap()).load_quantized().unwrap();
    assert_eq!(loaded.tensors.len(), expected.len());
    assert!(loaded.dense.is_empty() && loaded.skipped.is_empty(), "{:?}", loaded.dense);
    let mut types = Vec::new();
    for (name, expected) in &expected {
        let weight = &loaded.tensors[name];
        let ours = weight.qtensor().unwrap();
        assert_eq!((ours.dtype(), ours.shape()), (expected.dtype(), expected.shape()), "{name}");
        assert_eq!(ours.data().unwrap(), expected.data().unwrap(), "{name}");
        let is_plain = matches!(ours.dtype(), GgmlDType::F32 | GgmlDType::F16 | GgmlDType::BF16);
        assert_eq!(weight.blocks().is_none(), is_plain, "{name}");
        types.push(ours.dtype());
        if !is_plain {
            let dense = weight.tensor().unwrap().to_dtype(DType::F32).unwrap();
            multiply(&ours, weight, &dense).unwrap();
        }
    }
    assert_eq!(types.len(), 14);
}

#[test]
fn blocks_are_found_behind_prefixes() {
    let gptq = vector("gptq-4bit-v1-sym");
    let model = Checkpoint::union([
        ("a.", open(gguf("types.gguf")).unwrap()),
        ("b.", open(gguf("types.gguf")).unwrap()),
    ]);
    let loaded = Loader::new(&model.unwrap()).load_quantized().unwrap().tensors;
    let alone = Loader::new(&open(gguf("types.gguf")).unwrap()).load_quantized().unwrap().tensors;
    assert_eq!(loaded.len(), 2 * alone.len());
    for (name, weight) in &alone {
        for prefix in ["a.", "b."] {
            let prefixed = &loaded[&format!("{prefix}{name}")];
            let data = |weight: &Weight| weight.blocks().map(|blocks| blocks.data().unwrap().into_owned());
            assert_eq!(data(prefixed), data(weight), "{prefix}{name}");
        }
    }
    let both = Checkpoint::union([("", gptq), ("gguf.", open(gguf("types.gguf")).unwrap())]).unwrap();
    let loaded = Loader::new(&both).load_quantized().unwrap().tensors;
    let q4_0 = loaded.values().filter_map(Weight::blocks).filter(|blocks| blocks.dtype() == GgmlDType::Q4_0);
    assert_eq!(q4_0.count(), 2, "one of each");
}

#[test]
fn candle_reads_gguf_from_any_source() {
    let path = gguf("types.gguf");
    let expected = of_candle(&mut fs::File::open(&path).unwrap());
    let ours = of_candle(&mut SourceReader::new(FileSource::open(&path).unwrap()));
    assert_eq!(ours.len(), expected.len());
    for (name, expected) in &expected {
        assert_eq!(ours[name].data().unwrap(), expected.data().unwrap(), "{name}");
    }
}

#[test]
fn types_that_candle_lacks_are_refused_by_name_or_dense() {
    let ckpt = open(gguf("others.gguf")).unwrap();
    let error = Loader::new(&ckpt).load_quantized().unwrap_err();
    assert_eq!((error.kind(), error.tensor()), (ErrorKind::Unsupported, Some("blk.0.iq4_nl.weight")));
    assert!(error.message().starts_with("Candle has no IQ4_NL; `Loader::dense_where_needed()`"), "{error}");

    let loaded = Loader::new(&ckpt).dtype(DType::F16).dense_where_needed().load_quantized().unwrap();
    let dense: Vec<_> = loaded.dense.iter().map(|dense| (&*dense.name, &*dense.reason)).collect();
    let expected = [
        ("blk.0.iq4_nl.weight", "Candle has no IQ4_NL"),
        ("blk.0.iq4_xs.weight", "Candle has no IQ4_XS"),
        ("blk.0.tq2_0.weight", "Candle has no TQ2_0"),
    ];
    assert_eq!(dense, expected);
    assert_eq!(loaded.tensors["blk.0.q4_0.weight"].blocks().unwrap().dtype(), GgmlDType::Q4_0);
    let values = Loader::new(&ckpt).dtype(DType::F16).load().unwrap().tensors;
    for (name, _) in expected {
        assert_eq!(bits(&loaded.tensors[name].tensor().unwrap()), bits(&values[name]));
    }
}
