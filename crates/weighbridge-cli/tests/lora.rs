//! `lora merge` and `lora info`; `.ci/oracle/adapters.py` holds them against PEFT.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

mod support;

use std::fs;
use std::path::Path;

use serde_json::Value;
use support::{Ran, weighbridge};
use weighbridge::Checkpoint;
use weighbridge::write::{Save, Values};

fn write(path: &Path, tensors: &[(&str, &[usize], &[f32])]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let values = tensors.iter().map(|(name, shape, values)| (*name, Values::new(shape, values).unwrap()));
    Save::new().file(path, values).unwrap();
}

/// A model of two layers, and an adapter of PEFT's for one of them, whose alpha is twice its rank.
fn both(dir: &Path) {
    let base = [("model.a.weight", &[2, 3][..], &[1.0_f32; 6][..]), ("model.b.weight", &[2, 2], &[7.0; 4])];
    write(&dir.join("base/model.safetensors"), &base);
    fs::write(dir.join("base/config.json"), r#"{"model_type": "x", "dtype": "float32"}"#).unwrap();
    let adapter = [
        ("base_model.model.model.a.lora_A.weight", &[1, 3][..], &[1.0_f32, 2.0, 3.0][..]),
        ("base_model.model.model.a.lora_B.weight", &[2, 1], &[1.0, 2.0]),
    ];
    write(&dir.join("adapter/adapter_model.safetensors"), &adapter);
    let config = r#"{"peft_type": "LORA", "r": 1, "lora_alpha": 2}"#;
    fs::write(dir.join("adapter/adapter_config.json"), config).unwrap();
}

fn lora(dir: &Path, line: &str) -> Ran {
    let place = |word: &str| match word.strip_prefix('@') {
        Some(name) => dir.join(name).into_os_string(),
        None => word.into(),
    };
    weighbridge(std::iter::once("lora".into()).chain(line.split(' ').map(place)))
}

fn floats(path: &Path, name: &str) -> Vec<f32> {
    let bytes = Checkpoint::open(path).unwrap().read(name).unwrap();
    bytes.as_bytes().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

#[test]
fn merged_models_have_their_adapters_in() {
    let dir = tempfile::tempdir().unwrap();
    both(dir.path());
    let ran = lora(dir.path(), "merge @base @adapter @adapter --weight 0.5,0.25 -o @out");
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    // 0.75 · 2 / 1 times the product.
    assert_eq!(floats(&dir.path().join("out"), "model.a.weight"), [2.5, 4.0, 5.5, 4.0, 7.0, 10.0]);
    assert_eq!(floats(&dir.path().join("out"), "model.b.weight"), [7.0; 4]);
    assert!(dir.path().join("out/config.json").is_file());
    assert!(ran.stderr.contains("2 modules of 2 adapters merged into 2 tensors"), "{}", ran.stderr);

    let ran = lora(dir.path(), "merge @base @adapter -o @one.safetensors --to bf16");
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    let bytes = Checkpoint::open(dir.path().join("one.safetensors")).unwrap().read("model.b.weight").unwrap();
    assert_eq!(bytes.as_bytes(), [0xE0, 0x40].repeat(4));
}

#[test]
fn info_has_ranks_scales_and_norms() {
    let dir = tempfile::tempdir().unwrap();
    both(dir.path());
    let ran = lora(dir.path(), "info @adapter --json");
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    let module = &report["modules"][0];
    assert_eq!((&report["format"], &module["name"]), (&"PEFT".into(), &"model.a".into()));
    assert_eq!((&module["rank"], &module["scale"]), (&1.into(), &2.0.into()));
    // 2 · √14 · √5
    assert!((module["norm"].as_f64().unwrap() - 2.0 * 70.0_f64.sqrt()).abs() < 1e-9);
    let ran = lora(dir.path(), "info @adapter");
    assert!(
        ran.stdout.contains("model.a") && ran.stdout.contains("PEFT adapter, 1 module"),
        "{}",
        ran.stdout
    );
}

#[test]
fn what_does_not_fit_is_refused_and_nothing_written() {
    let dir = tempfile::tempdir().unwrap();
    both(dir.path());
    let refused = |line: &str, words: &[&str]| {
        let ran = lora(dir.path(), line);
        assert_eq!(ran.status, 2, "{line}");
        words.iter().for_each(|word| assert!(ran.stderr.contains(word), "{word:?} is not in {}", ran.stderr));
        assert_eq!(ran.stderr.trim_end().lines().count(), 1, "{}", ran.stderr);
        assert!(!dir.path().join("out").exists());
    };
    refused("merge @base @adapter --weight 1,2 -o @out", &["2 weights for 1 adapter"]);
    refused("merge @base @adapter --weight nan -o @out", &["--weight"]);
    refused("merge @base @base -o @out", &["model.a.weight", "no part of an adapter"]);
    let config = dir.path().join("adapter/adapter_config.json");
    fs::write(&config, r#"{"peft_type": "LOHA"}"#).unwrap();
    refused("merge @base @adapter -o @out", &["adapter_config.json", "LOHA"]);
    fs::write(&config, r#"{"peft_type": "LORA", "r": 2}"#).unwrap();
    refused("merge @base @adapter -o @out", &["model.a", "rank 1", "r is 2"]);
    fs::write(&config, r#"{"peft_type": "LORA", "lora_alpha": 1}"#).unwrap();
    let tensors = [("x.weight", &[2, 3][..], &[1.0_f32; 6][..])];
    write(&dir.path().join("other.safetensors"), &tensors);
    refused(
        "merge @other.safetensors @adapter -o @out",
        &["base_model.model.model.a.lora_A.weight", "model.a.weight"],
    );
}

/// A base, and the same with a product of rank 2 added to one weight, a bias and an embedding changed.
fn trained(dir: &Path) {
    let base: Vec<f32> = (0..48).map(|at| (at * 7 % 11) as f32 - 5.0).collect();
    let product = |at: usize| {
        let (row, column) = ((at / 8) as f32, (at % 8) as f32);
        0.25 * (row - 2.0) * (column - 3.0) + 0.5 * (row * row - 4.0) * (1.0 - column * 0.25)
    };
    let tuned: Vec<f32> = base.iter().enumerate().map(|(at, value)| value + product(at)).collect();
    let of = |weights: &[f32], bias: &[f32], rows: &[f32]| {
        let tensors = [
            ("x.up.weight", &[6, 8][..], weights.to_vec()),
            ("x.up.bias", &[2], bias.to_vec()),
            ("x.same.weight", &[2, 2], vec![3.0; 4]),
            ("embed_tokens.weight", &[3, 2], rows.to_vec()),
            ("norm.weight", &[2], bias.to_vec()),
        ];
        tensors.map(|(name, shape, values)| (name, shape, values))
    };
    let write_all = |path: &str, tensors: &[(&str, &[usize], Vec<f32>)]| {
        let tensors: Vec<_> =
            tensors.iter().map(|(name, shape, values)| (*name, *shape, values.as_slice())).collect();
        write(&dir.join(path), &tensors);
    };
    write_all("base/model.safetensors", &of(&base, &[1.0, 2.0], &[0.0; 6]));
    write_all("tuned/model.safetensors", &of(&tuned, &[1.5, 2.0], &[0.5; 6]));
}

#[test]
fn what_training_changed_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    trained(dir.path());
    let ran = lora(dir.path(), "extract @base @tuned --rank 4 -o @out --json");
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(report["modules"].as_array().unwrap().len(), 1);
    assert!(report["modules"][0]["energy"].as_f64().unwrap() > 1.0 - 1e-9);
    for lost in ["x.up.bias", "embed_tokens.weight", "norm.weight"] {
        assert!(ran.stderr.contains(&format!("{lost} changed, by ")), "{}", ran.stderr);
    }
    assert!(!ran.stderr.contains("x.same"), "{}", ran.stderr);
    let near = |out: &str, name: &str| {
        let (wanted, made) = (floats(&dir.path().join("tuned"), name), floats(&dir.path().join(out), name));
        wanted.iter().zip(&made).all(|(wanted, made)| (wanted - made).abs() < 1e-4)
    };
    assert_eq!(lora(dir.path(), "merge @base @out -o @merged").status, 0);
    assert!(near("merged", "x.up.weight") && !near("merged", "norm.weight"));

    let ran = lora(dir.path(), "extract @base @tuned --rank 4 --full -o @full");
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    let ran = lora(dir.path(), "merge @base @full -o @all");
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    for name in ["x.up.weight", "x.up.bias", "embed_tokens.weight", "norm.weight"] {
        assert!(near("all", name), "{name}");
    }
    // The same bytes again.
    assert_eq!(lora(dir.path(), "extract @base @tuned --rank 4 -o @again").status, 0);
    let bytes = |name: &str| fs::read(dir.path().join(name).join("adapter_model.safetensors")).unwrap();
    assert_eq!(bytes("out"), bytes("again"));

    let ran = lora(dir.path(), "resize @out --rank 1 -o @one --json");
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(report["modules"][0]["rank"], 1);
    let kept = report["energy"].as_f64().unwrap();
    assert!(kept > 0.5 && kept < 1.0, "{kept}");
}

/// PEFT replaces all modules whose names end with that of one that is saved whole, and asks for their tensors.
#[test]
fn what_peft_takes_for_a_module_that_is_saved_whole_is_saved_too() {
    let dir = tempfile::tempdir().unwrap();
    let of = |norm: f32, up: f32| {
        [
            ("layers.0.norm.weight", [2].as_slice(), vec![7.0; 2]),
            ("layers.0.up.weight", &[2, 2], vec![up; 4]),
            ("norm.weight", &[2], vec![norm; 2]),
        ]
    };
    for (path, tensors) in [("base", of(1.0, 1.0)), ("tuned", of(2.0, 3.0))] {
        let tensors = tensors.each_ref().map(|(name, shape, values)| (*name, *shape, values.as_slice()));
        write(&dir.path().join(path).join("model.safetensors"), &tensors);
    }
    let ran = lora(dir.path(), "extract @base @tuned --rank 1 --full -o @out");
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    let adapter = Checkpoint::open(dir.path().join("out/adapter_model.safetensors")).unwrap();
    let mut names: Vec<_> = adapter.tensors().map(|tensor| tensor.name().to_owned()).collect();
    names.sort();
    let prefix = "base_model.model.";
    assert_eq!(
        names,
        ["layers.0.norm.weight", "layers.0.up.lora_A.weight", "layers.0.up.lora_B.weight", "norm.weight"]
            .map(|name| format!("{prefix}{name}"))
    );
    let config = fs::read_to_string(dir.path().join("out/adapter_config.json")).unwrap();
    let config: Value = serde_json::from_str(&config).unwrap();
    assert_eq!(config["modules_to_save"], serde_json::json!(["layers.0.norm", "norm"]));
}

#[test]
fn odd_differences_have_errors_or_answers() {
    let dir = tempfile::tempdir().unwrap();
    trained(dir.path());
    let refused = |line: &str, words: &[&str]| {
        let ran = lora(dir.path(), line);
        assert_eq!(ran.status, 2, "{line}: {}", ran.stderr);
        words.iter().for_each(|word| assert!(ran.stderr.contains(word), "{word:?} is not in {}", ran.stderr));
        assert_eq!(ran.stderr.trim_end().lines().count(), 1, "{}", ran.stderr);
        assert!(!dir.path().join("out").exists());
    };
    refused("extract @base @base --rank 4 -o @out", &["nothing that is chosen of it differs"]);
    refused("extract @base @tuned --rank 0 -o @out", &["--rank 0"]);
    refused("extract @base @tuned --rank 4 --energy 1.5 -o @out", &["--energy 1.5"]);
    refused("extract @base @tuned --rank 4 -o @out.safetensors", &["is a directory"]);
    refused("extract @base @tuned --rank 4 --only norm.* -o @out", &["norm.weight", "--full"]);
    write(&dir.path().join("nan/model.safetensors"), &[("x.up.weight", &[1, 2], &[f32::NAN, 1.0])]);
    write(&dir.path().join("one/model.safetensors"), &[("x.up.weight", &[1, 2], &[0.0, 1.0])]);
    refused("extract @one @nan --rank 4 -o @out", &["x.up.weight", "not finite"]);
    refused("extract @one @tuned --rank 4 -o @out", &["is not in it"]);
    refused("extract @one @tuned --rank 4 --only x.up.weight -o @out", &["x.up.weight", "[6, 8]", "[1, 2]"]);
    refused("resize @base --rank 4 -o @out", &["no part of an adapter"]);
    // A rank that is larger than the matrix is what the matrix has.
    let ran = lora(dir.path(), "extract @base @tuned --rank 18446744073709551615 -o @huge");
    assert_eq!(ran.status, 0, "{}", ran.stderr);
}

#[test]
fn names_of_other_formats_lead_back() {
    let dir = tempfile::tempdir().unwrap();
    let module = "base_model.model.down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q";
    let [down, up] = ["A", "B"].map(|part| format!("{module}.lora_{part}.weight"));
    let adapter = [(&*down, &[1, 3][..], &[1.0_f32, 2.0, 3.0][..]), (&*up, &[2, 1], &[1.0, 2.0])];
    write(&dir.path().join("peft/adapter_model.safetensors"), &adapter);
    let config = r#"{"peft_type": "LORA", "r": 1, "lora_alpha": 3}"#;
    fs::write(dir.path().join("peft/adapter_config.json"), config).unwrap();
    for (line, names) in [
        (
            "convert @peft --to kohya -o @kohya.safetensors",
            "lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn1_to_q.alpha",
        ),
        (
            "convert @kohya.safetensors --to diffusers -o @diffusers.safetensors",
            "unet.down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q.lora_A.weight",
        ),
        ("convert @diffusers.safetensors --to peft -o @again", &*down),
    ] {
        let ran = lora(dir.path(), line);
        assert_eq!(ran.status, 0, "{}", ran.stderr);
        let out = line.rsplit('@').next().unwrap();
        assert!(Checkpoint::open(dir.path().join(out)).unwrap().tensor(names).is_some(), "{names}");
    }
    let bytes = |name: &str| floats(&dir.path().join(name), &up);
    assert_eq!(bytes("peft"), bytes("again"));
    let ran = lora(dir.path(), "info @again --json");
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(report["modules"][0]["scale"], 3.0);
    let ran = lora(dir.path(), "convert @peft --to kohya -o @kohya.safetensors");
    assert!(ran.status == 2 && ran.stderr.contains("--force"), "{}", ran.stderr);
}
