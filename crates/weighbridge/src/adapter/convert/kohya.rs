//! Names of modules in Kohya's files: without dots, and of SDXL those of its first implementation.

/// Parts of names that have underscores, the longer ones first where one begins another.
const WITH_UNDERSCORES: &[&str] = &[
    "single_transformer_blocks",
    "transformer_blocks",
    "down_blocks",
    "up_blocks",
    "mid_block",
    "input_blocks",
    "output_blocks",
    "middle_block",
    "to_add_out",
    "to_out",
    "to_q",
    "to_k",
    "to_v",
    "add_q_proj",
    "add_k_proj",
    "add_v_proj",
    "proj_in",
    "proj_out",
    "proj_mlp",
    "ff_context",
    "conv_in",
    "conv_out",
    "conv_shortcut",
    "time_emb_proj",
    "time_embedding",
    "add_embedding",
    "linear_1",
    "linear_2",
    "in_layers",
    "out_layers",
    "emb_layers",
    "skip_connection",
    "time_embed",
    "label_emb",
    "text_model",
    "text_projection",
    "self_attn",
    "q_proj",
    "k_proj",
    "v_proj",
    "out_proj",
    "token_embedding",
    "position_embedding",
    "x_embedder",
    "context_embedder",
    "time_text_embed",
    "timestep_embedder",
    "text_embedder",
    "guidance_embedder",
    "norm_out",
    "norm1_context",
];

/// Parts of names that have none.
const WORDS: &[&str] = &[
    "attentions",
    "resnets",
    "downsamplers",
    "upsamplers",
    "attn",
    "attn1",
    "attn2",
    "ff",
    "net",
    "proj",
    "conv",
    "conv1",
    "conv2",
    "op",
    "out",
    "encoder",
    "layers",
    "mlp",
    "fc1",
    "fc2",
    "linear",
    "norm",
    "norm1",
];

/// A name with its dots, as diffusers has it; `None` if a part of it is not known.
pub(super) fn with_dots(flat: &str) -> Option<String> {
    let name = split(flat)?.join(".");
    Some(of_diffusers(&name).unwrap_or(name))
}

/// The known parts that a name consists of.
fn split(flat: &str) -> Option<Vec<&str>> {
    if flat.is_empty() {
        return Some(Vec::new());
    }
    let rest_of = |part: &str| match flat.strip_prefix(part)? {
        "" => Some(""),
        rest => rest.strip_prefix('_').filter(|rest| !rest.is_empty()),
    };
    let digits = flat.find(|c: char| !c.is_ascii_digit()).unwrap_or(flat.len());
    let number = (digits > 0).then(|| &flat[..digits]);
    for part in WITH_UNDERSCORES.iter().chain(WORDS).copied().chain(number) {
        if let Some(mut parts) = rest_of(part).and_then(split) {
            parts.insert(0, &flat[..part.len()]);
            return Some(parts);
        }
    }
    None
}

/// Whether only SDXL has such a module: several transformer blocks in one attention.
pub(super) fn is_sdxl(path: &str) -> bool {
    let is_of_unet = ["down_blocks.", "up_blocks.", "mid_block."].iter().any(|start| path.starts_with(start));
    let block = path.split_once(".transformer_blocks.").and_then(|(_, rest)| rest.split('.').next());
    is_of_unet && block.is_some_and(|block| block != "0")
}

/// Modules outside of blocks: in SDXL's first implementation, and in diffusers.
const OUTSIDE: &[(&str, &str)] = &[
    ("input_blocks.0.0", "conv_in"),
    ("out.2", "conv_out"),
    ("time_embed.0", "time_embedding.linear_1"),
    ("time_embed.2", "time_embedding.linear_2"),
    ("label_emb.0.0", "add_embedding.linear_1"),
    ("label_emb.0.2", "add_embedding.linear_2"),
];

/// The same of those in a resnet.
const RESNET: &[(&str, &str)] = &[
    ("in_layers.2", "conv1"),
    ("out_layers.3", "conv2"),
    ("emb_layers.1", "time_emb_proj"),
    ("skip_connection", "conv_shortcut"),
];

/// Blocks have so many layers.
const LAYERS: usize = 3;

/// What diffusers calls a module of SDXL's first implementation.
pub(super) fn of_diffusers(name: &str) -> Option<String> {
    if let Some((_, other)) = OUTSIDE.iter().find(|(own, _)| *own == name) {
        return Some((*other).to_owned());
    }
    let (group, rest) = name.split_once('.')?;
    let (first, rest) = rest.split_once('.')?;
    let first: usize = first.parse().ok()?;
    if group == "middle_block" {
        return Some(match first {
            0 | 2 => format!("mid_block.resnets.{}.{}", first / 2, renamed(rest, RESNET, false)?),
            1 => format!("mid_block.attentions.0.{rest}"),
            _ => return None,
        });
    }
    let (inner, rest) = rest.split_once('.')?;
    let (blocks, place) = match group {
        "input_blocks" => ("down_blocks", first.checked_sub(1)?),
        "output_blocks" => ("up_blocks", first),
        _ => return None,
    };
    let (block, layer) = (place / LAYERS, place % LAYERS);
    Some(match (inner, rest) {
        (_, "op") => format!("{blocks}.{block}.downsamplers.0.conv"),
        (_, "conv") => format!("{blocks}.{block}.upsamplers.0.conv"),
        ("0", rest) => format!("{blocks}.{block}.resnets.{layer}.{}", renamed(rest, RESNET, false)?),
        ("1", rest) => format!("{blocks}.{block}.attentions.{layer}.{rest}"),
        _ => return None,
    })
}

