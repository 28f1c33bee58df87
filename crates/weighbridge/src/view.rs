//! Tensors of a file whose bytes are in memory, without a copy.

use std::borrow::Cow;

use half::{bf16, f16};

use crate::dtype::Dtype;
use crate::error::{Error, ErrorKind, Result};
use crate::header::{Decode, Header, TensorInfo};
use crate::slice::{Region, Slice};
use crate::source::MemorySource;
use crate::text::brief;

/// A safetensors file in memory: read from a file, mapped, or received.
///
/// It borrows the bytes and copies none of them; only the header is decoded. For files on a disk, and for
/// sharded checkpoints, see [`Checkpoint`](crate::Checkpoint).
///
/// ```
/// use weighbridge::SafeTensors;
///
/// # fn main() -> weighbridge::Result<()> {
/// # let file = b"\x35\0\0\0\0\0\0\0{\"a\":{\"dtype\":\"I8\",\"shape\":[2],\"data_offsets\":[0,2]}}\x01\xff";
/// let tensors = SafeTensors::parse(file)?;
/// let a = tensors.tensor("a").expect("it has a tensor a");
/// assert_eq!(*a.values::<i8>()?, [1, -1]);
/// assert_eq!(*a.slice(&"1:".parse()?)?.bytes(), [0xff]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct SafeTensors<'data> {
    header: Header,
    file: &'data [u8],
}

impl<'data> SafeTensors<'data> {
    /// Decodes the header of a whole file, under [`Profile::Compat`](crate::Profile::Compat).
    ///
    /// # Errors
    ///
    /// Fails when the header breaks a rule of the format or the data is not as long as it says; see [`ErrorKind`].
    pub fn parse(file: &'data [u8]) -> Result<Self> {
        Self::parse_with(Decode::new(), file)
    }

    /// Decodes the header of a whole file, with that profile and those limits.
    ///
    /// # Errors
    ///
    /// As [`parse`](Self::parse).
    pub fn parse_with(decode: Decode, file: &'data [u8]) -> Result<Self> {
        Ok(Self { header: decode.read(&MemorySource(file))?, file })
    }

    /// What is in the file.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<TensorView<'_>> {
        self.header.tensor(name).map(|tensor| self.view(&tensor))
    }

    /// Every tensor with its name, in the order of their data.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = (&str, TensorView<'_>)> + DoubleEndedIterator {
        self.header.tensors().map(|tensor| (tensor.name(), self.view(&tensor)))
    }

    /// The number of tensors.
    pub fn len(&self) -> usize {
        self.header.len()
    }

    /// Whether there is no tensor.
    pub fn is_empty(&self) -> bool {
        self.header.is_empty()
    }

    fn view<'a>(&'a self, tensor: &TensorInfo<'a>) -> TensorView<'a> {
        // The header was proven against the file's length.
        TensorView::of(tensor, self.file).unwrap_or(TensorView { dtype: Dtype::U8, shape: &[0], bytes: &[] })
    }
}

/// A tensor whose bytes are borrowed: little-endian, row by row, as in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorView<'a> {
    dtype: Dtype,
    shape: &'a [usize],
    bytes: &'a [u8],
}

