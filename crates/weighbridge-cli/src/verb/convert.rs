//! `weighbridge convert`: foreign formats become safetensors.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};
use weighbridge::Checkpoint;
use weighbridge_convert::{Aliases, Foreign, Note, NoteKind, Options, open_any_with};

mod export;

use crate::casts::{self, Casts};
use crate::destination::Destination;
use crate::load;
use crate::outcome::Outcome;
use crate::pattern;
use crate::rename::Renaming;
use crate::reshape::{self, Reshape};
use crate::select::Select;
use crate::show::{plural, safe};
use crate::term::Term;

/// So many notes of a kind are shown; --verbose shows all.
const SHOWN: usize = 10;

/// Converts pickles (.bin, .pt, .pth, .ckpt, .pkl), NumPy, ONNX, GGUF, HDF5, Flax files and Burn's records to
/// safetensors, without running any of their code
///
/// An output that ends in .npz, .npy or .gguf is written in that format; the names of tensors stay as they
/// are, so that llama.cpp does not run such a .gguf. The format of the input is recognised by the content of the file, not by its name. A pickle that
/// imports something not
/// known to be harmless is refused: `weighbridge scan` lists what it imports. Everything that is renamed,
/// left out or changed is reported on standard error.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  weighbridge convert pytorch_model.bin -o model.safetensors
  weighbridge convert bert-base/ -o bert/ --max-shard-size 2GB
  weighbridge convert last.ckpt --except 'optimizer_states.*' --to bf16 -o model.safetensors
  weighbridge convert unet.pth --allow-global 'omegaconf.*' -o unet.safetensors
  weighbridge convert model-Q4_K_M.gguf --to bf16 -o model/
  weighbridge convert model.safetensors -o model.npz
  weighbridge convert Llama-3.2-1B --type q4_k -o llama.gguf
  weighbridge convert trained.safetensors --into model.onnx -o trained.onnx")]
pub(crate) struct Convert {
    /// The file, an index of shards (pytorch_model.bin.index.json), or a directory with one
    #[arg(value_name = "PATH")]
    input: PathBuf,

    /// What to do with several names of one tensor, such as tied embeddings
    #[arg(long, value_enum, value_name = "HOW", default_value_t)]
    aliases: OnAlias,

    /// Keep the prefixes `state_dict.`, `model.`, `module.` and `_orig_mod.` that training programs put
    /// before all names
    #[arg(long)]
    raw_names: bool,

    /// Leave out tensors that safetensors cannot hold, such as sparse ones, instead of failing
    #[arg(long)]
    skip_unsupported: bool,

    /// If there is no tensor to convert, write nothing and exit with status 1, instead of only warning
    #[arg(long)]
    strict: bool,

    /// Read objects of this class in a pickle, or of all classes that match a glob, as plain records of their
    /// contents; none of their code is run. May be given several times
    #[arg(long, value_name = "MODULE.CLASS|GLOB")]
    allow_global: Vec<String>,

    /// Write this ONNX model with its initialisers replaced by the tensors of the same names
    #[arg(long, value_name = "MODEL.onnx")]
    into: Option<PathBuf>,

    /// Cast tensors to the dtypes of the model's initialisers
    #[arg(long, requires = "into")]
    cast_into: bool,

    /// Of a file that ends in .gguf, the type of its matrices; the dtypes stay as they are otherwise. What
    /// has one dimension becomes F32, and rows that are no whole blocks get what llama.cpp gives them
    #[arg(long, value_enum, ignore_case = true, value_name = "TYPE", conflicts_with = "into")]
    r#type: Option<export::GgufType>,

    #[command(flatten)]
    select: Select,

    #[command(flatten)]
    renaming: Renaming,

    #[command(flatten)]
    casts: Casts,

