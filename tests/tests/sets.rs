//! Sets of shards: switched as a whole, however far a switch got before it was interrupted.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use safetensors::SafeTensors as Official;
use weighbridge::index::Index;
use weighbridge::write::{Directory, MetadataEdit, OutputFile, Save, TensorData, Values, recover};
use weighbridge::{Checkpoint, Dtype, ErrorKind};
use weighbridge_tests::names;

fn set(directory: &Path, save: &Save, tensors: usize, value: u8) -> Vec<String> {
    let data: Vec<_> = (0..tensors).map(|n| (format!("t.{n}"), vec![value; 100])).collect();
    let tensors = data.iter().map(|(name, data)| (name.as_str(), Values::new(&[100], data).unwrap()));
    let saved = save.directory(directory, "model", tensors).unwrap();
    saved.shards.iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect()
}

fn value(ckpt: &Checkpoint) -> u8 {
    let mut byte = [0];
    let tensor = ckpt.tensors().last().unwrap();
    tensor.shard().source().read_at(tensor.info().file_range().end - 1, &mut byte).unwrap();
    byte[0]
}

#[test]
fn sets_replace_sets() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("new/model");
    let save = Save::new().metadata("format", "pt").max_shard_size(250);
    let three = [
        "model-00001-of-00003.safetensors",
        "model-00002-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
    ];
    assert_eq!(set(&path, &save, 5, 1), three);
    fs::write(path.join("config.json"), "{}").unwrap();
    let index = Index::read(&path.join("model.safetensors.index.json")).unwrap();
    assert_eq!(index.total_size(), Some(500));
    assert_eq!(index.weights().last(), Some(("t.4", three[2])));
    assert_eq!((Checkpoint::open(&path).unwrap().len(), value(&Checkpoint::open(&path).unwrap())), (5, 1));
    for shard in three {
        let file = fs::read(path.join(shard)).unwrap();
        assert_eq!(Official::read_metadata(&file).unwrap().1.metadata().as_ref().unwrap()["format"], "pt");
    }

    assert_eq!(set(&path, &save, 2, 2), ["model.safetensors"]);
    assert_eq!(names(&path), ["config.json", "model.safetensors"], "no stale shard or index");
    assert_eq!(
        set(&path, &save, 4, 3),
        ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    );
    let four = [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ];
    assert_eq!(names(&path), four);
    assert_eq!(value(&Checkpoint::open(&path).unwrap()), 3);

    // A variant is another checkpoint in the same place.
    let fp16 = save.clone().variant("fp16");
    set(&path, &fp16, 5, 4);
    assert_eq!(value(&Checkpoint::open(&path).unwrap()), 3);
    assert_eq!(value(&Checkpoint::options().variant("fp16").open(&path).unwrap()), 4);
    assert!(path.join("model.safetensors.index.fp16.json").exists());
    set(&path, &fp16, 1, 5);
    assert!(!path.join("model.safetensors.index.fp16.json").exists());
    assert_eq!(names(&path).len(), 5);

    set(&path, &save.unprotected(), 5, 6);
    assert_eq!(value(&Checkpoint::open(&path).unwrap()), 6);
    assert_eq!(names(&path).len(), 6);
    // The names are right for who reads the shards without the index, too.
    fs::remove_file(path.join("model.safetensors.index.json")).unwrap();
    assert_eq!(value(&Checkpoint::open(&path).unwrap()), 6);
}

#[test]
fn only_one_replaces_a_set_at_a_time() {
    struct Nested<'a>(&'a Path);
    impl TensorData for Nested<'_> {
        fn dtype(&self) -> Dtype {
            Dtype::U8
        }

        fn shape(&self) -> &[usize] {
            &[1]
        }

        fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
            let inner = Save::new().directory(self.0, "model", [("a", Values::new(&[1], &[1_u8]).unwrap())]);
            assert_eq!(inner.unwrap_err().kind(), ErrorKind::Busy);
            assert_eq!(recover(self.0).unwrap_err().kind(), ErrorKind::Busy);
            out.write_all(&[1])
        }
    }
    let directory = tempfile::tempdir().unwrap();
    Save::new().directory(directory.path(), "model", [("a", Nested(directory.path()))]).unwrap();
    assert_eq!(names(directory.path()), ["model.safetensors"]);
}

#[test]
fn a_directory_is_locked_by_one() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("new/run");
    assert_eq!(Directory::lock(&path).unwrap_err().kind(), ErrorKind::NotFound);
    let directory = Directory::create(&path).unwrap();
    let tensor = [("a", Values::new(&[1], &[1_u8]).unwrap())];
    for error in [
        Directory::lock(&path).unwrap_err(),
        Directory::create(&path).unwrap_err(),
        Save::new().directory(&path, "model", tensor).unwrap_err(),
        recover(&path).unwrap_err(),
    ] {
        assert_eq!((error.kind(), error.file()), (ErrorKind::Busy, Some(&*path)));
    }
    // Files of their own can be written meanwhile.
    directory.write("state.json", b"{}").unwrap();
    Save::new().file(path.join("model.safetensors"), tensor).unwrap();
    drop(directory);
    Save::new().directory(&path, "model", tensor).unwrap();
    assert_eq!(names(&path), ["model.safetensors", "state.json"]);

    let empty = parent.path().join("empty");
    drop(Directory::create(&empty).unwrap());
    assert!(!empty.exists(), "created for nothing");
    fs::create_dir(&empty).unwrap();
    drop(Directory::create(&empty).unwrap());
    assert!(empty.exists());
}

