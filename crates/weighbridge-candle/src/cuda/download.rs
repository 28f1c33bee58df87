//! Saving: tensors of a GPU, some megabytes at a time, by several threads.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use candle_core::cuda_backend::CudaDevice;
use candle_core::{Device, Tensor};
use weighbridge::{Error, ErrorKind, Result};

use super::copier::{Arriving, Copier};
use super::memory::View;
use super::{Context, context, failed, own_context};
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
        if let Some(there) = self.of.iter().find(|there| there.context == context(device)) {
            return Ok(Some(Arc::clone(there)));
        }
        let made = Arc::new(Download::new(device, self.staging)?);
        self.of.push(Arc::clone(&made));
        Ok(Some(made))
    }
}

/// Brings tensors of one GPU to the host. Buffers are filled while those that came before are written.
pub(crate) struct Download {
    context: Arc<Context>,
    staging: Staging,
    /// Streams that nobody uses at the moment.
    copiers: Mutex<Vec<Copier>>,
    /// Buffers that may be used at the moment.
    buffers: Mutex<usize>,
    given_back: Condvar,
}

/// Buffers that one thread may use.
struct Buffers<'d> {
    of: &'d Download,
    count: usize,
}

impl Download {
    /// Waits for what the device has to do, whoever has asked for it.
    fn new(device: &CudaDevice, staging: &Staging) -> Result<Self> {
        let context = own_context(device).map_err(failed("the device could not be used"))?;
        context.synchronize().map_err(failed("the device could not be waited for"))?;
        Ok(Self {
            context,
            buffers: Mutex::new(staging.most()),
            staging: staging.clone(),
            copiers: Mutex::default(),
            given_back: Condvar::new(),
        })
    }

    /// Writes what a tensor sees, in its order. What does not lie in one piece is put together on the device before.
    pub(crate) fn write(&self, tensor: &Tensor, out: &mut dyn Write) -> Result<io::Result<()>> {
        /// So many buffers are filled ahead of what is written.
        const AHEAD: usize = 8;
        let refuse = |error: candle_core::Error| refused(&error);
        let whole =
            if tensor.is_contiguous() { tensor.clone() } else { tensor.contiguous().map_err(refuse)? };
        self.write_pieces(&whole, None, AHEAD, out)
    }

    /// Writes some bytes of a tensor that lies in one piece.
    pub(crate) fn write_range(
        &self,
        tensor: &Tensor,
        range: Range<u64>,
        out: &mut dyn Write,
    ) -> Result<io::Result<()>> {
        self.write_pieces(tensor, Some(range), 2, out)
    }

    fn write_pieces(
        &self,
        tensor: &Tensor,
        range: Option<Range<u64>>,
        ahead: usize,
        out: &mut dyn Write,
    ) -> Result<io::Result<()>> {
        if tensor.elem_count() == 0 {
            return Ok(Ok(()));
        }
        let lost = || Error::new(ErrorKind::Device, format!("a view of {:?} cannot be read", tensor.dtype()));
        // Candle may know one GPU as several devices, each with a stream of its own.
        let Device::Cuda(device) = tensor.device() else { return Err(lost()) };
        let view = View::of(tensor, device).ok_or_else(lost)?;
        let range = range.unwrap_or(0..view.bytes as u64);
        let range = range.start as usize..(range.end as usize).min(view.bytes);
        let idle = self.copiers.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut copier = match idle {
            Some(copier) => copier,
            None => Copier::new(&self.context).map_err(failed("a stream could not be made"))?,
        };
        copier.after(&device.cuda_stream()).map_err(failed("copies cannot be ordered"))?;
        let buffers = self.buffers(ahead);
        let written = self.copy_and_write(&mut copier, &view, range, buffers.count, out);
        drop(buffers);
        self.copiers.lock().unwrap_or_else(PoisonError::into_inner).push(copier);
        written
    }

    /// Copies into up to `ahead` buffers while those that came before are written.
    fn copy_and_write(
        &self,
        copier: &mut Copier,
        view: &View,
        range: Range<usize>,
        ahead: usize,
        out: &mut dyn Write,
    ) -> Result<io::Result<()>> {
        let mut arriving = VecDeque::<Arriving>::new();
        let mut sent = range.start;
        loop {
            while sent < range.end && arriving.len() < ahead {
                let slab = match self.staging.slab(&self.context) {
                    Ok(slab) => slab,
                    // Fewer do as well.
                    Err(_) if !arriving.is_empty() => break,
                    Err(error) => return Err(failed("memory cannot be page-locked")(error)),
                };
                let copy = copier.download(view, sent, range.end, slab).map_err(failed("a copy failed"))?;
                sent += copy.len();
                arriving.push_back(copy);
            }
            let Some(mut first) = arriving.pop_front() else { return Ok(Ok(())) };
            let bytes = first.bytes().map_err(failed("a copy failed"))?;
            if let Err(error) = out.write_all(bytes) {
                return Ok(Err(error));
            }
            copier.put_back(first);
        }
    }

    /// Up to so many buffers, at least one.
    fn buffers(&self, most: usize) -> Buffers<'_> {
        let mut left = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        while *left == 0 {
            left = self.given_back.wait(left).unwrap_or_else(PoisonError::into_inner);
        }
        let count = most.min(*left);
        *left -= count;
        Buffers { of: self, count }
    }
}

impl Drop for Buffers<'_> {
    fn drop(&mut self) {
        *self.of.buffers.lock().unwrap_or_else(PoisonError::into_inner) += self.count;
        self.of.given_back.notify_all();
    }
}
