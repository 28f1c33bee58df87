//! Which device each tensor goes to, and how it gets there.

use candle_core::Device;
use weighbridge::{Error, ErrorKind, Names, Result};

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

/// Waits until a device has done all that it was told to do, by whichever thread.
pub(crate) fn wait(device: &Device) -> Result<()> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(cuda) = device {
        // Candle's own waits for the stream of this thread only.
        let waited = cuda.cuda_stream().context().synchronize();
        return waited.map_err(|error| Error::new(ErrorKind::Device, format!("CUDA failed: {error}")));
    }
    device.synchronize().map_err(|error| Error::new(ErrorKind::Device, error.to_string()))
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
}
