//! PyTorch's layers: loaded by its convention they compute what it computed, and saved they are the file
//! again.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use burn::module::Module;
use burn::nn::attention::{MhaInput, MultiHeadAttention, MultiHeadAttentionConfig};
use burn::nn::conv::{Conv1d, Conv1dConfig, Conv2d, Conv2dConfig, ConvTranspose2d, ConvTranspose2dConfig};
use burn::nn::gru::{Gru, GruConfig};
use burn::nn::{
    BatchNorm, BatchNormConfig, BiLstm, BiLstmConfig, Embedding, EmbeddingConfig, GroupNorm, GroupNormConfig,
    InstanceNorm, InstanceNormConfig, LayerNorm, LayerNormConfig, Linear, LinearConfig, LinearLayout, Lstm,
    LstmConfig, PRelu, PReluConfig, RmsNorm, RmsNormConfig,
};
use burn::tensor::{DType, Device, Int, Tensor, TensorData, Tolerance};
use weighbridge_burn::weighbridge::{Checkpoint, Names, Profile, write::Save};
use weighbridge_burn::{Mapping, load, save};

#[derive(Module, Debug)]
struct Layers {
    linear: Linear,
    column: Linear,
    embedding: Embedding,
    batch_norm: BatchNorm,
    layer_norm: LayerNorm,
    group_norm: GroupNorm,
    instance_norm: InstanceNorm,
    rms_norm: RmsNorm,
    prelu: PRelu,
    conv1d: Conv1d,
    conv2d: Conv2d,
    conv_transpose: ConvTranspose2d,
    lstm: Lstm,
    bilstm: BiLstm,
    gru: Gru,
    attention: MultiHeadAttention,
}

fn layers(device: &Device) -> Layers {
    Layers {
        linear: LinearConfig::new(6, 4).init(device),
        column: LinearConfig::new(6, 4).with_layout(LinearLayout::Col).init(device),
        embedding: EmbeddingConfig::new(5, 6).init(device),
        batch_norm: BatchNormConfig::new(6).init(device),
        layer_norm: LayerNormConfig::new(6).init(device),
        group_norm: GroupNormConfig::new(2, 6).init(device),
        instance_norm: InstanceNormConfig::new(6).init(device),
        rms_norm: RmsNormConfig::new(6).init(device),
        prelu: PReluConfig::new().with_num_parameters(3).init(device),
        conv1d: Conv1dConfig::new(3, 4, 2).init(device),
        conv2d: Conv2dConfig::new([3, 4], [2, 3]).init(device),
        conv_transpose: ConvTranspose2dConfig::new([3, 4], [2, 2]).init(device),
        lstm: LstmConfig::new(6, 5, true).init(device),
        bilstm: BiLstmConfig::new(6, 5, true).init(device),
        gru: GruConfig::new(6, 5, true).init(device),
        attention: MultiHeadAttentionConfig::new(6, 2).with_dropout(0.0).init(device),
    }
}

