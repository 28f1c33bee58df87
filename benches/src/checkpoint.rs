//! A checkpoint to measure with.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use anyhow::Result;
use weighbridge::Dtype;
use weighbridge::write::{Order, Save, TensorData};

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

/// Writes the configuration of the Llama that [`write()`] makes.
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

/// What the tensors of a checkpoint are like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Layout {
    /// Those of a Llama: some hundreds, most of them large.
    Llama,
    /// Matrices of 64 KB each.
    Small,
}

/// Writes a bf16 checkpoint of about `size` bytes; returns the number of its tensors.
pub(crate) fn write(path: &Path, layout: Layout, size: u64) -> Result<usize> {
    let tensors = match layout {
        Layout::Llama => llama(size),
        Layout::Small => (0..size.div_ceil(1 << 16))
            .map(|number| (format!("table.{number}.weight"), vec![256, 128]))
            .collect(),
    };
    // Weights near zero, of both signs, without NaN.
    let block: Vec<u8> = (0..1_u32 << 19)
        .flat_map(|i| {
            let bits = i.wrapping_mul(0x9E37_79B9) >> 16;
            ((bits & 0x80FF) as u16 | 0x3C00).to_le_bytes()
        })
        .collect();
    let count = tensors.len();
    let tensors = tensors.into_iter().map(|(name, shape)| {
        let shape = shape.into_iter().map(|dim| dim as usize).collect();
        (name, Weights { shape, block: &block })
    });
    Save::new().order(Order::Given).file(path, tensors)?;
    Ok(count)
}

fn llama(size: u64) -> Vec<(String, Vec<u64>)> {
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
    tensors
}

/// A tensor that repeats a block of weights.
struct Weights<'b> {
    shape: Vec<usize>,
    block: &'b [u8],
}

impl TensorData for Weights<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::BF16
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut left = 2 * self.shape.iter().product::<usize>();
        while left > 0 {
            let part = left.min(self.block.len());
            out.write_all(&self.block[..part])?;
            left -= part;
        }
        Ok(())
    }
}
