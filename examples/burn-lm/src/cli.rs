//! The command line.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Result, bail};
use burn::tensor::{DType, Device};
use clap::{ArgGroup, Parser, ValueEnum};
use examples_support::lm::{Sampling, request};

const EXAMPLES: &str = "\
Examples:
  burn-lm                                                  the sample of this repository, a few sums
  burn-lm --prompt 17+25=                                  the sample, one sum
  burn-lm --model ~/models/Qwen3-0.6B --prompt 'Once upon a time'
  burn-lm --model HuggingFaceTB/SmolLM-135M --prompt 'The sea is' --temperature 0.8 --top-p 0.9 --seed 7
  burn-lm --model ~/models/Mistral-7B --adapter my-lora --adapter-weight 0.7 --prompt 'Dear Sir'
  burn-lm --model ~/models/Llama-3.2-1B --device vulkan --dtype f16 --load-only --json";

/// Loads a Hugging Face checkpoint of a Llama, Mistral or Qwen (safetensors, one file or many) into Burn and continues a
/// prompt. Without arguments it loads the sample checkpoint of this repository and does a few sums.
#[derive(Debug, Parser)]
#[command(name = "burn-lm", version, after_help = EXAMPLES)]
#[command(group(ArgGroup::new("task").multiple(true)))]
pub(crate) struct Cli {
    /// A directory, a safetensors or index file, or the id (`org/name[@revision]`) of a repository
    /// in the local Hugging Face cache [default: the sample of this repository]
    #[arg(long, visible_alias = "from", value_name = "DIR|ID", requires = "task")]
    model: Option<PathBuf>,

    /// The text to continue; several are continued one after the other
    #[arg(long, value_name = "TEXT", group = "task", allow_hyphen_values = true)]
    prompt: Vec<String>,

    /// Stop after so many tokens, if the model does not stop before
    #[arg(long, visible_alias = "max-tokens", value_name = "N", default_value = "64", value_parser = request::parse_token_count)]
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
    dtype: Option<DTypeChoice>,

    /// Where to compute: flex (the CPU), vulkan, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value_t = DeviceChoice::Flex)]
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

    /// At least one.
    pub(crate) fn prompts(&self) -> Vec<String> {
        request::prompts(&self.prompt)
    }

    pub(crate) fn dtype(&self) -> Option<DType> {
        self.dtype.map(Into::into)
    }
}

/// The types that models compute in.
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
pub enum DeviceChoice {
    /// The CPU.
    Flex,
    /// A GPU.
    Vulkan,
    /// The GPU of this number.
    Cuda(usize),
}

impl DeviceChoice {
    /// Opens it.
    ///
    /// # Errors
    ///
    /// The program was built without it, or there is no such device.
    pub fn open(self) -> Result<Device> {
        match self {
            Self::Flex => Ok(Device::flex()),
            #[cfg(feature = "vulkan")]
            Self::Vulkan => self.start(|| Device::vulkan(burn::tensor::DeviceKind::DefaultDevice)),
            #[cfg(not(feature = "vulkan"))]
            Self::Vulkan => self.is_not_built("vulkan"),
            #[cfg(feature = "cuda")]
            Self::Cuda(index) => self.start(move || Device::cuda(index)),
            #[cfg(not(feature = "cuda"))]
            Self::Cuda(_) => self.is_not_built("cuda"),
        }
    }

    #[cfg(not(all(feature = "vulkan", feature = "cuda")))]
    fn is_not_built(self, feature: &str) -> Result<Device> {
        bail!(
            "--device {self}: this program was built without the feature `{feature}`; \
             add `--features {feature}` to the cargo command"
        )
    }

    /// Burn starts a device when it is used first, and panics where there is none.
    #[cfg(any(feature = "vulkan", feature = "cuda"))]
    fn start(self, device: impl FnOnce() -> Device + std::panic::UnwindSafe) -> Result<Device> {
        use std::panic;

        let hook = panic::take_hook();
        panic::set_hook(Box::new(|_| {}));
        let started = panic::catch_unwind(|| {
            let device = device();
            let sum = burn::tensor::Tensor::<1>::ones([1], &device).sum();
            sum.try_into_data().ok().map(|_| device)
        });
        panic::set_hook(hook);
        match started {
            Ok(Some(device)) => Ok(device),
            _ => bail!("--device {self}: there is no such device here, or its driver does not work"),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "flex" | "cpu" => Ok(Self::Flex),
            "vulkan" => Ok(Self::Vulkan),
            "cuda" => Ok(Self::Cuda(0)),
            _ => name
                .strip_prefix("cuda:")
                .and_then(|index| index.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| "expected flex, vulkan, cuda or cuda:N".into()),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flex => f.write_str("flex"),
            Self::Vulkan => f.write_str("vulkan"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
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
        assert_eq!("flex".parse(), Ok(DeviceChoice::Flex));
        assert_eq!("vulkan".parse(), Ok(DeviceChoice::Vulkan));
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
        assert_eq!("cuda:3".parse(), Ok(DeviceChoice::Cuda(3)));
        for name in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "Flex"] {
            assert!(name.parse::<DeviceChoice>().is_err(), "{name:?}");
        }
    }

    #[test]
    fn a_model_needs_a_task() {
        let parse = |args: &[&str]| Cli::try_parse_from([&["burn-lm"], args].concat());
        assert!(parse(&[]).is_ok());
        assert!(parse(&["--model", "x"]).is_err());
        assert!(parse(&["--from", "x", "--load-only"]).is_ok());
        assert!(parse(&["--from", "x", "--prompt", "-1+1=", "--max-tokens", "3"]).is_ok());
        for bad in [["--temperature", "-1"], ["--max-new-tokens", "1000001"], ["--adapter-weight", "1"]] {
            assert!(parse(&bad).is_err(), "{bad:?}");
        }
    }
}
