//! Checkpoints to measure with.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::{Deserialize, Serialize};
use weighbridge::Dtype;
use weighbridge::write::{Order, Save, TensorData};

const VOCABULARY: usize = 32_000;

/// How many files a sharded checkpoint has, or one more.
const SHARDS: u64 = 8;

/// The widths of a Llama: those of TinyLlama-1.1B for 2.2 GB, narrower or wider for other sizes.
struct Shape {
    width: usize,
    /// Of the multilayer perceptron.
    inner: usize,
    /// Of keys and values, which heads share.
    narrow: usize,
}

impl Shape {
    fn of(size: u64) -> Self {
        let width = (2048.0 * (size as f64 / 2.2e9).sqrt() / 512.0).round().max(1.0) as usize * 512;
        Self { width, inner: width * 11 / 4, narrow: width / 8 }
    }
}

/// The number of layers that make up `size`.
fn layers(size: u64) -> u64 {
    let Shape { width, inner, narrow } = Shape::of(size);
    let layer = 2 * (3 * width * inner + 2 * width * width + 2 * width * narrow);
    (size.saturating_sub((4 * VOCABULARY * width) as u64) / layer as u64).max(1)
}

/// What the tensors of a checkpoint are like, and how they lie in files. All are bf16.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// Those of a Llama, some hundreds, most of them large, in one file.
    Llama,
    /// The same in eight or nine files with an index.
    Shards,
    /// Matrices of 64 KB each, 20,000 at most, in one file.
    Small,
}

impl Layout {
    /// Its name, which is that of its directory, too.
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Shards => "shards",
            Self::Small => "small",
        }
    }

    /// Names and shapes, in the order of the file and in which a model asks for them.
    pub fn tensors(self, size: u64) -> Vec<(String, Vec<usize>)> {
        match self {
            Self::Llama | Self::Shards => llama(size),
            Self::Small => (0..size.div_ceil(1 << 16).min(20_000))
                .map(|number| (format!("table.{number}.weight"), vec![256, 128]))
                .collect(),
        }
    }

    /// Bytes of the tensors.
    pub fn byte_len(self, size: u64) -> u64 {
        self.tensors(size).iter().map(|(_, shape)| 2 * shape.iter().product::<usize>() as u64).sum()
    }

    /// Writes a checkpoint of about `size` bytes into a directory.
    ///
    /// # Errors
    ///
    /// Fails when it cannot be written.
    pub fn write(self, directory: &Path, size: u64) -> Result<()> {
        let block = block(Dtype::BF16);
        let tensors = self.tensors(size).into_iter().map(|(name, shape)| {
            let weights = Weights { dtype: Dtype::BF16, shape, block: &block };
            (name, weights)
        });
        let shard = match self {
            Self::Llama | Self::Small => u64::MAX,
            Self::Shards => self.byte_len(size).div_ceil(SHARDS),
        };
        Save::new().order(Order::Given).max_shard_size(shard).directory(directory, "model", tensors)?;
        Ok(())
    }
}

/// The safetensors files of a directory, in the order of their names.
///
/// # Errors
///
/// Fails when the directory cannot be read.
pub fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(directory)?.collect::<io::Result<Vec<_>>>()?;
    let mut files: Vec<_> = entries.into_iter().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "safetensors"));
    files.sort();
    Ok(files)
}

/// Writes the configuration of the Llama of that size.
///
/// # Errors
///
/// Fails when it cannot be written.
pub fn write_config(path: &Path, size: u64) -> Result<()> {
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

fn llama(size: u64) -> Vec<(String, Vec<usize>)> {
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

/// A megabyte or two of weights near one, of both signs, without NaN.
pub fn block(dtype: Dtype) -> Vec<u8> {
    let bits = (0..1_u32 << 19).map(|i| (i.wrapping_mul(0x9E37_79B9) >> 16) & 0x80FF | 0x3C00);
    match dtype {
        Dtype::F32 => bits.flat_map(|bits| (bits << 16).to_le_bytes()).collect(),
        Dtype::F8_E4M3 => bits.map(|bits| ((bits >> 8) & 0x80 | bits & 0x0F | 0x30) as u8).collect(),
        _ => bits.flat_map(|bits| (bits as u16).to_le_bytes()).collect(),
    }
}

/// A tensor that repeats a [`block`].
#[derive(Clone, Debug)]
pub struct Weights<'b> {
    /// Of the block.
    pub dtype: Dtype,
    /// In elements.
    pub shape: Vec<usize>,
    /// What is repeated.
    pub block: &'b [u8],
}

impl TensorData for Weights<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        let len = self.dtype.size_of(&self.shape).map_err(io::Error::other)?;
        let mut left = usize::try_from(len).map_err(io::Error::other)?;
        while left > 0 {
            let part = left.min(self.block.len());
            out.write_all(&self.block[..part])?;
            left -= part;
        }
        Ok(())
    }
}
