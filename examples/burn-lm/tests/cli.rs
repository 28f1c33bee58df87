//! The program as its users run it: right answers, the promised output, and errors of one line.

#![expect(clippy::unwrap_used, reason = "the helpers of these tests are not tests themselves")]

// The same tiny checkpoints, and the same tokens that transformers gives for them (`reference.py` of candle-lm).
#[path = "../../candle-lm/tests/support/mod.rs"]
#[allow(dead_code, reason = "some of it is for other families")]
mod support;

use serde_json::{Value, json};
use support::{Tiny, error_of, json_of, run, sample};

const PROGRAM: &str = env!("CARGO_BIN_EXE_burn-lm");

fn version_4() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 64, "rope_theta": 500000.0, "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32
        },
        "tie_word_embeddings": false, "torch_dtype": "float32", "transformers_version": "4.57.0"
    })
}

fn version_5() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "attention_bias": false, "mlp_bias": false, "head_dim": 8,
        "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 1, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 2, "rope_parameters": {"rope_type": "default", "rope_theta": 250.0},
        "tie_word_embeddings": true, "dtype": "float32", "transformers_version": "5.23.0"
    })
}

fn qwen2() -> Value {
    json!({
        "model_type": "qwen2", "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "tie_word_embeddings": true
    })
}

const TOKENS_4: [u32; 24] = [1, 2, 28, 12, 7, 7, 7, 7, 7, 7, 31, 39, 28, 37, 7, 31, 39, 28, 7, 7, 7, 7, 7, 7];
const TOKENS_5: [u32; 24] =
    [33, 5, 21, 5, 21, 21, 21, 21, 21, 21, 21, 21, 5, 21, 5, 21, 5, 21, 5, 21, 21, 21, 21, 21];
const TOKENS_QWEN2: [u32; 24] = [9, 9, 9, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 9, 17, 9, 17, 9, 17, 9, 17, 9];

const ASK: [&str; 5] = ["--prompt", "w5 w9 w31 w7", "--max-new-tokens", "24", "--json"];

#[test]
fn the_sample_adds() {
    let output = run(&[]);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text, "123+456=579\n7+8=15\n999+1=1000\n250+250=500\n64+936=1000\n");
    let report = String::from_utf8(output.stderr).unwrap();
    for part in ["adder", "shards", "BF16", "GB/s", "tokens/s"] {
        assert!(report.contains(part), "{part:?} is not in {report}");
    }
}

#[test]
fn the_sample_in_json() {
    let sample = sample();
    let sample = sample.to_str().unwrap();
    for dtype in ["f32", "bf16", "f16"] {
        let args = ["--from", sample, "--prompt", "123+456=", "--dtype", dtype, "--json"];
        let json = json_of(&run(&args));
        assert_eq!(json["text"], "579", "{dtype}");
        assert_eq!(json["tokens"].as_array().unwrap().len(), 4, "three digits and the end");
        assert_eq!((&json["dtype"], &json["device"]), (&json!(dtype), &json!("flex")));
        assert_eq!(json["prompt"], "123+456=");
        assert_eq!(json["dtypes"], json!({"BF16": json["tensors"]}));
        assert!(json["tokens_per_second"].as_f64().unwrap() > 0.0);
    }
}

#[test]
fn tokens_are_those_of_transformers() {
    for (config, shards, expected) in [
        (version_4(), 1, TOKENS_4),
        (version_4(), 3, TOKENS_4),
        (version_5(), 4, TOKENS_5),
        (qwen2(), 2, TOKENS_QWEN2),
    ] {
        let tiny = Tiny::new(&config, shards);
        let json = json_of(&tiny.run(&ASK));
        assert_eq!(json["tokens"], json!(expected));
        assert_eq!(json["shards"], shards);
        assert_eq!(json["text"], expected.map(|token| format!("w{token}")).join(" "));
    }
}

