//! Whole models with the state dicts of transformers and torchvision: loaded, they compute what the originals
//! computed, and saved, they are the files again.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::pool::{MaxPool2d, MaxPool2dConfig};
use burn::nn::transformer::{TransformerEncoder, TransformerEncoderConfig, TransformerEncoderInput};
use burn::nn::{
    BatchNorm, BatchNormConfig, Embedding, EmbeddingConfig, LayerNorm, LayerNormConfig, Linear, LinearConfig,
    PaddingConfig2d,
};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Int, Tensor, TensorData, Tolerance};
use weighbridge_burn::weighbridge::write::Save;
use weighbridge_burn::weighbridge::{Checkpoint, ErrorKind, Names, Plan, Renames, TensorView};
use weighbridge_burn::{Mapping, load, save};

const DIRECTORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/models");

fn checkpoint(name: &str) -> Checkpoint {
    Checkpoint::from_bytes(std::fs::read(format!("{DIRECTORY}/{name}.safetensors")).unwrap()).unwrap()
}

fn data(ckpt: &Checkpoint, name: &str) -> TensorData {
    let tensor = ckpt.tensor(name).unwrap();
    let bytes = tensor.view().unwrap().bytes();
    match tensor.dtype().name() {
        "I64" => {
            let ids = bytes.chunks(8).map(|id| i64::from_le_bytes(id.try_into().unwrap()));
            TensorData::new(ids.collect::<Vec<i64>>(), tensor.shape().to_vec())
        }
        _ => {
            let values = bytes.chunks(4).map(|value| f32::from_le_bytes(value.try_into().unwrap()));
            TensorData::new(values.collect::<Vec<f32>>(), tensor.shape().to_vec())
        }
    }
}

/// The weights of a file without the inputs and outputs beside them, and without what Burn's layers do not
/// have.
fn weights(ckpt: &Checkpoint) -> Vec<(String, Vec<u8>)> {
    let is_weight = |name: &str| {
        !name.starts_with("in.") && !name.starts_with("out.") && !name.ends_with("num_batches_tracked")
    };
    let tensors = ckpt.tensors().filter(|tensor| is_weight(tensor.name()));
    let mut weights: Vec<_> =
        tensors.map(|tensor| (tensor.name().to_owned(), tensor.view().unwrap().bytes().to_vec())).collect();
    weights.sort();
    weights
}

#[derive(Module, Debug)]
struct Bert {
    embeddings: Embeddings,
    encoder: TransformerEncoder,
    pooler: Linear,
}

#[derive(Module, Debug)]
struct Embeddings {
    word: Embedding,
    position: Embedding,
    token_type: Embedding,
    norm: LayerNorm,
}

impl Bert {
    fn new(device: &Device) -> Self {
        let norm = LayerNormConfig::new(16).with_epsilon(1e-12);
        Self {
            embeddings: Embeddings {
                word: EmbeddingConfig::new(20, 16).init(device),
                position: EmbeddingConfig::new(12, 16).init(device),
                token_type: EmbeddingConfig::new(2, 16).init(device),
                norm: norm.init(device),
            },
            encoder: TransformerEncoderConfig::new(16, 24, 2, 2)
                .with_dropout(0.0)
                .with_layer_norm_eps(1e-12)
                .init(device),
            pooler: LinearConfig::new(16, 16).init(device),
        }
    }

    fn forward(&self, ids: Tensor<2, Int>) -> (Tensor<3>, Tensor<2>) {
        let [rows, length] = ids.dims();
        let device = ids.device();
        let positions =
            Tensor::arange(0..i64::try_from(length).unwrap(), &device).unsqueeze::<2>().repeat_dim(0, rows);
        let kinds = Tensor::<2, Int>::zeros([rows, length], &device);
        let Embeddings { word, position, token_type, norm } = &self.embeddings;
        let sum = word.forward(ids) + position.forward(positions) + token_type.forward(kinds);
        let hidden = self.encoder.forward(TransformerEncoderInput::new(norm.forward(sum)));
        let first = hidden.clone().narrow(1, 0, 1).squeeze_dim::<2>(1);
        (hidden, self.pooler.forward(first).tanh())
    }

    /// From transformers' names to those of the fields here.
    fn renames() -> Renames {
        Renames::new()
            .glob("embeddings.*_embeddings.*", "embeddings.*.*")
            .and_then(|renames| renames.glob("embeddings.LayerNorm.*", "embeddings.norm.*"))
            .and_then(|renames| renames.glob("encoder.layer.*", "encoder.layers.*"))
            .and_then(|renames| renames.glob("*.attention.self.*", "*.mha.*"))
            .and_then(|renames| renames.glob("*.attention.output.dense.*", "*.mha.output.*"))
            .and_then(|renames| renames.glob("*.attention.output.LayerNorm.*", "*.norm_1.*"))
            .and_then(|renames| renames.glob("*.intermediate.dense.*", "*.pwff.linear_inner.*"))
            .and_then(|renames| renames.glob("*.output.dense.*", "*.pwff.linear_outer.*"))
            .and_then(|renames| renames.glob("*.output.LayerNorm.*", "*.norm_2.*"))
            .and_then(|renames| renames.glob("pooler.dense.*", "pooler.*"))
            .unwrap()
    }

