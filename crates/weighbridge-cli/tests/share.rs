//! `share`: one copy for several processes.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

mod support;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use support::weighbridge;
use weighbridge::write::{Save, Values};
use weighbridge::{Checkpoint, ErrorKind};

const BIN: &str = env!("CARGO_BIN_EXE_weighbridge");

fn model(dir: &Path) {
    fs::create_dir(dir.join("model")).unwrap();
    let values: Vec<f32> = (0..1 << 20).map(|at| at as f32).collect();
    let tensors = [
        ("a.weight", Values::new(&[1 << 10, 1 << 10], &values).unwrap()),
        ("b.weight", Values::new(&[2, 2], &[1.0; 4]).unwrap()),
    ];
    Save::new().file(dir.join("model/model.safetensors"), tensors).unwrap();
    fs::write(dir.join("model/config.json"), "{}").unwrap();
}

/// A process that shares a model; killed when it is dropped.
struct Sharing(Child);

impl Sharing {
    fn start(dir: &Path, name: &str, more: &[&str]) -> Self {
        let mut command = Command::new(BIN);
        command.arg("share").arg(dir.join("model")).args(["--name", name]).args(more);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with(&format!("share:{name}\t")), "{line:?}");
        Self(child)
    }

    fn end(&mut self, signal: i32) -> std::process::ExitStatus {
        let pid = i32::try_from(self.0.id()).unwrap();
        #[allow(unsafe_code)]
        // SAFETY: a signal to a child that was not waited for yet, whose number is its own.
        unsafe {
            libc::kill(pid, signal);
        }
        self.0.wait().unwrap()
    }
}

