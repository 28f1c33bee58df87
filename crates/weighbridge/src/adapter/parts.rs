//! How the tensors of adapters are named.

use super::AdapterFormat;
use crate::error::{Error, ErrorKind, Result};

/// What a tensor is to the module that it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    Down,
    Up,
    EmbeddingDown,
    EmbeddingUp,
    /// Added to the bias.
    BiasUp,
    Magnitude,
    Alpha,
    /// A full difference, of the weight and of the bias.
    Full,
    FullBias,
}

impl Part {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Down => "A",
            Self::Up => "B",
            Self::EmbeddingDown => "embedding A",
            Self::EmbeddingUp => "embedding B",
            Self::BiasUp => "bias of B",
            Self::Magnitude => "magnitude",
            Self::Alpha => "alpha",
            Self::Full => "difference",
            Self::FullBias => "difference of the bias",
        }
    }
}

/// What the name of a tensor says.
pub(super) enum Split {
    Part {
        module: String,
        part: Part,
        format: AdapterFormat,
    },
    /// It replaces the tensor of this name.
    Whole(String),
}

/// What names end with, most of which follow a dot.
const ENDINGS: &[(&str, Part)] = &[
    (".lora_A.weight", Part::Down),
    (".lora_B.weight", Part::Up),
    (".lora_embedding_A", Part::EmbeddingDown),
    (".lora_embedding_B", Part::EmbeddingUp),
    (".lora_B.bias", Part::BiasUp),
    (".lora_magnitude_vector", Part::Magnitude),
    (".lora_magnitude_vector.weight", Part::Magnitude),
    (".lora_down.weight", Part::Down),
    (".lora_up.weight", Part::Up),
    (".lora.down.weight", Part::Down),
    (".lora.up.weight", Part::Up),
    (".lora_linear_layer.down.weight", Part::Down),
    (".lora_linear_layer.up.weight", Part::Up),
    (".dora_scale", Part::Magnitude),
    (".alpha", Part::Alpha),
    (".diff", Part::Full),
    (".diff_b", Part::FullBias),
];

/// Those of diffusers' attention processors, and the layers that they are for.
const PROCESSORS: &[(&str, &str)] =
    &[("to_q_lora", "to_q"), ("to_k_lora", "to_k"), ("to_v_lora", "to_v"), ("to_out_lora", "to_out.0")];

/// What names hold if something is not added to weights, or in another way, and what it is.
const OTHERS: &[(&str, &str)] = &[
    (".hada_w", "LoHa"),
    (".lokr_w", "LoKr"),
    (".oft_", "OFT"),
    (".boft_", "BOFT"),
    (".ia3_l", "IA³"),
    (".vera_lambda", "VeRA"),
    (".lora_mid.", "a LoRA in three factors (Tucker)"),
    (".glora", "GLoRA"),
    (".a1.weight", "GLoRA"),
    (".token_adapter.", "a set of trainable tokens"),
    (".set_weight", "a weight that is set"),
    (".reshape_weight", "a weight that is reshaped"),
    (".w_norm", "a norm that is changed"),
    ("prompt_embeddings", "a prompt"),
    (".lora_E", "AdaLoRA"),
    (".lora_ranknum", "AdaLoRA"),
    (".base_layer.lora_", "a LoRA of parameters that are no layers (target_parameters)"),
];

/// What PEFT puts in front of the names of the model.
pub(super) const PEFT: &str = "base_model.model.";

/// What the name of a part ends with in this format; `None` if it has no such part.
pub(super) fn ending(format: AdapterFormat, part: Part) -> Option<&'static str> {
    use AdapterFormat::{Diffusers, Kohya, Peft};
    Some(match (format, part) {
        (Kohya, Part::Down) => ".lora_down.weight",
        (Kohya, Part::Up) => ".lora_up.weight",
        (Kohya, Part::Alpha) => ".alpha",
        (Kohya, Part::Magnitude) => ".dora_scale",
        (Kohya, Part::Full) => ".diff",
        (Kohya, Part::FullBias) => ".diff_b",
        (Peft | Diffusers, Part::Down) => ".lora_A.weight",
        (Peft | Diffusers, Part::Up) => ".lora_B.weight",
        (Peft | Diffusers, Part::BiasUp) => ".lora_B.bias",
        (Peft | Diffusers, Part::Magnitude) => ".lora_magnitude_vector",
        (Peft, Part::EmbeddingDown) => ".lora_embedding_A",
        (Peft, Part::EmbeddingUp) => ".lora_embedding_B",
        _ => return None,
    })
}

/// The name of a part of a module.
pub(super) fn join(format: AdapterFormat, module: &str, part: Part) -> String {
    let prefix = if format == AdapterFormat::Peft { PEFT } else { "" };
    format!("{prefix}{module}{}", ending(format, part).unwrap_or_default())
}

