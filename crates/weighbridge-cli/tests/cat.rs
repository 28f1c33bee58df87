//! `weighbridge cat`: text, arrays and bytes of tensors and their parts.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use half::bf16;
use insta::assert_snapshot;
use proptest::prelude::*;
use support::{Ran, llama, raw_file, weighbridge};
use weighbridge::write::{Save, Values};

fn cat(path: &Path, options: &[&str]) -> Ran {
    weighbridge(["cat", path.to_str().unwrap()].iter().chain(options))
}

fn counting(dir: &Path, shape: &[usize]) -> PathBuf {
    let path = dir.join("m.safetensors");
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|i| i as f32 / 4.0).collect();
    Save::new().file(&path, [("t", Values::new(shape, &values).unwrap())]).unwrap();
    path
}

#[test]
fn text_is_that_of_numpy() {
    let dir = tempfile::tempdir().unwrap();
    let path = counting(dir.path(), &[40, 30]);
    assert_snapshot!(cat(&path, &["t"]).clean(), @r"
[[0.0000e+00 2.5000e-01 5.0000e-01 ... 6.7500e+00 7.0000e+00 7.2500e+00]
 [7.5000e+00 7.7500e+00 8.0000e+00 ... 1.4250e+01 1.4500e+01 1.4750e+01]
 [1.5000e+01 1.5250e+01 1.5500e+01 ... 2.1750e+01 2.2000e+01 2.2250e+01]
 ...
 [2.7750e+02 2.7775e+02 2.7800e+02 ... 2.8425e+02 2.8450e+02 2.8475e+02]
 [2.8500e+02 2.8525e+02 2.8550e+02 ... 2.9175e+02 2.9200e+02 2.9225e+02]
 [2.9250e+02 2.9275e+02 2.9300e+02 ... 2.9925e+02 2.9950e+02 2.9975e+02]]
");
    assert_snapshot!(cat(&path, &["t[1:3, ::7]"]).clean(), @r"
[[ 7.5   9.25 11.   12.75 14.5 ]
 [15.   16.75 18.5  20.25 22.  ]]
");
    assert_snapshot!(cat(&path, &["t[-1, -1]"]).clean(), @"299.75");
    assert_snapshot!(cat(&path, &["t[0, 0:0]"]).clean(), @"[]");
    assert_snapshot!(cat(&path, &["t[0, :5]", "--to", "i8"]).clean(), @"[0 0 0 0 1]");
    assert_eq!(cat(&path, &["t", "--full"]).clean().split_whitespace().count(), 1200);
}

/// Two values share a byte, the first in its low four bits, and rows may begin in the middle of one.
#[test]
fn values_of_four_bits_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    let header = r#"{"t":{"dtype":"F4","shape":[2,3],"data_offsets":[0,3]},
        "l":{"dtype":"F4","shape":[1002,3],"data_offsets":[3,1506]}}"#;
    let mut data = vec![0x21, 0x43, 0xF5];
    data.extend((0..1503).map(|i| ((i % 8) | (((i + 1) % 8) << 4)) as u8));
    raw_file(&path, header, &data);
    assert_snapshot!(cat(&path, &["t"]).clean(), @r"
[[ 0.5  1.   1.5]
 [ 2.   3.  -6. ]]
");
    assert_snapshot!(cat(&path, &["t", "--to", "f32"]).clean(), @r"
[[ 0.5  1.   1.5]
 [ 2.   3.  -6. ]]
");
    assert_snapshot!(cat(&path, &["l"]).clean(), @r"
[[0.  0.5 0.5]
 [1.  1.  1.5]
 [1.5 2.  2. ]
 ...
 [1.5 1.5 2. ]
 [2.  3.  3. ]
 [4.  4.  6. ]]
");
    // All of it, however it is read.
    let all = cat(&path, &["l", "--full"]).clean();
    assert_eq!(all, cat(&path, &["l", "--full", "--to", "f32"]).clean());
    assert_snapshot!(cat(&path, &["l[2:4]"]).clean(), @r"
[[1.5 2.  2. ]
 [3.  3.  4. ]]
");
    let values: Vec<u8> = [0.5_f32, 1.0, 1.5, 2.0, 3.0, -6.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    assert_eq!(cat(&path, &["t", "--to", "f32", "--format", "npy"]).raw[128..], values);
    let doubles: Vec<u8> = [0.5, 1.0, 1.5, 2.0, 3.0, -6.0_f64].iter().flat_map(|v| v.to_le_bytes()).collect();
    assert_eq!(cat(&path, &["t", "--to", "f64", "--format", "raw"]).raw, doubles);
    assert_eq!(cat(&path, &["t", "--format", "raw"]).raw, [0x21, 0x43, 0xF5]);
    let refused = [
        cat(&path, &["t", "--format", "npy"]),
        cat(&path, &["t[0]"]),
        cat(&path, &["t[0]", "--to", "f32"]),
        cat(&path, &["t", "--to", "u8"]),
    ];
    let lines: String = refused.iter().map(|ran| ran.without(dir.path())).collect();
    assert_snapshot!(lines, @r#"
error: [dir]/m.safetensors: tensor "t": NumPy has no F4; cast it with --to f32, or take its bytes with --format raw
error: [dir]/m.safetensors: tensor "t": pieces of the part of F4 do not start and end on a byte
error: [dir]/m.safetensors: tensor "t": pieces of the part of F4 do not start and end on a byte
error: [dir]/m.safetensors: tensor "t": -6 of F4 does not fit U8
"#);
}

#[test]
fn arrays_have_a_header_and_the_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let path = counting(dir.path(), &[2, 3]);
    let ran = cat(&path, &["t[:, 1:]", "--format", "npy"]);
    assert!(ran.raw.starts_with(
        b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2), }"
    ));
    let expected: Vec<u8> = [0.25_f32, 0.5, 1.0, 1.25].iter().flat_map(|value| value.to_le_bytes()).collect();
    assert_eq!(&ran.raw[128..], expected);
    assert_eq!(cat(&path, &["t[:, 1:]", "--format", "raw"]).raw, expected);
    let halves: Vec<u8> = [0.0, 1.0].iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect();
    assert_eq!(cat(&path, &["t[0, ::2]", "--format", "raw", "--to", "bf16"]).raw[..2], halves[..2]);
}

#[test]
fn files_are_not_replaced_unasked() {
    let dir = tempfile::tempdir().unwrap();
    let (path, out) = (counting(dir.path(), &[2]), dir.path().join("t.npy"));
    let options = ["t", "--format", "npy", "-o", out.to_str().unwrap()];
    cat(&path, &options).clean();
    let ran = cat(&path, &options);
    assert_eq!(ran.status, 2);
    assert_snapshot!(ran.without(dir.path()), @"error: [dir]/t.npy: it is there already; --force replaces it");
    cat(&path, &[&options[..], &["--force"]].concat()).clean();
    assert_eq!(fs::read(&out).unwrap().len(), 128 + 8);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[test]
fn errors_say_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    llama(&path, None);
    let halves = dir.path().join("h.safetensors");
    let values = [bf16::from_f32(3e38)];
    Save::new().file(&halves, [("t", Values::new(&[1], &values).unwrap())]).unwrap();
    let packed = dir.path().join("p.safetensors");
    raw_file(&packed, r#"{"t":{"dtype":"F6_E3M2","shape":[4],"data_offsets":[0,3]}}"#, &[1, 2, 3]);
    let cases = [
        cat(&path, &["model.nrom.weight"]),
        cat(&path, &["nothing.like.it[0]"]),
        cat(&path, &["model.norm.weight[8]"]),
        cat(&path, &["model.norm.weight[a]"]),
        cat(&halves, &["t", "--format", "npy"]),
        cat(&halves, &["t", "--to", "f16"]),
        cat(&packed, &["t"]),
        cat(&packed, &["t", "--format", "npy"]),
        cat(&packed, &["t", "--to", "f32"]),
        cat(&halves, &["t", "--to", "f4"]),
        cat(&path, &["model.norm.weight", "--to", "f12"]),
    ];
    let mut all = String::new();
    for ran in cases {
        assert_eq!(ran.status, 2, "{ran:?}");
        all += ran.without(dir.path()).lines().next().unwrap();
        all += "\n";
    }
    assert_snapshot!(all, @r#"
error: [dir]/m.safetensors: there is no tensor "model.nrom.weight"; did you mean "model.norm.weight"?
error: [dir]/m.safetensors: there is no tensor "nothing.like.it"; `weighbridge inspect [dir]/m.safetensors` lists them
error: [dir]/m.safetensors: tensor "model.norm.weight": place 8 is not in a dimension of 8
error: [dir]/m.safetensors: tensor "model.norm.weight": "a" is not an index; write a number, start:end, start:end:step, or ...
error: [dir]/h.safetensors: tensor "t": NumPy has no BF16; cast it with --to f32, or take its bytes with --format raw
error: [dir]/h.safetensors: tensor "t": 300405530000000000000000000000000000000 of BF16 does not fit F16
error: [dir]/p.safetensors: tensor "t": values of F6_E3M2 have no agreed packing; --format raw gives their bytes
error: [dir]/p.safetensors: tensor "t": values of F6_E3M2 have no agreed packing; --format raw gives their bytes
error: [dir]/p.safetensors: tensor "t": there is no cast from F6_E3M2 to F32: values of F6_E3M2 have no agreed packing
error: [dir]/h.safetensors: tensor "t": there is no cast from BF16 to F4
error: invalid value 'f12' for '--to <DTYPE>': no dtype has that name; known are BOOL, F4, F6_E2M3, F6_E3M2, U8, I8, F8_E5M2, F8_E4M3, F8_E8M0, F8_E4M3FNUZ, F8_E5M2FNUZ, I16, U16, F16, BF16, I32, U32, F32, C64, F64, I64, U64
"#);
}

#[test]
fn many_dimensions_are_refused_and_few_values_are_not_many() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    let shape = vec!["1"; 100_000].join(",");
    raw_file(&path, &format!(r#"{{"t":{{"dtype":"U8","shape":[{shape}],"data_offsets":[0,1]}}}}"#), &[7]);
    for format in ["text", "npy"] {
        let ran = cat(&path, &["t", "--format", format]);
        assert!(ran.status == 2 && ran.stderr.contains("100000"), "{ran:?}");
    }
    assert_eq!(cat(&path, &["t", "--format", "raw"]).raw, [7]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// A slice of rows and columns is what indexing gives.
    #[test]
    fn slices_are_those_of_python(rows in 1_usize..7, columns in 1_usize..9, start in 0_usize..7, step in 1_usize..4) {
        let dir = tempfile::tempdir().unwrap();
        let path = counting(dir.path(), &[rows, columns]);
        let raw = cat(&path, &[&format!("t[{start}:, ::{step}]"), "--format", "raw"]).raw;
        let places = (start..rows).flat_map(|row| (0..columns).step_by(step).map(move |column| row * columns + column));
        let expected: Vec<u8> = places.flat_map(|place| (place as f32 / 4.0).to_le_bytes()).collect();
        prop_assert_eq!(raw, expected);
    }
}
