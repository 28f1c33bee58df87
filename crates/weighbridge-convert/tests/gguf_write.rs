//! GGUF files that are written: blocks as ggml makes them, and the layout that other readers expect.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs;
use std::path::Path;

use weighbridge::write::{Save, Values};
use weighbridge::{Checkpoint, Dtype, ErrorKind, HostBuffer, Names, Plan};
use weighbridge_convert::gguf::{self, Type};
use weighbridge_convert::{NoteKind, Options};

const TYPES: [Type; 11] = [
    Type::F32,
    Type::F16,
    Type::BF16,
    Type::Q8_0,
    Type::Q4_0,
    Type::Q4_1,
    Type::Q5_0,
    Type::Q5_1,
    Type::Q4_K,
    Type::Q5_K,
    Type::Q6_K,
];

/// Writes tensors of `F32` as a checkpoint in memory.
fn checkpoint(tensors: &[(&str, &[usize], &[f32])], metadata: &[(&str, &str)]) -> Checkpoint {
    let save = metadata.iter().fold(Save::new(), |save, (key, value)| save.metadata(*key, *value));
    let tensors = tensors.iter().map(|(name, shape, values)| (*name, Values::new(shape, values).unwrap()));
    Checkpoint::from_bytes(save.bytes(tensors).unwrap()).unwrap()
}

fn plan(checkpoint: &Checkpoint) -> Plan {
    Plan::of(checkpoint).build().unwrap()
}

/// The values of a tensor of a GGUF file, as this crate reads it.
fn values(file: &Path, name: &str) -> (Vec<usize>, Vec<f32>) {
    let foreign = weighbridge_convert::open(file, &Options::new()).unwrap();
    let shape = foreign.checkpoint().tensor(name).unwrap().shape().to_vec();
    let session = plan(foreign.checkpoint()).session().start().unwrap();
    let (_, values) = session.take(name, Some(Dtype::F32)).unwrap();
    let HostBuffer::F32(values) = values else { panic!("{name} is not F32") };
    (shape, values)
}

#[test]
fn blocks_are_those_of_ggml() {
    let dir = tempfile::tempdir().unwrap();
    let vectors =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/quantized/written/ggml.safetensors");
    let vectors = Checkpoint::open(vectors).unwrap();
    let session = plan(&vectors).session().start().unwrap();
    let mut compared = 0;
    for kind in &TYPES[3..] {
        let prefix = format!("source.{}.", kind.name());
        for source in vectors.tensors().filter(|tensor| tensor.name().starts_with(&prefix)) {
            let file = dir.path().join("blocks.gguf");
            let only = Plan::of(&vectors).only(Names::exact(source.name())).build().unwrap();
            assert!(gguf::write(&file, &only, Some(*kind)).unwrap().is_empty());
            let (_, expected) = session.take(source.name().strip_prefix("source.").unwrap(), None).unwrap();
            let written = fs::read(&file).unwrap();
            let len = expected.as_bytes().len();
            let data = &written[written.len() - len.next_multiple_of(32)..][..len];
            assert!(data == expected.as_bytes(), "{}", source.name());
            compared += 1;
        }
    }
    assert_eq!(compared, 8 * 6);
}

#[test]
fn a_file_is_laid_out_as_the_format_says() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("model.gguf");
    let tensors: [(&str, &[usize], &[f32]); 2] = [("b", &[2, 3], &[1.0; 6]), ("a", &[], &[2.0])];
    let metadata = [("format", "pt"), ("general.name", "m"), ("llama.block_count", "2")];
    let notes = gguf::write(&file, &plan(&checkpoint(&tensors, &metadata)), None).unwrap();
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert_eq!((notes[0].kind(), notes[0].name()), (NoteKind::Dropped, "llama.block_count"));
    let text = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    let mut expected = b"GGUF\x03\0\0\0\x02\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0".to_vec();
    expected.extend([text("general.name"), vec![8, 0, 0, 0], text("m")].concat());
    let info = |name: &str, dims: &[u64], offset: u64| {
        let mut info = text(name);
        info.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|dim| info.extend(dim.to_le_bytes()));
        info.extend([0; 4]);
        info.extend(offset.to_le_bytes());
        info
    };
    // In the order of the checkpoint; the dimension that runs fastest comes first.
    expected.extend(info("a", &[1], 0));
    expected.extend(info("b", &[3, 2], 32));
    expected.resize(expected.len().next_multiple_of(32), 0);
    expected.extend(2.0_f32.to_le_bytes());
    expected.extend([0; 28]);
    expected.extend(1.0_f32.to_le_bytes().repeat(6));
    expected.extend([0; 8]);
    assert_eq!(fs::read(&file).unwrap(), expected);
}

