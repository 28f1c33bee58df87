//! Staging for Burn's GPU backends, all of which are cubecl's.
//!
//! A tensor's memory is allocated first. Readers fill slabs, which are page-locked on CUDA, and each piece of
//! a slab is written to where it belongs (`Client::write`). So a tensor needs no memory of the host of its
//! own, whatever its size, page-locked memory is not copied to, and what was just read is copied from while
//! it is in the processor's cache.
//!
//! Everything is told to the stream of the thread that loads, whichever thread reads: what it uses then comes
//! later. The runtime keeps what it copies from until the next but one flush, so each copy is followed by
//! one; that also has it begin at once.

use std::collections::HashSet;
use std::iter;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use burn::backend::{BackendTensor, Cube, DispatchDevice, DispatchKindConversion, DispatchTensor};
use burn::tensor::kind::Basic;
use burn::tensor::{Bytes, DType, Device, Tensor};
use burn_cubecl::cubecl::client::Client;
use burn_cubecl::cubecl::server::Handle;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeBackend, CubeDevice};
use burn_fusion::client::GlobalFusionClient;
use burn_fusion::{Fusion, FusionBackend, FusionRuntime, FusionTensor, NoOp};
use burn_ir::{InitOperationIr, OperationIr};
use burn_std::future::block_on;
use burn_std::id::StreamId;
use burn_std::{AllocationProperty, Metadata};
use weighbridge::engine::{self, Ring, Session, Transfer};
use weighbridge::plan::Entry;
use weighbridge::{Error, ErrorKind, LoadOptions, Plan, Result};

use super::Target;
use super::slab::{Flight, Slab};
use crate::dtype::has_byte_bools;

/// Bytes of a slab of page-locked memory.
const PINNED: usize = 4 << 20;
/// Bytes of a slab of usual memory. The runtimes that have no other copy it to staging memory of their own,
/// and may keep 64 copies there.
const PLAIN: usize = 2 << 20;
/// Slabs: two for each reader, one to fill and one that is copied from.
const SLABS: usize = 2 * MOST_READERS;
/// The most readers that a session has on a device by default.
const MOST_READERS: usize = 16;

/// A cubecl device that tensors are uploaded to.
pub(super) struct Staging {
    client: Client,
    device: CubeDevice,
    stream: StreamId,
    /// Which entries are booleans.
    bools: HashSet<String>,
    /// The first slab, which was made to see of which kind they are.
    first: Mutex<Option<Slab>>,
    property: AllocationProperty,
}

/// Memory of a tensor.
pub(super) struct Memory {
    handle: Handle,
    len: u64,
    /// For booleans: the offset and the value of a byte that is neither 0 nor 1.
    bad: Option<AtomicU64>,
}

impl Staging {
    /// Staging for the device of all targets: if they have one in common, and it takes their bytes as they are.
    pub(super) fn of(targets: &[Target<'_>]) -> Option<Self> {
        let device = targets.first()?.device;
        let is_same = |target: &Target<'_>| same_device(target.device, device);
        if !targets.iter().all(|target| is_same(target) && is_plain(target)) || !has_usual_autodiff(device) {
            return None;
        }
        let cube = device.clone().without_autodiff();
        #[allow(unreachable_patterns)] // There may be no other backend.
        let cube = match cube.as_dispatch() {
            DispatchDevice::Cube(cube) => cube.clone(),
            _ => return None,
        };
        let bools = targets.iter().filter(|target| matches!(target.dtype, DType::Bool(_)));
        let mut staging = Self {
            client: cube.client(),
            device: cube,
            stream: StreamId::current(),
            bools: bools.map(|target| target.entry.name().to_owned()).collect(),
            first: Mutex::new(None),
            property: AllocationProperty::Native,
        };
        let first = staging.make_slab(PINNED);
        if first.is_pinned() {
            staging.property = AllocationProperty::Pinned;
            staging.first = Mutex::new(Some(first));
        }
        Some(staging)
    }

    fn ring(&self) -> Ring {
        let bytes = if self.property == AllocationProperty::Pinned { PINNED } else { PLAIN };
        Ring::new().slabs(SLABS).slab_bytes(bytes)
    }

    /// A slab; it is page-locked if the runtime has such memory, and some left.
    fn make_slab(&self, len: usize) -> Slab {
        let mut bytes = Bytes::from_elems(vec![0_u8; len]);
        self.stream.executes(|| self.client.staging(iter::once(&mut bytes), false));
        Slab::new(bytes)
    }

    /// Has the runtime begin what it was told, and give up what it has copied before.
    fn flush(&self) -> Result<()> {
        self.stream.executes(|| self.client.flush()).map_err(|error| failed(ErrorKind::Device, &error))
    }
}

fn failed(kind: ErrorKind, error: &dyn std::fmt::Display) -> Error {
    Error::new(kind, format!("the upload failed: {error}"))
}

/// Whether two devices are the same, autodiff included.
fn same_device(one: &Device, other: &Device) -> bool {
    one == other && context(one) == context(other)
}

/// A device's autodiff and checkpointing as text, for `==` on devices ignores them.
fn context(device: &Device) -> String {
    if device.is_autodiff() { format!("{:?}", device.as_dispatch()) } else { String::new() }
}

/// Whether a tensor that is made without autodiff and given it afterwards is like one made on the device.
fn has_usual_autodiff(device: &Device) -> bool {
    if !device.is_autodiff() {
        return true;
    }
    let tensor = Tensor::<1>::empty([1], &device.clone().without_autodiff());
    context(&tensor.autodiff().device()) == context(device)
}

/// Whether its bytes are elements as the device has them.
fn is_plain(target: &Target<'_>) -> bool {
    let has_its_form = match target.dtype {
        DType::Bool(_) => has_byte_bools(target.device),
        DType::QFloat(_) | DType::Flex32 => false,
        _ => true,
    };
    let elements = target.shape.iter().try_fold(1_usize, |elements, &dim| elements.checked_mul(dim));
    let bytes = elements.and_then(|elements| elements.checked_mul(target.dtype.size()));
    has_its_form && bytes.is_some_and(|bytes| bytes as u64 == target.entry.byte_len())
}

impl Memory {
    /// Records the first byte that is not a boolean, if it should be one.
    fn look_at(&self, bytes: &[u8], offset: u64) {
        let Some(bad) = &self.bad else { return };
        if let Some((index, &value)) = bytes.iter().enumerate().find(|&(_, &byte)| byte > 1) {
            bad.fetch_min((offset + index as u64) << 8 | u64::from(value), Ordering::Relaxed);
        }
    }
}

impl engine::Device for Staging {
    type Slab = Slab;
    type Memory = Memory;
    type Tensor = Handle;
    /// All copies are told to one stream, in the order in which they come.
    type Lane = ();
    type Fence = Flight;

