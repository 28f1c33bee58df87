//! `weighbridge lora convert`.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};
use weighbridge::AdapterFormat;
use weighbridge_convert::Options;

use super::output::Output;
use crate::load;
use crate::outcome::Outcome;
use crate::show::plural;
use crate::term::Term;

/// Writes an adapter in the names of another format: PEFT's, Kohya's or diffusers'
///
/// Factors stay as they are, bit for bit; alpha is written where the format has it: in adapter_config.json, in tensors, in the metadata. A
/// magnitude (DoRA) becomes dora_scale in Kohya's files and the other way round. What the format has no name for is an error that
/// names it, and nothing is written.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  weighbridge lora convert style.safetensors --to diffusers -o pytorch_lora_weights.safetensors
  weighbridge lora convert my-adapter --to kohya -o style.safetensors
  weighbridge lora convert style.safetensors --to peft --base my-unet -o my-adapter

Kohya's names have underscores in the place of dots. Where those of Stable Diffusion and SDXL are not all, --base tells
which modules the model has.")]
pub(crate) struct Convert {
    /// The adapter: a directory of PEFT's, or a file
    #[arg(value_name = "ADAPTER")]
    adapter: PathBuf,

    /// The format to write
    #[arg(long, value_enum, value_name = "FORMAT")]
    to: Format,

    /// The model that the adapter is for, if names do not say which modules are meant
    #[arg(long, value_name = "MODEL")]
    base: Option<PathBuf>,

    #[command(flatten)]
    output: Output,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// A directory for Hugging Face PEFT
    Peft,
    /// A file for Kohya's scripts, ComfyUI and others
    Kohya,
    /// A file for diffusers
    Diffusers,
}

impl Convert {
    pub(crate) fn run(&self, term: &Term) -> Result<Outcome> {
        let format = match self.to {
            Format::Peft => AdapterFormat::Peft,
            Format::Kohya => AdapterFormat::Kohya,
            Format::Diffusers => AdapterFormat::Diffusers,
        };
        self.output.check(format)?;
        let adapter = super::open(&self.adapter, term)?;
        let base = self.base.as_ref().map(|base| load::any(base, &Options::new(), term)).transpose()?;
        let made = adapter.converted(format, base.as_ref().map(|(base, _)| base))?;
        self.output.write(&made, format, adapter.model().as_deref(), term)?;
        let modules = plural(adapter.modules().count(), "module");
        term.note(format_args!("{modules} from {} to {}", adapter.format().name(), format.name()));
        Ok(Outcome::Clean)
    }
}
