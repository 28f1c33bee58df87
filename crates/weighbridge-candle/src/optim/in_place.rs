//! Steps of optimizers, in place: one pass over memory each on the CPU, Candle's own operations elsewhere.
//!
//! What PyTorch computes with one operation is rounded once to the dtype of the tensor; in between is `F32`,
//! or `F64` for `F64`. Elsewhere the same roundings are made; a device may still contract or divide in its own
//! way, in the last bit of what is computed with.

use std::ops::{Add, Div, Mul, Sub};

use candle_core::cpu_backend::CpuStorage;
use candle_core::{DType, InplaceOp2, InplaceOp3, Layout, Result, Tensor, WithDType, bail};
use half::{bf16, f16};

use crate::swap::{exchange, whole};

/// What is computed with.
trait Wide:
    Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self> + PartialOrd
{
    fn of(value: f64) -> Self;
    fn sqrt(self) -> Self;
    fn is_nan(self) -> bool;
}

macro_rules! wide {
    ($($float:ident, $of:expr;)*) => {$(
        impl Wide for $float {
            fn of(value: f64) -> Self {
                $of(value)
            }

            fn sqrt(self) -> Self {
                self.sqrt()
            }

            fn is_nan(self) -> bool {
                self.is_nan()
            }
        }
    )*};
}
wide! {
    f32, |value| value as f32;
    f64, std::convert::identity;
}

/// An element of a tensor that is trained.
trait Lane: WithDType {
    type Wide: Wide;

    fn wide(self) -> Self::Wide;
    /// Rounds.
    fn narrow(wide: Self::Wide) -> Self;
    /// The values of a storage, if it is of this dtype.
    fn values(storage: &CpuStorage) -> Result<&[Self]> {
        storage.as_slice::<Self>()
    }

    /// Rounds to the dtype and goes on.
    fn rounded(wide: Self::Wide) -> Self::Wide {
        Self::narrow(wide).wide()
    }
}

macro_rules! lane {
    ($($lane:ty, $wide:ty, $widen:expr, $narrow:expr;)*) => {$(
        impl Lane for $lane {
            type Wide = $wide;

            fn wide(self) -> $wide {
                $widen(self)
            }

            fn narrow(wide: $wide) -> Self {
                $narrow(wide)
            }
        }
    )*};
}
lane! {
    f32, f32, std::convert::identity, std::convert::identity;
    f64, f64, std::convert::identity, std::convert::identity;
    bf16, f32, bf16::to_f32, bf16::from_f32;
    f16, f32, f16::to_f32, f16::from_f32;
}

/// A change of each element of a tensor by those of `N` others.
trait Change<const N: usize> {
    const NAME: &'static str;

    fn element<T: Lane>(&self) -> impl Fn(T, [T; N]) -> T;

    /// The same by Candle's operations on tensors of the wide dtype: the tensor as it is to be, before it is
    /// rounded for the last time.
    fn by_operations(&self, target: &Tensor, sources: [&Tensor; N], rounding: Rounding) -> Result<Tensor>;
}

/// Rounds tensors of the wide dtype to that of the target.
#[derive(Clone, Copy)]
struct Rounding(DType);

impl Rounding {
    fn round(self, wide: &Tensor) -> Result<Tensor> {
        wide.to_dtype(self.0)?.to_dtype(wide.dtype())
    }
}

/// What the target is to be.
fn computed<C: Change<N>, const N: usize>(
    change: &C,
    target: &Tensor,
    sources: [&Tensor; N],
) -> Result<Tensor> {
    let dtype = target.dtype();
    let wide = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let widened = sources.iter().map(|source| source.to_dtype(wide)).collect::<Result<Vec<_>>>()?;
    let mut sources = sources;
    for (source, widened) in sources.iter_mut().zip(&widened) {
        *source = widened;
    }
    change.by_operations(&target.to_dtype(wide)?, sources, Rounding(dtype))?.to_dtype(dtype)
}

struct OnCpu<'c, C>(&'c C);

/// The range of a storage that a tensor has, all of it in one piece.
fn piece<'s, T>(values: &'s [T], layout: &Layout) -> Result<&'s [T]> {
    match layout.contiguous_offsets().and_then(|(start, end)| values.get(start..end)) {
        Some(values) => Ok(values),
        None => bail!("a tensor of the optimizer does not lie in one piece"),
    }
}

fn piece_mut<'s, T>(values: &'s mut [T], layout: &Layout) -> Result<&'s mut [T]> {
    match layout.contiguous_offsets().and_then(|(start, end)| values.get_mut(start..end)) {
        Some(values) => Ok(values),
        None => bail!("a variable does not lie in one piece"),
    }
}

fn change1<T: Lane, C: Change<1>>(change: &C, target: &mut [T], source: &[T]) {
    let element = change.element::<T>();
    for (target, &source) in target.iter_mut().zip(source) {
        *target = element(*target, [source]);
    }
}