    fn lane(&self) -> Result<()> {
        Ok(())
    }

    fn slab(&self, (): &mut (), bytes: usize) -> Result<Slab> {
        let first = self.first.lock().unwrap_or_else(PoisonError::into_inner).take();
        Ok(first.unwrap_or_else(|| self.make_slab(bytes)))
    }

    fn allocate(&self, entry: &Entry) -> Result<Memory> {
        let len = entry.byte_len();
        let size = usize::try_from(len).map_err(|error| failed(ErrorKind::Device, &error))?;
        // In memory that is not cut up for others. A lack of memory is reported by `finish` of the uploads.
        let client = &self.client;
        let allocate = || client.memory_persistent_allocation(size, |size| client.empty(size));
        let bad = self.bools.contains(entry.name()).then(|| AtomicU64::new(u64::MAX));
        Ok(Memory { handle: self.stream.executes(allocate), len, bad })
    }

    #[allow(unsafe_code)]
    unsafe fn copy(&self, (): &mut (), transfers: &[Transfer<'_, Memory>]) -> Result<Flight> {
        let flight = Flight::new();
        for Transfer { bytes, memory, offset, .. } in transfers {
            memory.look_at(bytes, *offset);
            // SAFETY: the caller does not touch the slab before `wait`, which waits until the flight is over.
            let piece = unsafe { flight.piece(bytes, self.property) };
            let behind = memory.len - offset - bytes.len() as u64;
            let place = memory.handle.clone().offset_start(*offset).offset_end(behind);
            self.stream.executes(|| self.client.write(&place, piece));
        }
        // If that fails, some copies may still go on.
        self.flush().map_err(|error| failed(ErrorKind::Internal, &error))?;
        Ok(flight)
    }

    fn wait(&self, (): &mut (), flight: Flight) -> Result<()> {
        // One flush waits for what came before the last one, a second one for the rest.
        for _ in 0..3 {
            if flight.is_over() {
                return Ok(());
            }
            self.flush()?;
        }
        match flight.is_over() {
            true => Ok(()),
            false => Err(Error::new(ErrorKind::Device, "the device did not finish an upload")),
        }
    }

    fn is_done(&self, (): &(), flight: &Flight) -> bool {
        flight.is_over()
    }

    fn finish(&self, _: &Entry, memory: Memory) -> Result<Handle> {
        match memory.bad.map(AtomicU64::into_inner) {
            Some(bad) if bad != u64::MAX => {
                let message = format!("the boolean at index {} is {}, not 0 or 1", bad >> 8, bad & 0xFF);
                Err(Error::new(ErrorKind::Value, message))
            }
            _ => Ok(memory.handle),
        }
    }
}

/// A load onto a cubecl device that is under way.
pub(crate) struct Uploads {
    session: Session<Handle>,
    client: Client,
    device: CubeDevice,
    taken: Vec<(String, Handle)>,
}

impl Uploads {
    pub(super) fn start(staging: Staging, plan: Plan, options: LoadOptions) -> Result<Self> {
        let (client, device, ring) = (staging.client.clone(), staging.device.clone(), staging.ring());
        let session = plan.session().options(options).start_on(staging, ring)?;
        Ok(Self { session, client, device, taken: Vec::new() })
    }

