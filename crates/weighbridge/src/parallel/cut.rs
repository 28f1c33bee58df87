//! What a rule means for a tensor of known shape.

use std::ops::Range;

use super::heads::{Heads, chunk, even};
use super::share::{Cut, Share, Unit};
use super::stages::expert_of;
use crate::error::{Error, ErrorKind, Result};

/// What a rank has of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Held {
    /// All of it.
    Whole,
    /// These ranges of a dimension, one after the other, and zeros behind them.
    Part {
        /// The dimension.
        dim: usize,
        /// The ranges.
        ranges: Vec<Range<usize>>,
        /// How many rows of zeros.
        padding: usize,
    },
}

impl Held {
    /// The length of the dimension that is cut.
    pub(super) fn len(&self) -> Option<usize> {
        match self {
            Self::Whole => None,
            Self::Part { ranges, padding, .. } => {
                Some(ranges.iter().map(Range::len).sum::<usize>() + padding)
            }
        }
    }

    /// The shape that a rank has of a tensor of `shape`.
    pub(super) fn shape(&self, shape: &[usize]) -> Vec<usize> {
        let mut own = shape.to_vec();
        if let (Self::Part { dim, .. }, Some(len)) = (self, self.len()) {
            own.iter_mut().skip(*dim).take(1).for_each(|size| *size = len);
        }
        own
    }
}

/// What ranks a tensor is cut for.
#[derive(Clone, Copy, Debug)]
pub(super) struct World {
    /// The ranks of a stage.
    pub(super) size: usize,
    pub(super) heads: Option<Heads>,
    /// Whether parts are those of `torch.chunk`.
    pub(super) chunks: bool,
}

impl World {
    fn split(self, units: usize, rank: usize) -> Result<Range<usize>> {
        if self.chunks { chunk(units, rank, self.size) } else { even(units, rank, self.size) }
    }

    fn heads(self) -> Result<Heads> {
        self.heads.ok_or_else(|| {
            let message = "its rule is about attention heads, whose number is not known: config.json does not say it; \
                           add a line `@heads HEADS KV_HEADS`";
            Error::new(ErrorKind::Value, message)
        })
    }

    /// What rank `rank` of a stage has; `None` if that is nothing. `experts` is the number of those that the tensor is one
    /// of, by its name.
    pub(super) fn held(
        self,
        share: Share,
        name: &str,
        shape: &[usize],
        experts: usize,
        rank: usize,
    ) -> Result<Option<Held>> {
        if self.size == 1 && !matches!(share, Share::Vocabulary(multiple) if multiple > 1) {
            return Ok(Some(Held::Whole));
        }
        match share {
            Share::Replicated => Ok(Some(Held::Whole)),
            Share::Cut(cut) => self.cut(cut, shape, rank).map(Some),
            Share::Vocabulary(multiple) => self.vocabulary(multiple, shape, rank).map(Some),
            Share::Experts => match expert_of(name) {
                Some((_, expert)) => {
                    let own = self.split(experts, rank)?;
                    Ok(own.contains(&expert).then_some(Held::Whole))
                }
                None => self.cut(Cut::dim(0), shape, rank).map(Some),
            },
        }
    }

