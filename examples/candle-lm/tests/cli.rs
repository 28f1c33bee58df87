//! The program as its users run it: right answers, the promised output, and errors of one line.

#![expect(clippy::unwrap_used, reason = "the helpers of these tests are not tests themselves")]

mod support;

use std::fs;

use examples_support::testing;
use serde_json::{Value, json};
use support::{Tiny, error_of, json_of, run, sample};

const PROGRAM: &str = env!("CARGO_BIN_EXE_candle-lm");

/// As transformers 4 writes it. The tokens that `reference.py` expects are in the tests.
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

/// As transformers 5 writes it; with fewer positions than are used, which limits nothing.
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

const TOKENS_4: [u32; 24] = [1, 2, 28, 12, 7, 7, 7, 7, 7, 7, 31, 39, 28, 37, 7, 31, 39, 28, 7, 7, 7, 7, 7, 7];
const TOKENS_5: [u32; 24] =
    [33, 5, 21, 5, 21, 21, 21, 21, 21, 21, 21, 21, 5, 21, 5, 21, 5, 21, 5, 21, 21, 21, 21, 21];

const TOKENS_QWEN2: [u32; 24] = [9, 9, 9, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 9, 17, 9, 17, 9, 17, 9, 17, 9];
const TOKENS_GRANITE: [u32; 24] =
    [7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 9, 23, 11, 31, 14, 23, 11, 31, 14, 23, 7];
const TOKENS_FALCON: [u32; 24] =
    [20, 32, 7, 20, 32, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20];

/// Another family, of the same sizes.
fn of_family(model_type: &str, more: &Value) -> Value {
    let mut config = json!({
        "model_type": model_type, "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}
    });
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    config
}

fn qwen2() -> Value {
    of_family("qwen2", &json!({"tie_word_embeddings": true}))
}

fn granite() -> Value {
    let multipliers = json!({
        "embedding_multiplier": 3.0, "attention_multiplier": 0.5, "residual_multiplier": 0.25,
        "logits_scaling": 4.0
    });
    of_family("granite", &multipliers)
}

fn falcon() -> Value {
    of_family("falcon", &json!({"ffn_hidden_size": 48, "layer_norm_epsilon": 1e-5}))
}

/// What `reference.py` asked.
const ASK: [&str; 5] = ["--prompt", "w5 w9 w31 w7", "--max-new-tokens", "24", "--json"];

#[test]
fn the_sample_adds() {
    let output = run(&[]);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.lines().count() >= 3, "{text}");
    for line in text.lines() {
        let (sum, answer) = line.split_once('=').unwrap();
        let sum: u32 = sum.split('+').map(|number| number.parse::<u32>().unwrap()).sum();
        assert_eq!(answer, sum.to_string(), "{line}");
    }
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
        let args = ["--model", sample, "--prompt", "123+456=", "--dtype", dtype, "--json"];
        let json = json_of(&run(&args));
        assert_eq!(json["text"], "579", "{dtype}");
        assert_eq!(json["tokens"].as_array().unwrap().len(), 4, "three digits and the end");
        assert_eq!(json["dtype"], dtype);
        assert_eq!(json["device"], "cpu");
        assert_eq!(json["prompt"], "123+456=");
        assert!(json["shards"].as_u64().unwrap() >= 3);
        assert_eq!(json["dtypes"], json!({"BF16": json["tensors"]}));
        assert!(json["bytes"].as_u64().unwrap() > 100_000);
        assert!(json["load_seconds"].as_f64().unwrap() > 0.0);
        assert!(json["tokens_per_second"].as_f64().unwrap() > 0.0);
    }
}

