//! The command line.

use std::path::PathBuf;

use anyhow::Result;
use clap::{ArgGroup, Parser};
use examples_support::device::{DTypeChoice, DeviceChoice};
use examples_support::lm::{Sampling, request};

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
    #[arg(long, value_name = "N", default_value = "4096", value_parser = request::parse_token_count)]
    pub(crate) context: usize,

    /// Stop after so many tokens, if the model does not stop before
    #[arg(long, value_name = "N", default_value = "64", value_parser = request::parse_token_count)]
    pub(crate) max_new_tokens: usize,

    #[command(flatten)]
    pub(crate) sampling: Sampling,

    /// Merge an adapter (LoRA and its relatives, as PEFT saves them) into the weights; may be repeated
    #[arg(long, value_name = "DIR|ID", requires = "model")]
    adapter: Vec<PathBuf>,

    /// How much the adapter at the same place counts [default: 1]
    #[arg(long, value_name = "W", requires = "adapter", allow_hyphen_values = true, value_parser = request::parse_weight)]
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
        request::checkpoint(self.model.as_deref())
    }

    /// The adapters with what each counts.
    pub(crate) fn adapters(&self) -> Result<Vec<(PathBuf, f32)>> {
        request::weighted(&self.adapter, &self.adapter_weight)
    }

    /// Whether questions come from standard input.
    pub(crate) fn is_conversation(&self) -> bool {
        self.chat && self.prompt.is_empty()
    }

    /// At least one.
    pub(crate) fn prompts(&self) -> Vec<String> {
        request::prompts(&self.prompt)
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
