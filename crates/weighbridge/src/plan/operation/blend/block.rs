//! Some values of an input, as `F32`.

use std::mem::MaybeUninit;

use crate::cast::{Kernel, OutOfRange};
use crate::error::Result;

/// Elements of a block: a few blocks stay in the first-level cache.
pub(super) const BLOCK: usize = 1024;

const BYTES: usize = BLOCK * size_of::<f32>();

/// Memory for a block.
#[repr(C, align(64))]
pub(super) struct Block([MaybeUninit<u8>; BYTES]);

impl Block {
    pub(super) fn new() -> Self {
        Self([MaybeUninit::uninit(); BYTES])
    }

    /// The values of `count` stored elements, at most [`BLOCK`].
    pub(super) fn cast(&mut self, kernel: &Kernel, stored: &[u8], count: usize) -> Result<&[f32]> {
        let made = kernel.run(stored, &mut self.0[..count * size_of::<f32>()]);
        // The rule for values that are too large is not the caller's choice.
        let made = made.map_err(|refused| OutOfRange { remedies: Vec::new(), ..refused })?;
        Ok(bytemuck::cast_slice(made))
    }
}