    #[command(flatten)]
    destination: Destination,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum OnAlias {
    /// Keep it once, under the first of its names; the metadata has the others
    #[default]
    Once,
    /// Give each name a copy
    Each,
}

impl Convert {
    pub(crate) fn run(&self, term: &Term) -> Result<Outcome> {
        let (into, cast, kind) = (self.into.as_deref(), self.cast_into, self.r#type);
        if let Some(export) = export::Export::of(&self.destination, into, cast, kind)? {
            return self.export(&export, term);
        }
        let input = load::on_disk(&self.input, |_| true, term)?;
        let foreign = weighbridge_convert::open(input.path(), &self.options()?)?;
        let checkpoint = foreign.checkpoint();
        self.check(checkpoint, term)?;
        let plan = self.reshape()?.plan(checkpoint).map_err(|error| error.in_file(&self.input))?;
        let chosen = plan.entries().len();
        if self.is_nothing(chosen, checkpoint.len() + foreign.unchosen(), foreign.notes(), term)? {
            return Ok(Outcome::Findings);
        }
        let outcome = reshape::write(&[plan], &self.destination, term)?;
        report(foreign.notes(), term);
        let left_out = match foreign.unchosen() {
            0 => String::new(),
            others => format!(", {others} not chosen"),
        };
        term.note(format_args!("{} from {}{left_out}", plural(chosen, "tensor"), foreign.format()));
        Ok(outcome)
    }

    /// Something else than safetensors comes out; safetensors may go in, too.
    fn export(&self, export: &export::Export<'_>, term: &Term) -> Result<Outcome> {
        let (checkpoint, foreign) = load::any(&self.input, &self.options()?, term)?;
        self.check(&checkpoint, term)?;
        let mut reshape = self.reshape()?;
        if self.cast_into {
            reshape.casts = reshape.casts.before_casts();
        }
        let plan = reshape.plan(&checkpoint).map_err(|error| error.in_file(&self.input))?;
        let unchosen = foreign.as_ref().map_or(0, Foreign::unchosen);
        let notes = foreign.as_ref().map_or(&[][..], Foreign::notes);
        if self.is_nothing(plan.entries().len(), checkpoint.len() + unchosen, notes, term)? {
            return Ok(Outcome::Findings);
        }
        let notes = export.write(&plan, self.casts.is_raw()).map_err(casts::in_options)?;
        foreign.iter().for_each(|foreign| report(foreign.notes(), term));
        report(&notes, term);
        if let Some(what) = export.is_good_for() {
            term.note(what);
        }
        let from = foreign.map_or("safetensors", |foreign| foreign.format().name());
        term.note(format_args!(
            "{} from {from}",
            plural(plan.entries().len() - export::dropped(&notes), "tensor")
        ));
        Ok(Outcome::Clean)
    }

    /// Fails where a pattern that chooses or casts matches nothing, and warns of others that do not.
    fn check(&self, checkpoint: &Checkpoint, term: &Term) -> Result<()> {
        let names = pattern::names(checkpoint);
        self.select.check_chosen(&self.input, &names, || {
            let input = load::on_disk(&self.input, |_| true, term)?;
            let all = open_any_with(input.path(), &self.options_for_all())?;
            Ok(all.checkpoint().tensors().map(|tensor| tensor.name().to_owned()).collect())
        })?;
        self.casts.check(&self.input, &names, term)?;
        self.renaming.warn(&self.input, &names, term)
    }

    /// Warns if there is no tensor to convert, and says whether to stop there; fails if there is one that is not chosen.
    fn is_nothing(&self, chosen: usize, all: usize, notes: &[Note], term: &Term) -> Result<bool> {
        if chosen > 0 {
            return Ok(false);
        }
        if all > 0 {
            return Err(pattern::nothing_left(&self.input, all));
        }
        let why = match notes.iter().any(|note| note.kind() == NoteKind::Dropped) {
            true => "everything in it was left out",
            false => "it contains no tensors",
        };
        term.warn(format_args!("{}: no tensor is converted: {why}", self.input.display()));
        if self.strict {
            report(notes, term);
        }
        Ok(self.strict)
    }

    fn reshape(&self) -> Result<Reshape> {
        Ok(Reshape {
            names: self.select.names()?,
            renames: self.renaming.renames()?,
            casts: self.casts.rules()?,
        })
    }

    fn options(&self) -> Result<Options> {
        let options = self.options_for_all();
        Ok(if self.select.is_all() { options } else { options.only(self.select.names()?) })
    }

    /// Those that choose no tensors.
    fn options_for_all(&self) -> Options {
        let aliases = match self.aliases {
            OnAlias::Once => Aliases::Once,
            OnAlias::Each => Aliases::Each,
        };
        let mut options = Options::new().aliases(aliases);
        if self.raw_names {
            options = options.raw_names();
        }
        if self.skip_unsupported {
            options = options.skip_unsupported();
        }
        self.allow_global.iter().fold(options, Options::allow_global)
    }
}

/// Says what was changed on the way: the first of each kind, or all.
pub(crate) fn report(notes: &[Note], term: &Term) {
    for notes in notes.chunk_by(|a, b| a.kind() == b.kind()) {
        let Some(kind) = notes.first().map(Note::kind) else { continue };
        // Numbers and texts that are now in the metadata are many and are no loss.
        let shown = if kind == NoteKind::Metadata { 0 } else { SHOWN };
        for (number, note) in notes.iter().enumerate() {
            let line = safe(&note.to_string()).into_owned();
            if number < shown {
                term.note(line);
            } else {
                term.detail(line);
            }
        }
        let more = notes.len().saturating_sub(shown);
        if more > 0 && !term.is_verbose() {
            let and_more = if shown > 0 { "and more: " } else { "" };
            let what = if kind == NoteKind::Metadata { "kept in the metadata" } else { kind.name() };
            term.note(format_args!("{and_more}{} {what}; --verbose lists them", plural(more, "value")));
        }
    }
}