#[test]
fn tokens_are_those_of_transformers() {
    for (config, shards, expected) in [
        (version_4(), 1, TOKENS_4),
        (version_4(), 3, TOKENS_4),
        (version_5(), 1, TOKENS_5),
        (version_5(), 4, TOKENS_5),
        (qwen2(), 2, TOKENS_QWEN2),
        (granite(), 1, TOKENS_GRANITE),
        (falcon(), 3, TOKENS_FALCON),
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
}

#[test]
fn no_tokens_can_be_asked_for() {
    let tiny = Tiny::new(&version_4(), 1);
    let json = json_of(&tiny.run(&["--prompt", "w1", "--max-new-tokens", "0", "--json"]));
    assert_eq!((&json["tokens"], &json["text"]), (&json!([]), &json!("")));
}

#[test]
fn a_seed_decides_what_a_temperature_leaves_open() {
    let tiny = Tiny::new(&version_4(), 1);
    let tokens = |seed| {
        let args = [&ASK[..], &["--temperature", "2", "--seed", seed]].concat();
        json_of(&tiny.run(&args))["tokens"].clone()
    };
    assert_eq!(tokens("1"), tokens("1"));
    assert_ne!(tokens("1"), tokens("2"));
}

#[test]
fn what_keeps_one_token_is_greedy() {
    let tiny = Tiny::new(&version_4(), 1);
    for few in [["--top-k", "1"], ["--top-p", "0.000001"], ["--min-p", "1"]] {
        let args = [&ASK[..], &["--temperature", "2", "--seed", "3"], &few].concat();
        assert_eq!(json_of(&tiny.run(&args))["tokens"], json!(TOKENS_4), "{few:?}");
    }
    let args = [&ASK[..], &["--repetition-penalty", "1000"]].concat();
    let tokens = json_of(&tiny.run(&args))["tokens"].clone();
    let mut all: Vec<_> = tokens.as_array().unwrap().iter().map(|token| token.as_u64().unwrap()).collect();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 24, "none comes twice: {tokens}");
}

#[test]
fn prompts_do_not_see_each_other() {
    for config in [version_4(), falcon()] {
        let tiny = Tiny::new(&config, 1);
        let answers = |args: &[&str]| {
            let output = tiny.run(&[args, &["--json", "--max-new-tokens", "9"]].concat());
            assert!(output.status.success(), "{output:?}");
            let lines = String::from_utf8(output.stdout).unwrap();
            let tokens = |line| serde_json::from_str::<Value>(line).unwrap()["tokens"].clone();
            lines.lines().map(tokens).collect::<Vec<_>>()
        };
        let (first, second) = (["--prompt", "w5 w9 w31 w7"], ["--prompt", "w1 w2"]);
        let both = answers(&[&second[..], &first, &second].concat());
        assert_eq!(both, [answers(&second), answers(&first), answers(&second)].concat());
    }
}

#[test]
fn a_question_is_asked_with_the_template() {
    let tiny = Tiny::new(&version_4(), 1);
    let chat = ["--chat", "--system", "w31", "--prompt", "w9", "--max-new-tokens", "5", "--json"];
    let error = error_of(&tiny.run(&chat));
    assert!(error.contains("chat_template.jinja"), "{error}");

    // w5 system; w7 to answer: together what `reference.py` asked, with the system's words behind.
    let template = "{{ bos_token }}{% for message in messages | reverse %} {{ message['content'] }}{% endfor %}\
                    {% if add_generation_prompt %} w7{% endif %}";
    let config = json!({"bos_token": {"content": "w5"}, "chat_template": template});
    tiny.write("tokenizer_config.json", config.to_string());
    let json = json_of(&tiny.run(&chat));
    assert_eq!(json["tokens"], json!(TOKENS_4[..5]));
    assert_eq!(json["prompt"], "w9");

    tiny.write("chat_template.jinja", "{{ raise_exception('no such role') }}");
    let error = error_of(&tiny.run(&chat));
    assert!(error.contains("no such role"), "{error}");
}

#[test]
fn a_conversation_knows_what_was_said() {
    let tiny = Tiny::new(&version_4(), 1);
    tiny.write("chat_template.jinja", "w5{% for said in messages %} {{ said.content }}{% endfor %} w7");
    let converse = |more: &[&str], input: &str| {
        let args = ["--chat", "--max-new-tokens", "3", "--json"];
        testing::run_with(env!("CARGO_BIN_EXE_candle-lm"), &[&tiny.args()[..], &args, more].concat(), input)
    };
    let output = converse(&[], "w9 w31\nw2\n\nw3\n");
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let answers: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(answers.len(), 2, "an empty line ends it");
    assert_eq!(answers[0]["tokens"], json!(TOKENS_4[..3]));
    // The second question comes after the first and its answer.
    let whole = format!("w5 w9 w31 {} w2 w7", answers[0]["text"].as_str().unwrap());
    let again = json_of(&tiny.run(&["--prompt", &whole, "--max-new-tokens", "3", "--json"]));
    assert_eq!(answers[1]["tokens"], again["tokens"]);

    let output = converse(&["--context", "4"], "w9 w31 w1\n");
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && error.contains("--context"), "{error}");
}

#[test]
fn weights_that_are_not_read_are_named() {
    let tiny = Tiny::new(&qwen2(), 1);
    let mut config = qwen2();
    config["model_type"] = json!("llama");
    tiny.write("config.json", config.to_string());
    let output = tiny.run(&["--load-only"]);
    let warning = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && warning.contains("k_proj.bias"), "{warning}");
    assert!(warning.starts_with("warning: the model does not read 6 of the tensors: "), "{warning}");
}

