//! Values of 4 bits, two to a byte.

use super::simd::Convert;

/// The values by their codes: a sign, two bits of exponent and one of mantissa (E2M1), as the Open Compute
/// Project's microscaling (MX) formats have it. There is neither infinity nor NaN.
const VALUES: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// Both values of a byte: the first is in the low four bits, as in PyTorch's `float4_e2m1fn_x2` and ONNX's
/// `FLOAT4E2M1`.
#[derive(Clone, Copy)]
pub(super) struct Unpack;

impl Convert for Unpack {
    type From = u8;
    type To = [f32; 2];

    #[inline(always)]
    fn convert(self, byte: u8) -> ([f32; 2], bool) {
        ([byte & 0xF, byte >> 4].map(|code| VALUES[usize::from(code)]), false)
    }
}
