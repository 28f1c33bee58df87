//! On Vulkan: Mesa's lavapipe will do.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use burn::tensor::DeviceKind;
use weighbridge::plan::Entry;
use weighbridge::write::{Save, Values as Stored};
use weighbridge::{Checkpoint, Dtype};

use super::*;

fn gpu() -> Device {
    Device::vulkan(DeviceKind::DefaultDevice)
}

fn entries(ckpt: &Checkpoint) -> Vec<Entry> {
    ckpt.tensors().map(|tensor| Entry::of(&tensor, None).unwrap()).collect()
}

/// Counts what a session has of a device.
struct Counted {
    staging: Staging,
    slabs: Arc<AtomicUsize>,
    in_flight: Arc<AtomicUsize>,
    most_in_flight: Arc<AtomicUsize>,
}

impl engine::Device for Counted {
    type Slab = Slab;
    type Memory = Memory;
    type Tensor = Handle;
    type Lane = ();
    type Fence = (Flight, usize);

    fn lane(&self) -> Result<()> {
        self.staging.lane()
    }

    fn slab(&self, lane: &mut (), bytes: usize) -> Result<Slab> {
        self.slabs.fetch_add(1, Ordering::Relaxed);
        self.staging.slab(lane, bytes)
    }

    fn allocate(&self, entry: &Entry) -> Result<Memory> {
        self.staging.allocate(entry)
    }

    #[allow(unsafe_code)]
    unsafe fn copy(&self, lane: &mut (), transfers: &[Transfer<'_, Memory>]) -> Result<(Flight, usize)> {
        let bytes = transfers.iter().map(|transfer| transfer.bytes.len()).sum();
        let in_flight = self.in_flight.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.most_in_flight.fetch_max(in_flight, Ordering::Relaxed);
        // SAFETY: the caller promises the same.
        Ok((unsafe { self.staging.copy(lane, transfers) }?, bytes))
    }

    fn wait(&self, lane: &mut (), (flight, bytes): (Flight, usize)) -> Result<()> {
        self.staging.wait(lane, flight)?;
        self.in_flight.fetch_sub(bytes, Ordering::Relaxed);
        Ok(())
    }

    fn is_done(&self, lane: &(), (flight, _): &(Flight, usize)) -> bool {
        self.staging.is_done(lane, flight)
    }

    fn finish(&self, entry: &Entry, memory: Memory) -> Result<Handle> {
        self.staging.finish(entry, memory)
    }
}

#[test]
fn what_is_on_its_way_fits_the_ring() {
    const SLABS: usize = 3;
    const BYTES: usize = 64 << 10;
    let values: Vec<u32> = (0..1_500_001).collect();
    let tensors = [("a", 0..700_000), ("b", 700_000..700_003), ("c", 700_003..1_500_001)];
    let lengths = tensors.clone().map(|(_, range)| [range.len()]);
    let stored = tensors.iter().zip(&lengths).map(|((name, range), shape)| {
        let values = Stored::new(shape, &values[range.clone()]);
        (*name, values.unwrap())
    });
    let ckpt = Checkpoint::from_bytes(Save::new().bytes(stored).unwrap()).unwrap();
    let (entries, gpu) = (entries(&ckpt), gpu());
    let shapes: Vec<_> = entries.iter().map(|entry| entry.shape().to_vec()).collect();
    let targets = entries.iter().zip(&shapes).map(|(entry, shape)| Target {
        entry,
        shape,
        dtype: DType::U32,
        device: &gpu,
    });
    let staging = Staging::of(&targets.collect::<Vec<_>>()).unwrap();
    let client = staging.client.clone();
    let [slabs, in_flight, most_in_flight] = [(); 3].map(|()| Arc::new(AtomicUsize::new(0)));
    let device = Counted {
        staging,
        slabs: Arc::clone(&slabs),
        in_flight: Arc::clone(&in_flight),
        most_in_flight: Arc::clone(&most_in_flight),
    };
    let session = Plan::new(entries).session().threads(4).read_ahead(u64::MAX);
    let session = session.start_on(device, Ring::new().slabs(SLABS).slab_bytes(BYTES)).unwrap();
    for (name, range) in tensors {
        let (_, handle) = session.take(name, None).unwrap();
        let bytes = client.read_one(handle).unwrap();
        let expected: Vec<u8> = values[range].iter().flat_map(|value| value.to_le_bytes()).collect();
        assert!(bytes[..] == expected, "{name}");
    }
    drop(session);
    assert!(slabs.load(Ordering::Relaxed) <= SLABS);
    assert_eq!(in_flight.load(Ordering::Relaxed), 0);
    let most = most_in_flight.load(Ordering::Relaxed);
    assert!((1..=SLABS * BYTES).contains(&most), "{most}");
}

#[test]
fn values_go_through_slabs_if_their_bytes_are_the_devices() {
    let values = Stored::new(&[2, 3], &[1.0_f32; 6]).unwrap();
    let ckpt = Checkpoint::from_bytes(Save::new().bytes([("a", values)]).unwrap()).unwrap();
    let (entries, gpu) = (entries(&ckpt), gpu());
    let is_staged = |shape: &[usize], dtype, device: &Device| {
        let target = Target { entry: &entries[0], shape, dtype, device };
        Staging::of(&[target]).is_some()
    };
    assert!(is_staged(&[2, 3], DType::F32, &gpu));
    assert!(is_staged(&[2, 3], DType::F32, &gpu.clone().autodiff()));
    // Its tensors are of another kind than those that are given autodiff later.
    assert!(!is_staged(&[2, 3], DType::F32, &gpu.clone().autodiff().gradient_checkpointing()));
    assert!(!is_staged(&[2, 3], DType::Flex32, &gpu));
    assert!(!is_staged(&[2, 3], DType::F16, &gpu));
    assert!(!is_staged(&[2, 3], DType::F32, &Device::flex()));
    let other = Target { entry: &entries[0], shape: &[2, 3], dtype: DType::F32, device: &Device::flex() };
    let both = [Target { device: &gpu, ..other }, other];
    assert!(Staging::of(&both).is_none());
}

#[test]
fn booleans_are_looked_at() {
    let (gpu, bytes) = (gpu(), [0, 1, 1, 7, 1, 9]);
    let view = weighbridge::TensorView::new(Dtype::U8, &[6], &bytes).unwrap();
    let ckpt = Checkpoint::from_bytes(Save::new().bytes([("mask", view)]).unwrap()).unwrap();
    let entries = entries(&ckpt);
    let target =
        Target { entry: &entries[0], shape: &[6], dtype: crate::dtype::bool_dtype(&gpu), device: &gpu };
    let mut uploads = super::super::Uploads::start(&[target], LoadOptions::new()).unwrap();
    let error = uploads.take(target).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Value);
    assert!(error.to_string().contains("the boolean at index 3 is 7, not 0 or 1"), "{error}");
}

#[test]
fn strides() {
    assert_eq!(contiguous(&[2, 3, 4]), [12, 4, 1]);
    assert_eq!(contiguous(&[5]), [1]);
    assert_eq!(contiguous(&[3, 0]), [0, 1]);
    assert_eq!(contiguous(&[]), [0; 0]);
}
