//! Weights for any Candle: of it, this file uses `SimpleBackend`, `Tensor::from_vec` and `DType` alone.

use candle_core::{DType, Device, Error, Result, Shape, Tensor};
use candle_nn::Init;
use candle_nn::var_builder::{SimpleBackend, VarBuilder};
use weighbridge::plan::Cast;
use weighbridge::{Checkpoint, Dtype, HostBuffer, Plan, Session};

/// A builder over all tensors of `ckpt`, which start to be read at once, in the background.
///
/// # Errors
///
/// Fails for a dtype that `stored` does not list, and for quantised checkpoints.
pub fn var_builder(ckpt: &Checkpoint, dtype: DType, device: &Device) -> Result<VarBuilder<'static>> {
    if let Some(module) = ckpt.quantized().next() {
        return Err(Error::wrap(module.refusal(&module.weight(), "load a checkpoint that is not quantised")));
    }
    let to = stored(dtype)?;
    let plan = Plan::of(ckpt)
        // Tensors of this dtype are read ahead. Those asked for in another one are read on request.
        .dtype(move |tensor| Cast::exists(tensor.dtype(), to).then_some(to))
        .build()
        .map_err(Error::wrap)?;
    Ok(VarBuilder::from_backend(Box::new(Weights::new(plan)?), dtype, device.clone()))
}

/// The tensors of a plan: build the plan yourself to rename, filter or join tensors.
pub struct Weights(Session);

impl Weights {
    /// Starts to read.
    ///
    /// # Errors
    ///
    /// Fails when two entries of the plan have the same name.
    pub fn new(plan: Plan) -> Result<Self> {
        Ok(Self(plan.session().start().map_err(Error::wrap)?))
    }

    fn take(&self, name: &str, expected: Option<Shape>, dtype: DType, device: &Device) -> Result<Tensor> {
        let Some(entry) = self.0.entry(name) else {
            return Err(Error::CannotFindTensor { path: name.to_owned() }.bt());
        };
        let got = Shape::from(entry.shape());
        match expected {
            Some(expected) if expected != got => {
                let msg = format!("shape mismatch for {name}");
                return Err(Error::UnexpectedShape { msg, expected, got }.bt());
            }
            _ => {}
        }
        let (entry, values) = self.0.take(name, Some(stored(dtype)?)).map_err(Error::wrap)?;
        to_tensor(values, entry.shape(), device).map_err(|error| Error::msg(format!("{name}: {error}")))
    }
}

impl SimpleBackend for Weights {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        self.take(name, Some(shape), dtype, device)
    }

    // Before Candle 0.9.2 the trait does not have this method.
    #[cfg(feature = "get_unchecked")]
    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        self.take(name, None, dtype, device)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.0.entry(name).is_some()
    }
}

/// What weighbridge calls a dtype of Candle: the seven that every Candle has. Add those of yours.
fn stored(dtype: DType) -> Result<Dtype> {
    Ok(match dtype {
        DType::U8 => Dtype::U8,
        DType::U32 => Dtype::U32,
        DType::I64 => Dtype::I64,
        DType::BF16 => Dtype::BF16,
        DType::F16 => Dtype::F16,
        DType::F32 => Dtype::F32,
        DType::F64 => Dtype::F64,
        #[allow(unreachable_patterns)] // Candle 0.9.1 has no others.
        other => return Err(Error::msg(format!("cannot load tensors as {other:?}"))),
    })
}

/// On the CPU the vector becomes the tensor's memory; to other devices it is copied. Add the vectors of your
/// dtypes.
fn to_tensor(values: HostBuffer, shape: &[usize], device: &Device) -> Result<Tensor> {
    // Candle multiplies dimensions to strides, which may overflow where another dimension is 0.
    if shape.iter().filter(|&&dim| dim > 0).try_fold(1_usize, |all, &dim| all.checked_mul(dim)).is_none() {
        return Err(Error::msg("the strides of its shape overflow"));
    }
    match values {
        HostBuffer::U8(values) => Tensor::from_vec(values, shape, device),
        HostBuffer::U32(values) => Tensor::from_vec(values, shape, device),
        HostBuffer::I64(values) => Tensor::from_vec(values, shape, device),
        HostBuffer::BF16(values) => Tensor::from_vec(values, shape, device),
        HostBuffer::F16(values) => Tensor::from_vec(values, shape, device),
        HostBuffer::F32(values) => Tensor::from_vec(values, shape, device),
        HostBuffer::F64(values) => Tensor::from_vec(values, shape, device),
        _ => Err(Error::msg("`to_tensor` has no arm for the dtype it was loaded as")),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Storage;

    use super::*;

    #[test]
    fn on_the_cpu_nothing_is_copied() {
        let values = vec![1_f32, 2.0, 3.0];
        let before = values.as_ptr();
        let tensor = to_tensor(HostBuffer::F32(values), &[3], &Device::Cpu).unwrap();
        let (storage, _) = tensor.storage_and_layout();
        let Storage::Cpu(storage) = &*storage else { panic!("not on the CPU") };
        assert_eq!(storage.as_slice::<f32>().unwrap().as_ptr(), before);
    }

    #[test]
    fn strides_that_overflow_are_an_error() {
        let error = to_tensor(HostBuffer::F32(Vec::new()), &[0, usize::MAX, 2], &Device::Cpu).unwrap_err();
        assert!(error.to_string().contains("overflow"), "{error}");
    }
}
