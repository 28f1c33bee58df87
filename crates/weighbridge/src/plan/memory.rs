//! Casts of values that are in memory already.

use std::mem::MaybeUninit;

use super::Overflow;
use crate::cast::{Kernel, OutOfRange, no_cast};
use crate::dtype::Dtype;
use crate::error::{Error, ErrorKind, Result};
use crate::view::Element;

/// Turns values as a file has them into Rust's: `stored` has as many elements of `dtype` as `values` has
/// places.
///
/// `T` stands for the first of its [`DTYPES`](Element::DTYPES). What is too large for it becomes infinite, or
/// its largest value where it has no infinities, as in [`Overflow::Infinity`].
///
/// ```
/// use weighbridge::{Dtype, plan::cast_into};
///
/// # fn main() -> weighbridge::Result<()> {
/// let mut values = [0.0_f64; 2];
/// cast_into(Dtype::BF16, &[0x80, 0x3f, 0x00, 0xc0], &mut values)?;
/// assert_eq!(values, [1.0, -2.0]);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// Fails with [`ErrorKind::Dtype`] where there is no such cast, which is so for values of 6 bits and for
/// complex ones, with [`ErrorKind::TensorSize`] when the numbers of elements differ, and with
/// [`ErrorKind::Value`] at a value that `T` cannot represent.
pub fn cast_into<T: Element>(dtype: Dtype, stored: &[u8], values: &mut [T]) -> Result<()> {
    /// Elements at a time; they stay in the first-level cache.
    const BLOCK: usize = 1024;
    let to = T::DTYPES[0];
    let refuse = |kind, message| Err(Error::new(kind, message));
    let Some(kernel) = Kernel::of(dtype, to, Overflow::Infinity) else {
        return refuse(ErrorKind::Dtype, no_cast(dtype, to));
    };
    if dtype.byte_len(values.len() as u64) != Some(stored.len() as u64) {
        let message = format!("{} bytes are not {} elements of {dtype}", stored.len(), values.len());
        return refuse(ErrorKind::TensorSize, message);
    }
    let (block_bytes, size) = (dtype.bits() as usize * BLOCK / 8, size_of::<T>());
    let mut block = [MaybeUninit::uninit(); BLOCK * 8];
    for (stored, values) in stored.chunks(block_bytes).zip(values.chunks_mut(BLOCK)) {
        let block = block.get_mut(..values.len() * size).unwrap_or_default();
        match kernel.run(stored, block) {
            Ok(made) => bytemuck::cast_slice_mut(values).copy_from_slice(made),
            // The rule for values that are too large is not the caller's choice.
            Err(refused) => return Err(OutOfRange { remedies: Vec::new(), ..refused }.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_four_bits_come_in_pairs() {
        // The first value in the low four bits.
        let mut values = [0.0_f32; 4];
        cast_into(Dtype::F4, &[0x21, 0xFC], &mut values).unwrap();
        assert_eq!(values, [0.5, 1.0, -2.0, -6.0]);
        let stored: Vec<u8> = (0..5000).map(|i| (i * 7) as u8).collect();
        let mut many = vec![0.0_f64; 10_000];
        cast_into(Dtype::F4, &stored, &mut many).unwrap();
        for (byte, pair) in stored.iter().zip(many.chunks(2)) {
            let mut two = [0.0_f64; 2];
            cast_into(Dtype::F4, &[*byte], &mut two).unwrap();
            assert_eq!(pair, two);
        }
        let odd = cast_into(Dtype::F4, &[0; 2], &mut [0.0_f32; 3]).unwrap_err();
        assert_eq!(odd.kind(), ErrorKind::TensorSize);
    }

    #[test]
    fn casts_blocks_and_refuses_the_rest() {
        let stored: Vec<u8> = (0..3000_u16).flat_map(u16::to_le_bytes).collect();
        let mut values = vec![0.0_f32; 3000];
        cast_into(Dtype::U16, &stored, &mut values).unwrap();
        assert!(values.iter().zip(0_u16..).all(|(value, number)| *value == f32::from(number)));
        let kind = |dtype, stored: &[u8]| cast_into(dtype, stored, &mut [0.0_f32; 2]).unwrap_err().kind();
        assert_eq!(kind(Dtype::U16, &[0; 3]), ErrorKind::TensorSize);
        assert_eq!(kind(Dtype::F4, &[0; 2]), ErrorKind::TensorSize);
        assert_eq!(kind(Dtype::F6_E2M3, &[0]), ErrorKind::Dtype);
        assert_eq!(kind(Dtype::C64, &[0; 16]), ErrorKind::Dtype);
    }
}
