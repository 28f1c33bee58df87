//! Memory that a GPU reads and writes on its own. All `unsafe` code for CUDA is in this module and in
//! [`copier`](super::copier).
#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::cuda_backend::cudarc::driver::sys::{CU_MEMHOSTALLOC_PORTABLE, CUdeviceptr, CUresult};
use candle_core::cuda_backend::cudarc::driver::{
    CudaContext, CudaSlice, CudaStream, DevicePtr, DeviceRepr, DriverError, result,
};
use candle_core::cuda_backend::{CudaDevice, CudaStorageSlice};
use candle_core::{DType, Storage, Tensor};

/// Page-locked memory of the host, uninitialised.
///
/// It is usual memory to the processor, and not "write-combined", which is slow to read: casts and saves read it.
pub(crate) struct Pinned {
    start: NonNull<u8>,
    len: usize,
    context: Arc<CudaContext>,
}

// SAFETY: it owns its memory as a `Vec` does; the driver lets any thread use and free it.
unsafe impl Send for Pinned {}

impl Pinned {
    /// Memory that every GPU can copy from and to.
    pub(crate) fn new(context: &Arc<CudaContext>, len: usize) -> Result<Self, DriverError> {
        context.bind_to_thread()?;
        // SAFETY: what it holds is not read before it is written: it is only lent as `MaybeUninit`.
        let start = unsafe { result::malloc_host(len, CU_MEMHOSTALLOC_PORTABLE) }?;
        let start =
            NonNull::new(start.cast::<u8>()).ok_or(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY))?;
        Ok(Self { start, len, context: Arc::clone(context) })
    }
}

impl AsMut<[MaybeUninit<u8>]> for Pinned {
    fn as_mut(&mut self) -> &mut [MaybeUninit<u8>] {
        // SAFETY: `start` has `len` bytes, which nobody else uses: not the device, either, as said above.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().cast(), self.len) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.context.record_err(self.context.bind_to_thread());
        // SAFETY: it comes from `malloc_host`, is freed once, and no copy from it or to it is under way.
        let freed = unsafe { result::free_host(self.start.as_ptr().cast()) };
        self.context.record_err(freed);
    }
}

/// A pinned buffer that goes back to a list when it is dropped.
pub(crate) struct Slab {
    pinned: Option<Pinned>,
    home: Arc<Mutex<Vec<Pinned>>>,
}

impl Slab {
    pub(crate) fn new(pinned: Pinned, home: &Arc<Mutex<Vec<Pinned>>>) -> Self {
        Self { pinned: Some(pinned), home: Arc::clone(home) }
    }
}

impl AsMut<[MaybeUninit<u8>]> for Slab {
    fn as_mut(&mut self) -> &mut [MaybeUninit<u8>] {
        self.pinned.as_mut().map_or(&mut [], Pinned::as_mut)
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        self.home.lock().unwrap_or_else(PoisonError::into_inner).extend(self.pinned.take());
    }
}

/// Memory of a GPU for one tensor.
pub(crate) struct Memory {
    slice: CudaStorageSlice,
    pub(super) start: CUdeviceptr,
    pub(super) bytes: usize,
}

impl Memory {
    /// Memory for `elements` elements, or, of the dtypes that are packed, as many bytes.
    pub(super) fn new(device: &CudaDevice, dtype: DType, elements: usize) -> candle_core::Result<Self> {
        // Whether memory of no bytes can be had is not said anywhere.
        let room = elements.max(1);
        macro_rules! allocate {
            ($variant:ident) => {{
                // SAFETY: it becomes a tensor only when all of its bytes were copied to it, each of which may have any
                // value.
                let slice = unsafe { device.alloc(room) }?;
                let (start, bytes) = place(&slice, &device.cuda_stream());
                (CudaStorageSlice::$variant(slice), start, bytes)
            }};
        }
        let (slice, start, bytes) = match dtype {
            DType::U8 => allocate!(U8),
            DType::U32 => allocate!(U32),
            DType::I16 => allocate!(I16),
            DType::I32 => allocate!(I32),
            DType::I64 => allocate!(I64),
            DType::BF16 => allocate!(BF16),
            DType::F16 => allocate!(F16),
            DType::F32 => allocate!(F32),
            DType::F64 => allocate!(F64),
            DType::F8E4M3 => allocate!(F8E4M3),
            DType::F6E2M3 => allocate!(F6E2M3),
            DType::F6E3M2 => allocate!(F6E3M2),
            DType::F4 => allocate!(F4),
            DType::F8E8M0 => allocate!(F8E8M0),
            other => return Err(candle_core::Error::msg(format!("there is no {other:?} on CUDA"))),
        };
        Ok(Self { slice, start, bytes })
    }

    pub(super) fn into_slice(self) -> CudaStorageSlice {
        self.slice
    }
}

/// Where a slice is, and its bytes.
pub(super) fn place<T: DeviceRepr>(slice: &CudaSlice<T>, stream: &CudaStream) -> (CUdeviceptr, usize) {
    let (start, record) = slice.device_ptr(stream);
    // Of use only to cudarc's own order, for who has that.
    drop(record);
    (start, slice.num_bytes())
}

/// The memory of a tensor that lies in one piece.
pub(super) struct View {
    pub(super) start: CUdeviceptr,
    pub(super) bytes: usize,
    /// Keeps the memory.
    pub(super) tensor: Tensor,
}

impl View {
    /// `None` if the tensor is elsewhere or does not lie in one piece.
    pub(super) fn of(tensor: &Tensor, device: &CudaDevice) -> Option<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else { return None };
        let (first, end) = layout.contiguous_offsets()?;
        let stream = device.cuda_stream();
        macro_rules! view {
            ($slice:expr) => {{
                let (start, bytes) = place($slice, &stream);
                let size = bytes / $slice.len().max(1);
                (start + (first * size) as CUdeviceptr, (end - first) * size, end <= $slice.len())
            }};
        }
        let packed = |slice: &CudaSlice<u8>| {
            let (start, bytes) = place(slice, &stream);
            // Candle has no views of packed values.
            (start, bytes, first == 0)
        };
        let (start, bytes, inside) = match &storage.slice {
            CudaStorageSlice::U8(slice) => view!(slice),
            CudaStorageSlice::U32(slice) => view!(slice),
            CudaStorageSlice::I16(slice) => view!(slice),
            CudaStorageSlice::I32(slice) => view!(slice),
            CudaStorageSlice::I64(slice) => view!(slice),
            CudaStorageSlice::BF16(slice) => view!(slice),
            CudaStorageSlice::F16(slice) => view!(slice),
            CudaStorageSlice::F32(slice) => view!(slice),
            CudaStorageSlice::F64(slice) => view!(slice),
            CudaStorageSlice::F8E4M3(slice) => view!(slice),
            CudaStorageSlice::F6E2M3(slice)
            | CudaStorageSlice::F6E3M2(slice)
            | CudaStorageSlice::F4(slice)
            | CudaStorageSlice::F8E8M0(slice) => packed(slice),
        };
        inside.then(|| Self { start, bytes, tensor: tensor.clone() })
    }
}
