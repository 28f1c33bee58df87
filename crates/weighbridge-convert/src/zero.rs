//! Checkpoints of DeepSpeed's ZeRO: the F32 weights that the optimizers of the ranks keep, joined as
//! `zero_to_fp32.py` does it.

mod files;
mod join;
mod states;
mod widened;

use std::collections::HashSet;

use weighbridge::write::Aliases;
use weighbridge::{Error, ErrorKind, Result};

use crate::contents::{Contents, Tensor};
use crate::note::{Note, NoteKind};
use crate::options::Options;
use states::{ModelStates, OptimStates};

pub(crate) use files::{Files, find};

/// Tensors may be this many times as long as the files, and a gibibyte more: buffers can be expanded.
const MOST_RATIO: u64 = 16;

/// Reads what the ranks wrote. Nothing but their pickles is read before the tensors are.
pub(crate) fn read(files: &Files, options: &Options) -> Result<Contents> {
    if let Some(refused) = &files.refused {
        return Err(Error::new(ErrorKind::Unsupported, refused.clone()).in_file(&files.directory));
    }
    let optims = files.optims.iter().map(|path| OptimStates::read(path, options));
    let optims = optims.collect::<Result<Vec<_>>>()?;
    let first = files.models.first().ok_or_else(|| Error::new(ErrorKind::MissingShard, "no model states"))?;
    let model = ModelStates::read(first, options)?;
    let mut found = model.buffers.clone();
    if optims.first().is_some_and(|rank| rank.stage < 3) {
        // zero_to_fp32.py leaves out what stage 1 does not train.
        found.extend(model.others.iter().cloned());
    }
    // Whether all ranks are there is found with what is trained.
    join::trained(files, &model, &optims, &mut found)?;
    join::frozen(files, &model, &optims, options, &mut found)?;
    contents(files, &model, found, options)
}

/// What is chosen of it, with the names that share a tensor.
fn contents(
    files: &Files,
    model: &ModelStates,
    mut found: Vec<join::Found>,
    options: &Options,
) -> Result<Contents> {
    let mut contents = Contents::default();
    for (alias, of) in model.shared.clone() {
        let Some(original) = found.iter().find(|found| found.name == of) else { continue };
        if options.aliases == Some(Aliases::Each) {
            let copy = join::Found { name: alias, ..original.clone() };
            found.push(copy);
        } else {
            let why = format!("the same tensor as {of:?}");
            contents.notes.push(Note::new(NoteKind::Aliased, alias.clone(), why));
            contents.put(alias, of);
        }
    }
    let mut left = files.size()?.saturating_mul(MOST_RATIO).saturating_add(1 << 30);
    let mut seen = HashSet::new();
    for join::Found { name, element, shape, data } in found {
        if !options.wants(&name) {
            contents.unchosen += 1;
            continue;
        }
        let fail = |kind, message: &str| Error::new(kind, message).in_tensor(&name);
        if !seen.insert(name.clone()) {
            return Err(fail(ErrorKind::DuplicateTensor, "two tensors have this name"));
        }
        left = left.checked_sub(data.size()).ok_or_else(|| {
            fail(
                ErrorKind::Unsafe,
                "the tensors are so much larger than the files that it must be meant to fill the disk",
            )
        })?;
        let data = widened::to_f32(element.dtype, data);
        let shape = element.shape(&shape);
        let shape =
            shape.ok_or_else(|| fail(ErrorKind::Unsupported, "it is a scalar of two values of 4 bits"))?;
        let dtype = widened::dtype(element.dtype);
        contents.tensors.push(Tensor { name, dtype, shape, data });
    }
    contents.notes.push(Note::new(
        NoteKind::Dropped,
        "optimizer",
        "the state of the optimizer beside the weights",
    ));
    Ok(contents)
}
