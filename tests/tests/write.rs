//! What is written: read by the official crate, byte for byte what it writes, and never half there.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;
use safetensors::{Dtype as OfficialDtype, SafeTensors as Official};
use weighbridge::header::Decode;
use weighbridge::write::{MetadataEdit, Order, OutputFile, Save, TensorData, Values};
use weighbridge::{Checkpoint, Dtype, ErrorKind, Profile, SafeTensors, Source, TensorRef, TensorView};
use weighbridge_tests::{Stored, names};

fn last_byte(tensor: &TensorRef<'_>) -> u8 {
    let mut byte = [0];
    tensor.shard().source().read_at(tensor.info().file_range().end - 1, &mut byte).unwrap();
    byte[0]
}

fn bytes(value: u8, len: usize) -> Vec<u8> {
    (0..len).map(|i| value.wrapping_add(i as u8)).collect()
}

/// A tensor that gives other bytes than its shape needs, in pieces.
struct Lying {
    pieces: Vec<usize>,
}

impl TensorData for Lying {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &[4]
    }

    fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        // One that does not listen to what it is told.
        self.pieces.iter().for_each(|len| drop(out.write_all(&vec![1; *len])));
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_bytes_of_the_official_writer(
        tensors in prop::collection::btree_map(
            "[a-d]{0,3}|é\"\\\\|\u{1}",
            (prop::sample::select(Dtype::all().collect::<Vec<_>>()), prop::collection::vec(0..5_usize, 0..4)),
            0..8,
        ),
        metadata in prop::option::of(("[ -~é\n]{0,4}", "[ -~é\n\u{7f}]{0,6}")),
    ) {
        let mut ours = Vec::new();
        let mut theirs = Vec::new();
        for (place, (name, (dtype, mut shape))) in tensors.into_iter().enumerate() {
            shape.push(8);
            let other: OfficialDtype =
                serde_json::from_value(serde_json::Value::from(dtype.name())).unwrap();
            let data = bytes(place as u8, dtype.size_of(&shape).unwrap() as usize);
            theirs.push((name.clone(), Stored::new(other, &shape, data.clone())));
            ours.push((name, dtype, shape, data));
        }
        let mut save = Save::new();
        if let Some((key, value)) = &metadata {
            save = save.metadata(key, value);
        }
        let views = ours.iter().map(|(name, dtype, shape, data)| {
            (name.as_str(), TensorView::new(*dtype, shape, data).unwrap())
        });
        let file = save.bytes(views).unwrap();
        let map = metadata.map(|entry| HashMap::from([entry]));
        let expected = safetensors::serialize(theirs.iter().map(|(name, data)| (name, data)), map).unwrap();
        prop_assert!(file == expected, "{:?}", String::from_utf8_lossy(&file));
        SafeTensors::parse_with(Decode::new().profile(Profile::Strict), &file).unwrap();
    }
}

#[test]
fn the_same_bytes_every_time() {
    let save = || {
        let names = ["m", "z", "a", "q", "b", "y", "0", "{}", "\u{1f600}", "x\n"];
        let save = names.iter().fold(Save::new(), |save, name| save.metadata(*name, format!("{name}!")));
        save.bytes(["b", "a"].map(|name| (name, Values::new(&[2], &[1.0_f64, f64::NAN]).unwrap()))).unwrap()
    };
    let file = save();
    assert!((0..20).all(|_| save() == file));
    let header = Official::read_metadata(&file).unwrap().1;
    assert_eq!(header.metadata().as_ref().unwrap()["x\n"], "x\n!");
    let tensors = SafeTensors::parse(&file).unwrap();
    let keys: Vec<_> = tensors.header().metadata().unwrap().map(|entry| entry.0).collect();
    assert!(keys.is_sorted());
}

