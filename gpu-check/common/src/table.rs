//! The results, as text and as JSON.

use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use crate::options::Options;
use crate::run::Measured;

/// All results of a program.
#[derive(Debug, Default, Serialize)]
pub struct Results {
    /// The machine and the device, in words.
    pub machine: String,
    /// Bytes of the checkpoint.
    pub bytes: u64,
    /// What the machine does at most, in GB/s, or how long it takes for something, in seconds.
    pub ceilings: Vec<Ceiling>,
    /// The one that loads are measured by, in GB/s.
    pub bus: Option<f64>,
    /// One for each loader and place.
    pub rows: Vec<Row>,
    /// Each loader of ours beside the bus and beside the peers.
    pub shares: Vec<String>,
    /// What the randomised loads came to.
    pub races: String,
    /// Whether anything was wrong.
    pub failed: bool,
}

/// What a machine can do.
#[derive(Debug, Serialize)]
pub struct Ceiling {
    /// Of what.
    pub name: String,
    /// How much.
    pub value: f64,
    /// In which unit.
    pub unit: &'static str,
}

/// A loader.
#[derive(Debug, Serialize)]
pub struct Row {
    /// Which.
    pub loader: String,
    /// Where the checkpoint was.
    pub place: String,
    /// What it did, or why it did not.
    pub outcome: std::result::Result<Measured, String>,
}

impl Results {
    /// Adds a ceiling, and says it.
    pub fn ceiling(&mut self, name: impl Into<String>, value: f64, unit: &'static str) {
        let ceiling = Ceiling { name: name.into(), value, unit };
        println!("{:<58} {value:>8.2} {unit}", ceiling.name);
        self.ceilings.push(ceiling);
    }

    /// Adds a row, and says it.
    pub fn row(&mut self, loader: &str, place: &Path, outcome: Result<Measured>) {
        let outcome = outcome.map_err(|error| format!("{error:#}"));
        let place = place.display().to_string();
        match &outcome {
            Ok(measured) => {
                let (first, best) = (measured.first(), measured.best());
                let rate = |seconds: f64| measured.bytes.unwrap_or(self.bytes) as f64 / seconds / 1e9;
                let right = measured.wrong.as_deref().unwrap_or("every bit equal");
                println!(
                    "{loader:<40} {place:<12} first {first:>7.3} s {:>6.2} GB/s  best {best:>7.3} s {:>6.2} GB/s  \
                     host +{:>6} MiB  {right}",
                    rate(first),
                    rate(best),
                    measured.memory >> 20,
                );
                self.failed |= measured.wrong.is_some();
            }
            // A peer that is not there, or cannot, is no failure of ours.
            Err(error) => {
                println!("{loader:<40} {place:<12} {error}");
                self.failed |= loader.starts_with("weighbridge");
            }
        }
        self.rows.push(Row { loader: loader.to_owned(), place, outcome });
    }

    /// Says how near ours come to the limit of a load and to what the bus can do, the first time and the
    /// best, and how many times as fast as others they are, each at its best.
    pub fn compare(&mut self, place: &Path) {
        let place = place.display().to_string();
        let measured = self.rows.iter().filter(|row| row.place == place).filter_map(|row| {
            let measured = row.outcome.as_ref().ok()?;
            let rate = |seconds: f64| measured.bytes.unwrap_or(self.bytes) as f64 / seconds / 1e9;
            Some((&*row.loader, rate(measured.first()), rate(measured.best())))
        });
        let (ours, others): (Vec<_>, Vec<_>) =
            measured.partition(|(loader, ..)| loader.starts_with("weighbridge"));
        let (limits, others): (Vec<_>, Vec<_>) =
            others.into_iter().partition(|(loader, ..)| loader.contains("limit"));
        let limit_of = |what: &str| {
            let rates = limits.iter().filter(|(loader, ..)| loader.starts_with(what)).map(|(.., best)| *best);
            rates.reduce(f64::max)
        };
        let mut shares = Vec::new();
        for (loader, first, best) in ours {
            let saves = loader.contains("save");
            let limit = limit_of(if saves { "save limit" } else { "limit" });
            let bus = self.bus.map(|bus| (bus, "the bus"));
            let parts = limit.map(|limit| (limit, "the limit")).into_iter().chain(bus).map(|(rate, name)| {
                let percent = |of: f64| 100.0 * of / rate;
                format!(
                    "first {:.0} %, best {:.0} % of {name} ({rate:.1} GB/s)",
                    percent(first),
                    percent(best)
                )
            });
            let mut parts: Vec<_> = parts.collect();
            if !saves && !loader.contains("rank") {
                parts.extend(others.iter().map(|(peer, _, theirs)| format!("{:.1}x {peer}", best / theirs)));
            }
            shares.push(format!("{loader}, {place}: {}", parts.join(", ")));
        }
        shares.iter().for_each(|share| println!("{share}"));
        self.shares.extend(shares);
    }

    /// Adds what came of loads at random, and says it.
    pub fn races(&mut self, outcome: Result<Measured>) {
        let (text, right) = match outcome {
            Ok(Measured { seconds, wrong: None, .. }) => (format!("{}, all right", seconds.len()), true),
            Ok(Measured { seconds, wrong: Some(wrong), .. }) => {
                (format!("{} right, then {wrong}", seconds.len()), false)
            }
            Err(error) => (format!("{error:#}"), false),
        };
        self.races = format!("randomised loads: {text}");
        println!("\n{}", self.races);
        self.failed |= !right;
    }

    /// Writes everything so far as JSON, if that was asked for.
    ///
    /// # Errors
    ///
    /// Fails when the disk does.
    pub fn write(&self, options: &Options) -> Result<()> {
        let Some(path) = &options.json else { return Ok(()) };
        Ok(std::fs::write(path, serde_json::to_vec_pretty(self)?)?)
    }
}

/// The processor, in words.
pub fn processor() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{cores} cores of {}", model.map_or("an unknown processor", |(_, name)| name))
}
