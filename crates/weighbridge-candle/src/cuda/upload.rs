//! Loading: a device for sessions, which may be several GPUs.

use std::sync::Arc;

use candle_core::cuda_backend::{CudaDevice, CudaStorage};
use candle_core::{Device, Storage, Tensor};
use weighbridge::engine::{self, Transfer};
use weighbridge::{Dtype, Entry, Error, ErrorKind, Result};

use super::casts::{Cast, Casts};
use super::copier::{Copier, Event, Upload};
use super::memory::{Memory, Slab};
use super::{Context, context, failed, own_context};
use crate::devices::Devices;
use crate::dtype::layout_of;
use crate::staging::Staging;
use crate::tensor::{check_strides, refused};

/// The GPUs of a load.
pub(crate) struct Cuda {
    devices: Devices,
    gpus: Vec<Gpu>,
    staging: Staging,
}

struct Gpu {
    context: Arc<Context>,
    casts: Casts,
}

/// Memory of one of them.
pub(crate) struct OnGpu {
    gpu: usize,
    device: CudaDevice,
    memory: Memory,
    /// It may be used behind this: it may be what a kernel that is still running has given up.
    ready: Event,
}

/// Streams of one reader, for each GPU that it has copied to.
pub(crate) type Lane = Vec<Option<Copier>>;

impl Cuda {
    pub(crate) fn new(devices: &Devices, staging: &Staging) -> Result<Self> {
        let mut gpus: Vec<Gpu> = Vec::new();
        for device in devices.iter() {
            let Device::Cuda(device) = device else { continue };
            if gpus.iter().all(|gpu| gpu.context != context(device)) {
                let context = own_context(device).map_err(failed("the device could not be used"))?;
                gpus.push(Gpu { context, casts: Casts::default() });
            }
        }
        Ok(Self { devices: devices.clone(), gpus, staging: staging.clone() })
    }

    /// The GPU for tensors of that name, and Candle's device for it.
    fn gpu(&self, name: &str) -> Result<(usize, &CudaDevice)> {
        let Device::Cuda(device) = self.devices.for_name(name) else {
            return Err(Error::new(ErrorKind::Internal, "its device is not a GPU"));
        };
        let gpu = self.gpus.iter().position(|gpu| gpu.context == context(device));
        let gpu = gpu.ok_or_else(|| Error::new(ErrorKind::Internal, "its GPU is not known"))?;
        Ok((gpu, device))
    }
}

impl engine::Device for Cuda {
    type Slab = Slab;
    type Memory = OnGpu;
    type Tensor = Tensor;
    type Lane = Lane;
    /// One event for each GPU that something goes to.
    type Fence = Vec<(usize, Event)>;

    fn lane(&self) -> Result<Lane> {
        Ok(self.gpus.iter().map(|_| None).collect())
    }

    fn slab(&self, _: &mut Lane, _: usize) -> Result<Slab> {
        let first = self.gpus.first().ok_or_else(|| Error::new(ErrorKind::Internal, "there is no GPU"))?;
        self.staging.slab(&first.context).map_err(failed("memory cannot be page-locked"))
    }

    fn allocate(&self, entry: &Entry) -> Result<OnGpu> {
        let (gpu, device) = self.gpu(entry.name())?;
        let (dtype, elements, _) = layout_of(entry)?;
        let memory = Memory::new(device, dtype, elements).map_err(|error| refused(&error))?;
        let ready = Event::behind(&self.gpus[gpu].context, &device.cuda_stream());
        let ready = ready.map_err(failed("copies cannot be ordered"))?;
        Ok(OnGpu { gpu, device: device.clone(), memory, ready })
    }

    /// The bus is the bottleneck on the way to a GPU. Casts that make values narrower are done by the
    /// readers, who have the bytes in their cache; what becomes wider is cast on the device, so that it
    /// crosses the bus as it is stored.
    fn casts(&self, from: Dtype, to: Dtype) -> bool {
        Cast::new(from, to).is_some()
    }

    #[allow(unsafe_code)]
    unsafe fn copy(&self, lane: &mut Lane, transfers: &[Transfer<'_, OnGpu>]) -> Result<Self::Fence> {
        let mut events: Self::Fence = Vec::new();
        for (number, (gpu, copier)) in self.gpus.iter().zip(lane).enumerate() {
            let of_gpu = transfers.iter().filter(|transfer| transfer.memory.gpu == number);
            let uploads: Vec<_> = of_gpu.map(upload).collect();
            if uploads.is_empty() {
                continue;
            }
            // An internal error tells the session that something may still be copied.
            let lost =
                |error| Error::new(ErrorKind::Internal, format!("a copy cannot be waited for: {error}"));
            let copier = match copier {
                Some(copier) => Ok(copier),
                None => Copier::new(&gpu.context).map(|made| copier.insert(made)),
            };
            let started = match copier {
                // SAFETY: the caller keeps slab and memory until `wait` has returned for all events, and for
                // good after an internal error.
                Ok(copier) => unsafe { copier.upload(&uploads, &gpu.casts, self.staging.bytes()) },
                Err(error) => Ok(Err(failed("a stream could not be made")(error))),
            };
            match started {
                Ok(Ok(event)) => events.push((number, event)),
                Ok(Err(error)) => {
                    events.iter().try_for_each(|(_, event)| event.wait()).map_err(lost)?;
                    return Err(error);
                }
                Err(error) => return Err(lost(error)),
            }
        }
        Ok(events)
    }

    fn wait(&self, lane: &mut Lane, fence: Self::Fence) -> Result<()> {
        // All of them, even if one fails.
        let wait = |(number, event): (usize, Event)| match lane.get_mut(number) {
            Some(Some(copier)) => copier.wait(event),
            _ => event.wait(),
        };
        let outcomes: Vec<_> = fence.into_iter().map(wait).collect();
        outcomes.into_iter().collect::<std::result::Result<(), _>>().map_err(failed("a copy failed"))
    }

    fn is_done(&self, _: &Lane, fence: &Self::Fence) -> bool {
        // What has failed is met again by who waits.
        fence.iter().all(|(_, event)| event.is_reached())
    }

    fn finish(&self, entry: &Entry, memory: OnGpu) -> Result<Tensor> {
        let (_, _, shape) = layout_of(entry)?;
        check_strides(&shape).map_err(|error| refused(&error))?;
        let storage = CudaStorage { slice: memory.memory.into_slice(), device: memory.device };
        Ok(Tensor::from((Storage::Cuda(storage), shape)))
    }
}

fn upload<'a>(transfer: &Transfer<'a, OnGpu>) -> Upload<'a> {
    let &Transfer { bytes, memory: OnGpu { memory, ready, device, .. }, offset, cast, .. } = transfer;
    let cast = cast.and_then(|(from, to)| Cast::new(from, to));
    Upload { memory, ready, device, bytes, offset, cast }
}
