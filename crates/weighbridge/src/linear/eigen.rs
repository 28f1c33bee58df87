//! Eigenvalues and eigenvectors of small symmetric matrices.
//!
//! The matrix is made tridiagonal by reflections, and that diagonal by rotations (QL with implicit shifts), as in Golub and Van
//! Loan, *Matrix Computations*, 8.3. Vectors are kept as rows, so that each rotation combines two contiguous runs.

/// The eigenvalues of a symmetric matrix, largest first, and for each its vector, of length one. `None` if a number is not finite.
pub(crate) fn eigen(matrix: &[f64], count: usize) -> Option<(Vec<f64>, Vec<f64>)> {
    let mut matrix = matrix.to_vec();
    let (mut diagonal, mut beside, mut vectors) = tridiagonal(&mut matrix, count);
    let is_finite = diagonal.iter().chain(&beside).all(|value| value.is_finite());
    if !is_finite || !make_diagonal(&mut diagonal, &mut beside, &mut vectors, count) {
        return None;
    }
    let mut order: Vec<_> = (0..count).collect();
    order.sort_by(|&one, &other| diagonal[other].total_cmp(&diagonal[one]));
    let values = order.iter().map(|&at| diagonal[at]).collect();
    let vectors = order.iter().flat_map(|&at| vectors[at * count..][..count].to_vec()).collect();
    Some((values, vectors))
}

fn dot(one: &[f64], other: &[f64]) -> f64 {
    one.iter().zip(other).map(|(one, other)| one * other).sum()
}

/// The diagonal, what is beside it, and the rows `q` with `Q M Qᵀ` tridiagonal.
fn tridiagonal(matrix: &mut [f64], count: usize) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let mut beside = vec![0.0; count];
    // For each step the vector of its reflection, I - v vᵀ, from the next row on.
    let mut reflections: Vec<Vec<f64>> = Vec::new();
    for step in 0..count.saturating_sub(2) {
        let rest = count - step - 1;
        let mut vector: Vec<f64> = (step + 1..count).map(|row| matrix[row * count + step]).collect();
        let length = dot(&vector, &vector).sqrt();
        let first = vector[0];
        let target = if first > 0.0 { -length } else { length };
        vector[0] -= target;
        beside[step] = target;
        let square = dot(&vector, &vector);
        if square > 0.0 {
            let factor = (2.0 / square).sqrt();
            vector.iter_mut().for_each(|value| *value *= factor);
            let row_of = |row: usize| (step + 1 + row) * count + step + 1;
            let mut across: Vec<f64> =
                (0..rest).map(|row| dot(&matrix[row_of(row)..][..rest], &vector)).collect();
            let half = dot(&across, &vector) / 2.0;
            across.iter_mut().zip(&vector).for_each(|(across, value)| *across -= half * value);
            for row in 0..rest {
                let (one, other) = (vector[row], across[row]);
                let line = &mut matrix[row_of(row)..][..rest];
                for ((value, vector), across) in line.iter_mut().zip(&vector).zip(&across) {
                    *value -= one * across + other * vector;
                }
            }
        } else {
            vector.fill(0.0);
        }
        reflections.push(vector);
    }
    if count >= 2 {
        beside[count - 2] = matrix[(count - 1) * count + count - 2];
    }
    let diagonal = (0..count).map(|at| matrix[at * count + at]).collect();
    // Q is the product of the reflections, the last one applied first; as rows.
    let mut rows = vec![0.0; count * count];
    (0..count).for_each(|at| rows[at * count + at] = 1.0);
    for (step, vector) in reflections.iter().enumerate().rev() {
        for line in rows.chunks_exact_mut(count).skip(step + 1) {
            let line = &mut line[step + 1..];
            let along = dot(line, vector);
            line.iter_mut().zip(vector).for_each(|(value, vector)| *value -= along * vector);
        }
    }
    (diagonal, beside, rows)
}

