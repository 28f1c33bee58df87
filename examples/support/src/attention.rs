//! Which tokens the layers of a model attend to, as config.json says it.

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::Fields;

/// A flag whose absence may mean true.
///
/// # Errors
///
/// Fails for anything but true and false.
pub fn flag_or(fields: Fields<'_>, key: &str, default: bool) -> Result<bool> {
    if fields.get(key).is_some() { fields.flag(key) } else { Ok(default) }
}

/// The window that some layers attend to; `None` where all attend to everything.
///
/// Of the families with a `use_sliding_window` it counts only where that is true.
///
/// # Errors
///
/// Fails for layers of another kind.
pub fn window(fields: Fields<'_>, who: &str, is_optional: bool) -> Result<Option<usize>> {
    let mut some_slide = true;
    if let Some(Value::Array(kinds)) = fields.get("layer_types") {
        for kind in kinds {
            ensure!(
                kind == "full_attention" || kind == "sliding_attention",
                "layer_types has {kind}, {who} has \"full_attention\" and \"sliding_attention\""
            );
        }
        some_slide = kinds.iter().any(|kind| kind == "sliding_attention");
    }
    if !some_slide || (is_optional && !fields.flag("use_sliding_window")?) {
        return Ok(None);
    }
    fields.size("sliding_window")
}

/// Refuses all layers that do not attend to everything.
///
/// # Errors
///
/// There are some.
pub fn full_attention(fields: Fields<'_>, who: &str) -> Result<()> {
    if fields.get("use_sliding_window") != Some(&Value::Bool(false)) {
        ensure!(fields.get("sliding_window").is_none(), "sliding_window is set, {who} attends to everything");
    }
    if let Some(Value::Array(kinds)) = fields.get("layer_types") {
        for kind in kinds {
            ensure!(kind == "full_attention", "layer_types has {kind}, {who} has \"full_attention\" only");
        }
    }
    Ok(())
}