impl<'a> TensorView<'a> {
    /// A tensor of those bytes.
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::TensorSize`], [`ErrorKind::SubByte`] or [`ErrorKind::Overflow`] when the bytes are
    /// not as many as dtype and shape need.
    pub fn new(dtype: Dtype, shape: &'a [usize], bytes: &'a [u8]) -> Result<Self> {
        let needed = dtype.size_of(shape)?;
        if needed != bytes.len() as u64 {
            let message =
                format!("shape {} of {dtype} needs {needed} bytes, not {}", brief(shape), bytes.len());
            return Err(Error::new(ErrorKind::TensorSize, message));
        }
        Ok(Self { dtype, shape, bytes })
    }

    /// The tensor in the bytes of the file that its header describes.
    pub(crate) fn of(tensor: &TensorInfo<'a>, file: &'a [u8]) -> Option<Self> {
        let range = tensor.file_range();
        let (start, end) = (usize::try_from(range.start).ok()?, usize::try_from(range.end).ok()?);
        Some(Self { dtype: tensor.dtype(), shape: tensor.shape(), bytes: file.get(start..end)? })
    }

    /// The type of the elements.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The size of each dimension, in elements; empty for a scalar.
    pub fn shape(&self) -> &'a [usize] {
        self.shape
    }

    /// The bytes, as in the file.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The values, in Rust's type for them: borrowed where the bytes are aligned for it and the machine has the
    /// file's byte order, copied otherwise.
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::Dtype`] when `T` is not the type of this dtype's values; see [`Element`].
    pub fn values<T: Element>(&self) -> Result<Cow<'a, [T]>> {
        values(self.dtype, Cow::Borrowed(self.bytes))
    }

    /// A part of the tensor, without a copy.
    ///
    /// # Errors
    ///
    /// As [`Slice::of`].
    pub fn slice(&self, slice: &Slice) -> Result<SliceView<'a>> {
        Ok(SliceView { region: slice.of(self.dtype, self.shape)?, bytes: self.bytes })
    }
}

/// A part of a tensor whose bytes are borrowed.
#[derive(Clone, Debug)]
pub struct SliceView<'a> {
    region: Region,
    /// Of the whole tensor.
    bytes: &'a [u8],
}

impl<'a> SliceView<'a> {
    /// The type of the elements.
    pub fn dtype(&self) -> Dtype {
        self.region.dtype()
    }

    /// The shape of the part.
    pub fn shape(&self) -> &[usize] {
        self.region.shape()
    }

    /// Which bytes of the tensor it is.
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// The pieces of the tensor's bytes which, one after the other, are the part.
    pub fn pieces(&self) -> impl Iterator<Item = &'a [u8]> {
        let bytes = self.bytes;
        // A region of the tensor's own shape lies inside its bytes.
        self.region
            .byte_ranges()
            .map(move |r| bytes.get(r.start as usize..r.end as usize).unwrap_or_default())
    }

    /// The bytes: borrowed where they lie together, copied otherwise.
    pub fn bytes(&self) -> Cow<'a, [u8]> {
        let mut pieces = self.pieces();
        match (pieces.next(), pieces.next()) {
            (None, _) => Cow::Borrowed(&[]),
            (Some(only), None) => Cow::Borrowed(only),
            (Some(_), Some(_)) => {
                let mut bytes = Vec::with_capacity(self.region.byte_len() as usize);
                self.pieces().for_each(|piece| bytes.extend_from_slice(piece));
                Cow::Owned(bytes)
            }
        }
    }

    /// The values, as [`TensorView::values`].
    ///
    /// # Errors
    ///
    /// As [`TensorView::values`].
    pub fn values<T: Element>(&self) -> Result<Cow<'a, [T]>> {
        values(self.dtype(), self.bytes())
    }
}