#[test]
fn a_window_that_is_too_short_is_named() {
    let mut config = of_family("mistral", &json!({"sliding_window": 20}));
    let tiny = Tiny::new(&config, 1);
    let ask = ["--prompt", "w5 w9 w31 w7", "--json", "--max-new-tokens"];
    assert!(tiny.run(&[&ask[..], &["16"]].concat()).status.success());
    let error = error_of(&tiny.run(&[&ask[..], &["17"]].concat()));
    assert!(error.contains("sliding_window of 20") && error.contains("--max-new-tokens"), "{error}");

    config["sliding_window"] = Value::Null;
    tiny.write("config.json", config.to_string());
    assert!(tiny.run(&[&ask[..], &["17"]].concat()).status.success());
}

#[test]
fn a_gguf_file_says_what_it_is() {
    let tiny = Tiny::new(&version_4(), 1);
    let key = |name: &str, value: &str| {
        let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
        [text(name), 8u32.to_le_bytes().to_vec(), text(value)].concat()
    };
    for (architecture, expected) in [("rwkv", "\"rwkv\""), ("gemma3", "SiLU"), ("llama", "token_embd.weight")]
    {
        let counts = [0u64.to_le_bytes(), 1u64.to_le_bytes()].concat();
        let header = [&b"GGUF"[..], &3u32.to_le_bytes(), &counts, &key("general.architecture", architecture)];
        tiny.write("model.gguf", header.concat());
        let path = tiny.path().join("model.gguf");
        let error = error_of(&run(&["--model", path.to_str().unwrap(), "--load-only"]));
        assert!(error.contains("model.gguf") && error.contains(expected), "{error}");
    }
}

#[test]
fn load_only_needs_no_tokenizer() {
    let tiny = Tiny::new(&version_4(), 3);
    tiny.remove("tokenizer.json");
    let json = json_of(&tiny.run(&["--load-only", "--json"]));
    assert_eq!(json["tensors"], 21);
    assert_eq!(json["shards"], 3);
    assert_eq!(json["tokens"], json!([]));
    assert_eq!(json["prompt"], Value::Null);

    let output = tiny.run(&["--load-only"]);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    assert!(String::from_utf8(output.stdout).unwrap().contains("21 (21 F32) in 3 shards"));

    let error = error_of(&tiny.run(&ASK));
    assert!(error.contains("tokenizer.json"), "{error}");
}

#[test]
fn text_goes_to_standard_output_as_it_comes() {
    let tiny = Tiny::new(&version_4(), 1);
    let output = tiny.run(&["--prompt", "w5 w9 w31 w7", "--max-new-tokens", "3"]);
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "w5 w9 w31 w7 w1 w2 w28\n");
}

#[test]
fn an_output_projection_beside_tied_embeddings_is_used() {
    let tiny = Tiny::new(&version_4(), 1);
    let mut config = version_4();
    config["tie_word_embeddings"] = json!(true);
    tiny.write("config.json", config.to_string());
    assert_eq!(json_of(&tiny.run(&ASK))["tokens"], json!(TOKENS_4));
}

#[test]
fn what_is_no_checkpoint_is_named() {
    let error = error_of(&run(&["--model", "/no/such/checkpoint", "--load-only"]));
    assert!(error.contains("/no/such/checkpoint"), "{error}");

    let empty = tempfile::tempdir().unwrap();
    let path = empty.path().to_str().unwrap();
    let error = error_of(&run(&["--model", path, "--load-only"]));
    assert!(error.contains(path), "{error}");

    // What `torch.save` writes, an archive of pickles, or a bare pickle of old.
    for bytes in
        [&b"PK\x03\x04\x00\x00\x08\x08 archive/data.pkl"[..], b"\x80\x02}q\x00X\x06\x00\x00\x00weight"]
    {
        let tiny = Tiny::new(&version_4(), 1);
        tiny.write("model.safetensors", bytes);
        let error = error_of(&tiny.run(&["--load-only"]));
        assert!(error.contains("model.safetensors: "), "{error}");
    }
}