    fn cut(self, cut: Cut, shape: &[usize], rank: usize) -> Result<Held> {
        let Some(dim) = cut.dim_of(shape)? else { return Ok(Held::Whole) };
        let size = shape[dim];
        let ranges = match cut.unit {
            Unit::Qkv => {
                let heads = self.heads()?;
                let all = heads.query + 2 * heads.kv;
                let unit = unit_of(size, all, cut, dim)?;
                let own = heads.of_rank(rank, self.size)?;
                let at =
                    |first: usize, own: &Range<usize>| (first + own.start) * unit..(first + own.end) * unit;
                vec![at(0, &own.query), at(heads.query, &own.kv), at(heads.query + heads.kv, &own.kv)]
            }
            unit => {
                let piece = unit_of(size, cut.pieces, cut, dim)?;
                let own = match unit {
                    Unit::Heads => {
                        let heads = self.heads()?;
                        scaled(heads.of_rank(rank, self.size)?.query, unit_of(piece, heads.query, cut, dim)?)
                    }
                    Unit::KvHeads => {
                        let heads = self.heads()?;
                        scaled(heads.of_rank(rank, self.size)?.kv, unit_of(piece, heads.kv, cut, dim)?)
                    }
                    Unit::Groups => {
                        let heads = self.heads()?;
                        let unit = unit_of(piece, heads.kv, cut, dim)?;
                        // Not those of several ranks: a group cannot be shared.
                        scaled(self.split(heads.kv, rank)?, unit)
                    }
                    Unit::Multiple(unit) => {
                        let units = unit_of(piece, 1, cut, dim)?.div_ceil(unit);
                        let own = scaled(self.split(units, rank)?, unit);
                        own.start..own.end.min(piece)
                    }
                    Unit::Qkv => {
                        return Err(Error::new(
                            ErrorKind::Internal,
                            "queries, keys and values are pieces already",
                        ));
                    }
                };
                (0..cut.pieces).map(|number| number * piece + own.start..number * piece + own.end).collect()
            }
        };
        Ok(Held::Part { dim, ranges, padding: 0 })
    }

    fn vocabulary(self, multiple: usize, shape: &[usize], rank: usize) -> Result<Held> {
        let Some(&rows) = shape.first() else {
            return Err(Error::new(ErrorKind::Shape, "its rule is `vocab`, but it has no dimension"));
        };
        let both = self.size / greatest_common_divisor(self.size, multiple);
        let share = both
            .checked_mul(multiple)
            .and_then(|step| rows.checked_next_multiple_of(step))
            .map(|padded| padded / self.size);
        let share = share
            .ok_or_else(|| Error::new(ErrorKind::Overflow, "the vocabulary does not fit this machine"))?;
        let (start, end) = ((rank * share).min(rows), ((rank + 1) * share).min(rows));
        let padding = share - (end - start);
        Ok(Held::Part { dim: 0, ranges: std::iter::once(start..end).collect(), padding })
    }

    /// The shape that a tensor has of which the ranks of a stage have these shapes, and what each has of it. Parts may have any
    /// sizes, unless heads are in several ranks.
    pub(super) fn joined(self, share: Share, parts: &[&[usize]]) -> Result<(Vec<usize>, Vec<Held>)> {
        let Some(first) = parts.first() else {
            return Err(Error::new(ErrorKind::Internal, "no rank has it"));
        };
        let whole = || Ok((first.to_vec(), vec![Held::Whole; parts.len()]));
        let cut = match share {
            Share::Replicated => return whole(),
            // Rows that were added cannot be told from others.
            Share::Experts | Share::Vocabulary(_) => Cut::dim(0),
            Share::Cut(cut) => cut,
        };
        let Some(dim) = cut.dim_of(first)? else { return whole() };
        let lengths: Vec<usize> = parts.iter().map(|part| part.get(dim).copied().unwrap_or(0)).collect();
        let in_several = match cut.unit {
            Unit::KvHeads => self.size > self.heads()?.kv,
            Unit::Qkv => true,
            _ => false,
        };
        let (len, ranges) =
            if in_several { self.of_heads(cut, &lengths)? } else { end_to_end(cut, &lengths)? };
        let mut shape = first.to_vec();
        shape[dim] = len;
        Ok((shape, ranges.into_iter().map(|ranges| Held::Part { dim, ranges, padding: 0 }).collect()))
    }

