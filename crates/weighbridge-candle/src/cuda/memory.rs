//! Memory that a GPU reads and writes on its own. All `unsafe` code for CUDA is in this module.
//!
//! What the driver is told to copy is copied some time later. For what goes to the device the session keeps buffers and
//! memory until it has waited, as it promises to every [`Device`](weighbridge::engine::Device); what comes back is owned by
//! an [`Arriving`] until then.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::cuda_backend::cudarc::driver::result::stream::StreamKind;
use candle_core::cuda_backend::cudarc::driver::sys::{
    CU_MEMHOSTALLOC_PORTABLE, CUdeviceptr, CUevent_flags, CUresult,
};
use candle_core::cuda_backend::cudarc::driver::{
    CudaContext, CudaEvent, CudaSlice, CudaStream, DevicePtr, DeviceRepr, DriverError, result,
};
use candle_core::cuda_backend::{CudaDevice, CudaStorageSlice};
use candle_core::{DType, Storage, Tensor};
use weighbridge::engine::Transfer;

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
    start: CUdeviceptr,
    bytes: usize,
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
fn place<T: DeviceRepr>(slice: &CudaSlice<T>, stream: &CudaStream) -> (CUdeviceptr, usize) {
    let (start, record) = slice.device_ptr(stream);
    // Of use only to cudarc's own order, for who has that.
    drop(record);
    (start, slice.num_bytes())
}

/// A stream of our own, in which everything is copied.
///
/// It is made without cudarc's knowledge: `CudaContext::new_stream` would have every kernel of Candle record events from
/// then on.
pub(crate) struct Copier {
    stream: Arc<CudaStream>,
}

impl Copier {
    pub(super) fn new(context: &Arc<CudaContext>) -> Result<Self, DriverError> {
        context.bind_to_thread()?;
        let stream = result::stream::create(StreamKind::NonBlocking)?;
        // SAFETY: the stream is of this context and lives as long as `Self`, which keeps the wrapper to itself.
        let stream = unsafe { context.wrap_borrowed_stream(stream) };
        Ok(Self { stream })
    }

    pub(super) fn context(&self) -> &Arc<CudaContext> {
        self.stream.context()
    }

    /// Has all copies from now on wait for what is in another stream by now.
    pub(super) fn after(&self, other: &CudaStream) -> Result<(), DriverError> {
        self.stream.join(other)
    }

    /// Starts to copy what lies in a buffer of a session to the device. `Ok` of an error: nothing is being copied any
    /// more; `Err` of one: nobody knows.
    ///
    /// # Safety
    ///
    /// Buffer and memory must be kept, and the buffer must not be written to, until the event has been waited for; if
    /// nobody knows what is being copied, for good.
    pub(super) unsafe fn upload<M>(
        &self,
        transfers: &[(&Memory, &Transfer<'_, M>)],
    ) -> Result<Result<CudaEvent, DriverError>, DriverError> {
        let send = || {
            self.stream.context().bind_to_thread()?;
            for (memory, Transfer { bytes, offset, .. }) in transfers {
                let inside = usize::try_from(*offset)
                    .ok()
                    .filter(|offset| offset.checked_add(bytes.len()).is_some_and(|end| end <= memory.bytes));
                let offset = inside.ok_or(DriverError(CUresult::CUDA_ERROR_INVALID_VALUE))?;
                let to = memory.start + offset as CUdeviceptr;
                // SAFETY: the destination lies inside of memory that was allocated before, which this stream has waited for;
                // the caller keeps both, and does not touch the buffer, until it has waited for the event.
                unsafe { result::memcpy_htod_async(to, bytes, self.stream.cu_stream()) }?;
            }
            self.event()
        };
        match send() {
            Ok(event) => Ok(Ok(event)),
            Err(error) => self.stream.synchronize().map(|()| Err(error)),
        }
    }

    /// Starts to copy some bytes of a tensor that lies in one piece to a buffer, all of which it fills or as much as there
    /// is.
    pub(super) fn download(
        &self,
        from: &View,
        offset: usize,
        mut slab: Slab,
    ) -> Result<Arriving, DriverError> {
        self.stream.context().bind_to_thread()?;
        let memory = slab.as_mut();
        let len = memory.len().min(from.bytes.saturating_sub(offset));
        let start = memory.as_mut_ptr();
        // SAFETY: the buffer has so many bytes. It is moved into `Arriving`, its memory stays where it is.
        let to = unsafe { std::slice::from_raw_parts_mut(start, len) };
        let arriving = |event| Arriving { slab: Some(slab), len, event, tensor: from.tensor.clone() };
        // SAFETY: the source lies inside of the tensor's memory; `Arriving` keeps it and the buffer until it has waited.
        unsafe {
            result::memcpy_dtoh_async(to, from.start + offset as CUdeviceptr, self.stream.cu_stream())
        }?;
        match self.event() {
            Ok(event) => Ok(arriving(Some(event))),
            Err(error) => {
                if self.stream.synchronize().is_err() {
                    std::mem::forget(arriving(None));
                }
                Err(error)
            }
        }
    }

    /// An event behind everything that was sent so far. Who waits for it sleeps.
    fn event(&self) -> Result<CudaEvent, DriverError> {
        self.stream.record_event(Some(CUevent_flags::CU_EVENT_BLOCKING_SYNC))
    }
}

impl Drop for Copier {
    fn drop(&mut self) {
        let context = self.stream.context();
        context.record_err(context.bind_to_thread());
        // SAFETY: it was made in `new`, is destroyed once, and the wrapper, which goes with `self`, does not use it any more.
        // What is in it is still done.
        context.record_err(unsafe { result::stream::destroy(self.stream.cu_stream()) });
    }
}

/// The memory of a tensor that lies in one piece.
pub(super) struct View {
    start: CUdeviceptr,
    pub(super) bytes: usize,
    /// Keeps the memory.
    tensor: Tensor,
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

/// Bytes on their way to a buffer.
pub(super) struct Arriving {
    slab: Option<Slab>,
    len: usize,
    event: Option<CudaEvent>,
    /// Keeps the memory.
    tensor: Tensor,
}

impl Arriving {
    /// Waits, and lends the bytes.
    pub(super) fn bytes(&mut self) -> Result<&[u8], DriverError> {
        if let Some(event) = &self.event {
            event.synchronize()?;
            self.event = None;
        }
        let memory = self.slab.as_mut().map_or(&mut [][..], Slab::as_mut);
        let memory = &memory[..self.len.min(memory.len())];
        // SAFETY: the copy is done, so that all of these bytes have values.
        Ok(unsafe { std::slice::from_raw_parts(memory.as_ptr().cast(), memory.len()) })
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        if self.event.as_ref().is_some_and(|event| event.synchronize().is_err()) {
            // It may still be written to.
            std::mem::forget(self.slab.take());
            std::mem::forget(self.tensor.clone());
        }
    }
}
