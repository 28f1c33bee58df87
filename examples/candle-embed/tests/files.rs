//! Many texts: vectors, batches, files of lines and their index, and what the files of sentence-transformers ask for.

#![expect(clippy::unwrap_used, reason = "the helpers of these tests are not tests themselves")]

mod support;

use std::fs;
use std::path::Path;
use std::process::Output;

use examples_support::testing::run_with;
use safetensors::tensor::{TensorView, serialize_to_file};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use support::{Tiny, bert, error_of, json_of, same};

/// The vectors of texts, in their order.
fn embed(tiny: &Tiny, args: &[&str]) -> Vec<Vec<f64>> {
    let output = tiny.run(&[&["--embed"], args].concat());
    assert!(output.status.success(), "{output:?}");
    let lines = String::from_utf8(output.stdout).unwrap();
    let number = |value: &Value| value.as_f64().unwrap();
    let vector = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        line["embedding"].as_array().unwrap().iter().map(number).collect()
    };
    lines.lines().map(vector).collect()
}

fn assert_near(found: &[Vec<f64>], expected: &[Vec<f64>]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!(found.len(), expected.len());
        let near = found.iter().zip(expected).all(|(x, y)| (x - y).abs() < 2e-6);
        assert!(near, "{found:?}, expected {expected:?}");
    }
}

