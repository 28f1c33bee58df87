//! The conformance vectors: every verdict of the manifest, by us in both profiles and by the official crate.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors as Official;
use serde_json::{Value, json};
use weighbridge::{Checkpoint, Profile, Result};

fn vectors() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors")
}

fn cases() -> Vec<Value> {
    let manifest: Value =
        serde_json::from_slice(&fs::read(vectors().join("manifest.json")).unwrap()).unwrap();
    manifest["cases"].as_array().unwrap().clone()
}

fn open(path: &Path, profile: Profile) -> Result<Checkpoint> {
    Checkpoint::options().profile(profile).open(path)
}

fn verdict(result: &Result<Checkpoint>) -> &'static str {
    result.as_ref().map_or_else(|error| error.kind().name(), |_| "ok")
}

/// Complains of a verdict that is not the expected one.
fn compare(name: &str, result: &Result<Checkpoint>, expected: &Value, wrong: &mut Vec<String>) {
    if verdict(result) != *expected {
        wrong.push(format!(
            "{name}: expected {expected}, found {} {:?}",
            verdict(result),
            result.as_ref().err()
        ));
    }
}

/// What was found, in the words of the manifest.
fn content(ckpt: &Checkpoint) -> (Value, Value) {
    let tensors: serde_json::Map<_, _> = ckpt
        .tensors()
        .map(|tensor| {
            let range = tensor.info().data_offsets();
            let entry = json!({
                "dtype": tensor.dtype().name(),
                "shape": tensor.shape(),
                "data_offsets": [range.start, range.end],
            });
            (tensor.name().to_owned(), entry)
        })
        .collect();
    let metadata = ckpt.shards()[0].header().metadata();
    let metadata = metadata.map(|entries| entries.map(|(k, v)| (k.to_owned(), v.into())).collect());
    (tensors.into(), metadata.map_or(Value::Null, Value::Object))
}

#[test]
fn files() {
    let (mut seen, mut wrong) = (0, Vec::new());
    for case in cases().iter().filter(|case| case["file"].is_string()) {
        let name = case["file"].as_str().unwrap();
        let path = vectors().join(name);
        let bytes = fs::read(&path).unwrap();
        if usize::BITS < 64
            && bytes
                .chunk_by(|a, b| a.is_ascii_digit() == b.is_ascii_digit())
                .any(|run| run.len() > 9 && run[0].is_ascii_digit())
        {
            // A dimension that this machine cannot count to is refused at once, here and by the official crate.
            assert!(open(&path, Profile::Compat).is_err() && Official::deserialize(&bytes).is_err());
            continue;
        }
        let compat = open(&path, Profile::Compat);
        let strict = open(&path, Profile::Strict);
        compare(name, &compat, &case["compat"], &mut wrong);
        compare(name, &strict, &case["strict"], &mut wrong);
        for error in [compat.as_ref().err(), strict.as_ref().err()].into_iter().flatten() {
            let line = error.to_string();
            assert!(line.contains(name.trim_start_matches("files/")) && !line.contains('\n'), "{line}");
        }
        let official = Official::deserialize(&bytes);
        assert_eq!(
            official.is_ok(),
            case["compat"] == "ok",
            "{name}: the official crate says {:?}",
            official.err()
        );
        if let Ok(ckpt) = compat {
            assert_eq!(content(&ckpt), (case["tensors"].clone(), case["metadata"].clone()), "{name}");
            let rules: BTreeSet<_> =
                ckpt.shards()[0].header().findings().iter().map(|f| f.rule.name()).collect();
            assert_eq!(ckpt.warnings().is_empty(), case["strict"] == "ok", "{name}");
            assert!(
                case["strict"] == "ok" || rules.contains(case["strict"].as_str().unwrap()),
                "{name}: {rules:?}"
            );
        }
        seen += 1;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen >= 200, "only {seen} files");
}

#[test]
fn sets() {
    let (mut seen, mut wrong) = (0, Vec::new());
    for case in cases().iter().filter(|case| case["directory"].is_string()) {
        let name = case["directory"].as_str().unwrap();
        for (profile, expected) in [(Profile::Compat, &case["compat"]), (Profile::Strict, &case["strict"])] {
            let found = open(&vectors().join(name), profile);
            compare(name, &found, expected, &mut wrong);
            let Ok(ckpt) = found else { continue };
            let shards: serde_json::Map<_, _> = ckpt
                .tensors()
                .map(|tensor| {
                    let path = tensor.shard().path().unwrap().strip_prefix(vectors().join(name)).unwrap();
                    // One that is being moved into its place is known by its name there.
                    let shown = path.to_str().unwrap();
                    let shown = shown.split_once(".staging/").map_or(shown, |staged| staged.1);
                    (tensor.name().to_owned(), shown.into())
                })
                .collect();
            assert_eq!(Value::Object(shards), case["shards"], "{name}");
            assert_eq!(!ckpt.warnings().is_empty(), case["warnings"].as_bool().unwrap(), "{name}");
        }
        seen += 1;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen >= 30, "only {seen} sets");
}

#[test]
fn every_vector_is_in_the_manifest() {
    let listed: BTreeSet<_> = cases()
        .iter()
        .map(|case| case["file"].as_str().or(case["directory"].as_str()).unwrap().to_owned())
        .collect();
    let there: BTreeSet<_> = ["files", "sets"]
        .iter()
        .flat_map(|kind| {
            let entries = fs::read_dir(vectors().join(kind)).unwrap();
            entries.map(move |entry| format!("{kind}/{}", entry.unwrap().file_name().to_str().unwrap()))
        })
        .collect();
    assert_eq!(listed, there);
}
