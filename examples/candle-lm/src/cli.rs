//! The command line.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{ArgGroup, Parser};
use examples_support::device::{DTypeChoice, DeviceChoice};
use examples_support::lm::Sampling;

/// The sample checkpoint of this repository: a tiny Llama that adds two numbers.
const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../samples/adder");

/// What the sample is asked when nothing else is.
const QUESTIONS: [&str; 5] = ["123+456=", "7+8=", "999+1=", "250+250=", "64+936="];

const EXAMPLES: &str = "\
Examples:
  candle-lm                                                  the sample of this repository, a few sums
  candle-lm --prompt 17+25=                                  the sample, one sum
  candle-lm --model ~/models/Qwen3-0.6B --prompt 'Once upon a time'
  candle-lm --model HuggingFaceTB/SmolLM-135M --prompt 'The sea is' --temperature 0.8 --top-p 0.9 --seed 7
  candle-lm --model ~/models/gemma-2-2b-it --chat --prompt 'Why is the sky blue?' --max-new-tokens 200
  candle-lm --model ~/models/Qwen3-0.6B --chat               a conversation
  candle-lm --model ~/models/Mistral-7B --adapter my-lora --adapter-weight 0.7 --prompt 'Dear Sir'
  candle-lm --model ~/models/Llama-3.2-1B --device cuda:0 --dtype bf16 --load-only --json";

/// Loads a Hugging Face checkpoint of a causal language model (safetensors, one file or many) into Candle and
/// continues a prompt. Without arguments it loads the sample checkpoint of this repository and does a few sums.
#[derive(Debug, Parser)]
#[command(name = "candle-lm", version, after_help = EXAMPLES)]
#[command(group(ArgGroup::new("task").multiple(true)))]
pub(crate) struct Cli {
    /// A directory, a safetensors or index file, or the id (`org/name[@revision]`) of a repository
    /// in the local Hugging Face cache [default: the sample of this repository]
    #[arg(long, value_name = "DIR|ID", requires = "task")]
    model: Option<PathBuf>,

    /// The text to continue, or with --chat the question to answer; several are answered one after the other
    #[arg(long, value_name = "TEXT", group = "task", allow_hyphen_values = true)]
    prompt: Vec<String>,

    /// Write the conversation with the model's own chat template; without --prompt, ask for questions
    #[arg(long, group = "task")]
    pub(crate) chat: bool,

    /// What the model is told before a conversation
    #[arg(long, value_name = "TEXT", requires = "chat")]
    pub(crate) system: Option<String>,

    /// The number of tokens that a conversation without --prompt may have
    #[arg(long, value_name = "N", default_value = "4096", value_parser = parse_token_count)]
    pub(crate) context: usize,

    /// Stop after so many tokens, if the model does not stop before
    #[arg(long, value_name = "N", default_value = "64", value_parser = parse_token_count)]
    pub(crate) max_new_tokens: usize,

    #[command(flatten)]
    pub(crate) sampling: Sampling,

    /// Merge an adapter (LoRA and its relatives, as PEFT saves them) into the weights; may be repeated
    #[arg(long, value_name = "DIR|ID", requires = "model")]
    adapter: Vec<PathBuf>,

    /// How much the adapter at the same place counts [default: 1]
    #[arg(long, value_name = "W", requires = "adapter", allow_hyphen_values = true, value_parser = parse_weight)]
    adapter_weight: Vec<f32>,

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

    /// Print one JSON object for each prompt: text, tokens, load_seconds, bytes, tensors and more
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

    /// The adapters with what each counts.
    pub(crate) fn adapters(&self) -> Result<Vec<(PathBuf, f32)>> {
        let (adapters, weights) = (self.adapter.len(), self.adapter_weight.len());
        if weights > adapters {
            bail!("--adapter-weight is given {weights} times, --adapter {adapters} times");
        }
        let weights = self.adapter_weight.iter().copied().chain(std::iter::repeat(1.0));
        Ok(self.adapter.iter().cloned().zip(weights).collect())
    }

    /// Whether questions come from standard input.
    pub(crate) fn is_conversation(&self) -> bool {
        self.chat && self.prompt.is_empty()
    }

    /// At least one.
    pub(crate) fn prompts(&self) -> Vec<String> {
        if self.prompt.is_empty() { QUESTIONS.map(str::to_owned).to_vec() } else { self.prompt.clone() }
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

fn parse_weight(text: &str) -> Result<f32, String> {
    text.parse().ok().filter(|weight: &f32| weight.is_finite()).ok_or_else(|| "expected a number".into())
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
    fn a_model_needs_a_task() {
        let parse = |args: &[&str]| Cli::try_parse_from([&["candle-lm"], args].concat());
        assert!(parse(&[]).is_ok());
        assert!(parse(&["--json"]).is_ok());
        assert!(parse(&["--prompt", "1+1="]).is_ok());
        assert!(parse(&["--model", "x"]).is_err());
        assert!(parse(&["--model", "x", "--load-only"]).is_ok());
        assert!(parse(&["--model", "x", "--load-only", "--prompt", "y"]).is_ok());
        assert!(parse(&["--prompt", "-1+1="]).is_ok());
        assert!(parse(&["--model", "x", "--chat"]).is_ok());
        assert!(parse(&["--model", "x", "--prompt", "y", "--system", "z"]).is_err());
        for bad in [
            ["--temperature", "-1"],
            ["--temperature", "nan"],
            ["--max-new-tokens", "1000001"],
            ["--top-k", "0"],
            ["--top-p", "1.5"],
            ["--min-p", "0"],
            ["--repetition-penalty", "0"],
            ["--adapter-weight", "1"],
        ] {
            assert!(parse(&bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn adapters_have_weights() {
        let parse = |args: &[&str]| {
            let base = ["candle-lm", "--model", "m", "--load-only"];
            Cli::try_parse_from([&base, args].concat()).unwrap().adapters()
        };
        let two = ["--adapter", "a", "--adapter", "b"];
        assert_eq!(parse(&two).unwrap(), [("a".into(), 1.0), ("b".into(), 1.0)]);
        let weighted = [&two[..], &["--adapter-weight", "-0.5"]].concat();
        assert_eq!(parse(&weighted).unwrap(), [("a".into(), -0.5), ("b".into(), 1.0)]);
        let too_many = ["--adapter", "a", "--adapter-weight", "1", "--adapter-weight", "2"];
        assert!(parse(&too_many).is_err());
    }
}
