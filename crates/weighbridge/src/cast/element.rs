//! What a dtype needs to be cast from and to: the traits that its elements have.

use bytemuck::Pod;

use super::overflow::Overflow;
use crate::dtype::Dtype;

/// A dtype that can be cast.
pub(super) trait Stored {
    /// An element, in the byte order of the file.
    type Bits: Pod;
    /// What holds its values exactly.
    type Wide: Wide;

    fn widen(stored: Self::Bits) -> Self::Wide;
}

/// A dtype to which values of `W` can be cast.
pub(super) trait Made<W> {
    /// An element, in the byte order of the machine.
    type Bits: Pod;
    /// What becomes of values that are too large, in a form that needs no branches.
    type Limits: Copy;

    fn limits(overflow: Overflow) -> Self::Limits;

    /// The element, and whether the value is refused.
    fn make(value: W, limits: Self::Limits) -> (Self::Bits, bool);
}

/// What a value passes through.
pub(super) trait Wide: Pod {
    const DTYPE: Dtype;

    /// Rounded to nearest.
    fn to_f32(self) -> f32;

    /// Rounded to nearest.
    fn to_f64(self) -> f64;

    /// Cut off, with the last bit set if anything but zeros was lost, so that rounding again comes out right.
    /// What is finite stays so.
    fn to_odd(self) -> f32;

    /// Without its fraction, clamped, and whether that changed more than the fraction.
    fn to_integer<I: Integer>(self) -> (I, bool);

    fn is_nan(self) -> bool;

    fn is_finite(self) -> bool;
}

/// Made of every wide type: clamped, and whether it had to be.
pub(super) trait Integer: Sized {
    fn of_f32(value: f32) -> (Self, bool);
    fn of_f64(value: f64) -> (Self, bool);
    fn of_i32(value: i32) -> (Self, bool);
    fn of_i64(value: i64) -> (Self, bool);
    fn of_u64(value: u64) -> (Self, bool);
}
