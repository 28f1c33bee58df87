//! The `quantization_config` of each method, as its library reads it.

use serde_json::{Value, json};
use weighbridge::plan::QuantizeMethod;
use weighbridge::{Checkpoint, Dtype, TensorRef};

use super::choice::Fate;

/// Adds the module of a tensor to those that libraries must not take for quantised.
pub(super) fn note(ignored: &mut Vec<String>, tensor: &TensorRef<'_>, fate: &Fate) {
    let is_matrix = tensor.shape().len() >= 2 && tensor.dtype().is_float();
    if matches!(fate, Fate::Quantized) || !is_matrix {
        return;
    }
    // Fused experts are parameters of a module, not its weight.
    let module = tensor.name().rsplit_once('.').map_or(tensor.name(), |(module, _)| module);
    if ignored.last().is_none_or(|last| last != module) {
        ignored.push(module.to_owned());
    }
}

/// The head that is tied to the embeddings: it is a module, but there is no tensor of its name.
pub(super) fn tied_head(checkpoint: &Checkpoint) -> Option<String> {
    checkpoint.tensor("lm_head.weight").is_none().then(|| "lm_head".to_owned())
}

/// What goes into config.json; `dtype` is that of the weights before.
pub(super) fn of(method: QuantizeMethod, dtype: Option<Dtype>, ignored: &[String]) -> Value {
    match method {
        QuantizeMethod::Fp8Block => json!({
            "quant_method": "fp8",
            "activation_scheme": "dynamic",
            "weight_block_size": [128, 128],
            "modules_to_not_convert": ignored,
        }),
        QuantizeMethod::Nf4 => json!({
            "quant_method": "bitsandbytes",
            "load_in_4bit": true,
            "load_in_8bit": false,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": false,
            "bnb_4bit_quant_storage": "uint8",
            "bnb_4bit_compute_dtype": match dtype {
                Some(Dtype::F16) => "float16",
                Some(Dtype::BF16) => "bfloat16",
                _ => "float32",
            },
            "llm_int8_skip_modules": ignored,
        }),
        _ => {
            let (format, weights, activations) = scheme(method);
            json!({
                "quant_method": "compressed-tensors",
                "format": format,
                "quantization_status": "compressed",
                "config_groups": {"group_0": {
                    "targets": ["Linear"],
                    "weights": weights,
                    "input_activations": activations,
                    "output_activations": null,
                }},
                "ignore": ignored,
            })
        }
    }
}

/// Of compressed-tensors, the format, the weights and the activations, as its presets have them.
fn scheme(method: QuantizeMethod) -> (&'static str, Value, Value) {
    let eight = |kind: &str, strategy: &str, dynamic: bool| {
        json!({
            "num_bits": 8,
            "type": kind,
            "symmetric": true,
            "strategy": strategy,
            "dynamic": dynamic,
        })
    };
    let channel = |kind| eight(kind, "channel", false);
    let token = |kind| eight(kind, "token", true);
    let group = |kind: &str, size: usize| {
        json!({
            "num_bits": 4,
            "type": kind,
            "symmetric": true,
            "strategy": "group",
            "group_size": size,
            "dynamic": false,
        })
    };
    match method {
        QuantizeMethod::Int8 => ("int-quantized", channel("int"), token("int")),
        QuantizeMethod::Int4 { group: size } => ("pack-quantized", group("int", size), Value::Null),
        QuantizeMethod::Mxfp4 => {
            let mut weights = group("float", 32);
            weights["scale_dtype"] = json!("torch.uint8");
            ("mxfp4-pack-quantized", weights, Value::Null)
        }
        _ => ("float-quantized", channel("float"), token("float")),
    }
}
