//! How values come to their devices.
//!
//! Where Burn lets us write to a tensor's memory, which is on all of its GPU backends, tensors go there in
//! pieces, through a few staging buffers. Everywhere else a tensor is read into memory of the host, which
//! Burn is given; what it may still hold of that is waited for, so that memory beyond the tensors is bounded
//! in both cases.

#[cfg(feature = "cube")]
mod cube;
#[cfg(feature = "cube")]
mod slab;

use std::mem;

use burn::tensor::kind::Autodiff;
use burn::tensor::{DType, Device, Tensor, TensorData};
use weighbridge::engine::{ReadOrder, Session};
use weighbridge::plan::Entry;
use weighbridge::{Error, ErrorKind, HostBytes, LoadOptions, Plan, Result};

use crate::panics::caught;
use crate::tensor_data::data;

/// What becomes of an entry.
#[derive(Clone, Copy)]
pub(crate) struct Target<'a> {
    pub(crate) entry: &'a Entry,
    /// Before it is transposed.
    pub(crate) shape: &'a [usize],
    pub(crate) dtype: DType,
    pub(crate) device: &'a Device,
}

/// The values of a tensor, wherever they are.
pub(crate) enum Values {
    Host(TensorData),
    #[cfg(feature = "cube")]
    Device(cube::Values),
}

impl Values {
    pub(crate) fn rank(&self) -> usize {
        match self {
            Self::Host(data) => data.rank(),
            #[cfg(feature = "cube")]
            Self::Device(values) => values.rank(),
        }
    }

    /// A tensor of them. The rank is `D`.
    pub(crate) fn into_tensor<const D: usize, K: Autodiff>(
        self,
        dtype: DType,
        device: &Device,
    ) -> Tensor<D, K> {
        match self {
            Self::Host(data) => from_host(data, dtype, device),
            #[cfg(feature = "cube")]
            Self::Device(values) => {
                let tensor = values.into_tensor();
                if device.is_autodiff() { tensor.autodiff() } else { tensor }
            }
        }
    }
}

/// A tensor on a device, in memory that its allocator does not cut up for others, as Burn does it for
/// parameters.
fn from_host<const D: usize, K: Autodiff>(
    mut data: TensorData,
    dtype: DType,
    device: &Device,
) -> Tensor<D, K> {
    /// From this size on CUDA copies out of pageable memory, which is slow, unless it is asked to lock pages
    /// for the data.
    const LARGE: usize = 100_000_000;
    if data.as_bytes().len() >= LARGE {
        device.staging(std::iter::once(&mut data));
    }
    device.memory_persistent_allocations(data, |data| Tensor::from_data(data, (device, dtype)))
}

/// A load that is under way.
pub(crate) enum Uploads {
    Host(Session<HostBytes>, Behind),
    #[cfg(feature = "cube")]
    Device(cube::Uploads),
}

impl Uploads {
    /// Starts to read the entries of `targets`, in the order of the files.
    pub(crate) fn start(targets: &[Target<'_>], options: LoadOptions) -> Result<Self> {
        let plan = Plan::new(targets.iter().map(|target| target.entry.clone()));
        let options = options.or(LoadOptions::new().order(ReadOrder::File));
        #[cfg(feature = "cube")]
        if let Some(staging) = caught("staging was prepared", || Ok(cube::Staging::of(targets)))? {
            return cube::Uploads::start(staging, plan, options).map(Self::Device);
        }
        Ok(Self::Host(plan.session().options(options).start_lending()?, Behind::default()))
    }

    /// The values of an entry, which it waits for.
    pub(crate) fn take(&mut self, target: Target<'_>) -> Result<Values> {
        match self {
            Self::Host(session, behind) => {
                let (entry, bytes) = session.take(target.entry.name(), None)?;
                behind.note(entry.byte_len(), target.device)?;
                data(bytes, target.shape, target.dtype, target.device).map(Values::Host)
            }
            #[cfg(feature = "cube")]
            Self::Device(uploads) => uploads.take(target).map(Values::Device),
        }
    }

    /// Waits until everything is where it should be.
    ///
    /// # Errors
    ///
    /// Fails when a device could not take it all.
    pub(crate) fn finish(self) -> Result<()> {
        match self {
            Self::Host(session, mut behind) => {
                drop(session);
                behind.wait()
            }
            #[cfg(feature = "cube")]
            Self::Device(uploads) => caught("a device was waited for", || uploads.finish()),
        }
    }
}

/// What Burn was given and may not have copied to its devices yet.
#[derive(Default)]
pub(crate) struct Behind {
    bytes: u64,
    devices: Vec<Device>,
}

impl Behind {
    /// So many bytes may be on their way before they are waited for. Larger tensors are waited for one by
    /// one.
    const MOST: u64 = 64 << 20;

    /// Notes bytes that are about to be given to Burn; waits for those before if it would be too many
    /// together.
    fn note(&mut self, bytes: u64, device: &Device) -> Result<()> {
        if self.bytes.saturating_add(bytes) > Self::MOST {
            self.wait()?;
        }
        self.bytes += bytes;
        if !self.devices.contains(device) {
            self.devices.push(device.clone());
        }
        Ok(())
    }

    fn wait(&mut self) -> Result<()> {
        self.bytes = 0;
        let devices = mem::take(&mut self.devices);
        devices.iter().try_for_each(|device| caught("a device was waited for", || settled(device)))
    }
}

/// Waits until a device has copied all that it was given, and has given up the memory that it copied from.
/// Devices whose memory is the host's have nothing to do.
fn settled(device: &Device) -> Result<()> {
    let failed = |error| Error::new(ErrorKind::Device, format!("the upload failed: {error:?}"));
    device.sync().map_err(failed)?;
    // It keeps what it was given last until it has been told twice.
    device.flush().map_err(failed)?;
    device.flush().map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_is_waited_for_before_it_is_too_much() {
        const MIB: u64 = 1 << 20;
        let (device, mut behind) = (Device::flex(), Behind::default());
        let mut after = |mib| {
            behind.note(mib * MIB, &device).unwrap();
            (behind.bytes / MIB, behind.devices.len())
        };
        assert_eq!(after(40), (40, 1));
        assert_eq!(after(24), (64, 1));
        assert_eq!(after(1), (1, 1));
        // It was waited for before; more than one such is never on its way.
        assert_eq!(after(1000), (1000, 1));
        assert_eq!(after(1), (1, 1));
        behind.wait().unwrap();
        assert_eq!((behind.bytes, behind.devices.len()), (0, 0));
    }
}
