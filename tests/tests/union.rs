//! One checkpoint out of several things: lists of files, and unions of checkpoints that are open already.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.
#![allow(unsafe_code)] // To promise that files stay as they are.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use safetensors::Dtype;
use weighbridge::write::Save;
use weighbridge::{Access, Checkpoint, ErrorKind, Mapping, Plan, Profile, QuantMethod, Result, Source};
use weighbridge_tests::{Stored, file, in_file_order, sharded, write};

fn stored(seed: usize) -> Stored {
    Stored::filled(Dtype::F32, &[4, 8], seed)
}

/// Checkpoint in memory, of tensors that are told apart by their seeds.
fn memory(tensors: &[(&str, usize)]) -> Checkpoint {
    Checkpoint::from_bytes(bytes(tensors)).unwrap()
}

fn bytes(tensors: &[(&str, usize)]) -> Vec<u8> {
    let tensors: Vec<_> = tensors.iter().map(|&(name, seed)| (name, stored(seed))).collect();
    file(&tensors)
}

fn put(path: &Path, tensors: &[(&str, usize)]) -> PathBuf {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    write(path, &bytes(tensors));
    path.to_owned()
}

/// Each tensor of a checkpoint, loaded by one session and taken in reverse, is the one of its seed.
#[track_caller]
fn loads(ckpt: &Checkpoint, expected: &[(&str, usize)]) {
    let names: Vec<_> = ckpt.tensors().map(|tensor| tensor.name()).collect();
    assert_eq!(names, expected.iter().map(|tensor| tensor.0).collect::<Vec<_>>());
    assert_eq!((ckpt.len(), ckpt.byte_len()), (expected.len(), 128 * expected.len() as u64));
    let session = Plan::of(ckpt).build().unwrap().session().start().unwrap();
    for &(name, seed) in expected.iter().rev() {
        let (entry, values) = session.take(name, None).unwrap();
        assert_eq!(entry.name(), name);
        assert!(in_file_order(&values) == stored(seed).bytes(), "{name}");
        let tensor = ckpt.tensor(name).unwrap();
        assert_eq!(tensor.name(), name);
        assert!(std::ptr::eq(&**tensor.shard(), &*ckpt.shards()[tensor.shard_number()]));
    }
}

#[track_caller]
fn fails(opened: Result<Checkpoint>, kind: ErrorKind, words: &[&str]) {
    let error = opened.unwrap_err();
    let text = error.to_string();
    assert_eq!(error.kind(), kind, "{text}");
    assert!(!text.contains('\n'), "{text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is not in {text:?}");
    }
}

#[test]
fn a_list_of_files_keeps_its_order() {
    let dir = tempfile::tempdir().unwrap();
    let paths = [
        put(&dir.path().join("z.safetensors"), &[("a", 1), ("b", 2)]),
        put(&dir.path().join("no extension"), &[("c", 3)]),
        put(&dir.path().join("a.safetensors"), &[("d", 4)]),
    ];
    // An index beside them is not asked.
    write(&dir.path().join("z.safetensors.index.json"), b"not an index");
    let ckpt = Checkpoint::open_files(&paths).unwrap();
    loads(&ckpt, &[("a", 1), ("b", 2), ("c", 3), ("d", 4)]);
    let names: Vec<_> = ckpt.shards().iter().map(|shard| shard.path().unwrap().to_owned()).collect();
    assert_eq!(names, paths);
    assert_eq!(ckpt.directory(), Some(dir.path()));
    assert!(ckpt.prefixes().all(str::is_empty));

    let apart = put(&dir.path().join("sub/e.safetensors"), &[("e", 5)]);
    let ckpt = Checkpoint::open_files([&paths[0], &apart]).unwrap();
    loads(&ckpt, &[("a", 1), ("b", 2), ("e", 5)]);
    assert_eq!(ckpt.directory(), None);
    let roundabout = dir.path().join("sub/../a.safetensors");
    assert_eq!(Checkpoint::open_files([&paths[0], &roundabout]).unwrap().directory(), Some(dir.path()));
}

