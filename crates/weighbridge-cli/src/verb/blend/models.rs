//! The models, and what becomes of each tensor that they have.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail};
use weighbridge::plan::{Blend, Input};
use weighbridge::{Checkpoint, Dtype, Names, TensorRef, natural_order};

use super::recipe::{Fate, Recipe, Take};
use super::same::same;
use crate::dense;
use crate::load::open;
use crate::show::{safe, shape};
use crate::term::Term;

/// A model, or the base.
pub(super) struct Model {
    pub(super) path: PathBuf,
    pub(super) stored: Checkpoint,
    /// With weights in the place of codes.
    pub(super) dense: Checkpoint,
    /// Whether its config.json says that its head is its embeddings.
    ties_head: Option<bool>,
}

/// All that is blended.
pub(super) struct Models {
    base: Option<Model>,
    models: Vec<Model>,
}

/// What an output tensor is made of.
pub(super) enum Made<'m> {
    /// In this dtype unless another one is asked for.
    Blended { blend: Blend, inputs: Vec<Input>, dtype: Dtype },
    /// As it is, and whether the base was asked for it.
    Taken(TensorRef<'m>, bool),
}

/// How the tensor of the head is called.
const HEAD: &str = "lm_head.weight";
/// How those of embeddings are, of inputs and outputs.
const EMBEDDINGS: [&str; 4] =
    ["embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight"];

impl Model {
    fn open(path: &Path, names: &Names, term: &Term) -> Result<Self> {
        let stored = open(path, term)?;
        let dense = dense::weights(&stored, names, "nothing is written; --except leaves modules out")?;
        let ties_head = stored.beside("config.json")?.and_then(|path| ties_head(&path));
        Ok(Self { path: path.to_owned(), stored, dense, ties_head })
    }

    fn tensor(&self, name: &str) -> Option<TensorRef<'_>> {
        self.dense.tensor(name)
    }

    /// The embeddings that the head of this name may be tied to.
    fn embeddings(&self, head: &str) -> Option<TensorRef<'_>> {
        let prefix = head.strip_suffix(HEAD)?;
        let is_of_head = |name: &str| {
            name.starts_with(prefix)
                && EMBEDDINGS.iter().any(|end| name == *end || name.ends_with(&format!(".{end}")))
        };
        let mut found = self.dense.tensors().filter(|tensor| is_of_head(tensor.name()));
        found.next().filter(|_| found.next().is_none())
    }
}

/// Whether a configuration says that the head is tied.
fn ties_head(config: &Path) -> Option<bool> {
    const MOST: u64 = 64 << 20;
    let mut text = String::new();
    File::open(config).ok()?.take(MOST).read_to_string(&mut text).ok()?;
    let config: serde_json::Value = serde_json::from_str(&text).ok()?;
    let says = |config: &serde_json::Value| config.get("tie_word_embeddings")?.as_bool();
    says(&config).or_else(|| says(config.get("text_config")?))
}

impl Models {
    pub(super) fn open(paths: &[PathBuf], base: Option<&Path>, names: &Names, term: &Term) -> Result<Self> {
        let open = |path: &Path| Model::open(path, names, term);
        let models = paths.iter().map(|path| open(path)).collect::<Result<Vec<_>>>()?;
        if models.len() < 2 && base.is_none() {
            bail!("{}: one model has nothing to be blended with; name two, or a --base", paths[0].display());
        }
        Ok(Self { base: base.map(open).transpose()?, models })
    }

    /// The one that everything comes from that is not blended: the base, or the first.
    pub(super) fn main(&self) -> &Model {
        self.base.as_ref().unwrap_or(&self.models[0])
    }

    /// The base and the models.
    pub(super) fn all(&self) -> impl Iterator<Item = &Model> {
        self.base.iter().chain(&self.models)
    }

    /// What is to be made, in the order of names; fails at whatever cannot be.
    pub(super) fn tensors(
        &self,
        recipe: &Recipe,
        names: &Names,
        term: &Term,
    ) -> Result<Vec<(String, Made<'_>)>> {
        let all: BTreeSet<_> =
            self.all().flat_map(|model| model.dense.tensors()).map(|one| one.name()).collect();
        let mut all: Vec<_> = all.into_iter().filter(|name| names.contains(name)).collect();
        all.sort_by(|a, b| natural_order(a, b));
        let mut made = Vec::with_capacity(all.len());
        for name in all {
            match recipe.fate(name, self.models.len())? {
                Fate::Taken(take) => made.push((name.to_owned(), self.taken(name, take)?)),
                Fate::Blended(_) if self.is_tied_head(name)? => {
                    term.note(format_args!("{}: left out, it is tied to the embeddings", safe(name)));
                }
                Fate::Blended(blend) => made.push((name.to_owned(), self.blended(name, blend)?)),
            }
        }
        Ok(made)
    }

