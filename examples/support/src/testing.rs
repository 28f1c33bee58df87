//! Checkpoints in temporary directories, and programs that are run on them.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// A directory that is removed with the value.
#[derive(Debug)]
pub struct Directory(tempfile::TempDir);

impl Directory {
    /// An empty one.
    #[expect(clippy::new_without_default, reason = "it is made on the disk")]
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file, and the directories that it lies in.
    pub fn write(&self, name: &str, contents: impl AsRef<[u8]>) {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
    }

    /// Removes a file.
    pub fn remove(&self, name: &str) {
        fs::remove_file(self.path().join(name)).unwrap();
    }
}

/// Runs a program, with backtraces asked for, which must not get into its messages.
pub fn run(program: &str, args: &[&str]) -> Output {
    Command::new(program).args(args).env("RUST_BACKTRACE", "1").output().unwrap()
}

/// The same, with this on standard input.
pub fn run_with(program: &str, args: &[&str], input: &str) -> Output {
    let mut command = Command::new(program);
    command.args(args).env("RUST_BACKTRACE", "1");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // It may have ended already.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

/// Standard output of a run that succeeded, as JSON.
pub fn json_of(output: &Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The one line on standard error of a run that failed.
pub fn error_of(output: &Output) -> String {
    let line = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(1), "{line}");
    assert!(output.stdout.is_empty(), "{output:?}");
    assert!(line.starts_with("error: "), "{line}");
    assert!(!line.contains("panicked"), "{line}");
    assert_eq!(line.trim_end().lines().count(), 1, "{line}");
    line.trim_end().to_owned()
}

/// Numbers in [-scale / 2, scale / 2) as little-endian `f32`, which depend on the name only and are exact, so that any
/// language can make the same checkpoint: see `reference.py` of the examples.
pub fn weights(name: &str, count: usize, scale: f32) -> Vec<u8> {
    let mut state = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mut bytes = Vec::with_capacity(4 * count);
    for _ in 0..count {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let value = ((state >> 40) as f32 / 16_777_216.0 - 0.5) * scale;
        bytes.extend_from_slice(&value.to_le_bytes());
    }
    bytes
}
