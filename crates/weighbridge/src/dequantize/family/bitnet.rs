//! BitNet: weights of -1, 0 and 1, four rows in a row of bytes, and one scale.

use super::super::codes::{Codes, Packing};
use super::super::module::{Dense, Draft, Module};
use super::super::recipe::Value;
use super::scaled::scales_of;
use crate::dtype::Dtype;
use crate::error::Result;

pub(super) fn dense<'c>(module: &Module<'c>) -> Result<Dense<'c>> {
    let section = module.config.quantization();
    if module.config.method() != Some("bitnet") || module.beside("_zero_point").is_some() {
        let why = format!(
            "how its bytes are packed is not known: {} would say bitnet, and whether its scale is a divisor",
            section.field("quant_method")
        );
        return Err(module.unsupported(&why));
    }
    let codes = module.codes()?;
    let scale = scales_of(module)?;
    let &[word_rows, columns] = codes.shape() else {
        return Err(module.misshapen(&codes, "where a matrix is expected"));
    };
    if codes.dtype() != Dtype::U8 || scale.elements() != 1 {
        return Err(module.misshapen(&scale, "where one scale is expected"));
    }
    let Some(rows) = word_rows.checked_mul(4) else {
        return Err(module.misshapen(&codes, "which is too large"));
    };
    let number = module.floats(&scale)?.first().copied().unwrap_or(f32::NAN);
    let factor = match section.text("linear_class") {
        Some("autobitlinear") => number,
        Some("bitlinear") | None => number.recip(),
        Some(other) => {
            let why = format!("{} is {other:?}, which is not known here", section.field("linear_class"));
            return Err(module.unsupported(&why));
        }
    };
    let packing = Packing::Planes { word: 1, shifts: vec![0, 2, 4, 6] };
    let layout = Codes { packing, bits: 2, rows, columns, stride: columns, word_rows };
    let dtype = module.dtype(Some(scale.dtype()));
    let mut draft = Draft::new(codes, [1, rows, columns], layout, Value::Number(-1));
    draft.recipe.last = Some(factor);
    draft.leave_out([scale]);
    draft.dense(module, vec![rows, columns], dtype)
}
