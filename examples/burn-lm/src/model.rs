//! A decoder of Llama's architecture, with what Mistral and Qwen changed. Its fields are called as Hugging Face calls
//! them, so that a checkpoint needs no renaming; what is laid out otherwise there, the weights of `Linear`, weighbridge
//! knows.

mod cache;
mod lora;
mod rotary;

use anyhow::{Result, anyhow};
use burn::module::{Module, ModuleVisitor, Param};
use burn::nn::{Embedding, EmbeddingConfig, Initializer, Linear, LinearConfig, RmsNorm, RmsNormConfig};
use burn::tensor::activation::{silu, softmax};
use burn::tensor::{Bool, DType, Device, Int, Tensor, TensorData};

use self::lora::{LayerLora, LowRank};
use self::rotary::Rotary;
use crate::config::LlamaConfig;

pub use self::cache::Cache;
pub use self::lora::{Lora, TARGETS};
pub(crate) use self::rotary::speeds;

/// A language model.
#[derive(Module, Debug)]
pub struct Llama {
    model: Decoder,
    /// None where the embedding serves for it.
    lm_head: Option<Linear>,
    /// By how much positions turn each pair of a head's elements.
    #[module(skip)]
    speeds: Vec<f32>,
}

#[derive(Module, Debug)]
struct Decoder {
    embed_tokens: Embedding,
    layers: Vec<Layer>,
    norm: RmsNorm,
}

#[derive(Module, Debug)]
struct Layer {
    input_layernorm: RmsNorm,
    self_attn: Attention,
    post_attention_layernorm: RmsNorm,
    mlp: Mlp,
}

/// Heads of queries, some of which share a head of keys and values.
#[derive(Module, Debug)]
struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    /// Qwen3's, of each head by itself.
    q_norm: Option<RmsNorm>,
    k_norm: Option<RmsNorm>,
    heads: usize,
    key_value_heads: usize,
    head_dim: usize,
}

#[derive(Module, Debug)]
struct Mlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
}

/// What is the same for all layers in one pass.
struct Pass {
    rotary: Rotary,
    /// True where a token would look at a later one; none where no token can.
    later: Option<Tensor<4, Bool>>,
}

impl Llama {
    /// A model whose parameters get values when they are needed first, or are loaded.
    pub fn new(config: &LlamaConfig, device: &Device) -> Self {
        let initializer = Initializer::Normal { mean: 0.0, std: config.spread };
        let linear = |input: usize, output: usize, bias: bool| {
            LinearConfig::new(input, output)
                .with_bias(bias)
                .with_initializer(initializer.clone())
                .init(device)
        };
        let norm = |width| RmsNormConfig::new(width).with_epsilon(config.norm_epsilon).init(device);
        let LlamaConfig { hidden, inner, head_dim, qkv_bias, .. } = *config;
        let (queries, keys) = (config.heads * head_dim, config.key_value_heads * head_dim);
        let layer = |_: usize| Layer {
            input_layernorm: norm(hidden),
            self_attn: Attention {
                q_proj: linear(hidden, queries, qkv_bias),
                k_proj: linear(hidden, keys, qkv_bias),
                v_proj: linear(hidden, keys, qkv_bias),
                o_proj: linear(queries, hidden, config.o_bias),
                q_norm: config.head_norms.then(|| norm(head_dim)),
                k_norm: config.head_norms.then(|| norm(head_dim)),
                heads: config.heads,
                key_value_heads: config.key_value_heads,
                head_dim,
            },
            post_attention_layernorm: norm(hidden),
            mlp: Mlp {
                gate_proj: linear(hidden, inner, config.mlp_bias),
                up_proj: linear(hidden, inner, config.mlp_bias),
                down_proj: linear(inner, hidden, config.mlp_bias),
            },
        };
        Self {
            model: Decoder {
                embed_tokens: EmbeddingConfig::new(config.vocabulary, hidden)
                    .with_initializer(initializer.clone())
                    .init(device),
                layers: (0..config.layers).map(layer).collect(),
                norm: norm(hidden),
            },
            lm_head: (!config.tied).then(|| linear(hidden, config.vocabulary, false)),
            speeds: config.speeds.clone(),
        }
    }

    /// Draws the first values of all parameters now, one after the other, so that they follow from the device's seed.
    pub fn initialise(&self) {
        initialise(self);
    }

