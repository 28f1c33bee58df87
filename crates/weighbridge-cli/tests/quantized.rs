//! `cast`, `convert --to` and `cat --to` refuse the codes of quantised modules.

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
fn cast_refuses_quantised_modules() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    mixed(&path("in.safetensors"));
    let cast = |options: &str| {
        run(dir.path(), &format!("cast {{}}/in.safetensors -o {{}}/out.safetensors {options}"))
    };
    let ran = cast("--to bf16");
    assert_eq!(ran.status, 2);
    assert_snapshot!(ran.without(dir.path()), @r#"error: [dir]/in.safetensors: tensor "fc.weight": the module "fc" is quantised as FP8 (block scales): "fc.weight" holds codes, not weights, as "fc.weight_scale_inv" shows; so is 1 other module; --keep leaves tensors as they are, --quantized raw casts the codes"#);
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
    cast("--to bf16 --quantized raw").clean();
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
    let ran = export("--only fc.* --to f32");
    assert_eq!(ran.status, 2);
    assert!(ran.stderr.contains("FP8 (block scales)"), "{}", ran.stderr);
    assert!(!path("out.npz").exists());
    // Only what is chosen can be refused.
    export("--only norm.* --to f64").clean();
    export("--only fc.* --to f32 --quantized raw --force").clean();
    // Quantised tensors of a pickle: the metadata has what their values mean.
    let pickle =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../weighbridge-convert/tests/pickle/quantised.pt");
    let pickle = pickle.to_str().unwrap();
    let convert =
        |options: &str| run(dir.path(), &format!("convert {pickle} -o {{}}/q.safetensors {options}"));
    for options in ["--to *=f32", "--to f16"] {
        let ran = convert(options);
        assert_eq!(ran.status, 2, "{options}");
        assert!(ran.stderr.contains("PyTorch quantised tensor"), "{}", ran.stderr);
        assert!(!path("q.safetensors").exists());
    }
    convert("").clean();
    let ran = run(dir.path(), "cast {}/q.safetensors --to a=f32 -o {}/f.safetensors");
    assert!(ran.stderr.contains("tensor \"a\"") && ran.stderr.contains("PyTorch"), "{}", ran.stderr);
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
    let ran =
        run(dir.path(), &format!("convert {{}}/in.safetensors --into {model} --cast-into -o {{}}/out.onnx"));
    assert_eq!(ran.status, 2);
    assert!(ran.stderr.contains("FP8") && ran.stderr.contains(name), "{}", ran.stderr);
    assert!(!dir.path().join("out.onnx").exists());
}

#[test]
fn cat_shows_codes_and_does_not_cast_them() {
    let dir = tempfile::tempdir().unwrap();
    mixed(&dir.path().join("in.safetensors"));
    run(dir.path(), "cat {}/in.safetensors fc.weight").clean();
    run(dir.path(), "cat {}/in.safetensors norm.weight --to f64").clean();
    let ran = run(dir.path(), "cat {}/in.safetensors fc.weight[0] --to f32");
    assert_eq!(ran.status, 2);
    assert!(
        ran.stderr.contains("FP8 (block scales)") && ran.stderr.contains("--quantized raw"),
        "{}",
        ran.stderr
    );
    assert_eq!(
        run(dir.path(), "cat {}/in.safetensors fc.weight[0] --to f32 --quantized raw").clean(),
        "[1. 1.]\n"
    );
}
