//! What is found to be quantised, and what only looks like it.

mod methods;

use std::fmt::Write as _;

use super::{QuantMethod, QuantMethod as M};
use crate::checkpoint::Checkpoint;
use crate::dtype::Dtype;

type Tensor<'a> = (&'a str, &'a str, &'a [usize]);

/// A file with those tensors, whose bytes are 0, and that metadata.
fn file(tensors: &[Tensor<'_>], metadata: &[(&str, &str)]) -> Vec<u8> {
    let mut header = format!(
        "{{\"__metadata__\":{}",
        serde_json::json!(metadata.iter().copied().collect::<std::collections::BTreeMap<_, _>>())
    );
    let mut end = 0;
    for (name, dtype, shape) in tensors {
        let start = end;
        end += dtype.parse::<Dtype>().unwrap().size_of(shape).unwrap();
        write!(
            header,
            ",{name:?}:{{\"dtype\":{dtype:?},\"shape\":{shape:?},\"data_offsets\":[{start},{end}]}}"
        )
        .unwrap();
    }
    header.push('}');
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.bytes());
    bytes.resize(bytes.len() + end as usize, 0);
    bytes
}

fn checkpoint(tensors: &[Tensor<'_>]) -> Checkpoint {
    Checkpoint::from_bytes(file(tensors, &[])).unwrap()
}

/// What is found: method, module, weight, and the tensors with codes.
fn found(ckpt: &Checkpoint) -> Vec<(QuantMethod, String, String, Vec<String>)> {
    let modules = ckpt.quantized().map(|module| {
        let codes = module.codes().map(|tensor| tensor.name().to_owned()).collect();
        (module.method(), module.name().to_owned(), module.weight(), codes)
    });
    modules.collect()
}

/// One module of that method, with that weight, whose codes are the first tensors.
#[track_caller]
fn finds(method: QuantMethod, weight: &str, codes: usize, tensors: &[Tensor<'_>]) {
    let dense: [Tensor<'_>; 3] = [
        ("model.norm.weight", "BF16", &[8]),
        ("model.embed_tokens.weight", "BF16", &[8, 64]),
        ("model.steps", "I64", &[2]),
    ];
    let mut reversed = [&dense[..], tensors].concat();
    reversed.reverse();
    for tensors in [[&dense[..], tensors].concat(), reversed] {
        let ckpt = checkpoint(&tensors);
        let all = found(&ckpt);
        assert_eq!(all.len(), 1, "{all:?}");
        assert_eq!((all[0].0, &*all[0].2), (method, weight));
    }
    let all = found(&checkpoint(tensors));
    let expected: Vec<_> = tensors[..codes].iter().map(|tensor| tensor.0).collect();
    assert_eq!(all[0].3, expected);
    // All its tensors are known, each once.
    let ckpt = checkpoint(tensors);
    let module = ckpt.quantized().next().unwrap();
    let mut names: Vec<_> = module.tensors().map(|tensor| tensor.name()).collect();
    names.sort_unstable();
    let mut once = names.clone();
    once.dedup();
    assert_eq!(names, once);
    assert_eq!(ckpt.quantized_weight(weight).unwrap().method(), method);
    for (at, (name, ..)) in tensors.iter().enumerate() {
        assert_eq!(ckpt.quantized_codes(name).is_some(), at < codes, "{name}");
    }
}

#[track_caller]
fn finds_nothing(tensors: &[Tensor<'_>]) {
    assert_eq!(found(&checkpoint(tensors)), []);
}

#[test]
fn some_are_declared_in_the_metadata() {
    let tensors: &[Tensor<'_>] = &[
        ("a", "I32", &[4, 8]),
        ("b", "U8", &[9]),
        ("c.weight", "I8", &[4, 8]),
        ("d", "F32", &[2]),
        ("e.weight", "BF16", &[2]),
        ("f", "U8", &[4]),
    ];
    let metadata = [
        ("onnx.packed.f", "INT4 [7]"),
        ("a.quantization", r#"{"dtype":"qint32","scale":0.5,"zero_point":0}"#),
        ("d.quantization", "{}"),
        ("b.quantization", "none"),
        ("gone.quantization", "{}"),
        ("weighbridge.burn.quantised", r#"{"b":{"shape":[9],"scheme":{}},"d":0,"gone":0}"#),
        ("_quantization_metadata", r#"{"format_version":"1.0","layers":{"c":{"format":"int8"},"e":{}}}"#),
    ];
    let ckpt = Checkpoint::from_bytes(file(tensors, &metadata)).unwrap();
    let mut all: Vec<_> = found(&ckpt).into_iter().map(|found| (found.1, found.0)).collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    let expected = [("a", M::PyTorch), ("b", M::Burn), ("c", M::ComfyUi), ("f", M::Onnx)];
    assert_eq!(all, expected.map(|(name, method)| (name.to_owned(), method)));
    // Malformed metadata is ignored.
    for text in ["", "[", "{", r#"{"layers":7}"#, r#"{"layers":{"c"}}"#, r#"{"b"}"#] {
        let metadata = [("weighbridge.burn.quantised", text), ("_quantization_metadata", text)];
        assert_eq!(found(&Checkpoint::from_bytes(file(tensors, &metadata)).unwrap()), [], "{text}");
    }
}

#[test]
fn ordinary_tensors_are_left_alone() {
    finds_nothing(&[]);
    // 8-bit floats without a scale are numbers.
    finds_nothing(&[
        ("m.weight", "F8_E4M3", &[4, 8]),
        ("m.bias", "F8_E4M3", &[4]),
        ("m.input_scale", "F32", &[]),
    ]);
    finds_nothing(&[
        ("m.weight", "F8_E5M2", &[4, 8]),
        ("k.weight_scale", "F32", &[]),
        ("scaled_fp8", "F8_E4M3", &[0]),
    ]);
    // Dense weights beside scales of all kinds.
    for dtype in ["F16", "BF16", "F32", "F64"] {
        for scale in [
            "weight_scale",
            "weight_scale_inv",
            "scale",
            "scales",
            "SCB",
            "scale_weight",
            "biases",
            "absmax",
            "weight.scale",
        ] {
            finds_nothing(&[("m.weight", dtype, &[4, 8]), (&format!("m.{scale}"), "F32", &[4])]);
        }
        finds_nothing(&[("m.qweight", dtype, &[4, 8]), ("m.scales", "F16", &[4, 8])]);
        finds_nothing(&[("m.weight_packed", dtype, &[4, 8]), ("m.weight_scale", "F16", &[4, 8])]);
        finds_nothing(&[("m.x_blocks", dtype, &[4, 8]), ("m.x_scales", "U8", &[4])]);
        finds_nothing(&[("m.weight", dtype, &[4, 8]), ("m.comfy_quant", "U8", &[4])]);
        finds_nothing(&[("m.codes", dtype, &[4, 8, 1]), ("m.codebooks", "F16", &[4, 8, 1, 1])]);
    }
    // Parameters and buffers that are called so.
    finds_nothing(&[
        ("logit_scale", "F32", &[]),
        ("m.layer_scale", "F32", &[8]),
        ("m.weight_scale", "F32", &[8]),
        ("m.logit", "F32", &[]),
    ]);
    finds_nothing(&[("m.scales", "F32", &[8]), ("m.biases", "F32", &[8]), ("m.weight", "F32", &[8, 8])]);
    finds_nothing(&[("m.weight", "U32", &[4, 8]), ("m.scales", "F32", &[7])]);
    finds_nothing(&[("m.weight", "U32", &[4, 8]), ("m.scales", "I32", &[4, 1])]);
    finds_nothing(&[("m.weight", "U32", &[4, 8]), ("m.biases", "F32", &[4, 1])]);
    finds_nothing(&[("m.weight", "I32", &[4, 8]), ("m.scales", "F32", &[4, 1])]);
    finds_nothing(&[("m.text_blocks", "U8", &[4, 8]), ("m.image_scales", "U8", &[4])]);
    finds_nothing(&[("m.x_blocks", "U8", &[4]), ("m.x_scales", "U8", &[4])]);
    finds_nothing(&[("m.x_blocks", "U8", &[4, 8]), ("m.x_scales", "F32", &[4])]);
    finds_nothing(&[("m.weight", "U8", &[4, 8]), ("m.SCB", "F32", &[4])]);
    finds_nothing(&[("m.norm.weight", "F8_E4M3", &[8]), ("m.norm.scale", "F8_E4M3", &[8])]);
    finds_nothing(&[("m.weight", "F8_E4M3", &[4, 8]), ("m.scale", "F32", &[5])]);
    finds_nothing(&[("mask", "U8", &[8]), ("mask_scale", "F32", &[])]);
    finds_nothing(&[("edges", "I32", &[4, 2]), ("edges_scale", "F32", &[])]);
    finds_nothing(&[("ids", "I64", &[4, 8]), ("ids_scale", "F32", &[])]);
    finds_nothing(&[("m.mask", "BOOL", &[4, 8]), ("m.mask_scale", "F32", &[])]);
    finds_nothing(&[("m.B", "I32", &[4, 8]), ("m.s", "F32", &[4, 8])]);
    finds_nothing(&[
        ("packing", "U8", &[4]),
        ("nbits", "I32", &[1]),
        ("indices", "I64", &[4]),
        ("centroids", "F32", &[4, 2]),
    ]);
    finds_nothing(&[("m.position_ids", "I64", &[1, 8]), ("m.num_batches_tracked", "I64", &[])]);
}

#[test]
fn companions_lie_in_other_shards() {
    let dir = tempfile::tempdir().unwrap();
    let shard = |number: usize| dir.path().join(format!("model-0000{number}-of-00002.safetensors"));
    std::fs::write(shard(1), file(&[("m.weight_scale_inv", "F32", &[1, 1])], &[])).unwrap();
    std::fs::write(shard(2), file(&[("m.weight", "F8_E4M3", &[4, 8])], &[])).unwrap();
    let ckpt = Checkpoint::open(dir.path()).unwrap();
    let module = ckpt.quantized_codes("m.weight").unwrap();
    assert_eq!((module.name(), module.tensors().count()), ("m", 2));
    let error = module.refusal("m.weight", "do something else");
    let text = error.to_string();
    assert!(text.starts_with(&*shard(2).to_string_lossy()), "{text}");
    let expected = "tensor \"m.weight\": the module \"m\" is quantised as FP8 (block scales): \"m.weight\" holds codes, not weights, as \"m.weight_scale_inv\" shows; do something else";
    assert!(text.ends_with(expected), "{text}");
}

#[test]
fn modules_without_a_name() {
    let ckpt = checkpoint(&[("qweight", "I32", &[4, 8]), ("scales", "F16", &[1, 8])]);
    assert_eq!(
        found(&ckpt),
        [(M::Gptq, "qweight".to_owned(), "weight".to_owned(), vec!["qweight".to_owned()])]
    );
    assert!(ckpt.quantized_weight("weight").is_some() && ckpt.quantized_weight("é").is_none());
}

#[test]
fn weights_that_are_made_are_in_no_file_of_their_own() {
    let stored = checkpoint(&[("up.weight", "I8", &[2, 32]), ("up.weight_scale", "BF16", &[2, 1])]);
    assert_eq!(stored.file_count(), 1);
    let dense = stored.dequantized().unwrap();
    assert_eq!(dense.tensor("up.weight").map(|weight| weight.dtype()), Some(Dtype::BF16));
    assert_eq!((dense.shards().len(), dense.file_count()), (2, 1));
}
