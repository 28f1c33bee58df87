//! A model on two devices, by how much memory each may give it.

use weighbridge_burn::weighbridge::parallel::DeviceMap;

use super::*;

#[derive(Module, Debug)]
struct Layered {
    embed: Embedding,
    layers: Vec<Linear>,
    norm: BatchNorm,
    head: Linear,
}

fn layered(device: &Device) -> Layered {
    let column = LinearConfig::new(16, 16).with_layout(LinearLayout::Col);
    Layered {
        embed: EmbeddingConfig::new(10, 16).init(device),
        layers: (0..4).map(|_| column.init(device)).collect(),
        norm: BatchNormConfig::new(16).init(device),
        head: LinearConfig::new(16, 3).init(device),
    }
}

impl Layered {
    /// The device of each layer, with what is in front of the first one and behind the last one.
    fn devices(&self) -> Vec<Device> {
        let layers = self.layers.iter().map(|layer| {
            assert_eq!(layer.bias.as_ref().unwrap().val().device(), layer.weight.val().device());
            layer.weight.val().device()
        });
        let ends = [self.norm.running_mean.value().device(), self.head.weight.val().device()];
        [self.embed.weight.val().device()].into_iter().chain(layers).chain(ends).collect()
    }

    fn compute(&self) -> TensorData {
        let first = self.embed.weight.val().device();
        let ids = Tensor::<2, Int>::from_ints([[1, 7, 9], [0, 3, 3]], &first.inner());
        let mut hidden = self.embed.forward(ids);
        for layer in &self.layers {
            hidden = forward(layer, hidden.to_device(&layer.weight.val().device()));
        }
        let hidden = hidden.to_device(&self.head.weight.val().device()).swap_dims(1, 2);
        forward(&self.head, self.norm.forward(hidden).swap_dims(1, 2)).into_data()
    }
}

/// Of a layer, and of the embedding.
const LAYER: u64 = (16 * 16 + 16) * 4;
const EMBED: u64 = 10 * 16 * 4;

#[test]
fn layers_fill_the_devices_in_order() {
    let (flex, gpu) = (Device::flex(), gpu());
    let first = layered(&flex);
    let expected = first.compute();
    let ckpt = Checkpoint::from_bytes(save(&first).pytorch().bytes().unwrap()).unwrap();
    for [one, other] in [[&flex, &gpu], [&gpu, &flex]] {
        let map = DeviceMap::by_memory([(one.clone(), EMBED + 2 * LAYER), (other.clone(), 1 << 20)]);
        // Initialised parameters are moved, and lazy ones made there, wherever they were before.
        for initialised in [false, true] {
            for device in [&flex, &gpu] {
                let mut model = layered(device);
                if initialised {
                    assert!(model.devices().iter().all(|own| own == device));
                }
                let report = load(&ckpt).pytorch().device_map(map.clone()).into(&mut model).unwrap();
                assert_eq!(report.loaded.len(), ckpt.len());
                let placed = model.devices();
                assert!(
                    placed[..3].iter().all(|own| own == one) && placed[3..].iter().all(|own| own == other)
                );
                model.compute().assert_approx_eq::<f32>(&expected, Tolerance::absolute(1e-4));
                assert!(save(&model).pytorch().bytes().unwrap() == save(&first).pytorch().bytes().unwrap());
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_named_before_anything_is_read() {
    let (flex, gpu) = (Device::flex(), gpu());
    let ckpt = Checkpoint::from_bytes(save(&layered(&flex)).pytorch().bytes().unwrap()).unwrap();
    let mut model = layered(&gpu);
    let before = save(&model).bytes().unwrap();
    let map = DeviceMap::by_memory([(gpu.clone(), EMBED + LAYER), (flex, 2 * LAYER)]);
    let loader = load(&ckpt).pytorch().device_map(map);
    let error = loader.check(&model).unwrap().problems[0].clone();
    assert!(error.kind() == ErrorKind::Memory && error.to_string().contains("layer layers.3"), "{error}");
    assert_eq!(loader.into(&mut model).unwrap_err().kind(), ErrorKind::Memory);
    assert!(save(&model).bytes().unwrap() == before && model.devices().iter().all(|own| *own == gpu));
}

#[test]
fn what_was_trainable_stays_trainable() {
    let (flex, gpu) = (Device::flex(), gpu());
    let ckpt = Checkpoint::from_bytes(save(&layered(&flex)).pytorch().bytes().unwrap()).unwrap();
    let mut model = layered(&flex.clone().autodiff());
    model.layers[3] = model.layers[3].clone().no_grad();
    let map = DeviceMap::by_memory([(gpu.clone(), EMBED + 2 * LAYER), (flex.clone(), 1 << 20)]);
    load(&ckpt).pytorch().device_map(map).into(&mut model).unwrap();
    for (number, layer) in model.layers.iter().enumerate() {
        let weight = layer.weight.val();
        let device = if number < 2 { &gpu } else { &flex };
        assert!(weight.device().is_autodiff() && weight.device().inner() == *device, "{number}");
        assert_eq!(weight.is_require_grad(), number < 3, "{number}");
    }
}
