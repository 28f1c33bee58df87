//! Every byte of the data: values that nobody wants, and bytes that are no values.

use anyhow::Result;
use weighbridge::{Checkpoint, Dtype, TensorRef};

use super::finding::{Findings, Severity};
use crate::term::Term;
use crate::{chunks, figures, show};

/// Reads all tensors of the shards and adds what is wrong with their values.
pub(super) fn census(shards: &[Checkpoint], findings: &mut Findings, term: &Term) -> Result<()> {
    let all: Vec<_> = shards.iter().flat_map(Checkpoint::tensors).collect();
    let bar = term.bar("reading", all.iter().map(TensorRef::byte_len).sum());
    let (floats, others): (Vec<_>, Vec<_>) = all.into_iter().partition(|tensor| has_specials(tensor.dtype()));
    let figures = figures::of(&floats, &bar)?;
    for (tensor, figures) in floats.iter().zip(figures) {
        let Some(figures) = figures else { continue };
        let of = show::count(figures.values);
        for (rule, count, what) in [
            ("nan", figures.nans, "NaN"),
            ("infinity", figures.infinities + figures.negative_infinities, "infinite"),
        ] {
            if count > 0 {
                add(
                    findings,
                    rule,
                    Severity::Warning,
                    tensor,
                    format!("{} of {of} values are {what}", show::count(count)),
                );
            }
        }
    }
    let mut wrong = 0_u64;
    chunks::map_in_order(
        &others,
        &bar,
        |chunk, bytes| {
            let is_bool = chunk.tensor.dtype() == Dtype::Bool;
            Ok(if is_bool { bytes.iter().map(|&byte| u64::from(byte > 1)).sum() } else { 0_u64 })
        },
        |chunk, count| {
            wrong += count;
            if chunk.range.end == chunk.tensor.byte_len() {
                let wrong = std::mem::take(&mut wrong);
                if wrong > 0 {
                    let message = format!("{} bytes of BOOL are neither 0 nor 1", show::count(wrong));
                    add(findings, "bool", Severity::Error, &chunk.tensor, message);
                }
            }
            Ok(())
        },
    )
}

fn add(
    findings: &mut Findings,
    rule: &'static str,
    severity: Severity,
    tensor: &TensorRef<'_>,
    message: String,
) {
    findings.add(rule, severity, tensor.shard().label(), Some(tensor.name()), message);
}

/// Whether values of it can be infinite or no number.
fn has_specials(dtype: Dtype) -> bool {
    let packed = matches!(dtype, Dtype::F4 | Dtype::F6_E2M3 | Dtype::F6_E3M2);
    (dtype.is_float() && !packed) || dtype == Dtype::C64
}
