//! What is printed: the summary of a run, as text or JSON, notes and errors.

use std::io::{self, Write};
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use crate::evaluate::Score;
use crate::export::Exported;
use crate::settings::Run;
use crate::train::Outcome;

/// What a run did. These are the keys of the JSON object.
#[derive(Serialize)]
pub(crate) struct Summary<'a> {
    /// Null where a new model was trained.
    from: Option<String>,
    seed: u64,
    steps_per_epoch: usize,
    /// How many were done, those of earlier runs included.
    epochs: usize,
    /// The mean of the last epoch that this run trained.
    loss: Option<f64>,
    held_out_loss: Option<f64>,
    accuracy: f64,
    right: usize,
    asked: usize,
    export: Option<&'a Exported>,
    seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    logits: Option<Vec<f32>>,
}

impl<'a> Summary<'a> {
    pub(crate) fn new(
        run: &Run,
        outcome: &Outcome,
        score: &Score,
        export: Option<&'a Exported>,
        logits: Option<Vec<f32>>,
        took: Duration,
    ) -> Self {
        Self {
            from: run.settings.from.as_ref().map(|from| from.display().to_string()),
            seed: run.settings.seed,
            steps_per_epoch: run.settings.steps_per_epoch,
            epochs: outcome.epochs,
            loss: outcome.losses.train,
            held_out_loss: outcome.losses.held_out,
            accuracy: score.accuracy(),
            right: score.right,
            asked: score.asked,
            export,
            seconds: took.as_secs_f64(),
            logits,
        }
    }

    pub(crate) fn print_text(&self, score: &Score) -> Result<()> {
        let mut text = String::new();
        for answer in &score.examples {
            text.push_str(&format!("{answer}\n"));
        }
        text.push_str(&format!("{score}\n"));
        if let Some(exported) = self.export {
            text.push_str(&format!("{exported}\n"));
        }
        Ok(io::stdout().write_all(text.as_bytes())?)
    }

    pub(crate) fn print_json(&self) -> Result<()> {
        let mut line = serde_json::to_string(self)?;
        line.push('\n');
        Ok(io::stdout().write_all(line.as_bytes())?)
    }
}
