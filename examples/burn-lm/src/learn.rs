//! What a model learns from: for burn-llama, which trains all of it, and burn-lora, which trains what is added to it.

use burn::nn::loss::CrossEntropyLossConfig;
use burn::tensor::{Device, Int, Tensor, TensorData};
use burn::train::{ClassificationOutput, InferenceStep, TrainOutput, TrainStep};

use crate::model::{Llama, Lora};

/// A text to learn from: what is given, and what should follow.
#[derive(Clone, Debug)]
pub struct Example {
    /// At least one token.
    pub prompt: Vec<u32>,
    /// The end included.
    pub answer: Vec<u32>,
}

/// Some texts, and where in them the answers are.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Rows of equal length.
    pub tokens: Tensor<2, Int>,
    /// Each place, numbered throughout all rows, after which a token of an answer is expected.
    pub places: Tensor<1, Int>,
    /// That token.
    pub targets: Tensor<1, Int>,
}

impl Batch {
    /// Puts texts into tensors.
    pub fn new(examples: &[Example], device: &Device) -> Self {
        let rows: Vec<_> =
            examples.iter().map(|Example { prompt, answer }| [&**prompt, answer].concat()).collect();
        // Nothing follows the last token, so it is a target only.
        let inputs: Vec<_> = rows.iter().map(|row| &row[..row.len().saturating_sub(1)]).collect();
        let width = width(&inputs);
        let (mut places, mut targets) = (Vec::new(), Vec::<u32>::new());
        for (number, example) in examples.iter().enumerate() {
            let first = number * width + example.prompt.len() - 1;
            places.extend(first..first + example.answer.len());
            targets.extend(&example.answer);
        }
        let count = targets.len();
        Self {
            tokens: padded(&inputs, device),
            places: indices(&places, device),
            targets: Tensor::from_data(TensorData::new(targets, [count]), device),
        }
    }
}

/// Rows as a tensor, filled up on the right, where causal attention does not look.
pub fn padded(rows: &[&[u32]], device: &Device) -> Tensor<2, Int> {
    let width = width(rows);
    let mut tokens = Vec::with_capacity(rows.len() * width);
    for row in rows {
        tokens.extend_from_slice(row);
        tokens.resize(tokens.len() + width - row.len(), 0);
    }
    Tensor::from_data(TensorData::new(tokens, [rows.len(), width]), device)
}

/// The length of the rows that [`padded`] gives.
pub fn width(rows: &[&[u32]]) -> usize {
    rows.iter().map(|row| row.len()).max().unwrap_or(0)
}

/// Places as a tensor.
pub fn indices(places: &[usize], device: &Device) -> Tensor<1, Int> {
    let values: Vec<u64> = places.iter().map(|&place| place as u64).collect();
    Tensor::from_data(TensorData::new(values, [places.len()]), device)
}

impl Llama {
    /// The loss, which counts the answers only.
    pub fn measure(&self, batch: Batch, lora: Option<&Lora>) -> ClassificationOutput {
        let Batch { tokens, places, targets } = batch;
        let logits = self.logits_at(tokens, places, lora);
        let loss = CrossEntropyLossConfig::new().init(&logits.device());
        let loss = loss.forward(logits.clone(), targets.clone());
        ClassificationOutput::new(loss, logits, targets)
    }
}

impl TrainStep for Llama {
    type Input = Batch;
    type Output = ClassificationOutput;

    fn step(&self, batch: Batch) -> TrainOutput<ClassificationOutput> {
        let output = self.measure(batch, None);
        let gradients = output.loss.backward();
        TrainOutput::new(self, gradients, output)
    }
}

impl InferenceStep for Llama {
    type Input = Batch;
    type Output = ClassificationOutput;

    fn step(&self, batch: Batch) -> ClassificationOutput {
        self.measure(batch, None)
    }
}
