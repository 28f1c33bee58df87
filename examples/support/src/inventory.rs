//! What a model will ask for, compared with a checkpoint's headers before a byte of data moves.

use anyhow::{Result, bail, ensure};

/// The number of problems that are spelled out; the rest are counted.
const SHOWN: usize = 3;

/// The tensors that are missing or have another shape.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    missing: Vec<String>,
    misshaped: Vec<String>,
}

impl Inventory {
    /// Compares the tensors that a model with `layers` layers expects with the `tensors` of a checkpoint, whose shapes
    /// `stored` gives.
    ///
    /// # Errors
    ///
    /// Fails when there are more layers than tensors: a nonsensical number must not become a nonsensical list.
    pub fn take(
        layers: usize,
        tensors: usize,
        expected: impl Iterator<Item = (String, Vec<usize>)>,
        stored: impl Fn(&str) -> Option<Vec<usize>>,
    ) -> Result<Self> {
        ensure!(
            layers <= tensors,
            "config.json: num_hidden_layers is {layers}, but the checkpoint has only {tensors} tensors"
        );
        let mut inventory = Self::default();
        for (name, wanted) in expected {
            match stored(&name) {
                None => inventory.missing.push(format!("\"{name}\"")),
                Some(shape) if shape != wanted => {
                    let problem = format!("\"{name}\" is {shape:?}, the model needs {wanted:?}");
                    inventory.misshaped.push(problem);
                }
                Some(_) => {}
            }
        }
        Ok(inventory)
    }

    /// Whether this tensor is the only one that is missing.
    pub fn lacks_only(&self, name: &str) -> bool {
        matches!(&self.missing[..], [only] if only.contains(name))
    }

    /// # Errors
    ///
    /// One line with the first few tensors that are missing or have another shape, and a hint, if there is one.
    pub fn check(self, hint: Option<&str>) -> Result<()> {
        let mut problems = Vec::new();
        if !self.missing.is_empty() {
            let are = if self.missing.len() == 1 { "tensor is" } else { "tensors are" };
            problems.push(format!("{} {are} missing: {}", self.missing.len(), shorten(&self.missing)));
            problems.extend(hint.map(str::to_owned));
        }
        if !self.misshaped.is_empty() {
            let have = if self.misshaped.len() == 1 { "tensor has" } else { "tensors have" };
            problems.push(format!(
                "{} {have} another shape: {}",
                self.misshaped.len(),
                shorten(&self.misshaped)
            ));
        }
        if !problems.is_empty() {
            bail!("the checkpoint does not fit its config.json: {}", problems.join("; "));
        }
        Ok(())
    }
}

fn shorten(list: &[String]) -> String {
    let mut text = list.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    if list.len() > SHOWN {
        text.push_str(", ...");
    }
    text
}
