//! Quantised modules in `cast`, `convert --to` and `cat`: as weights, refused, or as codes.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

mod support;

use std::path::Path;

use insta::assert_snapshot;
use support::{Ran, raw_file, weighbridge};
use weighbridge::{Checkpoint, Dtype};

/// The arguments, with `{}` for the directory.
fn run(dir: &Path, arguments: &str) -> Ran {
    let dir = dir.to_str().unwrap();
    weighbridge(arguments.split_whitespace().map(|argument| argument.replace("{}", dir)))
}

fn dtype(location: &Path, name: &str) -> Dtype {
    Checkpoint::open(location).unwrap().tensor(name).unwrap().dtype()
}

/// One FP8 module with block scales, one of GPTQ, and a norm.
fn mixed(file: &Path) {
    let header = r#"{"fc.weight":{"dtype":"F8_E4M3","shape":[2,2],"data_offsets":[0,4]},
        "fc.weight_scale_inv":{"dtype":"F32","shape":[1,1],"data_offsets":[4,8]},
        "norm.weight":{"dtype":"F32","shape":[2],"data_offsets":[8,16]},
        "up.qweight":{"dtype":"I32","shape":[1,2],"data_offsets":[16,24]},
        "up.scales":{"dtype":"F16","shape":[1,2],"data_offsets":[24,28]}}"#;
    raw_file(file, header, &[0x38; 28]);
}

#[test]
fn cast_casts_the_weights_of_quantised_modules() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    mixed(&path("in.safetensors"));
    let cast = |options: &str| {
        run(dir.path(), &format!("cast {{}}/in.safetensors -o {{}}/out.safetensors {options}"))
    };
    // The scale of a module, and 1 in FP8.
    let scale = f32::from_le_bytes([0x38; 4]);
    for options in ["--to f32 --keep up.*", "--to fc.*=f32", "--to f32 --keep up.qweight --keep up.scales"] {
        let ran = cast(options);
        assert_eq!(ran.status, 0, "{options}: {}", ran.stderr);
        assert!(ran.stderr.contains("1 weight dequantised, 0 tensors cast, 3 as before"), "{}", ran.stderr);
        let out = Checkpoint::open(path("out.safetensors")).unwrap();
        let weight = out.read("fc.weight").unwrap();
        assert_eq!(weight.as_bytes(), [scale.to_le_bytes(); 4].concat(), "{options}");
        assert!(out.tensor("fc.weight_scale_inv").is_none());
        assert_eq!((out.tensor("up.qweight").unwrap().dtype(), out.len()), (Dtype::I32, 4));
        std::fs::remove_file(path("out.safetensors")).unwrap();
    }
    // What is not cast stays as it is stored, and what cannot be dequantised is an error.
    cast("--to norm.*=bf16").clean();
    assert_eq!(dtype(&path("out.safetensors"), "fc.weight"), Dtype::F8_E4M3);
    std::fs::remove_file(path("out.safetensors")).unwrap();
    assert_snapshot!(cast("--to bf16").without(dir.path()), @r#"error: [dir]/in.safetensors: tensor "up.qweight": the size of its groups is not in its tensors; quantization_config.group_size would say it; --keep leaves tensors as they are, --quantized raw casts the codes"#);
    for (options, tensor) in
        [("--to *.qweight=f32", "up.qweight"), ("--to bf16 --keep *.weight", "fc.weight_scale_inv")]
    {
        let ran = cast(options);
        assert_eq!(ran.status, 2, "{options}");
        assert!(ran.stderr.contains(&format!("tensor {tensor:?}")), "{options}: {}", ran.stderr);
        assert!(
            ran.stderr.contains("name its weight, ") && ran.stderr.contains("--quantized raw"),
            "{}",
            ran.stderr
        );
    }
    assert!(!path("out.safetensors").exists());
    // Bytes are moved as they are.
    run(dir.path(), "filter {}/in.safetensors --except norm.* -o {}/out.safetensors").clean();
    assert_eq!(dtype(&path("out.safetensors"), "fc.weight"), Dtype::F8_E4M3);
}

