//! ComfyUI: a marker says in which format a module is.

use serde_json::Value as Json;

use super::super::module::{Dense, Module};
use super::scaled;
use crate::error::{Error, ErrorKind, Result};

/// The metadata of ComfyUI's files.
const METADATA: &str = "_quantization_metadata";

pub(super) fn dense<'c>(module: &Module<'c>) -> Result<Dense<'c>> {
    let marker = module.own("comfy_quant");
    let json = match &marker {
        Some(marker) => {
            let bytes = module.read(marker)?;
            Some(serde_json::from_slice::<Json>(&bytes).map_err(|error| {
                let message = format!("{:?} is not valid JSON: {error}", marker.name());
                module.blame(Error::new(ErrorKind::Malformed, message))
            })?)
        }
        None => from_metadata(module),
    };
    let format = json.as_ref().and_then(|json| json.get("format")).and_then(Json::as_str);
    match format {
        Some("float8_e4m3fn" | "float8_e5m2") => {}
        Some(other) => {
            let why = format!(
                "ComfyUI's format {other:?} is not read; load the model in float8_e4m3fn or unquantised"
            );
            return Err(module.unsupported(&why));
        }
        None => return Err(module.unsupported("ComfyUI's marker does not say in which format it is")),
    }
    let mut dense = scaled::dense(module)?;
    dense.unused.extend(marker);
    Ok(dense)
}

/// What the metadata of its file says about the module.
fn from_metadata(module: &Module<'_>) -> Option<Json> {
    let codes = module.quantized.codes().next()?;
    let prefix = module.checkpoint.prefixes().nth(codes.shard_number())?;
    let mut metadata = codes.shard().header().metadata()?;
    let text = metadata.find_map(|(key, value)| (key == METADATA).then_some(value))?;
    let mut json: Json = serde_json::from_str(text).ok()?;
    let name = module.quantized.name().strip_prefix(prefix)?;
    Some(json.get_mut("layers")?.get_mut(name)?.take())
}
