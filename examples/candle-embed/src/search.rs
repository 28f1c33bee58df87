//! How near two vectors are, and which are the nearest.

use crate::embed::Embeddings;
use crate::sentence::Similarity;

/// A text with its score.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Ranked {
    /// Its place among all, from 0.
    pub(crate) index: usize,
    pub(crate) score: f32,
}

/// The texts that are nearest to a query, the best first; of equal ones those that come first.
pub(crate) fn nearest(
    query: &[f32],
    texts: &Embeddings,
    similarity: Similarity,
    top: Option<usize>,
) -> Vec<Ranked> {
    let ranked = |(index, text)| Ranked { index, score: similarity.score(query, text) };
    let mut ranking: Vec<_> = texts.rows().enumerate().map(ranked).collect();
    ranking.sort_by(|a, b| b.score.total_cmp(&a.score));
    ranking.truncate(top.unwrap_or(usize::MAX));
    ranking
}

impl Similarity {
    /// Summed in double precision.
    #[expect(clippy::cast_possible_truncation, reason = "a score has no more digits than the vectors")]
    pub(crate) fn score(self, a: &[f32], b: &[f32]) -> f32 {
        let sum = |of: fn(f64, f64) -> f64| -> f64 {
            a.iter().zip(b).map(|(&x, &y)| of(f64::from(x), f64::from(y))).sum()
        };
        let score = match self {
            // A vector of zeros is at right angles to everything.
            Self::Cosine => {
                let lengths = (sum(|x, _| x * x) * sum(|_, y| y * y)).sqrt();
                sum(|x, y| x * y) / lengths.max(f64::MIN_POSITIVE)
            }
            Self::Dot => sum(|x, y| x * y),
            Self::Euclidean => -sum(|x, y| (x - y).powi(2)).sqrt(),
            Self::Manhattan => -sum(|x, y| (x - y).abs()),
        };
        score as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_by_hand() {
        let cosine = |a: [f32; 2], b: [f32; 2]| Similarity::Cosine.score(&a, &b);
        assert_eq!(cosine([3.0, 4.0], [6.0, 8.0]), 1.0);
        assert_eq!(cosine([3.0, 4.0], [-3.0, -4.0]), -1.0);
        assert_eq!(cosine([1.0, 0.0], [0.0, 5.0]), 0.0);
        assert_eq!(cosine([0.0, 0.0], [0.0, 5.0]), 0.0);
        let of = |similarity: Similarity| similarity.score(&[1.0, 2.0], &[4.0, 6.0]);
        assert_eq!(of(Similarity::Dot), 16.0);
        assert_eq!(of(Similarity::Euclidean), -5.0);
        assert_eq!(of(Similarity::Manhattan), -7.0);
    }

    #[test]
    fn the_nearest_come_first_and_equals_in_their_order() {
        let texts = Embeddings { dimensions: 2, values: vec![0.0, 1.0, 1.0, 0.0, 0.0, 2.0] };
        let order = |similarity, top| -> Vec<usize> {
            nearest(&[0.0, 3.0], &texts, similarity, top).iter().map(|ranked| ranked.index).collect()
        };
        assert_eq!(order(Similarity::Cosine, None), [0, 2, 1]);
        assert_eq!(order(Similarity::Dot, Some(2)), [2, 0]);
        assert_eq!(order(Similarity::Euclidean, Some(9)), [2, 0, 1]);
    }
}
