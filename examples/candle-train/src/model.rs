//! A Llama of operations that have a gradient; those of `candle-transformers` are made to answer, not to
//! learn.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use candle_core::{D, DType, Device, Module, Tensor};
use candle_nn::rotary_emb::rope_slow;
use candle_nn::{Embedding, Linear, RmsNorm, VarBuilder, VarMap, embedding, linear_no_bias, ops, rms_norm};
use examples_support::sums::Random;
use serde::Deserialize;

/// What `config.json` says.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Config {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    rms_norm_eps: f64,
    #[serde(default)]
    tie_word_embeddings: bool,
    rope_parameters: Rope,
}

#[derive(Clone, Debug, Deserialize)]
struct Rope {
    rope_theta: f32,
    rope_type: String,
}

impl Config {
    /// # Errors
    ///
    /// Fails when the file is not that of a Llama as this program has it.
    pub(crate) fn read(directory: &Path) -> Result<Self> {
        let path = directory.join("config.json");
        let at = || path.display().to_string();
        let config: Self = serde_json::from_slice(&fs::read(&path).with_context(at)?).with_context(at)?;
        let Self { hidden_size, num_attention_heads: heads, num_key_value_heads: shared, .. } = config;
        if heads == 0 || shared == 0 || heads % shared != 0 || hidden_size % heads != 0 {
            bail!("{}: {heads} heads and {shared} of keys do not share {hidden_size} numbers", at());
        }
        if config.tie_word_embeddings || config.rope_parameters.rope_type != "default" {
            bail!("{}: tied embeddings and scaled rotations are more than this program has", at());
        }
        Ok(config)
    }
}

pub(crate) struct Llama {
    config: Config,
    embeddings: Embedding,
    layers: Vec<Layer>,
    norm: RmsNorm,
    head: Linear,
}

struct Layer {
    norm: RmsNorm,
    attention: [Linear; 4],
    mlp_norm: RmsNorm,
    mlp: [Linear; 3],
}

impl Llama {
    /// Makes the variables of a map.
    pub(crate) fn new(config: &Config, map: &VarMap) -> candle_core::Result<Self> {
        let vb = VarBuilder::from_varmap(map, DType::F32, &Device::Cpu);
        let Config { hidden_size: hidden, rms_norm_eps: eps, .. } = *config;
        let model = vb.pp("model");
        let layers =
            (0..config.num_hidden_layers).map(|layer| Layer::new(config, &model.pp("layers").pp(layer)));
        Ok(Self {
            config: config.clone(),
            embeddings: embedding(config.vocab_size, hidden, model.pp("embed_tokens"))?,
            layers: layers.collect::<candle_core::Result<_>>()?,
            norm: rms_norm(hidden, eps, model.pp("norm"))?,
            head: linear_no_bias(hidden, config.vocab_size, vb.pp("lm_head"))?,
        })
    }

    /// From tokens, `[rows, length]`, to what may follow each of them, `[rows * length, vocabulary]`.
    pub(crate) fn forward(&self, tokens: &Tensor) -> candle_core::Result<Tensor> {
        let (rows, length) = tokens.dims2()?;
        let places = Places::new(&self.config, length)?;
        let mut x = self.embeddings.forward(tokens)?;
        for layer in &self.layers {
            x = layer.forward(&self.config, &x, &places)?;
        }
        self.head.forward(&self.norm.forward_diff(&x)?)?.reshape((rows * length, self.config.vocab_size))
    }
}

/// What depends on the places of tokens alone.
struct Places {
    cos: Tensor,
    sin: Tensor,
    /// What is added where a token would look ahead.
    mask: Tensor,
}

impl Places {
    fn new(config: &Config, length: usize) -> candle_core::Result<Self> {
        let half = config.hidden_size / config.num_attention_heads / 2;
        let theta = config.rope_parameters.rope_theta;
        let angle = |at: usize, i: usize| at as f32 / theta.powf(i as f32 / half as f32);
        let angles: Vec<_> = (0..length).flat_map(|at| (0..half).map(move |i| angle(at, i))).collect();
        let angles = Tensor::from_vec(angles, (length, half), &Device::Cpu)?;
        let ahead = |at: usize, other: usize| if other > at { -1e9_f32 } else { 0.0 };
        let mask: Vec<_> =
            (0..length).flat_map(|at| (0..length).map(move |other| ahead(at, other))).collect();
        let mask = Tensor::from_vec(mask, (length, length), &Device::Cpu)?;
        Ok(Self { cos: angles.cos()?, sin: angles.sin()?, mask })
    }
}

