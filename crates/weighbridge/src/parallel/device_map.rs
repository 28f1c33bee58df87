//! Which layers go onto which device, by how much memory each has.

use std::collections::BTreeMap;
use std::ops::Range;

use super::stages::{Ends, Layers};
use crate::error::{Error, ErrorKind, Result};
use crate::text::start_of;

/// Devices, and the bytes that each may hold: layers fill them in order.
///
/// What is in front of the layers (embeddings) goes with the first ones, what is behind them (norm, head) with the last
/// ones. No layer is divided.
///
/// ```
/// use weighbridge::Checkpoint;
/// use weighbridge::parallel::DeviceMap;
///
/// # fn main() -> weighbridge::Result<()> {
/// # let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../samples/adder");
/// let ckpt = Checkpoint::open(dir)?;
/// let map = DeviceMap::by_memory([("gpu 0", 1_000_000), ("gpu 1", 1_000_000)]);
/// let placed = map.place(ckpt.tensors().map(|tensor| (tensor.name(), tensor.byte_len())))?;
/// assert_eq!(placed.device_of("model.layers.0.mlp.up_proj.weight"), Some(&"gpu 0"));
/// assert_eq!(placed.device_of("lm_head.weight"), Some(&"gpu 1"));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct DeviceMap<D> {
    devices: Vec<(D, u64)>,
    layers: Option<String>,
}

/// What a [`DeviceMap`] makes of a model.
#[derive(Clone, Debug)]
pub struct Placed<D> {
    devices: Vec<Filled<D>>,
    layers: Option<Layers>,
    /// The device of what is in front of the layers.
    first: usize,
    /// The device of what is behind them.
    last: usize,
}

#[derive(Clone, Debug)]
struct Filled<D> {
    device: D,
    bytes: u64,
    layers: Range<usize>,
}

/// What is not divided.
struct Block {
    what: String,
    layer: Option<usize>,
    bytes: u64,
}

impl<D> DeviceMap<D> {
    /// These devices, each with the bytes of tensors that it may hold.
    pub fn by_memory(devices: impl IntoIterator<Item = (D, u64)>) -> Self {
        Self { devices: devices.into_iter().collect(), layers: None }
    }

    /// Sets what stands before the numbers of layers, such as `model.layers`; otherwise it is the list that has the most bytes.
    #[must_use]
    pub fn layers(mut self, prefix: &str) -> Self {
        self.layers = Some(prefix.to_owned());
        self
    }

    /// The devices, in their order.
    pub fn devices(&self) -> impl Iterator<Item = &D> {
        self.devices.iter().map(|(device, _)| device)
    }

    /// The same with something else in the place of each device, made of its place in the order and itself.
    #[must_use]
    pub fn map_devices<E>(&self, mut change: impl FnMut(usize, &D) -> E) -> DeviceMap<E> {
        let devices =
            self.devices.iter().enumerate().map(|(place, (device, bytes))| (change(place, device), *bytes));
        DeviceMap { devices: devices.collect(), layers: self.layers.clone() }
    }

