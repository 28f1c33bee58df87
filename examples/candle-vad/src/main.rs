//! Finds speech in a recording: the Silero voice activity model in Candle, its weights loaded through weighbridge.
//!
//! [`wave`] reads the recording, [`model`] says how likely each thirtieth of a second is speech, and [`speech`] makes
//! segments of that. Standard output carries the segments, or with `--json` one object; a failure is one line on
//! standard error and exit code 1.

mod model;
mod speech;
mod wave;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use candle_core::Device;
use clap::Parser;
use examples_support::{note, one_line};
use serde_json::json;

use crate::model::{RATE, Silero};
use crate::speech::{Rules, Segment};

/// Finds speech in a recording.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "\
The weights come with the Python package silero-vad (MIT licence); of version 6.2.3 those in the
safetensors file are of another training than the others:
  pip download --no-deps silero-vad && unzip silero_vad-*.whl 'silero_vad/data/*'

Examples:
  candle-vad --model silero_vad/data/silero_vad.jit talk.wav
  candle-vad --model silero_vad/data/silero_vad_16k_op15.onnx --min-silence 500 talk.wav
  candle-vad --model silero_vad/data/silero_vad_16k.safetensors --json talk.wav"
)]
struct Cli {
    /// The model's weights for 16 kHz, as safetensors, ONNX or TorchScript
    #[arg(long, value_name = "FILE")]
    model: PathBuf,

    /// A wav file of 16000 samples a second, or a multiple of that
    recording: PathBuf,

    /// What is at least as likely as this is speech
    #[arg(long, value_name = "P", default_value_t = 0.5, value_parser = probability)]
    threshold: f32,

    /// Shorter speech is left out, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 250)]
    min_speech: u32,

    /// Shorter silence does not end a segment, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 100)]
    min_silence: u32,

    /// What is added at both ends of a segment, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 30)]
    pad: u32,

    /// Longer segments are cut where they are quiet, in seconds
    #[arg(long, value_name = "S")]
    max_speech: Option<u32>,

    /// Print an object with the segments, in samples of the recording, and every probability
    #[arg(long)]
    json: bool,
}

fn probability(text: &str) -> Result<f32, String> {
    match text.parse() {
        Ok(p) if (0.0..=1.0).contains(&p) => Ok(p),
        _ => Err("a number from 0 to 1 is wanted".to_owned()),
    }
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            note(&format!("error: {}", one_line(&error)));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    let model = Silero::load(&cli.model, &Device::Cpu)?;
    let recording = wave::read(&cli.recording).with_context(|| cli.recording.display().to_string())?;
    let started = Instant::now();
    let probabilities = model.probabilities(&recording.samples)?;
    let seconds = started.elapsed().as_secs_f64();

    let rules = Rules {
        threshold: cli.threshold,
        min_speech: cli.min_speech,
        min_silence: cli.min_silence,
        pad: cli.pad,
        max_speech: cli.max_speech,
    };
    let segments = speech::segments(&probabilities, recording.samples.len(), &rules);
    let out = &mut io::stdout().lock();
    if cli.json {
        let scaled = |at: usize| at * recording.step;
        let segments: Vec<_> =
            segments.iter().map(|s| json!({ "start": scaled(s.start), "end": scaled(s.end) })).collect();
        writeln!(out, "{}", json!({ "segments": segments, "probabilities": probabilities }))?;
        return Ok(());
    }
    let length = recording.samples.len() as f64 / RATE as f64;
    note(&format!(
        "{length:.1} s of sound, looked at in {seconds:.2} s ({:.0} times as fast)",
        length / seconds
    ));
    note(&picture(&probabilities));
    for Segment { start, end } in &segments {
        let second = |at: &usize| *at as f64 / RATE as f64;
        writeln!(out, "{:8.2} s  to {:8.2} s", second(start), second(end))?;
    }
    if segments.is_empty() {
        note("there is no speech in it");
    }
    Ok(())
}

/// The probabilities as a line of blocks, the highest of those that share one.
fn picture(probabilities: &[f32]) -> String {
    const WIDTH: usize = 72;
    const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let each = probabilities.len().div_ceil(WIDTH).max(1);
    let highest = |share: &[f32]| share.iter().fold(0.0_f32, |a, b| a.max(*b));
    let block = |share: &[f32]| BLOCKS[((highest(share) * 8.0) as usize).min(7)];
    probabilities.chunks(each).map(block).collect()
}
