//! Where in the flat groups of the ranks each parameter is.

use std::sync::Arc;

use weighbridge::source::{Concat, Window};
use weighbridge::{Error, ErrorKind, Result, Source};

use super::files::Files;
use super::states::{ModelStates, OptimStates};
use crate::options::Options;
use crate::pickle::{Element, Single};

/// A tensor of the whole model, its elements as they are stored.
#[derive(Clone)]
pub(super) struct Found {
    pub(super) name: String,
    pub(super) element: Element,
    /// Of elements.
    pub(super) shape: Vec<usize>,
    pub(super) data: Arc<dyn Source>,
}

impl Found {
    pub(super) fn of(name: String, Single { element, shape, data }: Single) -> Self {
        Self { name, element, shape, data }
    }
}

/// Elements that lie one after the other.
struct Flat {
    element: Element,
    data: Arc<dyn Source>,
}

impl Flat {
    fn of<'s>(parts: impl IntoIterator<Item = &'s Single>) -> Result<Self> {
        let (mut element, mut sources) = (None, Vec::new());
        for part in parts {
            let first = *element.get_or_insert(part.element);
            if first != part.element {
                let message = format!("one rank or group has {}, another {}", first.name, part.element.name);
                return Err(malformed(&message));
            }
            sources.push(Arc::clone(&part.data));
        }
        let element = element.ok_or_else(|| malformed("no rank has anything of it"))?;
        Ok(Self { element, data: Arc::new(Concat::new(sources).ok_or_else(too_large)?) })
    }

    fn len(&self) -> u64 {
        self.data.size() / self.element.bytes() as u64
    }

    fn part(&self, start: u64, len: u64) -> Result<Arc<dyn Source>> {
        let width = self.element.bytes() as u64;
        let end = start.checked_add(len).and_then(|end| end.checked_mul(width)).ok_or_else(too_large)?;
        let window = Window::new(Arc::clone(&self.data), start * width..end).ok_or_else(|| {
            let message =
                format!("its {len} elements at {start} are not within the {} of the ranks", self.len());
            malformed(&message)
        })?;
        Ok(Arc::new(window))
    }
}

/// The parameters that are not trained, which are in the model states: whole in stages 1 and 2, cut in
/// stage 3.
pub(super) fn frozen(
    files: &Files,
    model: &ModelStates,
    optims: &[OptimStates],
    options: &Options,
    found: &mut Vec<Found>,
) -> Result<()> {
    if model.frozen.is_empty() {
        return Ok(());
    }
    let mut others = Vec::new();
    if optims.first().is_some_and(|rank| rank.stage == 3) {
        if files.models.len() != optims.len() {
            let (models, ranks) = (files.models.len(), optims.len());
            let message = format!(
                "it has the model states of {models} of {ranks} ranks, whose frozen parameters are cut"
            );
            return Err(Error::new(ErrorKind::MissingShard, message).in_file(&files.directory));
        }
        for path in &files.models[1..] {
            let other = ModelStates::read(path, options)?;
            if other.frozen != model.frozen {
                return Err(malformed("its frozen parameters are not those of rank 0").in_file(path));
            }
            others.push(other.fragments);
        }
    }
    for (number, (name, shape)) in model.frozen.iter().enumerate() {
        let of_others = others.iter().filter_map(|fragments| fragments.get(number));
        let join = || {
            let flat = Flat::of(model.fragments.get(number).into_iter().chain(of_others))?;
            let len = elements(shape)?;
            let spare = flat.len().checked_sub(len);
            if spare.is_none_or(|spare| spare > others.len() as u64) {
                let message =
                    format!("its shape {shape:?} has {len} elements, the ranks have {}", flat.len());
                return Err(malformed(&message));
            }
            Ok(Found {
                name: name.clone(),
                element: flat.element,
                shape: shape.clone(),
                data: flat.part(0, len)?,
            })
        };
        found.push(join().map_err(|error: Error| error.in_tensor(name).in_file(&files.directory))?);
    }
    Ok(())
}

