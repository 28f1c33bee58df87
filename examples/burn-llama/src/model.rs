//! A decoder of Llama's architecture. Its fields are called as Hugging Face calls them, so that a checkpoint needs no
//! renaming; what is laid out otherwise there, the weights of `Linear`, weighbridge knows.

use burn::module::{Module, ModuleVisitor, Param};
use burn::nn::loss::CrossEntropyLossConfig;
use burn::nn::{Embedding, EmbeddingConfig, Initializer, Linear, LinearConfig, RmsNorm, RmsNormConfig};
use burn::tensor::activation::{silu, softmax};
use burn::tensor::{Bool, Device, Int, Tensor};
use burn::train::{ClassificationOutput, InferenceStep, TrainOutput, TrainStep};

use crate::config::LlamaConfig;
use crate::data::Batch;
use crate::rotary::{Rope, Rotary};

#[derive(Module, Debug)]
pub(crate) struct Llama {
    model: Decoder,
    /// None where the embedding serves for it.
    lm_head: Option<Linear>,
    head_dim: usize,
    #[module(skip)]
    rope: Rope,
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

impl Llama {
    /// A model whose parameters get values when they are needed first, or are loaded.
    pub(crate) fn new(config: &LlamaConfig, device: &Device) -> Self {
        let initializer = Initializer::Normal { mean: 0.0, std: config.spread };
        let linear = |input: usize, output: usize, bias: bool| {
            LinearConfig::new(input, output)
                .with_bias(bias)
                .with_initializer(initializer.clone())
                .init(device)
        };
        let norm = || RmsNormConfig::new(config.hidden).with_epsilon(config.norm_epsilon).init(device);
        let (hidden, inner, bias) = (config.hidden, config.inner, config.attention_bias);
        let (queries, keys) = (config.heads * config.head_dim, config.key_value_heads * config.head_dim);
        let layer = |_: usize| Layer {
            input_layernorm: norm(),
            self_attn: Attention {
                q_proj: linear(hidden, queries, bias),
                k_proj: linear(hidden, keys, bias),
                v_proj: linear(hidden, keys, bias),
                o_proj: linear(queries, hidden, bias),
                heads: config.heads,
                key_value_heads: config.key_value_heads,
                head_dim: config.head_dim,
            },
            post_attention_layernorm: norm(),
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
                norm: norm(),
            },
            lm_head: (!config.tied).then(|| linear(hidden, config.vocabulary, false)),
            head_dim: config.head_dim,
            rope: config.rope.clone(),
        }
    }

    /// Draws the first values of all parameters now, one after the other, so that they follow from the device's seed.
    pub(crate) fn initialise(&self) {
        struct Initialise;

        impl ModuleVisitor for Initialise {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                drop(param.val());
            }
        }

        self.visit(&mut Initialise);
    }

    /// What the model gives for the tokens that follow some places; row after row, these are numbered throughout.
    pub(crate) fn logits_at(&self, tokens: Tensor<2, Int>, places: Tensor<1, Int>) -> Tensor<2> {
        let [rows, length] = tokens.dims();
        let hidden = self.forward(tokens);
        let [_, _, width] = hidden.dims();
        let hidden: Tensor<2> = hidden.reshape([rows * length, width]);
        let hidden = hidden.select(0, places);
        match &self.lm_head {
            Some(lm_head) => lm_head.forward(hidden),
            None => hidden.matmul(self.model.embed_tokens.weight.val().transpose()),
        }
    }

    fn forward(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        let [_, length] = tokens.dims();
        let device = tokens.device();
        let rotary = Rotary::new(length, self.head_dim, &self.rope, &device);
        // True where a token would look at a later one.
        let later = Tensor::<2, Bool>::tril_mask([length, length], 0, &device).unsqueeze::<4>();
        let mut hidden = self.model.embed_tokens.forward(tokens);
        for layer in &self.model.layers {
            hidden = layer.forward(hidden, &rotary, &later);
        }
        self.model.norm.forward(hidden)
    }

    /// The loss, which counts the answers only.
    fn measure(&self, batch: Batch) -> ClassificationOutput {
        let Batch { tokens, places, targets } = batch;
        let logits = self.logits_at(tokens, places);
        let loss = CrossEntropyLossConfig::new().init(&logits.device());
        let loss = loss.forward(logits.clone(), targets.clone());
        ClassificationOutput::new(loss, logits, targets)
    }
}

impl TrainStep for Llama {
    type Input = Batch;
    type Output = ClassificationOutput;

    fn step(&self, batch: Batch) -> TrainOutput<ClassificationOutput> {
        let output = self.measure(batch);
        let gradients = output.loss.backward();
        TrainOutput::new(self, gradients, output)
    }
}

impl InferenceStep for Llama {
    type Input = Batch;
    type Output = ClassificationOutput;

    fn step(&self, batch: Batch) -> ClassificationOutput {
        self.measure(batch)
    }
}

impl Layer {
    fn forward(&self, input: Tensor<3>, rotary: &Rotary, later: &Tensor<4, Bool>) -> Tensor<3> {
        let attended = self.self_attn.forward(self.input_layernorm.forward(input.clone()), rotary, later);
        let hidden = input + attended;
        let fed = self.mlp.forward(self.post_attention_layernorm.forward(hidden.clone()));
        hidden + fed
    }
}

impl Attention {
    fn forward(&self, input: Tensor<3>, rotary: &Rotary, later: &Tensor<4, Bool>) -> Tensor<3> {
        let [rows, length, _] = input.dims();
        let split = |projected: Tensor<3>, heads: usize| -> Tensor<4> {
            projected.reshape([rows, length, heads, self.head_dim]).swap_dims(1, 2)
        };
        let shared = |values: Tensor<4>| -> Tensor<4> {
            let repeated = values.unsqueeze_dim::<5>(2).repeat_dim(2, self.heads / self.key_value_heads);
            repeated.reshape([rows, self.heads, length, self.head_dim])
        };
        let query = rotary.turn(split(self.q_proj.forward(input.clone()), self.heads));
        let key = rotary.turn(split(self.k_proj.forward(input.clone()), self.key_value_heads));
        let value = split(self.v_proj.forward(input), self.key_value_heads);

        let scores = query.matmul(shared(key).transpose()) / (self.head_dim as f64).sqrt();
        let weights = softmax(scores.mask_fill(later.clone(), f32::NEG_INFINITY), 3);
        let mixed = weights.matmul(shared(value)).swap_dims(1, 2);
        self.o_proj.forward(mixed.reshape([rows, length, self.heads * self.head_dim]))
    }
}

impl Mlp {
    /// SwiGLU.
    fn forward(&self, input: Tensor<3>) -> Tensor<3> {
        let gate = silu(self.gate_proj.forward(input.clone()));
        self.down_proj.forward(gate * self.up_proj.forward(input))
    }
}
