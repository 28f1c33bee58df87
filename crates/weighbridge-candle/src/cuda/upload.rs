//! Loading: a device for sessions, which may be several GPUs.

use candle_core::cuda_backend::cudarc::driver::CudaEvent;
use candle_core::cuda_backend::{CudaDevice, CudaStorage};
use candle_core::{Device, Storage, Tensor};
use weighbridge::engine::{self, Transfer};
use weighbridge::{Entry, Error, ErrorKind, Result};

use super::memory::{Copier, Memory, Slab};
use super::{context, failed, own_context};
use crate::devices::Devices;
use crate::dtype::layout_of;
use crate::staging::Staging;
use crate::tensor::{check_strides, refused};

/// The GPUs of a load.
pub(crate) struct Cuda {
    devices: Devices,
    /// Each with one stream that copies.
    gpus: Vec<Copier>,
    staging: Staging,
}

/// Memory of one of them.
pub(crate) struct OnGpu {
    gpu: usize,
    memory: Memory,
}

impl Cuda {
    pub(crate) fn new(devices: &Devices, staging: &Staging) -> Result<Self> {
        let mut gpus: Vec<Copier> = Vec::new();
        for device in devices.iter() {
            let Device::Cuda(device) = device else { continue };
            if gpus.iter().all(|gpu| *gpu.context() != context(device)) {
                let copier = own_context(device).and_then(|own| Copier::new(&own));
                let copier = copier.map_err(failed("a stream could not be made"))?;
                gpus.push(copier);
            }
        }
        Ok(Self { devices: devices.clone(), gpus, staging: staging.clone() })
    }

    /// The GPU for tensors of that name, and Candle's device for it.
    fn gpu(&self, name: &str) -> Result<(usize, &CudaDevice)> {
        let Device::Cuda(device) = self.devices.for_name(name) else {
            return Err(Error::new(ErrorKind::Internal, "its device is not a GPU"));
        };
        let gpu = self.gpus.iter().position(|gpu| *gpu.context() == context(device));
        let gpu = gpu.ok_or_else(|| Error::new(ErrorKind::Internal, "its GPU is not known"))?;
        Ok((gpu, device))
    }
}

impl engine::Device for Cuda {
    type Slab = Slab;
    type Memory = OnGpu;
    type Tensor = Tensor;
    /// One event for each GPU that something goes to.
    type Fence = Vec<CudaEvent>;

    fn slab(&self, _: usize) -> Result<Slab> {
        let first = self.gpus.first().ok_or_else(|| Error::new(ErrorKind::Internal, "there is no GPU"))?;
        self.staging.slab(first.context()).map_err(failed("memory cannot be page-locked"))
    }

    fn allocate(&self, entry: &Entry) -> Result<OnGpu> {
        let (gpu, device) = self.gpu(entry.name())?;
        let (dtype, elements, _) = layout_of(entry)?;
        let memory = Memory::new(device, dtype, elements).map_err(|error| refused(&error))?;
        let ordered = self.gpus[gpu].after(&device.cuda_stream());
        ordered.map_err(failed("copies cannot be ordered"))?;
        Ok(OnGpu { gpu, memory })
    }

    #[allow(unsafe_code)]
    unsafe fn copy(&self, transfers: &[Transfer<'_, OnGpu>]) -> Result<Vec<CudaEvent>> {
        let mut events: Vec<CudaEvent> = Vec::new();
        for (number, gpu) in self.gpus.iter().enumerate() {
            let of_gpu = transfers.iter().filter(|transfer| transfer.memory.gpu == number);
            let of_gpu: Vec<_> = of_gpu.map(|transfer| (&transfer.memory.memory, transfer)).collect();
            if of_gpu.is_empty() {
                continue;
            }
            // An internal error tells the session that something may still be copied.
            let lost =
                |error| Error::new(ErrorKind::Internal, format!("a copy cannot be waited for: {error}"));
            // SAFETY: the caller keeps slab and memory until `wait` has returned for all events, and for good after an internal
            // error.
            let started = unsafe { gpu.upload(&of_gpu) };
            match started {
                Ok(Ok(event)) => events.push(event),
                Ok(Err(error)) => {
                    events.iter().try_for_each(CudaEvent::synchronize).map_err(lost)?;
                    return Err(failed("a copy could not be started")(error));
                }
                Err(error) => return Err(lost(error)),
            }
        }
        Ok(events)
    }

    fn wait(&self, fence: Vec<CudaEvent>) -> Result<()> {
        // All of them, even if one fails.
        let outcomes: Vec<_> = fence.iter().map(CudaEvent::synchronize).collect();
        outcomes.into_iter().collect::<std::result::Result<(), _>>().map_err(failed("a copy failed"))
    }

    fn is_done(&self, fence: &Vec<CudaEvent>) -> bool {
        // What has failed is met again by who waits.
        fence.iter().all(CudaEvent::is_complete)
    }

    fn finish(&self, entry: &Entry, memory: OnGpu) -> Result<Tensor> {
        let (_, device) = self.gpu(entry.name())?;
        let (_, _, shape) = layout_of(entry)?;
        check_strides(&shape).map_err(|error| refused(&error))?;
        let storage = CudaStorage { slice: memory.memory.into_slice(), device: device.clone() };
        Ok(Tensor::from((Storage::Cuda(storage), shape)))
    }
}
