//! Candle's `VarBuilder` over a session that reads ahead.

use std::fmt;

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::var_builder::{Shard, SimpleBackend};
use candle_nn::{Init, VarBuilder};
use weighbridge::engine::ReadOrder;
use weighbridge::{Checkpoint, Error, LoadOptions, Report, Result, Slice};

use crate::Loader;
use crate::catalog::{Catalog, Item, slice_of_shard};
use crate::devices::Devices;
use crate::session::{Request, Tensors};

/// Gives a model's tensors as it asks for them, each in the dtype and on the device that it asks for.
///
/// [`Loader::var_builder`](crate::Loader::var_builder) wraps it. Take it apart where its report is wanted, or
/// what it knows of the tensors:
///
/// ```
/// use std::collections::HashMap;
///
/// use weighbridge_candle::candle_nn::VarBuilder;
/// # use weighbridge_candle::{Loader, weighbridge::Checkpoint};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let ckpt = Checkpoint::open(concat!(env!("CARGO_MANIFEST_DIR"), "/../../samples/adder"))?;
/// let backend = Loader::new(&ckpt).backend()?;
/// let shapes: HashMap<String, Vec<usize>> =
///     backend.tensors().map(|(name, shape, _)| (name.to_owned(), shape.into_dims())).collect();
/// let report = backend.report();
/// let (dtype, device) = (backend.dtype(), backend.device().clone());
/// let vb = VarBuilder::from_backend(Box::new(backend), dtype, device);
/// // ... build the model from `vb` ...
/// println!("never asked for: {:?}", report.unused());
/// # assert_eq!(report.unused().len(), shapes.len());
/// # Ok(())
/// # }
/// ```
pub struct Backend {
    catalog: Catalog,
    session: Tensors,
    devices: Devices,
    dtype: DType,
}

/// Which shapes a model may expect.
enum Expected {
    Any,
    /// That of what is taken.
    Taken(Shape),
    /// The same, or that of the stored tensor.
    TakenOrStored(Shape),
}

impl Loader {
    /// A `VarBuilder` over all tensors; a model that is built from it gets them as it asks for them.
    ///
    /// Its dtype is the one that was [set](Self::dtype), else the float dtype with the most bytes among the
    /// tensors, else `F32`. A tensor that Candle cannot hold, or not in the dtype that is asked for, is an
    /// error when it is asked for. The shape that the model expects is checked before anything is read for
    /// the request.
    ///
    /// # Errors
    ///
    /// Fails when two tensors get [one name](Self::rename), when one does not have the [part](Self::part_for)
    /// that is to be taken, and when the session cannot be started.
    pub fn var_builder(self) -> Result<VarBuilder<'static>> {
        let backend = self.backend()?;
        let (dtype, device) = (backend.dtype, backend.devices.default.clone());
        Ok(VarBuilder::from_backend(Box::new(backend), dtype, device))
    }

    /// What [`var_builder`](Self::var_builder) wraps: it has a report, and knows names, shapes and dtypes.
    ///
    /// # Errors
    ///
    /// As [`var_builder`](Self::var_builder).
    pub fn backend(self) -> Result<Backend> {
        self.start_backend(true)
    }

    /// A backend that reads ahead tensors of which a part was declared and, if `wholes` are to be, all
    /// others.
    pub(crate) fn start_backend(mut self, wholes: bool) -> Result<Backend> {
        let catalog = self.catalog()?;
        self.place(&catalog)?;
        let dtype = self.builder_dtype(&catalog);
        let mut entries = Vec::new();
        for item in catalog.items() {
            if catalog.refuse_codes(item.name()).is_err() {
                continue;
            }
            let device = self.devices.for_name(item.name());
            let rule = item.rule(Some(dtype));
            // What does not come in the builder's dtype may be asked for in another one.
            let target = item.target(rule, device).or_else(|_| item.target(None, device));
            let Ok(target) = target else { continue };
            let (entry, _) = item.planned(&target, rule.is_some(), device)?;
            let is_known = !catalog.has_codes(&item) && (wholes || item.part().is_some());
            entries.push(if is_known { entry } else { entry.deferred() });
        }
        let session = self.session(entries, LoadOptions::new().order(ReadOrder::Natural), None);
        let session = Tensors::start(session, &self.devices, &self.staging)?;
        Ok(Backend { catalog, session, devices: self.devices, dtype })
    }
}

impl Backend {
    /// What has been asked for so far, what was cast, and what never was asked for.
    pub fn report(&self) -> Report {
        self.session.report()
    }

    /// What is loaded from: tensors under their stored names, whatever the loader was told of them.
    pub fn checkpoint(&self) -> &Checkpoint {
        self.catalog.checkpoint()
    }

