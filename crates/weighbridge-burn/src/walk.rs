//! The parameters of a module, whatever their rank and kind.

use std::any::Any;
use std::collections::HashMap;
use std::ops::Range;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId, Parameter};
use burn::tensor::kind::{Autodiff, Basic};
use burn::tensor::{Bool, DType, Device, Float, Int, Tensor, TensorData};
use weighbridge::{Error, ErrorKind, Result};

use crate::panics::caught;
use crate::upload::Values;

/// What a parameter's elements are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Float,
    Int,
    Bool,
}

impl Kind {
    /// What its elements are called.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Float => "floats",
            Self::Int => "integers",
            Self::Bool => "booleans",
        }
    }
}

/// A parameter of a module.
pub(crate) struct Site {
    /// The names on the way to it, each with the type that has the field. The last one is its own.
    pub(crate) steps: Vec<Step>,
    pub(crate) id: ParamId,
    pub(crate) kind: Kind,
    pub(crate) device: Device,
    /// The shape that it has in records: before the parameter's own mapping for loads, after the one for
    /// saves.
    pub(crate) shape: Vec<usize>,
    /// Whether it is the weight of a `Linear` whose layout is `Col`, which transposes what is loaded into it,
    /// and back when it is saved.
    pub(crate) is_column: bool,
    pub(crate) slot: Box<dyn Slot>,
}

/// A field, an element, or the variant of an enum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) name: String,
    /// In Burn's words: `Struct:Linear`, `Vec`, `Enum:Activation`.
    pub(crate) owner: String,
}

impl Step {
    /// Whether it is the variant of an enum, which other frameworks do not have in names.
    pub(crate) fn is_variant(&self) -> bool {
        self.owner.starts_with("Enum:")
    }
}

impl Site {
    /// Burn's own name for it, as in its records.
    pub(crate) fn path(&self) -> String {
        dotted(&self.steps)
    }

    /// The types on the way to it.
    #[cfg(feature = "store")]
    pub(crate) fn owners(&self) -> Vec<String> {
        self.steps.iter().map(|step| step.owner.clone()).collect()
    }

    /// Whether it is the weight of a `Linear`. Types are recognised by their names.
    pub(crate) fn is_linear_weight(&self) -> bool {
        is_linear_weight(&self.steps)
    }
}

fn is_linear_weight(steps: &[Step]) -> bool {
    matches!(steps.last(), Some(Step { name, owner }) if name == "weight" && owner == "Struct:Linear")
}

/// The names of steps, with dots between them.
pub(crate) fn dotted<'s>(steps: impl IntoIterator<Item = &'s Step>) -> String {
    let names: Vec<_> = steps.into_iter().map(|step| &*step.name).collect();
    names.join(".")
}

/// All parameters of a module, in the order of its fields.
pub(crate) fn sites<M: Module>(module: &M) -> Vec<Site> {
    let mut walk = Walk { steps: Vec::new(), sites: Vec::new() };
    module.visit(&mut walk);
    walk.sites
}

/// Replaces the parameters of a module whose paths are in `ready`.
///
/// # Errors
///
/// Fails when Burn panics; the module is then as it was.
pub(crate) fn install<M: Module>(module: &mut M, ready: HashMap<String, Box<dyn Any>>) -> Result<()> {
    // An update that running statistics have not taken in yet would later overwrite what was loaded.
    caught("running statistics were brought up to date", || {
        settle(module);
        Ok(())
    })?;
    let mut replace = Replace { steps: Vec::new(), ready };
    *module = caught("parameters were replaced", || Ok(module.clone().map(&mut replace)))?;
    Ok(())
}

/// Has running statistics, in all clones of the module, take in their last updates, which they defer until
/// they are asked. Parameters that are not initialised stay so.
pub(crate) fn settle<M: Module>(module: &M) {
    // `valid` asks all of them. It would also initialise parameters, so these are replaced by small tensors.
    module.clone().map(&mut StandIns).valid();
}

struct StandIns;

impl StandIns {
    fn stand_in<const D: usize, K: Basic>(param: Param<Tensor<D, K>>) -> Param<Tensor<D, K>>
    where
        Tensor<D, K>: Parameter,
    {
        if param.is_initialized() {
            return param;
        }
        let device = param.lazy_device();
        Param::initialized(param.id, Tensor::zeros([1; D], &device))
    }
}

impl ModuleMapper for StandIns {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D, Float>>) -> Param<Tensor<D, Float>> {
        Self::stand_in(param)
    }

    fn map_int<const D: usize>(&mut self, param: Param<Tensor<D, Int>>) -> Param<Tensor<D, Int>> {
        Self::stand_in(param)
    }

    fn map_bool<const D: usize>(&mut self, param: Param<Tensor<D, Bool>>) -> Param<Tensor<D, Bool>> {
        Self::stand_in(param)
    }
}

/// A parameter of any rank and kind.
pub(crate) trait Slot {
    /// The dtype that it is saved in.
    fn dtype(&self) -> DType;

    /// The parameter with these values, ready to be put into the module.
    fn filled(&self, values: Values, dtype: DType, how: Filled<'_>) -> Result<Box<dyn Any>>;

    /// A part of its values as they are saved, with the last two dimensions swapped first if `transposed`.
    fn read(&self, transposed: bool, part: &[Range<usize>]) -> Result<TensorData>;
}

/// How a parameter is filled.
pub(crate) struct Filled<'a> {
    pub(crate) device: &'a Device,
    /// Whether the last two dimensions of the values are swapped.
    pub(crate) transposed: bool,
    pub(crate) id: ParamId,
}

