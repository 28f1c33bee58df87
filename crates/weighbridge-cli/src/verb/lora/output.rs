//! Where adapters are written.

use std::fs;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use weighbridge::write::{OutputFile, Save};
use weighbridge::{AdapterFormat, NewAdapter, Progress};

use crate::interrupt;
use crate::term::Term;

/// PEFT's files.
const WEIGHTS: &str = "adapter_model.safetensors";
const CONFIG: &str = "adapter_config.json";

/// Where to write an adapter.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Output")]
pub(super) struct Output {
    /// Where to write: for PEFT a directory, for other formats a file that ends in `.safetensors`
    #[arg(short, long, value_name = "PATH")]
    output: PathBuf,

    /// Replace what is there already
    #[arg(long)]
    force: bool,
}

impl Output {
    /// Fails where an adapter of this format cannot be written.
    pub(super) fn check(&self, format: AdapterFormat) -> Result<()> {
        let (output, shown) = (&self.output, self.output.display());
        let is_file = output.extension().is_some_and(|end| end.eq_ignore_ascii_case("safetensors"));
        if format == AdapterFormat::Peft {
            if is_file || output.is_file() {
                bail!("{shown}: an adapter of PEFT's is a directory; name one");
            }
            for name in [WEIGHTS, CONFIG] {
                self.free(&output.join(name))?;
            }
        } else {
            if !is_file {
                bail!("{shown}: {} adapters are files; name one that ends in .safetensors", format.name());
            }
            self.free(output)?;
        }
        Ok(())
    }

    fn free(&self, path: &Path) -> Result<()> {
        if path.try_exists()? && !self.force {
            bail!("{}: it is there already; --force replaces it", path.display());
        }
        Ok(())
    }

    /// Writes it, all or nothing.
    pub(super) fn write(
        &self,
        adapter: &NewAdapter<'_>,
        format: AdapterFormat,
        model: Option<&str>,
        term: &Term,
    ) -> Result<()> {
        let bar = term.bar("writing", 0);
        let mut save = Save::new().metadata("format", "pt").progress(move |progress: Progress| {
            bar.show(progress);
            if interrupt::requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        if let Some((key, value)) = adapter.metadata()? {
            save = save.metadata(key, value);
        }
        if format != AdapterFormat::Peft {
            save.file(&self.output, adapter.tensors())?;
            return Ok(());
        }
        let config = adapter.config(model)?;
        let weights = self.output.join(WEIGHTS);
        fs::create_dir_all(&self.output).with_context(|| self.output.display().to_string())?;
        // Weights are never beside another adapter's configuration.
        if weights.try_exists()? {
            fs::remove_file(&weights).with_context(|| weights.display().to_string())?;
        }
        let path = self.output.join(CONFIG);
        let mut file = OutputFile::atomic(&path)?;
        file.write_all(config.as_bytes()).with_context(|| path.display().to_string())?;
        file.commit()?;
        save.file(&weights, adapter.tensors())?;
        Ok(())
    }
}
