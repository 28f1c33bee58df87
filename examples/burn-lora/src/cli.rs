//! The command line.

use std::path::PathBuf;

use burn_lm::DeviceChoice;
use burn_lm::model::TARGETS;
use clap::Parser;
use clap::builder::PossibleValuesParser;

/// The sample checkpoint of this repository: a tiny Llama that adds two numbers.
const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../samples/adder");

const EXAMPLES: &str = "\
Examples:
  burn-lora --export backwards                            train, and write an adapter
  burn-lora --steps 600 --resume --export backwards       go on from where it ended, or was stopped
  burn-lm --model samples/adder --adapter backwards --prompt 123+456=
  weighbridge lora merge samples/adder backwards -o merged

Ctrl-C stops a run at any time: the last checkpoint is there, and --resume goes on from it as if
nothing had happened. N steps in one run and in several give the same bytes.";

/// Teaches a model that adds to write sums backwards, from the last digit to the first (123+456=975), by low-rank
/// adaptation: the model stays as it is, and small matrices beside its linear layers learn.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES)]
pub(crate) struct Cli {
    /// The model to adapt: a directory, a safetensors or index file, or the id (`org/name[@revision]`)
    /// of a repository in the local cache; it has to know digits, + and = [default: samples/adder]
    #[arg(long, value_name = "DIR|ID")]
    base: Option<PathBuf>,

    /// The rank of the products that are added
    #[arg(long, value_name = "R", default_value = "8", value_parser = parse_rank)]
    pub(crate) rank: usize,

    /// Products count alpha / rank times
    #[arg(long, value_name = "A", default_value = "16", value_parser = parse_alpha)]
    pub(crate) alpha: f64,

    /// The layers that get one, separated by commas
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        default_value = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj",
        value_parser = PossibleValuesParser::new(TARGETS)
    )]
    pub(crate) targets: Vec<String>,

    /// Train until so many steps are done, those before --resume included
    #[arg(long, value_name = "N", default_value = "300", value_parser = parse_count)]
    pub(crate) steps: u64,

    /// Save a checkpoint, and say how it goes, after so many steps
    #[arg(long, value_name = "N", default_value = "50", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub(crate) every: u64,

    /// The sums of a step
    #[arg(long, value_name = "N", default_value = "64", value_parser = parse_rank)]
    pub(crate) batch_size: usize,

    /// The learning rate, which is reached after 20 steps
    #[arg(long, value_name = "RATE", default_value = "0.003", value_parser = parse_alpha)]
    pub(crate) rate: f64,

    /// Where random numbers start: the first factors and all batches
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,

    /// Where checkpoints are kept
    #[arg(long, value_name = "DIR", default_value = "target/burn-lora")]
    pub(crate) checkpoint_dir: PathBuf,

    /// Go on from the last checkpoint in that directory, with the options that the run was begun with
    #[arg(long)]
    pub(crate) resume: bool,

    /// Begin anew, and replace the checkpoints of an earlier run in that directory
    #[arg(long, conflicts_with = "resume")]
    pub(crate) force: bool,

    /// Write a PEFT adapter there: adapter_config.json and adapter_model.safetensors
    #[arg(long, value_name = "DIR")]
    pub(crate) export: Option<PathBuf>,

    /// Where to compute: flex (the CPU), vulkan, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value_t = DeviceChoice::Flex)]
    pub(crate) device: DeviceChoice,

    /// Print one JSON object: steps, loss, how many answers were right before and after
    #[arg(long)]
    pub(crate) json: bool,

    /// Add to the JSON object what the model gives for the token after this text
    #[arg(long, value_name = "TEXT", hide = true, requires = "json")]
    pub(crate) logits: Option<String>,
}

impl Cli {
    pub(crate) fn base(&self) -> PathBuf {
        match &self.base {
            Some(base) => base.clone(),
            None => std::fs::canonicalize(SAMPLE).unwrap_or_else(|_| PathBuf::from(SAMPLE)),
        }
    }
}

fn parse_count(text: &str) -> Result<u64, String> {
    text.parse()
        .ok()
        .filter(|&count| count <= 1_000_000)
        .ok_or_else(|| "expected a whole number from 0 to 1000000".into())
}

fn parse_rank(text: &str) -> Result<usize, String> {
    let is_good = |count: &usize| (1..=4096).contains(count);
    text.parse().ok().filter(is_good).ok_or_else(|| "expected a whole number from 1 to 4096".into())
}

fn parse_alpha(text: &str) -> Result<f64, String> {
    let is_good = |alpha: &f64| (1e-9..=1e6).contains(alpha);
    text.parse().ok().filter(is_good).ok_or_else(|| "expected a number above zero, up to 1000000".into())
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
    fn values_have_bounds() {
        let parse = |args: &[&str]| Cli::try_parse_from([&["burn-lora"], args].concat());
        assert_eq!(parse(&["--targets", "q_proj,v_proj"]).unwrap().targets, ["q_proj", "v_proj"]);
        for bad in [
            ["--rank", "0"],
            ["--rank", "4097"],
            ["--alpha", "0"],
            ["--alpha", "nan"],
            ["--targets", "lm_head"],
            ["--every", "0"],
            ["--steps", "-1"],
        ] {
            assert!(parse(&bad).is_err(), "{bad:?}");
        }
    }
}