#[test]
fn names_and_shapes_are_checked_before_anything_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sub/a.safetensors");
    let one = || Values::new(&[1], &[1_u8]).unwrap();
    for (names, kind) in [
        (["a", "a"], ErrorKind::DuplicateTensor),
        (["a", "__metadata__"], ErrorKind::TensorName),
        (["a", "b\0"], ErrorKind::TensorName),
    ] {
        // The directory is not there; an attempt to write would say so.
        let error = Save::new().file(&path, names.map(|name| (name, one()))).unwrap_err();
        assert_eq!((error.kind(), error.tensor()), (kind, Some(names[1])));
        let error =
            Save::new().directory(directory.path(), "m", names.map(|name| (name, one()))).unwrap_err();
        assert_eq!(error.kind(), kind);
    }
    for (dtype, shape, kind) in [
        (Dtype::F4, vec![3], ErrorKind::SubByte),
        (Dtype::U8, vec![1 << 31, 1 << 31, 1 << 31], ErrorKind::Overflow),
    ] {
        assert_eq!(Save::new().layout([("a", dtype, shape)]).unwrap_err().kind(), kind);
    }
    let half = || ("a".to_owned(), Dtype::U8, vec![1 << 31, 1 << 31]);
    let four = (0..5).map(|number| (number.to_string(), half().1, half().2));
    assert_eq!(Save::new().layout(four).unwrap_err().kind(), ErrorKind::Overflow);
    let error = Save::new().directory(directory.path(), "a/b", [("a", one())]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ShardName);
    assert!(names(directory.path()).is_empty());
}

#[test]
fn a_wrong_length_leaves_the_destination_as_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.safetensors");
    let good = |value: f32| ("good", [value; 4]);
    let (name, values) = good(1.0);
    Save::new().file(&path, [(name, Values::new(&[4], &values).unwrap())]).unwrap();
    let before = fs::read(&path).unwrap();
    for pieces in [vec![], vec![15], vec![17], vec![16, 1], vec![8, 4], vec![20, 4], vec![16, 16, 16]] {
        let lying = || [("a", Box::new(Lying { pieces: pieces.clone() }) as Box<dyn TensorData>)];
        let error = Save::new().file(&path, lying()).unwrap_err();
        assert_eq!((error.kind(), error.tensor()), (ErrorKind::TensorSize, Some("a")), "{pieces:?} {error}");
        assert!(
            error.to_string().contains("model.safetensors: tensor \"a\": shape [4] of F32 needs 16"),
            "{error}"
        );
        let error = Save::new().directory(directory.path(), "model", lying()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TensorSize, "{error}");
        assert_eq!(Save::new().bytes(lying()).unwrap_err().kind(), ErrorKind::TensorSize);
    }
    Save::new().file(&path, [("a", Lying { pieces: vec![7, 0, 9] })]).unwrap();
    assert_ne!(fs::read(&path).unwrap(), before);
    assert_eq!(names(directory.path()), ["model.safetensors"]);
}

#[test]
fn the_push_writer_keeps_to_its_layout() {
    let layout = || {
        let tensors = [("a", Dtype::U8, vec![2]), ("b", Dtype::F32, vec![1]), ("c", Dtype::U8, vec![0])];
        Save::new().layout(tensors).unwrap()
    };
    let mut writer = layout().writer(Vec::new()).unwrap();
    assert_eq!(writer.expects(), Some("b"), "the official order puts the wider dtype first");
    assert_eq!(writer.put("a", &[1, 2]).unwrap_err().kind(), ErrorKind::MissingTensor);
    writer.put("b", &[0; 4]).unwrap();
    writer.put("a", &[1, 2]).unwrap();
    assert_eq!(writer.expects(), Some("c"));
    writer.put("c", &[]).unwrap();
    assert_eq!(writer.put("d", &[]).unwrap_err().kind(), ErrorKind::MissingTensor);
    let file = writer.finish().unwrap();
    assert_eq!(file.len() as u64, layout().size());
    assert_eq!(Official::deserialize(&file).unwrap().tensor("a").unwrap().data(), [1, 2]);

    let mut writer = layout().writer(Vec::new()).unwrap();
    assert_eq!(writer.put("b", &[0; 5]).unwrap_err().kind(), ErrorKind::TensorSize);
    assert_eq!(writer.put("b", &[0; 4]).unwrap_err().kind(), ErrorKind::TensorSize, "it is broken for good");
    assert_eq!(writer.finish().unwrap_err().kind(), ErrorKind::MissingTensor);

    let mut writer = layout().writer(Vec::new()).unwrap();
    let _ = writer.tensor("b").unwrap();
    assert_eq!(writer.put("a", &[1, 2]).unwrap_err().kind(), ErrorKind::TensorSize);
}