impl Drop for Sharing {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A name that no other test and no other run has.
fn unique(name: &str) -> String {
    format!("test-{}-{name}", std::process::id())
}

#[test]
fn shared_weights_are_those_that_would_be_written() {
    let dir = tempfile::tempdir().unwrap();
    model(dir.path());
    let name = unique("bf16");
    let mut sharing = Sharing::start(dir.path(), &name, &["--to", "bf16"]);
    let location = format!("share:{name}");
    let shared = Checkpoint::open(&location).unwrap();
    let out = dir.path().join("cast.safetensors");
    let ran = weighbridge([
        "cast".into(),
        dir.path().join("model").into_os_string(),
        "--to".into(),
        "bf16".into(),
        "-o".into(),
        out.clone().into_os_string(),
    ]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    let cast = Checkpoint::open(&out).unwrap();
    for tensor in cast.tensors() {
        let same = shared.tensor(tensor.name()).unwrap();
        assert_eq!((same.dtype(), same.shape()), (tensor.dtype(), tensor.shape()));
        // Mapped: there is a view.
        assert_eq!(same.view().unwrap().bytes(), cast.read(tensor.name()).unwrap().as_bytes());
    }
    let directory = shared.directory().unwrap();
    assert_eq!(directory.canonicalize().unwrap(), dir.path().join("model").canonicalize().unwrap());
    let ran = weighbridge(["share", "--list"]);
    assert!(
        ran.stdout.lines().any(|line| line.starts_with(&format!("{name}\t{}\t", sharing.0.id()))),
        "{}",
        ran.stdout
    );
    let ran = weighbridge(["stat", &location]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);

    // A second one of this name is refused.
    let ran = weighbridge([
        "share".into(),
        dir.path().join("model").into_os_string(),
        "--name".into(),
        name.clone().into(),
    ]);
    assert!(ran.status == 2 && ran.stderr.contains("under this name already"), "{}", ran.stderr);

    // Whoever has opened it keeps it; the name is free again.
    let status = sharing.end(libc::SIGINT);
    assert_eq!(status.code(), Some(0));
    assert_eq!(shared.read("b.weight").unwrap().as_bytes(), [0x80, 0x3F].repeat(4));
    assert_eq!(Checkpoint::open(&location).unwrap_err().kind(), ErrorKind::NotFound);
    drop(Sharing::start(dir.path(), &name, &[]));
}

#[test]
fn killed_shares_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    model(dir.path());
    let name = unique("killed");
    for _ in 0..3 {
        let mut sharing = Sharing::start(dir.path(), &name, &[]);
        let shared = Checkpoint::open(format!("share:{name}")).unwrap();
        sharing.end(libc::SIGKILL);
        assert_eq!(shared.read("a.weight").unwrap().as_bytes().len(), 4 << 20);
        assert!(Checkpoint::open(format!("share:{name}")).is_err());
    }
}

#[test]
fn adapters_are_merged_and_bad_names_refused() {
    let dir = tempfile::tempdir().unwrap();
    model(dir.path());
    let factors = [
        ("b.lora_A.weight", Values::new(&[1, 2], &[1.0_f32, 2.0]).unwrap()),
        ("b.lora_B.weight", Values::new(&[2, 1], &[2.0_f32, 0.0]).unwrap()),
    ];
    Save::new().file(dir.path().join("adapter.safetensors"), factors).unwrap();
    let name = unique("adapted");
    let adapter = format!("{}:0.5", dir.path().join("adapter.safetensors").display());
    let _sharing = Sharing::start(dir.path(), &name, &["--adapter", &adapter]);
    let bytes = Checkpoint::open(format!("share:{name}")).unwrap().read("b.weight").unwrap();
    let wanted: Vec<u8> = [2.0_f32, 3.0, 1.0, 1.0].iter().flat_map(|value| value.to_le_bytes()).collect();
    assert_eq!(bytes.as_bytes(), wanted);
    for bad in ["", "a/b", "a\nb", &"x".repeat(81)] {
        let error = Checkpoint::open(format!("share:{bad}")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{bad:?}: {error}");
        let ran = weighbridge([
            "share".into(),
            dir.path().join("model").into_os_string(),
            "--name".into(),
            bad.into(),
        ]);
        assert!(ran.status == 2 && ran.stderr.contains("no name of a share"), "{}", ran.stderr);
    }
}

/// What mappings of shares are called.
const MAPPED: &str = "memfd:weighbridge";

/// The file that a process has mapped under this name.
fn inode_of(process: u32, name: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{process}/maps")).unwrap();
    let line = text.lines().find(|line| line.contains(name)).unwrap();
    line.split_whitespace().nth(4).unwrap().to_owned()
}

/// The proportional share of memory that a process has of mappings called so, in kB.
fn share_of_memory(process: u32, name: &str, inode: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{process}/smaps")).unwrap();
    let mut is_own = false;
    let mut sum = 0;
    for line in text.lines() {
        if line.split(' ').next().is_some_and(|word| word.contains('-') && !word.ends_with(':')) {
            // Other tests of this process have shares of the same name, which are other files.
            is_own = line.contains(name) && line.split_whitespace().nth(4) == Some(inode);
        } else if let Some(pss) = line.strip_prefix("Pss:").filter(|_| is_own) {
            sum += pss.trim().trim_end_matches(" kB").parse::<u64>().unwrap();
        }
    }
    sum
}

#[test]
fn memory_is_counted_once() {
    const READERS: usize = 4;
    let dir = tempfile::tempdir().unwrap();
    model(dir.path());
    let name = unique("memory");
    let sharing = Sharing::start(dir.path(), &name, &[]);
    let shared = Checkpoint::open(format!("share:{name}")).unwrap();
    // Other processes that have all of it: this test again, which waits.
    let exe = std::env::current_exe().unwrap();
    let mut readers: Vec<_> = (0..READERS)
        .map(|_| {
            let mut command = Command::new(&exe);
            command
                .args(["reader_of_the_other_test", "--exact", "--nocapture"])
                .env("WEIGHBRIDGE_TEST_SHARE", &name);
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for reader in &mut readers {
        let lines = BufReader::new(reader.stdout.as_mut().unwrap()).lines();
        assert!(lines.map_while(Result::ok).any(|line| line.contains("has it all")));
    }
    let sum: f64 =
        shared.tensor("a.weight").unwrap().view().unwrap().bytes().iter().map(|byte| f64::from(*byte)).sum();
    assert!(sum > 0.0);
    let inode = inode_of(readers[0].id(), MAPPED);
    let all: u64 = readers.iter().map(|reader| share_of_memory(reader.id(), MAPPED, &inode)).sum();
    let own = share_of_memory(std::process::id(), MAPPED, &inode);
    let whole = shared.byte_len() / 1024;
    assert!(all > whole / 2 && all + own <= whole + whole / 8 + 64, "{all} and {own} of {whole}");
    drop(sharing);
    for mut reader in readers {
        drop(reader.stdin.take());
        assert!(reader.wait().unwrap().success());
    }
}

/// What `memory_is_counted_once` starts; by itself there is nothing to open, and it only sees that.
#[test]
fn reader_of_the_other_test() {
    let Ok(name) = std::env::var("WEIGHBRIDGE_TEST_SHARE") else {
        assert!(Checkpoint::open(format!("share:{}", unique("nobody"))).is_err());
        return;
    };
    let shared = Checkpoint::open(format!("share:{name}")).unwrap();
    let view = shared.tensor("a.weight").unwrap().view().unwrap();
    let sum: u64 = view.bytes().iter().map(|byte| u64::from(*byte)).sum();
    println!("has it all: {sum}");
    let start = Instant::now();
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    assert!(start.elapsed() < Duration::from_secs(600));
}

/// The name of a share is gone with it; the directory of the model is not.
#[test]
fn an_adapter_made_of_a_share_names_the_model() {
    let dir = tempfile::tempdir().unwrap();
    model(dir.path());
    let name = unique("base");
    let _sharing = Sharing::start(dir.path(), &name, &[]);
    let values = [3.0_f32; 4];
    let first: Vec<f32> = (0..1 << 20).map(|at| at as f32).collect();
    let tuned = [
        ("a.weight", Values::new(&[1 << 10, 1 << 10], &first).unwrap()),
        ("b.weight", Values::new(&[2, 2], &values).unwrap()),
    ];
    let [tuned_file, out] = ["tuned.safetensors", "out"].map(|name| dir.path().join(name));
    Save::new().file(&tuned_file, tuned).unwrap();
    let shared = format!("share:{name}");
    let ran = weighbridge([
        "lora".as_ref(),
        "extract".as_ref(),
        shared.as_ref(),
        tuned_file.as_os_str(),
        "--rank".as_ref(),
        "1".as_ref(),
        "-o".as_ref(),
        out.as_os_str(),
    ]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    let config = fs::read_to_string(out.join("adapter_config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    let base = Path::new(config["base_model_name_or_path"].as_str().unwrap()).canonicalize().unwrap();
    assert_eq!(base, dir.path().join("model").canonicalize().unwrap());
}
