//! The command line.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device};
use clap::{ArgGroup, Parser, ValueEnum};

use crate::generate::Sampling;

/// The sample checkpoint of this repository: a tiny Llama that adds two numbers.
const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../samples/adder");

/// What the sample is asked when nothing else is.
const QUESTIONS: [&str; 5] = ["123+456=", "7+8=", "999+1=", "250+250=", "64+936="];

const EXAMPLES: &str = "\
Examples:
  candle-llama                                               the sample of this repository, a few sums
  candle-llama --prompt 17+25=                               the sample, one sum
  candle-llama --model ~/models/TinyLlama --prompt 'Once upon a time'
  candle-llama --model HuggingFaceTB/SmolLM-135M --prompt 'The sea is' --temperature 0.8 --seed 7
  candle-llama --model ~/models/Llama-3.2-1B --device cuda:0 --dtype bf16 --load-only --json";

/// Loads a Hugging Face Llama checkpoint (safetensors, one file or many) into Candle and continues
/// a prompt. Without arguments it loads the sample checkpoint of this repository and does a few
/// sums.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES)]
#[command(group(ArgGroup::new("task").multiple(true)))]
pub(crate) struct Cli {
    /// A directory, a safetensors or index file, or the id (`org/name[@revision]`) of a repository
    /// in the local Hugging Face cache [default: the sample of this repository]
    #[arg(long, value_name = "DIR|ID", requires = "task")]
    model: Option<PathBuf>,

    /// The text to continue
    #[arg(long, value_name = "TEXT", group = "task", allow_hyphen_values = true)]
    prompt: Option<String>,

    /// Stop after so many tokens, if the model does not stop before
    #[arg(long, value_name = "N", default_value = "64", value_parser = parse_token_count)]
    pub(crate) max_new_tokens: usize,

    /// How freely to choose the next token: 0 always takes the likeliest
    #[arg(long, value_name = "T", default_value_t = 0.0, value_parser = parse_temperature)]
    temperature: f64,

    /// Where the random choices start; the same seed gives the same text
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// The type to compute in [default: f32 on the CPU, elsewhere the type that most of the
    /// checkpoint is stored in]
    #[arg(long, value_enum)]
    pub(crate) dtype: Option<DTypeChoice>,

    /// Where to compute: cpu, cuda, cuda:N or metal
    #[arg(long, value_name = "DEVICE", default_value_t = DeviceChoice::Cpu)]
    pub(crate) device: DeviceChoice,

    /// Stop once the model is built, and say what was loaded and how fast
    #[arg(long, group = "task")]
    pub(crate) load_only: bool,

    /// Print one JSON object: text, tokens, load_seconds, bytes, tensors and more
    #[arg(long)]
    pub(crate) json: bool,
}

impl Cli {
    pub(crate) fn checkpoint(&self) -> PathBuf {
        match &self.model {
            Some(model) => model.clone(),
            // Without the `..` it reads better; where it does not exist, the error should name it
            // all the same.
            None => std::fs::canonicalize(SAMPLE).unwrap_or_else(|_| PathBuf::from(SAMPLE)),
        }
    }

    /// At least one.
    pub(crate) fn prompts(&self) -> Vec<String> {
        match &self.prompt {
            Some(prompt) => vec![prompt.clone()],
            None => QUESTIONS.map(str::to_owned).to_vec(),
        }
    }

    pub(crate) fn sampling(&self) -> Sampling {
        Sampling { temperature: self.temperature, seed: self.seed }
    }
}

/// The bound keeps the table of rotary positions, which is as long as prompt and answer together,
/// from being asked of the allocator in sizes that no machine has.
fn parse_token_count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count) if count <= 1_000_000 => Ok(count),
        _ => Err("expected a whole number from 0 to 1000000".into()),
    }
}

fn parse_temperature(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(temperature) if temperature.is_finite() && temperature >= 0.0 => Ok(temperature),
        _ => Err("expected a number that is not negative".into()),
    }
}

/// The types that `candle_transformers::models::llama` computes in.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum DTypeChoice {
    F32,
    Bf16,
    F16,
}

impl From<DTypeChoice> for DType {
    fn from(choice: DTypeChoice) -> Self {
        match choice {
            DTypeChoice::F32 => Self::F32,
            DTypeChoice::Bf16 => Self::BF16,
            DTypeChoice::F16 => Self::F16,
        }
    }
}

/// A device by its name on the command line, not opened yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeviceChoice {
    Cpu,
    Cuda(usize),
    Metal,
}

impl DeviceChoice {
    pub(crate) fn open(self) -> Result<Device> {
        let (feature, compiled) = match self {
            Self::Cpu => return Ok(Device::Cpu),
            Self::Cuda(_) => ("cuda", cfg!(feature = "cuda")),
            Self::Metal => ("metal", cfg!(feature = "metal")),
        };
        if !compiled {
            bail!(
                "--device {self}: this program was built without the feature `{feature}`; \
                 add `--features {feature}` to the cargo command"
            );
        }
        match self {
            Self::Cuda(ordinal) => Device::new_cuda(ordinal),
            _ => Device::new_metal(0),
        }
        .with_context(|| format!("--device {self}"))
    }
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            "metal" => Ok(Self::Metal),
            _ => name
                .strip_prefix("cuda:")
                .and_then(|ordinal| ordinal.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| "expected cpu, cuda, cuda:N or metal".into()),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
            Self::Metal => f.write_str("metal"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn devices_by_name() {
        assert_eq!("cpu".parse(), Ok(DeviceChoice::Cpu));
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
        assert_eq!("cuda:3".parse(), Ok(DeviceChoice::Cuda(3)));
        assert_eq!("metal".parse(), Ok(DeviceChoice::Metal));
        for name in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "CPU"] {
            assert!(name.parse::<DeviceChoice>().is_err(), "{name:?}");
        }
    }

    #[test]
    fn a_model_needs_a_task() {
        let parse = |args: &[&str]| Cli::try_parse_from([&["candle-llama"], args].concat());
        assert!(parse(&[]).is_ok());
        assert!(parse(&["--json"]).is_ok());
        assert!(parse(&["--prompt", "1+1="]).is_ok());
        assert!(parse(&["--model", "x"]).is_err());
        assert!(parse(&["--model", "x", "--load-only"]).is_ok());
        assert!(parse(&["--model", "x", "--load-only", "--prompt", "y"]).is_ok());
        assert!(parse(&["--prompt", "-1+1="]).is_ok());
        for bad in [["--temperature", "-1"], ["--temperature", "nan"], ["--max-new-tokens", "1000001"]] {
            assert!(parse(&bad).is_err(), "{bad:?}");
        }
    }
}
