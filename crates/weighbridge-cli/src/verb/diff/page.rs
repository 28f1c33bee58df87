//! The page of two checkpoints.

use std::path::{Path, PathBuf};

use anyhow::Result;
use weighbridge::{Checkpoint, Names};
use weighbridge_page::diff::{self, Change, Difference, Entry, Renamed};
use weighbridge_page::{Shown, Survey};

use super::structure::{Changed, Structure};
use super::values::Moved;
use crate::load::name_of;
use crate::term::Term;
use crate::verb::inspect::page;

/// Writes it; `values` are those of all tensors, if they were compared.
pub(super) fn write(
    html: &Path,
    sides: [(&PathBuf, &Checkpoint); 2],
    structure: &Structure<'_>,
    values: Option<&[Moved<'_>]>,
    names: &Names,
    term: &Term,
) -> Result<()> {
    let titles = titles(sides.map(|(path, _)| path));
    let [a, b] = [0, 1].map(|side| {
        let (path, checkpoint) = sides[side];
        Survey::new(titles[side].as_str(), path.display().to_string(), checkpoint, checkpoint, names)
            .showing(Shown::Weights)
    });
    let change = |moved: &Moved<'_>| Change {
        differing: moved.differing,
        values: moved.values,
        max_absolute: moved.max_absolute,
        distance: moved.distance,
        norm: moved.norm,
        cosine: moved.cosine,
    };
    let changes = values.map(|values| values.iter().map(|moved| (moved.name, change(moved))).collect());
    let metadata = structure.metadata.iter().map(|&Changed { name, a, b }| Entry { name, a, b }).collect();
    let renamed = structure.renamed.iter().map(|hint| Renamed { from: hint.from, to: hint.to }).collect();
    let difference = Difference { a: &a, b: &b, changes, metadata, renamed };
    page::write(html, term, |mut out| Ok(diff::write(&mut out, &difference)?))
}

/// What both are called; files of one name with their directories.
fn titles(paths: [&PathBuf; 2]) -> [String; 2] {
    let [a, b] = paths.map(|path| name_of(path));
    if a != b {
        return [a, b];
    }
    paths.map(|path| match path.parent().and_then(Path::file_name) {
        Some(parent) => format!("{}/{}", parent.to_string_lossy(), name_of(path)),
        None => name_of(path),
    })
}
