//! From the bytes of a checkpoint to Burn's tensor data, without a copy where that is possible.

use burn::tensor::{BoolStore, Bytes, DType, Device, TensorData};
use burn_std::AllocationProperty;
use weighbridge::{Error, ErrorKind, HostBuffer, HostBytes, Result};

use crate::dtype::has_byte_bools;

/// The data of a tensor of that shape and dtype.
pub(crate) fn data(bytes: HostBytes, shape: &[usize], dtype: DType, device: &Device) -> Result<TensorData> {
    let mut dtype = dtype;
    if let DType::Bool(_) = dtype {
        if let Some(index) = bytes.as_bytes().iter().position(|&byte| byte > 1) {
            let message = format!("the boolean at index {index} is {}, not 0 or 1", bytes.as_bytes()[index]);
            return Err(Error::new(ErrorKind::Value, message));
        }
        if !has_byte_bools(device) {
            // Burn converts them to the form that the device has.
            dtype = DType::Bool(BoolStore::U8);
        }
    }
    TensorData::try_from_bytes(into_bytes(bytes, dtype), shape.to_vec(), dtype)
        .map_err(|error| Error::new(ErrorKind::Internal, format!("Burn refused its bytes: {error}")))
}

/// The bytes as Burn keeps them: a vector's own memory, or that of the checkpoint, which is kept as long as
/// the tensor needs it.
///
/// Burn's `flex` takes these bytes for elements in place, so bytes that are not aligned to the size of the
/// elements are copied. So are those of quantised tensors, which have elements of several sizes.
pub(crate) fn into_bytes(bytes: HostBytes, dtype: DType) -> Bytes {
    let quantised = matches!(dtype, DType::QFloat(_));
    match bytes {
        HostBytes::Lent(lent) if !quantised && lent.is_aligned() => {
            Bytes::from_shared(bytes::Bytes::from_owner(lent), AllocationProperty::Other)
        }
        HostBytes::Lent(lent) => aligned(lent.as_bytes()),
        HostBytes::Owned(HostBuffer::U8(values)) if quantised => aligned(&values),
        HostBytes::Owned(buffer) => match buffer {
            HostBuffer::U8(values) => Bytes::from_elems(values),
            HostBuffer::I8(values) => Bytes::from_elems(values),
            HostBuffer::U16(values) => Bytes::from_elems(values),
            HostBuffer::I16(values) => Bytes::from_elems(values),
            HostBuffer::F16(values) => Bytes::from_elems(values),
            HostBuffer::BF16(values) => Bytes::from_elems(values),
            HostBuffer::U32(values) => Bytes::from_elems(values),
            HostBuffer::I32(values) => Bytes::from_elems(values),
            HostBuffer::F32(values) => Bytes::from_elems(values),
            HostBuffer::U64(values) => Bytes::from_elems(values),
            HostBuffer::I64(values) => Bytes::from_elems(values),
            HostBuffer::F64(values) => Bytes::from_elems(values),
            other => aligned(other.as_bytes()),
        },
    }
}

/// A copy that is aligned for every element.
fn aligned(bytes: &[u8]) -> Bytes {
    // Burn aligns its own copies.
    Bytes::from_bytes_vec(bytes.to_vec())
}
