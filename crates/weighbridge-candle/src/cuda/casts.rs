//! Casts that the device makes, with Candle's own kernels.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use candle_core::cuda_backend::cudarc::driver::CudaFunction;
use candle_core::cuda_backend::{CudaDevice, kernels};
use weighbridge::{Dtype, Result};

use crate::tensor::refused;

/// A cast that makes values wider.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Cast {
    F16ToF32,
    F16ToF64,
    Bf16ToF32,
    Bf16ToF64,
}

impl Cast {
    pub(super) fn new(from: Dtype, to: Dtype) -> Option<Self> {
        match (from, to) {
            (Dtype::F16, Dtype::F32) => Some(Self::F16ToF32),
            (Dtype::F16, Dtype::F64) => Some(Self::F16ToF64),
            (Dtype::BF16, Dtype::F32) => Some(Self::Bf16ToF32),
            (Dtype::BF16, Dtype::F64) => Some(Self::Bf16ToF64),
            _ => None,
        }
    }

    /// The bytes of an element before.
    pub(super) fn size(self) -> usize {
        2
    }

    /// How many times as large it is after.
    pub(super) fn times(self) -> usize {
        match self {
            Self::F16ToF32 | Self::Bf16ToF32 => 2,
            Self::F16ToF64 | Self::Bf16ToF64 => 4,
        }
    }

    /// What Candle calls it.
    fn name(self) -> &'static str {
        match self {
            Self::F16ToF32 => "cast_f16_f32",
            Self::F16ToF64 => "cast_f16_f64",
            Self::Bf16ToF32 => "cast_bf16_f32",
            Self::Bf16ToF64 => "cast_bf16_f64",
        }
    }
}

/// The kernels of one GPU that were loaded so far: a device of Candle's would load them for each thread that
/// is first.
#[derive(Default)]
pub(super) struct Casts(Mutex<HashMap<Cast, CudaFunction>>);

impl Casts {
    pub(super) fn kernel(&self, cast: Cast, device: &CudaDevice) -> Result<CudaFunction> {
        let mut loaded = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kernel) = loaded.get(&cast) {
            return Ok(kernel.clone());
        }
        let kernel = device.get_or_load_func(cast.name(), &kernels::CAST).map_err(|error| refused(&error))?;
        let kernel = kernel.into_cuda_function();
        loaded.insert(cast, kernel.clone());
        Ok(kernel)
    }
}