    /// Places tensors, each given with its name and the bytes that it will have on its device.
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::Memory`] where they do not fit: names the first layer that does not, and says how many bytes
    /// there are and how many are needed.
    pub fn place<'n>(&self, tensors: impl IntoIterator<Item = (&'n str, u64)>) -> Result<Placed<D>>
    where
        D: Clone,
    {
        let tensors: Vec<_> = tensors.into_iter().collect();
        let layers = Layers::of(self.layers.as_deref(), tensors.iter().copied())?;
        let blocks = blocks(layers.as_ref(), &tensors);
        let (last, first) = (blocks.len().saturating_sub(1), 0);
        let mut devices: Vec<_> = self
            .devices
            .iter()
            .map(|(device, _)| Filled { device: device.clone(), bytes: 0, layers: 0..0 })
            .collect();
        let mut at = 0;
        let mut ends = [0, 0];
        for (number, block) in blocks.iter().enumerate() {
            let fits = |at: usize| {
                let used = devices.get(at)?.bytes.checked_add(block.bytes)?;
                (used <= self.devices.get(at)?.1).then_some(())
            };
            while fits(at).is_none() {
                at += 1;
                if at >= devices.len() {
                    return Err(self.no_room(&blocks[number..], &blocks));
                }
            }
            let Some(device) = devices.get_mut(at) else { continue };
            device.bytes += block.bytes;
            if let Some(layer) = block.layer {
                let start = if device.layers.is_empty() { layer } else { device.layers.start };
                device.layers = start..layer + 1;
            }
            if number == first {
                ends[0] = at;
            }
            if number == last {
                ends[1] = at;
            }
        }
        Ok(Placed { devices, layers, first: ends[0], last: ends[1] })
    }

    fn no_room(&self, left: &[Block], all: &[Block]) -> Error {
        let needed = all.iter().fold(0_u64, |sum, block| sum.saturating_add(block.bytes));
        let there = self.devices.iter().fold(0_u64, |sum, (_, bytes)| sum.saturating_add(*bytes));
        let others = left.iter().skip(1).filter(|block| block.bytes > 0).count();
        let first = left.iter().find(|block| block.bytes > 0).or(left.first());
        let (what, bytes) = first.map_or(("it", 0), |block| (&*block.what, block.bytes));
        let message = format!(
            "{what} ({bytes} bytes) and {others} blocks behind it do not fit: the model needs {needed} bytes, the {} devices \
             may hold {there}, and no layer is divided",
            self.devices.len()
        );
        Error::new(ErrorKind::Memory, message)
    }
}

impl<D> Placed<D> {
    /// The device of a tensor; `None` if there are no devices.
    pub fn device_of(&self, name: &str) -> Option<&D> {
        let of_layer = |layer: usize| self.devices.iter().position(|device| device.layers.contains(&layer));
        let layer = self.layers.as_ref().and_then(|layers| layers.of_tensor(name));
        let at = match layer.and_then(of_layer) {
            Some(at) => at,
            None if is_behind(name) => self.last,
            None => self.first,
        };
        self.devices.get(at).map(|filled| &filled.device)
    }

    /// The devices in order, with the bytes that each gets, and its layers.
    pub fn devices(&self) -> impl Iterator<Item = (&D, u64, Range<usize>)> {
        self.devices.iter().map(|filled| (&filled.device, filled.bytes, filled.layers.clone()))
    }
}

fn is_behind(name: &str) -> bool {
    Ends::of(name).is_some_and(|ends| ends.last)
}

/// What is in front of the layers, the layers, and what is behind them.
fn blocks(layers: Option<&Layers>, tensors: &[(&str, u64)]) -> Vec<Block> {
    let mut sums = BTreeMap::<usize, u64>::new();
    let count = layers.map_or(0, |layers| layers.count);
    for (name, bytes) in tensors {
        let place = match layers.and_then(|layers| layers.of_tensor(name)) {
            Some(layer) => layer.saturating_add(1),
            None if is_behind(name) => count.saturating_add(1),
            None => 0,
        };
        let sum = sums.entry(place).or_default();
        *sum = sum.saturating_add(*bytes);
    }
    sums.entry(0).or_default();
    sums.entry(count.saturating_add(1)).or_default();
    let prefix = layers.map_or("", |layers| start_of(&layers.prefix));
    let block = |(place, bytes): (usize, u64)| match place {
        0 => Block { what: "what is in front of the layers".to_owned(), layer: None, bytes },
        place if place > count => Block { what: "what is behind the layers".to_owned(), layer: None, bytes },
        place => Block { what: format!("layer {prefix}.{}", place - 1), layer: Some(place - 1), bytes },
    };
    sums.into_iter().map(block).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODEL: [(&str, u64); 7] = [
        ("embed_tokens.weight", 10),
        ("layers.0.a", 20),
        ("layers.0.b", 10),
        ("layers.1.a", 30),
        ("layers.2.a", 30),
        ("norm.weight", 1),
        ("lm_head.weight", 10),
    ];

    #[test]
    fn devices_are_filled_in_order() {
        let placed = DeviceMap::by_memory([('a', 45), ('b', 10), ('c', 80)]).place(MODEL).unwrap();
        let devices: Vec<_> =
            placed.devices().map(|(device, bytes, layers)| (*device, bytes, layers)).collect();
        assert_eq!(devices, [('a', 40, 0..1), ('b', 0, 0..0), ('c', 71, 1..3)]);
        for (name, device) in
            [("embed_tokens.weight", 'a'), ("layers.0.b", 'a'), ("layers.2.a", 'c'), ("norm.weight", 'c')]
        {
            assert_eq!(placed.device_of(name), Some(&device), "{name}");
        }
        // Exactly full is not too full.
        assert!(DeviceMap::by_memory([((), 111)]).place(MODEL).is_ok());
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let error = DeviceMap::by_memory([('a', 45), ('b', 40)]).place(MODEL).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Memory);
        assert_eq!(
            error.to_string(),
            "layer layers.2 (30 bytes) and 1 blocks behind it do not fit: the model needs 111 bytes, the 2 devices may hold \
             85, and no layer is divided"
        );
        assert!(DeviceMap::<()>::by_memory([]).place(MODEL).is_err());
        assert!(DeviceMap::by_memory([((), u64::MAX)]).place([("a.0.w", u64::MAX), ("a.1.w", 1)]).is_err());
        assert!(DeviceMap::by_memory([((), 0)]).place([]).is_ok());
    }
}
