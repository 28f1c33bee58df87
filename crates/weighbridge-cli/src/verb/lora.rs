//! `weighbridge lora`.

mod convert;
mod extract;
mod info;
mod merge;
mod output;
mod ranks;
mod resize;

use std::path::Path;

use anyhow::Result;
use clap::{Args, Subcommand};
use weighbridge::Adapter;
use weighbridge_convert::Options;

use crate::load;
use crate::outcome::Outcome;
use crate::term::Term;

/// Looks at adapters (LoRA, rsLoRA, DoRA), merges them into models, and makes them of what training changed
///
/// PEFT's adapters are read with their adapter_config.json; those of Kohya's scripts, diffusers and ComfyUI say all in
/// their tensors. IA³, LoHa, LoKr, OFT and others are refused by name.
#[derive(Debug, Args)]
pub(crate) struct Lora {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    Merge(merge::Merge),
    Info(info::Info),
    Extract(extract::Extract),
    Resize(resize::Resize),
    Convert(convert::Convert),
}

impl Lora {
    pub(crate) fn run(&self, term: &Term) -> Result<Outcome> {
        match &self.action {
            Action::Merge(merge) => merge.run(term),
            Action::Info(info) => info.run(term),
            Action::Extract(extract) => extract.run(term),
            Action::Resize(resize) => resize.run(term),
            Action::Convert(convert) => convert.run(term),
        }
    }
}

/// Opens an adapter: a directory of PEFT's, or a file.
fn open(location: &Path, term: &Term) -> Result<Adapter> {
    let (checkpoint, _) = load::any(location, &Options::new(), term)?;
    load::tell(location, &checkpoint, term);
    Ok(Adapter::of(&checkpoint)?)
}
