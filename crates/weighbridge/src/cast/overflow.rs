//! What becomes of values that are too large.

/// What a cast does with values that the target's dtype does not reach to. An infinity that it has is
/// reached.
///
/// Floats are rounded first, to nearest, ties to even, as IEEE 754 has it; only what is beyond the largest
/// value after that is too large. For integers, nothing is rounded: fractions are cut off.
///
/// | | [`Infinity`](Self::Infinity) | [`Saturate`](Self::Saturate) | [`Error`](Self::Error) |
/// |---|---|---|---|
/// | finite, to a float with infinities | infinity | the largest | an error |
/// | infinite, to a float with infinities | infinity | infinity | infinity |
/// | finite, to a float without | the largest | the largest | an error |
/// | infinite, to a float without | the largest | the largest | an error |
/// | either, to an integer | an error | the largest or the smallest | an error |
///
/// The floats without infinities are `F8_E4M3`, `F8_E4M3FNUZ`, `F8_E5M2FNUZ` and `F8_E8M0`.
///
/// NaN stays NaN under all of them, and is an error in an integer, which has none. So are zero and negative
/// values in `F8_E8M0`, which has powers of two only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Overflow {
    /// IEEE 754's own rule, as far as the target has infinities.
    #[default]
    Infinity,
    /// The largest finite value, of finite values and where the target has no infinities: those that it has
    /// are kept.
    Saturate,
    /// No value is changed by more than rounding.
    Error,
}
