//! `dequantize`, and `--dense` where checkpoints are looked at.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use insta::assert_snapshot;
use serde_json::Value;
use support::{Ran, llama, raw_file, weighbridge};
use weighbridge::{Checkpoint, Dtype};

/// Checkpoints that the quantisers' own libraries wrote.
fn cases(kind: &str) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/quantized").join(kind);
    let mut cases: Vec<_> = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    assert!(cases.len() > 10);
    cases
}

fn case(name: &str) -> PathBuf {
    cases("vectors").into_iter().find(|case| case.ends_with(name)).unwrap().join("checkpoint")
}

fn run<'a>(arguments: impl IntoIterator<Item = &'a Path>) -> Ran {
    weighbridge(arguments)
}

fn dequantize(from: &Path, to: &Path, options: &[&str]) -> Ran {
    let arguments = ["dequantize".as_ref(), from, "-o".as_ref(), to];
    run(arguments.into_iter().chain(options.iter().map(Path::new)))
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn weights_are_those_of_the_libraries() {
    let dir = tempfile::tempdir().unwrap();
    let mut compared = 0;
    for case in cases("vectors") {
        let (stored, expected) = (case.join("checkpoint"), case.join("dense.safetensors"));
        // Which of them can be read, the library's own tests say.
        let dense = Checkpoint::open(&stored).unwrap().dequantized().unwrap();
        if dense.quantized().len() > 0 {
            continue;
        }
        compared += 1;
        let out = dir.path().join(case.file_name().unwrap());
        dequantize(&stored, &out, &[]).clean();
        // NaN equals NaN, and nothing else is taken for the same.
        let same = "diff --data --rtol 0 --ignore metadata".split(' ').map(Path::new);
        run(same.clone().chain([&*out, &*expected])).clean();
        if !case.ends_with("fp8-bare") {
            run(same.chain(["--dense".as_ref(), &*stored, &*expected])).clean();
        }
        assert_eq!(Checkpoint::open(&out).unwrap().quantized().len(), 0, "{}", case.display());
        for name in ["quantize_config.json", "quant_config.json", "hf_quant_config.json"] {
            assert!(!out.join(name).exists(), "{}", case.display());
        }
        if stored.join("config.json").exists() {
            let mut config = json(&stored.join("config.json"));
            // Of the whole model, and of its parts.
            for part in ["", "/text_config", "/llm_config"] {
                let Some(part) = config.pointer_mut(part) else { continue };
                for member in ["quantization_config", "quantization", "compression_config"] {
                    part.as_object_mut().unwrap().remove(member);
                }
            }
            assert_eq!(json(&out.join("config.json")), config, "{}", case.display());
        }
    }
    assert!(compared > 80, "{compared}");
}

#[test]
fn what_cannot_be_dequantised_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    for name in ["exl2", "gptq-marlin", "ct-no-scale", "fp8-scale-shape", "bnb-int8-no-scb", "fp8-no-scale"] {
        let stored = cases("refused").into_iter().find(|case| case.ends_with(name)).unwrap();
        let ran = dequantize(&stored.join("checkpoint"), &out, &[]);
        let tensor = fs::read_to_string(stored.join("expect.txt")).unwrap();
        assert_eq!(ran.status, 2, "{name}");
        assert!(ran.stderr.contains(tensor.lines().next().unwrap()), "{name}: {}", ran.stderr);
        assert!(!out.exists(), "{name}");
    }
    // Three of one kind, and one that can be had.
    let mut header = serde_json::json!({
        "fc.weight": {"dtype": "I8", "shape": [2, 2], "data_offsets": [0, 4]},
        "fc.weight_scale": {"dtype": "F32", "shape": [2, 1], "data_offsets": [4, 12]},
    });
    for (number, name) in ["a", "b", "c"].into_iter().enumerate() {
        let start = 12 + 12 * number;
        let codes = serde_json::json!({"dtype": "I32", "shape": [1, 2], "data_offsets": [start, start + 8]});
        let scales =
            serde_json::json!({"dtype": "F16", "shape": [1, 2], "data_offsets": [start + 8, start + 12]});
        header[format!("{name}.qweight")] = codes;
        header[format!("{name}.scales")] = scales;
    }
    let file = dir.path().join("in.safetensors");
    raw_file(&file, &header.to_string(), &[1; 48]);
    let ran = dequantize(&file, &out, &[]);
    assert_eq!((ran.status, out.exists()), (2, false));
    assert_snapshot!(ran.without(dir.path()), @r#"error: [dir]/in.safetensors: tensor "a.qweight": the size of its groups is not in its tensors; quantization_config.group_size would say it; nor can 2 other modules be dequantised; nothing is written; --except leaves modules out"#);
    let ran = run(["inspect".as_ref(), &*file]);
    let text = ran.without(dir.path());
    assert_snapshot!(text.split_once("\nquantised\n").unwrap().1, @"
    GPTQ                  3 modules  36 B stored  cannot be dequantised
    int8 (scaled), 8-bit   1 module  12 B stored            8 B as BF16
    a: the size of its groups is not in its tensors; quantization_config.group_size would say it
    b: the size of its groups is not in its tensors; quantization_config.group_size would say it
    c: the size of its groups is not in its tensors; quantization_config.group_size would say it
    ");
    dequantize(&file, &out, &["--only", "fc.*"]).clean();
    assert_eq!(Checkpoint::open(&out).unwrap().len(), 1);
    for except in ["[abc].weight", "[abc].*"] {
        dequantize(&file, &out, &["--except", except, "--force"]).clean();
        assert_eq!(Checkpoint::open(&out).unwrap().len(), 1);
    }
    // The others with them, as far as that goes.
    for verb in ["stat", "hash", "diff"] {
        let both = [verb.as_ref(), "--dense".as_ref(), &*file, &*file];
        let ran = run(both.into_iter().take(if verb == "hash" { 3 } else { 4 }));
        assert_eq!(ran.status, 2, "{verb}");
        assert!(ran.stderr.contains("nor can 2 other modules be dequantised"), "{verb}: {}", ran.stderr);
    }
    let ran = run(["stat".as_ref(), "--dense".as_ref(), &*file, "--only".as_ref(), "fc.*".as_ref()]);
    assert!(ran.clean().contains("fc.weight  BF16"));
}

#[test]
fn a_directory_gets_what_belongs_to_the_model() {
    let dir = tempfile::tempdir().unwrap();
    let (stored, out) = (dir.path().join("in"), dir.path().join("out"));
    fs::create_dir(&stored).unwrap();
    let from = case("gptq-quantize-config");
    for file in ["model.safetensors", "quantize_config.json"] {
        fs::copy(from.join(file), stored.join(file)).unwrap();
    }
    let config = "{\n  \"eps\": 1e-05,  \"torch_dtype\": \"float16\",\n  \"text_config\": {\"dtype\": \"float16\", \
         \"quantization_config\": {\"bits\": 4}},\n  \"quantization_config\": {\"bits\": 4},\n  \"z\": 1.0,\n  \"a\": 2\n}\n";
    fs::write(stored.join("config.json"), config).unwrap();
    for file in ["tokenizer.json", "tokenizer.model", "chat_template.jinja", "modeling.py", "old.bin"] {
        fs::write(stored.join(file), file).unwrap();
    }
    fs::create_dir(stored.join("more")).unwrap();
    dequantize(&stored, &out, &["--to", "bf16"]).clean();
    let mut files: Vec<_> =
        fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    files.sort();
    let expected = [
        "chat_template.jinja",
        "config.json",
        "model.safetensors",
        "modeling.py",
        "tokenizer.json",
        "tokenizer.model",
    ];
    assert_eq!(files, expected);
    assert_eq!(fs::read_to_string(out.join("tokenizer.json")).unwrap(), "tokenizer.json");
    let changed = "{\n  \"eps\": 1e-05,  \"torch_dtype\": \"bfloat16\",\n  \"text_config\": {\"dtype\": \"bfloat16\"},\n  \
         \"z\": 1.0,\n  \"a\": 2\n}\n";
    assert_eq!(fs::read_to_string(out.join("config.json")).unwrap(), changed);
    // Nothing is replaced unasked, and never what is read.
    fs::remove_file(out.join("model.safetensors")).unwrap();
    let ran = dequantize(&stored, &out, &[]);
    assert!(ran.status == 2 && ran.stderr.contains("--force"), "{}", ran.stderr);
    assert!(!out.join("model.safetensors").exists());
    dequantize(&stored, &out, &["--force"]).clean();
    assert_eq!(json(&out.join("config.json"))["torch_dtype"], "float16");
    let ran = dequantize(&stored, &stored, &["--force"]);
    assert!(ran.status == 2 && ran.stderr.contains("another directory"), "{}", ran.stderr);
    fs::write(out.join("quant_config.json"), "{}").unwrap();
    let ran = dequantize(&stored, &out, &["--force"]);
    assert!(ran.status == 2 && ran.stderr.contains("quant_config.json"), "{}", ran.stderr);
    assert_eq!(fs::read_to_string(stored.join("config.json")).unwrap(), config);
    // A file gets none of it, and gives its config.json only.
    let file = dir.path().join("one.safetensors");
    dequantize(&stored, &file, &[]).clean();
    assert!(!dir.path().join("config.json").exists());
    let other = dir.path().join("other");
    dequantize(&stored.join("model.safetensors"), &other, &[]).clean();
    assert_eq!(fs::read_dir(&other).unwrap().count(), 2);
}

#[test]
fn dtypes_and_shards_are_those_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let out = |name: &str| dir.path().join(name);
    let stored = case("fp8-block");
    // As many shards as there are, if nothing else is said.
    dequantize(&stored, &out("same"), &[]).clean();
    let same = Checkpoint::open(out("same")).unwrap();
    assert_eq!((same.shards().len(), same.tensor("model.norm.weight").unwrap().dtype()), (2, Dtype::BF16));
    dequantize(&stored, &out("more"), &["--to", "f32", "--max-shard-size", "1kB"]).clean();
    let more = Checkpoint::open(out("more")).unwrap();
    assert!(more.shards().len() > 2);
    let dtype = |name: &str| more.tensor(name).unwrap().dtype();
    assert_eq!(dtype("model.layers.0.self_attn.q_proj.weight"), Dtype::F32);
    // All else stays as it is.
    assert_eq!(
        (dtype("model.norm.weight"), dtype("model.layers.0.self_attn.q_proj.bias")),
        (Dtype::BF16, Dtype::BF16)
    );
    let ran = dequantize(&stored, &out("none"), &["--to", "f8_e4m3"]);
    assert!(ran.status == 2 && ran.stderr.contains("BF16, F16 or F32"), "{}", ran.stderr);
    let listed = dequantize(&stored, &out("none"), &["--dry-run", "--only", "*q_proj.weight"]).clean();
    assert_eq!(listed, "model.layers.0.self_attn.q_proj.weight\tBF16\t[300, 200]\t120000\n");
    assert!(!out("none").exists());
    // 8-bit floats that are numbers become those of the model.
    let bare = case("fp8-bare");
    for (config, option, dtype) in [
        ("{}", &[][..], Dtype::BF16),
        (r#"{"torch_dtype":"float16"}"#, &[], Dtype::F16),
        (r#"{"torch_dtype":"float16"}"#, &["--to", "f32"], Dtype::F32),
    ] {
        let stored = tempfile::tempdir().unwrap();
        fs::copy(bare.join("model.safetensors"), stored.path().join("model.safetensors")).unwrap();
        fs::write(stored.path().join("config.json"), config).unwrap();
        let written = stored.path().join("out.safetensors");
        dequantize(stored.path(), &written, option).clean();
        assert!(Checkpoint::open(&written).unwrap().tensors().all(|tensor| tensor.dtype() == dtype));
    }
    // There is nothing to do.
    llama(&out("llama.safetensors"), None);
    let ran = dequantize(&out("llama.safetensors"), &out("none"), &[]);
    assert!(ran.status == 2 && ran.stderr.contains("is quantised"), "{}", ran.stderr);
    assert!(!out("none").exists());
}

#[test]
fn comfyui_does_not_look_for_scales_afterwards() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("dense.safetensors");
    dequantize(&case("comfy-metadata"), &file, &[]).clean();
    let dense = Checkpoint::open(&file).unwrap();
    let keys = dense.shards()[0].header().metadata().into_iter().flatten().map(|(key, _)| key);
    assert!(keys.into_iter().all(|key| key != "_quantization_metadata"));
}

#[test]
fn both_sides_can_be_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let stored = case("ct-pack-4bit-shards");
    let ran = run(["inspect".as_ref(), "--dense".as_ref(), &*stored]);
    assert_snapshot!(ran.without(&stored), @"
    [dir]  2 tensors in 2 shards, 2,048 parameters, 4.10 kB

    tensor               dtype  shape     tensors    bytes   share
    model.layers.0.mlp                          2  4.10 kB  100.0%  ██████████
    ├─ gate_proj.weight  BF16   [16, 64]        1  2.05 kB   50.0%  █████
    └─ up_proj.weight    BF16   [16, 64]        1  2.05 kB   50.0%  █████

    dtypes
      BF16  2 tensors  4.10 kB  100.0%  2,048 parameters

    shards
      model-00001-of-00002.safetensors  1 tensor  2.05 kB  50.0%
      model-00002-of-00002.safetensors  1 tensor  2.05 kB  50.0%

    quantised
      compressed-tensors (packed), 4-bit  2 modules  1.22 kB stored  4.10 kB as BF16

    metadata
      format  pt
    ");
    let inspect = |options: &[&str]| -> Value {
        let arguments = ["inspect", "--format", "json"].into_iter().chain(options.iter().copied());
        serde_json::from_str(&run(arguments.map(Path::new).chain([&*stored])).clean()).unwrap()
    };
    let dense = &inspect(&["--dense"])["checkpoints"][0];
    assert_eq!(
        (dense["shards"].as_array().unwrap().len(), dense["tensors"].as_array().unwrap().len()),
        (2, 2)
    );
    assert_eq!((&dense["tensors"][1]["shard"], &dense["tensors"][1]["offset"]), (&1.into(), &Value::Null));
    let modules = &inspect(&[])["checkpoints"][0]["quantised"];
    assert_eq!(modules, &dense["quantised"]);
    assert_snapshot!(serde_json::to_string_pretty(&modules[0]).unwrap(), @r#"
    {
      "bits": 4.0,
      "bytes": 608,
      "method": "compressed-tensors (packed)",
      "module": "model.layers.0.mlp.gate_proj",
      "reason": null,
      "weight": {
        "bytes": 2048,
        "dtype": "BF16",
        "name": "model.layers.0.mlp.gate_proj.weight",
        "shape": [
          16,
          64
        ]
      }
    }
    "#);
    // The same weights, quantised or not, have one digest.
    let (out, manifest) = (dir.path().join("out"), dir.path().join("dense.b3"));
    dequantize(&stored, &out, &[]).clean();
    fs::write(&manifest, run(["hash".as_ref(), &*out]).clean()).unwrap();
    run(["hash".as_ref(), "--check".as_ref(), &*manifest, "--dense".as_ref(), &*stored]).clean();
    assert_eq!(run(["hash".as_ref(), "--check".as_ref(), &*manifest, &*stored]).status, 1);
    let [weights, codes] = [&["stat", "--dense"][..], &["stat"]]
        .map(|verb| run(verb.iter().map(Path::new).chain([&*stored])).clean());
    assert_eq!(weights, run(["stat".as_ref(), &*out]).clean());
    assert!(weights.contains("up_proj.weight ") && codes.contains("up_proj.weight_packed"));
    let diff = run(["diff".as_ref(), &*stored, &*out]);
    assert!(
        diff.status == 1 && diff.stdout.contains("- model.layers.0.mlp.up_proj.weight_packed"),
        "{diff:?}"
    );
}
