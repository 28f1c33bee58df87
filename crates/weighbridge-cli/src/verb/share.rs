//! `weighbridge share`.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use weighbridge::share::{self, Share as Shared};
use weighbridge::write::Save;
use weighbridge::{Adapter, Dtype, Names, Plan, Progress};
use weighbridge_convert::Options;

use crate::casts::{self, OnOverflow};
use crate::dense;
use crate::dtype::parse_weight_dtype;
use crate::interrupt;
use crate::load;
use crate::metadata;
use crate::outcome::Outcome;
use crate::show::{bytes, plural, safe};
use crate::term::Term;

/// Keeps one copy of a model in memory for all processes of this user, until it is ended (Ctrl-C)
///
/// The weights are made once: quantised ones dequantised, adapters merged, cast with --to. Programs open them as `share:NAME` wherever
/// a path is expected; the memory is mapped, not copied, cannot be changed by anybody, and stays with whoever has opened it,
/// also when this command ends. config.json and the tokenizer are found in the model's own directory. On Linux.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  weighbridge share Llama-3.2-1B --to bf16
  weighbridge share Llama-3.1-8B-GPTQ --adapter my-adapter --adapter style:0.5 --name chat
  weighbridge inspect share:chat
  weighbridge share --list")]
pub(crate) struct Share {
    /// The model: a file, a directory, an index, or a repository in the cache
    #[arg(value_name = "MODEL", required_unless_present = "list")]
    model: Option<PathBuf>,

    /// The dtype of all weights: bf16, f16 or f32; otherwise each keeps its own
    #[arg(long, value_name = "DTYPE", value_parser = parse_weight_dtype)]
    to: Option<Dtype>,

    /// An adapter to merge, and how much of it; may be given several times
    #[arg(long, value_name = "ADAPTER[:WEIGHT]")]
    adapter: Vec<String>,

    /// What to do with values outside the range of the dtype
    #[arg(long, value_enum, value_name = "HOW", default_value_t)]
    overflow: OnOverflow,

    /// The name to share it under; otherwise that of the model's directory or file
    #[arg(long, value_name = "NAME")]
    name: Option<String>,

    /// Print what is shared now: name, process, bytes and directory, with tabs between
    #[arg(long, conflicts_with_all = ["model", "to", "adapter", "name"])]
    list: bool,
}

impl Share {
    pub(crate) fn run(&self, term: &Term) -> Result<Outcome> {
        let Some(model) = self.model.as_deref().filter(|_| !self.list) else {
            return list(term);
        };
        let name = match &self.name {
            Some(name) => name.clone(),
            None => name_of(model)?,
        };
        let shared = self.make(model, &name, term)?;
        let mut out = term.text();
        writeln!(out, "share:{}\t{}", safe(shared.name()), shared.byte_len())?;
        out.flush()?;
        drop(out);
        let size = bytes(shared.byte_len());
        term.note(format_args!(
            "{size} shared: open share:{} in any program; Ctrl-C ends it",
            safe(shared.name())
        ));
        while !interrupt::requested() {
            thread::sleep(Duration::from_millis(100));
        }
        Ok(Outcome::Clean)
    }

    fn make(&self, model: &Path, name: &str, term: &Term) -> Result<Shared> {
        let (stored, _) = load::any(model, &Options::new(), term)?;
        load::tell(model, &stored, term);
        let mut weights = dense::weights(&stored, &Names::all(), "nothing is shared")?;
        if !self.adapter.is_empty() {
            let open = |text: &String| {
                let (path, weight) = weighted(text);
                let (checkpoint, _) = load::any(&path, &Options::new(), term)?;
                load::tell(&path, &checkpoint, term);
                Ok((Adapter::of(&checkpoint)?, weight))
            };
            let adapters: Vec<_> = self.adapter.iter().map(open).collect::<Result<_>>()?;
            weights = weights.adapted(adapters.iter().map(|(adapter, weight)| (adapter, *weight)))?;
        }
        let plan = Plan::of(&weights)
            .dtype(|tensor| self.to.filter(|_| tensor.dtype().is_float()))
            .overflow(self.overflow.into())
            .build()?;
        let all = metadata::without_codes(metadata::union(&[&weights], term), &[&weights]);
        let bar = term.bar("loading", 0);
        let save = metadata::with(Save::new(), all).progress(move |progress: Progress| {
            bar.show(progress);
            if interrupt::requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        let share = Shared::new(name, save, plan.tensors(), stored.directory());
        let share = share.map_err(|error| casts::in_options(error.into()))?;
        term.detail(format_args!("{} in memory", plural(plan.entries().len(), "tensor")));
        Ok(share)
    }
}

/// What the directory or the file is called.
fn name_of(model: &Path) -> Result<String> {
    let whole = model.canonicalize().unwrap_or_else(|_| model.to_owned());
    let name = if whole.is_file() { whole.file_stem() } else { whole.file_name() };
    let name = name.and_then(|name| name.to_str());
    Ok(name.with_context(|| format!("{}: it has no name; --name gives one", model.display()))?.to_owned())
}

/// A path, and the number behind its last colon.
fn weighted(text: &str) -> (PathBuf, f32) {
    match text.rsplit_once(':') {
        Some((path, weight)) if !path.is_empty() && !Path::new(text).exists() => match weight.parse() {
            Ok(weight) => (path.into(), weight),
            Err(_) => (text.into(), 1.0),
        },
        _ => (text.into(), 1.0),
    }
}

fn list(term: &Term) -> Result<Outcome> {
    let mut out = term.text();
    for shared in share::list()? {
        let bytes = shared.bytes.map_or("loading".to_owned(), |bytes| bytes.to_string());
        let directory = shared.directory.map(|directory| directory.display().to_string()).unwrap_or_default();
        writeln!(out, "{}\t{}\t{bytes}\t{}", safe(&shared.name), shared.process, safe(&directory))?;
    }
    out.flush()?;
    Ok(Outcome::Clean)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_behind_the_last_colon() {
        assert_eq!(weighted("style:0.5"), ("style".into(), 0.5));
        assert_eq!(weighted("style"), ("style".into(), 1.0));
        assert_eq!(weighted("C:\\style:-1"), ("C:\\style".into(), -1.0));
        assert_eq!(weighted("share:style"), ("share:style".into(), 1.0));
    }
}
