//! Opening whole checkpoints: what is found, and what is said when something is wrong.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use std::fs;
use std::path::Path;

use safetensors::Dtype;
use weighbridge::{Checkpoint, ErrorKind, Plan, Profile};
use weighbridge_tests::{Stored, file, in_file_order, sharded, write};

fn stored(seed: usize) -> Stored {
    Stored::filled(Dtype::F32, &[4, 8], seed)
}

fn two_shards(directory: &Path) {
    let first = [("a", stored(1)), ("b", stored(2))];
    let second = [("c", stored(3))];
    sharded(directory, &[("model-1.safetensors", &first), ("model-2.safetensors", &second)]);
}

fn fails(location: &Path, kind: ErrorKind, words: &[&str]) {
    let error = Checkpoint::open(location).unwrap_err();
    let text = error.to_string();
    assert_eq!(error.kind(), kind, "{text}");
    assert!(!text.contains('\n'), "{text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is not in {text:?}");
    }
}

#[test]
fn a_directory_its_index_and_its_shards() {
    let directory = tempfile::tempdir().unwrap();
    two_shards(directory.path());
    for location in [directory.path().to_owned(), directory.path().join("model.safetensors.index.json")] {
        let ckpt = Checkpoint::open(location).unwrap();
        assert_eq!((ckpt.len(), ckpt.byte_len(), ckpt.shards().len()), (3, 3 * 128, 2));
        assert_eq!(ckpt.directory(), Some(directory.path()));
        assert_eq!(ckpt.tensor("c").unwrap().shard().name(), "model-2.safetensors");
        assert!(ckpt.warnings().is_empty(), "{:?}", ckpt.warnings());
        let session = Plan::of(&ckpt).build().unwrap().session().start().unwrap();
        for (name, seed) in [("c", 3), ("a", 1), ("b", 2)] {
            let (entry, values) = session.take(name, None).unwrap();
            assert_eq!(entry.shape(), [4, 8]);
            assert!(in_file_order(&values) == stored(seed).bytes());
        }
    }
    let ckpt = Checkpoint::open(directory.path().join("model-1.safetensors")).unwrap();
    assert_eq!((ckpt.len(), ckpt.nearest_name("aa")), (2, None));
}

#[test]
fn consolidated_weights_beside_shards_are_passed_over() {
    let directory = tempfile::tempdir().unwrap();
    two_shards(directory.path());
    write(&directory.path().join("consolidated.safetensors"), &file(&[("x", stored(0))]));
    assert!(Checkpoint::open(directory.path()).unwrap().tensor("x").is_none());
}

