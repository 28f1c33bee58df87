//! `weighbridge`: looks at, verifies, compares and reshapes safetensors checkpoints.
//!
//! Each verb is a file in `verb/`; the rest is what they share.

mod casts;
mod chunks;
mod cli;
mod destination;
mod dtype;
mod figures;
mod interrupt;
mod load;
mod metadata;
mod rename;
mod reshape;
mod select;
mod show;
mod term;
mod verb;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;

use cli::Cli;
use term::Term;

/// What a verb found, where nothing went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// What was asked for was done, or nothing speaks against it.
    Clean,
    /// Something was found that a script should know of: a broken file, a difference.
    Findings,
    /// Something could not be read; it was said, and the rest was done.
    Unread,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    cli.global.color.write_global();
    interrupt::install();
    let term = Term::new(&cli.global);
    match cli.verb.run(&term) {
        Ok(Outcome::Clean) => ExitCode::SUCCESS,
        Ok(Outcome::Findings) => ExitCode::from(1),
        Ok(Outcome::Unread) => ExitCode::from(2),
        // Whoever read the output has seen enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(_) if interrupt::requested() => interrupt::EXIT.into(),
        Err(error) => {
            let style = anstyle::AnsiColor::Red.on_default().bold();
            let _ = writeln!(
                anstream::stderr(),
                "{style}error{style:#}: {}",
                casts::in_options(&show::one_line(&error))
            );
            ExitCode::from(2)
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let broken = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
    error.chain().filter_map(|cause| cause.downcast_ref()).any(broken)
}