    /// What ranks have of heads, and the length of them all.
    fn of_heads(self, cut: Cut, lengths: &[usize]) -> Result<(usize, Vec<Vec<Range<usize>>>)> {
        let heads = self.heads()?;
        let own = heads.of_rank(0, self.size)?;
        let (own, all) = match cut.unit {
            Unit::Qkv => (own.query.len() + 2 * own.kv.len(), heads.query + 2 * heads.kv),
            _ => (own.kv.len() * cut.pieces, heads.kv * cut.pieces),
        };
        let fail = |rank: usize| {
            let message = format!(
                "its rule is `{cut}`, which {} of rank {rank} are not of the same model",
                lengths[rank]
            );
            Error::new(ErrorKind::Shape, message)
        };
        let unit =
            lengths[0].checked_div(own).filter(|unit| unit * own == lengths[0]).ok_or_else(|| fail(0))?;
        let len = unit.checked_mul(all).ok_or_else(too_long)?;
        let ranges = lengths.iter().enumerate().map(|(rank, length)| {
            match self.cut(cut_of_dim(cut), &[len], rank)? {
                Held::Part { ranges, .. } if ranges.iter().map(Range::len).sum::<usize>() == *length => {
                    Ok(ranges)
                }
                _ => Err(fail(rank)),
            }
        });
        Ok((len, ranges.collect::<Result<_>>()?))
    }
}

/// The same cut of a tensor that has no other dimension.
fn cut_of_dim(cut: Cut) -> Cut {
    Cut { along: super::share::Along::Dim(0), ..cut }
}

/// What ranks have whose parts follow each other, in each of the pieces that are packed; and the length of them all.
fn end_to_end(cut: Cut, lengths: &[usize]) -> Result<(usize, Vec<Vec<Range<usize>>>)> {
    let piece = lengths.iter().try_fold(0_usize, |sum, length| sum.checked_add(length / cut.pieces));
    let piece = piece.ok_or_else(too_long)?;
    if let Some(rank) = lengths.iter().position(|length| length % cut.pieces != 0) {
        let message = format!(
            "its rule is `{cut}`, but {} of rank {rank} are no {} equal parts",
            lengths[rank], cut.pieces
        );
        return Err(Error::new(ErrorKind::Shape, message));
    }
    let mut next = 0;
    let ranges = lengths.iter().map(|length| {
        let start = next;
        next += length / cut.pieces;
        (0..cut.pieces).map(|number| number * piece + start..number * piece + next).collect()
    });
    let ranges = ranges.collect();
    Ok((piece.checked_mul(cut.pieces).ok_or_else(too_long)?, ranges))
}

fn too_long() -> Error {
    Error::new(ErrorKind::Overflow, "the joined dimension does not fit this machine")
}

fn scaled(range: Range<usize>, unit: usize) -> Range<usize> {
    range.start * unit..range.end * unit
}

