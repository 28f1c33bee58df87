//! The file of an optimizer's state: the layout of Burn's records, which examples/burn-adamw describes.
//!
//! The tensors of a parameter `P` are `P.momentum.moment_1`, `P.momentum.moment_2` and with amsgrad
//! `P.momentum.max_moment_2`, or for SGD `P.momentum.velocity`. `P.momentum.time` and `P.__rank`, its number
//! of dimensions, are among the scalars of the metadata.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::Var;
use serde_json::{Map, Value};
use weighbridge::epochs::{Scalar, Scalars};
use weighbridge::write::Save;
use weighbridge::{Checkpoint, Error, ErrorKind, Result};

use super::ids::{Ids, object};
use super::layout::BurnLayout;
use super::weights::{fitted, tensors};
use crate::Saver;
use crate::optim::{Moments, Stateful};
use crate::tensor::refused;

/// The ids of parameters, by their names; Burn's optimizers know parameters by them.
pub(super) const IDS: &str = "weighbridge.burn.ids";
/// Numbers of a record by their names.
const SCALARS: &str = "weighbridge.burn.scalars";
/// How the tensors of a record are named.
pub(super) const RECORD: &str = "weighbridge.burn.record";
/// By the ids of parameters inside of Burn.
const BY_ID: &str = "by id";
pub(super) const NAMED: &str = "named";

const TIME: &str = "momentum.time";
const RANK: &str = "__rank";

/// Writes the state of an optimizer.
pub(super) fn write<O: Stateful>(
    save: &Save,
    file: &Path,
    optimizer: &O,
    vars: &[(String, Var)],
    layout: &BurnLayout,
    ids: &Ids,
) -> Result<()> {
    let names = names(optimizer, vars)?;
    let (mut tensors, mut scalars) = (Vec::new(), Scalars::new());
    let mut with_state = Vec::new();
    for (slot, variable) in optimizer.slots().iter().zip(names) {
        let Some(moments) = &slot.moments else { continue };
        let name = layout.name(variable);
        for (place, leaf) in optimizer.leaves().iter().enumerate() {
            // What the next step would add begins with zeros.
            let tensor =
                moments.tensors.get(place).map_or_else(|| slot.var.zeros_like(), |it| Ok(it.clone()));
            let turned = tensor.and_then(|tensor| layout.turned(variable, &tensor));
            let turned = turned.map_err(|error| refused(&error))?;
            tensors.push((format!("{name}.{leaf}"), turned));
        }
        if O::COUNTS {
            scalars.insert(format!("{name}.{TIME}"), moments.time.into());
        }
        scalars.insert(format!("{name}.{RANK}"), (slot.var.rank() as u64).into());
        with_state.push(name);
    }
    let save = save
        .clone()
        .metadata(IDS, ids.entry(|name| with_state.iter().any(|other| other == name)))
        .metadata(RECORD, if with_state.is_empty() { NAMED } else { BY_ID });
    Saver::new().with(with_scalars(save, &scalars)).file(file, tensors)
}

/// Reads the state of each of an optimizer's variables, in their order.
///
/// # Errors
///
/// Fails, and names what is wrong, when it is the state of another model or another optimizer, and when a
/// part of a variable's state is missing or of another shape.
pub(super) fn read<O: Stateful>(
    ckpt: &Checkpoint,
    optimizer: &O,
    vars: &[(String, Var)],
    layout: &BurnLayout,
) -> Result<Vec<Option<Moments>>> {
    let names = names(optimizer, vars)?;
    let mut scalars = scalars(ckpt)?;
    let mut stored = tensors(ckpt)?;
    let mut all = Vec::with_capacity(names.len());
    for (slot, variable) in optimizer.slots().iter().zip(&names) {
        let name = layout.name(variable);
        let time = if O::COUNTS { scalars.remove(&format!("{name}.{TIME}")) } else { None };
        let rank = scalars.remove(&format!("{name}.{RANK}"));
        if let Some(rank) = rank
            && rank.as_u64() != Some(slot.var.rank() as u64)
        {
            let message = format!("the variable has {} dimensions, the state is of {rank}", slot.var.rank());
            return Err(Error::new(ErrorKind::Shape, message).in_tensor(&name));
        }
        let full = |leaf: &&str| format!("{name}.{leaf}");
        let is_there = |leaf: &&str| stored.contains_key(&full(leaf));
        let leaves = optimizer.leaves();
        if leaves.is_empty() || time.is_none() && rank.is_none() && !leaves.iter().any(is_there) {
            all.push(None);
            continue;
        }
        if let Some(missing) = leaves.iter().find(|leaf| !is_there(leaf)) {
            let prefix = format!("{name}.");
            let others = stored
                .keys()
                .filter(|key| key.strip_prefix(&prefix).is_some_and(|leaf| !leaves.contains(&leaf)));
            if let Some(other) = others.min() {
                return Err(misplaced(other, optimizer, &names, layout));
            }
            let message = "this part of the state is missing, and others of the same variable are there";
            return Err(Error::new(ErrorKind::MissingTensor, message).in_tensor(&full(missing)));
        }
        let time = match time.map(Scalar::as_u64) {
            Some(Some(time)) => time,
            None if !O::COUNTS => 0,
            _ => {
                let message = format!("the metadata entry {SCALARS:?} has no whole number {TIME:?} for it");
                return Err(Error::new(ErrorKind::Value, message).in_tensor(&name));
            }
        };
        let mut tensors = Vec::with_capacity(leaves.len());
        for leaf in leaves {
            let full = full(leaf);
            let Some(tensor) = stored.remove(&full) else { continue };
            tensors
                .push(fitted(variable, &slot.var, &tensor, layout).map_err(|error| error.in_tensor(&full))?);
        }
        all.push(Some(Moments { tensors, time }));
    }
    let left = stored.into_keys().chain(scalars.into_keys()).min();
    match left {
        Some(left) => Err(misplaced(&left, optimizer, &names, layout)),
        None => Ok(all),
    }
}

