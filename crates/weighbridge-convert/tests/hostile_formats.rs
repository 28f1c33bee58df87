//! Broken and hostile files of the formats in `foreign.rs`: an error on one line or a file that can be read to its end, soon,
//! and never a panic.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use weighbridge::write::Save;
use weighbridge::{ErrorKind, Plan};
use weighbridge_convert::onnx::Graph;
use weighbridge_convert::{Options, numpy};

const FIXTURES: [&str; 12] = [
    "stored.npz",
    "deflated.npz",
    "version1.npy",
    "inline.onnx",
    "external.onnx",
    "little.gguf",
    "early.h5",
    "late.h5",
    "kinds_early.h5",
    "kinds_late.h5",
    "model.keras",
    "tree.msgpack",
];

fn fixture(name: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/foreign").join(name)).unwrap()
}

/// Opens bytes, and reads everything where that succeeds.
fn read(directory: &Path, name: &str, bytes: &[u8]) -> Result<Vec<u8>, String> {
    let path = directory.join(name);
    fs::write(&path, bytes).unwrap();
    let read = || {
        let foreign = weighbridge_convert::open(&path, &Options::new())?;
        Save::new().bytes(Plan::of(foreign.checkpoint()).build()?.tensors())
    };
    read().map_err(|error| {
        let line = error.to_string();
        assert!(!line.contains('\n'), "{line}");
        assert!(error.kind() != ErrorKind::Internal, "{line}");
        line
    })
}

/// A small sequence of numbers that look random.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end
    }
}

#[test]
fn cut_off_anywhere() {
    let dir = tempfile::tempdir().unwrap();
    for name in FIXTURES {
        let bytes = fixture(name);
        let mut numbers = Numbers(1);
        for _ in 0..300 {
            let len = numbers.below(bytes.len());
            let _ = read(dir.path(), name, &bytes[..len]);
        }
        let _ = read(dir.path(), name, &[]);
    }
}

#[test]
fn changed_anywhere() {
    let dir = tempfile::tempdir().unwrap();
    for name in FIXTURES {
        let original = fixture(name);
        let mut numbers = Numbers(2);
        for _ in 0..1000 {
            let mut bytes = original.clone();
            // Headers are at the start; of some formats at the end, too.
            let end = [bytes.len(), bytes.len().min(600), bytes.len()][numbers.below(3)];
            for _ in 0..=numbers.below(4) {
                let at = numbers.below(end);
                bytes[at] = [0, 1, 0x7F, 0x80, 0xFF, numbers.below(256) as u8][numbers.below(6)];
            }
            let _ = read(dir.path(), name, &bytes);
        }
    }
}

#[test]
fn onnx_that_was_changed_is_not_written_wrongly() {
    let dir = tempfile::tempdir().unwrap();
    let original = fixture("inline.onnx");
    let path = dir.path().join("whole.onnx");
    fs::write(&path, &original).unwrap();
    let foreign = weighbridge_convert::open(&path, &Options::new()).unwrap();
    let (changed, out) = (dir.path().join("changed.onnx"), dir.path().join("out.onnx"));
    let mut numbers = Numbers(3);
    for _ in 0..300 {
        let mut bytes = original.clone();
        let at = numbers.below(bytes.len());
        bytes[at] = numbers.below(256) as u8;
        fs::write(&changed, &bytes).unwrap();
        let Ok(graph) = Graph::open(&changed) else { continue };
        if graph.replace(&Plan::of(foreign.checkpoint()).build().unwrap(), true, &out).is_ok() {
            Graph::open(&out).unwrap();
        }
    }
}