#[test]
fn cast_refuses_quantised_modules_if_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    mixed(&path("in.safetensors"));
    let cast = |options: &str| {
        let options = format!("--quantized refuse {options}");
        run(dir.path(), &format!("cast {{}}/in.safetensors -o {{}}/out.safetensors {options}"))
    };
    let ran = cast("--to bf16");
    assert_eq!(ran.status, 2);
    assert_snapshot!(ran.without(dir.path()), @r#"error: [dir]/in.safetensors: tensor "fc.weight": the module "fc" is quantised as FP8 (block scales): "fc.weight" holds codes, not weights, as "fc.weight_scale_inv" shows; so is 1 other module; --quantized dequantize casts the weights, --keep leaves tensors as they are, --quantized raw casts the codes"#);
    // Codes of integers stand for floats, too, and casting scales is no better.
    let fp8 = "tensor \"fc.weight\": the module \"fc\" is quantised as FP8";
    let gptq = "tensor \"up.qweight\": the module \"up\" is quantised as GPTQ";
    for (options, error) in [
        ("--to bf16 --keep fc.*", gptq),
        ("--to f16 --keep fc.*", gptq),
        ("--to *.qweight=f32", gptq),
        ("--to *.weight=f32", fp8),
        ("--to bf16 --keep up.*", fp8),
        ("--to bf16 --dry-run", fp8),
        (
            "--to bf16 --keep fc.weight --keep up.*",
            "tensor \"fc.weight_scale_inv\": the module \"fc\" is quantised",
        ),
        ("--to *.scales=bf16", "tensor \"up.scales\": the module \"up\" is quantised"),
    ] {
        let ran = cast(options);
        assert_eq!(ran.status, 2, "{options}");
        assert!(
            ran.stderr.contains(error) && ran.stderr.contains("--quantized raw"),
            "{options}: {}",
            ran.stderr
        );
        assert!(!path("out.safetensors").exists());
    }
    // What is not quantised is cast.
    for options in ["--to norm.*=bf16", "--to bf16 --keep fc.* --keep up.*"] {
        cast(options).clean();
        assert_eq!(dtype(&path("out.safetensors"), "norm.weight"), Dtype::BF16);
        assert_eq!(dtype(&path("out.safetensors"), "fc.weight"), Dtype::F8_E4M3);
        std::fs::remove_file(path("out.safetensors")).unwrap();
    }
    run(dir.path(), "cast {}/in.safetensors -o {}/out.safetensors --to bf16 --quantized raw").clean();
    assert_eq!(dtype(&path("out.safetensors"), "fc.weight"), Dtype::BF16);
    assert_eq!(dtype(&path("out.safetensors"), "up.qweight"), Dtype::I32);
}

#[test]
fn floats_without_scales_are_cast() {
    let dir = tempfile::tempdir().unwrap();
    let header = r#"{"fc.weight":{"dtype":"F8_E4M3","shape":[2,2],"data_offsets":[0,4]},
        "fc.input_scale":{"dtype":"F32","shape":[],"data_offsets":[4,8]}}"#;
    raw_file(&dir.path().join("in.safetensors"), header, &[0x38; 8]);
    run(dir.path(), "cast {}/in.safetensors --to bf16 -o {}/out.safetensors").clean();
    assert_eq!(dtype(&dir.path().join("out.safetensors"), "fc.weight"), Dtype::BF16);
}

#[test]
fn convert_refuses_quantised_modules() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    mixed(&path("in.safetensors"));
    let export =
        |options: &str| run(dir.path(), &format!("convert {{}}/in.safetensors -o {{}}/out.npz {options}"));
    let ran = export("--only fc.* --to f32 --quantized refuse");
    assert_eq!(ran.status, 2);
    assert!(ran.stderr.contains("FP8 (block scales)"), "{}", ran.stderr);
    assert!(!path("out.npz").exists());
    // Only what is chosen can be refused.
    export("--only norm.* --to f64").clean();
    let arrays = |options: &str| {
        export(&format!("{options} --force")).clean();
        let npz = weighbridge_convert::open(path("out.npz"), &weighbridge_convert::Options::new()).unwrap();
        npz.checkpoint()
            .tensors()
            .map(|tensor| (tensor.name().to_owned(), tensor.dtype()))
            .collect::<Vec<_>>()
    };
    let scale = ("fc.weight_scale_inv".to_owned(), Dtype::F32);
    let weight = ("fc.weight".to_owned(), Dtype::F32);
    assert_eq!(arrays("--only fc.* --to f32"), std::slice::from_ref(&weight));
    let mut raw = arrays("--only fc.* --to f32 --quantized raw");
    raw.sort();
    assert_eq!(raw, [weight, scale]);
    // Quantised tensors of a pickle: the metadata has what their values mean.
    let pickle =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../weighbridge-convert/tests/pickle/quantised.pt");
    let pickle = pickle.to_str().unwrap();
    let convert =
        |options: &str| run(dir.path(), &format!("convert {pickle} -o {{}}/q.safetensors {options}"));
    for options in ["--to *=f32", "--to f16"] {
        let ran = convert(options);
        assert_eq!(ran.status, 2, "{options}");
        assert!(ran.stderr.contains("integer arithmetic"), "{}", ran.stderr);
        assert!(!path("q.safetensors").exists());
    }
    convert("").clean();
    let ran = run(dir.path(), "cast {}/q.safetensors --to a=f32 -o {}/f.safetensors");
    assert!(
        ran.stderr.contains("tensor \"a\"") && ran.stderr.contains("integer arithmetic"),
        "{}",
        ran.stderr
    );
    convert("--to a=f32 --quantized raw --force").clean();
    assert_eq!(dtype(&path("q.safetensors"), "a"), Dtype::F32);
}

