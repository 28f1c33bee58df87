//! `weighbridge verify`: what is found, in which words, and with which exit status.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::Path;

use insta::assert_snapshot;
use proptest::prelude::*;
use support::{Ran, llama, raw_file, weighbridge};
use weighbridge::write::{Save, Values};

fn verify(path: &Path, options: &[&str]) -> Ran {
    weighbridge(["verify", path.to_str().unwrap()].iter().chain(options))
}

fn sharded() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    llama(dir.path(), Some(4000));
    dir
}

/// The shards, in the order of their names.
fn shards(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "safetensors"));
    paths.sort();
    paths
}

/// Changes the text of the index.
fn edit(dir: &Path, from: &str, to: &str) {
    let path = dir.join("model.safetensors.index.json");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{text}");
    fs::write(&path, text.replacen(from, to, 1)).unwrap();
}

#[test]
fn clean_is_zero() {
    let dir = sharded();
    let ran = verify(dir.path(), &["--data", "--profile", "strict"]);
    assert_eq!(ran.status, 0);
    assert_snapshot!(ran.without(dir.path()), @"[dir]: clean: 63 tensors in 5 shards, 19.4 kB");
}

/// A repository in a cache as `huggingface_hub` makes it: files are links to blobs, named by SHA-256 or as Git does.
#[cfg(unix)]
#[test]
fn files_of_the_cache_are_what_their_blobs_are_named_by() {
    use std::os::unix::fs::symlink;
    let cache = tempfile::tempdir().unwrap();
    let repository = cache.path().join("models--org--name");
    let (blobs, snapshot) = (repository.join("blobs"), repository.join("snapshots/0123abcd"));
    fs::create_dir_all(&blobs).unwrap();
    fs::create_dir_all(snapshot.join("sub")).unwrap();
    fs::create_dir_all(repository.join("refs")).unwrap();
    fs::write(repository.join("refs/main"), "0123abcd").unwrap();
    let weights = cache.path().join("w.safetensors");
    raw_file(&weights, r#"{"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}"#, b"abc");
    let bytes = fs::read(&weights).unwrap();
    // sha256sum of the file, and `git hash-object` of `{}` and of nothing.
    let sha256 = "422fc6bab8c609cf91ff21388c0d5954c3078806f75d074b524ac51541e3e4f4";
    let (object, nothing) =
        ("9e26dfeeb6e641a33dae4961196235bdb965b21b", "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391");
    fs::rename(&weights, blobs.join(sha256)).unwrap();
    fs::write(blobs.join(object), "{}").unwrap();
    fs::write(blobs.join(nothing), "").unwrap();
    symlink(format!("../../blobs/{sha256}"), snapshot.join("model.safetensors")).unwrap();
    symlink(format!("../../blobs/{object}"), snapshot.join("config.json")).unwrap();
    symlink(format!("../../../blobs/{nothing}"), snapshot.join("sub/empty")).unwrap();
    fs::write(snapshot.join("notes.txt"), "a file of one's own").unwrap();
    let by_id = |options: &[&str]| {
        let mut command = support::command();
        command.env("HF_HUB_CACHE", cache.path()).args(["verify", "org/name"]).args(options);
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    assert_eq!(verify(&snapshot, &["--data"]).status, 0);
    assert_eq!(by_id(&["--data"]).0, Some(0));
    assert_eq!(verify(&snapshot.join("model.safetensors"), &["--data"]).status, 0);
    // One byte of the weights, one of a small file, and a blob that is gone.
    let mut changed = bytes.clone();
    *changed.last_mut().unwrap() ^= 1;
    fs::write(blobs.join(sha256), changed).unwrap();
    fs::write(blobs.join(object), "[]").unwrap();
    fs::remove_file(blobs.join(nothing)).unwrap();
    assert_eq!(verify(&snapshot, &[]).status, 0);
    assert_eq!(verify(&snapshot.join("model.safetensors"), &["--data"]).status, 1);
    assert_eq!(by_id(&["--data"]).0, Some(1));
    let ran = verify(&snapshot, &["--data"]);
    assert_eq!(ran.status, 1);
    assert_snapshot!(ran.without(cache.path()), @r#"
error[blob]: [dir]/models--org--name/snapshots/0123abcd/sub/empty: it is a link to the blob e69de29bb2d1d6434b8b29ae775ad8c2e48c5391, which is missing
error[blob]: [dir]/models--org--name/snapshots/0123abcd/config.json: its Git SHA-1 is 0637a088a01e8ddab3bf3fa98dbe804cbde1a0dc, but its blob is named 9e26dfeeb6e641a33dae4961196235bdb965b21b
error[blob]: [dir]/models--org--name/snapshots/0123abcd/model.safetensors: its SHA-256 is 7f96c7bac340f3a6c2ec8d6524b4802ffa88d3c2dab8a3d59caf72bc517d5ca3, but its blob is named 422fc6bab8c609cf91ff21388c0d5954c3078806f75d074b524ac51541e3e4f4
[dir]/models--org--name/snapshots/0123abcd: 3 errors, 0 warnings; could be read: 1 tensor in 1 shard, 3 B
"#);
    // A file that was not changed is told of by nobody.
    fs::write(blobs.join(sha256), bytes).unwrap();
    assert_eq!(verify(&snapshot.join("model.safetensors"), &["--data"]).status, 0);
}

#[test]
fn everything_wrong_with_a_repository_is_found_at_once() {
    let dir = sharded();
    let shards = shards(dir.path());
    fs::remove_file(&shards[2]).unwrap();
    let cut = fs::OpenOptions::new().write(true).open(&shards[1]).unwrap();
    cut.set_len(cut.metadata().unwrap().len() - 7).unwrap();
    fs::copy(&shards[0], dir.path().join("model-00009-of-00009.safetensors")).unwrap();
    edit(dir.path(), "\"lm_head.weight\": \"model-", "\"lm_head.weight\": \"../model-");
    edit(dir.path(), "\"model.layers.0.mlp.up_proj.weight\"", "\"model.layers.0.mlp.up\"");
    edit(dir.path(), "\"total_size\": 1", "\"total_size\": 2");
    let ran = verify(dir.path(), &[]);
    assert_eq!(ran.status, 1);
    assert_snapshot!(ran.without(dir.path()), @r#"
error[shard-name]: [dir]/model.safetensors.index.json: tensor "lm_head.weight": the shard name "../model-00005-of-00005.safetensors" leads outside the directory of the index
error[data-length]: [dir]/model-00002-of-00005.safetensors: the file is cut short: the header describes 5064 bytes, the file has 5057
error[missing-shard]: [dir]/model.safetensors.index.json: the shard "model-00003-of-00005.safetensors" that it names is not there
error[missing-tensor]: [dir]/model.safetensors.index.json: tensor "model.layers.0.mlp.up": the index places it in "model-00001-of-00005.safetensors", which does not hold it
warning[unlisted-tensor]: [dir]/model.safetensors.index.json: tensor "model.layers.0.mlp.up_proj.weight": it is in model-00001-of-00005.safetensors, and the index does not list it
warning[orphaned-shard]: [dir]/model-00009-of-00009.safetensors: nothing says that this shard belongs to the checkpoint
[dir]: 4 errors, 2 warnings; could be read: 36 tensors in 3 shards, 11.8 kB
"#);
}

#[test]
fn of_a_tensor_in_two_shards_the_index_decides() {
    let dir = tempfile::tempdir().unwrap();
    let entry = |name: &str, end| {
        format!(r#""{name}":{{"dtype":"U8","shape":[2],"data_offsets":[{},{end}]}}"#, end - 2)
    };
    let shard = |file: &str, names: [&str; 2]| {
        let header = format!("{{{},{}}}", entry(names[0], 2), entry(names[1], 4));
        raw_file(&dir.path().join(file), &header, b"abcd");
    };
    shard("m-1.safetensors", ["x", "both"]);
    shard("m-2.safetensors", ["both", "y"]);
    let index = |weights: &str| {
        let text = format!(
            r#"{{"metadata":{{"total_size":6}},"weight_map":{{"x":"m-1.safetensors","y":"m-2.safetensors"{weights}}}}}"#
        );
        fs::write(dir.path().join("model.safetensors.index.json"), text).unwrap();
    };
    index(r#","both":"m-2.safetensors""#);
    let ran = verify(dir.path(), &["--profile", "strict"]);
    assert_eq!(ran.status, 1);
    assert_snapshot!(ran.without(dir.path()), @r#"
warning[duplicate-tensor]: [dir]/m-1.safetensors: tensor "both": it is not used, because the index says that "m-2.safetensors" holds this tensor
[dir]: 0 errors, 1 warning; could be read: 4 tensors in 2 shards, 8 B
"#);
    index(r#","both":"m-1.safetensors""#);
    assert_snapshot!(verify(dir.path(), &[]).without(dir.path()), @r#"
warning[duplicate-tensor]: [dir]/m-2.safetensors: tensor "both": it is not used, because the index says that "m-1.safetensors" holds this tensor
[dir]: 0 errors, 1 warning; could be read: 4 tensors in 2 shards, 8 B
"#);
    index("");
    let ran = verify(dir.path(), &[]);
    assert_eq!(ran.status, 1);
    assert_snapshot!(ran.without(dir.path()), @r#"
error[duplicate-tensor]: [dir]/m-2.safetensors: tensor "both": "m-1.safetensors" holds a tensor of this name, too
warning[unlisted-tensor]: [dir]/model.safetensors.index.json: tensor "both": it is in m-1.safetensors, and the index does not list it
[dir]: 1 error, 1 warning; could be read: 4 tensors in 2 shards, 8 B
"#);
}

#[test]
fn each_tensor_out_of_place_is_a_finding() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    let header = r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[1,3]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,8]},
        "c":{"dtype":"U8","shape":[4],"data_offsets":[6,10]},"d":{"dtype":"F4","shape":[1],"data_offsets":[10,10]}}"#;
    raw_file(&path, header, &[0; 12]);
    let ran = verify(&path, &["--profile", "strict"]);
    assert_eq!(ran.status, 1);
    assert_snapshot!(ran.without(dir.path()), @r#"
error[offsets]: [dir]/m.safetensors: tensor "a": there is a hole before its data: data_offsets [1, 3], expected to start at 0
error[offsets]: [dir]/m.safetensors: tensor "b": there is a hole before its data: data_offsets [4, 8], expected to start at 3
error[tensor-size]: [dir]/m.safetensors: tensor "b": shape [2] of F32 needs 8 bytes, the header gives 4
error[offsets]: [dir]/m.safetensors: tensor "c": its data overlaps the data before it: data_offsets [6, 10], expected to start at 8
error[sub-byte]: [dir]/m.safetensors: tensor "d": shape [1] of F4 does not end on a byte
error[data-length]: [dir]/m.safetensors: the file has bytes left over: the header describes 240 bytes, the file has 242
[dir]/m.safetensors: 6 errors, 0 warnings; could be read: 0 tensors in 0 shards, 0 B
"#);
}

#[test]
fn the_strict_profile_makes_errors_of_notes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    raw_file(&path, "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1],\"x\":1}}\n", &[0]);
    let (compat, strict) = (verify(&path, &[]), verify(&path, &["--profile", "strict"]));
    assert_eq!((compat.status, strict.status), (0, 1));
    assert_snapshot!(compat.without(dir.path()), @r#"
note[unknown-field]: [dir]/m.safetensors: tensor "a": its entry has a field other than dtype, shape and data_offsets
note[padding]: [dir]/m.safetensors: the header is padded with characters other than spaces
[dir]/m.safetensors: clean: 1 tensor in 1 shard, 1 B
"#);
    assert_snapshot!(verify(&path, &["--profile", "strict", "--format", "json"]).without(dir.path()), @r#"
{
  "schema": "weighbridge.verify/1",
  "profile": "strict",
  "checkpoints": [
    {
      "path": "[dir]/m.safetensors",
      "clean": false,
      "shards": 1,
      "tensors": 1,
      "bytes": 1,
      "findings": [
        {
          "severity": "error",
          "rule": "unknown-field",
          "file": "[dir]/m.safetensors",
          "tensor": "a",
          "message": "[dir]/m.safetensors: tensor \"a\": its entry has a field other than dtype, shape and data_offsets"
        },
        {
          "severity": "error",
          "rule": "padding",
          "file": "[dir]/m.safetensors",
          "tensor": null,
          "message": "[dir]/m.safetensors: the header is padded with characters other than spaces"
        }
      ],
      "rules": {
        "padding": {
          "severity": "error",
          "count": 1
        },
        "unknown-field": {
          "severity": "error",
          "count": 1
        }
      }
    }
  ]
}
"#);
}

#[test]
fn data_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    let header = r#"{"b":{"dtype":"BOOL","shape":[4],"data_offsets":[0,4]},"h":{"dtype":"F16","shape":[2],"data_offsets":[4,8]},
        "z":{"dtype":"C64","shape":[1],"data_offsets":[8,16]}}"#;
    let data = [[0, 1, 2, 255, 0, 0x7C, 1, 0x7C], [0, 0, 0x80, 0x7F, 0, 0, 0xC0, 0xFF]].concat();
    raw_file(&path, header, &data);
    assert_eq!(verify(&path, &[]).status, 0);
    let ran = verify(&path, &["--data"]);
    assert_eq!(ran.status, 1);
    assert_snapshot!(ran.without(dir.path()), @r#"
error[bool]: [dir]/m.safetensors: tensor "b": 2 bytes of BOOL are neither 0 nor 1
warning[nan]: [dir]/m.safetensors: tensor "h": 1 of 2 values are NaN
warning[infinity]: [dir]/m.safetensors: tensor "h": 1 of 2 values are infinite
warning[nan]: [dir]/m.safetensors: tensor "z": 1 of 2 values are NaN
warning[infinity]: [dir]/m.safetensors: tensor "z": 1 of 2 values are infinite
[dir]/m.safetensors: 1 error, 4 warnings; could be read: 3 tensors in 1 shard, 16 B
"#);
}

#[test]
fn digests_are_compared() {
    let dir = tempfile::tempdir().unwrap();
    let (path, manifest) = (dir.path().join("m.safetensors"), dir.path().join("m.b3"));
    llama(&path, None);
    fs::write(&manifest, weighbridge(["hash", path.to_str().unwrap()]).clean()).unwrap();
    let options = ["--manifest", manifest.to_str().unwrap()];
    assert_eq!(verify(&path, &options).status, 0);
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    let ran = verify(&path, &options);
    assert_eq!(ran.status, 1);
    assert_snapshot!(ran.without(dir.path()), @r#"
error[manifest]: [dir]/m.safetensors: tensor "model.norm.weight": its values differ
[dir]/m.safetensors: 1 error, 0 warnings; could be read: 63 tensors in 1 shard, 19.4 kB
"#);
    assert_eq!(verify(&path, &["--sha256", &"0".repeat(64)]).status, 1);
    assert_eq!(verify(&path, &["--sha256", "0"]).status, 2);
}

#[test]
fn what_cannot_be_looked_at_is_two() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(verify(&dir.path().join("nothing"), &[]).status, 2);
    let ran = verify(dir.path(), &[]);
    assert_eq!(ran.status, 2);
    assert_snapshot!(ran.without(dir.path()), @"error: [dir]: no safetensors checkpoint is in this directory");
    // What is found is said all the same.
    let broken = dir.path().join("m.safetensors");
    fs::write(&broken, [0; 4]).unwrap();
    let ran = verify(&broken, &[dir.path().join("nothing").to_str().unwrap()]);
    assert_eq!(ran.status, 2);
    assert!(ran.stdout.contains("[header-too-small]"), "{ran:?}");
}

#[cfg(unix)]
#[test]
fn a_pipe_is_not_waited_for() {
    let dir = sharded();
    let pipe = shards(dir.path()).remove(1);
    fs::remove_file(&pipe).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let ran = verify(dir.path(), &[]);
    assert_eq!(ran.status, 2);
    assert!(ran.stderr.contains("not a regular file") && !ran.stdout.contains("clean"), "{ran:?}");
}

#[test]
fn names_do_not_reach_the_terminal_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    raw_file(&path, r#"{"\u001b[2J\u202e":{"dtype":"F32","shape":[1],"data_offsets":[0,3]}}"#, &[0; 3]);
    let ran = verify(&path, &[]);
    assert_eq!(ran.status, 1);
    assert!(!ran.stdout.contains(['\u{1b}', '\u{202e}']), "{ran:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Whatever bytes change, there is an answer: clean or not, and never a crash.
    #[test]
    fn any_damage_has_an_answer(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4), cut: prop::sample::Index) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.safetensors");
        let values = [1.0_f32, 2.0];
        Save::new().metadata("k", "v").file(&path, [("a", Values::new(&[2], &values).unwrap())]).unwrap();
        let mut bytes = fs::read(&path).unwrap();
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        let whole = bytes.len();
        bytes.truncate(cut.index(2 * whole));
        fs::write(&path, &bytes).unwrap();
        let ran = verify(&path, &["--data"]);
        prop_assert!(ran.status == 0 || ran.status == 1, "{:?}", ran);
        prop_assert!(bytes.len() == whole || ran.status == 1);
    }
}
