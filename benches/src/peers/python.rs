//! Python's loaders, which `python_peers.py` measures.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/python_peers.py");

/// An interpreter.
#[derive(Debug)]
pub(crate) struct Python(pub(crate) PathBuf);

/// What the script says about a loader.
#[derive(Debug, Deserialize)]
pub(crate) struct PythonLoader {
    pub(crate) name: String,
    pub(crate) title: String,
    /// Why it cannot be measured.
    pub(crate) absent: Option<String>,
}

impl Python {
    pub(crate) fn loaders(&self) -> Result<Vec<PythonLoader>> {
        let output = Command::new(&self.0)
            .args([SCRIPT, "--list"])
            .output()
            .with_context(|| format!("cannot run {}", self.0.display()))?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).context("the list of Python's loaders cannot be read")
    }

    pub(crate) fn command(&self, loader: &str, files: &[PathBuf]) -> Command {
        let mut command = Command::new(&self.0);
        command.args([SCRIPT, "--measure", loader]).args(files);
        command
    }
}
