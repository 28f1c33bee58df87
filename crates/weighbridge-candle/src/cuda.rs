//! NVIDIA GPUs: tensors through page-locked buffers, there and back.
//!
//! Order is kept by our own events and by waiting on the host, never by what cudarc does of itself, which
//! does nothing on the devices that Candle makes, whose stream is another one for each thread:
//!
//! - Memory is allocated in Candle's stream of the calling thread. An event is recorded behind that, and each
//!   stream that copies there waits for it first: the memory may be what a kernel that is still running has
//!   given up.
//! - Each reader copies, and casts, in a stream of its own. A buffer is free again, and a tensor is finished,
//!   when the host has waited for an event behind all of that. What is done with the tensor afterwards, in
//!   whichever stream, comes after that.
//! - Before a tensor is saved, the host waits for everything that the device has to do.

mod casts;
mod copier;
mod download;
mod memory;
mod upload;

use std::sync::Arc;

use candle_core::cuda_backend::CudaDevice;
pub(crate) use candle_core::cuda_backend::cudarc::driver::{CudaContext as Context, DriverError};
use weighbridge::{Error, ErrorKind};

pub(crate) use download::{Download, Downloads};
pub(crate) use memory::{Pinned, Slab};
pub(crate) use upload::Cuda;

/// Candle's handle of the context of a device.
fn context(device: &CudaDevice) -> Arc<Context> {
    Arc::clone(device.cuda_stream().context())
}

/// Our own handle of the same context. cudarc keeps errors of calls that return none, such as those of
/// destructors, with the handle, and whoever uses it next is told: what went wrong elsewhere is no failure of
/// a load.
fn own_context(device: &CudaDevice) -> Result<Arc<Context>, DriverError> {
    Context::new(context(device).ordinal())
}

fn failed(what: &str) -> impl Fn(DriverError) -> Error + '_ {
    move |error| Error::new(ErrorKind::Device, format!("{what}: {error}")).with_source(error)
}