#[cfg(unix)]
#[test]
fn a_directory_is_not_removed_under_the_one_who_has_it() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("run");
    let written = std::sync::atomic::AtomicUsize::new(0);
    for _ in 0..200 {
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| match Directory::create(&path) {
                    Ok(directory) => {
                        let name = written.fetch_add(1, std::sync::atomic::Ordering::Relaxed).to_string();
                        directory.write(&name, b"").unwrap();
                        fs::remove_file(path.join(name)).unwrap();
                    }
                    Err(error) => assert_eq!(error.kind(), ErrorKind::Busy, "{error}"),
                });
            }
        });
        // It stays where one created it and another was the first to lock it.
        assert!(!path.exists() || fs::remove_dir(&path).is_ok());
    }
    assert!(written.into_inner() >= 200);
}

#[test]
fn small_files_are_replaced_as_a_whole() {
    let parent = tempfile::tempdir().unwrap();
    let at = |name: &str| parent.path().join(name);
    fs::write(at("state.json"), "old").unwrap();
    for left in [".state.json.Ab12cd.tmp", ".other.json.Ab12cd.tmp"] {
        fs::write(at(left), "half").unwrap();
    }
    let directory = Directory::lock(parent.path()).unwrap();
    assert_eq!(directory.path(), parent.path().canonicalize().unwrap());
    directory.write("state.json", b"new").unwrap();
    assert_eq!(fs::read(at("state.json")).unwrap(), b"new");
    assert_eq!(names(parent.path()), [".other.json.Ab12cd.tmp", "state.json"]);
    let living = OutputFile::atomic(at("other.json")).unwrap();
    OutputFile::sweep(at("other.json"));
    assert_eq!(names(parent.path()).len(), 2, "what is in use stays");
    drop(living);
    fs::write(at(".other.json.Ab12cd.tmp"), "half").unwrap();
    OutputFile::sweep(at("other.json"));
    assert_eq!(names(parent.path()), ["state.json"]);

    for name in ["", ".", "..", "../x", "a/b", "model.safetensors", "model.safetensors.index.json"] {
        let error = directory.write(name, b"").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Value, "{error}");
    }
    fs::create_dir(at("state")).unwrap();
    let error = directory.write("state", b"").unwrap_err();
    assert_eq!((error.kind(), error.file()), (ErrorKind::Io, Some(&*directory.path().join("state"))));
    assert_eq!(names(parent.path()), ["state", "state.json"]);
}

/// A switch that was interrupted after each of its steps, written down as it would lie on the disk.
#[test]
fn an_interrupted_switch_is_read_and_completed() {
    let source = tempfile::tempdir().unwrap();
    let save = Save::new().max_shard_size(250);
    let (old, new) = (source.path().join("old"), source.path().join("new"));
    set(&old, &save, 6, 1); // three shards, two of whose names the new set has, too
    set(&new, &save, 5, 2);
    set(&source.path().join("single"), &save, 1, 1);
    let files = names(&new);
    let staging = ".model.safetensors.Ab12cd.staging";
    for steps in 0..=files.len() + 2 {
        for stale in ["model.safetensors", "model-00004-of-00004.safetensors"] {
            let directory = tempfile::tempdir().unwrap();
            let at = |name: &str| directory.path().join(name);
            for name in names(&old) {
                fs::copy(old.join(&name), at(&name)).unwrap();
            }
            fs::copy(source.path().join("single/model.safetensors"), at(stale)).unwrap();
            fs::create_dir(at(staging)).unwrap();
            for name in &files {
                fs::copy(new.join(name), at(staging).join(name)).unwrap();
            }
            let journal =
                serde_json::json!({"version": 1, "staging": staging, "files": files, "remove": [stale]});
            fs::write(at(".model.safetensors.journal"), journal.to_string()).unwrap();
            for name in files.iter().take(steps) {
                fs::rename(at(staging).join(name), at(name)).unwrap();
            }
            if steps > files.len() {
                fs::remove_file(at(stale)).unwrap();
            }
            if steps > files.len() + 1 {
                fs::remove_file(at(".model.safetensors.journal")).unwrap();
            }
            let read = || {
                let ckpt = Checkpoint::open(directory.path()).unwrap();
                assert_eq!((ckpt.len(), value(&ckpt)), (5, 2), "after {steps} steps");
                assert_eq!(ckpt.directory(), Some(directory.path()));
                let by_index = Checkpoint::open(at("model.safetensors.index.json")).unwrap();
                assert_eq!(value(&by_index), 2);
                assert_eq!(value(&Checkpoint::open(at(&files[0])).unwrap()), 2);
            };
            read();
            assert_eq!(recover(directory.path()).unwrap(), steps < files.len() + 2);
            read();
            assert!(!at(stale).exists() && !at(".model.safetensors.journal").exists());
            set(directory.path(), &save, 2, 9);
            assert_eq!(
                names(directory.path()),
                ["model.safetensors"],
                "and the next save leaves nothing of it"
            );
        }
    }
}