fn change2<T: Lane, C: Change<2>>(change: &C, target: &mut [T], a: &[T], b: &[T]) {
    let element = change.element::<T>();
    for ((target, &a), &b) in target.iter_mut().zip(a).zip(b) {
        *target = element(*target, [a, b]);
    }
}

/// Runs a body for the dtype of a storage, with its values.
macro_rules! for_dtype {
    ($storage:expr, $values:ident => $body:expr) => {
        match $storage {
            CpuStorage::F32($values) => $body,
            CpuStorage::F64($values) => $body,
            CpuStorage::BF16($values) => $body,
            CpuStorage::F16($values) => $body,
            _ => bail!("variables of this dtype are not trained"),
        }
    };
}

impl<C: Change<1>> InplaceOp2 for OnCpu<'_, C> {
    fn name(&self) -> &'static str {
        C::NAME
    }

    fn cpu_fwd(
        &self,
        target: &mut CpuStorage,
        layout: &Layout,
        a: &CpuStorage,
        a_layout: &Layout,
    ) -> Result<()> {
        for_dtype!(target, values => {
            let source = piece(Lane::values(a)?, a_layout)?;
            change1(self.0, piece_mut(values, layout)?, source);
        });
        Ok(())
    }
}

impl<C: Change<2>> InplaceOp3 for OnCpu<'_, C> {
    fn name(&self) -> &'static str {
        C::NAME
    }

    fn cpu_fwd(
        &self,
        target: &mut CpuStorage,
        layout: &Layout,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> Result<()> {
        for_dtype!(target, values => {
            let (a, b) = (piece(Lane::values(a)?, a_layout)?, piece(Lane::values(b)?, b_layout)?);
            change2(self.0, piece_mut(values, layout)?, a, b);
        });
        Ok(())
    }
}

fn apply1<C: Change<1>>(change: &C, target: &Tensor, source: &Tensor) -> Result<()> {
    match target.device().is_cpu() {
        true => target.inplace_op2(source, &OnCpu(change)),
        false => exchange(target, &whole(&computed(change, target, [source])?)?),
    }
}

fn apply2<C: Change<2>>(change: &C, target: &Tensor, a: &Tensor, b: &Tensor) -> Result<()> {
    match target.device().is_cpu() {
        true => target.inplace_op3(a, b, &OnCpu(change)),
        false => exchange(target, &whole(&computed(change, target, [a, b])?)?),
    }
}

/// `target + weight * (source - target)`.
struct Lerp(f64);

impl Change<1> for Lerp {
    const NAME: &'static str = "lerp";

    fn element<T: Lane>(&self) -> impl Fn(T, [T; 1]) -> T {
        // The two forms are those of PyTorch: each is exact at its end.
        let (small, weight, rest) =
            (self.0 < 0.5, T::Wide::of(self.0), T::Wide::of(1.0) - T::Wide::of(self.0));
        move |target, [source]| {
            let (target, source) = (target.wide(), source.wide());
            let apart = source - target;
            T::narrow(if small { target + weight * apart } else { source - apart * rest })
        }
    }

    fn by_operations(&self, target: &Tensor, [source]: [&Tensor; 1], _: Rounding) -> Result<Tensor> {
        let apart = (source - target)?;
        if self.0 < 0.5 { target + (apart * self.0)? } else { source - (apart * (1.0 - self.0))? }
    }
}

/// `keep * target + add * source²`, the first rounded.
struct Squares {
    keep: f64,
    add: f64,
}

impl Change<1> for Squares {
    const NAME: &'static str = "squares";

    fn element<T: Lane>(&self) -> impl Fn(T, [T; 1]) -> T {
        let (keep, add) = (T::Wide::of(self.keep), T::Wide::of(self.add));
        move |target, [source]| {
            let source = source.wide();
            T::narrow(T::rounded(target.wide() * keep) + add * source * source)
        }
    }

    fn by_operations(&self, target: &Tensor, [source]: [&Tensor; 1], rounding: Rounding) -> Result<Tensor> {
        rounding.round(&(target * self.keep)?)? + ((source * self.add)? * source)?
    }
}

/// `keep * target + add * source`, the first rounded.
struct Sum {
    keep: f64,
    add: f64,
}

impl Change<1> for Sum {
    const NAME: &'static str = "sum";

    fn element<T: Lane>(&self) -> impl Fn(T, [T; 1]) -> T {
        let (keep, add) = (T::Wide::of(self.keep), T::Wide::of(self.add));
        move |target, [source]| T::narrow(T::rounded(target.wide() * keep) + add * source.wide())
    }

    fn by_operations(&self, target: &Tensor, [source]: [&Tensor; 1], rounding: Rounding) -> Result<Tensor> {
        rounding.round(&(target * self.keep)?)? + (source * self.add)?
    }
}

/// The larger of both; what is not a number stays that.
struct Maximum;

impl Change<1> for Maximum {
    const NAME: &'static str = "maximum";

    fn element<T: Lane>(&self) -> impl Fn(T, [T; 1]) -> T {
        |target, [source]| {
            let (a, b) = (target.wide(), source.wide());
            if a.is_nan() || a > b { target } else { source }
        }
    }