/// The length of one of `count` equal parts.
fn unit_of(size: usize, count: usize, cut: Cut, dim: usize) -> Result<usize> {
    if size.checked_rem(count) == Some(0) && size > 0 {
        return Ok(size / count);
    }
    let message = format!("its rule is `{cut}`, but {size} of dimension {dim} are no {count} equal parts");
    Err(Error::new(ErrorKind::Shape, message))
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn world(size: usize) -> World {
        World { size, heads: Some(Heads { query: 8, kv: 2 }), chunks: false }
    }

    fn ranges(world: World, share: &str, shape: &[usize]) -> Vec<(usize, Vec<Range<usize>>, usize)> {
        let held =
            (0..world.size).map(|rank| world.held(share.parse().unwrap(), "w", shape, 0, rank).unwrap());
        held.map(|held| match held {
            Some(Held::Part { dim, ranges, padding }) => (dim, ranges, padding),
            other => panic!("{other:?}"),
        })
        .collect()
    }

    #[test]
    #[expect(clippy::single_range_in_vec_init, reason = "lists of ranges")]
    fn tensors_are_cut_as_rules_say() {
        let two = world(2);
        assert_eq!(ranges(two, "column", &[7, 3]), [(0, vec![0..4], 0), (0, vec![4..7], 0)]);
        assert_eq!(ranges(two, "row", &[3, 8]), [(1, vec![0..4], 0), (1, vec![4..8], 0)]);
        assert_eq!(
            ranges(two, "column packed 2", &[8, 1]),
            [(0, vec![0..2, 4..6], 0), (0, vec![2..4, 6..8], 0)]
        );
        assert_eq!(ranges(two, "row by heads", &[1, 24]), [(1, vec![0..12], 0), (1, vec![12..24], 0)]);
        assert_eq!(ranges(two, "column by 4", &[10, 1]), [(0, vec![0..8], 0), (0, vec![8..10], 0)]);
        let qkv = ranges(two, "column by qkv", &[24]);
        assert_eq!(qkv, [(0, vec![0..8, 16..18, 20..22], 0), (0, vec![8..16, 18..20, 22..24], 0)]);
        assert_eq!(ranges(two, "vocab", &[5, 2]), [(0, vec![0..3], 0), (0, vec![3..5], 1)]);
        assert_eq!(ranges(two, "vocab 8", &[5, 2]), [(0, vec![0..4], 0), (0, vec![4..5], 3)]);
        assert_eq!(ranges(two, "experts", &[4, 2, 2]), [(0, vec![0..2], 0), (0, vec![2..4], 0)]);
        // More ranks than heads of keys: two have the same.
        let kv: Vec<_> =
            ranges(world(4), "column by kv_heads", &[6, 1]).into_iter().map(|part| part.1).collect();
        assert_eq!(kv, [[0..3], [0..3], [3..6], [3..6]]);
        let torch = World { chunks: true, ..world(4) };
        let parts: Vec<_> = ranges(torch, "column", &[10, 1]).into_iter().map(|part| part.1).collect();
        assert_eq!(parts, [[0..3], [3..6], [6..9], [9..10]]);
    }

    #[test]
    fn a_bias_of_rows_and_experts_by_name_are_whole() {
        let held = |share: &str, name, shape: &[usize], rank| {
            world(2).held(share.parse().unwrap(), name, shape, 4, rank)
        };
        assert_eq!(held("row", "o.bias", &[3], 1).unwrap(), Some(Held::Whole));
        assert_eq!(held("experts", "mlp.experts.1.up.weight", &[3], 0).unwrap(), Some(Held::Whole));
        assert_eq!(held("experts", "mlp.experts.1.up.weight", &[3], 1).unwrap(), None);
        assert!(held("3", "w", &[3], 0).is_err());
        assert!(held("column packed 2", "w", &[3, 1], 0).is_err());
        assert!(held("column by heads", "w", &[12, 1], 0).is_err());
        assert!(held("column", "w", &[], 0).is_err());
        assert!(held("column", "w", &[1, 4], 0).is_err());
    }

    #[test]
    fn the_whole_follows_from_the_parts() {
        for (size, share, shape) in [
            (2, "column", &[7, 3][..]),
            (2, "row", &[3, 8]),
            (4, "column by kv_heads", &[6, 1]),
            (2, "column by kv_heads", &[6, 1]),
            (4, "column by qkv", &[24]),
            (8, "column by qkv", &[24]),
            (3, "column packed 2", &[18, 2]),
            (4, "row by heads", &[2, 16]),
            (2, "experts", &[4, 2, 2]),
            (2, "row", &[5]),
        ] {
            let (world, share) = (world(size), share.parse().unwrap());
            let parts: Vec<_> = (0..size)
                .map(|rank| world.held(share, "w", shape, 0, rank).unwrap().unwrap().shape(shape))
                .collect();
            let parts: Vec<&[usize]> = parts.iter().map(|part| &**part).collect();
            let (joined, held) = world.joined(share, &parts).unwrap();
            assert_eq!(joined, shape, "{share}");
            for (rank, held) in held.into_iter().enumerate() {
                assert_eq!(Some(held), world.held(share, "w", shape, 0, rank).unwrap(), "{share}");
            }
        }
    }
}
