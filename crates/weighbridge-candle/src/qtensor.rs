//! From filled host memory to a tensor of GGML's blocks, without a second copy.

#![allow(unsafe_code)]

use std::borrow::Cow;

use candle_core::quantized::k_quants::{
    BlockQ2K, BlockQ3K, BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0, BlockQ5_1, BlockQ5K, BlockQ6K, BlockQ8_0,
    BlockQ8_1, BlockQ8K,
};
use candle_core::quantized::{GgmlDType, QStorage, QTensor, QuantizedType};
use candle_core::{Device, Shape};
use weighbridge::{BlockType, Error, ErrorKind, HostBuffer, Result};

use crate::tensor::refused;

/// A type of blocks that is made of words of type `W`.
///
/// # Safety
///
/// It has the alignment of `W`, consists of integers and floats without padding, and all bit patterns are
/// values of it.
unsafe trait BlockOf<W> {}

/// Takes words for the blocks that they are; the memory stays where it is, and what is allocated beyond is
/// given back. `None` if they are no whole number of blocks.
fn blocks<W, B: BlockOf<W>>(words: Vec<W>) -> Option<Vec<B>> {
    const {
        assert!(align_of::<W>() == align_of::<B>());
        assert!(size_of::<W>() > 0 && size_of::<B>() > 0);
    }
    let bytes = words.len() * size_of::<W>();
    let count = bytes.is_multiple_of(size_of::<B>()).then(|| bytes / size_of::<B>())?;
    let words = Box::into_raw(words.into_boxed_slice());
    // SAFETY: a box of a slice has exactly `bytes` bytes of the global allocator, aligned as `W`, which is
    // how `count` blocks are aligned and how many bytes they have; all of them are initialised, and by the
    // promise of `BlockOf` they are values of `B`. The box was given up.
    Some(unsafe { Vec::from_raw_parts(words.cast::<B>(), count, count) })
}

macro_rules! block_types {
    ($($id:literal $dtype:ident $block:ident $bytes:literal of $word:ident $variant:ident),*) => {
        $(
            // SAFETY: Candle declares it `repr(C)`, of `f16`, `f32` and arrays of integers. It has the bytes
            // that GGML's block has, none of which is padding, which is checked here; the alignment is
            // checked where it is used.
            unsafe impl BlockOf<$word> for $block {}
            const _: () = assert!(size_of::<$block>() == $bytes);
        )*

        /// What Candle calls a type of blocks; `None` if it lacks it.
        pub(crate) fn ggml_dtype(block_type: BlockType) -> Option<GgmlDType> {
            match (block_type.id(), block_type.bytes()) {
                $(($id, $bytes) => Some(GgmlDType::$dtype),)*
                _ => None,
            }
        }

        /// Words as blocks, in the memory that they are in.
        fn storage(words: HostBuffer, dtype: GgmlDType) -> Option<Box<dyn QuantizedType>> {
            Some(match (dtype, words) {
                $((GgmlDType::$dtype, HostBuffer::$variant(words)) => Box::new(blocks::<$word, $block>(words)?),)*
                _ => return None,
            })
        }
    };
}

block_types! {
    2 Q4_0 BlockQ4_0 18 of u16 U16,
    3 Q4_1 BlockQ4_1 20 of u16 U16,
    6 Q5_0 BlockQ5_0 22 of u16 U16,
    7 Q5_1 BlockQ5_1 24 of u16 U16,
    8 Q8_0 BlockQ8_0 34 of u16 U16,
    9 Q8_1 BlockQ8_1 36 of u16 U16,
    10 Q2K BlockQ2K 84 of u16 U16,
    11 Q3K BlockQ3K 110 of u16 U16,
    12 Q4K BlockQ4K 144 of u16 U16,
    13 Q5K BlockQ5K 176 of u16 U16,
    14 Q6K BlockQ6K 210 of u16 U16,
    15 Q8K BlockQ8K 292 of u32 U32
}

/// The tensor of blocks: on the CPU the memory becomes its own, elsewhere it is copied over.
pub(crate) fn place(words: HostBuffer, dtype: GgmlDType, shape: Shape, device: &Device) -> Result<QTensor> {
    if cfg!(target_endian = "big") {
        let message = "Candle's blocks are little-endian, this machine is not";
        return Err(Error::new(ErrorKind::Unsupported, message));
    }
    let elements = shape.dims().iter().try_fold(1_usize, |product, &dim| product.checked_mul(dim));
    let bytes = elements.and_then(|elements| (elements / dtype.block_size()).checked_mul(dtype.type_size()));
    let unlike = || Error::new(ErrorKind::Internal, "its blocks are not those of its shape");
    if bytes != Some(words.as_bytes().len()) {
        return Err(unlike());
    }
    let storage = match device {
        Device::Cpu => QStorage::Cpu(storage(words, dtype).ok_or_else(unlike)?),
        _ => QStorage::from_data(Cow::Borrowed(words.as_bytes()), device, dtype)
            .map_err(|error| refused(&error))?,
    };
    QTensor::new(storage, shape).map_err(|error| refused(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_stay_where_they_are() {
        let mut words = Vec::with_capacity(1000);
        words.extend((0..18).map(|word| word * 257_u16));
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let tensor =
            place(HostBuffer::U16(words), GgmlDType::Q4_0, Shape::from((2, 32)), &Device::Cpu).unwrap();
        assert_eq!(*tensor.data().unwrap(), *bytes);
        assert_eq!(tensor.shape().dims(), [2, 32]);

        // A vector without spare capacity is not moved.
        let words = vec![7_u16; 9 << 20].into_boxed_slice().into_vec();
        let address = words.as_ptr().addr();
        let shape = Shape::from((1 << 10, 32 << 10));
        let tensor = place(HostBuffer::U16(words), GgmlDType::Q4_0, shape, &Device::Cpu).unwrap();
        assert_eq!(tensor.data().unwrap().as_ptr().addr(), address);
    }

    #[test]
    fn what_is_no_whole_number_of_blocks_is_an_error() {
        let place = |words: usize, shape: &[usize]| {
            place(HostBuffer::U16(vec![0; words]), GgmlDType::Q4_0, Shape::from(shape), &Device::Cpu)
        };
        assert!(place(9, &[1, 32]).is_ok());
        assert!(place(0, &[0, 32]).is_ok());
        assert!(place(10, &[1, 32]).is_err());
        assert!(place(9, &[2, 32]).is_err());
        assert!(place(9, &[32, 1]).is_err(), "a row is not a whole block");
        assert!(place(9, &[usize::MAX, 64]).is_err());
        assert!(blocks::<u16, BlockQ4_0>(vec![0; 10]).is_none());
    }
}
