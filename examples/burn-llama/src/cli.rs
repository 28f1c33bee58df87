//! The command line.

use std::path::PathBuf;

use clap::Parser;
use weighbridge_burn::weighbridge::write::parse_size;

const EXAMPLES: &str = "\
Examples:
  burn-llama                                          train the default model a little, and ask it
  burn-llama --epochs 20 --export my-adder            train more, write a Hugging Face checkpoint
  burn-llama --epochs 40 --resume --export my-adder   go on from epoch 20, or from where it was stopped
  burn-llama --from samples/adder --epochs 0          ask a checkpoint, without training
  burn-llama --from samples/adder --epochs 0 --export adder-f32
                                                      only convert it
  burn-llama --from DIR --prompt 'The sea is'         continue a text: burn-lm, whose options there are
  candle-lm --model my-adder --prompt 17+25=       run what was exported in Candle

Ctrl-C stops a run at any time: the last whole epoch is there, and --resume goes on from it as if
nothing had happened. N epochs in one run and in several give the same bytes.";

/// Trains a small Llama in Burn to add two numbers, keeping its state in safetensors checkpoints;
/// or starts from a Hugging Face checkpoint; and exports the model in Hugging Face's layout.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES)]
pub(crate) struct Cli {
    /// Train until so many epochs are done, those before --resume included; 0 trains nothing
    #[arg(long, value_name = "N", default_value = "5", value_parser = parse_count)]
    pub(crate) epochs: usize,

    /// The steps of an epoch [default: 100; with --resume those of the run]
    #[arg(long, value_name = "K", value_parser = parse_positive)]
    pub(crate) steps_per_epoch: Option<usize>,

    /// Where checkpoints are kept
    #[arg(long, value_name = "DIR", default_value = "target/burn-llama")]
    pub(crate) checkpoint_dir: PathBuf,

    /// Go on from the last checkpoint in that directory
    #[arg(long)]
    pub(crate) resume: bool,

    /// Begin anew, and replace the checkpoints of an earlier run in that directory
    #[arg(long, conflicts_with = "resume")]
    pub(crate) force: bool,

    /// Start from a Hugging Face checkpoint: a directory, a safetensors or index file, or the id
    /// (`org/name[@revision]`) of a repository in the local cache [default: a new model, of the
    /// size of samples/adder]
    #[arg(long, value_name = "DIR|ID")]
    pub(crate) from: Option<PathBuf>,

    /// Write the model there: config.json, safetensors, tokenizer
    #[arg(long, value_name = "DIR")]
    pub(crate) export: Option<PathBuf>,

    /// The most that one file of the export holds; the default is for tiny models, as 5GB is for
    /// large ones
    #[arg(long, value_name = "SIZE", default_value = "1MB", value_parser = parse_size)]
    pub(crate) max_shard_size: u64,

    /// Where random numbers start: the first weights and all batches [default: 0; with --resume
    /// that of the run]
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,

    /// Print one JSON object: epochs, losses, accuracy, exported files and more
    #[arg(long)]
    pub(crate) json: bool,

    /// The sums of a step [default: 128; with --resume those of the run]
    #[arg(long, value_name = "N", hide = true, value_parser = parse_positive)]
    pub(crate) batch_size: Option<usize>,

    /// How many sums the model is asked in the end
    #[arg(long, value_name = "N", hide = true, default_value = "200", value_parser = parse_positive)]
    pub(crate) prompts: usize,

    /// Add to the JSON object what the model gives for the token after this text
    #[arg(long, value_name = "TEXT", hide = true, requires = "json")]
    pub(crate) logits: Option<String>,
}

fn parse_count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count) if count <= 1_000_000 => Ok(count),
        _ => Err("expected a whole number from 0 to 1000000".into()),
    }
}

fn parse_positive(text: &str) -> Result<usize, String> {
    match parse_count(text) {
        Ok(count) if count > 0 => Ok(count),
        _ => Err("expected a whole number from 1 to 1000000".into()),
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
    fn numbers_have_bounds() {
        let parse = |args: &[&str]| Cli::try_parse_from([&["burn-llama"], args].concat());
        assert_eq!(parse(&[]).unwrap().epochs, 5);
        assert_eq!(parse(&["--epochs", "0"]).unwrap().epochs, 0);
        assert_eq!(parse(&["--max-shard-size", "2MB"]).unwrap().max_shard_size, 2_000_000);
        for bad in [
            ["--epochs", "-1"],
            ["--epochs", "1000001"],
            ["--steps-per-epoch", "0"],
            ["--seed", "x"],
            ["--max-shard-size", "1XB"],
        ] {
            assert!(parse(&bad).is_err(), "{bad:?}");
        }
        assert!(parse(&["--logits", "1+1="]).is_err());
        assert!(parse(&["--logits", "1+1=", "--json"]).is_ok());
    }
}
