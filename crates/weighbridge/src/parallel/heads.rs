//! Which attention heads a rank has.

use std::ops::Range;

use crate::error::{Error, ErrorKind, Result};

/// The attention heads of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Heads {
    pub(super) query: usize,
    /// Of keys, and as many of values.
    pub(super) kv: usize,
}

/// Those of a rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OfRank {
    pub(super) query: Range<usize>,
    pub(super) kv: Range<usize>,
}

impl Heads {
    pub(super) fn new(query: usize, kv: usize) -> Result<Self> {
        if query == 0 || kv == 0 || query % kv != 0 {
            let message = format!(
                "{query} attention heads cannot share {kv} heads of keys and values: each of these has equally many"
            );
            return Err(Error::new(ErrorKind::Value, message));
        }
        Ok(Self { query, kv })
    }

    /// The heads of rank `rank` of `world`. All heads of queries of a rank have equally many to a head of keys and values.
    pub(super) fn of_rank(self, rank: usize, world: usize) -> Result<OfRank> {
        let group = self.query / self.kv;
        if world <= self.kv {
            let kv = even(self.kv, rank, world)?;
            return Ok(OfRank { query: kv.start * group..kv.end * group, kv });
        }
        // Several ranks for a head of keys and values, which share its heads of queries.
        for head in 0..self.kv {
            let ranks = even(world, head, self.kv)?;
            if ranks.contains(&rank) {
                let own = even(group, rank - ranks.start, ranks.len())
                    .map_err(|_| too_few(self.query, "attention heads", world))?;
                let query = head * group + own.start..head * group + own.end;
                return Ok(OfRank { query, kv: head..head + 1 });
            }
        }
        Err(Error::new(ErrorKind::Internal, format!("there is no rank {rank} of {world}")))
    }
}

/// The units of rank `rank` of `world`: the first ranks have one more than the others where they are not equal.
pub(super) fn even(units: usize, rank: usize, world: usize) -> Result<Range<usize>> {
    if units < world {
        return Err(too_few(units, "units", world));
    }
    let (share, more) = (units / world, units % world);
    let start = rank * share + rank.min(more);
    Ok(start..start + share + usize::from(rank < more))
}

/// The units of rank `rank` of `world` as `torch.chunk` has them: all ranks have the same number rounded up, the last ones
/// what is left.
pub(super) fn chunk(units: usize, rank: usize, world: usize) -> Result<Range<usize>> {
    let share = units.div_ceil(world);
    let start = rank * share;
    if start >= units {
        return Err(too_few(units, "units", world));
    }
    Ok(start..units.min(start + share))
}

fn too_few(units: usize, what: &str, world: usize) -> Error {
    let message = format!("{units} {what} are too few for {world} ranks: some would have nothing");
    Error::new(ErrorKind::Slice, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_head_is_in_one_rank_and_has_its_keys_there() {
        for (query, kv, world) in [
            (32, 8, 8),
            (32, 8, 3),
            (32, 8, 16),
            (32, 8, 32),
            (12, 3, 4),
            (7, 1, 3),
            (4, 4, 4),
            (64, 8, 24),
            (16, 16, 5),
        ] {
            let heads = Heads::new(query, kv).unwrap();
            let mut next = 0;
            for rank in 0..world {
                let own = heads.of_rank(rank, world).unwrap();
                assert_eq!(own.query.start, next);
                assert!(!own.query.is_empty() && !own.kv.is_empty());
                next = own.query.end;
                let group = query / kv;
                assert_eq!(own.query.start / group, own.kv.start);
                assert_eq!((own.query.end - 1) / group + 1, own.kv.end);
                // A model repeats each of its keys equally often.
                assert!(own.query.len() % own.kv.len() == 0, "{query} {kv} {world} {own:?}");
            }
            assert_eq!(next, query);
        }
        assert!(Heads::new(6, 4).is_err());
        assert!(Heads::new(4, 2).unwrap().of_rank(0, 5).is_err());
    }

    #[test]
    fn parts_follow_each_other() {
        for (units, world) in [(10, 4), (8, 8), (9, 2), (1, 1), (1000, 7)] {
            for cut in [even, chunk] {
                let parts: Vec<_> = (0..world).map(|rank| cut(units, rank, world).unwrap()).collect();
                assert!(parts.windows(2).all(|pair| pair[0].end == pair[1].start && !pair[1].is_empty()));
                assert_eq!((parts[0].start, parts[world - 1].end), (0, units));
            }
        }
        assert_eq!(even(10, 3, 4).unwrap(), 8..10);
        assert_eq!(chunk(10, 3, 4).unwrap(), 9..10);
        assert!(even(3, 0, 4).is_err() && chunk(5, 3, 4).is_err());
    }
}