#[test]
fn options_apply_to_a_list_of_files() {
    let dir = tempfile::tempdir().unwrap();
    let paths =
        ["a", "b"].map(|name| put(&dir.path().join(format!("{name}.safetensors")), &[(name, name.len())]));
    // SAFETY: nobody else knows the directory.
    let mapping = unsafe { Mapping::new() }.access(Access::Random);
    let ckpt = Checkpoint::options().map(mapping).open_files(&paths).unwrap();
    assert!(ckpt.tensors().all(|tensor| tensor.view().unwrap().bytes() == stored(1).bytes()));
    let limited = Checkpoint::options().header_limit(20);
    fails(limited.open_files(&paths), ErrorKind::HeaderTooLarge, &["a.safetensors"]);
    let header = r#" {"x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#;
    let sloppy = dir.path().join("sloppy.safetensors");
    write(&sloppy, &[&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat());
    let all = [&paths[0], &sloppy];
    let warnings = Checkpoint::open_files(all).unwrap().warnings().to_vec();
    assert!(matches!(&*warnings, [line] if line.contains("sloppy.safetensors")), "{warnings:?}");
    let strict = Checkpoint::options().profile(Profile::Strict).open_files(all);
    assert!(strict.unwrap_err().file() == Some(&sloppy));
}

#[test]
fn lists_that_are_not_lists_of_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let one = put(&path("one.safetensors"), &[("a", 1)]);
    fails(Checkpoint::open_files(Vec::<PathBuf>::new()), ErrorKind::NotFound, &["list", "empty"]);
    fails(
        Checkpoint::open_files([&one, &path("none.safetensors")]),
        ErrorKind::NotFound,
        &["none.safetensors"],
    );
    let index = sharded(dir.path(), &[("x.safetensors", &[("x", stored(1))])]);
    fails(
        Checkpoint::open_files([&one, &index]),
        ErrorKind::Unsupported,
        &["index.json", "Checkpoint::union"],
    );
    let kind = ErrorKind::Unsupported;
    fails(
        Checkpoint::open_files([&one, &dir.path().to_owned()]),
        kind,
        &["a directory", "Checkpoint::union"],
    );
    write(&path("x.bin"), b"PK\x03\x04\0\0\x08\x08 and so on");
    fails(Checkpoint::open_files([&one, &path("x.bin")]), ErrorKind::HeaderTooLarge, &["x.bin", "pickle"]);
    // Empty files, too: no tensor of theirs is a duplicate.
    let empty = put(&path("empty.safetensors"), &[]);
    for one in [&one, &empty] {
        fails(Checkpoint::open_files([one, one]), ErrorKind::DuplicateTensor, &["list it once"]);
        let roundabout = path("./../").join(dir.path().file_name().unwrap()).join(one.file_name().unwrap());
        let words = [&*roundabout.display().to_string(), &*one.display().to_string(), "list it once"];
        fails(Checkpoint::open_files([one, &roundabout]), ErrorKind::DuplicateTensor, &words);
    }
}

#[test]
fn two_files_with_a_tensor_of_one_name_are_both_named() {
    let dir = tempfile::tempdir().unwrap();
    let first = put(&dir.path().join("unet/model.safetensors"), &[("a", 1), ("w", 2)]);
    let second = put(&dir.path().join("vae/model.safetensors"), &[("w", 3)]);
    let words =
        [&*format!("{}: tensor \"w\": ", second.display()), &*format!("{:?}", first.display()), "union"];
    fails(Checkpoint::open_files([&first, &second]), ErrorKind::DuplicateTensor, &words);
    let parts = || [&first, &second].map(|path| Checkpoint::open(path).unwrap());
    let [one, other] = parts();
    let words =
        [&*format!("{}: tensor \"x.w\": ", second.display()), &*format!("{:?}", first.display()), "prefix"];
    fails(Checkpoint::union([("x.", one), ("x.", other)]), ErrorKind::DuplicateTensor, &words);
    // Names can meet through their prefixes alone.
    let [one, other] = parts();
    let outer = Checkpoint::union([("", memory(&[("x.w", 0)])), ("x.", other)]);
    fails(outer, ErrorKind::DuplicateTensor, &["tensor \"x.w\"", "<memory>", "vae/model.safetensors"]);
    let label = |label: &str| Checkpoint::options().label(label).from_bytes(bytes(&[("w", 4)])).unwrap();
    let labelled =
        Checkpoint::union([("", label("s3://bucket/a")), ("y.", one), ("", label("s3://bucket/b"))]);
    // In one directory the name of the file is enough.
    fails(labelled, ErrorKind::DuplicateTensor, &["s3://bucket/b: tensor \"w\": \"a\" holds"]);
}

