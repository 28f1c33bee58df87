//! A stream of our own, in which one thread copies.
//!
//! What the driver is told to copy is copied some time later. For what goes to the device the session keeps
//! buffers and memory until it has waited, as it promises to every [`Device`](weighbridge::engine::Device);
//! what comes back is owned by an [`Arriving`] until then.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::mem;
use std::ptr;
use std::sync::Arc;

use candle_core::Tensor;
use candle_core::cuda_backend::CudaDevice;
use candle_core::cuda_backend::cudarc::driver::result::stream::StreamKind;
use candle_core::cuda_backend::cudarc::driver::sys::{
    self, CUdeviceptr, CUevent_flags, CUevent_wait_flags, CUresult,
};
use candle_core::cuda_backend::cudarc::driver::{
    CudaContext, CudaFunction, CudaSlice, CudaStream, DriverError, LaunchConfig, PushKernelArg, result,
};
use weighbridge::Error;

use super::casts::{Cast, Casts};
use super::failed;
use super::memory::{Memory, Slab, View, place};
use crate::tensor::refused;

/// A point in a stream. Who waits for it sleeps; cudarc's own also take the time.
pub(crate) struct Event {
    event: sys::CUevent,
    context: Arc<CudaContext>,
}

// SAFETY: the driver lets any thread use an event.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    fn new(context: &Arc<CudaContext>) -> Result<Self, DriverError> {
        context.bind_to_thread()?;
        let flags =
            CUevent_flags::CU_EVENT_BLOCKING_SYNC as u32 | CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        let mut event = ptr::null_mut();
        // SAFETY: it is written to a place for one.
        unsafe { sys::cuEventCreate(&raw mut event, flags) }.result()?;
        Ok(Self { event, context: Arc::clone(context) })
    }

    /// One behind all that was sent to a stream so far, by the calling thread if the stream is another one in
    /// each thread.
    pub(super) fn behind(context: &Arc<CudaContext>, stream: &CudaStream) -> Result<Self, DriverError> {
        let event = Self::new(context)?;
        event.record(stream)?;
        Ok(event)
    }

    fn record(&self, stream: &CudaStream) -> Result<(), DriverError> {
        self.context.bind_to_thread()?;
        // SAFETY: both are of this context and alive.
        unsafe { result::event::record(self.event, stream.cu_stream()) }
    }

    /// Waits until it is reached.
    pub(super) fn wait(&self) -> Result<(), DriverError> {
        self.context.bind_to_thread()?;
        // SAFETY: it is alive.
        unsafe { result::event::synchronize(self.event) }
    }

    /// Whether it is known to be reached.
    pub(super) fn is_reached(&self) -> bool {
        // SAFETY: it is alive.
        self.context.bind_to_thread().is_ok() && unsafe { result::event::query(self.event) }.is_ok()
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        self.context.record_err(self.context.bind_to_thread());
        // SAFETY: it was made in `new` and is destroyed once.
        self.context.record_err(unsafe { result::event::destroy(self.event) });
    }
}

/// A stream of our own, in which one thread copies, and what it needs for that.
///
/// The stream is made without cudarc's knowledge: `CudaContext::new_stream` would have every kernel of Candle
/// record events from then on.
pub(crate) struct Copier {
    stream: Arc<CudaStream>,
    /// Events that nobody waits for: as many as there are buffers, used again and again.
    spare: Vec<Event>,
    /// Memory of the device in which bytes arrive that are cast there.
    scratch: Option<CudaSlice<u8>>,
    casts: HashMap<Cast, CudaFunction>,
}

/// Bytes that go to the device.
pub(super) struct Upload<'a> {
    pub(super) memory: &'a Memory,
    /// The memory may be used behind this.
    pub(super) ready: &'a Event,
    pub(super) device: &'a CudaDevice,
    pub(super) bytes: &'a [u8],
    /// Where they or what they are cast to begins in the memory.
    pub(super) offset: u64,
    pub(super) cast: Option<Cast>,
}

impl Upload<'_> {
    /// Where they go to, if that is inside of the memory.
    fn place(&self) -> Result<CUdeviceptr, DriverError> {
        let times = self.cast.map_or(1, Cast::times);
        let end = |offset: usize| offset.checked_add(self.bytes.len().checked_mul(times)?);
        let inside = usize::try_from(self.offset)
            .ok()
            .filter(|offset| end(*offset).is_some_and(|end| end <= self.memory.bytes));
        let offset = inside.ok_or(DriverError(CUresult::CUDA_ERROR_INVALID_VALUE))?;
        Ok(self.memory.start + offset as CUdeviceptr)
    }
}

