//! Opening the checkpoints that the command line names.

use std::path::Path;

use anyhow::{Result, anyhow};
use weighbridge::Checkpoint;
use weighbridge_convert::{Foreign, Format, Opened, Options, open_any_with};

use crate::show::{bytes, plural, safe};
use crate::term::Term;

/// Opens a file, a directory, an index or a repository of the cache, and passes on its warnings. It must be safetensors.
pub(crate) fn open(location: &Path, term: &Term) -> Result<Checkpoint> {
    let checkpoint = Checkpoint::open(location).map_err(|error| match foreign(location) {
        Ok(Some(format)) => {
            anyhow!("{}: {format}; `weighbridge convert` makes safetensors of it", location.display())
        }
        _ => error.into(),
    })?;
    tell(location, &checkpoint, term);
    Ok(checkpoint)
}

/// Opens a checkpoint to look at: what is not safetensors is seen as `convert` would write it.
pub(crate) fn look(location: &Path, term: &Term) -> Result<Checkpoint> {
    let (checkpoint, foreign) = any(location, &Options::new())?;
    tell(location, &checkpoint, term);
    if let Some(foreign) = foreign {
        term.detail(format_args!("{}: {}, as convert would write it", location.display(), foreign.format()));
        foreign.notes().iter().for_each(|note| term.detail(safe(&note.to_string())));
    }
    Ok(checkpoint)
}

/// Opens safetensors, or what else is read.
pub(crate) fn any(location: &Path, options: &Options) -> Result<(Checkpoint, Option<Foreign>)> {
    Ok(match open_any_with(location, options)? {
        Opened::Safetensors(checkpoint) => (checkpoint, None),
        Opened::Foreign(foreign) => (foreign.checkpoint().clone(), Some(foreign)),
    })
}

/// The format of a file that is not meant to be safetensors.
fn foreign(location: &Path) -> weighbridge::Result<Option<Format>> {
    let name = location.to_string_lossy().to_lowercase();
    let is_ours = name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json");
    if is_ours { Ok(None) } else { Format::of_file(location) }
}

fn tell(location: &Path, checkpoint: &Checkpoint, term: &Term) {
    for warning in checkpoint.warnings() {
        term.warn(safe(warning));
    }
    let (tensors, shards) = (plural(checkpoint.len(), "tensor"), plural(checkpoint.shards().len(), "file"));
    let size = bytes(checkpoint.byte_len());
    term.detail(format_args!("{}: {tensors} in {shards}, {size}", location.display()));
}

/// Tensors in the order of their names, numbers in them by value: `layers.2` before `layers.10`.
pub(crate) fn by_name(checkpoint: &Checkpoint) -> Vec<weighbridge::TensorRef<'_>> {
    let mut tensors: Vec<_> = checkpoint.tensors().collect();
    tensors.sort_by(|a, b| natural(a.name(), b.name()));
    tensors
}

/// Compares texts with the numbers in them by value.
pub(crate) fn natural(a: &str, b: &str) -> std::cmp::Ordering {
    let (mut left, mut right) = (a.as_bytes(), b.as_bytes());
    loop {
        let (Some(&l), Some(&r)) = (left.first(), right.first()) else {
            // Equal but for leading zeros: the texts themselves decide, so that the order is total.
            return left.len().cmp(&right.len()).then_with(|| a.cmp(b));
        };
        if l.is_ascii_digit() && r.is_ascii_digit() {
            let ((l, rest_left), (r, rest_right)) = (number(left), number(right));
            let order = l.len().cmp(&r.len()).then_with(|| l.cmp(r));
            if order.is_ne() {
                return order;
            }
            (left, right) = (rest_left, rest_right);
        } else if l != r {
            return l.cmp(&r);
        } else {
            (left, right) = (&left[1..], &right[1..]);
        }
    }
}

/// The digits at the start, without leading zeros, and what is behind them.
fn number(text: &[u8]) -> (&[u8], &[u8]) {
    let zeros = text.iter().take_while(|&&byte| byte == b'0').count();
    let digits = text[zeros..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    (&text[zeros..zeros + digits], &text[zeros + digits..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cmp::Ordering::{Equal, Greater, Less};

    #[test]
    fn numbers_count_by_value() {
        assert_eq!(natural("layers.2.w", "layers.10.w"), Less);
        assert_eq!(natural("layers.10", "layers.9.w"), Greater);
        assert_eq!(natural("a", "b"), Less);
        assert_eq!(natural("a.1", "a.1"), Equal);
        assert_eq!(natural("a.01", "a.1"), Less);
        assert_eq!(natural("a", "a.1"), Less);
    }
}