/// A model with these modules after the BERT.
fn with_modules(modules: &[&str]) -> Tiny {
    let tiny = Tiny::new(&bert(), same);
    let module = |(index, kind): (usize, &&str)| {
        let path = if index == 0 { String::new() } else { format!("{index}_{kind}") };
        json!({"idx": index, "path": path, "type": format!("sentence_transformers.models.{kind}")})
    };
    let modules: Vec<_> = ["Transformer"].iter().chain(modules).enumerate().map(module).collect();
    tiny.write("modules.json", json!(modules).to_string());
    tiny.write("1_Pooling/config.json", r#"{"pooling_mode": "mean"}"#);
    tiny
}

const TEXTS: [&str; 4] = ["w5 w9 w31 w7", "w20", "", "w12 w12 w13 w14 w15 w16 w17"];

#[test]
fn vectors_do_not_depend_on_the_batch() {
    let tiny = Tiny::new(&bert(), same);
    let expected = embed(&tiny, &TEXTS);
    assert_eq!(expected[0].len(), 32);
    for size in ["1", "2", "3"] {
        assert_near(&embed(&tiny, &[&["--batch-size", size], &TEXTS[..]].concat()), &expected);
    }
    for (text, vector) in TEXTS.iter().zip(&expected) {
        assert_near(&embed(&tiny, &[text]), std::slice::from_ref(vector));
    }
}

#[test]
fn modules_after_the_pooling() {
    let plain = embed(&with_modules(&["Pooling"]), &TEXTS);
    let length = |vector: &[f64]| vector.iter().map(|x| x * x).sum::<f64>().sqrt();
    let normal: Vec<Vec<f64>> =
        plain.iter().map(|vector| vector.iter().map(|x| x / length(vector)).collect()).collect();
    let tiny = with_modules(&["Pooling", "Normalize"]);
    assert_near(&embed(&tiny, &TEXTS), &normal);

    let first: Vec<Vec<f64>> = normal.iter().map(|vector| vector[..8].to_vec()).collect();
    let again: Vec<Vec<f64>> =
        first.iter().map(|vector| vector.iter().map(|x| x / length(vector)).collect()).collect();
    assert_near(&embed(&tiny, &[&["--dimensions", "8"], &TEXTS[..]].concat()), &again);
    assert!(error_of(&tiny.run(&["--embed", "--dimensions", "33", "w5"])).contains("--dimensions 33"));

    // One output, the hyperbolic tangent of a sum.
    let tiny = with_modules(&["Pooling", "Dense"]);
    let missing = error_of(&tiny.run(&["--embed", "w5"]));
    assert!(missing.contains("2_Dense/config.json"), "{missing}");
    tiny.write("2_Dense/config.json", r#"{"in_features": 32, "out_features": 1, "bias": false}"#);
    let missing = error_of(&tiny.run(&["--embed", "w5"]));
    assert!(missing.contains("2_Dense: there is neither"), "{missing}");
    let ones: Vec<u8> = [0.01f32; 32].iter().flat_map(|x| x.to_le_bytes()).collect();
    let weight = TensorView::new(Dtype::F32, vec![1, 32], &ones).unwrap();
    let path = tiny.path().join("2_Dense/model.safetensors");
    serialize_to_file([("linear.weight", weight)], None, &path).unwrap();
    let sums: Vec<Vec<f64>> =
        plain.iter().map(|vector| vec![(0.01 * vector.iter().sum::<f64>()).tanh()]).collect();
    assert_near(&embed(&tiny, &TEXTS), &sums);
}

#[test]
fn prompts_come_before_texts() {
    let tiny = Tiny::new(&bert(), same);
    let options = |default: Value| json!({"prompts": {"query": "w3 ", "document": "w4 w4 ", "other": "w6 "}, "default_prompt_name": default});
    let file = "config_sentence_transformers.json";
    let plain = embed(&tiny, &["w3 w5", "w6 w5", "w5"]);
    tiny.write(file, options(json!(null)).to_string());
    let one = |args: &[&str]| embed(&tiny, &[args, &["w5"]].concat());
    assert_near(&one(&["--prompt", "query"]), &plain[..1]);
    assert_near(&one(&["--prefix", "w6 "]), &plain[1..2]);
    assert_near(&one(&[]), &plain[2..]);
    tiny.write(file, options(json!("other")).to_string());
    assert_near(&one(&[]), &plain[1..2]);
    let unknown = error_of(&tiny.run(&["--embed", "--prompt", "none", "w5"]));
    assert!(unknown.contains("the model has document, other, query"), "{unknown}");

    // The same text after the same prompt.
    let score = |args: &[&str]| {
        let json = json_of(&tiny.run(&[&["--json", "w5", "w5"], args].concat()));
        json["results"][0]["score"].as_f64().unwrap()
    };
    assert!(score(&[]) < 0.9999);
    assert!(score(&["--document-prompt", "query"]) > 0.999_999);
    assert!(score(&["--query-prefix", "w4 w4 "]) > 0.999_999);
    assert!(score(&["--prompt", "other"]) > 0.999_999);

    // Tokens of the prompt are seen, but not pooled.
    tiny.write("1_Pooling/config.json", r#"{"pooling_mode": "cls", "include_prompt": false}"#);
    let cls = |args: &[&str]| embed(&tiny, args).remove(0);
    assert_ne!(cls(&["--prompt", "query", "w5"]), cls(&["--prefix", "", "w3 w5"]));
}

#[test]
fn the_nearest_lines_of_a_file() {
    let tiny = Tiny::new(&bert(), same);
    let lines: Vec<String> = (3..40).map(|word| format!("w{word} w{word}")).collect();
    tiny.write("lines.txt", lines.join("\n"));
    let path = tiny.path().join("lines.txt");
    let file = ["--file", path.to_str().unwrap(), "--json"];
    let output = tiny.run(&[&file[..], &["--top", "3", "w7 w7", "w9 w9"]].concat());
    let answers = answers(&output);
    assert_eq!(answers.len(), 2);
    assert_eq!(answers[0]["results"].as_array().unwrap().len(), 3);
    assert_eq!(answers[0]["results"][0]["sentence"], "w7 w7");
    assert_eq!(answers[1]["results"][0]["index"], 6);

    let args = ["--model", tiny.path().to_str().unwrap(), "--file", "-", "--json", "w7 w7"];
    let output = run_with(env!("CARGO_BIN_EXE_candle-embed"), &args, "w6 w7\nw7 w7\n");
    assert_eq!(json_of(&output)["results"][0]["index"], 1);

    tiny.write("lines.txt", "");
    assert!(error_of(&tiny.run(&[&file[..], &["w7"]].concat())).contains("lines.txt: has no lines"));
}

fn answers(output: &Output) -> Vec<Value> {
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn an_index_is_used_again_if_all_is_the_same() {
    let tiny = with_modules(&["Pooling"]);
    let write_lines = |last: &str| tiny.write("lines.txt", format!("w3 w4\nw5 w6\n{last}\n"));
    write_lines("w7");
    let (lines, index) = (tiny.path().join("lines.txt"), tiny.path().join("index.safetensors"));
    let run = |more: &[&str]| {
        let file = ["--file", lines.to_str().unwrap(), "--index", index.to_str().unwrap(), "--json", "w5 w6"];
        tiny.run(&[&file, more].concat())
    };
    let results = |output: &Output| json_of(output)["results"].clone();
    let made = results(&run(&[]));
    assert_eq!(made[0]["index"], 1);
    let bytes = fs::read(&index).unwrap();
    assert_eq!(SafeTensors::deserialize(&bytes).unwrap().tensor("embeddings").unwrap().shape(), [3, 32]);

    // What is in the file is what is found.
    let reversed = reverse_rows(&bytes);
    assert_eq!(results(&run(&[])), made);
    assert_eq!(fs::read(&index).unwrap(), bytes);

    assert!(error_of(&run(&["--max-length", "5"])).contains("was made with other settings"));
    assert!(error_of(&run(&["--prefix", "w9 "])).contains("was made with other settings"));
    write_lines("w8");
    assert!(error_of(&run(&[])).contains("was made with other texts"));
    write_lines("w7");
    fs::write(&index, reversed).unwrap();
    assert!(error_of(&run(&[])).contains("was made with another model"));
    fs::write(&index, "no safetensors").unwrap();
    assert!(error_of(&run(&[])).contains("index.safetensors"));
    fs::remove_file(&index).unwrap();
    assert_eq!(results(&run(&[])), made);
}

/// The same file with its rows in the opposite order.
fn reverse_rows(file: &[u8]) -> Vec<u8> {
    let data = file.len() - 3 * 32 * 4;
    let rows = file[data..].chunks(32 * 4).rev().flatten();
    file[..data].iter().chain(rows).copied().collect()
}

#[test]
fn vectors_are_written_as_safetensors() {
    let tiny = Tiny::new(&bert(), same);
    let path = tiny.path().join("vectors.safetensors");
    let output = tiny.run(&["--embed", "--output", path.to_str().unwrap(), "w5", "w6"]);
    assert!(output.status.success() && output.stdout.is_empty(), "{output:?}");
    assert_eq!(rows(&path), embed(&tiny, &["w5", "w6"]));
}

fn rows(path: &Path) -> Vec<Vec<f64>> {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let values = file.tensor("embeddings").unwrap().data().chunks(4);
    let values: Vec<f32> = values.map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect();
    // As they are printed.
    let printed = |value: &f32| value.to_string().parse::<f64>().unwrap();
    values.chunks(32).map(|row| row.iter().map(printed).collect()).collect()
}

#[test]
fn what_modules_ask_for_is_computed_or_named() {
    let tiny = with_modules(&["Pooling", "CNN"]);
    assert!(error_of(&tiny.run(&["w5", "w6"])).contains("models.CNN"));
    let tiny = with_modules(&["Normalize", "Pooling"]);
    assert!(error_of(&tiny.run(&["w5", "w6"])).contains("models.Normalize"));
    let tiny = with_modules(&["Pooling"]);
    for (file, content, expected) in [
        ("modules.json", json!([]), "there is no pooling"),
        ("modules.json", json!([{"type": "Transformer", "path": "/etc"}]), "\"/etc\""),
        ("sentence_bert_config.json", json!({"query_length": 32}), "query_length"),
        ("config_sentence_transformers.json", json!({"similarity_fn_name": "maxsim"}), "maxsim"),
        ("config_sentence_transformers.json", json!({"prompts": 3}), "prompts"),
        ("1_Pooling/config.json", json!({"pooling_mode_new": true}), "pooling_mode_new"),
        ("1_Pooling/config.json", json!({"pooling_mode": 7}), "pooling_mode"),
    ] {
        let tiny = with_modules(&["Pooling"]);
        tiny.write(file, content.to_string());
        let error = error_of(&tiny.run(&["w5", "w6"]));
        assert!(error.contains(expected) && error.contains(file), "{error}");
    }
    assert!(error_of(&tiny.run(&["w5", "w6", "--dtype", "bf16"])).contains("right in f32 only"));
    assert!(error_of(&tiny.run(&["w5", "w6", "--max-length", "25"])).contains("--max-length 25"));
    assert!(error_of(&tiny.run(&["w5", "w6", "--device", "cuda"])).contains("--features cuda"));
}

#[test]
fn weights_in_a_folder_of_their_own() {
    let tiny = Tiny::new(&bert(), same);
    let expected = embed(&tiny, &TEXTS);
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        tiny.write(&format!("0_Transformer/{file}"), fs::read(tiny.path().join(file)).unwrap());
        tiny.remove(file);
    }
    let modules =
        json!([{"type": "Transformer", "path": "0_Transformer"}, {"type": "Pooling", "path": "1_Pooling"}]);
    tiny.write("modules.json", modules.to_string());
    tiny.write("1_Pooling/config.json", r#"{"pooling_mode_mean_tokens": true}"#);
    assert_near(&embed(&tiny, &TEXTS), &expected);
}

#[test]
fn similarities_are_those_that_the_model_names() {
    let tiny = with_modules(&["Pooling"]);
    let vectors = embed(&tiny, &["w5", "w6"]);
    let score = |args: &[&str]| {
        json_of(&tiny.run(&[&["--json", "w5", "w6"], args].concat()))["results"][0]["score"].as_f64().unwrap()
    };
    let pairs = || vectors[0].iter().zip(&vectors[1]);
    let dot: f64 = pairs().map(|(x, y)| x * y).sum();
    let far: f64 = pairs().map(|(x, y)| (x - y).abs()).sum();
    assert!((score(&["--similarity", "dot"]) - dot).abs() < 1e-4 * dot.abs());
    tiny.write("config_sentence_transformers.json", r#"{"similarity_fn_name": "manhattan"}"#);
    assert!((score(&[]) + far).abs() < 1e-4 * far);
    assert!(score(&["--similarity", "cosine"]) <= 1.0);
}

#[test]
fn a_distilbert_is_a_bert_with_other_names() {
    // Types of tokens that are all the same as none.
    let config = json!({
        "model_type": "distilbert", "activation": "gelu", "vocab_size": 40, "dim": 32, "n_layers": 2, "n_heads": 4,
        "hidden_dim": 48, "max_position_embeddings": 24
    });
    let renamed = |name: &str| {
        let name = name.replace("encoder.layer", "transformer.layer");
        let name = name.replace("attention.output.dense", "attention.out_lin");
        let name = name.replace("attention.output.LayerNorm", "sa_layer_norm");
        let name = name.replace("attention.self.query", "attention.q_lin");
        let name = name.replace("attention.self.key", "attention.k_lin");
        let name = name.replace("attention.self.value", "attention.v_lin");
        let name = name.replace("intermediate.dense", "ffn.lin1");
        let name = name.replace("output.dense", "ffn.lin2");
        name.replace("output.LayerNorm", "output_layer_norm")
    };
    let bert_like =
        Tiny::with(
            &bert(),
            same,
            |name, data| {
                if name.contains("token_type") { vec![0; data.len()] } else { data }
            },
        );
    let tiny = Tiny::with(&bert(), renamed, |_, data| data);
    tiny.write("config.json", config.to_string());
    assert_near(&embed(&tiny, &TEXTS), &embed(&bert_like, &TEXTS));
}
