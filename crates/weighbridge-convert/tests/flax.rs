//! Flax's trees, made here byte by byte: names, dtypes, and what is refused.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use weighbridge::{ErrorKind, Names, Plan};
use weighbridge_convert::{Foreign, NoteKind, Options};

/// A text, or a key.
fn text(text: &str) -> Vec<u8> {
    [&[0xD9, text.len() as u8], text.as_bytes()].concat()
}

fn dict(entries: &[(&[u8], &[u8])]) -> Vec<u8> {
    let entries: Vec<_> = entries.iter().flat_map(|(key, value)| [*key, *value]).collect();
    [&[0x80 | (entries.len() / 2) as u8], &entries.concat()[..]].concat()
}

/// An extension with a body of less than 256 bytes.
fn extension(kind: u8, body: &[u8]) -> Vec<u8> {
    [&[0xC7, body.len() as u8, kind], body].concat()
}

/// An array of one dimension.
fn array(dtype: &str, len: u8, data: &[u8]) -> Vec<u8> {
    let bytes = [&[0xC4, data.len() as u8], data].concat();
    extension(1, &[&[0x93, 0x91, len], &text(dtype)[..], &bytes].concat())
}

fn open(bytes: &[u8], options: &Options) -> weighbridge::Result<Foreign> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tree.msgpack");
    std::fs::write(&path, bytes).unwrap();
    weighbridge_convert::open(path, options)
}

fn names(foreign: &Foreign) -> Vec<String> {
    foreign.checkpoint().tensors().map(|tensor| tensor.name().to_owned()).collect()
}

/// The bytes of a tensor.
fn bytes(foreign: &Foreign, name: &str) -> Vec<u8> {
    let plan = Plan::of(foreign.checkpoint()).only(Names::exact(name)).build().unwrap();
    plan.session().start().unwrap().take(name, None).unwrap().1.as_bytes().to_vec()
}

#[test]
fn empty_keys_are_kept() {
    let leaf = |byte| array("uint8", 1, &[byte]);
    let inner = dict(&[(&text(""), &leaf(2)), (&text("b"), &leaf(3))]);
    let nested = dict(&[(&text("a"), &inner), (&text(""), &leaf(1))]);
    let foreign = open(&nested, &Options::new()).unwrap();
    for (name, byte) in [("", 1), ("a.", 2), ("a.b", 3)] {
        assert_eq!(bytes(&foreign, name), [byte], "{name:?}");
    }
    assert_eq!(foreign.checkpoint().len(), 3);
}

