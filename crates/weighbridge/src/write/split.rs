//! Which tensor goes into which shard.

use std::collections::HashMap;

use crate::error::{Error, ErrorKind, Result};

/// A distribution of tensors over shards, exactly that of `huggingface_hub`
/// (`split_state_dict_into_shards_factory`).
///
/// Tensors are taken in order. One that is larger than a shard may be becomes a shard of its own at once; one
/// that does not fit the current shard begins the next. Tensors that share storage go where the first of them
/// went and count once.
///
/// ```
/// use weighbridge::write::Split;
///
/// let sizes = [(40, None), (100, None), (50, None), (20, None)];
/// assert_eq!(Split::new(sizes, 90).shards(), [vec![1], vec![0, 2], vec![3]]);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    shards: Vec<Vec<usize>>,
    total_size: u64,
}

impl Split {
    /// The size of a shard unless told otherwise: 5 GB, as in `huggingface_hub`.
    pub const DEFAULT_SIZE: u64 = 5_000_000_000;

    /// Distributes tensors, each given by its bytes and, where it shares storage with others, a number for
    /// that storage, over shards of at most `max_size` bytes.
    pub fn new(sizes: impl IntoIterator<Item = (u64, Option<u64>)>, max_size: u64) -> Self {
        let mut shards = Vec::new();
        let mut first_of = HashMap::new();
        let mut sharing = Vec::new();
        let (mut current, mut current_size, mut total_size) = (Vec::new(), 0_u64, 0_u64);
        for (place, (size, storage)) in sizes.into_iter().enumerate() {
            if let Some(storage) = storage {
                let first = *first_of.entry(storage).or_insert(place);
                if first != place {
                    sharing.push((first, place));
                    continue;
                }
            }
            total_size = total_size.saturating_add(size);
            if size > max_size {
                shards.push(vec![place]);
                continue;
            }
            if current_size.saturating_add(size) > max_size {
                shards.push(std::mem::take(&mut current));
                current_size = 0;
            }
            current.push(place);
            current_size += size;
        }
        if !current.is_empty() || shards.is_empty() {
            shards.push(current);
        }
        let mut shard_of = HashMap::new();
        for (number, shard) in shards.iter().enumerate() {
            shard_of.extend(shard.iter().map(|&place| (place, number)));
        }
        for (first, place) in sharing {
            if let Some(&number) = shard_of.get(&first) {
                shards[number].push(place);
            }
        }
        Self { shards, total_size }
    }

    /// The shards, each with the places of its tensors in the order in which they were given. There is one at
    /// least.
    pub fn shards(&self) -> &[Vec<usize>] {
        &self.shards
    }

    /// The bytes of all tensors, with shared storage counted once.
    pub fn total_size(&self) -> u64 {
        self.total_size
    }
}

/// Reads a number of bytes: `5GB` is 5,000,000,000 and `5GiB` 5,368,709,120, as are `0.5TB`, `200 MB` and
/// `1048576`. Units are decimal, as in `huggingface_hub`, unless they have an `i`; case makes no difference.
///
/// # Errors
///
/// Fails with [`ErrorKind::Size`] for other texts.
pub fn parse_size(text: &str) -> Result<u64> {
    let wrong = || {
        let shown: String = text.chars().take(32).collect();
        let message = format!("{shown:?} is not a number of bytes; write 5GB, 5GiB or 5000000000");
        Error::new(ErrorKind::Size, message)
    };
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim().to_ascii_lowercase();
    let factor = match &*unit {
        "" | "b" => 1,
        _ => {
            let power = 1 + "kmgtp".find(unit.chars().next().unwrap_or_default()).ok_or_else(wrong)? as u32;
            match &unit[1..] {
                "b" => 1000_u64.pow(power),
                "ib" => 1024_u64.pow(power),
                _ => return Err(wrong()),
            }
        }
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let plain = |digits: &str| digits.bytes().all(|digit| digit.is_ascii_digit()) && digits.len() <= 18;
    if whole.len() + fraction.len() == 0 || !plain(whole) || !plain(fraction) {
        return Err(wrong());
    }
    let read = |digits: &str| digits.parse::<u128>().unwrap_or(0);
    let bytes = read(whole) * u128::from(factor)
        + read(fraction) * u128::from(factor) / 10_u128.pow(fraction.len() as u32);
    u64::try_from(bytes).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(sizes: &[u64], max: u64) -> Vec<Vec<usize>> {
        Split::new(sizes.iter().map(|&size| (size, None)), max).shards().to_vec()
    }

    #[test]
    fn greedy_in_order() {
        assert_eq!(split(&[], 10), [Vec::<usize>::new()]);
        assert_eq!(split(&[3, 3, 3], 9), [vec![0, 1, 2]]);
        assert_eq!(split(&[3, 3, 4], 9), [vec![0, 1], vec![2]]);
        assert_eq!(split(&[11], 10), [vec![0]]);
        assert_eq!(split(&[5, 11, 5, 1], 10), [vec![1], vec![0, 2], vec![3]]);
        assert_eq!(split(&[0, 1, 0], 0), [vec![1], vec![0, 2]]);
    }

    #[test]
    fn shared_storage_counts_once() {
        let split = Split::new([(6, Some(1)), (6, None), (6, Some(1)), (20, Some(2)), (20, Some(2))], 10);
        assert_eq!(split.shards(), [vec![0, 2], vec![3, 4], vec![1]]);
        assert_eq!(split.total_size(), 32);
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("5GB", 5_000_000_000),
            ("5GiB", 5 << 30),
            ("200 mb", 200_000_000),
            ("1.5KiB", 1536),
            (".5KB", 500),
            ("0.1GB", 100_000_000),
            (" 17 ", 17),
            ("17B", 17),
            ("0", 0),
            ("3pb", 3_000_000_000_000_000),
        ] {
            assert_eq!(parse_size(text).unwrap(), bytes, "{text}");
        }
        for text in ["", "GB", "5G", "5XB", "-1GB", "1e9", "5GBB", "1.2.3KB", "99999999PB", ".", "5 G B", "é"]
        {
            assert_eq!(parse_size(text).unwrap_err().kind(), ErrorKind::Size, "{text}");
        }
    }
}
