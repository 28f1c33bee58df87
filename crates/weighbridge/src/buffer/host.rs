//! A tensor in host memory.

#![allow(unsafe_code)]

use std::collections::TryReserveError;
use std::ptr::NonNull;

use half::{bf16, f16};

use crate::dtype::Dtype;

macro_rules! host_buffer {
    ($($variant:ident $type:ty),*) => {
        /// A loaded tensor in host memory: the `Vec` of its element type.
        ///
        /// Dtypes without a Rust type of their own come as the raw bytes of the file (`BOOL`, `F4`, `F6_*`
        /// and `F8_*` as `U8`), and `C64` as `F32` pairs.
        #[derive(Clone, Debug, PartialEq)]
        #[non_exhaustive]
        #[allow(missing_docs)]
        pub enum HostBuffer { $($variant(Vec<$type>)),* }

        impl HostBuffer {
            /// The bytes, in the machine's byte order.
            pub fn as_bytes(&self) -> &[u8] {
                match self { $(Self::$variant(values) => bytemuck::cast_slice(values)),* }
            }

            /// Allocates memory for at least `bytes` bytes, beyond the length.
            pub(super) fn reserve(&mut self, bytes: usize) -> Result<(), TryReserveError> {
                match self {
                    $(Self::$variant(values) => values.try_reserve_exact(bytes.div_ceil(size_of::<$type>()))),*
                }
            }

            /// The first byte beyond the length.
            pub(super) fn spare(&mut self) -> NonNull<u8> {
                match self { $(Self::$variant(values) => NonNull::from(values.spare_capacity_mut()).cast()),* }
            }

            /// Makes the first `bytes` bytes the values.
            ///
            /// # Safety
            ///
            /// As many bytes are allocated, from the first on, and initialised.
            pub(super) unsafe fn set_byte_len(&mut self, bytes: usize) {
                match self {
                    $(Self::$variant(values) => {
                        // SAFETY: by the caller's promise, `bytes` bytes are within the capacity and
                        // initialised, so at least `bytes / size` elements are; every bit pattern is a value
                        // of their type.
                        unsafe { values.set_len(bytes / size_of::<$type>()) }
                    }),*
                }
            }
        }
    };
}

host_buffer! {
    U8 u8, I8 i8, U16 u16, I16 i16, U32 u32, I32 i32, U64 u64, I64 i64, F16 f16, BF16 bf16, F32 f32, F64 f64
}

impl HostBuffer {
    /// A buffer of no values.
    pub(super) fn empty(dtype: Dtype) -> Self {
        match dtype {
            Dtype::I8 => Self::I8(Vec::new()),
            Dtype::I16 => Self::I16(Vec::new()),
            Dtype::U16 => Self::U16(Vec::new()),
            Dtype::F16 => Self::F16(Vec::new()),
            Dtype::BF16 => Self::BF16(Vec::new()),
            Dtype::I32 => Self::I32(Vec::new()),
            Dtype::U32 => Self::U32(Vec::new()),
            Dtype::F32 | Dtype::C64 => Self::F32(Vec::new()),
            Dtype::F64 => Self::F64(Vec::new()),
            Dtype::I64 => Self::I64(Vec::new()),
            Dtype::U64 => Self::U64(Vec::new()),
            Dtype::Bool
            | Dtype::F4
            | Dtype::F6_E2M3
            | Dtype::F6_E3M2
            | Dtype::U8
            | Dtype::F8_E5M2
            | Dtype::F8_E4M3
            | Dtype::F8_E8M0
            | Dtype::F8_E4M3FNUZ
            | Dtype::F8_E5M2FNUZ => Self::U8(Vec::new()),
        }
    }
}
