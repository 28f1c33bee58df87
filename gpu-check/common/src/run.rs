//! One loader in a process of its own, so that none profits from what another has left behind.

use std::io::Read;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::complaint::complaint;
use crate::memory::Watch;

/// What a loader did.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Measured {
    /// Seconds of each load, the first of the process among them.
    pub seconds: Vec<f64>,
    /// The most bytes of host memory above those after the device was there.
    pub memory: u64,
    /// Bytes that it moved, if not those of all tensors.
    #[serde(default)]
    pub bytes: Option<u64>,
    /// Why not every tensor was right, or why it could not be found out.
    pub wrong: Option<String>,
}

impl Measured {
    /// Seconds of the first time.
    pub fn first(&self) -> f64 {
        self.seconds.first().copied().unwrap_or(f64::NAN)
    }

    /// Seconds of the fastest time.
    pub fn best(&self) -> f64 {
        self.seconds.iter().copied().fold(f64::INFINITY, f64::min)
    }
}

/// Measures `load`, whose result `verify` looks at after the last time; what was loaded is dropped before the next time,
/// and `settle` waits until the device is done with that.
pub fn measure<T>(
    repeat: usize,
    settle: impl Fn() -> Result<()>,
    mut load: impl FnMut() -> Result<T>,
    verify: impl FnOnce(T) -> Result<()>,
) -> Result<Measured> {
    let mut measured = Measured::default();
    let watch = Watch::start();
    let mut last = None;
    for _ in 0..repeat.max(1) {
        drop(last.take());
        settle()?;
        let start = Instant::now();
        last = Some(load()?);
        measured.seconds.push(start.elapsed().as_secs_f64());
    }
    measured.memory = watch.peak();
    let verified = verify(last.context("nothing was loaded")?);
    measured.wrong = verified.err().map(|error| format!("{error:#}"));
    Ok(measured)
}

/// Prints what a child measured, for [`child`].
///
/// # Errors
///
/// Fails when it cannot be written down.
pub fn report(measured: &Measured) -> Result<()> {
    println!("{}", serde_json::to_string(measured)?);
    Ok(())
}

/// Runs this program with other arguments; it prints what it measured.
///
/// # Errors
///
/// Fails when it does, and when it takes longer than `seconds`; it is ended then.
pub fn child(arguments: &[&str], seconds: u64) -> Result<Measured> {
    command(&std::env::current_exe()?, arguments, seconds)
}

/// Runs a program that prints what it measured.
///
/// # Errors
///
/// Fails when it does, and when it takes longer than `seconds`; it is ended then.
pub fn command(program: &Path, arguments: &[&str], seconds: u64) -> Result<Measured> {
    let mut child =
        Command::new(program).args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    // What it says fits a pipe, but for what others say in it.
    let (mut stdout, mut stderr) = (child.stdout.take(), child.stderr.take());
    let out = thread::spawn(move || text(stdout.as_mut()));
    let err = thread::spawn(move || text(stderr.as_mut()));
    let end = Instant::now() + Duration::from_secs(seconds);
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > end {
            child.kill()?;
            child.wait()?;
            bail!("it was not done after {seconds} s");
        }
        thread::sleep(Duration::from_millis(20));
    };
    let said = |reader: thread::JoinHandle<String>| reader.join().unwrap_or_default();
    let (out, err) = (said(out), said(err));
    ensure!(status.success(), "{}", why(status, &err));
    serde_json::from_str(out.lines().last().unwrap_or_default()).context("it did not say what it measured")
}

/// Why a process failed. One that was ended by a signal did not say so itself.
fn why(status: ExitStatus, stderr: &str) -> String {
    match (complaint(stderr), status.code()) {
        (Some(complaint), Some(_)) => complaint,
        (Some(complaint), None) => format!("{status}; before that: {complaint}"),
        (None, _) => status.to_string(),
    }
}

fn text(from: Option<&mut impl Read>) -> String {
    let mut bytes = Vec::new();
    let _ = from.map(|from| from.read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn a_child_that_fails_says_why() {
        let error = |script: &str| {
            let failed = command(Path::new("sh"), &["-c", script], 60);
            failed.err().map(|error| error.to_string()).unwrap_or_default()
        };
        let script = "printf 'Error: no device\\n\\nStack backtrace:\\n   0: main\\n' >&2; exit 1";
        assert_eq!(error(script), "no device");
        assert_eq!(error("exit 3"), "exit status: 3");
        assert_eq!(error("echo 'error: old' >&2; kill -9 $$"), "signal: 9 (SIGKILL); before that: old");
    }
}
