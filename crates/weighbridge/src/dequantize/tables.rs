//! What codes stand for.

use crate::newer_std::as_chunks;
use std::mem::MaybeUninit;
use std::sync::{Arc, LazyLock};

use crate::cast::{Kernel, Overflow};
use crate::dtype::Dtype;

/// A number for every byte.
pub(crate) type Table = Arc<[f32; 256]>;

/// The magnitudes of `E2M1`; the fourth bit is the sign.
const E2M1: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

/// Values of 4 bits with a sign bit, as OCP's microscaling formats have them, each times `factor`.
pub(crate) fn e2m1(factor: f32) -> Table {
    of(|code| {
        let magnitude = E2M1[usize::from(code & 7)] * factor;
        if code & 8 == 0 { magnitude } else { -magnitude }
    })
}

/// The same, but no zero is negative.
pub(crate) fn e2m1_of_modelopt() -> Table {
    let table = e2m1(1.0);
    of(|code| table[usize::from(code)] + 0.0)
}

/// The values of a dtype of one byte, each times `factor`.
pub(crate) fn values(dtype: Dtype, factor: f32) -> Option<Table> {
    let kernel = Kernel::of(dtype, Dtype::F32, Overflow::Infinity).filter(|_| dtype.bits() == 8)?;
    let codes: [u8; 256] = std::array::from_fn(|code| code as u8);
    let mut room = [MaybeUninit::uninit(); 1024];
    let made = kernel.run(&codes, &mut room).ok()?;
    let mut table = [0.0; 256];
    for (value, made) in table.iter_mut().zip(as_chunks::<4, _>(made).0) {
        *value = bytemuck::pod_read_unaligned::<f32>(made) * factor;
    }
    Some(Arc::new(table))
}

/// Half of the powers of two that a byte is the biased exponent of: `2^(byte - 128)`. With values that are doubled it holds
/// those of the highest one, too, which no `F32` is.
pub(crate) fn half_exponents() -> Table {
    static TABLE: LazyLock<Table> = LazyLock::new(|| of(|byte| 2_f64.powi(i32::from(byte) - 128) as f32));
    Arc::clone(&TABLE)
}

/// The powers of two that a byte is the biased exponent of; the highest is infinite.
pub(crate) fn exponents() -> Table {
    static TABLE: LazyLock<Table> = LazyLock::new(|| of(|byte| 2_f64.powi(i32::from(byte) - 127) as f32));
    Arc::clone(&TABLE)
}

/// The given values, and zero for the other codes.
pub(crate) fn listed(values: &[f32]) -> Table {
    of(|code| values.get(usize::from(code)).copied().unwrap_or(0.0))
}

fn of(value: impl Fn(u8) -> f32) -> Table {
    Arc::new(std::array::from_fn(|code| value(code as u8)))
}
