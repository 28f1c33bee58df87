//! Loads a Hugging Face checkpoint of any causal language model that Candle has through weighbridge, and continues a
//! prompt or chats.
//!
//! A few lines of this program are about weights, in `model`; the rest is what every program around a language model
//! needs: `cli` the options, `config` the files beside the weights, `family` what each kind of model needs of its
//! `config.json`, `gguf` files that are their own configuration, `weights` the names that Candle and the file give to
//! tensors, `chat` the templates of conversations, `generate` the tokens that follow. What does not depend on the framework
//! is in `examples/support`: the tokenizer, the choice of a token, what is printed.
//!
//! Standard output carries the answer, or with `--json` one object a prompt; everything else goes to standard error. A
//! failure is one line there and exit code 1.

mod chat;
mod cli;
mod config;
mod family;
mod generate;
mod gguf;
mod model;
mod weights;

use std::io::{self, BufRead, Write};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use examples_support::chat::{Message, Template};
use examples_support::lm::{Answer, Loaded, Summary, Text, show, speed};
use examples_support::{note, one_line};

use crate::cli::Cli;
use crate::generate::Generator;
use crate::model::{Found, Model};

/// The program.
pub fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has had enough of it: `candle-lm | head`.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            note(&format!("error: {}", one_line(&error)));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    let device = cli.device.open()?;
    let found = Found::open(&cli.checkpoint(), &cli.adapters()?)?;
    let load = |positions| found.load(positions, cli.dtype.map(Into::into), &device);

    if cli.load_only {
        let (_, loaded) = load(1)?;
        let summary = summary(cli, &loaded);
        return if cli.json { summary.print_json(None) } else { summary.print_text(&mut io::stdout()) };
    }

    // Text first: how long it is says how many positions the model needs, and what is wrong with it is known before
    // gigabytes are read.
    let text = Text::open(found.beside.find("tokenizer.json")?, &found.place, found.vocabulary())?;
    if cli.is_conversation() {
        let template = chat::template(&found)?;
        let (mut model, loaded) = load(cli.context.min(found.limit()))?;
        let summary = summary(cli, &loaded);
        summary.print_text(&mut io::stderr())?;
        return converse(cli, &text, &template, &mut model, &summary);
    }
    let prompts = prompts(cli, &found, &text)?;
    let longest = prompts.iter().map(|prompt| prompt.tokens.len()).max().unwrap_or(0);
    let (mut model, loaded) = load(longest + cli.max_new_tokens)?;
    let summary = summary(cli, &loaded);

    let mut generator = Generator::new(&mut model, &text, cli);
    if cli.json {
        for prompt in &prompts {
            let answer = generator.answer(&prompt.tokens, |_| Ok(()))?;
            summary.print_json(Some((&prompt.asked, &answer)))?;
        }
        return Ok(());
    }
    // To the terminal's user this reads from top to bottom; to a pipe goes only the text.
    summary.print_text(&mut io::stderr())?;
    let mut all = Answer::default();
    for prompt in &prompts {
        if !cli.chat {
            show(&prompt.asked)?;
        }
        all.add(&generator.answer(&prompt.tokens, show)?);
        show("\n")?;
    }
    writeln!(io::stderr(), "{}", speed(&all)).context("standard error")
}

fn summary<'a>(cli: &Cli, loaded: &'a Loaded) -> Summary<'a> {
    for warning in &loaded.warnings {
        note(&format!("warning: {warning}"));
    }
    Summary { model: cli.checkpoint().display().to_string(), device: cli.device.to_string(), loaded }
}

/// A prompt as it was asked, and as the model sees it.
struct Prompt {
    asked: String,
    tokens: Vec<u32>,
}

fn prompts(cli: &Cli, found: &Found, text: &Text) -> Result<Vec<Prompt>> {
    let template = cli.chat.then(|| chat::template(found)).transpose()?;
    let encode = |asked: String| {
        let tokens = match &template {
            Some(template) => text.encode_plain(&template.render(&opening(cli, &asked))?)?,
            None => text.encode(&asked)?,
        };
        Ok(Prompt { asked, tokens })
    };
    cli.prompts().into_iter().map(encode).collect()
}

/// A conversation of one question.
fn opening(cli: &Cli, question: &str) -> Vec<Message> {
    let system = cli.system.iter().map(|text| Message::new("system", text));
    system.chain([Message::new("user", question)]).collect()
}

/// Answers the lines of standard input, each with all that was said before.
fn converse(
    cli: &Cli,
    text: &Text,
    template: &Template,
    model: &mut Model,
    summary: &Summary<'_>,
) -> Result<()> {
    let mut generator = Generator::new(model, text, cli);
    let mut said: Vec<Message> = cli.system.iter().map(|text| Message::new("system", text)).collect();
    note("Ask a question; an empty line ends the conversation.");
    for line in io::stdin().lock().lines() {
        let line = line.context("standard input")?;
        if line.trim().is_empty() {
            break;
        }
        said.push(Message::new("user", &line));
        let tokens = text.encode_plain(&template.render(&said)?)?;
        let answer = generator.answer(&tokens, |piece| if cli.json { Ok(()) } else { show(piece) })?;
        if cli.json {
            summary.print_json(Some((&line, &answer)))?;
        } else {
            show("\n")?;
            note(&speed(&answer));
        }
        said.push(Message::new("assistant", &answer.text));
    }
    Ok(())
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}
