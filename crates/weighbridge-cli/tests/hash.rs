//! `weighbridge hash`: the same whatever the shards, different whatever else changes.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::Path;

use insta::assert_snapshot;
use proptest::prelude::*;
use support::{llama, raw_file, weighbridge};
use weighbridge::Checkpoint;
use weighbridge::write::{Save, Values};

fn hash(path: &Path, options: &[&str]) -> String {
    weighbridge(["hash", path.to_str().unwrap()].iter().chain(options)).clean()
}

#[test]
fn lines_are_those_of_tensors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    let header = r#"{"b":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},"a\n\u202e":{"dtype":"BOOL","shape":[],"data_offsets":[3,4]}}"#;
    raw_file(&path, header, b"abc\x01");
    let text = hash(&path, &[]);
    assert_snapshot!(text, @r#"
blake3 3808e5b1b8967f94b955293dc459a5e6ff19b3260d7d32301e7c87401f807d7f
48fc721fbbc172e0925fa27af1671de225ba927134802998b10a1568a188652b BOOL [] "a\u000a\u202e"
6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85 U8 [3] "b"
"#);
    let (first, rest) = text.split_once('\n').unwrap();
    assert_eq!(first, format!("blake3 {}", blake3::hash(rest.as_bytes()).to_hex()));
    assert!(rest.contains(&*blake3::hash(b"abc").to_hex()));
    assert_snapshot!(hash(&path, &["--algorithm", "sha256"]), @r#"
sha256 2a8ae8f11737b2d0e01a4fa7d08ad51b19b72ea6e17aac893c6bde9f9fc69343
4bf5122f344554c53bde2ebb8cd2b7e3d1600ad631c385a5d7cce23c7785459a BOOL [] "a\u000a\u202e"
ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad U8 [3] "b"
"#);
    let json = hash(&path, &["--format", "json"]).replace('\u{202e}', "<override>");
    assert_snapshot!(json, @r#"
{
  "algorithm": "blake3",
  "digest": "3808e5b1b8967f94b955293dc459a5e6ff19b3260d7d32301e7c87401f807d7f",
  "schema": "weighbridge.hash/1",
  "tensors": [
    {
      "digest": "48fc721fbbc172e0925fa27af1671de225ba927134802998b10a1568a188652b",
      "dtype": "BOOL",
      "name": "a\n<override>",
      "shape": []
    },
    {
      "digest": "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85",
      "dtype": "U8",
      "name": "b",
      "shape": [
        3
      ]
    }
  ]
}
"#);
}

#[test]
fn large_tensors_are_hashed_in_pieces() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    let mib = 1 << 20;
    let values: Vec<u8> = (0..7 * mib + 11).map(|i: usize| ((i * i) >> 9) as u8).collect();
    let lens = [0, 1, mib, mib + 1, 3 * mib, 3 * mib + 1, 4 * mib, values.len()];
    let shapes: Vec<[usize; 1]> = lens.iter().map(|&len| [len]).collect();
    let tensors = shapes
        .iter()
        .map(|shape| (format!("t{}", shape[0]), Values::new(shape, &values[..shape[0]]).unwrap()));
    Save::new().file(&path, tensors.collect::<Vec<_>>()).unwrap();
    let text = hash(&path, &[]);
    for len in lens {
        let line = format!("{} U8 [{len}] \"t{len}\"\n", blake3::hash(&values[..len]).to_hex());
        assert!(text.contains(&line), "{line}{text}");
    }
}

#[test]
fn shards_and_metadata_make_no_difference() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, other) = (dir.path().join("m.safetensors"), dir.path().join("n.safetensors"));
    llama(&whole, None);
    llama(&dir.path().join("shards"), Some(3000));
    let checkpoint = Checkpoint::open(&whole).unwrap();
    let mut tensors: Vec<_> = checkpoint.tensors().map(|tensor| (tensor.name().to_owned(), tensor)).collect();
    tensors.reverse();
    Save::new().metadata("other", "metadata").file(&other, tensors).unwrap();
    for options in [&[][..], &["--algorithm", "sha256"]] {
        let expected = hash(&whole, options);
        assert_eq!(hash(&dir.path().join("shards"), options), expected);
        assert_eq!(hash(&other, options), expected);
    }
}

#[test]
fn a_manifest_says_what_changed() {
    let dir = tempfile::tempdir().unwrap();
    let (path, manifest) = (dir.path().join("m.safetensors"), dir.path().join("m.b3"));
    let save = |tensors: &[(&str, &[usize], &[f32])]| {
        let tensors =
            tensors.iter().map(|(name, shape, values)| (*name, Values::new(shape, values).unwrap()));
        Save::new().file(&path, tensors.collect::<Vec<_>>()).unwrap();
    };
    save(&[("a", &[2], &[1.0, 2.0]), ("b", &[2], &[1.0, 2.0]), ("c", &[2], &[1.0, 2.0])]);
    fs::write(&manifest, hash(&path, &[])).unwrap();
    let check = ["--check", manifest.to_str().unwrap()];
    assert_eq!(hash(&path, &check), "");
    save(&[("a", &[2], &[1.0, 2.5]), ("b", &[1, 2], &[1.0, 2.0]), ("d", &[2], &[1.0, 2.0])]);
    let ran = weighbridge(["hash", path.to_str().unwrap()].iter().chain(&check));
    assert_eq!(ran.status, 1);
    assert_snapshot!(ran.without(dir.path()), @r#"
[dir]/m.safetensors: tensor "a": its values differ
[dir]/m.safetensors: tensor "b": its shape is [1, 2] instead of [2]
[dir]/m.safetensors: tensor "c": it is missing
[dir]/m.safetensors: tensor "d": the manifest does not list it
"#);
    fs::write(&manifest, "nonsense\n").unwrap();
    let ran = weighbridge(["hash", path.to_str().unwrap()].iter().chain(&check));
    assert_eq!(ran.status, 2);
    assert_snapshot!(ran.without(dir.path()), @"error: [dir]/m.b3: this is not a manifest that `weighbridge hash` wrote");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn equal_across_shardings(sizes in prop::collection::vec(0_usize..200, 1..12), limit in 1_u64..600) {
        let dir = tempfile::tempdir().unwrap();
        let whole = dir.path().join("m.safetensors");
        let values: Vec<f32> = (0..200_u16).map(f32::from).collect();
        let shapes: Vec<[usize; 1]> = sizes.iter().map(|&size| [size]).collect();
        let tensors = || -> Vec<_> {
            let named = shapes.iter().enumerate();
            named.map(|(i, shape)| (format!("t{i}"), Values::new(shape, &values[..shape[0]]).unwrap())).collect()
        };
        Save::new().file(&whole, tensors()).unwrap();
        let shards = dir.path().join("shards");
        Save::new().max_shard_size(limit).directory(&shards, "model", tensors()).unwrap();
        prop_assert_eq!(hash(&whole, &[]), hash(&shards, &[]));
    }
}
