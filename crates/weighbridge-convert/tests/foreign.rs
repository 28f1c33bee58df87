//! Files that the real libraries wrote (`foreign/generate.py`): every tensor has the dtype, the shape and the bytes that the
//! libraries read.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest, Sha256};
use weighbridge::write::Save;
use weighbridge::{Checkpoint, Dtype, Plan};
use weighbridge_convert::onnx::Graph;
use weighbridge_convert::{Foreign, Note, NoteKind, Options, numpy};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/foreign").join(name)
}

fn open(name: &str) -> Foreign {
    weighbridge_convert::open(fixture(name), &Options::new()).unwrap()
}

fn refused(name: &str) -> String {
    weighbridge_convert::open(fixture(name), &Options::new()).unwrap_err().to_string()
}

/// Every tensor as JSON, in the form of the fixtures' descriptions.
fn described(checkpoint: &Checkpoint) -> BTreeMap<String, Value> {
    let plan = Plan::of(checkpoint).build().unwrap();
    let bytes = Save::new().bytes(plan.tensors()).unwrap();
    let saved = Checkpoint::from_bytes(bytes).unwrap();
    let describe = |tensor: weighbridge::TensorRef<'_>| {
        let digest = Sha256::digest(tensor.view().unwrap().bytes());
        let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let value = serde_json::json!({
            "dtype": tensor.dtype().name(), "shape": tensor.shape(), "sha256": digest,
        });
        (tensor.name().to_owned(), value)
    };
    saved.tensors().map(describe).collect()
}

fn expected(name: &str) -> (BTreeMap<String, Value>, BTreeMap<String, String>) {
    let text = std::fs::read_to_string(fixture(&format!("{name}.json"))).unwrap();
    let value: Value = serde_json::from_str(&text).unwrap();
    let tensors = value["tensors"].as_object().unwrap().clone().into_iter().collect();
    let metadata = serde_json::from_value(value["metadata"].clone()).unwrap();
    (tensors, metadata)
}

/// The tensors and the metadata of a fixture are those that are expected.
fn agrees(name: &str) -> Foreign {
    let foreign = open(name);
    let (tensors, metadata) = expected(name);
    let found = described(foreign.checkpoint());
    assert!(!tensors.is_empty());
    assert_eq!(found.keys().collect::<Vec<_>>(), tensors.keys().collect::<Vec<_>>(), "{name}");
    for (tensor, value) in &tensors {
        assert_eq!(&found[tensor], value, "{name}: {tensor}");
    }
    for (key, value) in metadata {
        assert_eq!(foreign.save().metadata_value(&key), Some(&*value), "{name}: metadata {key}");
    }
    foreign
}

fn notes(foreign: &Foreign, kind: NoteKind) -> Vec<&str> {
    foreign.notes().iter().filter(|note| note.kind() == kind).map(Note::name).collect()
}

#[test]
fn numpy_is_read() {
    for name in ["stored.npz", "deflated.npz", "version1.npy", "version2.npy", "version3.npy"] {
        agrees(name);
    }
}

#[test]
fn numpy_is_refused_by_name() {
    assert!(refused("objects.npy").contains("Python objects"));
    assert!(refused("structured.npy").contains("structured"));
    assert!(refused("bfloat16.npy").contains("bfloat16"));
    assert!(refused("text.npy").contains("text"));
}

#[test]
fn numpy_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.npz");
    let foreign = open("stored.npz");
    let plan = Plan::of(foreign.checkpoint()).build().unwrap();
    numpy::npz(&path, plan.tensors()).unwrap();
    let again = weighbridge_convert::open(&path, &Options::new()).unwrap();
    assert_eq!(described(again.checkpoint()), expected("stored.npz").0);
    let (_, one) = plan.tensors().find(|tensor| tensor.0 == "one").unwrap();
    numpy::npy(dir.path().join("one.npy"), &one).unwrap();
    let again = weighbridge_convert::open(dir.path().join("one.npy"), &Options::new()).unwrap();
    assert_eq!(described(again.checkpoint())["one"], expected("stored.npz").0["one"]);
    let halves = Plan::of(foreign.checkpoint()).only(weighbridge::Names::exact("f4_little"));
    let halves = halves.dtype(|_| Some(Dtype::BF16)).build().unwrap();
    let error = numpy::npz(&path, halves.tensors()).unwrap_err().to_string();
    assert!(error.contains("NumPy has no BF16"), "{error}");
    let again = weighbridge_convert::open(&path, &Options::new()).unwrap();
    assert_eq!(again.checkpoint().len(), foreign.checkpoint().len(), "the old file is there");
}

#[test]
fn onnx_is_read() {
    let foreign = agrees("inline.onnx");
    assert_eq!(notes(&foreign, NoteKind::Dropped), ["words", "constants"]);
    assert_eq!(notes(&foreign, NoteKind::Renamed), ["w", "w"]);
    agrees("external.onnx");
    agrees("packed.onnx");
    assert!(refused("sparse.onnx").contains("sparse"));
}

