//! What ranks wrote, as one checkpoint: `ranks/make.py` had PyTorch write the fixtures with 2 processes.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use half::bf16;
use proptest::prelude::*;
use support::code::{Code, dict, global, int, list, text, tuple};
use tempfile::TempDir;
use weighbridge::write::{Save, Values};
use weighbridge::{Checkpoint, Dtype, ErrorKind, Names};
use weighbridge_convert::{Format, Options, Verdict, open, open_any, scan};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ranks").join(name)
}

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn tensors(checkpoint: &Checkpoint) -> Tensors {
    let tensor = |tensor: weighbridge::TensorRef<'_>| {
        let mut bytes = vec![0; tensor.byte_len() as usize];
        tensor.shard().source().read_at(tensor.info().file_range().start, &mut bytes).unwrap();
        (tensor.name().to_owned(), (tensor.dtype(), tensor.shape().to_vec(), bytes))
    };
    checkpoint.tensors().map(tensor).collect()
}

/// What the processes had.
fn expected() -> Tensors {
    let floats = |to: fn(f32) -> Vec<u8>| (0..15_u8).flat_map(|value| to(value.into())).collect();
    let rows = (Dtype::F32, vec![5, 3], floats(|value| value.to_le_bytes().to_vec()));
    let columns = (Dtype::BF16, vec![3, 5], floats(|value| bf16::from_f32(value).to_le_bytes().to_vec()));
    let scale = (Dtype::F32, Vec::new(), 0.5_f32.to_le_bytes().to_vec());
    [("rows", rows), ("columns", columns), ("scale", scale)]
        .map(|(name, tensor)| (format!("model.{name}"), tensor))
        .into()
}

#[test]
fn a_distributed_checkpoint_is_one() {
    let directory = fixture("dcp");
    assert_eq!(Format::of_file(&directory).unwrap(), Some(Format::Distributed));
    for path in [directory.clone(), directory.join(".metadata")] {
        let foreign = open(path, &Options::new()).unwrap();
        assert_eq!(tensors(foreign.checkpoint()), expected());
        assert_eq!(foreign.checkpoint().directory(), Some(&*directory));
        let notes: Vec<_> = foreign.notes().iter().map(ToString::to_string).collect();
        assert_eq!(notes, [r#"dropped "step": a value that is no tensor"#]);
    }
    assert_eq!(tensors(&open_any(&directory).unwrap()), expected());
    let scanned = scan(directory.join(".metadata")).unwrap();
    assert_eq!(scanned.verdict(), Verdict::Harmless);
}

#[test]
fn safetensors_of_ranks_are_one() {
    let directory = fixture("hf");
    let foreign = open(&directory, &Options::new()).unwrap();
    assert_eq!(foreign.format(), Format::DistributedSafetensors);
    assert_eq!(tensors(foreign.checkpoint()), expected());
    assert_eq!(foreign.checkpoint().directory(), Some(&*directory));
    assert_eq!(tensors(&open_any(&directory).unwrap()), expected());
}

#[test]
fn only_what_is_chosen_is_looked_at() {
    let copy = copy_of("dcp");
    fs::remove_file(copy.path().join("__0_0.distcp")).unwrap();
    let options = Options::new().only(Names::exact("model.scale"));
    let foreign = open(copy.path(), &options).unwrap();
    assert_eq!((foreign.checkpoint().len(), foreign.unchosen()), (1, 2));
    assert!(foreign.notes().is_empty(), "{:?}", foreign.notes());
    let error = open(copy.path(), &Options::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::MissingShard, "{error}");
    assert!(error.to_string().contains("__0_0.distcp"), "{error}");
}

fn copy_of(name: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture(name)).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    dir
}

#[test]
fn files_that_were_cut_off_are_refused() {
    let copy = copy_of("dcp");
    let file = copy.path().join("__1_0.distcp");
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() - 10]).unwrap();
    let error = open(copy.path(), &Options::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Malformed);
    assert!(error.to_string().contains("are not within the"), "{error}");
    let copy = copy_of("hf");
    fs::remove_file(copy.path().join("shard-00001-model-00001-of-00001.safetensors")).unwrap();
    let error = open(copy.path(), &Options::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::MissingTensor);
    assert!(error.to_string().contains("no rank has its elements"), "{error}");
}

/// An object of a dataclass.
fn object(module: &str, class: &str, fields: &[(&str, Code)]) -> Code {
    let fields: Vec<_> = fields.iter().map(|(name, value)| (text(name), value.clone())).collect();
    let class = global(&format!("torch.distributed.checkpoint.{module}"), class);
    [class, b")\x81".to_vec(), dict(&fields), b"b".to_vec()].concat()
}

fn long(value: i64) -> Code {
    [&[0x8a, 8][..], &value.to_le_bytes()].concat()
}