impl Layer {
    fn new(config: &Config, vb: &VarBuilder<'_>) -> candle_core::Result<Self> {
        let Config { hidden_size: hidden, intermediate_size: wide, rms_norm_eps: eps, .. } = *config;
        let keys = hidden / config.num_attention_heads * config.num_key_value_heads;
        let attention = |name, out| linear_no_bias(hidden, out, vb.pp("self_attn").pp(name));
        let mlp = |name, from, to| linear_no_bias(from, to, vb.pp("mlp").pp(name));
        Ok(Self {
            norm: rms_norm(hidden, eps, vb.pp("input_layernorm"))?,
            attention: [
                attention("q_proj", hidden)?,
                attention("k_proj", keys)?,
                attention("v_proj", keys)?,
                attention("o_proj", hidden)?,
            ],
            mlp_norm: rms_norm(hidden, eps, vb.pp("post_attention_layernorm"))?,
            mlp: [
                mlp("gate_proj", hidden, wide)?,
                mlp("up_proj", hidden, wide)?,
                mlp("down_proj", wide, hidden)?,
            ],
        })
    }

    fn forward(&self, config: &Config, x: &Tensor, places: &Places) -> candle_core::Result<Tensor> {
        let x = (x + self.attend(config, &self.norm.forward_diff(x)?, places)?)?;
        let [gate, up, down] = &self.mlp;
        let normed = self.mlp_norm.forward_diff(&x)?;
        let wide = (gate.forward(&normed)?.silu()? * up.forward(&normed)?)?;
        x + down.forward(&wide)?
    }

    fn attend(&self, config: &Config, x: &Tensor, places: &Places) -> candle_core::Result<Tensor> {
        let (rows, length, hidden) = x.dims3()?;
        let (heads, shared) = (config.num_attention_heads, config.num_key_value_heads);
        let size = hidden / heads;
        let [q, k, v, o] = &self.attention;
        let split = |layer: &Linear, heads| {
            layer.forward(x)?.reshape((rows, length, heads, size))?.transpose(1, 2)?.contiguous()
        };
        let turned = |x: Tensor| rope_slow(&x, &places.cos, &places.sin);
        // Each head of keys serves several of queries.
        let repeated = |x: Tensor| {
            let each = x.unsqueeze(2)?.broadcast_as((rows, shared, heads / shared, length, size))?;
            each.contiguous()?.reshape((rows, heads, length, size))
        };
        let q = turned(split(q, heads)?)?;
        let k = repeated(turned(split(k, shared)?)?)?;
        let v = repeated(split(v, shared)?)?;
        let scores =
            (q.matmul(&k.t()?.contiguous()?)? / (size as f64).sqrt())?.broadcast_add(&places.mask)?;
        let mixed = ops::softmax(&scores, D::Minus1)?.matmul(&v)?;
        o.forward(&mixed.transpose(1, 2)?.contiguous()?.reshape((rows, length, hidden))?)
    }
}

/// Gives the variables random values that follow from the seed: Candle's own on the CPU cannot be seeded.
pub(crate) fn initialise(map: &VarMap, seed: u64) -> candle_core::Result<()> {
    let mut vars: Vec<_> = weighbridge_candle::vars(map);
    vars.sort_by(|a, b| a.0.cmp(&b.0));
    let data = map.data().lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    for (number, (name, tensor)) in vars.iter().enumerate() {
        let mut random = Random::new(seed, u64::MAX - number as u64);
        let value = |_| if tensor.rank() == 1 { 1.0 } else { 0.06 * (random.unit() - 0.5) };
        let values: Vec<f32> = (0..tensor.elem_count()).map(value).collect();
        if let Some(var) = data.get(name) {
            var.set(&Tensor::from_vec(values, tensor.shape(), &Device::Cpu)?)?;
        }
    }
    Ok(())
}