#[test]
fn a_sink_that_fails_is_an_error() {
    struct Full(usize);
    impl Write for Full {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            let taken = buf.len().min(self.0);
            self.0 -= taken;
            if taken == 0 { Err(io::ErrorKind::StorageFull.into()) } else { Ok(taken) }
        }

        fn flush(&mut self) -> io::Result<()> {
            if self.0 == 0 { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
        }
    }
    let tensors =
        || [("a", Values::new(&[2], &[1_u8, 2]).unwrap()), ("b", Values::new(&[1], &[1_u8]).unwrap())];
    let size = Save::new().bytes(tensors()).unwrap().len();
    for room in 0..=size {
        let error = Save::new().to_writer(Full(room), tensors()).map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io, "{room}");
    }
    assert!(Save::new().to_writer(Full(size + 1), tensors()).is_ok());
}

#[test]
fn tensors_start_where_they_were_asked_to() {
    let tensors = || {
        let lengths = [3, 64, 0, 256, 32, 100, 4096, 8, 4096 * 3, 2];
        lengths.into_iter().enumerate().map(|(n, len)| (format!("t{n}"), Dtype::U8, vec![len]))
    };
    for align in [8, 64, 256, 4096] {
        let layout = Save::new().align(align).layout(tensors()).unwrap();
        let start = layout.header().len() as u64;
        assert_eq!(start % align, 0);
        for tensor in layout.tensors() {
            let own = if tensor.byte_len() == 0 {
                align
            } else {
                align.min(1 << tensor.byte_len().trailing_zeros())
            };
            assert_eq!((start + tensor.data_offsets().start) % own, 0, "{} of {align}", tensor.byte_len());
        }
        let given = Save::new().align(align).order(Order::Given).layout(tensors()).unwrap();
        assert_eq!(given.header().len() as u64 % align, 0);
        assert!(given.tensors().iter().map(|tensor| tensor.name().to_owned()).eq(tensors().map(|t| t.0)));
    }
    let lengths = Save::new().align(100).layout(tensors()).unwrap();
    assert_eq!(lengths.header().len() % 128, 0);
}

#[cfg(unix)]
#[test]
fn permissions_and_links() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let mode = |name: &str| fs::metadata(at(name)).unwrap().permissions().mode() & 0o7777;
    let save =
        |name: &str, value: u8| Save::new().file(at(name), [("a", Values::new(&[1], &[value]).unwrap())]);
    let value = |name: &str| *fs::read(at(name)).unwrap().last().unwrap();

    File::create(at("usual")).unwrap();
    save("new", 1).unwrap();
    assert_eq!(mode("new"), mode("usual"), "what the umask leaves");
    fs::set_permissions(at("new"), fs::Permissions::from_mode(0o640)).unwrap();
    save("new", 2).unwrap();
    assert_eq!((mode("new"), value("new")), (0o640, 2));

    fs::create_dir(at("blobs")).unwrap();
    save("blobs/x", 3).unwrap();
    symlink("blobs/x", at("link")).unwrap();
    symlink("link", at("link-to-link")).unwrap();
    save("link-to-link", 4).unwrap();
    assert!(fs::symlink_metadata(at("link")).unwrap().is_symlink());
    assert!(fs::symlink_metadata(at("link-to-link")).unwrap().is_symlink());
    assert_eq!((value("blobs/x"), value("link")), (4, 4));
    symlink("blobs/y", at("dangling")).unwrap();
    save("dangling", 5).unwrap();
    assert_eq!(value("blobs/y"), 5);
    assert_eq!(names(&at("blobs")), ["x", "y"]);

    symlink("loop", at("loop")).unwrap();
    for (name, kind) in [("loop", ErrorKind::Io), ("blobs", ErrorKind::Io), ("no/such", ErrorKind::NotFound)]
    {
        let error = save(name, 6).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert_eq!(error.file(), Some(&*at(name)));
    }
    Save::new().unprotected().file("/dev/null", [("a", Values::new(&[1], &[1_u8]).unwrap())]).unwrap();
    let full = Save::new().unprotected().file("/dev/full", [("a", Values::new(&[1], &[1_u8]).unwrap())]);
    assert!(cfg!(not(target_os = "linux")) || full.unwrap_err().kind() == ErrorKind::Io);
    let refused = Save::new().file("/dev/null", [("a", Values::new(&[1], &[1_u8]).unwrap())]);
    assert!(refused.unwrap_err().to_string().contains("not a regular file"));
    File::create(at("direct")).unwrap().write_all(&[0; 1000]).unwrap();
    Save::new().unprotected().file(at("direct"), [("a", Values::new(&[1], &[7_u8]).unwrap())]).unwrap();
    assert!(Checkpoint::open(at("direct")).is_ok());
}

