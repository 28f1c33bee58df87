//! Apple GPUs: tensors are read into buffers that host and GPU share.
//!
//! Each buffer has the size of its tensor, and is not of Candle's pool, whose sizes are powers of two. Nor is
//! it put into the device's residency set, which would keep it for ever: Metal makes what a command uses
//! resident by itself.
//!
//! The module has `unsafe` code: the memory of buffers is reached through pointers.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::Arc;

use candle_core::{Device, MetalDevice, MetalStorage, Storage, Tensor};
use candle_metal_kernels::RESOURCE_OPTIONS;
use candle_metal_kernels::metal::Buffer;
use weighbridge::engine::{self, Transfer};
use weighbridge::{Entry, Error, ErrorKind, Result};

use crate::devices::Devices;
use crate::dtype::layout_of;
use crate::tensor::{check_strides, refused};

/// The GPUs of a load.
pub(crate) struct Metal {
    devices: Devices,
}

/// The memory of a tensor.
pub(crate) struct Shared {
    buffer: Buffer,
    bytes: u64,
}

impl Metal {
    pub(crate) fn new(devices: &Devices) -> Self {
        Self { devices: devices.clone() }
    }

    fn device(&self, name: &str) -> Result<&MetalDevice> {
        match self.devices.for_name(name) {
            Device::Metal(device) => Ok(device),
            _ => Err(Error::new(ErrorKind::Internal, "its device is not Metal's")),
        }
    }
}

fn no_copies() -> Error {
    Error::new(ErrorKind::Internal, "nothing is copied to shared memory")
}

impl engine::Device for Metal {
    type Slab = Vec<MaybeUninit<u8>>;
    type Memory = Shared;
    type Tensor = Tensor;
    type Lane = ();
    type Fence = ();

    fn lane(&self) -> Result<()> {
        Ok(())
    }

    fn slab(&self, (): &mut (), _: usize) -> Result<Self::Slab> {
        Err(no_copies())
    }

    fn allocate(&self, entry: &Entry) -> Result<Shared> {
        let bytes = entry.byte_len();
        let device = self.device(entry.name())?.metal_device();
        // There is no buffer of no bytes.
        let room = usize::try_from(bytes.max(1))
            .map_err(|_| Error::new(ErrorKind::Memory, "it does not fit this machine's address space"))?;
        let buffer = device.new_buffer(room, RESOURCE_OPTIONS).map_err(|error| {
            Error::new(
                ErrorKind::Memory,
                format!("{bytes} bytes of shared memory could not be allocated: {error}"),
            )
        })?;
        Ok(Shared { buffer, bytes })
    }

    unsafe fn in_place<'m>(
        &self,
        memory: &'m Shared,
        bytes: Range<u64>,
    ) -> Option<&'m mut [MaybeUninit<u8>]> {
        if bytes.start > bytes.end || bytes.end > memory.bytes {
            return None;
        }
        let start = memory.buffer.contents();
        if start.is_null() {
            return None;
        }
        // SAFETY: the buffer has at least `memory.bytes` bytes.
        let start = unsafe { start.add(bytes.start as usize) };
        // SAFETY: these bytes lie inside of the buffer, which lives as long as `memory`; the GPU knows
        // nothing of it before it is a tensor, and the session asks for each byte once and has let go of it
        // by then.
        Some(unsafe { std::slice::from_raw_parts_mut(start.cast(), (bytes.end - bytes.start) as usize) })
    }

    unsafe fn copy(&self, (): &mut (), _: &[Transfer<'_, Shared>]) -> Result<()> {
        Err(no_copies())
    }

    fn wait(&self, (): &mut (), (): ()) -> Result<()> {
        Ok(())
    }

    fn finish(&self, entry: &Entry, memory: Shared) -> Result<Tensor> {
        let device = self.device(entry.name())?;
        let (dtype, elements, shape) = layout_of(entry)?;
        check_strides(&shape).map_err(|error| refused(&error))?;
        let storage = MetalStorage::new(Arc::new(memory.buffer), device.clone(), elements, dtype);
        Ok(Tensor::from((Storage::Metal(storage), shape)))
    }
}
