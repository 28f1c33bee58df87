//! What cannot be written to its end is an error, and leaves nothing behind.

#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use support::{command, llama};
use weighbridge::write::{Save, Values};

/// Everything below a directory, hidden files included.
fn tree(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.insert(path.clone(), Vec::new());
            found.extend(tree(&path));
        } else {
            found.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    found
}

/// Runs a line of a shell in which `$weighbridge` is the command and `$dir` the directory; its status and what it printed.
fn shell(dir: &Path, line: &str) -> (i32, String) {
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(line).env("weighbridge", command().get_program()).env("dir", dir);
    let output = shell.stdin(Stdio::null()).output().unwrap();
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_limit_on_the_size_of_files_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    llama(&path("m.safetensors"), None);
    llama(&path("sharded"), Some(4000));
    llama(&path("old.safetensors"), None);
    // More than is gathered before it is written, and copied by the kernel.
    let large = vec![1.0_f32; 1 << 20];
    Save::new().file(path("l.safetensors"), [("l", Values::new(&[1 << 20], &large).unwrap())]).unwrap();
    let before = tree(dir.path());
    for verb in [
        "cast $dir/m.safetensors --to bf16 -o $dir/x.safetensors",
        "cast $dir/m.safetensors --to bf16 -o $dir/old.safetensors --force",
        "cast $dir/l.safetensors --to bf16 -o $dir/x.safetensors",
        "cast $dir/m.safetensors --to bf16 -o $dir/x",
        "filter $dir/l.safetensors --only l -o $dir/x.safetensors",
        "rename $dir/m.safetensors --rename-prefix model.= -o $dir/x.safetensors",
        "split $dir/m.safetensors --max-shard-size 9kB -o $dir/x",
        "split $dir/m.safetensors --max-shard-size 9kB -o $dir/sharded --force",
        "merge $dir/sharded -o $dir/x.safetensors",
        "convert $dir/m.safetensors -o $dir/x.npz",
        "convert $dir/l.safetensors -o $dir/x.npy",
        "meta set $dir/m.safetensors a=b",
        "meta set $dir/sharded a=b",
        "meta set $dir/m.safetensors a=b -o $dir/x.safetensors",
        "cat $dir/l.safetensors l --format npy -o $dir/x.npy",
        "cat $dir/m.safetensors lm_head.weight --full -o $dir/x.txt",
        "inspect $dir/m.safetensors --html $dir/x.html",
    ] {
        // Blocks of 512 bytes or of 1024.
        for blocks in [0, 1, 2] {
            let (status, stderr) =
                shell(dir.path(), &format!("ulimit -f {blocks}; exec $weighbridge {verb}"));
            assert_eq!(status, 2, "{verb}: {stderr}");
            assert_eq!(stderr.lines().count(), 1, "{verb}: {stderr}");
            assert!(stderr.contains("File too large"), "{verb}: {stderr}");
            let after = tree(dir.path());
            assert!(after == before, "{verb}: {:?}", after.keys());
        }
    }
    // Standard output is a file, too.
    for verb in
        ["stat $dir/m.safetensors", "hash $dir/m.safetensors", "cat $dir/l.safetensors l --format raw"]
    {
        let (status, stderr) = shell(dir.path(), &format!("ulimit -f 1; $weighbridge {verb} > $dir/out"));
        assert_eq!((status, stderr.lines().count()), (2, 1), "{verb}: {stderr}");
    }
}

/// The data of a model is written before the model.
#[test]
fn a_model_that_cannot_be_written_leaves_no_data() {
    let dir = tempfile::tempdir().unwrap();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../weighbridge-convert/tests/foreign");
    let model = fixtures.join("external.onnx");
    let run = |line: &str| shell(dir.path(), &line.replace("MODEL", model.to_str().unwrap()));
    assert_eq!(run("$weighbridge convert MODEL -o $dir/w.safetensors").0, 0);
    fs::create_dir(dir.path().join("x.onnx")).unwrap();
    let before = tree(dir.path());
    let (status, stderr) = run("$weighbridge convert $dir/w.safetensors --into MODEL -o $dir/x.onnx --force");
    assert!(status == 2 && stderr.contains("it is a directory"), "{stderr}");
    assert_eq!(tree(dir.path()), before);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_device_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    llama(&dir.path().join("m.safetensors"), None);
    for verb in ["inspect", "stat", "hash", "verify", "meta get", "cat --full"] {
        let tensor = if verb.starts_with("cat") { "lm_head.weight" } else { "" };
        let line = format!("$weighbridge {verb} $dir/m.safetensors {tensor} > /dev/full");
        let (status, stderr) = shell(dir.path(), &line);
        assert_eq!((status, stderr.lines().count()), (2, 1), "{verb}: {stderr}");
        assert!(stderr.contains("No space left on device"), "{verb}: {stderr}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}
