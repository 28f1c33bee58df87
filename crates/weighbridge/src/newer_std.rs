//! What the standard library has had since Rust 1.87 or 1.88, for Rust 1.85.

use bytemuck::Pod;

/// `as_chunks` of slices.
#[inline(always)]
pub(crate) fn as_chunks<const N: usize, T: Pod>(slice: &[T]) -> (&[[T; N]], &[T]) {
    let (whole, rest) = slice.split_at(slice.len() - slice.len() % N);
    (bytemuck::cast_slice(whole), rest)
}

/// `as_chunks_mut` of slices.
#[inline(always)]
pub(crate) fn as_chunks_mut<const N: usize, T: Pod>(slice: &mut [T]) -> (&mut [[T; N]], &mut [T]) {
    let (whole, rest) = slice.split_at_mut(slice.len() - slice.len() % N);
    (bytemuck::cast_slice_mut(whole), rest)
}

/// `cast_signed` of `u32`.
#[inline(always)]
pub(crate) const fn signed(bits: u32) -> i32 {
    i32::from_le_bytes(bits.to_le_bytes())
}

/// `cast_unsigned` of `i32`.
#[inline(always)]
pub(crate) const fn unsigned(value: i32) -> u32 {
    u32::from_le_bytes(value.to_le_bytes())
}