impl Copier {
    pub(super) fn new(context: &Arc<CudaContext>) -> Result<Self, DriverError> {
        context.bind_to_thread()?;
        let stream = result::stream::create(StreamKind::NonBlocking)?;
        // SAFETY: the stream is of this context and lives as long as `Self`, which keeps the wrapper to
        // itself.
        let stream = unsafe { context.wrap_borrowed_stream(stream) };
        Ok(Self { stream, spare: Vec::new(), scratch: None, casts: HashMap::new() })
    }

    fn context(&self) -> &Arc<CudaContext> {
        self.stream.context()
    }

    /// Has all copies from now on wait for what is in another stream by now.
    pub(super) fn after(&self, other: &CudaStream) -> Result<(), DriverError> {
        self.after_event(&Event::behind(self.context(), other)?)
    }

    fn after_event(&self, event: &Event) -> Result<(), DriverError> {
        self.context().bind_to_thread()?;
        let flags = CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: both are alive, and of contexts that exist.
        unsafe { result::stream::wait_event(self.stream.cu_stream(), event.event, flags) }
    }

    /// Starts to copy what lies in a buffer of a session to the device, and to cast it there; what is cast
    /// takes at most `room` bytes, the same each time. `Ok` of an error: nothing is being copied any more;
    /// `Err` of one: nobody knows.
    ///
    /// # Safety
    ///
    /// Buffer and memory must be kept, and the buffer must not be written to, until the event has been waited
    /// for; if nobody knows what is being copied, for good.
    pub(super) unsafe fn upload(
        &mut self,
        uploads: &[Upload<'_>],
        casts: &Casts,
        room: usize,
    ) -> Result<Result<Event, Error>, DriverError> {
        // SAFETY: as the caller has promised.
        match unsafe { self.send(uploads, casts, room) } {
            Ok(event) => Ok(Ok(event)),
            Err(error) => self.stream.synchronize().map(|()| Err(error)),
        }
    }

    /// # Safety
    ///
    /// As for [`upload`](Self::upload), also when it fails, until the stream has been waited for.
    unsafe fn send(&mut self, uploads: &[Upload<'_>], casts: &Casts, room: usize) -> Result<Event, Error> {
        let refused_copy = failed("a copy could not be started");
        self.context().bind_to_thread().map_err(&refused_copy)?;
        let mut cast_before = 0;
        for upload in uploads {
            let to = upload.place().map_err(&refused_copy)?;
            self.after_event(upload.ready).map_err(failed("copies cannot be ordered"))?;
            let Some(cast) = upload.cast else {
                // SAFETY: the destination lies inside of memory that was allocated before, which this stream
                // has waited for; the caller keeps both, and does not touch the buffer, until it has waited
                // for the event.
                unsafe { result::memcpy_htod_async(to, upload.bytes, self.stream.cu_stream()) }
                    .map_err(&refused_copy)?;
                continue;
            };
            let (scratch, bytes) = self.scratch(upload.device, room)?;
            let end = cast_before + upload.bytes.len();
            if end > bytes {
                return Err(refused_copy(DriverError(CUresult::CUDA_ERROR_INVALID_VALUE)));
            }
            let from = scratch + cast_before as CUdeviceptr;
            cast_before = end.next_multiple_of(256);
            // SAFETY: the destination lies inside of the scratch memory, which is used in this stream only:
            // what was cast from it before comes first. The source is kept as above.
            unsafe { result::memcpy_htod_async(from, upload.bytes, self.stream.cu_stream()) }
                .map_err(&refused_copy)?;
            // SAFETY: both have room for so many elements, the source as copied above, the destination as
            // `place` has found.
            unsafe { self.cast(cast, casts, upload, from, to) }?;
        }
        let event = match self.spare.pop() {
            Some(event) => event,
            None => Event::new(self.context()).map_err(&refused_copy)?,
        };
        event.record(&self.stream).map_err(&refused_copy)?;
        Ok(event)
    }

    /// Memory of `room` bytes in which bytes arrive that are cast, and its size.
    fn scratch(&mut self, device: &CudaDevice, room: usize) -> Result<(CUdeviceptr, usize), Error> {
        if self.scratch.is_none() {
            // SAFETY: it is read only behind copies to it.
            let made = unsafe { device.alloc::<u8>(room) }.map_err(|error| refused(&error))?;
            self.after(&device.cuda_stream()).map_err(failed("copies cannot be ordered"))?;
            self.scratch = Some(made);
        }
        Ok(self.scratch.as_ref().map_or((0, 0), |scratch| place(scratch, &self.stream)))
    }

    /// # Safety
    ///
    /// `from` must have the upload's bytes, and `to` room for what they are cast to, in this stream's order.
    unsafe fn cast(
        &mut self,
        cast: Cast,
        casts: &Casts,
        upload: &Upload<'_>,
        from: CUdeviceptr,
        to: CUdeviceptr,
    ) -> Result<(), Error> {
        let kernel = match self.casts.get(&cast) {
            Some(kernel) => kernel.clone(),
            None => {
                let kernel = casts.kernel(cast, upload.device)?;
                self.casts.insert(cast, kernel.clone());
                kernel
            }
        };
        // A tensor without strides: the kernel takes it for contiguous.
        let (elements, dims, strides) = (upload.bytes.len() / cast.size(), 0_usize, 0_usize);
        let mut launch = self.stream.launch_builder(&kernel);
        launch.arg(&elements).arg(&dims).arg(&strides).arg(&from).arg(&to);
        // SAFETY: these are the arguments of Candle's casts, and as the caller has promised.
        let launched = unsafe { launch.launch(LaunchConfig::for_num_elems(elements as u32)) };
        launched.map(drop).map_err(failed("a cast could not be started"))
    }

    /// Waits for what was sent before an event.
    pub(super) fn wait(&mut self, event: Event) -> Result<(), DriverError> {
        event.wait()?;
        self.spare.push(event);
        Ok(())
    }

    /// Starts to copy some bytes of a tensor that lies in one piece to a buffer, all of which it fills or as
    /// much as there is until `end`.
    pub(super) fn download(
        &mut self,
        from: &View,
        offset: usize,
        end: usize,
        mut slab: Slab,
    ) -> Result<Arriving, DriverError> {
        self.context().bind_to_thread()?;
        let event = match self.spare.pop() {
            Some(event) => event,
            None => Event::new(self.context())?,
        };
        let memory = slab.as_mut();
        let len = memory.len().min(end.min(from.bytes).saturating_sub(offset));
        let start = memory.as_mut_ptr();
        // SAFETY: the buffer has so many bytes. It is moved into `Arriving`, its memory stays where it is.
        let to = unsafe { std::slice::from_raw_parts_mut(start, len) };
        // SAFETY: the source lies inside of the tensor's memory; `Arriving` keeps it and the buffer until it
        // has waited.
        unsafe {
            result::memcpy_dtoh_async(to, from.start + offset as CUdeviceptr, self.stream.cu_stream())
        }?;
        let recorded = event.record(&self.stream);
        let arriving = Arriving {
            slab: Some(slab),
            len,
            event: Some(event),
            has_arrived: false,
            tensor: from.tensor.clone(),
        };
        if let Err(error) = recorded {
            if self.stream.synchronize().is_err() {
                // It may still be written to.
                mem::forget(arriving);
            }
            return Err(error);
        }
        Ok(arriving)
    }

    /// Takes an event of a copy that has arrived, to be used again.
    pub(super) fn put_back(&mut self, mut arrived: Arriving) {
        if arrived.has_arrived {
            self.spare.extend(arrived.event.take());
        }
    }
}

impl Drop for Copier {
    fn drop(&mut self) {
        let context = Arc::clone(self.context());
        context.record_err(context.bind_to_thread());
        if self.scratch.is_some() && self.stream.synchronize().is_err() {
            // It may still be written to.
            mem::forget(self.scratch.take());
        }
        // SAFETY: it was made in `new`, is destroyed once, and the wrapper, which goes with `self`, does not
        // use it any more. What is in it is still done.
        context.record_err(unsafe { result::stream::destroy(self.stream.cu_stream()) });
    }
}

/// Bytes on their way to a buffer.
pub(super) struct Arriving {
    slab: Option<Slab>,
    len: usize,
    event: Option<Event>,
    has_arrived: bool,
    /// Keeps the memory.
    tensor: Tensor,
}

impl Arriving {
    /// How many there will be.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Waits, and lends the bytes.
    pub(super) fn bytes(&mut self) -> Result<&[u8], DriverError> {
        if let Some(event) = &self.event
            && !self.has_arrived
        {
            event.wait()?;
            self.has_arrived = true;
        }
        let memory = self.slab.as_mut().map_or(&mut [][..], Slab::as_mut);
        let memory = &memory[..self.len.min(memory.len())];
        // SAFETY: the copy is done, so that all of these bytes have values.
        Ok(unsafe { std::slice::from_raw_parts(memory.as_ptr().cast(), memory.len()) })
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        let is_on_its_way =
            !self.has_arrived && self.event.as_ref().is_some_and(|event| event.wait().is_err());
        if is_on_its_way {
            // It may still be written to.
            mem::forget(self.slab.take());
            mem::forget(self.tensor.clone());
        }
    }
}