    /// And back.
    fn names_back() -> Renames {
        Renames::new()
            .regex(r"^embeddings\.(word|position|token_type)\.", "embeddings.${1}_embeddings.")
            .and_then(|renames| renames.glob("embeddings.norm.*", "embeddings.LayerNorm.*"))
            .and_then(|renames| renames.glob("encoder.layers.*", "encoder.layer.*"))
            .and_then(|renames| renames.glob("*.mha.output.*", "*.attention.output.dense.*"))
            .and_then(|renames| renames.glob("*.mha.*", "*.attention.self.*"))
            .and_then(|renames| renames.glob("*.norm_1.*", "*.attention.output.LayerNorm.*"))
            .and_then(|renames| renames.glob("*.pwff.linear_inner.*", "*.intermediate.dense.*"))
            .and_then(|renames| renames.glob("*.pwff.linear_outer.*", "*.output.dense.*"))
            .and_then(|renames| renames.glob("*.norm_2.*", "*.output.LayerNorm.*"))
            .and_then(|renames| renames.glob("pooler.*", "pooler.dense.*"))
            .unwrap()
    }
}

#[test]
fn bert_computes_what_transformers_computed_and_is_its_file_again() {
    let (device, ckpt) = (Device::flex(), checkpoint("bert"));
    let mut bert = Bert::new(&device);
    let report = load(&ckpt).pytorch().rename(Bert::renames()).into(&mut bert).unwrap();
    assert_eq!(report.unused, ["in.ids", "out.hidden", "out.pooled"]);
    let (hidden, pooled) = bert.forward(Tensor::from_data(data(&ckpt, "in.ids"), &device));
    let close = Tolerance::absolute(1e-5);
    hidden.into_data().assert_approx_eq::<f32>(&data(&ckpt, "out.hidden"), close);
    pooled.into_data().assert_approx_eq::<f32>(&data(&ckpt, "out.pooled"), close);

    let mapping = Mapping::pytorch().attention_unfused();
    let saved = save(&bert).mapping(mapping).rename(Bert::names_back()).bytes().unwrap();
    assert_eq!(weights(&Checkpoint::from_bytes(saved).unwrap()), weights(&ckpt));

    // As torch.nn.MultiheadAttention has it, which is loaded as well.
    let saved = Checkpoint::from_bytes(save(&bert).pytorch().bytes().unwrap()).unwrap();
    assert!(saved.tensor("encoder.layers.1.mha.in_proj_weight").is_some());
    let mut again = Bert::new(&device);
    load(&saved).pytorch().all_used().into(&mut again).unwrap();
    assert!(save(&again).bytes().unwrap() == save(&bert).bytes().unwrap());
}

#[derive(Module, Debug)]
struct ResNet {
    conv1: Conv2d,
    bn1: BatchNorm,
    maxpool: MaxPool2d,
    layer1: Vec<Block>,
    layer2: Vec<Block>,
    fc: Linear,
}

#[derive(Module, Debug)]
struct Block {
    conv1: Conv2d,
    bn1: BatchNorm,
    conv2: Conv2d,
    bn2: BatchNorm,
    downsample: Option<Downsample>,
}

#[derive(Module, Debug)]
struct Downsample {
    conv: Conv2d,
    norm: BatchNorm,
}

impl ResNet {
    fn new(device: &Device) -> Self {
        let conv = |channels, size: usize, stride: usize| {
            Conv2dConfig::new(channels, [size, size])
                .with_stride([stride, stride])
                .with_padding(PaddingConfig2d::Explicit(size / 2, size / 2, size / 2, size / 2))
                .with_bias(false)
                .init(device)
        };
        let norm = |channels| BatchNormConfig::new(channels).init(device);
        let block = |inputs, outputs, stride| Block {
            conv1: conv([inputs, outputs], 3, stride),
            bn1: norm(outputs),
            conv2: conv([outputs, outputs], 3, 1),
            bn2: norm(outputs),
            downsample: (inputs != outputs)
                .then(|| Downsample { conv: conv([inputs, outputs], 1, stride), norm: norm(outputs) }),
        };
        Self {
            conv1: conv([3, 4], 7, 2),
            bn1: norm(4),
            maxpool: MaxPool2dConfig::new([3, 3])
                .with_strides([2, 2])
                .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
                .init(),
            layer1: vec![block(4, 4, 1), block(4, 4, 1)],
            layer2: vec![block(4, 8, 2), block(8, 8, 1)],
            fc: LinearConfig::new(8, 5).init(device),
        }
    }