    /// What comes after these tokens, which come after those that the cache knows of: a logit for each token of the
    /// vocabulary.
    ///
    /// # Errors
    ///
    /// The device fails.
    pub fn next(&self, tokens: &[u32], cache: &mut Cache) -> Result<Vec<f32>> {
        let device = self.model.norm.gamma.device();
        let input: Tensor<2, Int> =
            Tensor::from_data(TensorData::new(tokens.to_vec(), [1, tokens.len()]), &device);
        let hidden = self.forward(input, None, Some(cache));
        let last: Tensor<2> = hidden.slice([0..1, tokens.len() - 1..tokens.len()]).squeeze_dim(1);
        floats(self.head(last))
    }

    /// What the model gives for the tokens that follow some places; row after row, these are numbered throughout.
    pub fn logits_at(
        &self,
        tokens: Tensor<2, Int>,
        places: Tensor<1, Int>,
        lora: Option<&Lora>,
    ) -> Tensor<2> {
        let [rows, length] = tokens.dims();
        let hidden = self.forward(tokens, lora, None);
        let [_, _, width] = hidden.dims();
        let hidden: Tensor<2> = hidden.reshape([rows * length, width]);
        self.head(hidden.select(0, places))
    }

    fn head(&self, hidden: Tensor<2>) -> Tensor<2> {
        match &self.lm_head {
            Some(lm_head) => lm_head.forward(hidden),
            None => hidden.matmul(self.model.embed_tokens.weight.val().transpose()),
        }
    }

    fn forward(
        &self,
        tokens: Tensor<2, Int>,
        lora: Option<&Lora>,
        mut cache: Option<&mut Cache>,
    ) -> Tensor<3> {
        let [_, length] = tokens.dims();
        let device = tokens.device();
        let start = cache.as_ref().map_or(0, |cache| cache.length());
        let mut hidden = self.model.embed_tokens.forward(tokens);
        let later = || {
            Tensor::<2, Bool>::tril_mask([length, start + length], start.cast_signed() as i64, &device)
                .unsqueeze::<4>()
        };
        let pass = Pass {
            rotary: Rotary::new(start, length, &self.speeds, hidden.dtype(), &device),
            later: (length > 1).then(later),
        };
        for (number, layer) in self.model.layers.iter().enumerate() {
            let lora = lora.and_then(|lora| lora.layers.get(number));
            let remember = |keys, values| match &mut cache {
                Some(cache) => cache.append(number, keys, values),
                None => (keys, values),
            };
            hidden = layer.forward(hidden, &pass, lora, remember);
        }
        if let Some(cache) = cache {
            cache.advance(length);
        }
        self.model.norm.forward(hidden)
    }
}

impl Layer {
    fn forward(
        &self,
        input: Tensor<3>,
        pass: &Pass,
        lora: Option<&LayerLora>,
        remember: impl FnMut(Tensor<4>, Tensor<4>) -> (Tensor<4>, Tensor<4>),
    ) -> Tensor<3> {
        let attended =
            self.self_attn.forward(self.input_layernorm.forward(input.clone()), pass, lora, remember);
        let hidden = input + attended;
        let fed = self.mlp.forward(self.post_attention_layernorm.forward(hidden.clone()), lora);
        hidden + fed
    }
}

