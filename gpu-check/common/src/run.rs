//! One loader in a process of its own, so that none profits from what another has left behind.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::memory::Watch;

/// What a loader did.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Measured {
    /// Seconds of each load, the first of the process among them.
    pub seconds: Vec<f64>,
    /// The most bytes of host memory above those after the device was there.
    pub memory: u64,
    /// Why not every tensor was right, or why it could not be found out.
    pub wrong: Option<String>,
}

/// Measures `load`, whose result `verify` looks at after the last time; what was loaded is dropped before the next time.
pub fn measure<T>(
    repeat: usize,
    mut load: impl FnMut() -> Result<T>,
    verify: impl FnOnce(T) -> Result<()>,
) -> Result<Measured> {
    let mut measured = Measured::default();
    let watch = Watch::start();
    let mut last = None;
    for _ in 0..repeat.max(1) {
        drop(last.take());
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
/// Fails when it does.
pub fn child(arguments: &[&str]) -> Result<Measured> {
    command(&std::env::current_exe()?, arguments)
}

/// Runs a program that prints what it measured.
///
/// # Errors
///
/// Fails when it does.
pub fn command(program: &Path, arguments: &[&str]) -> Result<Measured> {
    let output = Command::new(program).args(arguments).output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    let last = errors.lines().last().unwrap_or("no message").to_owned();
    ensure!(output.status.success(), "{last}");
    let text = String::from_utf8(output.stdout)?;
    serde_json::from_str(text.lines().last().unwrap_or_default()).context("it did not say what it measured")
}
