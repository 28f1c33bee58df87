//! The names under which stored tensors are looked for.

use std::collections::HashMap;

use weighbridge::{Checkpoint, Error, ErrorKind, Names, Renames, Result, TensorRef};

use crate::metadata::in_shard;

/// How stored names become the names that a module asks for: renamed first, then renumbered if that was asked
/// for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Naming {
    pub(crate) renames: Renames,
    /// Whether indices are made contiguous: `fc.0`, `fc.2` become `fc.0`, `fc.1`.
    pub(crate) is_contiguous: bool,
    /// The lists that keep their indices, by the names before them.
    kept: Option<Names>,
}

/// A [`Naming`] for the names of one checkpoint.
pub(crate) struct Named<'n> {
    renames: &'n Renames,
    indices: Option<Indices>,
}

impl Naming {
    /// Has these lists keep their indices, and those that were given before.
    pub(crate) fn keep_indices(&mut self, lists: Names) {
        self.kept = Some(match self.kept.take() {
            Some(others) => others.or(lists),
            None => lists,
        });
    }

    /// Looks at the names of the checkpoint, if indices are to be renumbered.
    pub(crate) fn of<'n>(&'n self, checkpoint: &Checkpoint) -> Named<'n> {
        let names = || checkpoint.tensors().map(|tensor| self.renames.apply(tensor.name()));
        let indices = self.is_contiguous.then(|| Indices::of(names(), self.kept.as_ref()));
        Named { renames: &self.renames, indices }
    }
}

impl Named<'_> {
    /// The name that a stored one becomes.
    pub(crate) fn apply(&self, stored: &str) -> String {
        let renamed = self.renames.apply(stored);
        match &self.indices {
            Some(indices) => indices.apply(&renamed),
            None => renamed,
        }
    }

    /// The tensors of the checkpoint by their new names.
    ///
    /// # Errors
    ///
    /// Fails when two tensors get one name.
    pub(crate) fn tensors<'c>(&self, checkpoint: &'c Checkpoint) -> Result<HashMap<String, TensorRef<'c>>> {
        let mut tensors: HashMap<String, TensorRef<'c>> = HashMap::with_capacity(checkpoint.len());
        for tensor in checkpoint.tensors() {
            let name = self.apply(tensor.name());
            if let Some(first) = tensors.get(&name) {
                let message = format!("{:?} and this one would both be named {name:?}", first.name());
                let error = Error::new(ErrorKind::DuplicateTensor, message).in_tensor(tensor.name());
                return Err(in_shard(error, tensor.shard()));
            }
            tensors.insert(name, tensor);
        }
        Ok(tensors)
    }
}

/// The indices that are in use, sorted, for each list: for the name before them.
struct Indices(HashMap<String, Vec<usize>>);

impl Indices {
    fn of(names: impl Iterator<Item = String>, kept: Option<&Names>) -> Self {
        let mut lists: HashMap<String, Vec<usize>> = HashMap::new();
        for name in names {
            for (list, index) in indices(&name) {
                if kept.is_some_and(|kept| kept.contains(list)) {
                    continue;
                }
                match lists.get_mut(list) {
                    Some(indices) => indices.push(index),
                    None => drop(lists.insert(list.to_owned(), vec![index])),
                }
            }
        }
        for indices in lists.values_mut() {
            indices.sort_unstable();
            indices.dedup();
        }
        Self(lists)
    }

    /// The name with each index replaced by its rank among those of its list. Lists go by the indices that
    /// the names came with, so an inner list is numbered by itself.
    fn apply(&self, name: &str) -> String {
        let mut renumbered = String::with_capacity(name.len());
        let mut rest = 0;
        for (list, index) in indices(name) {
            let Some(rank) = self.0.get(list).and_then(|indices| indices.binary_search(&index).ok()) else {
                continue;
            };
            let start = if list.is_empty() && !name.starts_with('.') { 0 } else { list.len() + 1 };
            renumbered.push_str(&name[rest..start]);
            renumbered.push_str(&rank.to_string());
            rest = start + name[start..].find('.').unwrap_or(name.len() - start);
        }
        renumbered.push_str(&name[rest..]);
        renumbered
    }
}

/// The parts of a name between dots that are numbers, each with the name before it.
fn indices(name: &str) -> impl Iterator<Item = (&str, usize)> {
    let mut start = 0;
    name.split('.').filter_map(move |part| {
        let list = name[..start].strip_suffix('.').unwrap_or_default();
        start += part.len() + 1;
        let is_number = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        Some((list, part.parse().ok().filter(|_| is_number)?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn renumbered(names: &[&str], kept: Option<Names>) -> Vec<String> {
        let indices = Indices::of(names.iter().map(|name| (*name).to_owned()), kept.as_ref());
        names.iter().map(|name| indices.apply(name)).collect()
    }

    #[test]
    fn gaps_are_closed() {
        let names = ["fc.0.weight", "fc.2.weight", "fc.2.bias", "fc.10.weight", "head.weight"];
        let expected = ["fc.0.weight", "fc.1.weight", "fc.1.bias", "fc.2.weight", "head.weight"];
        assert_eq!(renumbered(&names, None), expected);
    }

    #[test]
    fn each_list_is_numbered_by_itself() {
        let names = ["a.3.b.1.w", "a.3.b.5.w", "a.7.b.5.w", "2.w", "4", "x1.w", "a..2"];
        let expected = ["a.0.b.0.w", "a.0.b.1.w", "a.1.b.0.w", "0.w", "1", "x1.w", "a..0"];
        assert_eq!(renumbered(&names, None), expected);
    }

    #[test]
    fn lists_can_be_left_as_they_are() {
        let names = ["flows.2.in.4.w", "flows.4.in.1.w", "fc.2.w"];
        let expected = ["flows.2.in.0.w", "flows.4.in.0.w", "fc.0.w"];
        assert_eq!(renumbered(&names, Some(Names::regex("^flows$").unwrap())), expected);
    }

    #[test]
    fn a_number_too_large_for_an_index_is_a_name() {
        let names = ["a.99999999999999999999999.w", "a.+1.w", "a.7.w"];
        assert_eq!(renumbered(&names, None), ["a.99999999999999999999999.w", "a.+1.w", "a.0.w"]);
    }
}