#[test]
fn a_union_puts_prefixes_before_names() {
    let dir = tempfile::tempdir().unwrap();
    sharded(
        dir.path(),
        &[
            ("m-1.safetensors", &[("a", stored(1)), ("b", stored(2))]),
            ("m-2.safetensors", &[("c", stored(3))]),
        ],
    );
    let set = Checkpoint::open(dir.path()).unwrap();
    let alone = memory(&[("a", 4)]);
    let union =
        Checkpoint::union([("set.", set.clone()), ("", alone.clone()), ("set", alone.clone())]).unwrap();
    loads(&union, &[("set.a", 1), ("set.b", 2), ("set.c", 3), ("a", 4), ("seta", 4)]);
    assert_eq!(union.prefixes().collect::<Vec<_>>(), ["set.", "set.", "", "set"]);
    assert!(union.shards().iter().zip(set.shards()).all(|(here, there)| std::sync::Arc::ptr_eq(here, there)));
    assert_eq!(union.tensor("set.b").unwrap().info().name(), "b");
    for absent in ["b", "c", "set.", "set.d", "et.a", "set..a", ""] {
        assert!(union.tensor(absent).is_none(), "{absent}");
    }
    assert_eq!(union.nearest_name("set.x"), Some("set.a"));
    assert_eq!(union.directory(), None);
    let lookups: Vec<_> = Plan::of(&union)
        .filter(|tensor| tensor.name().starts_with("set."))
        .rename(|name| name.replace("set.", ""))
        .build()
        .unwrap()
        .entries()
        .iter()
        .map(|entry| entry.name().to_owned())
        .collect();
    assert_eq!(lookups, ["a", "b", "c"]);
    // The parts are what they were, and a union of one is that one.
    loads(&set, &[("a", 1), ("b", 2), ("c", 3)]);
    let only = Checkpoint::union([(String::new(), set)]).unwrap();
    loads(&only, &[("a", 1), ("b", 2), ("c", 3)]);
    assert_eq!(only.directory(), Some(dir.path()));
    loads(&Checkpoint::union([("only/", alone)]).unwrap(), &[("only/a", 4)]);
    fails(Checkpoint::union(Vec::<(&str, Checkpoint)>::new()), ErrorKind::NotFound, &["empty"]);
}

#[test]
fn unions_nest() {
    let one = memory(&[("w", 1)]);
    let inner =
        Checkpoint::union([("", memory(&[("w", 2)])), ("b.", memory(&[("v", 4), ("w", 3)]))]).unwrap();
    let middle = Checkpoint::union([("x.", inner.clone()), ("", one.clone())]).unwrap();
    loads(&middle, &[("x.w", 2), ("x.b.v", 4), ("x.b.w", 3), ("w", 1)]);
    let outer = Checkpoint::union([("o.", middle), ("", inner), ("again.", one)]).unwrap();
    let expected = [
        ("o.x.w", 2),
        ("o.x.b.v", 4),
        ("o.x.b.w", 3),
        ("o.w", 1),
        ("w", 2),
        ("b.v", 4),
        ("b.w", 3),
        ("again.w", 1),
    ];
    loads(&outer, &expected);
    assert_eq!(outer.prefixes().collect::<Vec<_>>(), ["o.x.", "o.x.b.", "o.", "", "b.", "again."]);
}

#[test]
fn a_union_is_saved_under_its_names() {
    let dir = tempfile::tempdir().unwrap();
    let path = put(&dir.path().join("m.safetensors"), &[("w", 1)]);
    let parts = [("a.", Checkpoint::open(&path).unwrap()), ("b.", memory(&[("w", 2)]))];
    let union = Checkpoint::union(parts).unwrap();
    let (streamed, direct) = (dir.path().join("streamed.safetensors"), dir.path().join("direct.safetensors"));
    Save::new().file(&streamed, Plan::of(&union).build().unwrap().tensors()).unwrap();
    Save::new().file(&direct, union.tensors().map(|tensor| (tensor.name(), tensor))).unwrap();
    for saved in [streamed, direct] {
        loads(&Checkpoint::open(saved).unwrap(), &[("a.w", 1), ("b.w", 2)]);
    }
}

