//! All tensors at once.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use weighbridge::engine::ReadOrder;
use weighbridge::{Dtype, Entry, LoadOptions, Report, Result};

use crate::Loader;
use crate::catalog::Item;
use crate::session::{Request, Tensors};

/// What [`Loader::load`] gives.
#[derive(Debug)]
#[non_exhaustive]
pub struct Loaded {
    /// The tensors by name.
    pub tensors: HashMap<String, Tensor>,
    /// The tensors that Candle cannot hold.
    pub skipped: Vec<Skipped>,
    /// The tensors whose dtype was changed.
    pub converted: Vec<Conversion>,
    /// Bytes taken and read.
    pub report: Report,
}

/// A tensor that was not loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Skipped {
    /// Its name.
    pub name: String,
    /// Its stored dtype.
    pub dtype: Dtype,
    /// Why, and what would load it.
    pub reason: String,
}

/// A tensor that came in another dtype than it is stored in.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Conversion {
    /// Its name.
    pub name: String,
    /// Its stored dtype.
    pub from: Dtype,
    /// Its dtype in Candle.
    pub to: DType,
}

impl Loader {
    /// Loads all tensors.
    ///
    /// What Candle cannot hold is listed in [`Loaded::skipped`].
    ///
    /// # Errors
    ///
    /// Fails when reading, casting or placing a tensor on the device fails, when one holds codes of a
    /// [quantised](Self::quantized) module, when two get [one name](Self::rename), and, with
    /// [`require_all`](Self::require_all), when Candle cannot hold one.
    pub fn load(mut self) -> Result<Loaded> {
        let catalog = self.catalog()?;
        self.place(&catalog)?;
        catalog.refuse_all_codes()?;
        let devices = self.devices.clone();
        let route = devices.route();
        let (mut entries, mut requests) = (Vec::new(), Vec::new());
        let (mut skipped, mut converted) = (Vec::new(), Vec::new());
        for item in catalog.items() {
            let device = devices.for_name(item.name());
            match self.fate(&item, device)? {
                Fate::Loaded(entry, request, conversion) => {
                    converted.extend(conversion);
                    entries.push(entry);
                    requests.push((item.name(), request));
                }
                Fate::Skipped(reason) => skipped.push(reason),
            }
        }
        let read_ahead = route.ends_with_reading().then_some(u64::MAX);
        let session = self.session(entries, LoadOptions::new().order(ReadOrder::File), read_ahead);
        let session = Tensors::start(session, &devices, &self.staging)?;
        let mut tensors = HashMap::with_capacity(requests.len());
        for (name, request) in requests {
            tensors.insert(name.to_owned(), session.take(name, request)?);
        }
        Ok(Loaded { tensors, skipped, converted, report: session.report() })
    }

    /// What becomes of a tensor that is loaded for itself.
    ///
    /// # Errors
    ///
    /// Fails when it cannot be planned, and when Candle cannot hold it and everything is required.
    pub(crate) fn fate<'d>(&self, item: &Item<'_>, device: &'d Device) -> Result<Fate<'d>> {
        let (name, stored) = (item.name(), item.tensor.dtype());
        let dtype = item.rule(self.dtype.filter(|_| stored.is_float()));
        let target = match item.target(dtype, device) {
            Ok(target) => target,
            Err(error) if self.require_all => return Err(error.in_tensor(name)),
            Err(error) => {
                let (name, reason) = (name.to_owned(), error.to_string());
                return Ok(Fate::Skipped(Skipped { name, dtype: stored, reason }));
            }
        };
        let (entry, request) = item.planned(&target, dtype.is_some(), device)?;
        let is_converted = stored != target.read_as || target.pairs;
        let conversion =
            is_converted.then(|| Conversion { name: name.to_owned(), from: stored, to: target.dtype });
        Ok(Fate::Loaded(entry, request, conversion))
    }
}

/// What becomes of a tensor.
pub(crate) enum Fate<'d> {
    Loaded(Entry, Request<'d>, Option<Conversion>),
    Skipped(Skipped),
}
