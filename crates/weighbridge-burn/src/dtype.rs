//! What each stored dtype becomes in Burn, and how each of Burn's dtypes is stored.
//!
//! | stored | in a float parameter | on request |
//! |---|---|---|
//! | `F16`, `BF16`, `F32`, `F64` | the same | any float |
//! | `F8_E4M3`, `F8_E5M2`, `F8_E4M3FNUZ`, `F8_E5M2FNUZ`, `F8_E8M0` | an error: Burn has no 8-bit floats | any float |
//! | `C64` | an error, or `F32` with a last dimension of 2, see [`complex_pairs`](crate::Loader::complex_pairs) | nothing else |
//! | `U8` with a scheme in the metadata | the quantised tensor that was saved | nothing else |
//! | `F4` | an error: Burn has no 4-bit floats except quantised ones | any float |
//! | `F6_E2M3`, `F6_E3M2` | an error; `weighbridge` reads the bytes | nothing else |
//!
//! | stored | in a parameter of integers | on request |
//! |---|---|---|
//! | `I8` to `I64`, `U8` to `U64` | the same | any integer that holds the values |
//!
//! A boolean parameter takes `BOOL` and `U8` with the values 0 and 1, and gets the form of booleans that its
//! device has. A tensor of one kind is never loaded into a parameter of another. A dtype that the device does
//! not compute with is refused before anything is read. For quantised tensors a device only says whether it
//! computes with their packed values, so if it cannot hold them, the load fails when they are put there; the
//! module is still as it was.
//!
//! The codes of quantised modules, such as 8-bit floats with scales in other tensors, are an error unless
//! they are asked for [raw](crate::Loader::quantized).
//!
//! Each dtype is saved as it is, except that `Flex32` becomes `F32`, booleans become `BOOL`, and a quantised
//! tensor becomes its bytes, with its scheme in the metadata.

use burn::tensor::{BoolDType, DType, Device};
use weighbridge::plan::Cast;
use weighbridge::{Dtype, Error, ErrorKind, Result};

use crate::walk::Kind;

/// How a stored tensor arrives in Burn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arrival {
    /// The dtype that it is cast to while it is read.
    pub(crate) read_as: Dtype,
    /// The dtype that Burn gives it.
    pub(crate) dtype: DType,
    /// Whether it holds complex numbers, so that its shape gets a last dimension of 2.
    pub(crate) pairs: bool,
}

/// What was asked for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wishes {
    pub(crate) float: Option<DType>,
    pub(crate) int: Option<DType>,
    pub(crate) complex_pairs: bool,
}

/// How `stored` arrives in a parameter of that kind on that device.
///
/// # Errors
///
/// Fails when it cannot; the message names the way out.
pub(crate) fn arrival(stored: Dtype, kind: Kind, wishes: Wishes, device: &Device) -> Result<Arrival> {
    let fail = |message: String| Err(Error::new(ErrorKind::Dtype, message));
    let natural = from_stored(stored);
    let arrival = match kind {
        Kind::Bool => match stored {
            Dtype::Bool | Dtype::U8 => {
                return Ok(Arrival { read_as: stored, dtype: bool_dtype(device), pairs: false });
            }
            _ => return fail(format!("{stored} cannot be loaded into a parameter of {}", kind.name())),
        },
        Kind::Float if stored == Dtype::C64 => match wishes {
            Wishes { complex_pairs: true, float: None | Some(DType::F32), .. } => {
                Arrival { read_as: stored, dtype: DType::F32, pairs: true }
            }
            _ => {
                return fail(
                    "Burn has no C64; `complex_pairs()` loads it as F32 with a last dimension of 2 (real, imaginary)"
                        .to_owned(),
                );
            }
        },
        Kind::Float if !stored.is_float() => {
            return fail(format!("{stored} cannot be loaded into a parameter of {}", kind.name()));
        }
        Kind::Int if !natural.is_some_and(is_integer) => {
            return fail(format!("{stored} cannot be loaded into a parameter of {}", kind.name()));
        }
        _ => {
            let wish = if kind == Kind::Float { wishes.float } else { wishes.int };
            match (wish, natural) {
                (None, Some(dtype)) => Arrival { read_as: stored, dtype, pairs: false },
                (Some(dtype), _) => {
                    match to_stored(dtype).filter(|&made| made == stored || Cast::exists(stored, made)) {
                        Some(read_as) => Arrival { read_as, dtype, pairs: false },
                        None => return fail(format!("there is no cast from {stored} to {dtype:?}")),
                    }
                }
                (None, None) if Cast::exists(stored, Dtype::F32) => {
                    return fail(format!(
                        "Burn has no {stored}; `dtype(DType::F32)` or another float loads it"
                    ));
                }
                (None, None) => return fail(format!("Burn has no {stored}")),
            }
        }
    };
    check_support(device, arrival.dtype, kind)?;
    Ok(arrival)
}

/// Checks that the device supports a dtype for parameters of floats or integers.
pub(crate) fn check_support(device: &Device, dtype: DType, kind: Kind) -> Result<()> {
    if device.supports_dtype(dtype) {
        return Ok(());
    }
    let way_out = if kind == Kind::Float { "`dtype(DType::F32)`" } else { "`dtype(DType::I32)`" };
    let message = format!("{device:?} does not compute with {dtype:?}; {way_out} or another dtype loads it");
    Err(Error::new(ErrorKind::Device, message))
}

/// The form of booleans on a device.
pub(crate) fn bool_dtype(device: &Device) -> DType {
    DType::from(device.settings().bool_dtype)
}

/// Whether the device's booleans are bytes.
pub(crate) fn has_byte_bools(device: &Device) -> bool {
    !matches!(device.settings().bool_dtype, BoolDType::U32)
}

fn is_integer(dtype: DType) -> bool {
    dtype.is_int() || dtype.is_uint()
}

/// Booleans of four bytes each, as a file has them: of one byte.
pub(crate) fn narrow_bools(bytes: &[u8]) -> Vec<u8> {
    bytes.chunks_exact(4).map(|value| u8::from(value.iter().any(|&byte| byte != 0))).collect()
}

/// The dtype of Burn that is the stored one.
pub(crate) fn from_stored(dtype: Dtype) -> Option<DType> {
    Some(match dtype {
        Dtype::F64 => DType::F64,
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::I64 => DType::I64,
        Dtype::I32 => DType::I32,
        Dtype::I16 => DType::I16,
        Dtype::I8 => DType::I8,
        Dtype::U64 => DType::U64,
        Dtype::U32 => DType::U32,
        Dtype::U16 => DType::U16,
        Dtype::U8 => DType::U8,
        _ => return None,
    })
}

/// The dtype that one of Burn's is stored as. `None` for booleans of four bytes and quantised values, for
/// which safetensors has no dtype.
pub fn to_stored(dtype: DType) -> Option<Dtype> {
    use burn::tensor::BoolStore;
    Some(match dtype {
        DType::F64 => Dtype::F64,
        DType::F32 | DType::Flex32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        DType::I64 => Dtype::I64,
        DType::I32 => Dtype::I32,
        DType::I16 => Dtype::I16,
        DType::I8 => Dtype::I8,
        DType::U64 => Dtype::U64,
        DType::U32 => Dtype::U32,
        DType::U16 => Dtype::U16,
        DType::U8 => Dtype::U8,
        DType::Bool(BoolStore::Native | BoolStore::U8) => Dtype::Bool,
        DType::Bool(BoolStore::U32) | DType::QFloat(_) => return None,
    })
}