    /// The tensor of one model.
    fn taken(&self, name: &str, take: Take) -> Result<Made<'_>> {
        let (model, is_base) = match take {
            Take::Main => (self.main(), self.base.is_some()),
            Take::Base => {
                let base = self.base.as_ref();
                (
                    base.ok_or_else(|| {
                        anyhow!("tensor {:?}: there is no base; --base names it", safe(name))
                    })?,
                    true,
                )
            }
            Take::Model(number) => {
                let count = self.models.len();
                let model = self.models.get(number).ok_or_else(|| {
                    let name = safe(name);
                    anyhow!(
                        "tensor {name:?}: there is no model {number}, counted from 0, but {count} of them"
                    )
                })?;
                (model, false)
            }
        };
        let tensor = model.tensor(name);
        let tensor = tensor.ok_or_else(|| {
            anyhow!(
                "{}: tensor {:?} is to be taken from it, but it lacks it",
                model.path.display(),
                safe(name)
            )
        })?;
        Ok(Made::Taken(tensor, is_base))
    }

    /// Whether the output's head is its embeddings, by the configuration that goes along: then it has none of
    /// its own, and neither must a model.
    fn is_tied_head(&self, name: &str) -> Result<bool> {
        if !name.ends_with(HEAD) || self.main().ties_head != Some(true) {
            return Ok(false);
        }
        for model in self.all() {
            let Some(head) = model.tensor(name) else { continue };
            let is_tied = match model.embeddings(name) {
                Some(embeddings) => same(&head, &embeddings)?,
                None => false,
            };
            if !is_tied {
                bail!(
                    "{}: tensor {:?} is not its embeddings, but the config.json of {}, which the output gets, ties the two; \
                     give a base or a first model that does not, or leave it out with --except {HEAD}",
                    model.path.display(),
                    safe(name),
                    self.main().path.display()
                );
            }
        }
        Ok(true)
    }

    fn blended(&self, name: &str, blend: Blend) -> Result<Made<'_>> {
        let method = blend.method();
        let base = match (&self.base, method.has_base()) {
            (Some(base), true) => Some(base),
            (None, true) => bail!("{method} blends differences from a base: --base names it"),
            (_, false) => None,
        };
        let of = base.into_iter().chain(&self.models);
        let tensors = of.map(|model| Ok((model, self.of_model(model, name)?)));
        let tensors = tensors.collect::<Result<Vec<_>>>()?;
        let Some(((first, tensor), others)) = tensors.split_first() else {
            bail!("there are no models to blend");
        };
        if !tensors.iter().all(|(_, tensor)| Blend::takes(tensor.dtype())) {
            for (model, other) in others {
                if !same(tensor, other)? {
                    let dtype = if Blend::takes(tensor.dtype()) { other.dtype() } else { tensor.dtype() };
                    bail!(
                        "tensor {:?}: {dtype} is not blended, and it differs between {} and {}; --take {:?} takes that \
                         of {}",
                        safe(name),
                        first.path.display(),
                        model.path.display(),
                        safe(name),
                        self.main().path.display()
                    );
                }
            }
            return Ok(Made::Taken(*tensor, false));
        }
        for (model, other) in others {
            if other.shape() != tensor.shape() {
                return Err(self.unlike(name, (first, tensor), (model, other)));
            }
        }
        let dtype = others.iter().fold(tensor.dtype(), |dtype, (_, other)| wider(dtype, other.dtype()));
        let inputs = tensors.iter().map(|(_, tensor)| Input::of(tensor)).collect();
        Ok(Made::Blended { blend, inputs, dtype })
    }

    /// The tensor of a model that is blended, its embeddings where its head is tied to them.
    fn of_model<'m>(&self, model: &'m Model, name: &str) -> Result<TensorRef<'m>> {
        if let Some(tensor) = model.tensor(name) {
            return Ok(tensor);
        }
        let embeddings = model.embeddings(name).filter(|_| model.ties_head == Some(true));
        embeddings.ok_or_else(|| {
            let has = self.all().find(|model| model.tensor(name).is_some()).unwrap_or(model);
            let main = self.main().path.display();
            let in_main = self.main().tensor(name);
            let (name, path) = (safe(name), model.path.display());
            let advice = match in_main {
                Some(_) => format!("--take {name:?} takes that of {main}, --except {name:?} leaves it out"),
                None => format!("--except {name:?} leaves it out"),
            };
            anyhow!("{path}: tensor {name:?} is missing, which {} has; {advice}", has.path.display())
        })
    }

    /// The error of shapes that differ.
    fn unlike(
        &self,
        name: &str,
        (first, tensor): (&Model, &TensorRef<'_>),
        (model, other): (&Model, &TensorRef<'_>),
    ) -> anyhow::Error {
        let (own, others) = (tensor.shape(), other.shape());
        let is_vocabulary = name.ends_with(HEAD) || EMBEDDINGS.iter().any(|end| name.ends_with(end));
        let differs_in_rows = own.len() == 2 && others.len() == 2 && own[1] == others[1];
        let advice = if is_vocabulary && differs_in_rows {
            format!(
                "their vocabularies have {} and {} tokens: give the models one tokenizer first (transformers' \
                 resize_token_embeddings), or have --take {:?} take that of {}",
                own[0],
                others[0],
                safe(name),
                self.main().path.display()
            )
        } else {
            "only models of one architecture and size can be blended".to_owned()
        };
        anyhow!(
            "tensor {:?}: shape {} in {}, {} in {}; {advice}",
            safe(name),
            shape(own),
            first.path.display(),
            shape(others),
            model.path.display()
        )
    }
}

/// The smallest dtype that holds the values of both.
fn wider(a: Dtype, b: Dtype) -> Dtype {
    let pair = [a, b];
    let has = |dtype| pair.contains(&dtype);
    match () {
        () if a == b => a,
        () if has(Dtype::F64) => Dtype::F64,
        () if has(Dtype::F32) || has(Dtype::F16) && has(Dtype::BF16) => Dtype::F32,
        () if has(Dtype::F16) => Dtype::F16,
        // It holds those of all floats of 8 bits.
        () => Dtype::BF16,
    }
}
