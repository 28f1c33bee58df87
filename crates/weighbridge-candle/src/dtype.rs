//! What each stored dtype becomes in Candle, and what each Candle dtype is stored as.
//!
//! | stored | as stored it becomes | on request |
//! |---|---|---|
//! | `BOOL` | `U8`, 0 or 1 | any number |
//! | `U8`, `I16`, `I64` | the same | any number that holds the values |
//! | `U32`, `I32` | the same | any number that holds the values; each other by their bits |
//! | `I8` | `I16` | any number that holds the values; `U8` by their bits |
//! | `U16` | `U32` | any number that holds the values; `I16` by their bits |
//! | `U64` | `I64`, an error for values that do not fit | any number that holds the values; `I64` by their bits |
//! | `F16`, `BF16`, `F32`, `F64` | the same | any number |
//! | `F8_E4M3` | `F8E4M3` | any number; `U8` by their bits |
//! | `F8_E5M2`, `F8_E5M2FNUZ`, `F8_E4M3FNUZ` | `F16`, which holds them exactly | any number; `U8` by their bits |
//! | `F8_E8M0` | `F8E8M0`, raw | any number; `U8` by their bits |
//! | `F4` | the same, raw | any number |
//! | `F6_E2M3`, `F6_E3M2` | the same, raw | nothing else |
//! | `C64` | nothing, or `F32` pairs with [`complex_pairs`](crate::Loader::complex_pairs) | nothing else |
//!
//! On Metal, which computes with less, some come as another dtype: `I16` and `I32` as `I64`, `F8E4M3` as
//! `F16`, `F8E8M0` as `F32`, unless they are asked for; `F64` only if it is asked for, and packed dtypes not
//! at all.
//!
//! "Raw" dtypes hold the file's packed bytes; Candle has no operations on them.
//!
//! "By their bits" is how Candle itself casts integers of one width: `-1` of `I32` becomes `4294967295` of
//! `U32`. The packed weights of GPTQ are stored as `I32` and computed with as `U32`, and codes of 8-bit
//! floats are taken as `U8`. What is requested in any other dtype keeps its values, or is an error;
//! [`overflow`](crate::Loader::overflow) says which.
//!
//! Quantised modules, such as 8-bit floats with scales in tensors beside them, come as the weights that they
//! stand for; their codes are asked for with [`Quantized::Raw`](weighbridge::Quantized::Raw).

use candle_core::{DType, Device, Shape};
use weighbridge::plan::Cast;
use weighbridge::{Dtype, Error, ErrorKind, Result};

use crate::capability::{OnMetal, on_metal};

/// What a stored tensor becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// What a session makes of it.
    pub(crate) read_as: Dtype,
    /// What Candle calls that.
    pub(crate) dtype: DType,
    /// Complex numbers: the shape gets a last dimension of 2.
    pub(crate) pairs: bool,
}

impl Target {
    /// The shape in Candle of a tensor that is stored in `stored`.
    pub(crate) fn shape(&self, stored: &[usize]) -> Shape {
        let pair: &[usize] = if self.pairs { &[2] } else { &[] };
        Shape::from([stored, pair].concat())
    }
}

/// What `stored` becomes on a device: what was requested or, without a request, what is closest to stored.
///
/// # Errors
///
/// Fails when Candle cannot hold it, or not as requested; the message says what it can.
pub(crate) fn target(
    stored: Dtype,
    requested: Option<DType>,
    complex_pairs: bool,
    device: &Device,
) -> Result<Target> {
    target_on(device.is_metal(), stored, requested, complex_pairs)
}

