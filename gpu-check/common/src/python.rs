//! Loaders of Python, where there is one.

use std::path::Path;

use anyhow::Result;

use crate::options::Options;
use crate::run::{self, Measured};

const SCRIPT: &str = include_str!("peers.py");

/// The loaders that the script knows.
pub const LOADERS: [&str; 2] = ["safetensors.torch", "fastsafetensors"];

/// Has Python load a file.
///
/// # Errors
///
/// Fails when it does, or lacks a module.
pub fn measure(python: &Path, loader: &str, file: &Path, options: &Options) -> Result<Measured> {
    let (file, repeat) = (file.display().to_string(), options.repeat.to_string());
    run::command(python, &["-c", SCRIPT, loader, &file, &repeat], options.limit)
}