/// Writes what a schedule keeps.
pub(super) fn write_schedule(save: &Save, file: &Path, state: &Scalars) -> Result<()> {
    // Of one group of parameters, Burn's group 0.
    let scalars: Scalars = state.iter().map(|(name, scalar)| (format!("0.{name}"), *scalar)).collect();
    let save =
        save.clone().metadata(IDS, "{}").metadata(RECORD, if scalars.is_empty() { NAMED } else { BY_ID });
    let none: [(String, candle_core::Tensor); 0] = [];
    Saver::new().with(with_scalars(save, &scalars)).file(file, none)
}

/// Reads what a schedule keeps.
pub(super) fn read_schedule(ckpt: &Checkpoint) -> Result<Scalars> {
    let mut state = Scalars::new();
    for (name, scalar) in scalars(ckpt)? {
        match name.strip_prefix("0.") {
            Some(name) => state.insert(name.to_owned(), scalar),
            None => {
                let message =
                    format!("it has {name:?}: it is of several schedules, one for each group of parameters");
                return Err(Error::new(ErrorKind::Value, message));
            }
        };
    }
    Ok(state)
}

fn with_scalars(save: Save, scalars: &Scalars) -> Save {
    if scalars.is_empty() {
        return save;
    }
    let entry: Map<String, Value> =
        scalars.iter().map(|(name, scalar)| (name.clone(), Value::String(scalar.to_string()))).collect();
    save.metadata(SCALARS, Value::Object(entry).to_string())
}

/// The scalars of a record.
fn scalars(ckpt: &Checkpoint) -> Result<Scalars> {
    if ckpt.shards().first().and_then(|shard| shard.header().metadata_value(RECORD)).is_none() {
        let message = format!("it is not a training record: its metadata has no {RECORD:?}");
        return Err(Error::new(ErrorKind::Value, message));
    }
    let scalar = |(name, value): (String, Value)| match value.as_str().and_then(|text| text.parse().ok()) {
        Some(scalar) => Ok((name, scalar)),
        None => Err(Error::new(ErrorKind::Value, format!("the scalar {name:?} of the metadata is {value}"))),
    };
    object(ckpt, SCALARS)?.into_iter().map(scalar).collect::<Result<BTreeMap<_, _>>>()
}

/// The names of an optimizer's variables.
fn names<'n, O: Stateful>(optimizer: &O, vars: &'n [(String, Var)]) -> Result<Vec<&'n str>> {
    let mut by_id = HashMap::new();
    for (name, var) in vars {
        // One that has several names goes by the first.
        by_id.entry(var.as_tensor().id()).or_insert(&**name);
    }
    let name = |slot: &crate::optim::Slot| {
        by_id.get(&slot.var.as_tensor().id()).copied().ok_or_else(|| {
            let message = format!(
                "the optimizer has a variable of shape {:?} that is not in the map",
                slot.var.shape()
            );
            Error::new(ErrorKind::Value, message)
        })
    };
    optimizer.slots().iter().map(name).collect()
}

/// What is wrong with a part of a state that nobody takes.
fn misplaced<O: Stateful>(left: &str, optimizer: &O, names: &[&str], layout: &BurnLayout) -> Error {
    let leaf = names.iter().find_map(|name| left.strip_prefix(&*layout.name(name))?.strip_prefix('.'));
    let message = match leaf {
        Some(leaf) => match optimizer.advice(leaf) {
            Some(advice) => advice.to_owned(),
            None => format!("{} does not take it: it is the state of another optimizer", O::NAME),
        },
        None => "the optimizer has no such variable: it is the state of another model".to_owned(),
    };
    Error::new(ErrorKind::Value, message).in_tensor(left)
}