fn values<T: Element>(dtype: Dtype, bytes: Cow<'_, [u8]>) -> Result<Cow<'_, [T]>> {
    if !T::DTYPES.contains(&dtype) {
        let known: Vec<_> = T::DTYPES.iter().map(|dtype| dtype.name()).collect();
        let message = format!("{} is the type of {}, not of {dtype}", T::NAME, known.join(", "));
        return Err(Error::new(ErrorKind::Dtype, message));
    }
    if let (Cow::Borrowed(bytes), true) = (&bytes, cfg!(target_endian = "little") || size_of::<T>() == 1) {
        if let Ok(values) = bytemuck::try_cast_slice(bytes) {
            return Ok(Cow::Borrowed(values));
        }
    }
    Ok(Cow::Owned(bytes.chunks_exact(size_of::<T>()).map(T::from_file).collect()))
}

/// A Rust type for values of some dtypes: `f32` of `F32`, `[f32; 2]` of `C64`, `u8` of `U8` and, raw, of `BOOL` and
/// every 8-bit float. Values of 4 and 6 bits have none.
pub trait Element: sealed::Element {
    /// The dtypes whose values it holds.
    const DTYPES: &'static [Dtype];
}

mod sealed {
    pub trait Element: bytemuck::Pod {
        const NAME: &'static str;

        /// The value of these bytes of a file, exactly as many as it has.
        fn from_file(bytes: &[u8]) -> Self;

        /// The bytes of a file for this value, which has as many.
        fn to_file(self, bytes: &mut [u8]);
    }
}

macro_rules! elements {
    ($($type:ty => $($dtype:ident)*;)*) => {$(
        impl Element for $type {
            const DTYPES: &'static [Dtype] = &[$(Dtype::$dtype),*];
        }

        impl sealed::Element for $type {
            const NAME: &'static str = stringify!($type);

            fn from_file(bytes: &[u8]) -> Self {
                Self::from_le_bytes(bytes.try_into().unwrap_or_default())
            }

            fn to_file(self, bytes: &mut [u8]) {
                bytes.copy_from_slice(&self.to_le_bytes());
            }
        }
    )*};
}

elements! {
    u8 => U8 Bool F8_E5M2 F8_E4M3 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ;
    i8 => I8;
    u16 => U16;
    i16 => I16;
    f16 => F16;
    bf16 => BF16;
    u32 => U32;
    i32 => I32;
    f32 => F32;
    u64 => U64;
    i64 => I64;
    f64 => F64;
}

impl Element for [f32; 2] {
    const DTYPES: &'static [Dtype] = &[Dtype::C64];
}

impl sealed::Element for [f32; 2] {
    const NAME: &'static str = "[f32; 2]";

    fn from_file(bytes: &[u8]) -> Self {
        let (real, imaginary) = bytes.split_at(4);
        [real, imaginary].map(<f32 as sealed::Element>::from_file)
    }

    fn to_file(self, bytes: &mut [u8]) {
        self.iter().zip(bytes.chunks_exact_mut(4)).for_each(|(part, bytes)| part.to_file(bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_borrow_when_aligned_and_copy_when_not() {
        let memory = [1.5_f32.to_le_bytes(), (-2.0_f32).to_le_bytes()].concat();
        let mut room = [0; 12];
        let mut borrowed = 0;
        for shift in 0..4 {
            let moved = &mut room[shift..shift + 8];
            moved.copy_from_slice(&memory);
            let view = TensorView::new(Dtype::F32, &[2], moved).unwrap();
            let values = view.values::<f32>().unwrap();
            assert_eq!(*values, [1.5, -2.0]);
            borrowed += usize::from(matches!(values, Cow::Borrowed(_)));
            assert_eq!(*view.slice(&"1:".parse().unwrap()).unwrap().values::<f32>().unwrap(), [-2.0]);
        }
        // Of four neighbouring addresses one is aligned. Values in another byte order are always copied.
        assert_eq!(borrowed, usize::from(cfg!(target_endian = "little")));
    }

    #[test]
    fn other_types_are_refused() {
        let view = TensorView::new(Dtype::F32, &[], &[0; 4]).unwrap();
        let error = view.values::<u8>().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Dtype);
        assert!(error.to_string().contains("u8 is the type of U8, BOOL"), "{error}");
        assert!(TensorView::new(Dtype::F4, &[4], &[0; 2]).unwrap().values::<u8>().is_err());
        let complex = [1.0_f32.to_le_bytes(), 2.0_f32.to_le_bytes()].concat();
        let view = TensorView::new(Dtype::C64, &[1], &complex).unwrap();
        assert_eq!(*view.values::<[f32; 2]>().unwrap(), [[1.0, 2.0]]);
    }

    #[test]
    fn views_have_the_bytes_that_their_shape_needs() {
        let kind =
            |dtype, shape: &[usize], bytes: &[u8]| TensorView::new(dtype, shape, bytes).unwrap_err().kind();
        assert_eq!(kind(Dtype::U8, &[3], &[0; 2]), ErrorKind::TensorSize);
        assert_eq!(kind(Dtype::F4, &[3], &[0; 2]), ErrorKind::SubByte);
        assert_eq!(kind(Dtype::U8, &[1 << 31, 1 << 31, 1 << 31], &[]), ErrorKind::Overflow);
        assert!(TensorView::new(Dtype::U8, &[0, 7], &[]).is_ok());
    }
}
