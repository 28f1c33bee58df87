//! `weighbridge diff`: what differs, by how much, and with which exit status.

#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;

use half::bf16;
use insta::assert_snapshot;
use proptest::prelude::*;
use support::{Ran, llama, weighbridge};
use weighbridge::write::{Save, TensorData, Values};

fn diff(dir: &Path, options: &[&str]) -> Ran {
    let place = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let paths = ["diff".to_owned(), place("a.safetensors"), place("b.safetensors")];
    weighbridge(paths.iter().map(String::as_str).chain(options.iter().copied()))
}

fn save(path: &Path, key: &str, tensors: Vec<(&str, Box<dyn TensorData + '_>)>) {
    Save::new().metadata("key", key).file(path, tensors).unwrap();
}

fn floats<'a>(shape: &'a [usize], values: &'a [f32]) -> Box<dyn TensorData + 'a> {
    Box::new(Values::new(shape, values).unwrap())
}

#[test]
fn shards_make_no_difference() {
    let dir = tempfile::tempdir().unwrap();
    llama(&dir.path().join("a.safetensors"), None);
    llama(&dir.path().join("b.safetensors"), Some(4000));
    let ran = diff(dir.path(), &["--data"]);
    assert_eq!(ran.status, 0);
    assert_snapshot!(ran.without(dir.path()), @"63 tensors: the same values");
}

#[test]
fn everything_that_differs_is_listed() {
    let dir = tempfile::tempdir().unwrap();
    let values = [1.0_f32, 2.0, 3.0, f32::NAN];
    let moved = [1.0_f32, 2.5, 3.0, f32::NAN];
    let halves = values.map(bf16::from_f32);
    save(
        &dir.path().join("a.safetensors"),
        "one",
        vec![
            ("same", floats(&[4], &values)),
            ("cast", floats(&[4], &values)),
            ("shape", floats(&[4], &values)),
            ("moved", floats(&[4], &values)),
            ("old\n", floats(&[3], &values[..3])),
            ("gone", floats(&[2], &values[..2])),
        ],
    );
    save(
        &dir.path().join("b.safetensors"),
        "two",
        vec![
            ("same", floats(&[4], &values)),
            ("cast", Box::new(Values::new(&[4], &halves).unwrap())),
            ("shape", floats(&[2, 2], &values)),
            ("moved", floats(&[4], &moved)),
            ("new", floats(&[3], &values[..3])),
            ("come", floats(&[1], &values[..1])),
        ],
    );
    let ran = diff(dir.path(), &["--data"]);
    assert_eq!(ran.status, 1);
    assert_snapshot!(ran.without(dir.path()), @r#"
- gone F32 [2]
- old\n F32 [3]
+ come F32 [1]
+ new F32 [3]
? old\n may be new now
~ cast: F32 became BF16
~ shape: [4] became [2, 2]
~ metadata key: "one" became "two"
tensor  differing  of   max abs   max rel     moved
moved           1   4  5.000e-1  2.000e-1  1.336e-1
"#);
    assert_snapshot!(diff(dir.path(), &["--data", "--format", "json"]).without(dir.path()), @r#"
{
  "schema": "weighbridge.diff/1",
  "a": "[dir]/a.safetensors",
  "b": "[dir]/b.safetensors",
  "same": false,
  "removed": [
    {
      "name": "gone",
      "dtype": "F32",
      "shape": [
        2
      ]
    },
    {
      "name": "old\n",
      "dtype": "F32",
      "shape": [
        3
      ]
    }
  ],
  "added": [
    {
      "name": "come",
      "dtype": "F32",
      "shape": [
        1
      ]
    },
    {
      "name": "new",
      "dtype": "F32",
      "shape": [
        3
      ]
    }
  ],
  "renamed": [
    {
      "from": "old\n",
      "to": "new"
    }
  ],
  "dtypes": [
    {
      "name": "cast",
      "a": "F32",
      "b": "BF16"
    }
  ],
  "shapes": [
    {
      "name": "shape",
      "a": [
        4
      ],
      "b": [
        2,
        2
      ]
    }
  ],
  "metadata": [
    {
      "name": "key",
      "a": "one",
      "b": "two"
    }
  ],
  "values": [
    {
      "name": "moved",
      "differing": 1,
      "values": 4,
      "max_absolute": 0.5,
      "max_relative": 0.2,
      "moved": 0.1336306209562122,
      "cosine": 0.9944903161976939
    }
  ]
}
"#);
    let chosen = |options: &[&str]| diff(dir.path(), options).status;
    assert_eq!(chosen(&["--data", "--only", "same"]), 0);
    assert_eq!(chosen(&["--only", "moved"]), 0);
    assert_eq!(chosen(&["--data", "--only", "moved"]), 1);
    assert_eq!(chosen(&["--data", "--only", "moved", "--atol", "0.5"]), 0);
    assert_eq!(chosen(&["--data", "--only", "moved", "--rtol", "0.1"]), 1);
    assert_eq!(chosen(&["--data", "--only", "cast"]), 1);
    assert_eq!(chosen(&["--data", "--only", "cast", "--ignore", "dtype"]), 0);
}

/// Two values of 4 bits share a byte.
#[test]
fn values_of_four_bits_are_compared_one_by_one() {
    let dir = tempfile::tempdir().unwrap();
    let header = r#"{"t":{"dtype":"F4","shape":[2,4],"data_offsets":[0,4]}}"#;
    support::raw_file(&dir.path().join("a.safetensors"), header, &[0x21, 0x43, 0x65, 0x07]);
    support::raw_file(&dir.path().join("b.safetensors"), header, &[0x21, 0x53, 0x56, 0x07]);
    let json: serde_json::Value =
        serde_json::from_str(&diff(dir.path(), &["--data", "--format", "json"]).stdout).unwrap();
    assert_eq!(json["values"][0]["differing"], 3);
    assert_eq!(json["values"][0]["values"], 8);
    assert_eq!(json["values"][0]["max_absolute"], 1.0);
    let as_floats = floats(&[2, 4], &[0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 0.0]);
    save(&dir.path().join("b.safetensors"), "k", vec![("t", as_floats)]);
    assert_eq!(diff(dir.path(), &["--data", "--ignore", "dtype", "--ignore", "metadata"]).status, 0);
}

#[test]
fn what_cannot_be_compared_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    llama(&dir.path().join("a.safetensors"), None);
    let ran = diff(dir.path(), &[]);
    assert_eq!(ran.status, 2);
    assert_snapshot!(ran.without(dir.path()), @"error: [dir]/b.safetensors: no such file or directory");
    assert_eq!(diff(dir.path(), &["--rtol", "-1", "--data"]).status, 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// As many values differ as differ, bit for bit or by a tolerance.
    #[test]
    fn differing_values_are_counted(pairs in prop::collection::vec((-4_i8..4, -4_i8..4), 1..2000)) {
        let dir = tempfile::tempdir().unwrap();
        let [a, b]: [Vec<f32>; 2] = [
            pairs.iter().map(|pair| pair.0.into()).collect(),
            pairs.iter().map(|pair| pair.1.into()).collect(),
        ];
        save(&dir.path().join("a.safetensors"), "k", vec![("t", floats(&[a.len()], &a))]);
        save(&dir.path().join("b.safetensors"), "k", vec![("t", floats(&[b.len()], &b))]);
        for (options, limit) in [(&[][..], 0.0), (&["--atol", "2"], 2.0)] {
            let ran = diff(dir.path(), &[&["--data", "--format", "json"], options].concat());
            let json: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
            let found = json["values"][0]["differing"].as_u64().unwrap_or(0);
            let expected = a.iter().zip(&b).filter(|(a, b)| (*a - *b).abs() > limit).count() as u64;
            prop_assert_eq!(found, expected);
            prop_assert_eq!(ran.status, i32::from(expected > 0));
            if expected > 0 {
                let most = a.iter().zip(&b).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max);
                prop_assert_eq!(json["values"][0]["max_absolute"].as_f64(), Some(most));
            }
        }
    }
}
