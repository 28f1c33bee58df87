//! The element types of PyTorch and NumPy, and what they are in safetensors.

use weighbridge::Dtype;

use crate::numpy::dtypes::{self, Known};

/// An element type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Element {
    /// What it was called.
    pub(crate) name: &'static str,
    pub(crate) dtype: Dtype,
    /// Whether two values of the dtype are one element: complex numbers that the format does not have.
    pub(crate) pair: bool,
    /// Whether the values mean others, by a scale and a zero point.
    pub(crate) quantised: bool,
}

impl Element {
    /// Bytes of an element.
    pub(crate) fn bytes(self) -> usize {
        match self.dtype {
            // Two values, which are one element in PyTorch.
            Dtype::F4 => 1,
            dtype => dtype.bits() as usize / 8 * if self.pair { 2 } else { 1 },
        }
    }

    /// The shape of elements as one of values of the dtype; `None` for a scalar of two values.
    pub(crate) fn shape(self, shape: &[usize]) -> Option<Vec<usize>> {
        let mut shape = shape.to_vec();
        if self.pair {
            shape.push(2);
        } else if self.dtype == Dtype::F4 {
            let last = shape.last_mut()?;
            *last = last.checked_mul(2)?;
        }
        Some(shape)
    }

    /// Bytes of the numbers that it consists of, which have a byte order.
    pub(crate) fn word(self) -> usize {
        match self.dtype {
            Dtype::C64 => 4,
            Dtype::F4 => 1,
            dtype => dtype.bits() as usize / 8,
        }
    }
}

/// Names in `torch`, the storages of that dtype, and how they are stored.
const TORCH: [(&str, &str, Dtype, bool, bool); 25] = [
    ("float32", "FloatStorage", Dtype::F32, false, false),
    ("float64", "DoubleStorage", Dtype::F64, false, false),
    ("float16", "HalfStorage", Dtype::F16, false, false),
    ("bfloat16", "BFloat16Storage", Dtype::BF16, false, false),
    ("int8", "CharStorage", Dtype::I8, false, false),
    ("uint8", "ByteStorage", Dtype::U8, false, false),
    ("int16", "ShortStorage", Dtype::I16, false, false),
    ("int32", "IntStorage", Dtype::I32, false, false),
    ("int64", "LongStorage", Dtype::I64, false, false),
    ("bool", "BoolStorage", Dtype::Bool, false, false),
    ("uint16", "", Dtype::U16, false, false),
    ("uint32", "", Dtype::U32, false, false),
    ("uint64", "", Dtype::U64, false, false),
    ("float8_e4m3fn", "", Dtype::F8_E4M3, false, false),
    ("float8_e5m2", "", Dtype::F8_E5M2, false, false),
    ("float8_e4m3fnuz", "", Dtype::F8_E4M3FNUZ, false, false),
    ("float8_e5m2fnuz", "", Dtype::F8_E5M2FNUZ, false, false),
    ("float8_e8m0fnu", "", Dtype::F8_E8M0, false, false),
    ("float4_e2m1fn_x2", "", Dtype::F4, false, false),
    ("complex32", "ComplexHalfStorage", Dtype::F16, true, false),
    ("complex64", "ComplexFloatStorage", Dtype::C64, false, false),
    ("complex128", "ComplexDoubleStorage", Dtype::F64, true, false),
    ("qint8", "QInt8Storage", Dtype::I8, false, true),
    ("quint8", "QUInt8Storage", Dtype::U8, false, true),
    ("qint32", "QInt32Storage", Dtype::I32, false, true),
];

/// Names in `torch` of dtypes that are not read, and their storages.
const UNREAD: [(&str, &str); 22] = [
    ("quint4x2", "QUInt4x2Storage"),
    ("quint2x4", "QUInt2x4Storage"),
    ("bits8", ""),
    ("bits16", ""),
    ("bits1x8", ""),
    ("bits2x4", ""),
    ("bits4x2", ""),
    ("uint1", ""),
    ("uint2", ""),
    ("uint3", ""),
    ("uint4", ""),
    ("uint5", ""),
    ("uint6", ""),
    ("uint7", ""),
    ("int1", ""),
    ("int2", ""),
    ("int3", ""),
    ("int4", ""),
    ("int5", ""),
    ("int6", ""),
    ("int7", ""),
    ("bcomplex32", ""),
];

/// By a name in `torch`: `float32`.
pub(crate) fn of_torch(name: &str) -> Option<Element> {
    TORCH.iter().find(|row| row.0 == name).map(element)
}

/// By the class of a storage: `FloatStorage`.
pub(crate) fn of_storage(name: &str) -> Option<Element> {
    TORCH.iter().find(|row| !row.1.is_empty() && row.1 == name).map(element)
}

/// Whether a name in `torch` is that of a dtype that is not read.
pub(crate) fn is_unread(name: &str) -> bool {
    UNREAD.iter().any(|row| row.0 == name)
}

/// The dtype that is not read, by the class of its storages.
pub(crate) fn unread_storage(name: &str) -> Option<&'static str> {
    UNREAD.iter().find(|row| !row.1.is_empty() && row.1 == name).map(|row| row.0)
}

/// By a type of NumPy, without its byte order: `f4`.
pub(crate) fn of_numpy(name: &str) -> Option<Element> {
    let Known { name, dtype, pair } = dtypes::named(name)?;
    Some(Element { name, dtype, pair, quantised: false })
}

fn element(row: &(&'static str, &str, Dtype, bool, bool)) -> Element {
    Element { name: row.0, dtype: row.2, pair: row.3, quantised: row.4 }
}