#[test]
fn what_the_dead_left_is_swept_and_what_the_living_use_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.safetensors");
    let other = OutputFile::atomic(&path).unwrap();
    assert_eq!(names(directory.path()).len(), 1);
    for left in
        [".model.safetensors.Ab12cd.tmp", ".model.safetensors.mine.tmp", ".model.safetensors.Ab12cd.txt"]
    {
        fs::write(directory.path().join(left), "x").unwrap();
    }
    Save::new().file(&path, [("a", Values::new(&[1], &[1_u8]).unwrap())]).unwrap();
    let left = names(directory.path());
    assert_eq!(left.len(), 4, "{left:?}");
    assert!(!left.contains(&".model.safetensors.Ab12cd.tmp".to_owned()));
    drop(other);
    assert_eq!(names(directory.path()).len(), 3);
}

#[test]
fn metadata_of_a_file_that_is_replaced_meanwhile_is_not_edited() {
    // A file system event cannot be placed inside the copy, so the data is what takes long: another thread replaces
    // the file again and again, and each edit must fail or keep what it found.
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.safetensors");
    let save = |value: u8| {
        let data = vec![value; 2_000_000];
        Save::new()
            .metadata("v", value.to_string())
            .file(&path, [("a", Values::new(&[data.len()], &data).unwrap())])
    };
    save(0).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| (1..40).for_each(|value| save(value).unwrap()));
        for _ in 0..40 {
            if let Err(error) = MetadataEdit::new().set("k", "v").apply(&path) {
                assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
            }
        }
    });
    let ckpt = Checkpoint::open(&path).unwrap();
    let version: u8 = ckpt.shards()[0].header().metadata_value("v").unwrap().parse().unwrap();
    assert_eq!(ckpt.tensor("a").map(|tensor| last_byte(&tensor)), Some(version));
}

#[cfg(target_pointer_width = "64")]
#[test]
fn numbers_that_the_schema_does_not_allow_are_not_written() {
    let error = Save::new().layout([("a", Dtype::U8, vec![0, 1 << 48])]).unwrap_err();
    assert_eq!((error.kind(), error.tensor()), (ErrorKind::Overflow, Some("a")));
    assert!(Save::new().layout([("a", Dtype::U8, vec![0, (1 << 48) - 1])]).is_ok());
}

#[test]
fn a_checkpoint_is_copied_from_its_own_files() {
    let directory = tempfile::tempdir().unwrap();
    let save = Save::new().max_shard_size(250);
    let data = [vec![1_u8; 100], vec![2; 100], vec![3; 100], vec![4; 100], vec![5; 100]];
    let tensors = data.iter().enumerate();
    let tensors = tensors.map(|(n, data)| (format!("t.{n}"), Values::new(&[100], data).unwrap()));
    save.directory(directory.path(), "model", tensors).unwrap();
    let ckpt = Checkpoint::open(directory.path()).unwrap();
    let merged = Save::new().order(Order::Given).bytes(ckpt.tensors().map(|t| (t.name(), t))).unwrap();
    assert_eq!(SafeTensors::parse(&merged).unwrap().len(), 5);
    // Over itself: the open files are those of before.
    Save::new().directory(directory.path(), "model", ckpt.tensors().map(|t| (t.name(), t))).unwrap();
    assert_eq!(Checkpoint::open(directory.path()).unwrap().shards().len(), 1);
}