fn npy(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

#[test]
fn numpy_headers_that_lie() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |header: &str| read(dir.path(), "a.npy", &npy(header, &[0; 64])).unwrap_err();
    for (header, message) in [
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (17,)}", "needs 68 bytes, the file has 64"),
        (
            "{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296)}",
            "does not fit 64 bits",
        ),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,)}", "is not a number"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}", "is not a number"),
        ("{'descr': '<f4', 'fortran_order': 1, 'shape': (1,)}", "neither True nor False"),
        ("{'descr': '<f4', 'shape': (1,)}", "not a dict of"),
        ("{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (1,)}", "once or not at all"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (1,)} + os.system('a')", "not a dict of"),
        ("__import__('os').system('a')", "lacks a '{'"),
        ("{'descr': '=>f4', 'fortran_order': False, 'shape': (1,)}", "nothing that NumPy"),
        ("{'descr': '<f4\\x00', 'fortran_order': False, 'shape': (1,)}", "where a text belongs"),
    ] {
        let error = refused(header);
        assert!(error.contains(message), "{header}: {error}");
    }
}

/// A protocol buffer's field of bytes.
fn field(number: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![number << 3 | 2];
    let mut len = body.len();
    while len >= 0x80 {
        bytes.push(len as u8 | 0x80);
        len >>= 7;
    }
    bytes.push(len as u8);
    bytes.extend(body);
    bytes
}

fn model(initializer: &[u8]) -> Vec<u8> {
    [&[8, 8][..], &field(7, &field(5, initializer))].concat()
}

fn external(location: &str) -> Vec<u8> {
    let entry = [field(1, b"location"), field(2, location.as_bytes())].concat();
    model(&[&[8, 4, 16, 2][..], &field(8, b"w"), &field(13, &entry), &[14 << 3, 1]].concat())
}

#[test]
fn onnx_stays_in_its_directory() {
    let dir = tempfile::tempdir().unwrap();
    let inside = dir.path().join("models");
    fs::create_dir_all(inside.join("sub")).unwrap();
    fs::write(dir.path().join("secret"), b"1234").unwrap();
    fs::write(inside.join("sub/data"), b"1234").unwrap();
    let absolute = dir.path().join("secret");
    #[cfg(unix)]
    std::os::unix::fs::symlink(&absolute, inside.join("link")).unwrap();
    let outside = ["../secret", "sub/../../secret", absolute.to_str().unwrap(), "", "sub\\..\\..\\secret"];
    for location in outside.into_iter().chain(cfg!(unix).then_some("link")) {
        let error = read(&inside, "a.onnx", &external(location)).unwrap_err();
        assert!(error.contains("not within the model's directory"), "{location}: {error}");
        assert!(error.contains("tensor \"w\""), "{error}");
    }
    assert!(read(&inside, "a.onnx", &external("sub/data")).unwrap().ends_with(b"1234"));
    let error = read(&inside, "a.onnx", &external("sub")).unwrap_err();
    assert!(error.contains("it is a directory"), "{error}");
}

#[test]
fn onnx_of_nested_graphs_ends() {
    let dir = tempfile::tempdir().unwrap();
    let mut graph = Vec::new();
    for _ in 0..200 {
        graph = field(1, &field(5, &field(6, &graph)));
    }
    let error = read(dir.path(), "a.onnx", &[&[8, 8][..], &field(7, &graph)].concat()).unwrap_err();
    assert!(error.contains("nested deeper"), "{error}");
}

#[test]
fn onnx_shapes_that_lie() {
    let dir = tempfile::tempdir().unwrap();
    let huge =
        [&[8, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x3F, 16, 7][..], &field(8, b"w"), &field(7, &[1])]
            .concat();
    let error = read(dir.path(), "a.onnx", &model(&huge)).unwrap_err();
    assert!(error.contains("does not fit 64 bits") || error.contains("fewer values"), "{error}");
    let large = [&[8, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F, 16, 7][..], &field(8, b"w"), &field(7, &[1])].concat();
    let error = read(dir.path(), "a.onnx", &model(&large)).unwrap_err();
    assert!(error.contains("fewer values"), "{error}");
    let two = [&[8, 1, 16, 1][..], &field(8, b"w"), &field(9, &[0; 4]), &field(4, &[0; 4])].concat();
    assert!(read(dir.path(), "a.onnx", &model(&two)).unwrap_err().contains("two fields"));
}