/// The same, on Metal or elsewhere.
pub(crate) fn target_on(
    metal: bool,
    stored: Dtype,
    requested: Option<DType>,
    complex_pairs: bool,
) -> Result<Target> {
    let elsewhere = target_elsewhere(stored, requested, complex_pairs)?;
    if !metal {
        return Ok(elsewhere);
    }
    let dtype = elsewhere.dtype;
    let fail = |message: String| Err(Error::new(ErrorKind::Dtype, message));
    match (on_metal(dtype), requested) {
        (OnMetal::Computes, _) | (OnMetal::Kept(_) | OnMetal::KeptIfAsked, Some(_)) => Ok(elsewhere),
        (OnMetal::Kept(other) | OnMetal::Becomes(other), None) => {
            target_elsewhere(stored, Some(other), false)
        }
        (OnMetal::KeptIfAsked, None) => fail(format!(
            "Candle does not compute with {dtype:?} on Metal; `dtype(DType::F32)` loads it, rounded"
        )),
        (OnMetal::Becomes(_) | OnMetal::Refused, _) => {
            fail(format!("Candle cannot read {dtype:?} back from Metal; load it onto the CPU"))
        }
    }
}

/// The same, on a device that holds whatever Candle has.
fn target_elsewhere(stored: Dtype, requested: Option<DType>, complex_pairs: bool) -> Result<Target> {
    let default = default_target(stored, complex_pairs);
    match (default, requested) {
        (Some(default), None) => Ok(default),
        (Some(default), Some(requested)) if default.dtype == requested => Ok(default),
        (Some(default), Some(requested)) => {
            let read_as = to_stored(requested);
            if let Some(read_as) = read_as.filter(|&read_as| Cast::exists(stored, read_as)) {
                return Ok(Target { read_as, dtype: requested, pairs: false });
            }
            let message = format!(
                "there is no cast from {stored} to {requested:?}; load it without a dtype to get {:?}",
                default.dtype
            );
            Err(Error::new(ErrorKind::Dtype, message))
        }
        (None, _) => Err(refusal(stored)),
    }
}

/// What a dtype becomes without a request.
fn default_target(stored: Dtype, complex_pairs: bool) -> Option<Target> {
    let (read_as, dtype) = match stored {
        Dtype::Bool | Dtype::U8 => (stored, DType::U8),
        Dtype::I8 => (Dtype::I16, DType::I16),
        Dtype::I16 => (stored, DType::I16),
        Dtype::U16 => (Dtype::U32, DType::U32),
        Dtype::U32 => (stored, DType::U32),
        Dtype::I32 => (stored, DType::I32),
        Dtype::I64 => (stored, DType::I64),
        Dtype::U64 => (Dtype::I64, DType::I64),
        Dtype::F8_E4M3 => (stored, DType::F8E4M3),
        Dtype::F8_E5M2 | Dtype::F8_E5M2FNUZ | Dtype::F8_E4M3FNUZ => (Dtype::F16, DType::F16),
        Dtype::F16 => (stored, DType::F16),
        Dtype::BF16 => (stored, DType::BF16),
        Dtype::F32 => (stored, DType::F32),
        Dtype::F64 => (stored, DType::F64),
        Dtype::F8_E8M0 => (stored, DType::F8E8M0),
        Dtype::F4 => (stored, DType::F4),
        Dtype::F6_E2M3 => (stored, DType::F6E2M3),
        Dtype::F6_E3M2 => (stored, DType::F6E3M2),
        Dtype::C64 if complex_pairs => (stored, DType::F32),
        // `C64`, and whatever the format may get.
        _ => return None,
    };
    Some(Target { read_as, dtype, pairs: stored == Dtype::C64 })
}

/// Whether a request for `to` gets the stored bits, not the values: integers of one width, as Candle's own
/// casts, which are Rust's `as`, give them, and the codes of 8-bit floats.
pub(crate) fn keeps_bits(from: Dtype, to: Dtype) -> bool {
    match from {
        Dtype::I8 | Dtype::F8_E4M3 | Dtype::F8_E5M2 => to == Dtype::U8,
        Dtype::F8_E4M3FNUZ | Dtype::F8_E5M2FNUZ | Dtype::F8_E8M0 => to == Dtype::U8,
        Dtype::U16 => to == Dtype::I16,
        Dtype::I32 => to == Dtype::U32,
        Dtype::U32 => to == Dtype::I32,
        Dtype::U64 => to == Dtype::I64,
        _ => false,
    }
}