fn size(sizes: &[i64]) -> Code {
    let sizes: Vec<Code> = sizes.iter().map(|&size| long(size)).collect();
    [global("torch", "Size"), tuple(&[tuple(&sizes)]), b"R".to_vec()].concat()
}

/// A checkpoint with one tensor `a` of F32.
#[derive(Clone)]
struct Made {
    dtype: Code,
    shape: Vec<i64>,
    /// Offsets and sizes.
    chunks: Vec<(Vec<i64>, Vec<i64>)>,
    /// Of all chunks: file, offset, length.
    stored: (&'static str, i64, i64),
    transforms: Option<Code>,
}

impl Made {
    /// The first chunk of `model.rows` in the fixture, as a tensor of its own.
    fn new() -> Self {
        Self {
            dtype: global("torch", "float32"),
            shape: vec![3, 3],
            chunks: vec![(vec![0, 0], vec![3, 3])],
            stored: ("__0_0.distcp", 0, 1577),
            transforms: None,
        }
    }

    fn metadata(&self) -> Vec<u8> {
        let chunk = |(offsets, sizes): &(Vec<i64>, Vec<i64>)| {
            object("metadata", "ChunkStorageMetadata", &[("offsets", size(offsets)), ("sizes", size(sizes))])
        };
        let chunks: Vec<Code> = self.chunks.iter().map(chunk).collect();
        let state = tuple(&[self.dtype.clone(), b"N".to_vec(), b"\x89".to_vec(), int(0), b"\x89".to_vec()]);
        let properties =
            [global("torch.distributed.checkpoint.metadata", "TensorProperties"), b")\x81".to_vec(), state];
        let properties = [properties.concat(), b"b".to_vec()].concat();
        let tensor = object(
            "metadata",
            "TensorStorageMetadata",
            &[("properties", properties), ("size", size(&self.shape)), ("chunks", list(&chunks))],
        );
        let (file, start, len) = self.stored;
        let mut place = vec![("relative_path", text(file)), ("offset", long(start)), ("length", long(len))];
        place.extend(self.transforms.clone().map(|transforms| ("transform_descriptors", transforms)));
        let places: Vec<(Code, Code)> = self
            .chunks
            .iter()
            .map(|(offsets, _)| {
                let index = [("fqn", text("a")), ("offset", size(offsets)), ("index", b"N".to_vec())];
                let place = object("filesystem", "_StorageInfo", &place);
                (object("metadata", "MetadataIndex", &index), place)
            })
            .collect();
        let root = [
            ("state_dict_metadata", dict(&[(text("a"), tensor)])),
            ("planner_data", b"N".to_vec()),
            ("storage_data", dict(&places)),
        ];
        [b"\x80\x02".to_vec(), object("metadata", "Metadata", &root), b".".to_vec()].concat()
    }

    fn open(&self) -> weighbridge::Result<Tensors> {
        let copy = copy_of("dcp");
        fs::write(copy.path().join(".metadata"), self.metadata()).unwrap();
        Ok(tensors(open(copy.path(), &Options::new())?.checkpoint()))
    }