/// The parameters that the optimizer has.
pub(super) fn trained(
    files: &Files,
    model: &ModelStates,
    optims: &[OptimStates],
    found: &mut Vec<Found>,
) -> Result<()> {
    let Some(first) = optims.first() else { return Ok(()) };
    for (rank, path) in optims.iter().zip(&files.optims) {
        if rank.partitions != optims.len() as u64 {
            let message = format!(
                "it is of {} ranks, and {} files *_optim_states.pt are there: some are missing, or of another run",
                rank.partitions,
                optims.len()
            );
            return Err(Error::new(ErrorKind::MissingShard, message).in_file(path));
        }
        if rank.stage != first.stage || rank.groups.len() != first.groups.len() {
            return Err(malformed("its stage or its number of groups is not that of rank 0").in_file(path));
        }
        let uneven = rank.groups.iter().zip(&first.groups).any(|(own, other)| own.shape != other.shape);
        if first.stage == 3 && uneven {
            return Err(malformed("its flat groups are not as long as those of rank 0").in_file(path));
        }
    }
    let joined =
        if first.stage == 3 { by_parameter(model, optims, found) } else { by_group(model, optims, found) };
    joined.map_err(|error| error.in_file(&files.directory))
}

/// Stages 1 and 2: the ranks' parts of a group, one after the other, are its parameters.
fn by_group(model: &ModelStates, optims: &[OptimStates], found: &mut Vec<Found>) -> Result<()> {
    let Some(first) = optims.first() else { return Ok(()) };
    if first.groups.len() != model.groups.len() {
        let (flat, named) = (first.groups.len(), model.groups.len());
        return Err(malformed(&format!("its ranks have {flat} groups of weights, the model states {named}")));
    }
    for (number, shapes) in model.groups.iter().enumerate() {
        let flat = Flat::of(optims.iter().filter_map(|rank| rank.groups.get(number)))?;
        let paddings =
            first.paddings.as_ref().map(|of_groups| of_groups.get(number).map_or(&[][..], |it| it));
        if paddings.is_some_and(|paddings| paddings.len() != shapes.len()) {
            return Err(malformed(&format!("group {number} has not one padding for each of its parameters")));
        }
        let mut at = 0_u64;
        for (index, (name, shape)) in shapes.iter().enumerate() {
            let take = || {
                let len = elements(shape)?;
                let data = flat.part(at, len)?;
                let padding = paddings.and_then(|paddings| paddings.get(index)).copied().unwrap_or(0);
                let next = at.checked_add(len).and_then(|end| end.checked_add(padding));
                Ok((next.ok_or_else(too_large)?, data))
            };
            let (next, data) = take().map_err(|error: Error| error.in_tensor(name))?;
            found.push(Found { name: name.clone(), element: flat.element, shape: shape.clone(), data });
            at = next;
        }
        // DeepSpeed pads groups so, and leaves some of it away again.
        let align = 2 * optims.len() as u64;
        if at.div_ceil(align) != flat.len().div_ceil(align) {
            let message =
                format!("the parameters of group {number} are {at} elements, the ranks have {}", flat.len());
            return Err(malformed(&message));
        }
    }
    Ok(())
}

/// Stage 3: every parameter is cut, and the ranks' parts of it are at the same place of their groups.
fn by_parameter(model: &ModelStates, optims: &[OptimStates], found: &mut Vec<Found>) -> Result<()> {
    let ranks = optims.len() as u64;
    let flats = optims.iter().map(|rank| Flat::of(&rank.groups)).collect::<Result<Vec<_>>>()?;
    let Some(first) = flats.first() else { return Ok(()) };
    let mut at = 0_u64;
    for (name, shape) in model.groups.iter().flatten() {
        let take = || {
            let len = elements(shape)?;
            let own = len.div_ceil(ranks);
            let parts = flats.iter().map(|flat| {
                Ok(Single { element: flat.element, shape: Vec::new(), data: flat.part(at, own)? })
            });
            let parts = parts.collect::<Result<Vec<_>>>()?;
            let whole = Flat::of(&parts)?;
            Ok((at.checked_add(own).ok_or_else(too_large)?, whole.part(0, len)?))
        };
        let (next, data) = take().map_err(|error: Error| error.in_tensor(name))?;
        found.push(Found { name: name.clone(), element: first.element, shape: shape.clone(), data });
        at = next;
    }
    if at != first.len() {
        let message = format!("its parameters are {at} elements of each rank, which has {}", first.len());
        return Err(malformed(&message));
    }
    Ok(())
}

fn elements(shape: &[usize]) -> Result<u64> {
    let product = shape.iter().try_fold(1_u64, |product, &dim| product.checked_mul(dim as u64));
    product.ok_or_else(too_large)
}

fn too_large() -> Error {
    Error::new(ErrorKind::Overflow, "it is more bytes than a file can have")
}

fn malformed(what: &str) -> Error {
    Error::new(ErrorKind::Malformed, what)
}