    pub(super) fn take(&mut self, target: Target<'_>) -> Result<Values> {
        let (_, handle) = self.session.take(target.entry.name(), None)?;
        self.taken.push((target.entry.name().to_owned(), handle.clone()));
        let metadata = Metadata::new(target.shape.to_vec(), contiguous(target.shape));
        let (client, device) = (self.client.clone(), self.device.clone());
        Ok(Values(Box::new(CubeTensor::new(client, handle, metadata, device, target.dtype))))
    }

    pub(super) fn finish(self) -> Result<()> {
        let Self { session, client, taken, .. } = self;
        drop(session);
        let outcome = block_on(client.sync_buffers(taken.iter().map(|(_, handle)| handle)));
        let Err(error) = outcome else { return Ok(()) };
        let failing = taken.iter().find(|(_, handle)| client.check([handle]).is_err());
        let error = failed(ErrorKind::Device, &error);
        Err(failing.map_or(error.clone(), |(name, _)| error.in_tensor(name)))
    }
}

/// The strides of elements without gaps, in elements.
fn contiguous(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for dim in (1..shape.len()).rev() {
        strides[dim - 1] = strides[dim] * shape[dim];
    }
    strides
}

/// Values on a device.
pub(crate) struct Values(Box<CubeTensor>);

impl Values {
    pub(super) fn rank(&self) -> usize {
        self.0.meta.num_dims()
    }

    /// A tensor without autodiff.
    pub(super) fn into_tensor<const D: usize, K: Basic>(self) -> Tensor<D, K> {
        let Self(tensor) = self;
        let tensor = match tensor.dtype {
            DType::Bool(_) => BackendTensor::<Cube>::Bool(Cube::bool(*tensor)),
            dtype if dtype.is_float() => BackendTensor::Float(Cube::float(*tensor)),
            _ => BackendTensor::Int(Cube::int(*tensor)),
        };
        Tensor::from_dispatch(<DispatchTensor as DispatchKindConversion<Cube>>::from_backend(tensor))
    }
}

/// A backend whose tensors are cubecl's, whether it fuses operations or not.
trait Wraps: burn::backend::Backend {
    fn float(tensor: CubeTensor) -> Self::FloatTensorPrimitive;
    fn int(tensor: CubeTensor) -> Self::IntTensorPrimitive;
    fn bool(tensor: CubeTensor) -> Self::BoolTensorPrimitive;
}

impl Wraps for CubeBackend {
    fn float(tensor: CubeTensor) -> CubeTensor {
        tensor
    }

    fn int(tensor: CubeTensor) -> CubeTensor {
        tensor
    }

    fn bool(tensor: CubeTensor) -> CubeTensor {
        tensor
    }
}

/// In the way in which fusion makes tensors of data.
impl<B> Wraps for Fusion<B>
where
    B: FusionBackend + Wraps,
    B::FusionRuntime: FusionRuntime<FusionDevice = CubeDevice>,
{
    fn float(tensor: CubeTensor) -> Self::FloatTensorPrimitive {
        registered::<B>(tensor, |tensor| B::float_tensor_handle(B::float(tensor)))
    }

    fn int(tensor: CubeTensor) -> Self::IntTensorPrimitive {
        registered::<B>(tensor, |tensor| B::int_tensor_handle(B::int(tensor)))
    }

    fn bool(tensor: CubeTensor) -> Self::BoolTensorPrimitive {
        registered::<B>(tensor, |tensor| B::bool_tensor_handle(B::bool(tensor)))
    }
}

/// The tensor as one that the fusing backend knows.
fn registered<B>(
    tensor: CubeTensor,
    handle: impl FnOnce(CubeTensor) -> B::Handle,
) -> FusionTensor<B::FusionRuntime>
where
    B: FusionBackend,
    B::FusionRuntime: FusionRuntime<FusionDevice = CubeDevice>,
{
    let client = GlobalFusionClient::<B::FusionRuntime>::load(&tensor.device);
    let (shape, dtype) = (tensor.meta.shape().clone(), tensor.dtype);
    let handle = handle(tensor);
    let operation = InitOperationIr::create(shape, dtype, || client.register_tensor_handle(handle));
    let mut made = client.register(StreamId::current(), OperationIr::Init(operation), NoOp::<B>::new());
    // An operation of this kind has one output.
    made.swap_remove(0)
}

#[cfg(all(test, feature = "vulkan"))]
#[allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.
mod tests;
