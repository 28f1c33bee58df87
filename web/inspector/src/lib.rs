//! What the page asks of Rust: which tensors are in the files that were dropped on it, whether these are harmless and keep
//! the rules of their formats, and figures of the values.

mod blob;
mod checks;
mod open;
mod scanned;
mod values;

use js_sys::JsString;
use wasm_bindgen::prelude::*;
use weighbridge::{Checkpoint, Names};
use weighbridge_page::Survey;
use weighbridge_page::inspect::Document;

use crate::checks::Checks;
use crate::open::Files;
use crate::values::Reading;

/// A checkpoint that was opened.
#[wasm_bindgen]
pub struct Opened {
    name: String,
    checkpoint: Checkpoint,
    checks: Checks,
    reading: Reading,
}

/// Opens files by what they hold: the worker has them, and gives their bytes by their numbers.
///
/// # Errors
///
/// Fails in one line that names the file.
#[wasm_bindgen]
pub fn open(names: Vec<String>, sizes: Vec<f64>) -> Result<Opened, JsString> {
    let files = Files::new(names, &sizes);
    let name = files.title();
    let (checkpoint, checks) = files.open().map_err(|error| line(&error))?;
    let reading = Reading::of(&survey(&name, &checkpoint));
    Ok(Opened { name, checkpoint, checks, reading })
}

/// What pickles in the files would import, as JSON; `None` where there can be none.
///
/// # Errors
///
/// Fails where a file cannot be read.
#[wasm_bindgen]
pub fn scan(names: Vec<String>, sizes: Vec<f64>) -> Result<Option<String>, JsString> {
    scanned::scan(&Files::new(names, &sizes)).map_err(|error| line(&error))
}

/// Everything that is wrong with the headers of safetensors files, as JSON: not only the first fault, as when they are opened.
#[wasm_bindgen]
pub fn faults(names: Vec<String>, sizes: Vec<f64>) -> String {
    Checks::of_broken(&Files::new(names, &sizes)).json()
}

#[wasm_bindgen]
impl Opened {
    /// What the page shows, as JSON.
    ///
    /// # Errors
    ///
    /// None that is known.
    pub fn document(&self) -> Result<String, JsString> {
        let survey = survey(&self.name, &self.checkpoint);
        let survey = match self.reading.figures(survey.tensors().len()) {
            Some(figures) => survey.with_figures(figures),
            _ => survey,
        };
        serde_json::to_string(&Document::of(&survey)).map_err(|error| error.to_string().into())
    }

    /// What was checked, as JSON.
    pub fn checks(&self) -> String {
        self.checks.json()
    }

    /// Bytes of values that can be read.
    pub fn values(&self) -> f64 {
        self.reading.bytes() as f64
    }

    /// Reads values for a while; returns how many bytes were read so far, `None` when all were.
    ///
    /// # Errors
    ///
    /// Fails where a file cannot be read.
    pub fn read(&mut self) -> Result<Option<f64>, JsString> {
        let survey = survey(&self.name, &self.checkpoint);
        let read = self.reading.step(survey.tensors()).map_err(|error| line(&error))?;
        Ok(read.map(|bytes| bytes as f64))
    }

    /// Reads from the start again.
    pub fn rewind(&mut self) {
        self.reading = Reading::of(&survey(&self.name, &self.checkpoint));
    }
}

fn survey<'c>(name: &str, checkpoint: &'c Checkpoint) -> Survey<'c> {
    Survey::new(name, name, checkpoint, checkpoint, &Names::all())
}

/// An error as the page shows it.
fn line(error: &weighbridge::Error) -> JsString {
    error.to_string().into()
}