#[test]
fn a_text_ends_at_an_end_token() {
    let tiny = Tiny::new(&version_4(), 1);
    tiny.write("generation_config.json", r#"{"eos_token_id": [39, 12]}"#);
    let tokens = &json_of(&tiny.run(&ASK))["tokens"];
    assert_eq!(*tokens, json!(TOKENS_4[..4]), "the end token is one of them");
    let none = json_of(&tiny.run(&["--prompt", "w1", "--max-tokens", "0", "--json"]));
    assert_eq!((&none["tokens"], &none["text"]), (&json!([]), &json!("")));
}

#[test]
fn a_seed_decides_what_a_temperature_leaves_open() {
    let tiny = Tiny::new(&version_4(), 1);
    let tokens = |more: &[&str]| json_of(&tiny.run(&[&ASK, more].concat()))["tokens"].clone();
    assert_eq!(
        tokens(&["--temperature", "2", "--seed", "1"]),
        tokens(&["--temperature", "2", "--seed", "1"])
    );
    assert_ne!(
        tokens(&["--temperature", "2", "--seed", "1"]),
        tokens(&["--temperature", "2", "--seed", "2"])
    );
    assert_eq!(tokens(&["--temperature", "2", "--top-k", "1"]), json!(TOKENS_4));
}

#[test]
fn prompts_do_not_see_each_other() {
    let tiny = Tiny::new(&version_4(), 1);
    let output = tiny.run(&[&["--prompt", "w1 w2"], &ASK[..]].concat());
    assert!(output.status.success(), "{output:?}");
    let lines = String::from_utf8(output.stdout).unwrap();
    let last: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    assert_eq!((lines.lines().count(), &last["tokens"]), (2, &json!(TOKENS_4)));
}

#[test]
fn load_only_needs_no_tokenizer() {
    let tiny = Tiny::new(&version_4(), 3);
    tiny.remove("tokenizer.json");
    let json = json_of(&tiny.run(&["--load-only", "--json"]));
    assert_eq!((&json["prompt"], &json["shards"]), (&Value::Null, &json!(3)));
    let error = error_of(&tiny.run(&ASK));
    assert!(error.contains("tokenizer.json: there is no such file beside the weights"), "{error}");
}

#[test]
fn what_is_not_computed_or_does_not_fit_is_named() {
    for (key, value, message) in [
        ("model_type", json!("gpt2"), "model_type is \"gpt2\""),
        ("hidden_act", json!("gelu"), "hidden_act is \"gelu\""),
        ("rope_parameters", json!({"rope_type": "yarn", "factor": 2.0}), "the rope type is \"yarn\""),
        ("sliding_window", json!(8), "sliding_window"),
        ("num_hidden_layers", json!(3), "layers.2."),
        ("num_hidden_layers", json!(1_000_000), "the checkpoint has only"),
        ("num_key_value_heads", json!(4), "k_proj"),
        ("tie_word_embeddings", json!(false), "lm_head.weight"),
        ("attention_bias", json!(true), "q_proj.bias"),
    ] {
        let tiny = Tiny::new(&version_5(), 2);
        let mut config = version_5();
        config[key] = value;
        tiny.write("config.json", config.to_string());
        let error = error_of(&tiny.run(&ASK));
        assert!(error.contains(tiny.path().to_str().unwrap()) && error.contains(message), "{key}: {error}");
    }
    let mut config = version_5();
    config["model_type"] = json!("mistral");
    config["sliding_window"] = json!(16);
    let error = error_of(&Tiny::new(&config, 1).run(&ASK));
    assert!(error.contains("beyond the sliding_window of 16"), "{error}");
}

#[test]
fn what_is_no_checkpoint_is_named() {
    let error = error_of(&run(&["--model", "/no/such/checkpoint", "--load-only"]));
    assert!(error.contains("/no/such/checkpoint"), "{error}");
    let tiny = Tiny::new(&version_4(), 1);
    tiny.write("config.json", "[]");
    let error = error_of(&tiny.run(&["--load-only"]));
    assert!(error.contains("config.json: not a JSON object"), "{error}");
    let error = error_of(&Tiny::new(&version_4(), 1).run(&["--prompt", "", "--json"]));
    assert!(error.contains("no tokens"), "{error}");
}

#[test]
fn a_device_that_was_not_compiled_in_names_its_feature() {
    for (device, feature, compiled) in
        [("cuda:1", "cuda", cfg!(feature = "cuda")), ("vulkan", "vulkan", cfg!(feature = "vulkan"))]
    {
        if !compiled {
            let error = error_of(&run(&["--device", device]));
            assert!(error.contains(device) && error.contains(&format!("--features {feature}")), "{error}");
        }
    }
}

#[test]
fn wrong_usage_is_exit_code_2() {
    for args in [&["--model", "x"][..], &["--device", "gpu"], &["--dtype", "i8"], &["stray"]] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(output.stdout.is_empty());
    }
}
