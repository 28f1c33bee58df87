//! A session that makes Candle tensors, on whichever device.

use candle_core::{DType, Device, Shape, Tensor};
use weighbridge::engine::SessionBuilder;
use weighbridge::plan::Entry;
use weighbridge::{Dtype, HostBuffer, Names, Report, Result, Session, TensorRef};

use crate::dtype::Arrival;
use crate::loader::refused;
use crate::staging::Staging;
use crate::tensor::place;

/// The devices that tensors go to.
#[derive(Clone)]
pub(crate) struct Devices {
    pub(crate) usual: Device,
    /// Those of the first set that has the name go elsewhere.
    pub(crate) of: Vec<(Names, Device)>,
}

impl Devices {
    pub(crate) fn of(&self, name: &str) -> &Device {
        self.chosen(name).unwrap_or(&self.usual)
    }

    /// The device that was chosen for this name.
    pub(crate) fn chosen(&self, name: &str) -> Option<&Device> {
        self.of.iter().find(|(names, _)| names.contains(name)).map(|(_, device)| device)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Device> {
        self.of.iter().map(|(_, device)| device).chain([&self.usual])
    }

    /// The way to them.
    pub(crate) fn route(&self) -> Route {
        if self.iter().all(Device::is_cpu) {
            return Route::Host;
        }
        #[cfg(feature = "cuda")]
        if self.iter().all(Device::is_cuda) {
            return Route::Cuda;
        }
        #[cfg(feature = "metal")]
        if self.iter().all(Device::is_metal) {
            return Route::Metal;
        }
        Route::Through
    }
}

/// The way to devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// Tensors stay in the memory that they are read to.
    Host,
    /// They are read to memory of the host and copied by Candle: where devices are of several kinds.
    Through,
    /// They are staged.
    #[cfg(feature = "cuda")]
    Cuda,
    /// They are read to memory that host and device share.
    #[cfg(feature = "metal")]
    Metal,
}

impl Route {
    /// Whether tensors are where they stay once they are read, so that there is no reason not to read them all at once.
    pub(crate) fn ends_there(self) -> bool {
        self != Self::Through
    }

    /// The dtype in which a tensor travels.
    ///
    /// The bus is the narrow place on the way to a GPU. What becomes narrower is cast by the readers, who are faster than
    /// the bus and have it in their cache; what becomes wider is cast on the device, so that it crosses as it is stored.
    /// Candle has no casts of nothing on CUDA.
    pub(crate) fn carried(self, tensor: &TensorRef<'_>, arrival: Arrival) -> Dtype {
        #[cfg(feature = "cuda")]
        if self == Self::Cuda
            && matches!(tensor.dtype(), Dtype::F16 | Dtype::BF16)
            && matches!(arrival.made, Dtype::F32 | Dtype::F64)
            && tensor.elements() > 0
        {
            return tensor.dtype();
        }
        let _ = tensor;
        arrival.made
    }

    /// So many threads, unless more is said. Files of a fast bus are read with more than others: a core reads a few gigabytes
    /// a second, and a bus moves fifty.
    pub(crate) fn threads(self) -> Option<usize> {
        #[cfg(feature = "cuda")]
        if self == Self::Cuda {
            const MOST: usize = 16;
            return std::thread::available_parallelism().ok().map(|cores| cores.get().min(MOST));
        }
        None
    }
}

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
    pub(crate) fn take(&self, name: &str, want: Want<'_>) -> Result<Tensor> {
        let carried = Some(want.carried);
        match self {
            Self::Host(session) => want.placed(name, session.take(name, carried)?.1),
            #[cfg(any(feature = "cuda", feature = "metal"))]
            Self::Device(session) => want.finished(name, session.take(name, carried)?.1),
        }
    }

    /// Makes a tensor that the plan does not have.
    pub(crate) fn make(&self, entry: &Entry, want: Want<'_>) -> Result<Tensor> {
        let entry = entry.recast(want.carried)?;
        let name = entry.name().to_owned();
        match self {
            Self::Host(session) => want.placed(&name, session.make(entry)?),
            #[cfg(any(feature = "cuda", feature = "metal"))]
            Self::Device(session) => want.finished(&name, session.make(entry)?),
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

/// What a tensor is to be.
pub(crate) struct Want<'a> {
    /// What the session makes.
    pub(crate) carried: Dtype,
    pub(crate) dtype: DType,
    pub(crate) shape: Shape,
    pub(crate) device: &'a Device,
}

impl Want<'_> {
    fn placed(self, name: &str, buffer: HostBuffer) -> Result<Tensor> {
        let tensor = place(buffer, self.dtype, self.shape, self.device);
        tensor.map_err(|error| refused(&error).in_tensor(name))
    }

    #[cfg(any(feature = "cuda", feature = "metal"))]
    fn finished(self, name: &str, tensor: Tensor) -> Result<Tensor> {
        let wider = || {
            if tensor.dtype() == self.dtype {
                return Ok(tensor.clone());
            }
            let wider = tensor.to_dtype(self.dtype)?;
            // Cast in this thread's stream: another's would not wait for it.
            wider.device().synchronize()?;
            Ok(wider)
        };
        // A model may ask for another device than the plan has.
        wider()
            .and_then(|tensor| tensor.to_device(self.device))
            .map_err(|error| refused(&error).in_tensor(name))
    }
}
