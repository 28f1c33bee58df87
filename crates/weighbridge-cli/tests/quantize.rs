//! `quantize`, and `convert --type` into GGUF.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

mod support;

use std::fs;
use std::path::Path;

use insta::assert_snapshot;
use serde_json::Value;
use support::{Ran, llama, raw_file, weighbridge};
use weighbridge::write::{Save, Values};
use weighbridge::{Checkpoint, Dtype};

/// The arguments, with `{}` for the directory.
fn run(dir: &Path, arguments: &str) -> Ran {
    let dir = dir.to_str().unwrap();
    weighbridge(arguments.split_whitespace().map(|argument| argument.replace("{}", dir)))
}

/// A directory `in` with a small model in shards and the files that belong to one.
fn model() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join("in").join(name);
    llama(&path(""), Some(4 << 10));
    fs::write(path("config.json"), r#"{"model_type": "llama", "rms_norm_eps": 1e-06}"#).unwrap();
    fs::write(path("tokenizer.json"), "{}").unwrap();
    fs::write(path("chat_template.jinja"), "{{ messages }}").unwrap();
    fs::write(path("training_args.bin"), "pickle").unwrap();
    dir
}

fn config(dir: &Path) -> Value {
    serde_json::from_slice(&fs::read(dir.join("config.json")).unwrap()).unwrap()
}

/// The tensors of the first layer.
fn first_layer(location: &Path) -> Vec<String> {
    let checkpoint = Checkpoint::open(location).unwrap();
    let layer = checkpoint.tensors().filter(|tensor| tensor.name().starts_with("model.layers.0."));
    let mut layer: Vec<_> = layer
        .map(|tensor| {
            let name = tensor.name().strip_prefix("model.layers.0.").unwrap();
            format!("{name} {} {:?}", tensor.dtype(), tensor.shape())
        })
        .collect();
    layer.sort();
    layer
}

