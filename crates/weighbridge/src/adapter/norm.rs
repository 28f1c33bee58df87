//! How much a module changes its weight.

use super::AdapterModule;
use super::parts::Part;
use crate::checkpoint::TensorRef;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::plan::{Entry, Plan};

impl AdapterModule<'_> {
    /// The Frobenius norm of what it adds to its weight, `scale · B A` or a full difference, computed from the factors; without
    /// the magnitude, if it has one. Reads the factors.
    ///
    /// # Errors
    ///
    /// Fails when they cannot be read.
    pub fn norm(&self) -> Result<f64> {
        let square = match self.factors() {
            Some([down, up]) => {
                let rank = self.rank();
                let (down, up) = (floats(&down)?, floats(&up)?);
                // Of the product, by the Gram matrices of the factors: Σ (A Aᵀ) ∘ (Bᵀ B).
                let (width, height) = (down.len() / rank.max(1), up.len() / rank.max(1));
                let mut square = 0.0;
                for one in 0..rank {
                    for other in 0..=one {
                        let rows = down[one * width..][..width].iter().zip(&down[other * width..][..width]);
                        let columns = (0..height).map(|row| (&up[row * rank + one], &up[row * rank + other]));
                        let times = if one == other { 1.0 } else { 2.0 };
                        square += times * dot(rows) * dot(columns);
                    }
                }
                f64::from(self.scale()).powi(2) * square
            }
            None => match self.adapter.tensor(self.module, Part::Full) {
                Some(full) => {
                    let full = floats(&full)?;
                    dot(full.iter().zip(&full))
                }
                None => 0.0,
            },
        };
        Ok(square.max(0.0).sqrt())
    }
}

fn dot<'v>(pairs: impl Iterator<Item = (&'v f32, &'v f32)>) -> f64 {
    pairs.map(|(one, other)| f64::from(*one) * f64::from(*other)).sum()
}

/// The values of a tensor.
pub(super) fn floats(tensor: &TensorRef<'_>) -> Result<Vec<f32>> {
    let session = Plan::new([Entry::of(tensor, Some(Dtype::F32))?]).session().start()?;
    let (_, buffer) = session.take(tensor.name(), None)?;
    Ok(buffer.as_bytes().chunks_exact(4).map(bytemuck::pod_read_unaligned).collect())
}
