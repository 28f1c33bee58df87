//! `plan` and `shard`, and `consolidate` of what `shard` wrote.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

mod support;

use std::fs;
use std::path::Path;

use insta::assert_snapshot;
use support::{Ran, weighbridge};
use weighbridge::Checkpoint;

const ADDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../samples/adder");

/// The arguments, with `{}` for the directory and `adder` for the sample.
fn run(dir: &Path, arguments: &str) -> Ran {
    weighbridge(arguments.split_whitespace().map(|argument| match argument {
        "adder" => ADDER.to_owned(),
        _ => argument.replace("{}", dir.to_str().unwrap()),
    }))
}

#[test]
fn a_table_shows_what_ranks_read() {
    let dir = tempfile::tempdir().unwrap();
    assert_snapshot!(run(dir.path(), "plan adder --tp 2 --pp 2").clean(), @r"
    rank  stage   layers  tensors      reads  of all
       0      0      0-1       19     372 kB  25.0 %  ████████████████████████
       1      0      0-1       19     372 kB  25.0 %  ████████████████████████
       2      1      2-3       20     372 kB  25.0 %  ████████████████████████
       3      1      2-3       20     372 kB  25.0 %  ████████████████████████

    4 ranks read 1.49 MB together, of 1.49 MB in 39 tensors: 1.002 times the model. Headers are 4.17 kB more for each.
    ");
    let listed = run(dir.path(), "plan adder --tp 2 --rank 1").clean();
    let lines: Vec<_> = listed.lines().take(3).collect();
    assert_snapshot!(lines.join("\n").replace('\t', "  "), @r"
    model.embed_tokens.weight  BF16  [8, 128]  vocab  dim 0: 8..16  2048
    model.layers.0.input_layernorm.weight  BF16  [128]  replicated  all  256
    model.layers.0.mlp.down_proj.weight  BF16  [128, 176]  row  dim 1: 176..352  45056
    ");
}

#[test]
fn documents_and_pages_say_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let text = run(dir.path(), "plan adder --tp 2 --pp 2 --format json").clean();
    let document: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(document["schema"], "weighbridge.plan/1");
    let ranks = document["ranks"].as_array().unwrap();
    let sum: u64 = ranks.iter().map(|rank| rank["read_bytes"].as_u64().unwrap()).sum();
    assert_eq!((ranks.len(), &ranks[3]["layers"]), (4, &serde_json::json!([2, 4])));
    assert!(sum >= document["bytes"].as_u64().unwrap());
    let one = run(dir.path(), "plan adder --tp 2 --rank 1 --format json").clean();
    let one: serde_json::Value = serde_json::from_str(&one).unwrap();
    let read = one["ranks"][0]["tensors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|tensor| tensor["read_bytes"].as_u64().unwrap());
    assert_eq!(Some(read.sum::<u64>()), one["ranks"][0]["read_bytes"].as_u64());
    run(dir.path(), "plan adder --tp 2 --html {}/map.html");
    let page = fs::read_to_string(dir.path().join("map.html")).unwrap();
    let shown = support::document(&page);
    let names = shown["columns"]["name"].as_array().unwrap();
    assert!(shown["ranks"] == 2 && names.iter().any(|name| name == "rank 1.lm_head.weight"));
    let again = run(dir.path(), "plan adder --tp 2 --html {}/map.html");
    assert!(again.status == 2 && again.stderr.contains("--force replaces it"), "{again:?}");
}

#[test]
fn what_shard_writes_consolidate_joins() {
    let dir = tempfile::tempdir().unwrap();
    for ranks in ["--tp 2", "--tp 4", "--tp 3 --pp 2", "--pp 4"] {
        run(dir.path(), &format!("shard adder {ranks} --force -o {{}}/ranks"));
        let first = Checkpoint::open(dir.path().join("ranks/rank-00000")).unwrap().byte_len();
        assert!(first < Checkpoint::open(ADDER).unwrap().byte_len());
        assert!(dir.path().join("ranks/rank-00001/config.json").is_file());
        run(dir.path(), "consolidate {}/ranks --force -o {}/again");
        run(dir.path(), "diff --data adder {}/again").clean();
        assert!(dir.path().join("again/config.json").is_file());
        fs::remove_dir_all(dir.path().join("ranks")).unwrap();
    }
    // Each rank by itself, and by name.
    for rank in 0..2 {
        run(dir.path(), &format!("shard adder --tp 2 --rank {rank} -o {{}}/ranks"));
    }
    run(dir.path(), "consolidate {}/ranks/rank-00001 {}/ranks/rank-00000 -o {}/one.safetensors");
    run(dir.path(), "diff --data adder {}/one.safetensors").clean();
    let merged = run(dir.path(), "merge {}/ranks/rank-00000 {}/ranks/rank-00001 -o {}/x.safetensors");
    assert!(merged.status == 2 && merged.stderr.contains("`weighbridge consolidate` joins"), "{merged:?}");
    let part = run(dir.path(), "consolidate {}/ranks/rank-00001 -o {}/x.safetensors");
    assert_eq!(part.status, 2, "{part:?}");
    let alone = run(dir.path(), "shard adder --tp 2 -o {}/ranks");
    assert!(alone.status == 2 && alone.stderr.contains("--force replaces it"), "{alone:?}");
}

#[test]
fn plans_come_from_files_too() {
    let dir = tempfile::tempdir().unwrap();
    let rules =
        "@tensor_parallel 2\n*.{up,gate}_proj.weight: column\n*.down_proj.weight: row\n*: replicated\n";
    fs::write(dir.path().join("rules"), rules).unwrap();
    run(dir.path(), "shard adder --plan {}/rules -o {}/ranks");
    run(dir.path(), "consolidate {}/ranks -o {}/again").clean();
    run(dir.path(), "diff --data adder {}/again").clean();
    // By the rules themselves, too.
    run(dir.path(), "consolidate {}/ranks/rank-00000 {}/ranks/rank-00001 --rules {}/rules -o {}/by-rules")
        .clean();
    run(dir.path(), "diff --data adder {}/by-rules").clean();
    let plan =
        r#"{"base_model_tp_plan": {"layers.*.mlp.up_proj": "colwise", "layers.*.mlp.down_proj": "rowwise"}}"#;
    fs::write(dir.path().join("config.json"), plan).unwrap();
    let listed = run(dir.path(), "plan adder --plan {}/config.json --tp 2 --rank 1").clean();
    let line = listed.lines().find(|line| line.contains("layers.3.mlp.down_proj")).unwrap();
    assert_snapshot!(line.replace('\t', " "), @"model.layers.3.mlp.down_proj.weight BF16 [128, 176] row dim 1: 176..352 45056");
    let told = |arguments: &str| {
        let ran = run(dir.path(), arguments);
        assert_eq!(ran.status, 2);
        ran.stderr.replace(ADDER, "adder")
    };
    assert_snapshot!(told("plan adder"), @"error: say for how many ranks: --tp N, --pp N, or @tensor_parallel and @pipeline_parallel in a plan");
    assert_snapshot!(told("plan adder --tp 5"), @r#"error: adder: tensor "model.layers.0.self_attn.k_proj.weight": 4 attention heads are too few for 5 ranks: some would have nothing"#);
    assert_snapshot!(told("plan adder --tp 2 --rank 2"), @"error: there is no rank 2: there are 2, counted from 0");
    assert_snapshot!(told("plan adder --pp 5"), @"error: adder: 4 layers are too few for 5 pipeline stages");
    fs::write(dir.path().join("rules"), "*.q_proj.weight: column\n").unwrap();
    assert_snapshot!(told("plan adder --plan {}/rules --tp 2"), @r#"error: adder: tensor "model.embed_tokens.weight": no rule is about it (nor about 34 others): add one, such as `GLOB: column`, `row` or `replicated`"#);
}