    fn by_operations(&self, target: &Tensor, [source]: [&Tensor; 1], _: Rounding) -> Result<Tensor> {
        target.maximum(source)
    }
}

/// What AdamW does to a weight.
struct Adam {
    /// What is left of the weight.
    keep: f64,
    step: f64,
    /// The root of the second moment's bias.
    bias: f64,
    eps: f64,
}

impl Change<2> for Adam {
    const NAME: &'static str = "adamw";

    fn element<T: Lane>(&self) -> impl Fn(T, [T; 2]) -> T {
        let of = T::Wide::of;
        let (keep, step, bias, eps) = (of(self.keep), of(-self.step), of(self.bias), of(self.eps));
        move |weight, [first, second]| {
            let root = T::rounded(second.wide().sqrt());
            let divisor = T::rounded(T::rounded(root / bias) + eps);
            T::narrow(T::rounded(weight.wide() * keep) + step * first.wide() / divisor)
        }
    }

    fn by_operations(
        &self,
        weight: &Tensor,
        [first, second]: [&Tensor; 2],
        rounding: Rounding,
    ) -> Result<Tensor> {
        let root = rounding.round(&second.sqrt()?)?;
        let divisor = rounding.round(&(rounding.round(&(root / self.bias)?)? + self.eps)?)?;
        rounding.round(&(weight * self.keep)?)? + ((first * -self.step)? / divisor)?
    }
}

/// `target = weight * source + (1 - weight) * target`, in the form that is PyTorch's `lerp_`.
pub(super) fn lerp(target: &Tensor, source: &Tensor, weight: f64) -> Result<()> {
    apply1(&Lerp(weight), target, source)
}

/// `target = keep * target + add * source²`.
pub(super) fn add_squares(target: &Tensor, keep: f64, source: &Tensor, add: f64) -> Result<()> {
    apply1(&Squares { keep, add }, target, source)
}

/// `target = keep * target + add * source`.
pub(super) fn sum(target: &Tensor, keep: f64, source: &Tensor, add: f64) -> Result<()> {
    apply1(&Sum { keep, add }, target, source)
}

/// `target = max(target, source)`.
pub(super) fn maximum(target: &Tensor, source: &Tensor) -> Result<()> {
    apply1(&Maximum, target, source)
}

/// `weight = keep * weight - step * first / (sqrt(second) / bias + eps)`.
pub(super) fn adam(
    weight: &Tensor,
    keep: f64,
    step: f64,
    moments: [&Tensor; 2],
    bias: f64,
    eps: f64,
) -> Result<()> {
    let [first, second] = moments;
    apply2(&Adam { keep, step, bias, eps }, weight, first, second)
}

/// `average = decay * average + (1 - decay) * weight`, both in `F32`.
pub(crate) fn average(average: &Tensor, weight: &Tensor, decay: f64) -> Result<()> {
    sum(average, decay, weight, 1.0 - decay)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn tensor(dtype: DType, first: f32) -> Tensor {
        let values: Vec<_> = (0..97).map(|i| (i as f32 * 0.37 + first).sin().abs() + 0.01).collect();
        Tensor::new(values, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        tensor.to_dtype(DType::F32).unwrap().to_vec1().unwrap()
    }

    fn check1(dtype: DType, change: &impl Change<1>) {
        let (target, source) = (tensor(dtype, 0.1), tensor(dtype, 0.7));
        let operations = computed(change, &target, [&source]).unwrap();
        apply1(change, &target, &source).unwrap();
        alike(dtype, &operations, &target);
    }

    /// Equal, but where sums in `F32` that end in another bit are rounded to the other neighbour.
    fn alike(dtype: DType, one: &Tensor, other: &Tensor) {
        let step = if dtype == DType::BF16 { 0.0079 } else { 0.00098 };
        let (one, other) = (values(one), values(other));
        let differ = one.iter().zip(&other).filter(|(a, b)| a != b).count();
        assert!(differ <= 3, "{differ} differ: {one:?} {other:?}");
        assert!(one.iter().zip(&other).all(|(a, b)| (a - b).abs() <= step * b.abs()));
    }

    #[test]
    fn operations_round_where_the_pass_over_memory_does() {
        for dtype in [DType::BF16, DType::F16] {
            check1(dtype, &Lerp(0.1));
            check1(dtype, &Lerp(0.9));
            check1(dtype, &Squares { keep: 0.999, add: 0.001 });
            check1(dtype, &Sum { keep: 0.9, add: 0.3 });
            check1(dtype, &Maximum);
            let (weight, first, second) = (tensor(dtype, 0.1), tensor(dtype, 0.7), tensor(dtype, 1.3));
            let adam = Adam { keep: 0.999, step: 0.01, bias: 0.3, eps: 1e-8 };
            let operations = computed(&adam, &weight, [&first, &second]).unwrap();
            apply2(&adam, &weight, &first, &second).unwrap();
            alike(dtype, &operations, &weight);
        }
    }
}