#[test]
fn damaged_files_are_named() {
    let shard = "model-00002-of-00003.safetensors";
    let whole = |tiny: &Tiny| fs::read(tiny.path().join(shard)).unwrap();
    type Damage = fn(&mut Vec<u8>);
    let damages: [(&str, Damage); 5] = [
        ("truncated data", |bytes| bytes.truncate(bytes.len() - 1)),
        ("truncated header", |bytes| bytes.truncate(40)),
        ("empty", Vec::clear),
        ("trailing byte", |bytes| bytes.push(0)),
        ("corrupted header", |bytes| bytes[9..12].fill(b'#')),
    ];
    for (label, damage) in damages {
        let tiny = Tiny::new(&version_4(), 3);
        let mut bytes = whole(&tiny);
        damage(&mut bytes);
        tiny.write(shard, bytes);
        let error = error_of(&tiny.run(&["--load-only"]));
        assert!(error.contains(shard), "{label}: {error}");
    }

    let tiny = Tiny::new(&version_4(), 3);
    tiny.remove(shard);
    assert!(error_of(&tiny.run(&["--load-only"])).contains(shard));
    tiny.write("model.safetensors.index.json", "{");
    assert!(error_of(&tiny.run(&["--load-only"])).contains("model.safetensors.index.json"));
}

#[test]
fn what_the_model_cannot_compute_is_named() {
    let rope = json!({"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0});
    for (key, value, expected) in [
        ("attention_bias", json!(true), "attention_bias"),
        ("mlp_bias", json!(true), "mlp_bias"),
        ("model_type", json!("t5"), "\"t5\""),
        ("rope_parameters", rope, "\"yarn\""),
        ("partial_rotary_factor", json!(0.5), "partial_rotary_factor"),
        ("sliding_window", json!(8), "sliding_window"),
        ("hidden_act", json!("gelu"), "hidden_act"),
        ("architectures", json!(["LlamaForSequenceClassification"]), "ForSequenceClassification"),
        ("num_attention_heads", json!(32), "head_dim"),
    ] {
        let tiny = Tiny::new(&version_5(), 1);
        let mut config = version_5();
        config[key] = value;
        tiny.write("config.json", config.to_string());
        let error = error_of(&tiny.run(&["--load-only"]));
        assert!(error.contains("config.json: ") && error.contains(expected), "{error}");
    }
    let tiny = Tiny::new(&version_5(), 1);
    tiny.write("config.json", "{");
    assert!(error_of(&tiny.run(&["--load-only"])).contains("config.json: "));
    tiny.remove("config.json");
    assert!(error_of(&tiny.run(&["--load-only"])).contains("config.json: "));
}

#[test]
fn a_checkpoint_that_does_not_fit_its_config_is_named() {
    for (key, value, expected) in [
        ("num_hidden_layers", json!(3), "model.layers.2."),
        ("num_hidden_layers", json!(u64::MAX), "num_hidden_layers"),
        ("intermediate_size", json!(64), "another shape"),
        ("vocab_size", json!(41), "\"model.embed_tokens.weight\" is [40, 32], the model needs [41, 32]"),
        ("num_key_value_heads", json!(4), "k_proj"),
        ("tie_word_embeddings", json!(false), "\"lm_head.weight\""),
    ] {
        let tiny = Tiny::new(&version_5(), 2);
        let mut config = version_5();
        config[key] = value;
        tiny.write("config.json", config.to_string());
        let error = error_of(&tiny.run(&["--load-only"]));
        assert!(error.contains(tiny.path().to_str().unwrap()) && error.contains(expected), "{error}");
    }
}

#[test]
fn prompts_that_cannot_be_answered_are_named() {
    let tiny = Tiny::new(&version_4(), 1);
    let error = error_of(&tiny.run(&["--prompt", "", "--json"]));
    assert!(error.contains("no tokens"), "{error}");

    let path = tiny.path().join("tokenizer.json");
    let more = fs::read_to_string(path).unwrap().replace("\"w39\":39", "\"w39\":40");
    tiny.write("tokenizer.json", more);
    let error = error_of(&tiny.run(&["--prompt", "w39", "--json"]));
    assert!(error.contains("token 40") && error.contains("vocab_size"), "{error}");

    tiny.write("tokenizer.json", "{}");
    let error = error_of(&tiny.run(&["--prompt", "w39", "--json"]));
    assert!(error.contains("tokenizer.json: "), "{error}");
}

#[test]
fn a_device_that_was_not_compiled_in_names_its_feature() {
    for (device, feature, compiled) in
        [("cuda:1", "cuda", cfg!(feature = "cuda")), ("metal", "metal", cfg!(feature = "metal"))]
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
    let help = String::from_utf8(run(&["--help"]).stdout).unwrap();
    assert!(help.contains("Examples:") && help.contains("--load-only"), "{help}");
}
