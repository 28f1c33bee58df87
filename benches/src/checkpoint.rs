//! A checkpoint to measure with.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::Result;

const VOCABULARY: u64 = 32_000;

/// The widths of a Llama: those of TinyLlama-1.1B for 2.2 GB, narrower or wider for other sizes.
struct Shape {
    width: u64,
    /// Of the multilayer perceptron.
    inner: u64,
    /// Of keys and values, which heads share.
    narrow: u64,
}

impl Shape {
    fn of(size: u64) -> Self {
        let width = (2048.0 * (size as f64 / 2.2e9).sqrt() / 512.0).round().max(1.0) as u64 * 512;
        Self { width, inner: width * 11 / 4, narrow: width / 8 }
    }
}

/// The number of layers that make up `size`.
fn layers(size: u64) -> u64 {
    let Shape { width, inner, narrow } = Shape::of(size);
    let layer = 2 * (3 * width * inner + 2 * width * width + 2 * width * narrow);
    (size.saturating_sub(4 * VOCABULARY * width) / layer).max(1)
}

/// Writes the configuration of the Llama whose weights [`write()`] makes.
pub(crate) fn write_config(path: &Path, size: u64) -> Result<()> {
    let Shape { width, inner, .. } = Shape::of(size);
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": inner,
        "vocab_size": VOCABULARY,
        "num_hidden_layers": layers(size),
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": false,
    });
    Ok(serde_json::to_writer_pretty(File::create(path)?, &config)?)
}

/// Writes a bf16 checkpoint of about `size` bytes with the tensors of a Llama of that size; returns their number.
pub(crate) fn write(path: &Path, size: u64) -> Result<usize> {
    let Shape { width, inner, narrow } = Shape::of(size);
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), vec![VOCABULARY, width]),
        ("lm_head.weight".to_owned(), vec![VOCABULARY, width]),
        ("model.norm.weight".to_owned(), vec![width]),
    ];
    let layer = [
        ("input_layernorm", vec![width]),
        ("mlp.down_proj", vec![width, inner]),
        ("mlp.gate_proj", vec![inner, width]),
        ("mlp.up_proj", vec![inner, width]),
        ("post_attention_layernorm", vec![width]),
        ("self_attn.k_proj", vec![narrow, width]),
        ("self_attn.o_proj", vec![width, width]),
        ("self_attn.q_proj", vec![width, width]),
        ("self_attn.v_proj", vec![narrow, width]),
    ];
    for number in 0..layers(size) {
        for (name, shape) in &layer {
            tensors.push((format!("model.layers.{number}.{name}.weight"), shape.clone()));
        }
    }
    let mut offset = 0;
    let mut entries = Vec::new();
    for (name, shape) in &tensors {
        let end = offset + shape.iter().product::<u64>() * 2;
        entries.push(format!(
            r#""{name}":{{"dtype":"BF16","shape":{shape:?},"data_offsets":[{offset},{end}]}}"#
        ));
        offset = end;
    }
    let mut header = format!("{{{}}}", entries.join(","));
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));

    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    // Weights near zero, of both signs, without NaN.
    let block: Vec<u8> = (0..1_u32 << 19)
        .flat_map(|i| {
            let bits = i.wrapping_mul(0x9E37_79B9) >> 16;
            ((bits & 0x80FF) as u16 | 0x3C00).to_le_bytes()
        })
        .collect();
    let mut left = offset;
    while left > 0 {
        let part = left.min(block.len() as u64);
        file.write_all(&block[..part as usize])?;
        left -= part;
    }
    file.into_inner()?.sync_all()?;
    Ok(tensors.len())
}