#[test]
fn two_tensors_of_one_name_are_an_error() {
    let leaf = || array("uint8", 1, &[1]);
    let inner = |key: &[u8]| dict(&[(key, &leaf())]);
    for (tree, message) in [
        (dict(&[(&text("a.b"), &leaf()), (&text("a"), &inner(&text("b")))]), r#"["a.b"] and ["a"]["b"]"#),
        (
            dict(&[(&text("a"), &dict(&[(&text("1"), &leaf()), (&[1], &leaf())]))]),
            r#"["a"]["1"] and ["a"][1]"#,
        ),
        (dict(&[(&text("a"), &leaf()), (&text("a"), &leaf())]), r#"["a"] and ["a"]"#),
    ] {
        let error = open(&tree, &Options::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DuplicateTensor, "{error}");
        assert!(error.to_string().contains(message), "{error}");
        let without = Options::new().only(Names::exact("other"));
        assert_eq!(open(&tree, &without).unwrap().unchosen(), 2);
    }
    // Of values in the metadata one is kept, and the other named.
    let values = dict(&[(&text("a.b"), &[7]), (&text("a"), &dict(&[(&text("b"), &[8])]))]);
    let foreign = open(&values, &Options::new()).unwrap();
    assert_eq!(foreign.save().metadata_value("a.b"), Some("7"));
    assert!(foreign.notes().iter().any(|note| note.kind() == NoteKind::Dropped && note.name() == "a.b"));
}

#[test]
fn dtypes_are_read_or_refused_by_name() {
    for (name, dtype, len) in [
        ("bfloat16", "BF16", 2),
        ("V2", "BF16", 2),
        ("float8_e4m3fn", "F8_E4M3", 1),
        ("float8_e5m2", "F8_E5M2", 1),
        ("float8_e4m3fnuz", "F8_E4M3FNUZ", 1),
        ("float8_e5m2fnuz", "F8_E5M2FNUZ", 1),
        ("float8_e8m0fnu", "F8_E8M0", 1),
        ("complex64", "C64", 8),
        ("bool", "BOOL", 1),
    ] {
        let foreign = open(&dict(&[(&text("w"), &array(name, 1, &vec![1; len]))]), &Options::new()).unwrap();
        assert_eq!(foreign.checkpoint().tensor("w").unwrap().dtype().name(), dtype);
    }
    let big = open(&dict(&[(&text("w"), &array(">u2", 2, &[1, 2, 3, 4]))]), &Options::new()).unwrap();
    assert_eq!(bytes(&big, "w"), [2, 1, 4, 3]);
    let ok = array("uint8", 1, &[1]);
    for bad in [
        array("int4", 3, &[1, 1, 1]),
        array("float8_e4m3b11fnuz", 1, &[1]),
        array("complex128", 1, &[0; 16]),
        array("object", 1, &[0; 8]),
        extension(42, &[1, 2, 3]),
    ] {
        let tree = dict(&[(&text("bad"), &bad), (&text("ok"), &ok)]);
        let error = open(&tree, &Options::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("tensor \"bad\": it is a"), "{error}");
        let skipped = open(&tree, &Options::new().skip_unsupported()).unwrap();
        assert_eq!(names(&skipped), ["ok"]);
        assert!(skipped.notes().iter().any(|note| note.name() == "bad"));
        let except = Options::new().only(Names::all().except(Names::exact("bad")));
        assert_eq!(names(&open(&tree, &except).unwrap()), ["ok"]);
    }
    let error =
        open(&dict(&[(&text("x"), &extension(42, b"abc"))]), &Options::new()).unwrap_err().to_string();
    assert!(error.contains("extension of type 42"), "{error}");
    // What is not chosen is not looked into.
    let broken = dict(&[(&text("w"), &array("float32", 9, &[0; 4])), (&text("ok"), &ok)]);
    assert!(open(&broken, &Options::new()).is_err());
    assert_eq!(names(&open(&broken, &Options::new().only(Names::exact("ok"))).unwrap()), ["ok"]);
}

#[test]
fn pieces_are_put_together_or_refused() {
    let shape = dict(&[(&text("0"), &[4])]);
    let pieces = |dtype, data: &[u8]| {
        let half = data.len() / 2;
        let chunks = dict(&[
            (&text("0"), &array(dtype, 2, &data[..half])),
            (&text("1"), &array(dtype, 2, &data[half..])),
        ]);
        dict(&[
            (&text("__msgpack_chunked_array__"), &[0xC3]),
            (&text("shape"), &shape),
            (&text("chunks"), &chunks),
        ])
    };
    let tree = dict(&[(&text("w"), &pieces("uint8", &[1, 2, 3, 4]))]);
    assert_eq!(bytes(&open(&tree, &Options::new()).unwrap(), "w"), [1, 2, 3, 4]);
    let tree = dict(&[(&text("w"), &pieces("int4", &[1, 2, 3, 4]))]);
    assert!(open(&tree, &Options::new()).unwrap_err().to_string().contains("int4"));
    assert!(open(&tree, &Options::new().skip_unsupported()).unwrap().checkpoint().is_empty());
    // The mark is where Flax puts it, or the parts would be tensors of their own.
    let late = dict(&[(&text("shape"), &shape), (&text("__msgpack_chunked_array__"), &[0xC3])]);
    assert!(open(&dict(&[(&text("w"), &late)]), &Options::new()).is_err());
}