#[test]
fn a_model_is_quantised_with_all_that_belongs_to_it() {
    let dir = model();
    let ran = run(dir.path(), "quantize {}/in --method fp8 -o {}/out --max-shard-size 2KB");
    assert_snapshot!(ran.without(dir.path()), @r"
    [dir]/out: 111 tensors in 5 shards, 8.42 kB
    48 weights quantised to fp8, 15 as before
    ");
    assert_eq!(ran.status, 0);
    let out = dir.path().join("out");
    assert_snapshot!(first_layer(&out).join("\n"), @r"
    input_layernorm.weight F32 [8]
    mlp.down_proj.weight F8_E4M3 [8, 16]
    mlp.down_proj.weight_scale F32 [8, 1]
    mlp.up_proj.weight F8_E4M3 [16, 8]
    mlp.up_proj.weight_scale F32 [16, 1]
    self_attn.k_proj.weight F8_E4M3 [4, 8]
    self_attn.k_proj.weight_scale F32 [4, 1]
    self_attn.q_proj.weight F8_E4M3 [8, 8]
    self_attn.q_proj.weight_scale F32 [8, 1]
    ");
    let mut files: Vec<_> =
        fs::read_dir(&out).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    files.retain(|file| !file.starts_with("model-"));
    files.sort();
    assert_eq!(
        files,
        ["chat_template.jinja", "config.json", "model.safetensors.index.json", "tokenizer.json"]
    );
    assert_snapshot!(config(&out).to_string(), @r#"{"model_type":"llama","quantization_config":{"config_groups":{"group_0":{"input_activations":{"dynamic":true,"num_bits":8,"strategy":"token","symmetric":true,"type":"float"},"output_activations":null,"targets":["Linear"],"weights":{"dynamic":false,"num_bits":8,"strategy":"channel","symmetric":true,"type":"float"}}},"format":"float-quantized","ignore":["model.embed_tokens","lm_head"],"quant_method":"compressed-tensors","quantization_status":"compressed"},"rms_norm_eps":1e-6}"#);
    // The embeddings, the head and the norms are as they were.
    let checkpoint = Checkpoint::open(&out).unwrap();
    for name in ["model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"] {
        assert_eq!(checkpoint.tensor(name).unwrap().dtype(), Dtype::F32);
    }
    // It is quantised now.
    let again = run(dir.path(), "quantize {}/out --method int8 -o {}/again");
    assert_eq!(again.status, 2);
    assert!(again.stderr.contains("`weighbridge dequantize` makes weights of it first"), "{}", again.stderr);
    assert!(!dir.path().join("again").exists());
}

#[test]
fn each_method_has_its_tensors_and_its_config() {
    let dir = model();
    let mut seen = String::new();
    for (method, options) in [("fp8-block", ""), ("int8", ""), ("int4-rtn", "--group-size 8"), ("nf4", "")] {
        let ran = run(dir.path(), &format!("quantize {{}}/in --method {method} {options} -o {{}}/{method}"));
        assert_eq!(ran.status, 0, "{}", ran.stderr);
        let out = dir.path().join(method);
        let mut quantization = config(&out)["quantization_config"].clone();
        for list in ["ignore", "modules_to_not_convert", "llm_int8_skip_modules"] {
            if let Some(list) = quantization.get_mut(list) {
                assert_eq!(list.to_string(), r#"["model.embed_tokens","lm_head"]"#);
                *list = "...".into();
            }
        }
        let tensors = first_layer(&out).into_iter().filter(|tensor| tensor.starts_with("self_attn.k"));
        seen += &format!("{method}: {quantization}\n{}\n", tensors.collect::<Vec<_>>().join("\n"));
    }
    assert_snapshot!(seen, @r#"
    fp8-block: {"activation_scheme":"dynamic","modules_to_not_convert":"...","quant_method":"fp8","weight_block_size":[128,128]}
    self_attn.k_proj.weight F8_E4M3 [4, 8]
    self_attn.k_proj.weight_scale_inv F32 [1, 1]
    int8: {"config_groups":{"group_0":{"input_activations":{"dynamic":true,"num_bits":8,"strategy":"token","symmetric":true,"type":"int"},"output_activations":null,"targets":["Linear"],"weights":{"dynamic":false,"num_bits":8,"strategy":"channel","symmetric":true,"type":"int"}}},"format":"int-quantized","ignore":"...","quant_method":"compressed-tensors","quantization_status":"compressed"}
    self_attn.k_proj.weight I8 [4, 8]
    self_attn.k_proj.weight_scale F32 [4, 1]
    int4-rtn: {"config_groups":{"group_0":{"input_activations":null,"output_activations":null,"targets":["Linear"],"weights":{"dynamic":false,"group_size":8,"num_bits":4,"strategy":"group","symmetric":true,"type":"int"}}},"format":"pack-quantized","ignore":"...","quant_method":"compressed-tensors","quantization_status":"compressed"}
    self_attn.k_proj.weight_packed I32 [4, 1]
    self_attn.k_proj.weight_scale F32 [4, 1]
    self_attn.k_proj.weight_shape I64 [2]
    nf4: {"bnb_4bit_compute_dtype":"float32","bnb_4bit_quant_storage":"uint8","bnb_4bit_quant_type":"nf4","bnb_4bit_use_double_quant":false,"llm_int8_skip_modules":"...","load_in_4bit":true,"load_in_8bit":false,"quant_method":"bitsandbytes"}
    self_attn.k_proj.weight U8 [16, 1]
    self_attn.k_proj.weight.absmax F32 [1]
    self_attn.k_proj.weight.quant_map F32 [16]
    self_attn.k_proj.weight.quant_state.bitsandbytes__nf4 U8 [75]
    "#);
}

#[test]
fn what_a_method_does_not_take_stays_and_is_said() {
    let dir = model();
    // Of 8 columns no group of 16 can be made; one matrix of each layer has 16.
    let ran = run(dir.path(), "quantize {}/in --method int4-rtn --group-size 16 -o {}/out");
    assert_snapshot!(ran.without(dir.path()), @r"
    [dir]/out: 87 tensors in 1 shard, 14.6 kB
    model.layers.0.mlp.up_proj.weight: it stays F32: its 8 columns are no whole groups of 16
    model.layers.0.self_attn.k_proj.weight: it stays F32: its 8 columns are no whole groups of 16
    model.layers.0.self_attn.q_proj.weight: it stays F32: its 8 columns are no whole groups of 16
    model.layers.1.mlp.up_proj.weight: it stays F32: its 8 columns are no whole groups of 16
    model.layers.1.self_attn.k_proj.weight: it stays F32: its 8 columns are no whole groups of 16
    and more: 31 weights that int4-rtn does not take; --verbose lists them
    12 weights quantised to int4-rtn, 51 as before
    ");
    assert_eq!(
        config(&dir.path().join("out"))["quantization_config"]["ignore"].as_array().unwrap().len(),
        38
    );
    let ran = run(dir.path(), "quantize {}/in --method mxfp4 -o {}/none");
    assert_snapshot!(ran.without(dir.path()), @"error: [dir]/in: it has no weight that mxfp4 takes: model.layers.0.mlp.down_proj.weight: it stays F32: its 16 columns are no whole groups of 32");
    assert_eq!(ran.status, 2);
    assert!(!dir.path().join("none").exists());
}

#[test]
fn weights_are_chosen_by_name() {
    let dir = model();
    let dtype = |name: &str| {
        Checkpoint::open(dir.path().join("out")).unwrap().tensor(name).map(|tensor| tensor.dtype())
    };
    let run = |options: &str| {
        run(dir.path(), &format!("quantize {{}}/in --method int8 -o {{}}/out --force {options}")).clean()
    };
    run("--keep *.down_proj.weight --keep *.1?.*");
    assert_eq!(dtype("model.layers.0.mlp.down_proj.weight"), Some(Dtype::F32));
    assert_eq!(dtype("model.layers.10.mlp.up_proj.weight"), Some(Dtype::F32));
    assert_eq!(dtype("model.layers.0.mlp.up_proj.weight"), Some(Dtype::I8));
    run("--only lm_head.weight --only *.q_proj.weight");
    assert_eq!(dtype("lm_head.weight"), Some(Dtype::I8));
    assert_eq!(dtype("model.layers.3.self_attn.q_proj.weight"), Some(Dtype::I8));
    assert_eq!(dtype("model.layers.3.self_attn.k_proj.weight"), Some(Dtype::F32));
    let ignored = config(&dir.path().join("out"))["quantization_config"]["ignore"].to_string();
    assert!(!ignored.contains("lm_head") && ignored.contains("layers.11.mlp.down_proj"), "{ignored}");
}

#[test]
fn what_is_there_already_is_left_alone() {
    let dir = model();
    fs::create_dir(dir.path().join("out")).unwrap();
    fs::write(dir.path().join("out/config.json"), "{}").unwrap();
    fs::write(dir.path().join("out/tokenizer.json"), "mine").unwrap();
    let ran = run(dir.path(), "quantize {}/in --method int8 -o {}/out");
    assert_snapshot!(ran.without(dir.path()), @"error: [dir]/out/config.json: it is there already; --force replaces it");
    assert!(!dir.path().join("out/model.safetensors").exists());
    fs::remove_file(dir.path().join("out/config.json")).unwrap();
    run(dir.path(), "quantize {}/in --method int8 -o {}/out").clean();
    assert_eq!(fs::read(dir.path().join("out/tokenizer.json")).unwrap(), b"mine");
    // Into itself.
    run(dir.path(), "quantize {}/in --method int8 -o {}/in --force").clean();
    assert_eq!(fs::read(dir.path().join("in/tokenizer.json")).unwrap(), b"{}");
    assert_eq!(config(&dir.path().join("in"))["quantization_config"]["format"], "int-quantized");
}

#[test]
fn bad_requests_are_one_line() {
    let dir = model();
    let mut said = Vec::new();
    let mut bad = |arguments: &str| {
        let ran = run(dir.path(), arguments);
        assert_eq!((ran.status, ran.stderr.lines().count()), (2, 1), "{}", ran.stderr);
        said.push(ran.without(dir.path()));
    };
    bad("quantize {}/in --method nf4 --group-size 64 -o {}/out");
    bad("quantize {}/in --method int4-rtn --group-size 12 -o {}/out");
    fs::write(dir.path().join("in/config.json"), r#"{"model_type": "gpt2"}"#).unwrap();
    bad("quantize {}/in --method nf4 -o {}/out");
    fs::write(dir.path().join("in/config.json"), "[]").unwrap();
    bad("quantize {}/in --method nf4 -o {}/out");
    let mut row = [1.0_f32; 32];
    row[3] = f32::INFINITY;
    let values = Values::new(&[1, 32], &row).unwrap();
    Save::new().file(dir.path().join("inf.safetensors"), [("up.weight", values)]).unwrap();
    bad("quantize {}/inf.safetensors --method mxfp4 -o {}/out.safetensors");
    assert!(!dir.path().join("out.safetensors").exists());
    bad("convert {}/inf.safetensors --type q8_0 -o {}/out.gguf");
    bad("convert {}/in --type q8_0 -o {}/out.npz");
    let header = r#"{"fc.weight":{"dtype":"F8_E4M3","shape":[2,2],"data_offsets":[0,4]},
        "fc.weight_scale_inv":{"dtype":"F32","shape":[1,1],"data_offsets":[4,8]}}"#;
    raw_file(&dir.path().join("fp8.safetensors"), header, &[0x38; 8]);
    bad("convert {}/fp8.safetensors --type q8_0 -o {}/out.gguf");
    assert!(!dir.path().join("out.gguf").exists());
    assert_snapshot!(said.join("\n"), @r#"
    error: --group-size is of --method int4-rtn only

    error: --group-size must be a multiple of 8

    error: config.json: the weights of gpt2 are stored transposed (Conv1D), which libraries do not load quantised

    error: [dir]/in/config.json: it is not a JSON object

    error: [dir]/inf.safetensors: tensor "up.weight": inf cannot be quantised; --keep leaves a tensor as it is

    error: [dir]/inf.safetensors: tensor "up.weight": inf cannot be quantised

    error: --type takes an output that ends in .gguf

    error: [dir]/fp8.safetensors: tensor "fc.weight": the module "fc" is quantised as FP8 (block scales): "fc.weight" holds codes, not weights, as "fc.weight_scale_inv" shows; `weighbridge dequantize` makes weights of it first, --quantized raw writes the codes
    "#);
}

#[test]
fn a_dry_run_lists_what_would_be_written() {
    let dir = model();
    let ran = run(dir.path(), "quantize {}/in --method int4-rtn --group-size 8 --dry-run --only *.0.mlp.*");
    let lines = ran.clean();
    let layer: Vec<_> = lines.lines().filter(|line| line.starts_with("model.layers.0.mlp")).collect();
    assert_snapshot!(layer.join("\n"), @r"
    model.layers.0.mlp.down_proj.weight_packed	I32	[8, 2]	64
    model.layers.0.mlp.down_proj.weight_scale	F32	[8, 2]	64
    model.layers.0.mlp.down_proj.weight_shape	I64	[2]	16
    model.layers.0.mlp.up_proj.weight_packed	I32	[16, 1]	64
    model.layers.0.mlp.up_proj.weight_scale	F32	[16, 1]	64
    model.layers.0.mlp.up_proj.weight_shape	I64	[2]	16
    ");
}

#[test]
fn gguf_is_written_and_read_back() {
    let dir = model();
    let ran =
        run(dir.path(), "convert {}/in --type Q8_0 --only *.0.mlp.* --only model.norm.weight -o {}/out.gguf");
    assert_snapshot!(ran.without(dir.path()), @r#"
    changed "model.layers.0.mlp.down_proj.weight": F16 instead of Q8_0: its rows of 16 are no whole blocks
    changed "model.layers.0.mlp.up_proj.weight": F16 instead of Q8_0: its rows of 8 are no whole blocks
    for programs that read tensors by these names; llama.cpp and candle-lm do not run it: it has neither llama.cpp's names nor its hyperparameters and tokenizer
    3 tensors from safetensors
    "#);
    assert_eq!(ran.status, 0);
    assert_eq!(run(dir.path(), "convert {}/in -o {}/out.gguf").status, 2);
    run(dir.path(), "convert {}/in -o {}/out.gguf --to bf16 --force").clean();
    run(dir.path(), "convert {}/out.gguf -o {}/back.safetensors").clean();
    run(dir.path(), "cast {}/in --to bf16 -o {}/cast.safetensors").clean();
    run(dir.path(), "diff {}/cast.safetensors {}/back.safetensors").clean();
}