    #[track_caller]
    fn refused(&self, kind: ErrorKind, what: &str) {
        let error = self.open().unwrap_err();
        assert!(error.to_string().contains(what), "{error}");
        assert_eq!(error.kind(), kind, "{error}");
    }
}

#[test]
fn what_metadata_says_is_checked() {
    let made = Made::new();
    assert_eq!(made.open().unwrap()["a"].2, expected()["model.rows"].2[..36]);
    use ErrorKind::{Malformed, MissingShard, MissingTensor, Overflow, Unsafe, Unsupported};
    // Of a chunk that is stored as it should be, another place.
    let chunks = |chunks: &[(&[i64], &[i64])]| Made {
        chunks: chunks.iter().map(|(offsets, sizes)| (offsets.to_vec(), sizes.to_vec())).collect(),
        ..Made::new()
    };
    chunks(&[(&[1, 0], &[3, 3])]).refused(Malformed, "is not within its shape [3, 3]");
    chunks(&[(&[0], &[3, 3])]).refused(Malformed, "is not within its shape [3, 3]");
    chunks(&[(&[i64::MAX, 0], &[3, 3])]).refused(Malformed, "is not within its shape");
    chunks(&[(&[-1, 0], &[3, 3])]).refused(Malformed, "a number is negative");
    chunks(&[(&[0, 0], &[2, 3])]).refused(Malformed, "the metadata says float32 of shape [2, 3]");
    chunks(&[]).refused(MissingTensor, "no rank has its elements [0..3, 0..3]");
    let shape = |shape: &[i64]| Made { shape: shape.to_vec(), ..Made::new() };
    shape(&[4, 3]).refused(MissingTensor, "no rank has its elements [3..4, 0..3]");
    shape(&[i64::MAX, i64::MAX]).refused(Overflow, "more bytes than a file can have");
    shape(&[1 << 40, 1 << 20]).refused(MissingTensor, "no rank has its elements [0..3, 3..1048576]");
    let overlapping = [(vec![0, 0], vec![3, 3]), (vec![1, 0], vec![3, 3])];
    Made { chunks: overlapping.to_vec(), ..shape(&[4, 3]) }.refused(Malformed, "overlap");
    let stored = |file, start, len| Made { stored: (file, start, len), ..Made::new() };
    for outside in ["../x", "/etc/passwd", "a/../../b", "..\\x", ""] {
        stored(outside, 0, 1577).refused(Unsafe, "which is not within its directory");
    }
    stored("none.distcp", 0, 1577)
        .refused(MissingShard, "\"none.distcp\" that the metadata names is not there");
    stored("__0_0.distcp", i64::MAX, i64::MAX).refused(Malformed, "are not within the");
    stored("__0_0.distcp", 4000, 1577).refused(Malformed, "are not within the");
    stored("__0_0.distcp", 0, -1).refused(Malformed, "a number is negative");
    stored("__0_0.distcp", 1, 1577).refused(Malformed, "directory");
    let dtype = |module, name| Made { dtype: global(module, name), ..Made::new() };
    dtype("torch", "float64").refused(Malformed, "the metadata says float64");
    dtype("torch", "bits8").refused(Unsupported, "torch.bits8");
    dtype("os", "system").refused(Unsafe, "dangerous");
    let transforms = Some(list(&[text("stream.zstd/1")]));
    Made { transforms, ..Made::new() }.refused(Unsupported, "stream.zstd/1");
}

#[test]
fn metadata_of_other_planners_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |metadata: &[u8]| {
        fs::write(dir.path().join(".metadata"), metadata).unwrap();
        open(dir.path(), &Options::new()).unwrap_err()
    };
    let class = global("torch.distributed.checkpoint.metadata", "MetadataIndex");
    let error = refused(&[b"\x80\x02", &class[..], b")\x81."].concat());
    assert!(error.to_string().contains("no Metadata"), "{error}");
    let unknown = object("planner", "Mine", &[]);
    let root = object("metadata", "Metadata", &[("planner_data", unknown)]);
    let error = refused(&[b"\x80\x02".to_vec(), root, b".".to_vec()].concat());
    assert_eq!(error.kind(), ErrorKind::Unsafe, "{error}");
    assert!(error.to_string().contains("torch.distributed.checkpoint.planner.Mine"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Nothing panics, whatever a byte is.
    #[test]
    fn damaged_metadata_makes_an_error_or_tensors(at in 0_usize..1579, byte in any::<u8>(), cut in 0_usize..3000) {
        let copy = copy_of("dcp");
        let path = copy.path().join(".metadata");
        let mut bytes = fs::read(&path).unwrap();
        bytes[at] = byte;
        bytes.truncate(cut.max(40));
        fs::write(&path, bytes).unwrap();
        if let Ok(foreign) = open(copy.path(), &Options::new()) {
            tensors(foreign.checkpoint());
        }
    }
}

/// Files of ranks, each with a tensor `a` and what its metadata says of its offsets.
fn sharded(ranks: &[(&[usize], &[f32], &str)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (number, (shape, values, info)) in ranks.iter().enumerate() {
        let save = Save::new().metadata("DCP_SHARDING_INFO", *info);
        let tensor = [("a".to_owned(), Values::new(shape, values).unwrap())];
        save.file(dir.path().join(format!("shard-0000{number}.safetensors")), tensor).unwrap();
    }
    dir
}

#[test]
fn what_safetensors_of_ranks_say_is_checked() {
    let half = [1.0, 2.0];
    let of =
        |second: &str| sharded(&[(&[2], &half, r#"{"a": {"saved_offsets": [0]}}"#), (&[2], &half, second)]);
    let good = of(r#"{"a": {"saved_offsets": [2]}}"#);
    assert_eq!(tensors(open(good.path(), &Options::new()).unwrap().checkpoint())["a"].1, [4]);
    for (second, what) in [
        (r#"{"a": {"saved_offsets": [3]}}"#, "no rank has its elements [2..3]"),
        (r#"{"a": {"saved_offsets": [1]}}"#, "overlap"),
        (r#"{"a": {"saved_offsets": [0]}}"#, "overlap"),
        (r#"{"a": {"saved_offsets": [-1]}}"#, "no saved_offsets of 1 numbers"),
        (r#"{"a": {"saved_offsets": [0, 0]}}"#, "no saved_offsets of 1 numbers"),
        (r#"{"a": {"saved_offsets": [18446744073709551615]}}"#, "do not fit this machine"),
        (r#"{"a": {"saved_offsets": [9223372036854775807]}}"#, "more bytes than a file can have"),
        ("{}", "no saved_offsets"),
        ("[", "no JSON object"),
    ] {
        let error = open(of(second).path(), &Options::new()).unwrap_err();
        assert!(error.to_string().contains(what), "{second}: {error}");
    }
}