/// Two tensors of 6 MiB, the second of which cannot be read to its end.
struct Failing {
    header: Vec<u8>,
    /// Where they are written to.
    directory: PathBuf,
    /// The bytes that are in temporary files there when reading fails.
    written: Arc<AtomicU64>,
}

impl Failing {
    const TENSOR: usize = 6 << 20;

    fn checkpoint(directory: &Path) -> (Checkpoint, Arc<AtomicU64>) {
        let tensors = ["a", "b"].map(|name| (name, Dtype::U8, vec![Self::TENSOR]));
        let header = Save::new().layout(tensors).unwrap().header().to_vec();
        let (directory, written) = (directory.to_owned(), Arc::new(AtomicU64::new(0)));
        let source = Self { header, directory, written: Arc::clone(&written) };
        (Checkpoint::from_source(source).unwrap(), written)
    }

    fn temporary_bytes(directory: &Path) -> u64 {
        let entries = fs::read_dir(directory).unwrap().map(Result::unwrap);
        let bytes = entries.map(|entry| match entry.metadata().unwrap() {
            data if data.is_dir() => Self::temporary_bytes(&entry.path()),
            _ if entry.file_name() == "model.safetensors" => 0,
            data => data.len(),
        });
        bytes.sum()
    }
}

impl Source for Failing {
    fn size(&self) -> u64 {
        (self.header.len() + 2 * Self::TENSOR) as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        if offset + buf.len() as u64 > self.size() - (1 << 20) {
            self.written.store(Self::temporary_bytes(&self.directory), Ordering::Relaxed);
            return Err(io::Error::other("the disk is broken"));
        }
        buf.fill(7);
        let header = self.header.get(offset as usize..).unwrap_or_default();
        let len = header.len().min(buf.len());
        buf[..len].copy_from_slice(&header[..len]);
        Ok(())
    }
}

#[test]
fn a_source_that_fails_half_way_leaves_the_old_checkpoint() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.safetensors");
    Save::new().file(&path, [("old", Values::new(&[1], &[1_u8]).unwrap())]).unwrap();
    let old = fs::read(&path).unwrap();
    let (ckpt, written) = Failing::checkpoint(directory.path());
    let tensors = || ckpt.tensors().map(|tensor| (tensor.name(), tensor));
    let check = |error: weighbridge::Error, file: &Path| {
        // All of `a` and some of `b`.
        let written = written.swap(0, Ordering::Relaxed) as usize;
        assert!((Failing::TENSOR + 1..2 * Failing::TENSOR).contains(&written), "{written} of {error}");
        assert_eq!((error.kind(), error.tensor(), error.file()), (ErrorKind::Io, Some("b"), Some(file)));
        assert!(error.to_string().ends_with("the disk is broken"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), old);
        assert_eq!(names(directory.path()), ["model.safetensors"]);
    };
    check(Save::new().file(&path, tensors()).unwrap_err(), &path);
    let set = Save::new().max_shard_size(7 << 20);
    let error = set.directory(directory.path(), "model", tensors()).unwrap_err();
    check(error, &directory.path().join("model-00002-of-00002.safetensors"));
}

