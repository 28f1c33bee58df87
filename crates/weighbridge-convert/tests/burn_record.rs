//! Records that old versions of Burn wrote (`burn/generate.rs`), and some that are made here.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use std::path::{Path, PathBuf};

use weighbridge::{Checkpoint, Dtype, ErrorKind, Names, Plan};
use weighbridge_convert::{Foreign, Format, NoteKind, Options};

const ONES: &[f32] = &[1.0; 4];
const ZEROS: &[f32] = &[0.0; 4];
/// What the module of the fixtures holds; of ones and zeros as many as the shape says.
const FLOATS: [(&str, &[usize], &[f32]); 24] = [
    ("linear.weight", &[2, 3], &[0.0, 0.25, 0.5, 0.75, 1.0, 1.25]),
    ("linear.bias", &[3], &[1.0, 0.5, 0.0]),
    ("norm.gamma", &[4], ONES),
    ("norm.beta", &[4], ZEROS),
    ("batch.gamma", &[3], &[1.5, -2.0, 3.25]),
    ("batch.beta", &[3], ZEROS),
    ("batch.running_mean", &[3], ZEROS),
    ("batch.running_var", &[3], ONES),
    ("list.0.weight", &[1, 2], &[1.0, 1.25]),
    ("list.1.weight", &[2, 1], &[2.0, 2.25]),
    ("list.1.bias", &[1], &[3.0]),
    ("pair.0.gamma", &[2], ONES),
    ("pair.0.beta", &[2], ZEROS),
    ("pair.1.weight", &[2, 2], &[3.0, 3.25, 3.5, 3.75]),
    ("array.0.gamma", &[1], ONES),
    ("array.0.beta", &[1], ZEROS),
    ("array.1.gamma", &[2], ONES),
    ("array.1.beta", &[2], ZEROS),
    ("some.weight", &[1, 1], &[4.0]),
    ("some.bias", &[1], &[5.0]),
    ("choice.Dense.weight", &[1, 3], &[5.0, 5.25, 5.5]),
    ("choice.Dense.bias", &[3], &[6.0, 5.5, 5.0]),
    ("ids", &[3], &[1.0, -2.0, 300.0]),
    ("mask", &[2, 2], &[1.0, 0.0, 0.0, 1.0]),
];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/burn").join(name)
}

fn open(name: &str) -> Foreign {
    weighbridge_convert::open(fixture(name), &Options::new()).unwrap()
}

/// The values of a tensor.
fn values(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
    let plan = Plan::of(checkpoint).only(Names::exact(name)).build().unwrap();
    let (_, buffer) = plan.session().start().unwrap().take(name, None).unwrap();
    let bytes = buffer.as_bytes();
    let dtype = checkpoint.tensor(name).unwrap().dtype();
    match dtype {
        Dtype::F32 => bytes.chunks(4).map(|it| f32::from_le_bytes(it.try_into().unwrap())).collect(),
        Dtype::F64 => bytes.chunks(8).map(|it| f64::from_le_bytes(it.try_into().unwrap()) as f32).collect(),
        Dtype::F16 => {
            bytes.chunks(2).map(|it| half::f16::from_le_bytes(it.try_into().unwrap()).to_f32()).collect()
        }
        Dtype::BF16 => {
            bytes.chunks(2).map(|it| half::bf16::from_le_bytes(it.try_into().unwrap()).to_f32()).collect()
        }
        Dtype::I16 => bytes.chunks(2).map(|it| i16::from_le_bytes(it.try_into().unwrap()).into()).collect(),
        Dtype::I32 => bytes.chunks(4).map(|it| i32::from_le_bytes(it.try_into().unwrap()) as f32).collect(),
        Dtype::I64 => bytes.chunks(8).map(|it| i64::from_le_bytes(it.try_into().unwrap()) as f32).collect(),
        Dtype::Bool => bytes.iter().map(|&byte| byte.into()).collect(),
        other => panic!("{other}"),
    }
}

