//! The command line.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use examples_support::device::{DTypeChoice, DeviceChoice};

use crate::sentence::{Role, Sentence, Similarity};

/// How many of the lines of a file are shown, unless it is said.
const TOP: usize = 5;

const EXAMPLES: &str = "\
Examples:
  candle-embed --model sentence-transformers/all-MiniLM-L6-v2 'How do I weigh a truck?' \\
      'A weighbridge weighs whole vehicles.' 'The cat sleeps on the mat.'
  candle-embed --model ~/models/e5-small-v2 --query-prefix 'query: ' --document-prefix 'passage: ' \\
      --file notes.txt --index notes.safetensors --top 3 'Who weighs trucks?'
  candle-embed --model ~/models/nomic-embed-text-v1.5 --prefix 'clustering: ' --dimensions 256 \\
      --embed --file notes.txt --output notes.safetensors
  candle-embed --model ~/models/Qwen3-Embedding-0.6B --embed 'A sentence.' 'Another one.' > vectors.jsonl";

/// Embeds sentences with a sentence-transformers model: ranks sentences by how close they are to a query in meaning, finds
/// the nearest lines of a file, or writes the vectors.
#[derive(Debug, Parser)]
#[command(name = "candle-embed", version, after_help = EXAMPLES)]
pub(crate) struct Cli {
    /// A directory, a safetensors or index file, or the id (`org/name[@revision]`) of a repository
    /// in the local Hugging Face cache
    #[arg(long, value_name = "DIR|ID")]
    pub(crate) model: PathBuf,

    /// Write the vectors of the texts: one JSON object a line, or with --output a safetensors file
    #[arg(long)]
    pub(crate) embed: bool,

    /// The safetensors file to write the vectors to, as rows of the tensor "embeddings"
    #[arg(long, value_name = "FILE", requires = "embed")]
    pub(crate) output: Option<PathBuf>,

    /// Take the lines of this file (`-` is standard input) as texts; what is on the command line are queries then
    #[arg(long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,

    /// Keep the vectors of the file's lines here, and use them the next time
    #[arg(long, value_name = "FILE", requires = "file", conflicts_with = "embed")]
    pub(crate) index: Option<PathBuf>,

    /// Show so many of the texts that are nearest [default: all, of a file 5]
    #[arg(long, value_name = "N", conflicts_with = "embed", value_parser = parse_count)]
    top: Option<usize>,

    /// Put the prompt with this name before all texts; the model has them, with the files of sentence-transformers
    #[arg(long, value_name = "NAME")]
    prompt: Option<String>,

    /// Put this before all texts
    #[arg(long, value_name = "TEXT", conflicts_with = "prompt", allow_hyphen_values = true)]
    prefix: Option<String>,

    /// The prompt of queries [default: --prompt, or the one named "query"]
    #[arg(long, value_name = "NAME", conflicts_with = "embed")]
    query_prompt: Option<String>,

    /// The prompt of what is ranked [default: --prompt, or the one named "document"]
    #[arg(long, value_name = "NAME", conflicts_with = "embed")]
    document_prompt: Option<String>,

    /// Put this before queries
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["query_prompt", "embed"], allow_hyphen_values = true)]
    query_prefix: Option<String>,

    /// Put this before what is ranked
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["document_prompt", "embed"], allow_hyphen_values = true)]
    document_prefix: Option<String>,

    /// How vectors are compared [default: as the model says, cosine if it does not]
    #[arg(long, value_enum, conflicts_with = "embed")]
    pub(crate) similarity: Option<Similarity>,

    /// Keep the first N elements of vectors, for models that were trained for it; normalised again, if they were before
    #[arg(long, value_name = "N", value_parser = parse_count)]
    pub(crate) dimensions: Option<usize>,

    /// Cut texts to N tokens [default: as the model says]
    #[arg(long, value_name = "N", value_parser = parse_count)]
    pub(crate) max_length: Option<usize>,

    /// The number of texts that are computed at a time
    #[arg(long, value_name = "N", default_value = "32", value_parser = parse_count)]
    pub(crate) batch_size: usize,

    /// Merge an adapter (LoRA and its relatives, as PEFT saves them) into the weights; may be repeated
    #[arg(long, value_name = "DIR|ID")]
    adapter: Vec<PathBuf>,

    /// How much the adapter at the same place counts [default: 1]
    #[arg(long, value_name = "W", requires = "adapter", allow_hyphen_values = true, value_parser = parse_weight)]
    adapter_weight: Vec<f32>,

    /// The type to compute in [default: f32 on the CPU, elsewhere the type that most of the
    /// checkpoint is stored in, if the model is right in that]
    #[arg(long, value_enum)]
    pub(crate) dtype: Option<DTypeChoice>,

    /// Where to compute: cpu, cuda, cuda:N or metal
    #[arg(long, value_name = "DEVICE", default_value_t = DeviceChoice::Cpu)]
    pub(crate) device: DeviceChoice,

    /// Print one JSON object for each query: query, results, load_seconds, tensors, bytes
    #[arg(long)]
    pub(crate) json: bool,

    /// A query and the sentences to rank; with --file queries only, with --embed the sentences to embed
    #[arg(value_name = "TEXT")]
    pub(crate) texts: Vec<String>,
}