fn checkpoint() -> Checkpoint {
    Checkpoint::open(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/torch/layers.safetensors")).unwrap()
}

fn tensor<const D: usize>(ckpt: &Checkpoint, name: &str, device: &Device) -> Tensor<D> {
    let session = weighbridge_burn::weighbridge::Plan::of(ckpt).build().unwrap().session().start().unwrap();
    let (entry, values) = session.take(name, None).unwrap();
    let data = TensorData::from_bytes_vec(values.as_bytes().to_vec(), entry.shape().to_vec(), DType::F32);
    Tensor::from_data(data, device)
}

fn assert_computes(layers: &Layers, ckpt: &Checkpoint, device: &Device) {
    fn same<const D: usize>(ckpt: &Checkpoint, device: &Device, layer: &str, made: Tensor<D>) {
        let expected = tensor::<D>(ckpt, &format!("out.{layer}"), device);
        eprintln!("{layer}");
        made.into_data().assert_approx_eq::<f32>(&expected.into_data(), Tolerance::absolute(1e-5));
    }
    macro_rules! check {
        ($($layer:ident: $rank:literal),*) => {$(
            let input = tensor::<$rank>(ckpt, concat!("in.", stringify!($layer)), device);
            same(ckpt, device, stringify!($layer), layers.$layer.forward(input));
        )*};
    }
    check!(linear: 2, column: 2, batch_norm: 3, layer_norm: 2, group_norm: 3, instance_norm: 3, rms_norm: 2, prelu: 3,
        conv1d: 3, conv2d: 4, conv_transpose: 4);
    let ids = Tensor::<2, Int>::from_data([[0, 4, 2]], device);
    same(ckpt, device, "embedding", layers.embedding.forward(ids));
    same(ckpt, device, "lstm", layers.lstm.forward(tensor::<3>(ckpt, "in.lstm", device), None).0);
    same(ckpt, device, "bilstm", layers.bilstm.forward(tensor::<3>(ckpt, "in.bilstm", device), None).0);
    same(ckpt, device, "gru", layers.gru.forward(tensor::<3>(ckpt, "in.gru", device), None));
    let input = MhaInput::self_attn(tensor::<3>(ckpt, "in.attention", device));
    same(ckpt, device, "attention", layers.attention.forward(input).context);
}

#[test]
fn layers_compute_what_pytorch_computed() {
    let (device, ckpt) = (Device::flex(), checkpoint());
    let mut fresh = layers(&device);
    let report = load(&ckpt).pytorch().into(&mut fresh).unwrap();
    let others = |name: &String| !name.starts_with("in.") && !name.starts_with("out.");
    let unused: Vec<_> = report.unused.iter().filter(|name| others(name)).collect();
    assert_eq!(unused, ["batch_norm.num_batches_tracked"], "{report}");
    assert!(report.missing.is_empty() && report.cast.is_empty());
    assert_computes(&fresh, &ckpt, &device);

    // Once more into what is there already, from memory.
    let bytes =
        std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/torch/layers.safetensors")).unwrap();
    let mut again = layers(&device);
    assert_eq!(again.linear.weight.val().dims(), [6, 4]);
    assert_eq!(again.column.weight.val().dims(), [6, 4]);
    load(&Checkpoint::from_bytes(bytes).unwrap()).pytorch().into(&mut again).unwrap();
    assert_computes(&again, &ckpt, &device);
}

#[test]
fn what_is_saved_is_the_file_again() {
    let (device, ckpt) = (Device::flex(), checkpoint());
    let mut module = layers(&device);
    load(&ckpt).pytorch().into(&mut module).unwrap();
    let directory = tempfile::tempdir().unwrap();
    for shard in [u64::MAX, 600] {
        let saver = save(&module).pytorch().with(Save::new().max_shard_size(shard));
        saver.directory(&directory, "model").unwrap();
        let saved = Checkpoint::options().profile(Profile::Strict).open(&directory).unwrap();
        assert_eq!(saved.shards().len() > 1, shard == 600);
        assert_eq!(saved.shards()[0].header().metadata_value("format"), Some("pt"));
        let same = |ckpt: &Checkpoint, name: &str| {
            let plan =
                weighbridge_burn::weighbridge::Plan::of(ckpt).only(Names::exact(name)).build().unwrap();
            let (entry, values) = plan.session().start().unwrap().take(name, None).unwrap();
            (entry.dtype(), entry.shape().to_vec(), values.as_bytes().to_vec())
        };
        for stored in saved.tensors() {
            assert_eq!(same(&saved, stored.name()), same(&ckpt, stored.name()), "{}", stored.name());
        }
        let left_out =
            |name: &str| name.starts_with("in.") || name.starts_with("out.") || name.contains("num_batches");
        let missing: Vec<_> =
            ckpt.tensors().map(|tensor| tensor.name()).filter(|name| saved.tensor(name).is_none()).collect();
        assert!(missing.iter().all(|name| left_out(name)), "{missing:?}");
    }
    assert_eq!(save(&module).pytorch().bytes().unwrap(), save(&module.clone()).pytorch().bytes().unwrap());
}

#[test]
fn burns_own_names_and_layouts_come_back() {
    let (device, ckpt) = (Device::flex(), checkpoint());
    let mut module = layers(&device);
    load(&ckpt).pytorch().into(&mut module).unwrap();
    let bytes = save(&module).ids().bytes().unwrap();
    let own = Checkpoint::from_bytes(bytes).unwrap();
    assert_eq!(own.tensor("linear.weight").unwrap().shape(), [6, 4]);
    assert_eq!(own.tensor("lstm.input_gate.input_transform.weight").unwrap().shape(), [6, 5]);
    let mut other = layers(&device);
    let report = load(&own).all_used().into(&mut other).unwrap();
    assert!(report.unused.is_empty());
    assert_eq!(other.linear.weight.id, module.linear.weight.id);
    assert_eq!(other.column.weight.id, module.column.weight.id);
    assert_computes(&other, &ckpt, &device);
}

#[test]
fn a_fused_projection_is_divided_and_put_together() {
    #[derive(Module, Debug)]
    struct Apart {
        q: Linear,
        k: Linear,
        v: Linear,
    }
    #[derive(Module, Debug)]
    struct One {
        qkv: Linear,
    }
    let device = Device::flex();
    let linear = |outputs| LinearConfig::new(3, outputs).init(&device);
    let apart = Apart { q: linear(4), k: linear(2), v: linear(2) };
    let mut one = One { qkv: linear(8) };
    for base in [Mapping::pytorch(), Mapping::new()] {
        let fused = base.clone().fused("qkv", ["q", "k", "v"]);
        let separate = base.clone().separate_sized("qkv", [("q", 4), ("k", 2), ("v", 2)]);
        let as_one = save(&apart).mapping(fused.clone()).bytes().unwrap();
        let as_one = Checkpoint::from_bytes(as_one).unwrap();
        assert_eq!(as_one.len(), 2);
        // The same file serves the fused module without any rule, and gives the same bytes.
        let report = load(&as_one).mapping(base.clone()).into(&mut one).unwrap();
        assert_eq!(report.loaded.len(), 2);
        let as_three = save(&one).mapping(separate.clone()).bytes().unwrap();
        let own = save(&apart).mapping(base.clone()).bytes().unwrap();
        assert!(as_three == own);
        // And back, each way.
        let mut other = Apart { q: linear(4), k: linear(2), v: linear(2) };
        load(&as_one).mapping(fused.clone()).into(&mut other).unwrap();
        assert!(save(&other).mapping(base.clone()).bytes().unwrap() == own);
        let mut joined = One { qkv: linear(8) };
        load(&Checkpoint::from_bytes(own).unwrap()).mapping(separate).into(&mut joined).unwrap();
        assert!(save(&joined).bytes().unwrap() == save(&one).bytes().unwrap());
    }
    // Layers of both layouts: one matrix by PyTorch's convention, which has one layout for both.
    let column = |outputs| LinearConfig::new(3, outputs).with_layout(LinearLayout::Col).init(&device);
    let mixed = || Apart { q: linear(4), k: column(2), v: linear(2) };
    let own = save(&apart).pytorch().bytes().unwrap();
    let mut module = mixed();
    load(&Checkpoint::from_bytes(own.clone()).unwrap()).pytorch().into(&mut module).unwrap();
    let fused = Mapping::pytorch().fused("qkv", ["q", "k", "v"]);
    let as_one = save(&module).mapping(fused.clone()).bytes().unwrap();
    assert!(as_one == save(&apart).mapping(fused.clone()).bytes().unwrap());
    let mut other = mixed();
    load(&Checkpoint::from_bytes(as_one).unwrap()).mapping(fused).into(&mut other).unwrap();
    assert!(save(&other).pytorch().bytes().unwrap() == own);
    let error = save(&module).mapping(Mapping::new().fused("qkv", ["q", "k", "v"])).bytes().unwrap_err();
    assert!(error.to_string().contains("laid out differently"), "{error}");
}