#[test]
fn records_of_old_versions_are_read() {
    for (name, float, int) in [
        ("0.13-full.mpk", Dtype::F32, Dtype::I32),
        ("0.13-half.mpk", Dtype::F16, Dtype::I16),
        ("0.13-double.mpk", Dtype::F64, Dtype::I64),
        ("0.16-full.mpk", Dtype::F32, Dtype::I32),
        ("0.20-half.mpk", Dtype::F16, Dtype::I16),
        ("0.20-double.mpk", Dtype::F64, Dtype::I64),
        ("0.20-full.mpk.gz", Dtype::F32, Dtype::I32),
        ("0.21-full.mpk", Dtype::F32, Dtype::I32),
    ] {
        assert_eq!(Format::of_file(fixture(name)).unwrap(), Some(Format::BurnRecord));
        let foreign = open(name);
        let checkpoint = foreign.checkpoint();
        assert_eq!(checkpoint.len(), FLOATS.len(), "{name}");
        for (tensor, shape, expected) in FLOATS {
            let expected = match (tensor, name.starts_with("0.13")) {
                // It could not be set.
                ("batch.gamma", true) => ONES,
                _ => expected,
            };
            let found = checkpoint.tensor(tensor).unwrap();
            let dtype = match tensor {
                "ids" => int,
                "mask" => Dtype::Bool,
                _ => float,
            };
            assert_eq!((found.dtype(), found.shape()), (dtype, shape), "{name}: {tensor}");
            let count = shape.iter().product();
            assert_eq!(values(checkpoint, tensor), expected[..count], "{name}: {tensor}");
        }
        let version = foreign.save().metadata_value("burn.version").unwrap().to_owned();
        assert!(name.starts_with(&version[..4]), "{version}");
        let nothing = foreign.notes().iter().find(|note| note.kind() == NoteKind::Dropped).unwrap();
        assert!(nothing.why().contains("values that are null"), "{nothing}");
        let ambiguous = foreign.notes().iter().any(|note| note.why().contains("tensors taken for floats"));
        assert_eq!(ambiguous, name == "0.13-half.mpk");
    }
    let bare = open("0.20-bare.mpk");
    assert_eq!(values(bare.checkpoint(), "tensor"), [-1.0, -0.75, -0.5, -0.25]);
}

#[test]
fn other_encodings_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("full.json");
    std::fs::write(&json, "{\n  \"metadata\": {\n    \"float\": \"f32\",\n    \"int\": \"i32\"\n}}").unwrap();
    for (path, what) in
        [(fixture("0.20-full.bin"), "bincode"), (fixture("0.20-half.bin.gz"), "bincode"), (json, "JSON")]
    {
        assert_eq!(Format::of_file(&path).unwrap(), Some(Format::BurnRecord));
        let error = weighbridge_convert::open(&path, &Options::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains(what) && error.to_string().contains(".mpk"), "{error}");
    }
    let other = dir.path().join("other.gz");
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gz, b"\x82\xA8metadata\xA1x").unwrap();
    std::fs::write(&other, gz.finish().unwrap()).unwrap();
    let error = weighbridge_convert::open(&other, &Options::new()).unwrap_err().to_string();
    assert!(error.contains("compressed with gzip: unpack it"), "{error}");
}