#[test]
fn onnx_is_given_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.onnx");
    for name in ["inline.onnx", "external.onnx"] {
        let foreign = open(name);
        let graph = Graph::open(fixture(name)).unwrap();
        let notes = graph.replace(&Plan::of(foreign.checkpoint()).build().unwrap(), false, &path).unwrap();
        assert!(notes.iter().all(|note| note.kind() == NoteKind::Changed), "{notes:?}");
        let again = weighbridge_convert::open(&path, &Options::new()).unwrap();
        assert_eq!(described(again.checkpoint()), expected(name).0);
        assert_eq!(again.save().metadata_value("made"), foreign.save().metadata_value("made"));
    }
}

#[test]
fn onnx_of_raw_data_is_the_same_file() {
    let dir = tempfile::tempdir().unwrap();
    let (path, twice) = (dir.path().join("once.onnx"), dir.path().join("twice.onnx"));
    let foreign = open("inline.onnx");
    Graph::open(fixture("inline.onnx"))
        .unwrap()
        .replace(&Plan::of(foreign.checkpoint()).build().unwrap(), false, &path)
        .unwrap();
    Graph::open(&path)
        .unwrap()
        .replace(&Plan::of(foreign.checkpoint()).build().unwrap(), false, &twice)
        .unwrap();
    assert_eq!(std::fs::read(path).unwrap(), std::fs::read(twice).unwrap());
}

#[test]
fn onnx_takes_no_other_shape_or_dtype() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.onnx");
    let graph = Graph::open(fixture("external.onnx")).unwrap();
    let replace = |cast, shape: &[usize], values: &[f64]| {
        let values = weighbridge::write::Values::new(shape, values).unwrap();
        let checkpoint = Checkpoint::from_bytes(Save::new().bytes([("w1", values)]).unwrap()).unwrap();
        graph.replace(&Plan::of(&checkpoint).build().unwrap(), cast, &path).map_err(|error| error.to_string())
    };
    let error = replace(true, &[8, 16], &[0.5; 128]).unwrap_err();
    assert!(error.contains("its shape is [8, 16], in the model it is [16, 8]"), "{error}");
    let error = replace(false, &[16, 8], &[0.5; 128]).unwrap_err();
    assert!(error.contains("it is F64, in the model it is F32"), "{error}");
    assert!(!path.exists());
    let notes = replace(true, &[16, 8], &[0.5; 128]).unwrap();
    assert_eq!(notes.iter().filter(|note| note.kind() == NoteKind::Kept).count(), 2);
    let again = weighbridge_convert::open(&path, &Options::new()).unwrap();
    let found = described(again.checkpoint());
    assert_eq!(found["w0"], expected("external.onnx").0["w0"]);
    let plan = Plan::of(again.checkpoint()).build().unwrap();
    let session = plan.session().start().unwrap();
    assert_eq!(
        session.take("w1", None).unwrap().1.as_bytes(),
        [0.5_f32; 128].map(f32::to_le_bytes).as_flattened()
    );
}

#[test]
fn gguf_is_read() {
    let foreign = agrees("little.gguf");
    assert_eq!(notes(&foreign, NoteKind::Dropped), ["tokenizer.ggml.tokens", "tokenizer.ggml.scores"]);
    assert_eq!(notes(&foreign, NoteKind::Changed).len(), 16);
    agrees("big.gguf");
    assert_eq!(notes(&agrees("codebooks.gguf"), NoteKind::Changed).len(), 8);
}

#[test]
fn gguf_is_rounded_on_request() {
    let exact = open("little.gguf");
    let read = |foreign: &Foreign, dtype| {
        let plan = Plan::of(foreign.checkpoint()).only(weighbridge::Names::glob("*.weight").unwrap());
        let plan = plan.dtype(move |_| Some(dtype)).build().unwrap();
        Save::new().bytes(plan.tensors()).unwrap()
    };
    for dtype in [Dtype::F16, Dtype::BF16] {
        let options = Options::new().dequantise(dtype);
        let rounded = weighbridge_convert::open(fixture("little.gguf"), &options).unwrap();
        assert_eq!(rounded.checkpoint().tensor("Q4_K.weight").unwrap().dtype(), dtype);
        assert_eq!(read(&rounded, dtype), read(&exact, dtype));
    }
}

#[test]
fn hdf5_is_read() {
    for name in ["early.h5", "late.h5", "model.keras", "kinds_early.h5", "kinds_late.h5", "lzf.h5"] {
        agrees(name);
    }
}

#[test]
fn flax_is_read() {
    let foreign = agrees("tree.msgpack");
    assert_eq!(notes(&foreign, NoteKind::Metadata), ["name", "step"]);
    agrees("chunked.msgpack");
}
