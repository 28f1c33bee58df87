//! ONNX models of kinds that real ones come in: in the cache of the hub, with long metadata, with what safetensors cannot hold.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs;
use std::path::Path;

use weighbridge::{ErrorKind, Names, Plan};
use weighbridge_convert::onnx::Graph;
use weighbridge_convert::{Foreign, Note, NoteKind, Options};

/// A field of bytes.
fn field(number: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = varint(u64::from(number) << 3 | 2);
    bytes.extend(varint(body.len() as u64));
    bytes.extend(body);
    bytes
}

fn number(field: u32, value: u64) -> Vec<u8> {
    [varint(u64::from(field) << 3), varint(value)].concat()
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

fn tensor(name: &str, kind: u64, values: u64, raw: &[u8]) -> Vec<u8> {
    [number(1, values), number(2, kind), field(8, name.as_bytes()), field(9, raw)].concat()
}

fn floats(name: &str, values: &[f32]) -> Vec<u8> {
    let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    tensor(name, 1, values.len() as u64, &raw)
}

fn sparse(name: &str) -> Vec<u8> {
    field(15, &[field(1, &floats(name, &[1.0])), field(2, &tensor("", 7, 1, &[0; 8])), number(3, 5)].concat())
}

/// A graph of fields, and fields of the model behind it.
fn model(graph: &[Vec<u8>], rest: &[Vec<u8>]) -> Vec<u8> {
    [number(1, 8), field(7, &graph.concat()), rest.concat()].concat()
}

fn property(key: &[u8], value: &[u8]) -> Vec<u8> {
    field(14, &[field(1, key), field(2, value)].concat())
}

fn write(dir: &Path, model: &[u8]) -> std::path::PathBuf {
    let path = dir.join("model.onnx");
    fs::write(&path, model).unwrap();
    path
}

fn open(path: &Path, options: &Options) -> Foreign {
    weighbridge_convert::open(path, options).unwrap()
}

fn refused(path: &Path) -> String {
    let error = weighbridge_convert::open(path, &Options::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    error.to_string()
}

fn bytes(foreign: &Foreign, name: &str) -> Vec<u8> {
    let plan = Plan::of(foreign.checkpoint()).only(Names::exact(name)).build().unwrap();
    plan.session().start().unwrap().take(name, None).unwrap().1.as_bytes().to_vec()
}

#[cfg(unix)]
#[test]
fn links_of_the_hub_are_followed() {
    use std::os::unix::fs::symlink;
    let dir = tempfile::tempdir().unwrap();
    let (blobs, snapshot) = (dir.path().join("blobs"), dir.path().join("snapshots/abc/onnx"));
    fs::create_dir_all(&blobs).unwrap();
    fs::create_dir_all(&snapshot).unwrap();
    let entry = field(13, &[field(1, b"location"), field(2, b"model.onnx_data")].concat());
    let sum = field(13, &[field(1, b"checksum"), field(2, &[b'0'; 9000])].concat());
    let weight = [number(1, 4), number(2, 2), field(8, b"w"), entry, sum, number(14, 1)].concat();
    fs::write(blobs.join("aaa"), model(&[field(5, &weight)], &[])).unwrap();
    fs::write(blobs.join("bbb"), b"1234").unwrap();
    symlink("../../../blobs/aaa", snapshot.join("model.onnx")).unwrap();
    symlink("../../../blobs/bbb", snapshot.join("model.onnx_data")).unwrap();
    let path = snapshot.join("model.onnx");
    assert_eq!(bytes(&open(&path, &Options::new()), "w"), b"1234");
    // Anywhere else is refused, with the model behind a link or not.
    fs::create_dir(dir.path().join("other")).unwrap();
    fs::write(dir.path().join("other/secret"), b"1234").unwrap();
    fs::remove_file(snapshot.join("model.onnx_data")).unwrap();
    symlink("../../../other/secret", snapshot.join("model.onnx_data")).unwrap();
    for _ in 0..2 {
        let error = weighbridge_convert::open(&path, &Options::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsafe, "{error}");
        fs::remove_file(&path).unwrap();
        fs::copy(blobs.join("aaa"), &path).unwrap();
    }
    // Where the model is no link, blobs are elsewhere, too.
    fs::remove_file(snapshot.join("model.onnx_data")).unwrap();
    symlink("../../../blobs/bbb", snapshot.join("model.onnx_data")).unwrap();
    let error = weighbridge_convert::open(&path, &Options::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsafe, "{error}");
}

#[test]
fn long_texts_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let weight = [field(5, &floats("w", &[1.0]))];
    let alphabet = "\u{4e2d}\n".repeat(60_000);
    let long = "n".repeat(30_000);
    let rest = [
        property(b"character", alphabet.as_bytes()),
        property(b"huge", &vec![b'a'; 9 << 20]),
        property(b"bytes", b"\xFF"),
        property(b"\xFF", b"a"),
        property(b"empty", b""),
    ];
    let path = write(dir.path(), &model(&[&weight[..], &[field(5, &floats(&long, &[2.0]))]].concat(), &rest));
    let foreign = open(&path, &Options::new());
    assert_eq!(foreign.save().metadata_value("character"), Some(&*alphabet));
    assert_eq!(foreign.save().metadata_value("empty"), Some(""));
    assert_eq!(bytes(&foreign, &long), 2.0_f32.to_le_bytes());
    let dropped: Vec<_> = foreign.notes().iter().map(|note| (note.kind(), note.name())).collect();
    assert_eq!(dropped, ["huge", "bytes", "\u{FFFD}"].map(|name| (NoteKind::Dropped, name)));
    // Many are too many, and an entry says so.
    let many: Vec<_> = (0..9000).map(|key: u32| property(key.to_string().as_bytes(), b"")).collect();
    let foreign = open(&write(dir.path(), &model(&weight, &many)), &Options::new());
    assert_eq!(foreign.notes().len(), 4097);
    assert_eq!(foreign.notes().last().unwrap().name(), "metadata");
}

#[test]
fn what_cannot_be_held_is_left_out_on_request() {
    let dir = tempfile::tempdir().unwrap();
    let ok = field(5, &floats("ok", &[1.0]));
    let segment = field(5, &[floats("odd", &[1.0]), field(3, &number(1, 0))].concat());
    for (odd, told) in [
        (field(5, &tensor("odd", 15, 1, &[0; 16])), "it is COMPLEX128"),
        (field(5, &tensor("odd", 99, 1, &[0; 16])), "unknown ONNX type 99"),
        (segment, "a segment of a tensor"),
        (sparse("odd"), "a sparse tensor"),
    ] {
        let path = write(dir.path(), &model(&[odd.clone(), ok.clone()], &[]));
        let error = refused(&path);
        assert!(error.contains(told) && error.contains("\"odd\""), "{error}");
        let foreign = open(&path, &Options::new().skip_unsupported());
        assert_eq!(bytes(&foreign, "ok"), 1.0_f32.to_le_bytes());
        assert_eq!(foreign.notes().len(), 1);
        assert_eq!((foreign.notes()[0].kind(), foreign.notes()[0].name()), (NoteKind::Dropped, "odd"));
        let foreign = open(&path, &Options::new().only(Names::exact("ok")));
        assert_eq!(bytes(&foreign, "ok"), 1.0_f32.to_le_bytes());
        assert_eq!((foreign.notes().len(), foreign.unchosen()), (0, 1));
        // The way back leaves it as it is.
        let out = dir.path().join("out.onnx");
        Graph::open(&path)
            .unwrap()
            .replace(&Plan::of(foreign.checkpoint()).build().unwrap(), false, &out)
            .unwrap();
        let written = fs::read(&out).unwrap();
        assert!(written.windows(odd.len()).any(|part| part == odd));
    }
}

#[test]
fn what_is_not_chosen_is_not_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let broken = field(5, &tensor("broken", 1, 1000, &[0; 4]));
    let path = write(dir.path(), &model(&[broken, field(5, &floats("ok", &[1.0]))], &[]));
    weighbridge_convert::open(&path, &Options::new().skip_unsupported()).unwrap_err();
    let foreign = open(&path, &Options::new().only(Names::exact("ok")));
    assert_eq!(bytes(&foreign, "ok"), 1.0_f32.to_le_bytes());
}

#[test]
fn graphs_for_training_and_sparse_constants_are_told_of() {
    let dir = tempfile::tempdir().unwrap();
    let attribute = [field(1, b"sparse_value"), field(22, &[])].concat();
    let node = field(1, &field(5, &attribute));
    let training = field(20, &field(1, &field(5, &floats("step", &[1.0]))));
    let path = write(dir.path(), &model(&[node, field(5, &floats("w", &[1.0]))], &[training]));
    let foreign = open(&path, &Options::new());
    let names: Vec<_> = foreign.notes().iter().map(Note::name).collect();
    assert_eq!(names, ["constants", "training_info"]);
}