/// What Candle calls the elements of an entry that is read as it is placed, their number (of packed ones:
/// bytes), and their shape.
#[cfg(any(feature = "cuda", feature = "metal"))]
pub(crate) fn layout_of(entry: &weighbridge::Entry) -> Result<(DType, usize, Shape)> {
    let target = default_target(entry.dtype(), true).filter(|target| target.read_as == entry.dtype());
    let target = target.ok_or_else(|| Error::new(ErrorKind::Internal, "Candle has no such dtype"))?;
    let elements = entry.byte_len() / target.dtype.size_in_bytes().max(1) as u64;
    let elements = usize::try_from(elements)
        .map_err(|_| Error::new(ErrorKind::Memory, "it does not fit this machine's address space"))?;
    Ok((target.dtype, elements, target.shape(entry.shape())))
}

fn refusal(stored: Dtype) -> Error {
    let message = match stored {
        Dtype::C64 => {
            "Candle has no C64; `Loader::complex_pairs()` loads it as F32 with a last dimension of 2 (real, \
             imaginary)"
                .to_owned()
        }
        other => format!("Candle has no {other}"),
    };
    Error::new(ErrorKind::Dtype, message)
}

/// What a Candle dtype is stored as. `None` for what Candle may get and the format does not have.
pub fn to_stored(dtype: DType) -> Option<Dtype> {
    Some(match dtype {
        DType::U8 => Dtype::U8,
        DType::U32 => Dtype::U32,
        DType::I16 => Dtype::I16,
        DType::I32 => Dtype::I32,
        DType::I64 => Dtype::I64,
        DType::BF16 => Dtype::BF16,
        DType::F16 => Dtype::F16,
        DType::F32 => Dtype::F32,
        DType::F64 => Dtype::F64,
        DType::F8E4M3 => Dtype::F8_E4M3,
        DType::F6E2M3 => Dtype::F6_E2M3,
        DType::F6E3M2 => Dtype::F6_E3M2,
        DType::F4 => Dtype::F4,
        DType::F8E8M0 => Dtype::F8_E8M0,
        _ => return None,
    })
}

/// What `dtype` becomes in Candle when nothing else is asked for; `None` where Candle cannot hold it.
pub fn from_stored(dtype: Dtype) -> Option<DType> {
    default_target(dtype, false).map(|target| target.dtype)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_dtype_has_its_row() {
        for stored in Dtype::all() {
            match target_elsewhere(stored, None, false) {
                Ok(target) => assert_eq!(Some(target.dtype), from_stored(stored)),
                Err(error) => {
                    assert_eq!(stored, Dtype::C64);
                    assert!(error.to_string().contains("complex_pairs"), "{error}");
                }
            }
        }
        assert_eq!(target_elsewhere(Dtype::C64, None, true).unwrap().dtype, DType::F32);
    }

    #[test]
    fn requests() {
        for stored in Dtype::all() {
            let raw = matches!(stored, Dtype::F6_E2M3 | Dtype::F6_E3M2 | Dtype::C64);
            for requested in [DType::F32, DType::BF16, DType::F16, DType::I64, DType::U8, DType::F8E4M3] {
                let target = target_elsewhere(stored, Some(requested), false);
                assert_eq!(target.is_err(), raw, "{stored} as {requested:?}");
                assert!(target.is_err() || target.unwrap().dtype == requested);
            }
        }
        let error = target_elsewhere(Dtype::F6_E2M3, Some(DType::F32), false).unwrap_err();
        assert!(error.to_string().contains("without a dtype to get F6E2M3"), "{error}");
        assert!(target_elsewhere(Dtype::F4, Some(DType::F4), false).is_ok());
    }
}