/// What SDXL's first implementation calls a module of diffusers'.
pub(super) fn of_sdxl(name: &str) -> Option<String> {
    if let Some((own, _)) = OUTSIDE.iter().find(|(_, other)| *other == name) {
        return Some((*own).to_owned());
    }
    let parts: Vec<_> = name.splitn(5, '.').collect();
    if let ["mid_block", kind, number, ..] = &*parts {
        let rest = name.splitn(4, '.').nth(3)?;
        return Some(match (*kind, *number) {
            ("resnets", "0") => format!("middle_block.0.{}", renamed(rest, RESNET, true)?),
            ("resnets", "1") => format!("middle_block.2.{}", renamed(rest, RESNET, true)?),
            ("attentions", "0") => format!("middle_block.1.{rest}"),
            _ => return None,
        });
    }
    let [blocks, block, kind, layer, rest] = &*parts else { return None };
    let (block, layer): (usize, usize) = (block.parse().ok()?, layer.parse().ok()?);
    let (group, start) = match *blocks {
        "down_blocks" => ("input_blocks", 1),
        "up_blocks" => ("output_blocks", 0),
        _ => return None,
    };
    let place = start + block * LAYERS + layer;
    Some(match *kind {
        "resnets" => format!("{group}.{place}.0.{}", renamed(rest, RESNET, true)?),
        "attentions" => format!("{group}.{place}.1.{rest}"),
        "downsamplers" => format!("{group}.{}.0.op", start + block * LAYERS + 2),
        "upsamplers" => format!("{group}.{}.2.conv", start + block * LAYERS + 2),
        _ => return None,
    })
}

/// The other one of a pair.
fn renamed<'n>(name: &str, pairs: &'n [(&str, &str)], is_back: bool) -> Option<&'n str> {
    pairs.iter().find_map(|(one, other)| match is_back {
        true => (*other == name).then_some(*one),
        false => (*one == name).then_some(*other),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dots_are_where_they_were() {
        let cases = [
            "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q",
            "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj",
            "up_blocks.3.attentions.2.transformer_blocks.0.attn2.to_out.0",
            "up_blocks.1.resnets.0.time_emb_proj",
            "text_model.encoder.layers.11.self_attn.out_proj",
            "text_model.encoder.layers.0.mlp.fc1",
            "transformer_blocks.3.attn.add_k_proj",
            "single_transformer_blocks.37.proj_mlp",
            "transformer_blocks.0.ff_context.net.2",
            "time_text_embed.timestep_embedder.linear_1",
        ];
        for name in cases {
            assert_eq!(with_dots(&name.replace('.', "_")).as_deref(), Some(name));
        }
        for flat in ["double_blocks_0_img_attn_qkv", "down_blocks_0_x", "", "to_q_", "my_layer_to_q"] {
            assert!(with_dots(flat).is_none_or(|name| name.is_empty()), "{flat}");
        }
    }

    #[test]
    fn blocks_of_sdxl_are_those_of_diffusers() {
        let pairs = [
            (
                "input_blocks.4.1.transformer_blocks.0.attn1.to_q",
                "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
            ),
            ("input_blocks.8.1.proj_in", "down_blocks.2.attentions.1.proj_in"),
            ("input_blocks.3.0.op", "down_blocks.0.downsamplers.0.conv"),
            ("input_blocks.1.0.in_layers.2", "down_blocks.0.resnets.0.conv1"),
            (
                "middle_block.1.transformer_blocks.9.attn2.to_v",
                "mid_block.attentions.0.transformer_blocks.9.attn2.to_v",
            ),
            ("middle_block.2.emb_layers.1", "mid_block.resnets.1.time_emb_proj"),
            ("output_blocks.5.1.proj_out", "up_blocks.1.attentions.2.proj_out"),
            ("output_blocks.2.2.conv", "up_blocks.0.upsamplers.0.conv"),
            ("output_blocks.8.0.skip_connection", "up_blocks.2.resnets.2.conv_shortcut"),
            ("label_emb.0.2", "add_embedding.linear_2"),
        ];
        for (own, other) in pairs {
            assert_eq!(of_diffusers(own).as_deref(), Some(other));
            assert_eq!(of_sdxl(other).as_deref(), Some(own));
            assert_eq!(with_dots(&own.replace('.', "_")).as_deref(), Some(other));
        }
        assert!(is_sdxl("down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q"));
        assert!(!is_sdxl("transformer_blocks.1.attn.to_q"));
    }
}
