//! Whether the shards of a checkpoint hold what its index says.

use std::path::Path;

use super::catalog::Catalog;
use super::warning::Warning;
use crate::error::{Error, ErrorKind, Result};
use crate::index::Index;

/// At most this many duplicates have a warning each; a hostile index could list millions.
const MOST: usize = 64;

/// What is wrong without standing in the way: duplicates that are not used, and tensors that are not listed.
///
/// # Errors
///
/// Fails when a tensor is not in the shard that the index names.
pub(super) fn check(catalog: &Catalog, path: &Path, index: &Index) -> Result<Vec<Warning>> {
    for (tensor, shard_name) in index.weights() {
        let found = catalog.find(tensor);
        if found.map(|found| found.shard as usize) == index.shard_number(shard_name) && found.is_some() {
            continue;
        }
        let place = match found.and_then(|found| catalog.at(found)) {
            Some(found) => format!("but it is in {:?}", found.shard().name()),
            None => "which does not hold it".to_owned(),
        };
        let message = format!("the index places it in {shard_name:?}, {place}");
        return Err(Error::new(ErrorKind::MissingTensor, message).in_tensor(tensor).in_file(path));
    }
    let mut warnings = duplicates(catalog, path);
    let unlisted = catalog.len().saturating_sub(index.weights().len());
    if unlisted > 0 {
        let message = format!("{unlisted} tensors in its shards are not listed");
        warnings.push(Warning::new(Some(path), None, message));
    }
    Ok(warnings)
}

/// The duplicates that are not used, because the index names another shard.
fn duplicates(catalog: &Catalog, path: &Path) -> Vec<Warning> {
    let unused = catalog.unused().iter().filter_map(|&index| catalog.at(index));
    let warning = |tensor: super::TensorRef<'_>| {
        let used = catalog.find(tensor.name()).map(|index| catalog.shard(index).name_beside(tensor.shard()));
        let used = used.unwrap_or_default();
        let message = format!("it is not used, because the index says that {used:?} holds this tensor");
        Warning::new(tensor.shard().label(), Some(tensor.name()), message)
    };
    let mut warnings: Vec<_> = unused.take(MOST).map(warning).collect();
    if let Some(more) = catalog.unused().len().checked_sub(MOST).filter(|&more| more > 0) {
        let message =
            format!("{more} more tensors of its shards are not used, because it names other shards");
        warnings.push(Warning::new(Some(path), None, message));
    }
    warnings
}
