//! The dimensions of all shapes of a header, in memory that grows without moving.
//!
//! A vector that doubles holds its old and its new memory while it moves, which for a header that consists of
//! dimensions is eight times the header. Here a shape lies in one chunk, and chunks stay where they are.

/// Shapes, each found by the place of its first dimension among all.
#[derive(Debug, Default)]
pub(super) struct Dims {
    chunks: Vec<Chunk>,
    len: usize,
}

#[derive(Debug)]
struct Chunk {
    /// The place of its first dimension.
    first: usize,
    dims: Vec<usize>,
}

/// Shapes with more dimensions get a chunk of their own, so that no chunk's rest is left empty for them.
const LARGE: usize = 1024;

/// Dimensions that a shared chunk has at the least and at most.
const SHARED: (usize, usize) = (64, 1 << 16);

impl Dims {
    /// Makes room for a shape of at most `count` dimensions; `more` at most can come in the whole header.
    /// Returns the place of its first.
    pub(super) fn begin(&mut self, count: usize, more: usize) -> usize {
        let room = self.chunks.last().map_or(0, |chunk| chunk.dims.capacity() - chunk.dims.len());
        if room < count || self.chunks.is_empty() {
            let shared = self.len.clamp(SHARED.0, SHARED.1).min(more).max(count);
            let capacity = if count > LARGE { count } else { shared };
            self.chunks.push(Chunk { first: self.len, dims: Vec::with_capacity(capacity) });
        }
        self.len
    }

    /// Appends a dimension to the shape that was begun last.
    pub(super) fn push(&mut self, dim: usize) {
        if let Some(chunk) = self.chunks.last_mut() {
            chunk.dims.push(dim);
            self.len += 1;
        }
    }

    /// The place behind the last dimension.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The `rank` dimensions from `first` on.
    pub(super) fn shape(&self, first: usize, rank: usize) -> &[usize] {
        // An empty shape may stand where a later chunk begins; any empty slice will do for it.
        let behind = self.chunks.partition_point(|chunk| chunk.first <= first);
        let chunk = behind.checked_sub(1).and_then(|place| self.chunks.get(place));
        chunk.and_then(|chunk| chunk.dims.get(first - chunk.first..)?.get(..rank)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_of_all_sizes_are_found_again() {
        let ranks = [0, 2, 63, 0, 1, 2000, 0, 3, 500, 0, 1025, 4, 64, 1];
        let mut dims = Dims::default();
        let mut places = Vec::new();
        for rank in ranks {
            let first = dims.begin(rank, 1 << 20);
            (0..rank).for_each(|i| dims.push(rank * 10_000 + i));
            places.push((first, dims.len() - first));
        }
        for (rank, (first, len)) in ranks.into_iter().zip(places) {
            let expected: Vec<_> = (0..rank).map(|i| rank * 10_000 + i).collect();
            assert_eq!(dims.shape(first, len), expected);
        }
    }
}