#[test]
fn what_an_index_decided_stays_decided_in_a_union() {
    let dir = tempfile::tempdir().unwrap();
    // The index names the last shard that is listed.
    let first = [("a", stored(1)), ("b", stored(2))];
    sharded(dir.path(), &[("m-1.safetensors", &first), ("m-2.safetensors", &[("a", stored(3))])]);
    let set = Checkpoint::open(dir.path()).unwrap();
    loads(&set, &[("b", 2), ("a", 3)]);
    let header = r#" {"x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#;
    let sloppy = [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
    let sloppy = Checkpoint::options().label("sloppy").from_bytes(sloppy).unwrap();
    let union = Checkpoint::union([("", memory(&[("m", 4)])), ("p.", set)]).unwrap();
    loads(&union, &[("m", 4), ("p.b", 2), ("p.a", 3)]);
    let union = Checkpoint::union([("q.", union), ("s.", sloppy)]).unwrap();
    let [duplicate, space, twice] = union.warnings() else { panic!("{:?}", union.warnings()) };
    let words = ["m-1.safetensors: tensor \"q.p.a\": ", "not used", "\"m-2.safetensors\""];
    assert!(words.iter().all(|word| duplicate.contains(word)), "{duplicate}");
    assert!(space.starts_with("sloppy: ") && space.contains("leading-space"), "{space}");
    assert!(twice.starts_with("sloppy: tensor \"s.x\": ") && twice.contains("duplicate-tensor"), "{twice}");
}

#[test]
fn quantised_modules_are_found_across_a_union() {
    let one = |name: &str, tensor: Stored| Checkpoint::from_bytes(file(&[(name, tensor)])).unwrap();
    let codes = || one("up.weight", Stored::filled(Dtype::I8, &[2, 3], 1));
    let scales = || one("up.SCB", Stored::filled(Dtype::F32, &[2], 1));
    assert_eq!(codes().quantized().len(), 0);
    let together = Checkpoint::union([("m.", scales()), ("m.", codes())]).unwrap();
    let module = together.quantized().next().unwrap();
    assert_eq!((module.name(), module.method()), ("m.up", QuantMethod::BitsAndBytes8));
    assert_eq!(module.codes().map(|tensor| tensor.name()).collect::<Vec<_>>(), ["m.up.weight"]);
    assert!(
        together.quantized_codes("m.up.weight").is_some() && together.quantized_codes("up.weight").is_none()
    );
    assert!(together.quantized_weight("m.up.weight").is_some());
    assert_eq!(Checkpoint::union([("a.", scales()), ("b.", codes())]).unwrap().quantized().len(), 0);

    // What metadata says of names is meant for the names of that file.
    let header = r#"{"__metadata__":{"weighbridge.burn.quantised":"{\"w\":{}}"},"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
    let declared = || {
        let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), b"x"].concat();
        Checkpoint::from_bytes(file).unwrap()
    };
    let plain = one("w", Stored::filled(Dtype::U8, &[1], 1));
    let inner = Checkpoint::union([("n.", declared())]).unwrap();
    let union = Checkpoint::union([("", plain), ("m.", inner), ("k.", declared())]).unwrap();
    let found: Vec<_> = union.quantized().map(|module| module.name()).collect();
    assert_eq!(found, ["m.n.w", "k.w"]);
}

/// Bytes that can be read until they are gone.
struct Vanishing {
    bytes: Vec<u8>,
    is_gone: std::sync::Arc<AtomicBool>,
}

impl Source for Vanishing {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        if self.is_gone.load(Ordering::Relaxed) {
            return Err(io::Error::other("the connection is lost"));
        }
        buf.copy_from_slice(&self.bytes[offset as usize..][..buf.len()]);
        Ok(())
    }
}

#[test]
fn errors_name_a_source_by_its_label() {
    let is_gone = std::sync::Arc::new(AtomicBool::new(false));
    let source = Vanishing { bytes: bytes(&[("w", 1)]), is_gone: std::sync::Arc::clone(&is_gone) };
    let options = Checkpoint::options().label("https://host/m.safetensors");
    let ckpt = options.from_source(source).unwrap();
    let shard = &ckpt.shards()[0];
    assert_eq!((&*shard.name(), shard.path()), ("m.safetensors", None));
    assert_eq!(shard.label(), Some(Path::new("https://host/m.safetensors")));
    is_gone.store(true, Ordering::Relaxed);
    let union = Checkpoint::union([("a.", ckpt)]).unwrap();
    let session = Plan::of(&union).build().unwrap().session().start().unwrap();
    let text = session.take("a.w", None).unwrap_err().to_string();
    assert!(text.starts_with("https://host/m.safetensors: tensor \"a.w\": "), "{text}");
    assert!(text.ends_with("the connection is lost"), "{text}");
    let text = options.from_bytes(vec![1, 2, 3]).unwrap_err().to_string();
    assert!(text.starts_with("https://host/m.safetensors: "), "{text}");
    // A file has its path.
    let dir = tempfile::tempdir().unwrap();
    let path = put(&dir.path().join("m.safetensors"), &[("w", 1)]);
    let ckpt = options.open(&path).unwrap();
    assert_eq!((ckpt.shards()[0].path(), ckpt.shards()[0].label()), (Some(&*path), Some(&*path)));
}

#[test]
fn files_of_a_set_that_is_being_replaced_are_the_new_ones() {
    let set = Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors/sets/replacement");
    let names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let ckpt = Checkpoint::open_files(names.map(|name| set.join(name))).unwrap();
    assert_eq!(ckpt.tensors().map(|tensor| tensor.name()).collect::<Vec<_>>(), ["n", "o"]);
    assert_eq!(ckpt.directory(), Some(&*set));
}
