//! Which device each tensor goes to, and how it gets there.

use candle_core::Device;
use weighbridge::{Dtype, Names};

use crate::dtype::Target;

/// The devices that tensors go to.
#[derive(Clone)]
pub(crate) struct Devices {
    pub(crate) default: Device,
    /// Tensors whose names are in a set go to its device; the first set that has the name counts.
    pub(crate) rules: Vec<(Names, Device)>,
}

impl Devices {
    /// The device of a tensor.
    pub(crate) fn for_name(&self, name: &str) -> &Device {
        self.rule(name).unwrap_or(&self.default)
    }

    /// The device that a rule gives for this name.
    pub(crate) fn rule(&self, name: &str) -> Option<&Device> {
        self.rules.iter().find(|(names, _)| names.contains(name)).map(|(_, device)| device)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Device> {
        self.rules.iter().map(|(_, device)| device).chain([&self.default])
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
    /// Tensors stay in the memory that they are read into.
    Host,
    /// They are read into host memory and copied by Candle: for devices of several kinds.
    Through,
    /// They are staged.
    #[cfg(feature = "cuda")]
    Cuda,
    /// They are read into memory that host and device share.
    #[cfg(feature = "metal")]
    Metal,
}

impl Route {
    /// Whether reading a tensor is its last copy; if so, read-ahead needs no budget.
    pub(crate) fn ends_with_reading(self) -> bool {
        self != Self::Through
    }

    /// The dtype in which a session reads a tensor of `stored` that is to become `target`.
    ///
    /// The bus is the bottleneck on the way to a GPU. Casts that make values narrower are done by the
    /// readers, who have the bytes in their cache; what becomes wider is cast on the device, so that it
    /// crosses the bus as it is stored. Candle cannot cast empty tensors on CUDA.
    pub(crate) fn read_as(self, stored: Dtype, target: &Target, is_empty: bool) -> Dtype {
        #[cfg(feature = "cuda")]
        if self == Self::Cuda
            && matches!(stored, Dtype::F16 | Dtype::BF16)
            && matches!(target.read_as, Dtype::F32 | Dtype::F64)
            && !is_empty
        {
            return stored;
        }
        let _ = (stored, is_empty);
        target.read_as
    }

    /// The default number of reader threads, where it is not the engine's: up to 16 for CUDA, because a core
    /// reads a few gigabytes a second and a bus moves fifty.
    pub(crate) fn threads(self) -> Option<usize> {
        #[cfg(feature = "cuda")]
        if self == Self::Cuda {
            const MOST: usize = 16;
            return std::thread::available_parallelism().ok().map(|cores| cores.get().min(MOST));
        }
        None
    }
}
