//! A checkpoint of shards that are open, wherever they lie.

use std::path::Path;

use super::catalog::{Catalog, Duplicates};
use super::home::Home;
use super::{Checkpoint, Shard, listed};
use crate::error::{Error, ErrorKind, Result};
use crate::index::Index;

/// Of shards that an index does not name.
pub(super) fn unlisted(shards: Vec<Shard>, home: Option<Home>) -> Result<Checkpoint> {
    let remedy = "remove one of the files, or write an index that says which of them holds it";
    let catalog = Catalog::of(shards, &Duplicates::Refuse(remedy))?;
    Ok(Checkpoint::with_header_warnings(catalog, home, Vec::new()))
}

/// Of the shards that an index names.
pub(super) fn listed(
    shards: Result<Vec<Shard>>,
    index: &Index,
    path: &Path,
    home: Option<Home>,
) -> Result<Checkpoint> {
    let shards = shards.map_err(|error| match (error.kind(), error.file()) {
        (ErrorKind::NotFound, Some(shard)) => {
            let message = format!("the shard {:?} that it names is not there", shard.display());
            Error::new(ErrorKind::MissingShard, message).with_source(error).in_file(path)
        }
        _ => error,
    })?;
    let catalog = Catalog::of(shards, &Duplicates::AsListed(index))?;
    let warnings = listed::check(&catalog, path, index)?;
    Ok(Checkpoint::with_header_warnings(catalog, home, warnings))
}