impl Attention {
    /// `remember` is given the keys and values of the new tokens, and returns those of all.
    fn forward(
        &self,
        input: Tensor<3>,
        pass: &Pass,
        lora: Option<&LayerLora>,
        mut remember: impl FnMut(Tensor<4>, Tensor<4>) -> (Tensor<4>, Tensor<4>),
    ) -> Tensor<3> {
        let [rows, length, _] = input.dims();
        let Self { heads, key_value_heads, head_dim, .. } = *self;
        let split = |projected: Tensor<3>, heads: usize| -> Tensor<4> {
            projected.reshape([rows, length, heads, head_dim]).swap_dims(1, 2)
        };
        let normed = |norm: &Option<RmsNorm>, values: Tensor<4>| match norm {
            Some(norm) => norm.forward(values),
            None => values,
        };
        let queries = project(&self.q_proj, lora, |lora| &lora.q_proj, input.clone());
        let keys = project(&self.k_proj, lora, |lora| &lora.k_proj, input.clone());
        let values = project(&self.v_proj, lora, |lora| &lora.v_proj, input);
        let queries = pass.rotary.turn(normed(&self.q_norm, split(queries, heads)));
        let keys = pass.rotary.turn(normed(&self.k_norm, split(keys, key_value_heads)));
        let (keys, values) = remember(keys, split(values, key_value_heads));
        let [_, _, all, _] = keys.dims();

        // The queries that share keys and values are one matrix, so that these are not repeated.
        let sharing = heads / key_value_heads * length;
        let queries: Tensor<4> = queries.reshape([rows, key_value_heads, sharing, head_dim]);
        let scores: Tensor<4> = queries.matmul(keys.transpose()).reshape([rows, heads, length, all]);
        let scores = scores * (head_dim as f64).powf(-0.5);
        let scores = match &pass.later {
            Some(later) => scores.mask_fill(later.clone(), f32::NEG_INFINITY),
            None => scores,
        };
        let dtype = scores.dtype();
        let weights = softmax(scores.cast(DType::F32), 3).cast(dtype);
        let mixed: Tensor<4> = weights.reshape([rows, key_value_heads, sharing, all]).matmul(values);
        let mixed: Tensor<4> = mixed.reshape([rows, heads, length, head_dim]).swap_dims(1, 2);
        let mixed = mixed.reshape([rows, length, heads * head_dim]);
        project(&self.o_proj, lora, |lora| &lora.o_proj, mixed)
    }
}

impl Mlp {
    /// SwiGLU.
    fn forward(&self, input: Tensor<3>, lora: Option<&LayerLora>) -> Tensor<3> {
        let gate = project(&self.gate_proj, lora, |lora| &lora.gate_proj, input.clone());
        let up = project(&self.up_proj, lora, |lora| &lora.up_proj, input);
        project(&self.down_proj, lora, |lora| &lora.down_proj, silu(gate) * up)
    }
}

/// A linear layer, and what is added to it.
fn project(
    linear: &Linear,
    lora: Option<&LayerLora>,
    of: fn(&LayerLora) -> &Option<LowRank>,
    input: Tensor<3>,
) -> Tensor<3> {
    match lora.and_then(|lora| of(lora).as_ref()) {
        Some(added) => linear.forward(input.clone()) + added.forward(input),
        None => linear.forward(input),
    }
}

/// Draws the first values of all parameters of a module now, one after the other, so that they follow from the device's
/// seed.
pub fn initialise(module: &impl Module) {
    struct Initialise;

    impl ModuleVisitor for Initialise {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            drop(param.val());
        }
    }

    module.visit(&mut Initialise);
}

/// The numbers of a tensor.
///
/// # Errors
///
/// The device fails.
pub fn floats<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>> {
    tensor.try_into_vec_as::<f32>().map_err(|error| anyhow!("the device: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Random weights, biases and head norms included.
    fn model() -> Llama {
        let config = json!({
            "model_type": "qwen3", "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4,
            "num_hidden_layers": 2, "num_key_value_heads": 2, "vocab_size": 40, "head_dim": 16, "attention_bias": true,
            "initializer_range": 0.5
        });
        let config = LlamaConfig::parse(config.as_object().unwrap(), None).unwrap();
        let device = Device::flex();
        device.seed(1);
        Llama::new(&config, &device)
    }

    #[test]
    fn a_cache_changes_nothing() {
        let model = model();
        let tokens: Vec<u32> = (0..300).map(|number| number * 7 % 40).collect();
        let mut cache = Cache::default();
        // A long prompt, single tokens beyond the first block of the cache, and several at once.
        let mut cached = vec![model.next(&tokens[..250], &mut cache).unwrap()];
        cached.extend((250..290).map(|at| model.next(&tokens[at..=at], &mut cache).unwrap()));
        cached.push(model.next(&tokens[290..], &mut cache).unwrap());
        assert_eq!(cache.length(), 300);
        let ends = (250..=290).chain([300]);
        for (end, cached) in ends.zip(cached) {
            let whole = model.next(&tokens[..end], &mut Cache::default()).unwrap();
            let apart = whole.iter().zip(&cached).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(apart < 1e-4, "after {end} tokens: {apart}");
            assert!(whole.iter().any(|logit| logit.abs() > 0.1));
        }
    }
}
