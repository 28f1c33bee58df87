//! An exponential moving average of a module's weights.

use std::any::Any;
use std::collections::HashMap;
use std::fmt;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Bool, DType, Float, Int, Tensor};
use weighbridge::{Error, ErrorKind, Result};

use crate::loader::Loader;
use crate::panics::caught;
use crate::report::LoadReport;
use crate::walk::{self, Step};

/// An exponential moving average of a module's weights, a second set of them which is often the better model.
///
/// Floats are averaged, running statistics too: `average = decay · average + (1 - decay) · weight`, computed
/// and kept in `F32` whatever the dtype of the module. Other parameters, and quantised ones, are what they
/// last were.
///
/// ```
/// use weighbridge_burn::Ema;
/// # use weighbridge_burn::burn::nn::LinearConfig;
/// # use weighbridge_burn::burn::tensor::Device;
///
/// # fn main() -> weighbridge_burn::weighbridge::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let device = Device::default().autodiff();
/// # let model = LinearConfig::new(3, 2).init(&device);
/// let mut ema = Ema::new(&model, 0.999)?;
/// ema.update(&model)?; // after each step of the optimizer
/// let evaluated = ema.applied_to(&model)?; // the module with the average, for `evaluated.forward(input)`
/// weighbridge_burn::save(ema.model()).pytorch().file(directory.path().join("ema.safetensors"))?;
/// # let _ = evaluated;
/// # Ok(())
/// # }
/// ```
///
/// [`CheckpointSaver::ema`](crate::CheckpointSaver::ema) saves it with the state of the training.
pub struct Ema<M> {
    average: M,
    decay: f64,
}

impl<M: Module> Ema<M> {
    /// An average that begins with the weights as they are. `decay` is from 0 to 1: with 0.999 the last
    /// thousand updates count most.
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::Value`] when `decay` is not from 0 to 1, and when a device fails.
    pub fn new(model: &M, decay: f64) -> Result<Self> {
        if !(0.0..=1.0).contains(&decay) {
            return Err(Error::new(ErrorKind::Value, format!("the decay {decay} is not from 0 to 1")));
        }
        // `valid` gives running statistics of its own.
        let average = caught("the average was made", || Ok(model.valid().map(&mut Widen)))?;
        Ok(Self { average, decay })
    }

    /// Takes in the weights of `model`.
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::MissingTensor`] or [`ErrorKind::Shape`] when it is another model, and when a
    /// device fails; the average is as it was then.
    pub fn update(&mut self, model: &M) -> Result<()> {
        let decay = self.decay;
        let both = Both { average: &self.average, weights: &model.valid() };
        let ready = both.combined(Combine::Average(decay))?;
        walk::install(&mut self.average, ready)
    }

    /// How much of the average an update keeps.
    pub fn decay(&self) -> f64 {
        self.decay
    }

    /// The average as a module, without gradients, its floats in `F32`.
    pub fn model(&self) -> &M {
        &self.average
    }

    /// `model` with the average in the place of its weights, in their dtypes and without gradients; `model`
    /// stays as it is.
    ///
    /// # Errors
    ///
    /// As [`update`](Self::update).
    pub fn applied_to(&self, model: &M) -> Result<M> {
        let mut applied = caught("the module was copied", || Ok(model.valid()))?;
        let both = Both { average: &self.average, weights: &applied };
        let ready = both.combined(Combine::Apply)?;
        walk::install(&mut applied, ready)?;
        Ok(applied)
    }

    /// Loads the average, as [`Loader::into`] loads a module, with floats in `F32`.
    ///
    /// # Errors
    ///
    /// As [`Loader::into`]; the average is as it was then.
    pub fn load(&mut self, loader: Loader) -> Result<LoadReport> {
        loader.dtype(DType::F32).into(&mut self.average)
    }
}

impl<M> fmt::Debug for Ema<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ema").field("decay", &self.decay).finish_non_exhaustive()
    }
}

fn is_averaged(dtype: DType) -> bool {
    dtype.is_float()
}

struct Widen;

impl ModuleMapper for Widen {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D, Float>>) -> Param<Tensor<D, Float>> {
        match is_averaged(param.val().dtype()) {
            true => param.map(|tensor| tensor.cast(DType::F32)),
            false => param,
        }
    }
}

/// What is made of an average and of weights.
#[derive(Clone, Copy)]
enum Combine {
    /// The next average.
    Average(f64),
    /// The average in the dtype of the weights.
    Apply,
}