#[test]
fn what_is_written_is_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let usual: Vec<f32> = (0..512 * 40).map(|at| ((at * 7919 % 4001) as f32 / 2000.0 - 1.0) * 0.1).collect();
    let tensors: [(&str, &[usize], &[f32]); 4] = [
        ("up.weight", &[40, 512], &usual),
        ("experts", &[2, 20, 512], &usual),
        ("mlp.gate.weight", &[40, 512], &usual),
        ("norm.weight", &[512], &usual[..512]),
    ];
    let checkpoint = checkpoint(&tensors, &[]);
    for kind in TYPES {
        let file = dir.path().join(kind.name());
        gguf::write(&file, &plan(&checkpoint), Some(kind)).unwrap();
        // Half a step of the codes, and what scales lose by being rounded.
        let most = match kind {
            Type::F32 => 0.0,
            Type::F16 => 0.000_031,
            Type::BF16 => 0.000_3,
            Type::Q8_0 => 0.000_5,
            Type::Q6_K => 0.003_5,
            Type::Q5_0 | Type::Q5_1 | Type::Q5_K => 0.007,
            _ => 0.014,
        };
        for (name, shape, expected) in tensors {
            let (own, found) = values(&file, name);
            assert_eq!(own, shape, "{name}");
            let error = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            let is_exact = name.contains("norm") || name.contains("gate");
            assert!(error <= if is_exact { 0.0 } else { most }, "{}: {name}: {error}", kind.name());
            if !is_exact && kind != Type::F32 {
                assert!(error > 0.0, "{}: {name} is not quantised", kind.name());
            }
        }
    }
}

#[test]
fn rows_that_are_no_whole_blocks_get_another_type() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("model.gguf");
    let tensors: [(&str, &[usize], &[f32]); 2] =
        [("a.weight", &[2, 96], &[0.5; 192]), ("b.weight", &[2, 33], &[0.5; 66])];
    let checkpoint = checkpoint(&tensors, &[]);
    let written = |kind| {
        let notes = gguf::write(&file, &plan(&checkpoint), Some(kind)).unwrap();
        notes.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(
        written(Type::Q4_K),
        [
            "changed \"a.weight\": Q5_0 instead of Q4_K: its rows of 96 are no whole blocks",
            "changed \"b.weight\": F16 instead of Q4_K: its rows of 33 are no whole blocks"
        ]
    );
    assert!(written(Type::Q5_K)[0].contains("Q5_1 instead"));
    assert!(written(Type::Q6_K)[0].contains("Q8_0 instead"));
    assert_eq!(written(Type::Q8_0).len(), 1);
    assert!(written(Type::F16).is_empty());
}

#[test]
fn what_gguf_cannot_hold_is_refused_and_leaves_what_was_there() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("model.gguf");
    fs::write(&file, "before").unwrap();
    let mut row = [1.0; 256];
    row[200] = f32::NAN;
    let refused = |plan: &Plan, kind| {
        let error = gguf::write(&file, plan, kind).unwrap_err();
        assert_eq!(fs::read(&file).unwrap(), b"before");
        assert_eq!(error.file(), Some(&*file));
        (error.kind(), error.to_string())
    };
    for kind in &TYPES[3..] {
        let (why, text) = refused(&plan(&checkpoint(&[("w", &[1, 256], &row)], &[])), Some(*kind));
        assert_eq!(why, ErrorKind::Value);
        assert!(text.contains("tensor \"w\": NaN cannot be quantised"), "{text}");
        let (why, text) = refused(&plan(&checkpoint(&[("w", &[1, 256], &[1e38; 256])], &[])), Some(*kind));
        assert_eq!(why, ErrorKind::Value, "{}", kind.name());
        assert!(text.contains("does not fit F16"), "{text}");
    }
    let deep = plan(&checkpoint(&[("w", &[1, 1, 1, 1, 2], &[1.0; 2])], &[]));
    assert_eq!(refused(&deep, None).0, ErrorKind::Shape);
    let wide = checkpoint(&[("w", &[2], &[1.0; 2])], &[]);
    let wide = Plan::of(&wide).dtype(|_| Some(Dtype::F8_E4M3)).build().unwrap();
    assert_eq!(refused(&wide, None).0, ErrorKind::Dtype);
    let one = plan(&checkpoint(&[("w", &[2], &[1.0; 2])], &[]));
    let twice = Plan::new(one.entries().iter().chain(one.entries()).map(|entry| (**entry).clone()));
    assert_eq!(refused(&twice, None).0, ErrorKind::DuplicateTensor);
}