/// Makes a tridiagonal matrix diagonal, and rotates the rows with it. Fails where it does not converge.
fn make_diagonal(diagonal: &mut [f64], beside: &mut [f64], rows: &mut [f64], count: usize) -> bool {
    /// Two or three are usual.
    const MOST: usize = 100;
    for start in 0..count {
        let mut turns = 0;
        loop {
            let is_split = |at: &usize| {
                let beside = beside[*at].abs();
                beside <= f64::EPSILON * (diagonal[*at].abs() + diagonal[*at + 1].abs())
                    || beside < f64::MIN_POSITIVE
            };
            let end = (start..count - 1).find(is_split).unwrap_or(count - 1);
            if end == start {
                break;
            }
            turns += 1;
            if turns > MOST {
                return false;
            }
            // The shift: the eigenvalue of the first two rows that is nearer to the first.
            let half = (diagonal[start + 1] - diagonal[start]) / (2.0 * beside[start]);
            let root = half.hypot(1.0).copysign(half);
            let mut bulge = diagonal[end] - diagonal[start] + beside[start] / (half + root);
            let (mut sine, mut cosine, mut shift) = (1.0, 1.0, 0.0);
            let mut is_whole = true;
            for at in (start..end).rev() {
                let (mut one, other) = (sine * beside[at], cosine * beside[at]);
                let length = one.hypot(bulge);
                beside[at + 1] = length;
                if length == 0.0 {
                    diagonal[at + 1] -= shift;
                    beside[end] = 0.0;
                    is_whole = false;
                    break;
                }
                (sine, cosine) = (one / length, bulge / length);
                bulge = diagonal[at + 1] - shift;
                let next = (diagonal[at] - bulge) * sine + 2.0 * cosine * other;
                shift = sine * next;
                diagonal[at + 1] = bulge + shift;
                bulge = cosine * next - other;
                let (above, below) = rows[at * count..].split_at_mut(count);
                for (above, below) in above.iter_mut().zip(&mut below[..count]) {
                    one = *below;
                    *below = sine * *above + cosine * one;
                    *above = cosine * *above - sine * one;
                }
            }
            if is_whole {
                diagonal[start] -= shift;
                beside[start] = bulge;
                beside[end] = 0.0;
            }
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(matrix: &[f64], count: usize) -> Vec<f64> {
        let (values, vectors) = eigen(matrix, count).unwrap();
        let size = matrix.iter().fold(1e-300_f64, |most, value| most.max(value.abs()));
        for (value, vector) in values.iter().zip(vectors.chunks_exact(count)) {
            for row in 0..count {
                let product = dot(&matrix[row * count..][..count], vector);
                assert!((product - value * vector[row]).abs() < 1e-12 * size * count as f64);
            }
        }
        for one in 0..count {
            for other in 0..count {
                let product = dot(&vectors[one * count..][..count], &vectors[other * count..][..count]);
                assert!((product - f64::from(u8::from(one == other))).abs() < 1e-12);
            }
        }
        assert!(values.is_sorted_by(|one, other| one >= other));
        values
    }

    #[test]
    fn vectors_are_vectors_and_values_values() {
        assert_eq!(check(&[3.0], 1), [3.0]);
        let pair = check(&[2.0, 1.0, 1.0, 2.0], 2);
        assert!((pair[0] - 3.0).abs() < 1e-14 && (pair[1] - 1.0).abs() < 1e-14);
        for count in [3, 5, 16, 61] {
            let of = |row: usize, column: usize| ((row * column * 7 + row + column) % 23) as f64 - 11.0;
            let matrix: Vec<_> = (0..count * count)
                .map(|at| of(at / count, at % count) + of(at % count, at / count))
                .collect();
            check(&matrix, count);
            // Diagonal, zero, and of rank one.
            let diagonal: Vec<_> =
                (0..count * count).map(|at| if at / count == at % count { at as f64 } else { 0.0 }).collect();
            check(&diagonal, count);
            check(&vec![0.0; count * count], count);
            let values = check(&vec![1.0; count * count], count);
            assert!((values[0] - count as f64).abs() < 1e-12 && values[1].abs() < 1e-12);
        }
        assert!(eigen(&[f64::NAN, 0.0, 0.0, 1.0], 2).is_none());
        assert_eq!(eigen(&[], 0).unwrap().0, [0.0; 0]);
    }
}
