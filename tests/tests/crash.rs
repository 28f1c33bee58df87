//! A save that is killed, or whose disk is full, leaves the old checkpoint or the new one.

#![cfg(unix)]
#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use weighbridge::Checkpoint;
use weighbridge::write::recover;
use weighbridge_tests::names;

const SAVER: &str = env!("CARGO_BIN_EXE_saver");

/// Checks that all of a checkpoint is of one version, and returns it.
fn version(path: &Path) -> u8 {
    let ckpt = Checkpoint::open(path).unwrap();
    let version: u8 = ckpt.shards()[0].header().metadata_value("version").unwrap().parse().unwrap();
    assert_eq!(ckpt.len(), 3 + usize::from(version % 4));
    for shard in ckpt.shards() {
        assert_eq!(shard.header().metadata_value("version"), Some(&*version.to_string()));
    }
    for tensor in ckpt.tensors() {
        let range = tensor.info().file_range();
        let mut bytes = vec![0; (range.end - range.start) as usize];
        assert_eq!(bytes.len(), 20_000 + 1_000 * usize::from(version % 3));
        tensor.shard().source().read_at(range.start, &mut bytes).unwrap();
        assert!(bytes.iter().all(|byte| *byte == version), "{} of {version}", tensor.name());
    }
    version
}

/// Starts a saver, kills it at some moment, and looks at what it left, again and again.
fn killed(kind: &str, path: &Path, times: u32) {
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut seen = std::collections::BTreeSet::new();
    let mut first = 0_u8;
    for _ in 0..times {
        let mut saver = Command::new(SAVER)
            .args([kind, path.to_str().unwrap(), &first.to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // The first version is complete, so that from now on there must be a checkpoint at every moment.
        let mut line = [0; 2];
        saver.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let end = Instant::now() + Duration::from_micros(random % 12_000);
        while Instant::now() < end {
            // A reader beside a writer.
            version(path);
        }
        saver.kill().unwrap();
        saver.wait().unwrap();
        let found = version(path);
        assert_eq!(version(path), found);
        seen.insert(found);
        first = found.wrapping_add(1 + (random % 7) as u8);
    }
    assert!(seen.len() as u32 >= times / 8, "only {} versions were ever seen", seen.len());
}

#[test]
fn killed_200_times_while_it_saves_a_file() {
    let directory = tempfile::tempdir().unwrap();
    killed("file", &directory.path().join("model.safetensors"), 200);
    // What the dead left is swept away by the living.
    assert!(names(directory.path()).len() <= 2, "{:?}", names(directory.path()));
}

#[test]
fn killed_200_times_while_it_saves_a_set() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("config.json"), "{}").unwrap();
    killed("set", directory.path(), 200);
    let found = version(directory.path());
    recover(directory.path()).unwrap();
    assert_eq!(version(directory.path()), found);
    assert!(!recover(directory.path()).unwrap());
    let names = names(directory.path());
    assert!(names.contains(&"config.json".to_owned()));
    let others = names.iter().filter(|name| name.starts_with(".model.safetensors.")).count();
    assert!(others <= 1, "{names:?}");
}

#[test]
fn a_full_disk_leaves_the_old_checkpoint() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.safetensors");
    // A limit on the size of files fails in the middle of a write, as a full disk does.
    let limited = |kind: &str, path: &Path, blocks: u32| {
        let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
        let output = Command::new("bash")
            .args(["-c", &script, SAVER, kind, path.to_str().unwrap(), "1"])
            .output()
            .unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let version_1 = |name: &str| (name.to_owned(), weighbridge::write::Values::new(&[1], &[1_u8]).unwrap());
    weighbridge::write::Save::new().file(&path, [version_1("old")]).unwrap();
    let old = fs::read(&path).unwrap();
    let error = limited("file", &path, 32);
    assert!(error.contains("model.safetensors") && error.contains("File too large"), "{error}");
    let error = limited("set", directory.path(), 32);
    assert!(error.contains("model-00001-of-00002.safetensors"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), old);
    assert_eq!(names(directory.path()), ["model.safetensors"]);
}
