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
