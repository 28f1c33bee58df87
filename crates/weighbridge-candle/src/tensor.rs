//! From filled host memory to a tensor on its device.

use candle_core::cpu_backend::CpuStorage;
use candle_core::{DType, Device, Shape, Storage, Tensor};
use float8::F8E4M3;
use weighbridge::{Error, ErrorKind, HostBuffer};

/// The tensor of `buffer`; on the CPU the memory becomes the tensor's own, elsewhere it is copied over.
pub(crate) fn place(
    buffer: HostBuffer,
    dtype: DType,
    shape: Shape,
    device: &Device,
) -> candle_core::Result<Tensor> {
    check_strides(&shape)?;
    match buffer {
        HostBuffer::U8(values) => place_bytes(values, dtype, shape, device),
        HostBuffer::U32(values) => Tensor::from_vec(values, shape, device),
        HostBuffer::I16(values) => Tensor::from_vec(values, shape, device),
        HostBuffer::I32(values) => Tensor::from_vec(values, shape, device),
        HostBuffer::I64(values) => Tensor::from_vec(values, shape, device),
        HostBuffer::F16(values) => Tensor::from_vec(values, shape, device),
        HostBuffer::BF16(values) => Tensor::from_vec(values, shape, device),
        HostBuffer::F32(values) => Tensor::from_vec(values, shape, device),
        HostBuffer::F64(values) => Tensor::from_vec(values, shape, device),
        // The dtype table leads to none of the others.
        other => Err(candle_core::Error::msg(format!("no Candle tensor is made of {} bytes", name(&other)))),
    }
}

/// Whether Candle can compute the strides of a shape: it multiplies from the last dimension on, which can
/// overflow where there is a 0 among the first.
pub(crate) fn check_strides(shape: &Shape) -> candle_core::Result<()> {
    match shape.dims().iter().rev().try_fold(1_usize, |product, &dim| product.checked_mul(dim)) {
        Some(_) => Ok(()),
        None => Err(candle_core::Error::msg("the strides of its shape do not fit this machine")),
    }
}

/// The error for what Candle did not take.
pub(crate) fn refused(error: &candle_core::Error) -> Error {
    Error::new(ErrorKind::Device, format!("Candle could not place it: {error}"))
}

fn place_bytes(values: Vec<u8>, dtype: DType, shape: Shape, device: &Device) -> candle_core::Result<Tensor> {
    let storage = match (dtype, device) {
        (DType::U8, _) => return Tensor::from_vec(values, shape, device),
        (DType::F8E4M3, _) => {
            // One byte a value before and after, so the vector keeps its memory.
            let values: Vec<_> = values.into_iter().map(F8E4M3::from_bits).collect();
            return Tensor::from_vec(values, shape, device);
        }
        (DType::F4, Device::Cpu) => CpuStorage::F4(values),
        (DType::F6E2M3, Device::Cpu) => CpuStorage::F6E2M3(values),
        (DType::F6E3M2, Device::Cpu) => CpuStorage::F6E3M2(values),
        (DType::F8E8M0, Device::Cpu) => CpuStorage::F8E8M0(values),
        _ => return Tensor::from_raw_buffer(&values, dtype, shape.dims(), device),
    };
    Ok(Tensor::from((Storage::Cpu(storage), shape)))
}

fn name(buffer: &HostBuffer) -> &'static str {
    match buffer {
        HostBuffer::I8(_) => "I8",
        HostBuffer::U16(_) => "U16",
        HostBuffer::U64(_) => "U64",
        _ => "unknown",
    }
}