#[test]
fn gguf_counts_that_lie() {
    let dir = tempfile::tempdir().unwrap();
    for counts in [[u64::MAX, 0], [0, u64::MAX], [1 << 19, 1 << 40]] {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        counts.iter().for_each(|count| bytes.extend(count.to_le_bytes()));
        bytes.extend([0; 64]);
        read(dir.path(), "a.gguf", &bytes).unwrap_err();
    }
    // Arrays in arrays in arrays, each of one.
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    [0, 1, 1].iter().for_each(|number: &u64| bytes.extend(number.to_le_bytes()));
    bytes.push(b'k');
    bytes.extend(9_u32.to_le_bytes());
    for _ in 0..100_000 {
        bytes.extend([9, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    }
    let error = read(dir.path(), "a.gguf", &bytes).unwrap_err();
    assert!(error.contains("nested deeper"), "{error}");
}

#[test]
fn msgpack_that_lies() {
    let dir = tempfile::tempdir().unwrap();
    let mut deep = Vec::new();
    for _ in 0..100_000 {
        deep.extend(b"\x81\xA1a");
    }
    assert!(read(dir.path(), "a.msgpack", &deep).unwrap_err().contains("nested deeper"));
    let many = [&b"\xDF\xFF\xFF\xFF\xFF\xA1a"[..], &[0; 64]].concat();
    read(dir.path(), "a.msgpack", &many).unwrap_err();
    let long = b"\x81\xA1a\xC9\xFF\xFF\xFF\xFF\x01";
    assert!(read(dir.path(), "a.msgpack", long).unwrap_err().contains("are left"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Arrays of any shape, order and endianness come out in rows, little-endian; and what is written is read.
    #[test]
    fn npy_in_any_order(
        shape in prop::collection::vec(1_usize..6, 0..5),
        width in prop::sample::select(vec![1_usize, 2, 4, 8]),
        big in any::<bool>(),
        fortran in any::<bool>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let count: usize = shape.iter().product();
        // In rows: element number n holds n.
        let element = |number: usize| (number as u64).to_le_bytes()[..width].to_vec();
        let rows: Vec<u8> = (0..count).flat_map(element).collect();
        let mut data = Vec::new();
        for place in 0..count {
            // The indices of the element that stands at this place, and its number in rows.
            let mut number = place;
            if fortran {
                let (mut rest, mut index) = (place, Vec::new());
                for dim in &shape {
                    index.push(rest % dim);
                    rest /= dim;
                }
                number = shape.iter().zip(&index).fold(0, |number, (dim, index)| number * dim + index);
            }
            let mut bytes = element(number);
            if big {
                bytes.reverse();
            }
            data.extend(bytes);
        }
        let dims: String = shape.iter().map(|dim| format!("{dim},")).collect();
        let (order, fortran) = (if big { '>' } else { '<' }, if fortran { "True" } else { "False" });
        let header = format!("{{'descr': '{order}u{width}', 'fortran_order': {fortran}, 'shape': ({dims})}}\n");
        let path: PathBuf = dir.path().join("a.npy");
        fs::write(&path, npy(&header, &data)).unwrap();
        let foreign = weighbridge_convert::open(&path, &Options::new()).unwrap();
        let tensor = foreign.checkpoint().tensor("a").unwrap();
        prop_assert_eq!(tensor.shape(), &*shape);
        let plan = Plan::of(foreign.checkpoint()).build().unwrap();
        let session = plan.clone().session().start().unwrap();
        let (_, values) = session.take("a", None).unwrap();
        prop_assert_eq!(values.as_bytes(), &*rows);
        let again = dir.path().join("b.npy");
        numpy::npy(&again, &plan.tensors().next().unwrap().1).unwrap();
        prop_assert!(fs::read(again).unwrap().ends_with(&rows));
    }
}
