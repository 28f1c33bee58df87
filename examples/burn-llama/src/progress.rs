//! What is shown while the model learns: a line for each epoch, and on a terminal how far the present one is.

use std::collections::HashMap;
use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use burn::train::logger::{EvaluationProgressLogger, TrainingProgressLogger};
use burn::train::metric::{MetricDefinition, MetricId, MetricName};
use burn::train::renderer::{
    EvaluationName, MetricState, MetricsRenderer, MetricsRendererEvaluation, MetricsRendererTraining,
};

use examples_support::note;

/// What was measured last.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Losses {
    pub(crate) train: Option<f64>,
    pub(crate) held_out: Option<f64>,
    /// How many tokens of held-out answers are right, in per cent.
    accuracy: Option<f64>,
}

/// A renderer of lines on standard error.
pub(crate) struct Progress {
    /// Burn keeps the renderer, so the numbers are shared.
    losses: Arc<Mutex<Losses>>,
    names: HashMap<MetricId, MetricName>,
    start: Instant,
    in_place: bool,
    epoch: usize,
    epochs: usize,
    split: String,
    items: usize,
}

impl Progress {
    pub(crate) fn new(losses: &Arc<Mutex<Losses>>) -> Self {
        Self {
            losses: Arc::clone(losses),
            names: HashMap::new(),
            start: Instant::now(),
            in_place: io::stderr().is_terminal(),
            epoch: 1,
            epochs: 0,
            split: String::new(),
            items: 0,
        }
    }

    fn losses(&self) -> Losses {
        *self.losses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn measured(&mut self, state: &MetricState, held_out: bool) {
        let MetricState::Numeric(entry, Some(value)) = state else { return };
        let name = self.names.get(&entry.metric_id).map_or("", |name| name.as_str());
        let mut losses = self.losses.lock().unwrap_or_else(PoisonError::into_inner);
        let place = match (name, held_out) {
            ("Loss", false) => &mut losses.train,
            ("Loss", true) => &mut losses.held_out,
            ("Accuracy", true) => &mut losses.accuracy,
            _ => return,
        };
        // A number that JSON does not have would make the summary unreadable.
        *place = Some(value.current()).filter(|value| value.is_finite());
    }

    fn clear(&self) {
        if self.in_place {
            let _ = write!(io::stderr(), "\r\x1b[2K");
        }
    }
}

fn shown(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "?".to_owned(), |value| format!("{value:.digits$}"))
}

impl TrainingProgressLogger for Progress {
    fn start(&mut self, total_epochs: usize, starting_epoch: usize, _: Option<usize>, _: Option<&str>) {
        (self.epochs, self.epoch) = (total_epochs, starting_epoch);
        self.start = Instant::now();
    }

    fn start_split(&mut self, split: &str, total_items: usize) {
        (self.split, self.items) = (split.to_owned(), total_items);
    }

    fn update_split(&mut self, items_processed: usize) {
        if !self.in_place {
            return;
        }
        let Self { epoch, epochs, split, items, .. } = &*self;
        let what = if split == "train" { "sums" } else { "held-out sums" };
        let loss = shown(self.losses().train, 4);
        let line = format!("epoch {epoch} of {epochs}: {items_processed} of {items} {what}, loss {loss}");
        let mut out = io::stderr();
        let _ = write!(out, "\r\x1b[2K{line}").and_then(|()| out.flush());
    }

    fn update_epoch(&mut self, epoch: usize) {
        self.clear();
        let Losses { train, held_out, accuracy } = self.losses();
        note(&format!(
            "epoch {epoch} of {}: loss {}; held-out sums: loss {}, {} % of the tokens right; {:.0} s",
            self.epochs,
            shown(train, 4),
            shown(held_out, 4),
            shown(accuracy, 1),
            self.start.elapsed().as_secs_f64()
        ));
        self.epoch = epoch + 1;
    }

    fn end_split(&mut self) {}

    fn end(&mut self) {
        self.clear();
    }

    fn log_event_training(&mut self, _: String) {}
}

impl MetricsRendererTraining for Progress {
    fn update_train(&mut self, state: MetricState) {
        self.measured(&state, false);
    }

    fn update_valid(&mut self, state: MetricState) {
        self.measured(&state, true);
    }
}

impl MetricsRenderer for Progress {
    fn manual_close(&mut self) {}

    fn register_metric(&mut self, definition: MetricDefinition) {
        self.names.insert(definition.metric_id, definition.name);
    }
}

// The rest is for `Evaluator`, which is not used here.

impl MetricsRendererEvaluation for Progress {
    fn update_test(&mut self, _: EvaluationName, _: MetricState) {}
}

impl EvaluationProgressLogger for Progress {
    fn start_global_progress(&mut self, _: usize) {}

    fn start_test(&mut self, _: &str, _: usize) {}

    fn update_test_progress(&mut self, _: usize) {}

    fn end_test(&mut self) {}

    fn end_global_progress(&mut self) {}

    fn log_event_evaluation(&mut self, _: String) {}
}
