//! The options that every verb has.

use clap::Args;

/// Options of every verb.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    #[command(flatten)]
    pub(crate) color: colorchoice_clap::Color,

    /// Print no notes and no warnings, only data and errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub(crate) quiet: bool,

    /// Say more about what is done
    #[arg(short, long, global = true)]
    pub(crate) verbose: bool,

    /// Show no progress bars; without a terminal there are none anyway
    #[arg(long, global = true)]
    pub(crate) no_progress: bool,
}