impl<const D: usize, K: Autodiff + 'static> Slot for Param<Tensor<D, K>>
where
    Tensor<D, K>: Parameter + Sync,
    Self: Module,
{
    fn dtype(&self) -> DType {
        self.transform_for_save().base().dtype()
    }

    fn filled(&self, values: Values, dtype: DType, how: Filled<'_>) -> Result<Box<dyn Any>> {
        if values.rank() != D {
            let message = format!("it has {} dimensions instead of {D}", values.rank());
            return Err(Error::new(ErrorKind::Shape, message));
        }
        let tensor = values.into_tensor::<D, K>(dtype, how.device);
        let tensor = if how.transposed { tensor.transpose() } else { tensor };
        Ok(Box::new(on_device(self.clone(), how.device).transform_for_load(tensor, how.id)))
    }

    fn read(&self, transposed: bool, part: &[Range<usize>]) -> Result<TensorData> {
        let tensor = self.transform_for_save().base();
        let tensor = if transposed { tensor.transpose() } else { tensor };
        let whole = tensor.dims().iter().zip(part).all(|(&dim, part)| *part == (0..dim));
        let ranges: Option<[Range<usize>; D]> = part.to_vec().try_into().ok().filter(|_| !whole);
        let tensor = match ranges {
            Some(ranges) => tensor.slice(ranges),
            None => tensor,
        };
        tensor.try_into_data().map_err(|error| {
            Error::new(ErrorKind::Device, format!("it could not be read from the device: {error:?}"))
        })
    }
}

/// The parameter as it would be if it had been made on a device, where it puts what is loaded into it. Its own values
/// are neither made nor moved.
fn on_device<const D: usize, K: Autodiff + 'static>(
    param: Param<Tensor<D, K>>,
    device: &Device,
) -> Param<Tensor<D, K>>
where
    Tensor<D, K>: Parameter + Sync,
    Param<Tensor<D, K>>: Module,
{
    if param.lazy_device() == *device {
        return param;
    }
    if !param.is_initialized() {
        // One that shares its state with a clone would be initialised before it is moved; this has one of its own.
        return param.init_mapper(|value| value).to_device(device);
    }
    let (id, value, mapper) = param.consume();
    let stand_in = Tensor::<D, K>::zeros([1; D], device);
    let stand_in = Parameter::set_require_grad(stand_in, Parameter::is_require_grad(&value));
    Param::from_mapped_value(id, stand_in, mapper)
}

/// The device with the autodiff of another one.
pub(crate) fn with_autodiff_of(device: &Device, other: &Device) -> Device {
    // Tensors keep theirs when they are moved.
    match device.is_autodiff() == other.is_autodiff() {
        true => device.clone(),
        false => Tensor::<1>::zeros([1], other).to_device(device).device(),
    }
}

/// Whether a parameter transposes what is loaded into it. It does not say so, but what it does to a row tells
/// what it does to any matrix.
fn transposes<const D: usize, K: Basic>(param: &Param<Tensor<D, K>>, device: &Device) -> bool
where
    Tensor<D, K>: Parameter,
{
    if D != 2 {
        return false;
    }
    let mut shape = [1; D];
    shape[D - 1] = 2;
    let probe = Tensor::<D, K>::zeros(shape, device);
    let loaded = param.clone().transform_for_load(probe, param.id);
    loaded.base().dims()[0] == 2
}

struct Walk {
    steps: Vec<Step>,
    sites: Vec<Site>,
}

impl Walk {
    fn visit<const D: usize, K: Autodiff + 'static>(&mut self, kind: Kind, param: &Param<Tensor<D, K>>)
    where
        Tensor<D, K>: Parameter + Sync,
        Param<Tensor<D, K>>: Module,
    {
        // A lazy parameter says its stored shape; an initialised one may have been transposed since.
        let shape = match param.is_initialized() {
            true => param.transform_for_save().base().dims().to_vec(),
            false => param.lazy_shape().to_vec(),
        };
        let device = param.lazy_device();
        self.sites.push(Site {
            steps: self.steps.clone(),
            id: param.id,
            kind,
            is_column: is_linear_weight(&self.steps) && transposes(param, &device),
            device,
            shape,
            slot: Box::new(param.clone()),
        });
    }

    fn enter(steps: &mut Vec<Step>, name: &str, owner: &str) {
        steps.push(Step { name: name.to_owned(), owner: owner.to_owned() });
    }
}

impl ModuleVisitor for Walk {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.visit(Kind::Float, param);
    }

    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
        self.visit(Kind::Int, param);
    }

    fn visit_bool<const D: usize>(&mut self, param: &Param<Tensor<D, Bool>>) {
        self.visit(Kind::Bool, param);
    }

    fn enter_module(&mut self, name: &str, owner: &str) {
        Self::enter(&mut self.steps, name, owner);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.steps.pop();
    }
}

struct Replace {
    steps: Vec<Step>,
    ready: HashMap<String, Box<dyn Any>>,
}

impl Replace {
    fn take<P: 'static>(&mut self, param: P) -> P {
        match self.ready.remove(&dotted(&self.steps)).map(Box::<dyn Any>::downcast) {
            Some(Ok(ready)) => *ready,
            _ => param,
        }
    }
}

impl ModuleMapper for Replace {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D, Float>>) -> Param<Tensor<D, Float>> {
        self.take(param)
    }

    fn map_int<const D: usize>(&mut self, param: Param<Tensor<D, Int>>) -> Param<Tensor<D, Int>> {
        self.take(param)
    }

    fn map_bool<const D: usize>(&mut self, param: Param<Tensor<D, Bool>>) -> Param<Tensor<D, Bool>> {
        self.take(param)
    }

    fn enter_module(&mut self, name: &str, owner: &str) {
        Walk::enter(&mut self.steps, name, owner);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.steps.pop();
    }
}
