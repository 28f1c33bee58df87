//! Python's loaders, which `python_peers.py` measures.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use gpu_check_common::complaint::complaint;
use serde::Deserialize;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/python_peers.py");

/// An interpreter, and the loaders that it has.
#[derive(Debug)]
pub(crate) struct Python {
    interpreter: PathBuf,
    pub(crate) loaders: Vec<PythonLoader>,
}

/// What the script says about a loader.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct PythonLoader {
    pub(crate) name: String,
    pub(crate) title: String,
    /// Why it cannot be measured.
    pub(crate) absent: Option<String>,
}

impl Python {
    pub(crate) fn new(interpreter: PathBuf) -> Result<Self> {
        let output = Command::new(&interpreter)
            .args([SCRIPT, "--list"])
            .output()
            .with_context(|| format!("cannot run {}", interpreter.display()))?;
        let said = || complaint(&String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "{}", said().unwrap_or_else(|| output.status.to_string()));
        let loaders = serde_json::from_slice(&output.stdout);
        Ok(Self { interpreter, loaders: loaders.context("the list of Python's loaders cannot be read")? })
    }

    pub(crate) fn command(&self, loader: &str, files: &[PathBuf]) -> Command {
        let mut command = Command::new(&self.interpreter);
        command.args([SCRIPT, "--measure", loader]).args(files);
        command
    }
}