#[test]
fn index_and_shards_that_disagree() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let index = path.join("model.safetensors.index.json");
    let fresh = || two_shards(path);
    let edit = |from: &str, to: &str| {
        fresh();
        let text = fs::read_to_string(&index).unwrap();
        assert!(text.contains(from), "{text}");
        write(&index, text.replace(from, to).as_bytes());
    };
    let kind = ErrorKind::MissingTensor;
    edit(r#""c":"#, r#""d":"#);
    fails(path, kind, &["index.json", "\"d\"", "model-2.safetensors", "does not hold it"]);
    edit(r#""a": "model-1.safetensors""#, r#""a": "model-2.safetensors""#);
    fails(path, kind, &["\"a\"", "model-2.safetensors", "it is in \"model-1.safetensors\""]);
    edit(r#""c": "model-2.safetensors""#, r#""c": "model-3.safetensors""#);
    fails(path, ErrorKind::MissingShard, &["index.json", "model-3.safetensors"]);
    edit(r#""c": "model-2.safetensors""#, r#""c": "../model-2.safetensors""#);
    fails(path, ErrorKind::ShardName, &["index.json", "../model-2.safetensors"]);
    edit(r#""weight_map""#, r#""weights""#);
    fails(path, ErrorKind::Index, &["index.json", "weight_map"]);
    edit("{", "{,");
    fails(path, ErrorKind::Index, &["index.json", "byte"]);

    fresh();
    write(&path.join("model-2.safetensors"), &file(&[("c", stored(3)), ("z", stored(1))]));
    let ckpt = Checkpoint::open(path).unwrap();
    assert!(ckpt.tensor("z").is_some());
    assert!(ckpt.warnings()[0].contains("1 tensors"), "{:?}", ckpt.warnings());
}

#[test]
fn of_a_tensor_in_two_shards_the_index_says_which_counts() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let index = path.join("model.safetensors.index.json");
    let (first, second) = ("model-1.safetensors", "model-2.safetensors");
    let twice = |weights: &str| {
        two_shards(path);
        write(&path.join(second), &file(&[("a", stored(4)), ("c", stored(3))]));
        write(
            &index,
            format!(r#"{{"weight_map": {{"b": "{first}", "c": "{second}"{weights}}}}}"#).as_bytes(),
        );
    };
    for (used, unused, seed) in [(first, second, 1), (second, first, 4)] {
        twice(&format!(r#", "a": "{used}""#));
        let ckpt = Checkpoint::open(path).unwrap();
        let names: Vec<_> = ckpt.tensors().map(|tensor| tensor.name()).filter(|name| *name == "a").collect();
        assert_eq!((names.len(), ckpt.len(), ckpt.byte_len()), (1, 3, 3 * 128));
        assert_eq!(ckpt.tensor("a").unwrap().shard().name(), used);
        let session = Plan::of(&ckpt).build().unwrap().session().start().unwrap();
        assert!(in_file_order(&session.take("a", None).unwrap().1) == stored(seed).bytes());
        let [warning] = ckpt.warnings() else { panic!("{:?}", ckpt.warnings()) };
        let start = format!("{}: tensor \"a\": ", path.join(unused).display());
        assert!(warning.starts_with(&start) && warning.contains(&format!("{used:?}")), "{warning}");
    }
    // Where the index says nothing, nothing decides.
    twice("");
    fails(path, ErrorKind::DuplicateTensor, &[second, "\"a\"", first, "the index"]);
    // One that names a shard without it decides for none of those that have it.
    twice(r#", "a": "model-3.safetensors""#);
    write(&path.join("model-3.safetensors"), &file(&[("d", stored(5))]));
    fails(path, ErrorKind::MissingTensor, &["index.json", "\"a\"", "model-3.safetensors", "but it is in"]);
}

#[test]
fn a_hostile_set_has_no_more_warnings_than_anyone_reads() {
    let directory = tempfile::tempdir().unwrap();
    let names: Vec<_> = (0..1000).map(|number| format!("t{number}")).collect();
    let tensors: Vec<_> = names.iter().map(|name| (&**name, Stored::filled(Dtype::U8, &[1], 1))).collect();
    let more = [&tensors[..], &[("only here", Stored::filled(Dtype::U8, &[1], 1))]].concat();
    sharded(directory.path(), &[("a.safetensors", &more), ("b.safetensors", &tensors)]);
    let ckpt = Checkpoint::open(directory.path()).unwrap();
    assert_eq!((ckpt.len(), ckpt.byte_len()), (1001, 1001));
    assert!(ckpt.warnings().len() < 100, "{}", ckpt.warnings().len());
    assert!(ckpt.warnings().iter().any(|line| line.contains("936 more")), "{:?}", ckpt.warnings().last());
}

#[test]
fn files_that_are_something_else() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.safetensors");
    let whole = file(&[("a", stored(1))]);
    let cases: &[(&[u8], ErrorKind, &str)] = &[
        (b"", ErrorKind::HeaderTooSmall, "empty"),
        (b"1234567", ErrorKind::HeaderTooSmall, "7 bytes"),
        (b"PK\x03\x04\0\0\x08\x08 and so on", ErrorKind::HeaderTooLarge, "pickle"),
        (b"\x80\x02}q\0(X\x05\0\0", ErrorKind::HeaderTooLarge, "pickle"),
        (b"GGUF\x03\0\0\0 and so on", ErrorKind::HeaderTooLarge, "GGUF"),
        (b"version https://git-lfs.github.com/spec/v1\n", ErrorKind::HeaderTooLarge, "LFS"),
        (b"\x1f\x8b\x08\0\0\0\0\0\0\x03 and so on", ErrorKind::HeaderTruncated, "gzip"),
        (&[0; 64], ErrorKind::HeaderSyntax, "zeros"),
        (&whole[..whole.len() - 1], ErrorKind::DataLength, "cut short"),
        (&whole[..40], ErrorKind::HeaderTruncated, "cut short"),
        (&[&whole[..], b"x"].concat(), ErrorKind::DataLength, "left over"),
        (b"\x02\0\0\0\0\0\0\0\xff{", ErrorKind::HeaderEncoding, "UTF-8"),
        (b"\x02\0\0\0\0\0\0\0{]", ErrorKind::HeaderSyntax, "byte 1"),
    ];
    for (bytes, kind, word) in cases {
        write(&path, bytes);
        fails(&path, *kind, &["model.safetensors", word]);
        fails(directory.path(), *kind, &["model.safetensors", word]);
    }
}

#[test]
fn places_without_a_checkpoint() {
    let directory = tempfile::tempdir().unwrap();
    fails(directory.path(), ErrorKind::NotFound, &["no safetensors checkpoint"]);
    fails(&directory.path().join("none"), ErrorKind::NotFound, &["none", "no such file"]);
    fails(Path::new("org/certainly-not-there"), ErrorKind::NotFound, &["org/certainly-not-there", "cache"]);
    fs::create_dir(directory.path().join("model.safetensors")).unwrap();
    fails(directory.path(), ErrorKind::Io, &["model.safetensors", "directory"]);
}

#[cfg(unix)]
#[test]
fn what_is_no_file_is_not_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.safetensors");
    let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
    assert!(made.success());
    fails(directory.path(), ErrorKind::Io, &["model.safetensors", "not a regular file"]);
    fails(Path::new("/dev/null"), ErrorKind::Io, &["/dev/null", "not a regular file"]);
}

#[test]
fn every_truncation_is_an_error_and_none_a_panic() {
    let whole = file(&[("a", stored(1)), ("b", Stored::filled(Dtype::F4, &[6], 1))]);
    for len in 0..whole.len() {
        assert!(Checkpoint::from_bytes(whole[..len].to_vec()).is_err(), "{len}");
    }
}

#[test]
fn a_file_that_becomes_shorter_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.safetensors");
    write(&path, &file(&[("a", Stored::filled(Dtype::F32, &[1 << 20], 1))]));
    let ckpt = Checkpoint::open(&path).unwrap();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(1 << 20).unwrap();
    let session = Plan::of(&ckpt).build().unwrap().session().start().unwrap();
    let error = session.take("a", None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    let text = error.to_string();
    assert!(text.contains("model.safetensors: tensor \"a\": its data ends early"), "{text}");
}

#[test]
fn strict_refuses_and_compat_warns() {
    let entry = r#"{"dtype":"U8","shape":[2],"data_offsets":[0,2]}"#;
    for (header, rule) in [
        (format!(" {{\"a\":{entry}}}"), "leading-space"),
        (format!("{{\"a\":{entry}}}\n"), "padding"),
        (format!("{{\"a\":{entry},\"a\":{entry}}}"), "duplicate-tensor"),
        (format!("{{\"__metadata__\":{{\"k\":\"v\",\"k\":\"w\"}},\"a\":{entry}}}"), "duplicate-metadata"),
        (format!("{{\"a\":{}}}", entry.replace('{', "{\"x\":1,")), "unknown-field"),
        ("{\"a\":[\"U8\",[2],[0,2]]}".to_owned(), "tensor-as-array"),
        (format!("{{\"a\":{}}}", entry.replace("\"U8\"", "{\"U8\":null}")), "dtype-as-object"),
        (format!("{{\"__metadata__\":null,\"a\":{entry}}}"), "null-metadata"),
        (format!("{{\"\\u005f_metadata__\":{{}},\"a\":{entry}}}"), "escaped-metadata-key"),
        (format!("{{\"a\\u0000\":{entry}}}"), "nul-in-name"),
    ] {
        let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), b"xy"].concat();
        let ckpt = Checkpoint::from_bytes(file.clone()).unwrap();
        let findings = ckpt.shards()[0].header().findings();
        assert_eq!(findings.iter().map(|f| f.rule.name()).collect::<Vec<_>>(), [rule], "{header}");
        let error = Checkpoint::options().profile(Profile::Strict).from_bytes(file).unwrap_err();
        assert_eq!(error.rule().map(weighbridge::header::Rule::name), Some(rule), "{header}");
        assert!(error.to_string().contains(rule), "{error}");
    }
    let fine = format!("{{ \"a\" : {entry} }}   ");
    let fine = [&(fine.len() as u64).to_le_bytes()[..], fine.as_bytes(), b"xy"].concat();
    assert!(Checkpoint::options().profile(Profile::Strict).from_bytes(fine).is_ok());
}