#[test]
fn a_file_that_is_cut_while_it_is_copied_leaves_the_old_checkpoint() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let source = from.path().join("source.safetensors");
    let data = bytes(1, 1 << 20);
    let tensor = || Values::new(&[1 << 20], &data).unwrap();
    Save::new().file(&source, [("a", tensor()), ("b", tensor())]).unwrap();
    let ckpt = Checkpoint::open(&source).unwrap();
    File::options().write(true).open(&source).unwrap().set_len(3 << 19).unwrap();
    let path = to.path().join("model.safetensors");
    fs::write(&path, "old").unwrap();
    let error = Save::new().file(&path, ckpt.tensors().map(|t| (t.name(), t))).unwrap_err();
    assert_eq!((error.kind(), error.tensor()), (ErrorKind::Io, Some("b")));
    assert!(error.to_string().contains("source.safetensors"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(names(to.path()), ["model.safetensors"]);
}

#[test]
fn metadata_is_edited() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.safetensors");
    let metadata = || {
        let file = fs::read(&path).unwrap();
        let theirs = Official::read_metadata(&file).unwrap().1;
        assert_eq!(Official::deserialize(&file).unwrap().tensor("a").unwrap().data(), bytes(3, 300_000));
        assert!(Checkpoint::options().profile(Profile::Strict).open(&path).is_ok());
        let mut entries: Vec<_> = theirs.metadata().clone().into_iter().flatten().collect();
        entries.sort();
        (entries, Checkpoint::open(&path).unwrap().shards()[0].header().data_start())
    };
    let entries = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect::<Vec<_>>()
    };
    let data = bytes(3, 300_000);
    let tensors = [("a", Values::new(&[300_000], &data).unwrap())];
    Save::new().metadata("b", "1").metadata("a", "é\"").align(64).file(&path, tensors).unwrap();

    MetadataEdit::new().set("c", "2").remove("b").remove("none").apply(&path).unwrap();
    assert_eq!(metadata(), (entries(&[("a", "é\""), ("c", "2")]), 128));
    let long = "x".repeat(5000);
    MetadataEdit::new().set("c", &long).apply(&path).unwrap();
    assert_eq!(metadata().0, entries(&[("a", "é\""), ("c", &long)]));
    assert_eq!(metadata().1 % 64, 0);

    let start = metadata().1;
    MetadataEdit::new().set("c", "short").in_place().apply(&path).unwrap();
    assert_eq!(metadata(), (entries(&[("a", "é\""), ("c", "short")]), start));
    let before = fs::read(&path).unwrap();
    let error = MetadataEdit::new().set("d", "x".repeat(6000)).in_place().apply(&path).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoRoom);
    assert!(error.to_string().contains("model.safetensors: the new header needs"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), before);
    MetadataEdit::new().clear().apply(&path).unwrap();
    assert_eq!(metadata().0, entries(&[]));

    fs::write(&path, "not a checkpoint").unwrap();
    assert!(MetadataEdit::new().set("a", "b").apply(&path).is_err());
    assert_eq!(fs::read(&path).unwrap(), b"not a checkpoint");
    assert_eq!(names(directory.path()), ["model.safetensors"]);
}

#[test]
fn room_that_is_made_is_no_part_of_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    for (expected, written) in [(1 << 20, 10), (10, 1 << 20), (0, 5), (5000, 0)] {
        let mut output = OutputFile::atomic(&path).unwrap();
        output.expect(expected).unwrap();
        output.write_all(&vec![7; written]).unwrap();
        output.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), vec![7; written]);
    }
    // What fails in the middle of a file that is written in its place is no checkpoint.
    let tensors: Vec<(&str, Box<dyn TensorData>)> = vec![
        ("a", Box::new(Values::new(&[3], &[1.0_f64, 2.0, 3.0]).unwrap())),
        ("b", Box::new(Lying { pieces: vec![4] })),
    ];
    Save::new().unprotected().file(&path, tensors).unwrap_err();
    assert!(Checkpoint::open(&path).is_err());
}

#[test]
#[cfg(target_os = "linux")]
fn more_than_there_is_room_for_is_found_out_first() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    let mut output = OutputFile::atomic(&path).unwrap();
    let error = output.expect(1 << 60).unwrap_err();
    assert!(error.to_string().contains("no room"), "{error}");
    drop(output);
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
    // What is no file needs no room.
    OutputFile::unprotected("/dev/null").unwrap().expect(1 << 60).unwrap();
}

#[test]
fn a_large_file_is_synced_while_it_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    let piece = bytes(3, 8 << 20);
    let mut output = OutputFile::atomic(&path).unwrap();
    output.expect(160 << 20).unwrap();
    for _ in 0..20 {
        output.write_all(&piece).unwrap();
    }
    output.commit().unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 160 << 20);
    // Given up in the middle, it leaves nothing.
    let mut output = OutputFile::atomic(dir.path().join("g")).unwrap();
    output.expect(160 << 20).unwrap();
    (0..10).for_each(|_| output.write_all(&piece).unwrap());
    drop(output);
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
}
