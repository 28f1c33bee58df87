//! `weighbridge`: looks at, verifies, compares and reshapes safetensors checkpoints.
//!
//! Each verb is a file in `verb/`; the rest is what they share.

mod beside;
mod casts;
mod chunks;
mod cli;
mod dense;
mod destination;
mod dtype;
mod figures;
mod global;
mod interrupt;
mod load;
mod metadata;
mod outcome;
mod parallel;
mod pattern;
#[cfg(feature = "remote")]
mod remote;
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
use outcome::Outcome;
use term::Term;

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
            let _ = writeln!(anstream::stderr(), "{style}error{style:#}: {}", show::one_line(&error));
            ExitCode::from(2)
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let broken = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
    error.chain().filter_map(|cause| cause.downcast_ref()).any(broken)
}
