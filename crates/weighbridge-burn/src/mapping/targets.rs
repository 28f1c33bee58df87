//! What a module's files have: which parameters go into which tensor.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use weighbridge::{Error, ErrorKind, Result};

use super::{Mapping, stored_shape_of, swapped};
use crate::convention::{Candidate, Portion};
use crate::walk::Site;

/// A tensor of a file, and what goes into it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) name: String,
    pub(crate) shares: Vec<Share>,
    /// The dimension along which the shares are joined.
    pub(crate) axis: usize,
}

/// A parameter, or a part of one, that goes into a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    /// The index of the parameter among the sites.
    pub(crate) site: usize,
    /// The part of it along the target's axis.
    pub(crate) range: Option<Range<usize>>,
    pub(crate) transposed: bool,
}

impl Share {
    /// Its shape in the file.
    pub(crate) fn shape(&self, sites: &[Site], axis: usize) -> Vec<usize> {
        let mut shape = stored_shape_of(&sites[self.site], self.transposed);
        if let (Some(size), Some(range)) = (shape.get_mut(axis), &self.range) {
            *size = range.len();
        }
        shape
    }
}

impl Mapping {
    /// What a module's files have, in the order of its parameters; tied tensors that have to be written come
    /// last.
    ///
    /// # Errors
    ///
    /// Fails when a parameter is loaded through an operation, when shares of a tensor are missing or laid out
    /// differently, and when a layer cannot be divided as it should be.
    pub(crate) fn targets(&self, sites: &[Site]) -> Result<Vec<Target>> {
        let mut targets: Vec<Target> = Vec::new();
        // The tensors that are put together: by name, the index of each in `targets`, and its shares by their
        // number.
        let mut together: HashMap<String, (usize, Vec<Option<Share>>)> = HashMap::new();
        let mut tied = Vec::new();
        for (number, site) in sites.iter().enumerate() {
            self.check_operation(site)?;
            let Some(Candidate { name, portion, transposed, axis }) =
                self.candidates(site).into_iter().next()
            else {
                continue;
            };
            let whole = Share { site: number, range: None, transposed };
            if self.is_tied(&name) {
                tied.push(Target { name, shares: vec![whole], axis });
                continue;
            }
            let (name, portion) = match portion {
                Some(portion) => (name, Some(portion)),
                None => self.fused_with(name),
            };
            if let Some(Portion { index, of }) = portion {
                let (target, shares) = together.entry(name.clone()).or_insert_with(|| {
                    targets.push(Target { name: name.clone(), shares: Vec::new(), axis });
                    (targets.len() - 1, vec![None; of])
                });
                if targets.get(*target).is_some_and(|target| target.axis != axis) {
                    let message =
                        "the layers that go into it are laid out differently: one `Row`, another `Col`";
                    return Err(Error::new(ErrorKind::Shape, message).in_tensor(&name));
                }
                if let Some(share) = shares.get_mut(index) {
                    *share = Some(whole);
                }
                continue;
            }
            match self.divided(site, &whole, &name, axis)? {
                Some(parts) => targets.extend(parts),
                None => targets.push(Target { name, shares: vec![whole], axis }),
            }
        }
        for (name, (target, shares)) in together {
            let shares: Option<Vec<_>> = shares.into_iter().collect();
            let Some(shares) = shares else {
                let message = "the module does not have all the layers that go into it";
                return Err(Error::new(ErrorKind::MissingTensor, message).in_tensor(&name));
            };
            targets[target].shares = shares;
        }
        // A tied tensor is written if the file does not have the one that it is tied to.
        let names: HashSet<_> = targets.iter().map(|target| target.name.clone()).collect();
        let has_other =
            |name: &str| self.tied.iter().any(|(tied, other)| tied == name && names.contains(other));
        targets.extend(tied.into_iter().filter(|target| !has_other(&target.name)));
        Ok(targets)
    }

    fn check_operation(&self, site: &Site) -> Result<()> {
        let path = site.path();
        match self.operation_for_path(&path) {
            None => Ok(()),
            Some(_) => {
                let message = "it is loaded through an operation, which cannot be undone; save it with a mapping without one";
                Err(Error::new(ErrorKind::Unsupported, message).in_tensor(&path))
            }
        }
    }

    /// The name of the tensor that holds this one and others, and which portion it is.
    fn fused_with(&self, name: String) -> (String, Option<Portion>) {
        for (one, parts) in &self.fused {
            let found =
                parts.iter().enumerate().find_map(|(index, part)| Some((swapped(&name, part, one)?, index)));
            if let Some((fused, index)) = found {
                return (fused, Some(Portion { index, of: parts.len() }));
            }
        }
        (name, None)
    }

    /// The tensors that a layer is divided into.
    fn divided(&self, site: &Site, whole: &Share, name: &str, axis: usize) -> Result<Option<Vec<Target>>> {
        let separate = self.separate.iter().find_map(|(one, parts)| {
            let names: Option<Vec<_>> =
                parts.iter().map(|(part, size)| Some((swapped(name, one, part)?, *size))).collect();
            names
        });
        let Some(parts) = separate else { return Ok(None) };
        let shape = stored_shape_of(site, whole.transposed);
        let outputs = shape.get(axis).copied().unwrap_or_default();
        let equal = outputs / parts.len().max(1);
        let sizes: Vec<_> = parts.iter().map(|(_, size)| size.unwrap_or(equal)).collect();
        if sizes.iter().sum::<usize>() != outputs {
            let message = format!("its {outputs} outputs cannot be divided into {sizes:?}");
            return Err(Error::new(ErrorKind::Shape, message).in_tensor(name));
        }
        let mut start = 0;
        let targets = parts.into_iter().zip(sizes).map(|((name, _), size)| {
            let share = Share { range: Some(start..start + size), ..whole.clone() };
            start += size;
            Target { name, shares: vec![share], axis }
        });
        Ok(Some(targets.collect()))
    }

    fn is_tied(&self, name: &str) -> bool {
        self.tied.iter().any(|(tied, _)| tied == name)
    }
}