/// # Errors
///
/// Fails for names of other kinds of adapters, and for those of none.
pub(super) fn split(name: &str, is_peft: bool) -> Result<Split> {
    if let Some((_, what)) = OTHERS.iter().find(|(part, _)| name.contains(part)) {
        let message =
            format!("it belongs to {what}, which is not merged here; merge it with the library that made it");
        return Err(Error::new(ErrorKind::Unsupported, message));
    }
    let (stripped, was_peft) = match name.strip_prefix(PEFT) {
        Some(rest) => (rest, true),
        None => (name, false),
    };
    let plain = without_adapter_name(stripped);
    if let Some((module, part)) =
        ENDINGS.iter().find_map(|(end, part)| Some((plain.strip_suffix(end)?, *part)))
    {
        let format = match () {
            () if was_peft => AdapterFormat::Peft,
            () if module.starts_with("lora_") => AdapterFormat::Kohya,
            () => AdapterFormat::Diffusers,
        };
        return Ok(Split::Part { module: module.to_owned(), part, format });
    }
    for (processor, layer) in PROCESSORS {
        let at = format!(".processor.{processor}.");
        if let Some((module, end)) = plain.split_once(&at) {
            let part = match end {
                "down.weight" => Part::Down,
                "up.weight" => Part::Up,
                _ => continue,
            };
            let module = format!("{module}.{layer}");
            return Ok(Split::Part { module, part, format: AdapterFormat::Diffusers });
        }
    }
    if was_peft && is_peft && !plain.contains(".lora_") {
        return Ok(Split::Whole(without_saved(&plain)));
    }
    let message = "it is no part of an adapter that is known here";
    Err(Error::new(ErrorKind::Unsupported, message))
}

/// PEFT keeps several adapters apart by a name behind `lora_A`, which some files still have.
fn without_adapter_name(name: &str) -> String {
    for part in
        [".lora_A.", ".lora_B.", ".lora_embedding_A.", ".lora_embedding_B.", ".lora_magnitude_vector."]
    {
        let Some((module, rest)) = name.split_once(part) else { continue };
        let rest = match rest.split_once('.') {
            Some((_, last @ ("weight" | "bias"))) => last,
            None if !matches!(rest, "weight" | "bias") => "",
            _ => return name.to_owned(),
        };
        let joined = format!("{module}{part}{rest}");
        return joined.trim_end_matches('.').to_owned();
    }
    name.to_owned()
}

/// A module that was saved whole: `classifier.modules_to_save.default.weight` is `classifier.weight`.
fn without_saved(name: &str) -> String {
    let Some((module, rest)) = name.split_once(".modules_to_save.") else {
        return name.replacen(".base_layer.", ".", 1);
    };
    let last = rest.split_once('.').map_or(rest, |(_, last)| last);
    format!("{module}.{last}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_modules_and_parts() {
        let cases = [
            ("base_model.model.model.layers.0.q_proj.lora_A.weight", "model.layers.0.q_proj", Part::Down),
            ("base_model.model.q_proj.lora_B.default.weight", "q_proj", Part::Up),
            ("base_model.model.q_proj.lora_B.bias", "q_proj", Part::BiasUp),
            ("base_model.model.embed.lora_embedding_A", "embed", Part::EmbeddingDown),
            ("base_model.model.embed.lora_embedding_B.default", "embed", Part::EmbeddingUp),
            ("base_model.model.o.lora_magnitude_vector", "o", Part::Magnitude),
            ("base_model.model.o.lora_magnitude_vector.default.weight", "o", Part::Magnitude),
            ("lora_unet_mid_block_attn_to_q.lora_down.weight", "lora_unet_mid_block_attn_to_q", Part::Down),
            ("unet.mid.to_q.lora.up.weight", "unet.mid.to_q", Part::Up),
            ("mid.attn1.processor.to_out_lora.up.weight", "mid.attn1.to_out.0", Part::Up),
            ("diffusion_model.x.diff_b", "diffusion_model.x", Part::FullBias),
        ];
        for (name, expected, wanted) in cases {
            match split(name, true) {
                Ok(Split::Part { module, part, .. }) => {
                    assert_eq!((&*module, part), (expected, wanted), "{name}");
                }
                _ => panic!("{name}"),
            }
        }
        for (name, expected) in [
            ("base_model.model.score.weight", "score.weight"),
            ("base_model.model.score.modules_to_save.default.weight", "score.weight"),
            ("base_model.model.score.modules_to_save.weight", "score.weight"),
            ("base_model.model.q_proj.base_layer.bias", "q_proj.bias"),
        ] {
            assert!(matches!(split(name, true), Ok(Split::Whole(whole)) if whole == expected), "{name}");
        }
        for name in ["x.hada_w1_a", "model.layers.0.weight", "base_model.model.x.lora_E"] {
            assert!(split(name, false).is_err(), "{name}");
        }
    }
}
