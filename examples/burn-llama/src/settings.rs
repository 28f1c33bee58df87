//! What a run was begun with, kept beside its checkpoints, so that `--resume` goes on with the same.

use std::fmt::Display;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use weighbridge_burn::Checkpoints;

use crate::cli::Cli;
use crate::export::write_file;

/// How many checkpoints are kept.
pub(crate) const KEPT: usize = 2;

const FILE: &str = "run.json";

/// Everything on which the weights after a number of epochs depend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Settings {
    pub(crate) from: Option<PathBuf>,
    pub(crate) seed: u64,
    pub(crate) steps_per_epoch: usize,
    pub(crate) batch_size: usize,
}

/// A run that begins or goes on.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) settings: Settings,
    /// The epoch of the checkpoint to go on from.
    pub(crate) latest: Option<usize>,
}

impl Run {
    /// Reads what is to be resumed, or takes the command line's word. Nothing is written.
    ///
    /// # Errors
    ///
    /// Fails when there is nothing to resume, when the command line asks for something else than the run has, and when a run
    /// would be replaced unasked.
    pub(crate) fn read(cli: &Cli) -> Result<Self> {
        let from = cli.from.as_ref().map(|from| fs::canonicalize(from).unwrap_or_else(|_| from.clone()));
        let directory = &cli.checkpoint_dir;
        if !cli.resume {
            let replaces = cli.epochs > 0 && !cli.force && Checkpoints::new(directory).newest()?.is_some();
            if replaces {
                bail!(
                    "{}: there is a run already; --resume goes on with it, --force replaces it",
                    directory.display()
                );
            }
            let settings = Settings {
                from,
                seed: cli.seed.unwrap_or(0),
                steps_per_epoch: cli.steps_per_epoch.unwrap_or(100),
                batch_size: cli.batch_size.unwrap_or(128),
            };
            return Ok(Self { settings, latest: None });
        }

        let Some(latest) = Checkpoints::new(directory).latest()? else {
            bail!("{}: there is no checkpoint to resume from", directory.display());
        };
        let path = directory.join(FILE);
        let at = || path.display().to_string();
        let settings: Settings =
            serde_json::from_slice(&fs::read(&path).with_context(at)?).with_context(at)?;
        let conflict = differs("--seed", cli.seed, settings.seed)
            .or_else(|| differs("--steps-per-epoch", cli.steps_per_epoch, settings.steps_per_epoch))
            .or_else(|| differs("--batch-size", cli.batch_size, settings.batch_size))
            .or_else(|| {
                let begun = settings.from.as_deref().unwrap_or(Path::new("a new model"));
                let from = from.as_deref().map(Path::display)?;
                differs("--from", Some(from.to_string()), begun.display().to_string())
            });
        match conflict {
            Some(conflict) => bail!("{conflict}: {}", directory.display()),
            None => Ok(Self { settings, latest: Some(latest) }),
        }
    }

    /// Makes the directory ready: a run that begins takes the place of an earlier one there, as `--force` asks.
    pub(crate) fn begin(&self, directory: &Path) -> Result<()> {
        if self.latest.is_some() {
            return Ok(());
        }
        fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
        // First, so that never the checkpoints of one run lie beside the settings of another.
        let manifest = directory.join("checkpoints.json");
        match fs::remove_file(&manifest) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| manifest.display().to_string());
            }
            _ => {}
        }
        let text = serde_json::to_string_pretty(&self.settings)? + "\n";
        write_file(&directory.join(FILE), text.as_bytes())
    }
}

fn differs<T: PartialEq + Display>(option: &str, asked: Option<T>, begun: T) -> Option<String> {
    let asked = asked.filter(|asked| *asked != begun)?;
    Some(format!("{option} is {asked}, but the run to resume was begun with {begun}"))
}
