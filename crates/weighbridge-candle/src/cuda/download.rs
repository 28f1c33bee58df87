//! Saving: tensors of a GPU, some megabytes at a time.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::Arc;

use candle_core::cuda_backend::CudaDevice;
use candle_core::{Device, Tensor};
use weighbridge::{Error, ErrorKind, Result};

use super::memory::{Arriving, Copier, View};
use super::{context, failed, own_context};
use crate::staging::Staging;
use crate::tensor::refused;

/// The ways from the GPUs of a save.
pub(crate) struct Downloads<'s> {
    staging: &'s Staging,
    of: Vec<Arc<Download>>,
}

impl<'s> Downloads<'s> {
    pub(crate) fn new(staging: &'s Staging) -> Self {
        Self { staging, of: Vec::new() }
    }

    /// The way from a device, if it is a GPU.
    pub(crate) fn of(&mut self, device: &Device) -> Result<Option<Arc<Download>>> {
        let Device::Cuda(device) = device else { return Ok(None) };
        if let Some(there) = self.of.iter().find(|there| *there.copier.context() == context(device)) {
            return Ok(Some(Arc::clone(there)));
        }
        let made = Arc::new(Download::new(device, self.staging)?);
        self.of.push(Arc::clone(&made));
        Ok(Some(made))
    }
}

/// So many buffers are filled ahead of what is written: disks are slower than buses.
const AHEAD: usize = 8;

/// Brings tensors of one GPU to the host. Buffers are filled while those that came before are written.
pub(crate) struct Download {
    copier: Copier,
    staging: Staging,
}

impl Download {
    /// Waits for what the device has to do, whoever has asked for it.
    fn new(device: &CudaDevice, staging: &Staging) -> Result<Self> {
        let context = own_context(device).map_err(failed("the device could not be used"))?;
        context.synchronize().map_err(failed("the device could not be waited for"))?;
        let copier = Copier::new(&context).map_err(failed("a stream could not be made"))?;
        Ok(Self { copier, staging: staging.clone() })
    }

    /// Writes what a tensor sees, in its order. What does not lie in one piece is put together on the device before.
    pub(crate) fn write(&self, tensor: &Tensor, out: &mut dyn Write) -> Result<io::Result<()>> {
        if tensor.elem_count() == 0 {
            return Ok(Ok(()));
        }
        let refuse = |error: candle_core::Error| refused(&error);
        let whole =
            if tensor.is_contiguous() { tensor.clone() } else { tensor.contiguous().map_err(refuse)? };
        let lost = || Error::new(ErrorKind::Device, format!("a view of {:?} cannot be read", tensor.dtype()));
        // Candle may know one GPU as several devices, each with a stream of its own.
        let Device::Cuda(device) = whole.device() else { return Err(lost()) };
        let view = View::of(&whole, device).ok_or_else(lost)?;
        self.copier.after(&device.cuda_stream()).map_err(failed("copies cannot be ordered"))?;
        let mut arriving = VecDeque::<Arriving>::new();
        let mut sent = 0;
        let mut written = 0;
        while written < view.bytes {
            while sent < view.bytes && arriving.len() < self.staging.most().min(AHEAD) {
                let slab = match self.staging.slab(self.copier.context()) {
                    Ok(slab) => slab,
                    // Fewer do as well.
                    Err(_) if !arriving.is_empty() => break,
                    Err(error) => return Err(failed("memory cannot be page-locked")(error)),
                };
                let bytes = self.staging.bytes().min(view.bytes - sent);
                arriving.push_back(self.copier.download(&view, sent, slab).map_err(failed("a copy failed"))?);
                sent += bytes;
            }
            let Some(mut first) = arriving.pop_front() else { break };
            let bytes = first.bytes().map_err(failed("a copy failed"))?;
            written += bytes.len();
            if let Err(error) = out.write_all(bytes) {
                return Ok(Err(error));
            }
        }
        Ok(Ok(()))
    }
}