impl Cli {
    /// What was given, if there is all that is needed.
    ///
    /// # Errors
    ///
    /// The usage.
    pub(crate) fn checked() -> Result<Self, clap::Error> {
        Self::parse().check()
    }

    fn check(self) -> Result<Self, clap::Error> {
        let (count, has_file) = (self.texts.len(), self.file.is_some());
        let missing = match (self.embed, has_file) {
            (true, true) if count > 0 => "--embed takes the lines of --file or texts, not both",
            (true, false) if count == 0 => "--embed needs texts, or --file",
            (false, true) if count == 0 => "--file needs a query",
            (false, false) if count < 2 => {
                "a query and at least one sentence are needed, or --file, or --embed"
            }
            _ => return Ok(self),
        };
        Err(Self::command().error(ErrorKind::MissingRequiredArgument, missing))
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

    /// How many results a query has at most.
    pub(crate) fn top(&self) -> Option<usize> {
        self.top.or(self.file.is_some().then_some(TOP))
    }

    /// What is put before a text: what is said for its role, then what is said for all, then what the model says.
    ///
    /// # Errors
    ///
    /// The model has no such prompt.
    pub(crate) fn prompt<'a>(&'a self, role: Role, sentence: &'a Sentence) -> Result<&'a str> {
        let (prefix, name) = match role {
            Role::Text => (&None, &None),
            Role::Query => (&self.query_prefix, &self.query_prompt),
            Role::Document => (&self.document_prefix, &self.document_prompt),
        };
        for (prefix, name) in [(prefix, name), (&self.prefix, &self.prompt)] {
            if let Some(prefix) = prefix {
                return Ok(prefix);
            }
            if let Some(name) = name {
                return sentence.named_prompt(name);
            }
        }
        Ok(sentence.prompt(role))
    }
}

fn parse_count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count) if (1..=1 << 24).contains(&count) => Ok(count),
        _ => Err("expected a whole number from 1 to 16777216".into()),
    }
}

fn parse_weight(text: &str) -> Result<f32, String> {
    text.parse().ok().filter(|weight: &f32| weight.is_finite()).ok_or_else(|| "expected a number".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
        let parse = |args: &[&str]| {
            Cli::try_parse_from([&["candle-embed", "--model", "m"], args].concat()).and_then(Cli::check)
        };
        for good in [
            &["query", "sentence", "--json"][..],
            &["--file", "f", "query"],
            &["--file", "-", "query", "another", "--top", "3", "--index", "i"],
            &["--embed", "text"],
            &["--embed", "--file", "f", "--output", "o"],
        ] {
            assert!(parse(good).is_ok(), "{good:?}");
        }
        for bad in [
            &["query"][..],
            &[],
            &["--file", "f"],
            &["--embed"],
            &["--embed", "--file", "f", "text"],
            &["--index", "i", "query", "sentence"],
            &["--output", "o", "query", "sentence"],
            &["query", "sentence", "--prompt", "a", "--prefix", "b"],
            &["query", "sentence", "--batch-size", "0"],
            &["query", "sentence", "--dimensions", "-1"],
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
        assert!(Cli::try_parse_from(["candle-embed", "query", "sentence"]).is_err());
    }
}
