//! `weighbridge generate`: what packagers and shells want.

use std::io::Write;

use anyhow::Result;
use clap::{Args, CommandFactory, ValueEnum};
use clap_complete::Shell;

use crate::cli::Cli;
use crate::outcome::Outcome;
use crate::term::Term;

/// Writes the man page or a shell's completions to standard output
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  weighbridge generate man > ~/.local/share/man/man1/weighbridge.1
  weighbridge generate complete-bash > ~/.local/share/bash-completion/completions/weighbridge
  weighbridge generate complete-zsh > ~/.zfunc/_weighbridge
  weighbridge generate complete-fish > ~/.config/fish/completions/weighbridge.fish")]
pub(crate) struct Generate {
    /// What to write
    #[arg(value_enum)]
    what: What,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum What {
    /// The manual, in roff, all verbs in one page
    Man,
    /// Completions for Bash
    CompleteBash,
    /// Completions for Zsh
    CompleteZsh,
    /// Completions for fish
    CompleteFish,
    /// Completions for PowerShell
    CompletePowershell,
}

impl Generate {
    pub(crate) fn run(&self, term: &Term) -> Result<Outcome> {
        let mut command = Cli::command();
        let mut text = Vec::new();
        let shell = match self.what {
            What::Man => None,
            What::CompleteBash => Some(Shell::Bash),
            What::CompleteZsh => Some(Shell::Zsh),
            What::CompleteFish => Some(Shell::Fish),
            What::CompletePowershell => Some(Shell::PowerShell),
        };
        match shell {
            Some(shell) => clap_complete::generate(shell, &mut command, "weighbridge", &mut text),
            None => manual(command, &mut text)?,
        }
        term.raw().write_all(&text)?;
        Ok(Outcome::Clean)
    }
}

/// The page of the command, with a section for each verb behind it.
fn manual(mut command: clap::Command, text: &mut Vec<u8>) -> Result<()> {
    command.build();
    clap_mangen::Man::new(command.clone()).render(text)?;
    for verb in command.get_subcommands().filter(|verb| verb.get_name() != "help") {
        let name = verb.get_name();
        writeln!(text, ".SH \"WEIGHBRIDGE {}\"", name.to_uppercase())?;
        let page = clap_mangen::Man::new(verb.clone());
        page.render_description_section(text)?;
        page.render_synopsis_section(text)?;
        page.render_options_section(text)?;
        page.render_extra_section(text)?;
    }
    Ok(())
}
