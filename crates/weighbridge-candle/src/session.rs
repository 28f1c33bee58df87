//! A session that makes Candle tensors, on whichever device.

use candle_core::{DType, Device, Shape, Tensor};
use weighbridge::engine::SessionBuilder;
use weighbridge::plan::Entry;
use weighbridge::{Dtype, HostBuffer, Report, Result, Session};

use crate::devices::{Devices, Route};
use crate::staging::Staging;
use crate::tensor::{place, refused};

/// A session, and how its tensors become Candle's.
#[derive(Debug)]
pub(crate) enum Tensors {
    Host(Session<HostBuffer>),
    #[cfg(any(feature = "cuda", feature = "metal"))]
    Device(Session<Tensor>),
}

impl Tensors {
    pub(crate) fn start(session: SessionBuilder, devices: &Devices, staging: &Staging) -> Result<Self> {
        match devices.route() {
            Route::Host | Route::Through => {
                let _ = staging;
                session.start().map(Self::Host)
            }
            #[cfg(feature = "cuda")]
            Route::Cuda => {
                let device = crate::cuda::Cuda::new(devices, staging)?;
                session.start_on(device, staging.ring()).map(Self::Device)
            }
            #[cfg(feature = "metal")]
            Route::Metal => {
                session.start_on(crate::metal::Metal::new(devices), staging.ring()).map(Self::Device)
            }
        }
    }

    /// Takes a tensor of the plan.
    pub(crate) fn take(&self, name: &str, request: Request<'_>) -> Result<Tensor> {
        let dtype = Some(request.read_as);
        match self {
            Self::Host(session) => request.placed(name, session.take(name, dtype)?.1),
            #[cfg(any(feature = "cuda", feature = "metal"))]
            Self::Device(session) => request.finished(name, session.take(name, dtype)?.1),
        }
    }

    /// Makes a tensor that the plan does not have.
    pub(crate) fn make(&self, entry: &Entry, request: Request<'_>) -> Result<Tensor> {
        let entry = entry.recast(request.read_as)?;
        let name = entry.name().to_owned();
        match self {
            Self::Host(session) => request.placed(&name, session.make(entry)?),
            #[cfg(any(feature = "cuda", feature = "metal"))]
            Self::Device(session) => request.finished(&name, session.make(entry)?),
        }
    }

    /// Whether the plan has a tensor of that name.
    pub(crate) fn has(&self, name: &str) -> bool {
        match self {
            Self::Host(session) => session.entry(name).is_some(),
            #[cfg(any(feature = "cuda", feature = "metal"))]
            Self::Device(session) => session.entry(name).is_some(),
        }
    }

    pub(crate) fn report(&self) -> Report {
        match self {
            Self::Host(session) => session.report(),
            #[cfg(any(feature = "cuda", feature = "metal"))]
            Self::Device(session) => session.report(),
        }
    }
}

/// What a tensor is to become.
pub(crate) struct Request<'a> {
    /// What the session makes.
    pub(crate) read_as: Dtype,
    pub(crate) dtype: DType,
    pub(crate) shape: Shape,
    pub(crate) device: &'a Device,
}

impl Request<'_> {
    pub(crate) fn placed(self, name: &str, buffer: HostBuffer) -> Result<Tensor> {
        let tensor = place(buffer, self.dtype, self.shape, self.device);
        tensor.map_err(|error| refused(&error).in_tensor(name))
    }

    #[cfg(any(feature = "cuda", feature = "metal"))]
    fn finished(self, name: &str, tensor: Tensor) -> Result<Tensor> {
        // A model may ask for another device than the plan has.
        tensor.to_device(self.device).map_err(|error| refused(&error).in_tensor(name))
    }
}