    /// Name, shape and dtype of every tensor that is available, as a request without a shard or a slice, in the
    /// backend's dtype, gives it: after filters, [`rename`](Loader::rename), [`part_for`](Loader::part_for)
    /// and [`dtype_for`](Loader::dtype_for), in the checkpoint's order.
    ///
    /// A tensor is not there that Candle cannot hold in this dtype, or that holds the codes of a
    /// [quantised](Loader::quantized) module.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, Shape, DType)> {
        self.catalog.items().filter_map(|item| {
            self.catalog.refuse_codes(item.name()).ok()?;
            let device = self.devices.for_name(item.name());
            let target = item.target(item.rule(Some(self.dtype)), device).ok()?;
            Some((item.name(), target.shape(item.shape()), target.dtype))
        })
    }

    /// The dtype that a builder over this backend has, unless it is given another one.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The device that a builder over this backend has, unless it is given another one.
    pub fn device(&self) -> &Device {
        &self.devices.default
    }

    /// A part of a stored tensor, in the dtype and on the device of this backend: rows from an offset, parts
    /// of different sizes, anything that a [`Slice`] says. No more is read than it needs.
    ///
    /// Slices follow the rules of Python: a range is cut to what is there. The part that was
    /// [declared](Loader::part_for) is read ahead, others when they are asked for.
    ///
    /// ```
    /// use weighbridge_candle::weighbridge::Slice;
    /// # use weighbridge_candle::{Loader, weighbridge::Checkpoint};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let ckpt = Checkpoint::open(concat!(env!("CARGO_MANIFEST_DIR"), "/../../samples/adder"))?;
    /// let backend = Loader::new(&ckpt).backend()?;
    /// let (dim, offset, len) = (0, 2, 3);
    /// let rows = Slice::along(dim, offset..offset + len); // mistral.rs' `Shard::Offset`
    /// assert_eq!(backend.get_slice("model.embed_tokens.weight", &rows)?.dim(0)?, 3);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Fails when there is no such tensor or no such part of it, and where [`SimpleBackend::get`] does.
    pub fn get_slice(&self, name: &str, slice: &Slice) -> candle_core::Result<Tensor> {
        self.get_slice_as(name, slice, self.dtype, &self.devices.default)
    }

    /// The same in another dtype and on another device; rules of the loader count as when a builder asks.
    ///
    /// # Errors
    ///
    /// As [`get_slice`](Self::get_slice).
    pub fn get_slice_as(
        &self,
        name: &str,
        slice: &Slice,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        self.take(&self.item(name)?, Some(slice), &Expected::Any, dtype, device)
    }

    /// The part of a tensor that belongs to one rank. A model may give the shape of the whole, of the part,
    /// or, as Candle's own models do, none.
    pub(crate) fn get_shard(
        &self,
        name: &str,
        expected: Shape,
        shard: Shard,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let item = self.item(name)?;
        let slice = slice_of_shard(item.tensor.shape(), shard);
        let slice = slice.map_err(|error| candle_core::Error::wrap(error.in_tensor(name)))?;
        let expected = match (expected.rank(), &slice) {
            (0, _) => Expected::Any,
            (_, None) => Expected::Taken(expected),
            (_, Some(_)) => Expected::TakenOrStored(expected),
        };
        self.take(&item, slice.as_ref(), &expected, dtype, device)
    }

    /// The tensor of that name, unless it is not there, or is quantised.
    fn item(&self, name: &str) -> candle_core::Result<Item<'_>> {
        self.catalog.refuse_codes(name).map_err(candle_core::Error::wrap)?;
        let missing = || candle_core::Error::CannotFindTensor { path: name.to_owned() }.bt();
        self.catalog.item(name).ok_or_else(missing)
    }

    /// A slice of a stored tensor, or what is taken of it without one.
    fn take(
        &self,
        item: &Item<'_>,
        slice: Option<&Slice>,
        expected: &Expected,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let name = item.name();
        let wrap = |error: Error| candle_core::Error::wrap(error.in_tensor(name));
        let device = self.devices.rule(name).unwrap_or(device);
        let rule = item.rule(Some(dtype));
        let target = item.target(rule, device).map_err(wrap)?;
        // What the plan does not have is made by itself.
        let is_planned = slice.map_or(Ok(true), |slice| item.is_part(slice)).map_err(wrap)?;
        let other = match is_planned && self.session.has(name) {
            true => None,
            false => Some(item.entry(slice.or(item.part()), rule.is_some()).map_err(wrap)?),
        };
        let taken = other.as_ref().map_or(item.shape(), |entry| entry.shape());
        let shape = target.shape(taken);
        let fits = match expected {
            Expected::Any => true,
            Expected::Taken(expected) => *expected == shape,
            Expected::TakenOrStored(expected) => {
                *expected == shape || *expected == target.shape(item.tensor.shape())
            }
        };
        if let (false, Expected::Taken(expected) | Expected::TakenOrStored(expected)) = (fits, expected) {
            let (expected, msg) = (expected.clone(), format!("shape mismatch for {name}"));
            return Err(candle_core::Error::UnexpectedShape { msg, expected, got: shape }.bt());
        }
        let request = Request { read_as: target.read_as, dtype: target.dtype, shape, device };
        let taken = match other {
            Some(entry) => self.session.make(&entry, request),
            None => self.session.take(name, request),
        };
        taken.map_err(candle_core::Error::wrap)
    }
}

impl SimpleBackend for Backend {
    /// The hint, an initialisation for training from scratch, has no meaning for stored weights.
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        self.take(&self.item(name)?, None, &Expected::Taken(shape), dtype, device)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        self.take(&self.item(name)?, None, &Expected::Any, dtype, device)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.catalog.item(name).is_some()
    }
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backend")
            .field("session", &self.session)
            .field("dtype", &self.dtype)
            .finish_non_exhaustive()
    }
}