/// Two modules of one structure.
struct Both<'m, M> {
    average: &'m M,
    weights: &'m M,
}

impl<M: Module> Both<'_, M> {
    /// Parameters by their paths, to be put into the average, or into the module of the weights.
    fn combined(&self, combine: Combine) -> Result<HashMap<String, Box<dyn Any>>> {
        caught("weights were averaged", || {
            let mut collect = Collect::default();
            self.average.visit(&mut collect);
            let averages = collect.params;
            let mut combined =
                Combined { steps: Vec::new(), averages, combine, ready: HashMap::new(), problem: None };
            self.weights.visit(&mut combined);
            if let Some(problem) = combined.problem {
                return Err(problem);
            }
            match combined.averages.into_keys().min() {
                Some(path) => {
                    let message =
                        "the average has it, and the model does not: it is the average of another model";
                    Err(Error::new(ErrorKind::MissingTensor, message).in_tensor(&path))
                }
                None => Ok(combined.ready),
            }
        })
    }
}

/// The parameters of a module by their paths.
#[derive(Default)]
struct Collect {
    steps: Vec<Step>,
    params: HashMap<String, Box<dyn Any>>,
}

impl Collect {
    fn put<P: Clone + 'static>(&mut self, param: &P) {
        self.params.insert(walk::dotted(&self.steps), Box::new(param.clone()));
    }
}

impl ModuleVisitor for Collect {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.put(param);
    }

    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
        self.put(param);
    }

    fn visit_bool<const D: usize>(&mut self, param: &Param<Tensor<D, Bool>>) {
        self.put(param);
    }

    fn enter_module(&mut self, name: &str, owner: &str) {
        self.steps.push(Step { name: name.to_owned(), owner: owner.to_owned() });
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.steps.pop();
    }
}

struct Combined {
    steps: Vec<Step>,
    /// Those that were not yet combined.
    averages: HashMap<String, Box<dyn Any>>,
    combine: Combine,
    ready: HashMap<String, Box<dyn Any>>,
    problem: Option<Error>,
}

impl Combined {
    /// The average of a parameter.
    fn take<P: 'static>(&mut self) -> Option<P> {
        let path = walk::dotted(&self.steps);
        let average = self.averages.remove(&path).and_then(|average| average.downcast::<P>().ok());
        if average.is_none() {
            let message = "the model has it, and the average does not: it is the average of another model";
            self.note(Error::new(ErrorKind::MissingTensor, message));
        }
        average.map(|average| *average)
    }

    fn put(&mut self, param: impl Any) {
        self.ready.insert(walk::dotted(&self.steps), Box::new(param));
    }

    fn note(&mut self, error: Error) {
        let path = walk::dotted(&self.steps);
        self.problem.get_or_insert_with(|| error.in_tensor(&path));
    }

    /// What is not averaged: the last one counts.
    fn visit_other<P: Clone + 'static>(&mut self, param: &P) {
        if let Some(average) = self.take::<P>() {
            match self.combine {
                Combine::Average(_) => self.put(param.clone()),
                Combine::Apply => self.put(average),
            }
        }
    }
}

impl ModuleVisitor for Combined {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let weight = param.val();
        if !is_averaged(weight.dtype()) {
            return self.visit_other(param);
        }
        let Some(average) = self.take::<Param<Tensor<D>>>() else { return };
        let (own, other) = (average.val().shape(), weight.shape());
        if own != other {
            let (own, other) = (own.to_vec(), other.to_vec());
            let message = format!("the model has {other:?} there, the average {own:?}");
            return self.note(Error::new(ErrorKind::Shape, message));
        }
        match self.combine {
            Combine::Average(decay) => {
                let weight = weight.cast(DType::F32).mul_scalar(1.0 - decay);
                self.put(average.map(|average| average.mul_scalar(decay).add(weight)));
            }
            Combine::Apply => {
                let (average, dtype) = (average.val(), weight.dtype());
                self.put(param.clone().map(|_| average.cast(dtype)));
            }
        }
    }

    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
        self.visit_other(param);
    }

    fn visit_bool<const D: usize>(&mut self, param: &Param<Tensor<D, Bool>>) {
        self.visit_other(param);
    }

    fn enter_module(&mut self, name: &str, owner: &str) {
        self.steps.push(Step { name: name.to_owned(), owner: owner.to_owned() });
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.steps.pop();
    }
}