/// MessagePack, of what is needed here.
enum Value {
    Text(&'static str),
    Int(u16),
    Nil,
    F32(f32),
    Bytes(Vec<u8>),
    List(Vec<Value>),
    Dict(Vec<(&'static str, Value)>),
}

use Value::{Bytes, Dict, Int, List, Nil, Text};

impl Value {
    fn pack(&self, out: &mut Vec<u8>) {
        let text = |text: &str, out: &mut Vec<u8>| {
            out.extend([0xD9, text.len() as u8]);
            out.extend(text.as_bytes());
        };
        match self {
            Text(value) => text(value, out),
            Int(value @ 0..=127) => out.push(*value as u8),
            Int(value) => {
                out.push(0xCD);
                out.extend(value.to_be_bytes());
            }
            Nil => out.push(0xC0),
            Value::F32(value) => {
                out.push(0xCA);
                out.extend(value.to_be_bytes());
            }
            Bytes(bytes) => {
                out.extend([0xC4, bytes.len() as u8]);
                out.extend(bytes);
            }
            List(values) => {
                out.push(0x90 | values.len() as u8);
                values.iter().for_each(|value| value.pack(out));
            }
            Dict(entries) => {
                out.push(0x80 | entries.len() as u8);
                for (key, value) in entries {
                    text(key, out);
                    value.pack(out);
                }
            }
        }
    }
}

fn tensor(bytes: &[u8], shape: &[u16], dtype: Value) -> Value {
    let shape = List(shape.iter().map(|&dim| Int(dim)).collect());
    let data = Dict(vec![("bytes", Bytes(bytes.to_vec())), ("shape", shape), ("dtype", dtype)]);
    Dict(vec![("id", Text("7")), ("param", data)])
}

/// A record with that item, as Burn's own serialiser begins it.
fn record(float: &str, item: &Value) -> Vec<u8> {
    let mut bytes = b"\x83\xA8metadata\x85\xA5float".to_vec();
    bytes.push(0xA0 | float.len() as u8);
    bytes.extend(float.as_bytes());
    bytes.extend(b"\xA3int\xA3i16\xA6format\xA1f\xA7version\xA60.13.2\xA8settings\xA1s\xA4item");
    item.pack(&mut bytes);
    bytes.extend(b"\xA2_b\x90");
    bytes
}

fn made(bytes: &[u8], options: &Options) -> weighbridge::Result<Foreign> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("record.mpk");
    std::fs::write(&path, bytes).unwrap();
    weighbridge_convert::open(path, options)
}

#[test]
fn every_dtype_of_burn_is_read_or_named() {
    for (burn, dtype, width) in [
        ("F64", "F64", 8),
        ("F32", "F32", 4),
        ("Flex32", "F32", 4),
        ("F16", "F16", 2),
        ("BF16", "BF16", 2),
        ("I64", "I64", 8),
        ("I32", "I32", 4),
        ("I16", "I16", 2),
        ("I8", "I8", 1),
        ("U64", "U64", 8),
        ("U32", "U32", 4),
        ("U16", "U16", 2),
        ("U8", "U8", 1),
        ("Bool", "BOOL", 1),
    ] {
        let data = vec![1; 2 * width];
        let bytes = record("f32", &Dict(vec![("w", tensor(&data, &[2, 1], Text(burn)))]));
        let foreign = made(&bytes, &Options::new()).unwrap();
        let found = foreign.checkpoint().tensor("w").unwrap();
        assert_eq!((found.dtype().name(), found.shape()), (dtype, &[2, 1][..]));
    }
    // Since 0.21.
    for (store, data) in [("Native", &[1, 0][..]), ("U8", &[1, 0]), ("U32", &[1, 0, 0, 0, 0, 0, 0, 0])] {
        let dtype = Dict(vec![("Bool", Text(store))]);
        let foreign =
            made(&record("f32", &Dict(vec![("w", tensor(data, &[2], dtype))])), &Options::new()).unwrap();
        assert_eq!(foreign.checkpoint().tensor("w").unwrap().dtype(), Dtype::Bool);
        assert_eq!(values(foreign.checkpoint(), "w"), [1.0, 0.0], "{store}");
    }
    let scheme = Dict(vec![("PerTensorSymmetric", Text("QInt8"))]);
    let quantised = tensor(&[1, 2, 3, 4, 5], &[5], Dict(vec![("QFloat", scheme)]));
    let ok = tensor(&[0; 4], &[1], Text("F32"));
    let bytes =
        record("f32", &Dict(vec![("q", quantised), ("odd", tensor(&[0], &[1], Text("F8"))), ("ok", ok)]));
    let error = made(&bytes, &Options::new()).unwrap_err().to_string();
    assert!(error.contains("tensor \"q\"") && error.contains("QFloat"), "{error}");
    let error = made(&bytes, &Options::new().only(Names::glob("o*").unwrap())).unwrap_err().to_string();
    assert!(error.contains("tensor \"odd\"") && error.contains("\"F8\""), "{error}");
    let skipped = made(&bytes, &Options::new().skip_unsupported()).unwrap();
    assert_eq!(skipped.checkpoint().len(), 1);
    let only = made(&bytes, &Options::new().only(Names::exact("ok"))).unwrap();
    assert_eq!((only.checkpoint().len(), only.unchosen()), (1, 2));
}

/// As Burn wrote tensors before 0.14.
fn numbers(values: Vec<Value>, shape: &[u16]) -> Value {
    let shape = List(shape.iter().map(|&dim| Int(dim)).collect());
    Dict(vec![("value", List(values)), ("shape", shape)])
}

#[test]
fn lists_of_numbers_are_what_the_record_says() {
    let item = Dict(vec![
        ("negative", numbers(vec![Int(0xC000), Int(0x3F80)], &[2])),
        ("positive", numbers(vec![Int(0x3F80), Int(0)], &[2, 1])),
        ("single", numbers(vec![Value::F32(0.5)], &[1])),
        ("empty", numbers(vec![], &[0])),
        ("time", Int(7)),
        ("steps", List(vec![Int(1), Int(300)])),
        ("none", Nil),
        ("word", Text("relu")),
    ]);
    let foreign = made(&record("half::bfloat::bf16", &item), &Options::new()).unwrap();
    let checkpoint = foreign.checkpoint();
    assert_eq!(values(checkpoint, "negative"), [-2.0, 1.0]);
    assert_eq!(values(checkpoint, "positive"), [1.0, 0.0]);
    assert_eq!(values(checkpoint, "single"), [0.5]);
    assert_eq!(checkpoint.tensor("empty").unwrap().dtype(), Dtype::BF16);
    let metadata = |key: &str| foreign.save().metadata_value(key).map(str::to_owned);
    assert_eq!(metadata("time").as_deref(), Some("7"));
    assert_eq!(metadata("steps").as_deref(), Some("[1, 300]"));
    assert_eq!(metadata("word").as_deref(), Some("relu"));
    let changed: Vec<_> = foreign.notes().iter().filter(|note| note.kind() == NoteKind::Changed).collect();
    assert!(
        changed.len() == 1 && changed[0].why().starts_with("tensors taken for floats: 1;"),
        "{changed:?}"
    );
}

#[test]
fn records_that_lie_are_refused() {
    let one = |node| Dict(vec![("w", node)]);
    let f32 = || Text("F32");
    for (item, message) in [
        (one(tensor(&[0; 7], &[2], f32())), "F32 of shape [2] needs 8 bytes, it has 7"),
        (one(tensor(&[0; 8], &[], f32())), "F32 of shape [] needs 4 bytes, it has 8"),
        (
            one(tensor(&[0; 7], &[2], Dict(vec![("Bool", Text("U32"))]))),
            "Bool(U32) of shape [2] needs 8 bytes",
        ),
        (one(numbers(vec![Int(1)], &[2])), "has 2 numbers, not 1"),
        (one(numbers(vec![Int(0xFFFF)], &[1])), "65535 is not within I16"),
        (
            Dict(vec![
                ("a", Dict(vec![("b", tensor(&[0], &[1], Text("U8")))])),
                ("a.b", tensor(&[0], &[1], Text("U8"))),
            ]),
            "two tensors have this name: [\"a\"][\"b\"] and [\"a.b\"]",
        ),
    ] {
        let error = made(&record("f32", &item), &Options::new()).unwrap_err().to_string();
        assert!(error.contains(message) && !error.contains('\n'), "{message}: {error}");
    }
    let whole = record("f32", &one(tensor(&[0; 8], &[2], f32())));
    for len in 0..whole.len() {
        assert!(made(&whole[..len], &Options::new()).is_err(), "{len}");
    }
    let error = made(&[&whole[..], b"\xC0"].concat(), &Options::new()).unwrap_err().to_string();
    assert!(error.contains("1 bytes stand behind its end"), "{error}");
    // Nested without end, and longer than the file.
    let nested = [&record("f32", &Nil)[..60], &[0x91; 500]].concat();
    assert!(made(&nested, &Options::new()).is_err());
    let packed = std::fs::read(fixture("0.20-full.mpk.gz")).unwrap();
    for len in 0..packed.len() {
        assert!(made(&packed[..len], &Options::new()).is_err(), "{len}");
    }
    let error = made(&[&packed[..], b"x"].concat(), &Options::new()).unwrap_err().to_string();
    assert!(error.contains("more behind the end"), "{error}");
    let mut damaged = packed;
    let at = damaged.len() - 6;
    damaged[at] ^= 1;
    let error = made(&damaged, &Options::new()).unwrap_err().to_string();
    assert!(error.contains("cannot be decompressed"), "{error}");
}

#[test]
fn changed_anywhere() {
    let mut state = 5_u64;
    let mut below = |end: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % end
    };
    for name in ["0.13-half.mpk", "0.20-double.mpk", "0.20-full.mpk.gz"] {
        let original = std::fs::read(fixture(name)).unwrap();
        for _ in 0..1000 {
            let mut bytes = original.clone();
            for _ in 0..=below(3) {
                let at = below(bytes.len());
                bytes[at] = [0, 0x7F, 0x80, 0x91, 0xFF, below(256) as u8][below(6)];
            }
            if let Err(error) = made(&bytes, &Options::new()) {
                assert!(!error.to_string().contains('\n') && error.kind() != ErrorKind::Internal, "{error}");
            }
        }
    }
}