#[test]
fn codes_are_not_cast_into_models() {
    let dir = tempfile::tempdir().unwrap();
    let model =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../weighbridge-convert/tests/foreign/inline.onnx");
    let graph = weighbridge_convert::onnx::Graph::open(&model).unwrap();
    let (name, _, shape) = graph
        .initializers()
        .find(|slot| slot.1 == Dtype::F32 && !slot.2.is_empty() && !slot.2.contains(&0))
        .unwrap();
    let len: usize = shape.iter().product();
    let header = format!(
        r#"{{{name:?}:{{"dtype":"F8_E4M3","shape":{shape:?},"data_offsets":[0,{len}]}},
        "{name}_scale":{{"dtype":"F32","shape":[],"data_offsets":[{len},{}]}}}}"#,
        len + 4
    );
    raw_file(&dir.path().join("in.safetensors"), &header, &vec![0x38; len + 4]);
    let model = model.to_str().unwrap();
    let convert = |options: &str| {
        run(
            dir.path(),
            &format!("convert {{}}/in.safetensors --into {model} --cast-into -o {{}}/out.onnx {options}"),
        )
    };
    let out = dir.path().join("out.onnx");
    for how in ["refuse", "raw"] {
        let ran = convert(&format!("--quantized {how}"));
        assert_eq!(ran.status, 2);
        assert!(ran.stderr.contains("FP8") && ran.stderr.contains(name), "{}", ran.stderr);
        assert!(!out.exists());
    }
    // Weights are.
    convert("").clean();
    let written = weighbridge_convert::open(&out, &weighbridge_convert::Options::new()).unwrap();
    let weight = written.checkpoint().read(name).unwrap();
    // The scale is 4.39e-5, rounded to the model's own dtype before it is cast.
    let scale = f32::from_le_bytes([0, 0, 0x38, 0x38]);
    let values = weight.as_bytes().chunks_exact(4).map(|value| f32::from_le_bytes(value.try_into().unwrap()));
    let near = values.filter(|value| (value / scale - 1.0).abs() < 0.01).count();
    assert_eq!(near, len);
}

#[test]
fn what_describes_activations_stays_with_codes() {
    let dir = tempfile::tempdir().unwrap();
    let header = r#"{"fc.weight":{"dtype":"F8_E4M3","shape":[2,2],"data_offsets":[0,4]},
        "fc.weight_scale":{"dtype":"F32","shape":[],"data_offsets":[4,8]},
        "fc.input_scale":{"dtype":"F32","shape":[],"data_offsets":[8,12]},
        "up.weight":{"dtype":"F8_E4M3","shape":[2,2],"data_offsets":[12,16]},
        "up.weight_scale":{"dtype":"F32","shape":[],"data_offsets":[16,20]},
        "up.input_scale":{"dtype":"F32","shape":[],"data_offsets":[20,24]}}"#;
    raw_file(&dir.path().join("in.safetensors"), header, &[0x38; 24]);
    run(dir.path(), "cast {}/in.safetensors --to f16 --keep up.* -o {}/out.safetensors").clean();
    let out = Checkpoint::open(dir.path().join("out.safetensors")).unwrap();
    let mut names: Vec<_> = out.tensors().map(|tensor| tensor.name()).collect();
    names.sort_unstable();
    assert_eq!(names, ["fc.weight", "up.input_scale", "up.weight", "up.weight_scale"]);
    assert_eq!(out.tensor("up.weight_scale").unwrap().dtype(), Dtype::F32);
}

#[test]
fn cat_shows_weights_or_codes() {
    let dir = tempfile::tempdir().unwrap();
    mixed(&dir.path().join("in.safetensors"));
    let cat = |arguments: &str| run(dir.path(), &format!("cat {{}}/in.safetensors {arguments}"));
    cat("norm.weight --to f64").clean();
    assert_eq!(cat("fc.weight[0] --to f32").clean(), "[4.3921376e-05 4.3921376e-05]\n");
    assert_eq!(cat("fc.weight --to f32 --format raw").raw, [[0x38; 4]; 4].concat());
    // Its own dtype is BF16.
    assert_eq!(cat("fc.weight --format raw").raw, [[0x38, 0x38]; 4].concat());
    assert_eq!(cat("fc.weight --format raw --quantized raw").raw, [0x38; 4]);
    assert_eq!(cat("fc.weight[0] --to f32 --quantized raw").clean(), "[1. 1.]\n");
    // Codes by their own name, and what cannot be dequantised.
    assert_eq!(cat("up.qweight --format raw").raw, [0x38; 8]);
    for (arguments, error) in [
        ("up.weight", "the size of its groups"),
        ("up.qweight --to f32", "quantised as GPTQ"),
        ("fc.weight[0] --quantized refuse", "FP8 (block scales)"),
    ] {
        let ran = cat(arguments);
        assert_eq!(ran.status, 2, "{arguments}");
        assert!(ran.stderr.contains(error) && ran.stderr.contains("--quantized raw"), "{}", ran.stderr);
    }
}
