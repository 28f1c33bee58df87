//! Products of two small matrices beside large ones: low-rank adaptation (arXiv:2106.09685).

use anyhow::Result;
use burn::module::Module;
use burn::nn::{Initializer, Linear, LinearConfig};
use burn::tensor::{Device, Tensor};

use super::floats;
use crate::config::LlamaConfig;

/// The linear layers that can have one, as Hugging Face calls them.
pub const TARGETS: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// What is added to a model. It is a module of its own, so that whoever trains it trains and saves nothing else.
#[derive(Module, Debug)]
pub struct Lora {
    pub(super) layers: Vec<LayerLora>,
}

/// What is added to a layer.
#[derive(Module, Debug)]
pub(super) struct LayerLora {
    pub(super) q_proj: Option<LowRank>,
    pub(super) k_proj: Option<LowRank>,
    pub(super) v_proj: Option<LowRank>,
    pub(super) o_proj: Option<LowRank>,
    pub(super) gate_proj: Option<LowRank>,
    pub(super) up_proj: Option<LowRank>,
    pub(super) down_proj: Option<LowRank>,
}

/// `alpha / rank` times the product of two matrices.
#[derive(Module, Debug)]
pub struct LowRank {
    /// To so many numbers as the rank is.
    lora_a: Linear,
    /// And from these to all.
    lora_b: Linear,
    scale: f64,
}

impl Lora {
    /// For some of the [`TARGETS`] of all layers. As in PEFT, one factor is drawn and the other is zero, so that at first
    /// nothing is added.
    pub fn new(config: &LlamaConfig, targets: &[String], rank: usize, alpha: f64, device: &Device) -> Self {
        let LlamaConfig { hidden, inner, .. } = *config;
        let (queries, keys) = (config.heads * config.head_dim, config.key_value_heads * config.head_dim);
        let product = |name: &str, inputs, outputs| {
            let linear = |inputs, outputs| LinearConfig::new(inputs, outputs).with_bias(false);
            let is_wanted = targets.iter().any(|target| target == name);
            is_wanted.then(|| LowRank {
                lora_a: linear(inputs, rank).init(device),
                lora_b: linear(rank, outputs).with_initializer(Initializer::Zeros).init(device),
                scale: alpha / rank as f64,
            })
        };
        let layer = |_| LayerLora {
            q_proj: product("q_proj", hidden, queries),
            k_proj: product("k_proj", hidden, keys),
            v_proj: product("v_proj", hidden, keys),
            o_proj: product("o_proj", queries, hidden),
            gate_proj: product("gate_proj", hidden, inner),
            up_proj: product("up_proj", hidden, inner),
            down_proj: product("down_proj", inner, hidden),
        };
        Self { layers: (0..config.layers).map(layer).collect() }
    }

    /// All products, with the names that Hugging Face has for the layers that they are added to.
    pub fn products(&self) -> impl Iterator<Item = (String, &LowRank)> {
        self.layers.iter().enumerate().flat_map(|(number, layer)| {
            let all = [
                ("self_attn.q_proj", &layer.q_proj),
                ("self_attn.k_proj", &layer.k_proj),
                ("self_attn.v_proj", &layer.v_proj),
                ("self_attn.o_proj", &layer.o_proj),
                ("mlp.gate_proj", &layer.gate_proj),
                ("mlp.up_proj", &layer.up_proj),
                ("mlp.down_proj", &layer.down_proj),
            ];
            let name = move |name| format!("model.layers.{number}.{name}");
            all.into_iter().filter_map(move |(of, product)| Some((name(of), product.as_ref()?)))
        })
    }
}

impl LowRank {
    /// Its factors as Hugging Face lays them out, row by row: the second one, `[outputs, rank]`, and the first one,
    /// `[rank, inputs]`.
    ///
    /// # Errors
    ///
    /// The device fails.
    pub fn factors(&self) -> Result<[Vec<f32>; 2]> {
        let laid_out = |linear: &Linear| floats(linear.weight.val().transpose());
        Ok([laid_out(&self.lora_b)?, laid_out(&self.lora_a)?])
    }

    pub(super) fn forward(&self, input: Tensor<3>) -> Tensor<3> {
        self.lora_b.forward(self.lora_a.forward(input)) * self.scale
    }
}
