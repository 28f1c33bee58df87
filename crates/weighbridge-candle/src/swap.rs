//! New values for variables: memory changes hands, nothing is copied, so nothing can fail half-way.

use std::cell::RefCell;
use std::mem;

use candle_core::{CpuStorage, CudaStorage, InplaceOp1, Layout, MetalStorage, Result, Storage, Tensor, bail};

/// Exchanges the memory of two tensors of one shape, dtype and device. Whoever has one of them, or a view of
/// it, sees the other's values from now on.
///
/// # Errors
///
/// Fails when they differ, and when one of them is a part of larger memory or shares it with the other; both
/// are as they were then.
pub(crate) fn exchange(one: &Tensor, other: &Tensor) -> Result<()> {
    check(one, other)?;
    one.inplace_op1(&Outer(other))
}

/// Exchanges all of them or none.
///
/// # Errors
///
/// As [`exchange`], with the index of the pair.
pub(crate) fn exchange_all<'t>(
    pairs: impl Iterator<Item = (&'t Tensor, &'t Tensor)> + Clone,
) -> std::result::Result<(), (usize, candle_core::Error)> {
    for (number, (one, other)) in pairs.clone().enumerate() {
        check(one, other).map_err(|error| (number, error))?;
    }
    for (number, (one, other)) in pairs.clone().enumerate() {
        if let Err(error) = exchange(one, other) {
            // What changed hands goes back, the last first: a tensor may be in several pairs.
            let done: Vec<_> = pairs.clone().take(number).collect();
            for (one, other) in done.into_iter().rev() {
                let _ = exchange(one, other);
            }
            return Err((number, error));
        }
    }
    Ok(())
}

/// The tensor in memory of its own, which can be exchanged: itself, or a copy of what is a view.
pub(crate) fn whole(tensor: &Tensor) -> Result<Tensor> {
    if is_whole(tensor) { Ok(tensor.clone()) } else { tensor.force_contiguous() }
}

fn is_whole(tensor: &Tensor) -> bool {
    let is_all = elements(&tensor.storage_and_layout().0).is_none_or(|all| all == tensor.elem_count());
    is_all && tensor.layout().start_offset() == 0 && tensor.is_contiguous()
}

fn check(one: &Tensor, other: &Tensor) -> Result<()> {
    if one.shape() != other.shape() {
        bail!("it has shape {:?}, the other {:?}", one.shape(), other.shape());
    }
    if one.dtype() != other.dtype() || !one.device().same_device(other.device()) {
        bail!("it has another dtype or device than the other");
    }
    if !is_whole(one) || !is_whole(other) {
        bail!("it is a view of other memory");
    }
    let memory = |tensor: &Tensor| std::ptr::from_ref(&*tensor.storage_and_layout().0).addr();
    if memory(one) == memory(other) {
        bail!("it shares its memory with the other");
    }
    Ok(())
}

/// How many elements the memory holds, where Candle says it: other views of more than a tensor has would lie
/// outside of what they get.
fn elements(storage: &Storage) -> Option<usize> {
    match storage {
        Storage::Cpu(storage) => Some(match storage {
            CpuStorage::U8(values) => values.len(),
            CpuStorage::U32(values) => values.len(),
            CpuStorage::I16(values) => values.len(),
            CpuStorage::I32(values) => values.len(),
            CpuStorage::I64(values) => values.len(),
            CpuStorage::BF16(values) => values.len(),
            CpuStorage::F16(values) => values.len(),
            CpuStorage::F32(values) => values.len(),
            CpuStorage::F64(values) => values.len(),
            _ => return None,
        }),
        _ => None,
    }
}

/// Gives the storage of one tensor to an operation on the other.
struct Outer<'t>(&'t Tensor);

impl InplaceOp1 for Outer<'_> {
    fn name(&self) -> &'static str {
        "exchange"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> Result<()> {
        self.0.inplace_op1(&Inner::Cpu(RefCell::new(storage)))
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, _: &Layout) -> Result<()> {
        self.0.inplace_op1(&Inner::Cuda(RefCell::new(storage)))
    }

    fn metal_fwd(&self, storage: &mut MetalStorage, _: &Layout) -> Result<()> {
        self.0.inplace_op1(&Inner::Metal(RefCell::new(storage)))
    }
}

enum Inner<'s> {
    Cpu(RefCell<&'s mut CpuStorage>),
    Cuda(RefCell<&'s mut CudaStorage>),
    Metal(RefCell<&'s mut MetalStorage>),
}

impl InplaceOp1 for Inner<'_> {
    fn name(&self) -> &'static str {
        "exchange"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> Result<()> {
        match self {
            Self::Cpu(other) => mem::swap(storage, *other.borrow_mut()),
            _ => bail!("the other is on another device"),
        }
        Ok(())
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, _: &Layout) -> Result<()> {
        match self {
            Self::Cuda(other) => mem::swap(storage, *other.borrow_mut()),
            _ => bail!("the other is on another device"),
        }
        Ok(())
    }

    fn metal_fwd(&self, storage: &mut MetalStorage, _: &Layout) -> Result<()> {
        match self {
            Self::Metal(other) => mem::swap(storage, *other.borrow_mut()),
            _ => bail!("the other is on another device"),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};

    use super::*;

    fn values(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn views_see_what_their_tensor_got() {
        let one = Var::new(&[[1_f32, 2.0], [3.0, 4.0]], &Device::Cpu).unwrap();
        let other = Tensor::new(&[[5_f32, 6.0], [7.0, 8.0]], &Device::Cpu).unwrap();
        let view = one.t().unwrap();
        exchange(&one, &other).unwrap();
        assert_eq!(values(&view), [5.0, 7.0, 6.0, 8.0]);
        assert_eq!(values(&other), [1.0, 2.0, 3.0, 4.0]);
    }

    #[test]
    fn all_or_none_change_hands() {
        let tensor = |value: f32| Tensor::full(value, 3, &Device::Cpu).unwrap();
        let (a, b, c) = (tensor(1.0), tensor(2.0), tensor(3.0));
        let wrong = [
            Tensor::zeros(2, DType::F32, &Device::Cpu).unwrap(),
            Tensor::zeros(3, DType::F64, &Device::Cpu).unwrap(),
            Tensor::zeros(4, DType::F32, &Device::Cpu).unwrap().narrow(0, 1, 3).unwrap(),
            Tensor::zeros(4, DType::F32, &Device::Cpu).unwrap().narrow(0, 0, 3).unwrap(),
            c.clone(),
        ];
        for wrong in &wrong {
            let (number, _) = exchange_all([(&a, &b), (&c, wrong)].into_iter()).unwrap_err();
            assert_eq!(
                (number, values(&a), values(&b), values(&c)),
                (1, vec![1.0; 3], vec![2.0; 3], vec![3.0; 3])
            );
        }
        exchange_all([(&a, &b)].into_iter()).unwrap();
        assert_eq!(values(&a), [2.0; 3]);
    }

    #[test]
    fn a_view_gets_memory_of_its_own() {
        let all = Tensor::new(&[1_f32, 2.0, 3.0, 4.0], &Device::Cpu).unwrap();
        for (start, expected) in [(0, [1.0, 2.0]), (2, [3.0, 4.0])] {
            let var = Tensor::zeros(2, DType::F32, &Device::Cpu).unwrap();
            exchange(&var, &whole(&all.narrow(0, start, 2).unwrap()).unwrap()).unwrap();
            assert_eq!((values(&var), values(&all)), (expected.to_vec(), vec![1.0, 2.0, 3.0, 4.0]));
        }
    }
}