    fn forward(&self, image: Tensor<4>) -> Tensor<2> {
        let start = self.maxpool.forward(relu(self.bn1.forward(self.conv1.forward(image))));
        let blocks = self.layer1.iter().chain(&self.layer2);
        let hidden = blocks.fold(start, |hidden, block| block.forward(hidden));
        self.fc.forward(hidden.mean_dim(2).mean_dim(3).flatten(1, 3))
    }

    fn renames() -> Renames {
        let renames = Renames::new().glob("*.downsample.0.*", "*.downsample.conv.*");
        renames.and_then(|renames| renames.glob("*.downsample.1.*", "*.downsample.norm.*")).unwrap()
    }
}

impl Block {
    fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        let skip = match &self.downsample {
            Some(Downsample { conv, norm }) => norm.forward(conv.forward(input.clone())),
            None => input.clone(),
        };
        let hidden = relu(self.bn1.forward(self.conv1.forward(input)));
        relu(self.bn2.forward(self.conv2.forward(hidden)) + skip)
    }
}

#[test]
fn resnet_computes_what_pytorch_computed_and_is_its_file_again() {
    let (device, ckpt) = (Device::flex(), checkpoint("resnet"));
    let mut resnet = ResNet::new(&device);
    let report = load(&ckpt).pytorch().rename(ResNet::renames()).into(&mut resnet).unwrap();
    // One for each of the norms, and the input and the output.
    assert_eq!(report.unused.len(), 10 + 2, "{report:?}");
    let scores = resnet.forward(Tensor::from_data(data(&ckpt, "in.image"), &device));
    scores.into_data().assert_approx_eq::<f32>(&data(&ckpt, "out.scores"), Tolerance::absolute(1e-5));

    let back = Renames::new().glob("*.downsample.conv.*", "*.downsample.0.*").unwrap();
    let back = back.glob("*.downsample.norm.*", "*.downsample.1.*").unwrap();
    let saved = save(&resnet).pytorch().rename(back).bytes().unwrap();
    assert_eq!(weights(&Checkpoint::from_bytes(saved).unwrap()), weights(&ckpt));
}

/// A part of a checkpoint, one of whose tensors may have another shape.
fn changed(ckpt: &Checkpoint, without: &str, reshaped: Option<(&str, &[usize])>) -> Checkpoint {
    let plan = Plan::of(ckpt).only(Names::all().except(Names::exact(without))).build().unwrap();
    let tensors = plan.entries().iter().map(|entry| {
        let view = ckpt.tensor(entry.name()).unwrap().view().unwrap();
        match reshaped {
            Some((name, shape)) if name == entry.name() => {
                (name.to_owned(), TensorView::new(view.dtype(), shape, view.bytes()).unwrap())
            }
            _ => (entry.name().to_owned(), view),
        }
    });
    Checkpoint::from_bytes(Save::new().bytes(tensors).unwrap()).unwrap()
}

#[test]
fn a_checkpoint_that_does_not_fit_is_named_and_changes_nothing() {
    let (device, ckpt) = (Device::flex(), checkpoint("resnet"));
    let mut resnet = ResNet::new(&device);
    let before = save(&resnet).bytes().unwrap();
    let mut fails = |ckpt: &Checkpoint, kind, words: &[&str]| {
        let error = load(ckpt).pytorch().rename(ResNet::renames()).into(&mut resnet).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        let text = error.to_string();
        assert!(words.iter().all(|word| text.contains(word)) && text.lines().count() == 1, "{text}");
        assert!(save(&resnet).bytes().unwrap() == before);
    };
    let missing = changed(&ckpt, "layer2.0.downsample.1.running_var", None);
    fails(&missing, ErrorKind::MissingTensor, &["layer2.0.downsample.norm.running_var"]);
    let wide = changed(&ckpt, "", Some(("layer1.1.conv2.weight", &[4, 4, 9])));
    fails(&wide, ErrorKind::Shape, &["layer1.1.conv2.weight", "[4, 4, 9]", "[4, 4, 3, 3]"]);
    let turned = changed(&ckpt, "", Some(("fc.weight", &[8, 5])));
    fails(&turned, ErrorKind::Shape, &["fc.weight", "[8, 5]", "[5, 8]"]);
    // Without a rule for them, the names of the shortcut are wrong; the nearest are told.
    let error = load(&ckpt).pytorch().into(&mut resnet).unwrap_err().to_string();
    assert!(error.contains("downsample.conv.weight") && error.contains("downsample.0.weight"), "{error}");
}