/// A directory that had `model.safetensors`, with a switch to two shards that was interrupted before the first
/// renaming.
#[cfg(unix)]
fn interrupted() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    set(directory.path(), &Save::new(), 1, 1);
    let staging = directory.path().join(".model.safetensors.Ab12cd.staging");
    set(&staging, &Save::new().max_shard_size(250), 4, 2);
    let journal = serde_json::json!({
        "version": 1,
        "staging": ".model.safetensors.Ab12cd.staging",
        "files": names(&staging),
        "remove": ["model.safetensors"],
    });
    fs::write(directory.path().join(".model.safetensors.journal"), journal.to_string()).unwrap();
    directory
}

#[cfg(unix)]
#[test]
fn a_single_file_is_not_lost_to_an_interrupted_switch() {
    let one = [9_u8];
    let tensor = || [("a", Values::new(&[1], &one).unwrap())];
    let directory = interrupted();
    let at = |name: &str| directory.path().join(name);
    assert_eq!(Checkpoint::open(at("model.safetensors")).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(value(&Checkpoint::open(at("model.safetensors.index.json")).unwrap()), 2);
    assert_eq!(Checkpoint::open(at("model-00001-of-00002.safetensors")).unwrap().len(), 2);

    // What was begun is completed first, so that nothing of it comes later.
    Save::new().file(at("model.safetensors"), tensor()).unwrap();
    assert_eq!(value(&Checkpoint::open(directory.path()).unwrap()), 9);
    assert!(!recover(directory.path()).unwrap());
    assert_eq!(value(&Checkpoint::open(at("model.safetensors.index.json")).unwrap()), 2);

    let directory = interrupted();
    let shard = directory.path().join("model-00001-of-00002.safetensors");
    MetadataEdit::new().set("k", "v").apply(&shard).unwrap();
    let ckpt = Checkpoint::open(directory.path()).unwrap();
    assert_eq!(ckpt.shards()[0].header().metadata_value("k"), Some("v"));
    assert_eq!((ckpt.len(), value(&ckpt)), (4, 2));
}

#[cfg(unix)]
#[test]
fn a_journal_without_its_files_is_an_error_and_removes_nothing() {
    let staging = ".model.safetensors.Ab12cd.staging";
    for replacement in [None, Some("elsewhere")] {
        let directory = interrupted();
        let at = |name: &str| directory.path().join(name);
        let outside = tempfile::tempdir().unwrap();
        fs::rename(at(staging), outside.path().join("victim")).unwrap();
        if replacement.is_some() {
            std::os::unix::fs::symlink(outside.path().join("victim"), at(staging)).unwrap();
        }
        let kind = |result: weighbridge::Result<()>| result.unwrap_err().kind();
        assert_eq!(kind(Checkpoint::open(directory.path()).map(drop)), ErrorKind::Journal);
        assert_eq!(kind(recover(directory.path()).map(drop)), ErrorKind::Journal);
        let tensor = [("a", Values::new(&[1], &[1_u8]).unwrap())];
        assert_eq!(kind(Save::new().file(at("model.safetensors"), tensor)), ErrorKind::Journal);
        assert_eq!(
            kind(Save::new().directory(directory.path(), "model", tensor).map(drop)),
            ErrorKind::Journal
        );
        assert!(at("model.safetensors").exists());
        assert_eq!(names(&outside.path().join("victim")).len(), 3);
    }
}

#[test]
fn stagings_are_swept_by_sets_and_directories_are_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::create_dir(at(".model.safetensors.Ab12cd.staging")).unwrap();
    fs::create_dir(at("model-00009-of-00009.safetensors")).unwrap();
    Save::new().file(at("model.safetensors"), [("a", Values::new(&[1], &[1_u8]).unwrap())]).unwrap();
    assert!(at(".model.safetensors.Ab12cd.staging").exists());
    set(directory.path(), &Save::new(), 1, 1);
    assert_eq!(names(directory.path()), ["model-00009-of-00009.safetensors", "model.safetensors"]);
}

#[test]
fn a_journal_from_elsewhere_is_not_followed() {
    let directory = tempfile::tempdir().unwrap();
    set(directory.path(), &Save::new(), 1, 1);
    fs::write(directory.path().join("config.json"), "{}").unwrap();
    let journal =
        r#"{"version":1,"staging":".model.safetensors.x.staging","files":[],"remove":["config.json"]}"#;
    fs::write(directory.path().join(".model.safetensors.journal"), journal).unwrap();
    let kind = |result: weighbridge::Result<()>| result.unwrap_err().kind();
    assert_eq!(kind(Checkpoint::open(directory.path()).map(drop)), ErrorKind::Journal);
    assert_eq!(kind(recover(directory.path()).map(drop)), ErrorKind::Journal);
    assert!(directory.path().join("config.json").exists());
}
