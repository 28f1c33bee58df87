//! What all ways of opening have in common, ours and the peers'.

use anyhow::{Result, ensure};

use crate::measure::{Measure, Size, measure};
use crate::work::Job;

/// What everybody is asked for: a matrix in the middle of the first layer.
pub(crate) const TENSOR: &str = "model.layers.0.self_attn.q_proj.weight";

/// Opens, and checks that all tensors were found.
pub(crate) fn opened<T>(
    job: &Job,
    open: impl FnOnce() -> Result<T>,
    count: fn(&T) -> usize,
) -> Result<Measure> {
    let mut found = 0;
    let measure = measure(open, |opened| {
        found = count(opened);
        Size { tensors: 0, moved: 0 }
    })?;
    ensure!(found == job.tensors.len(), "{found} tensors instead of {}", job.tensors.len());
    Ok(measure)
}
