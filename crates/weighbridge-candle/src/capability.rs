//! What Metal can do with each of Candle's dtypes: plain data, so that it is tested wherever it compiles.
//!
//! | | |
//! |---|---|
//! | `U8` `U32` `I64` `F16` `BF16` `F32` | Candle's kernels compute with them |
//! | `I16` `I32` | kept only: they come as `I64` |
//! | `F8E4M3` | kept only: it comes as `F16`, which holds it exactly |
//! | `F8E8M0` | cannot be read back: it comes as `F32`, which holds it exactly |
//! | `F64` | kept only, and nothing else holds it: an error, unless another dtype is asked for |
//! | `F4` `F6E2M3` `F6E3M2` | cannot be read back: an error |
//!
//! A dtype that Metal only keeps is given to whoever asks for it. All casts are made by the reader threads:
//! Candle's own exist on Metal among the first six only, and take memory from a pool that hands out powers of
//! two, up to twice as much as is needed.

use candle_core::DType;

/// What becomes of a dtype on Metal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnMetal {
    Computes,
    /// It is kept; as it was stored, it comes as another one that holds all of its values.
    Kept(DType),
    /// As [`Kept`](Self::Kept), but cannot be asked for.
    Becomes(DType),
    /// It is kept, and no other holds all of its values.
    KeptIfAsked,
    Refused,
}

pub(crate) fn on_metal(dtype: DType) -> OnMetal {
    match dtype {
        DType::U8 | DType::U32 | DType::I64 | DType::F16 | DType::BF16 | DType::F32 => OnMetal::Computes,
        DType::I16 | DType::I32 => OnMetal::Kept(DType::I64),
        DType::F8E4M3 => OnMetal::Kept(DType::F16),
        DType::F8E8M0 => OnMetal::Becomes(DType::F32),
        DType::F64 => OnMetal::KeptIfAsked,
        // The packed ones, and what Candle may get.
        _ => OnMetal::Refused,
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;
    use weighbridge::Dtype;
    use weighbridge::plan::Cast;

    use super::*;
    use crate::dtype::{from_stored, target_on, to_stored};

    fn metal(stored: Dtype, requested: Option<DType>) -> Result<DType, String> {
        target_on(true, stored, requested, false).map(|target| target.dtype).map_err(|e| e.to_string())
    }

    #[test]
    fn stored_dtypes_arrive_as_one_that_computes_or_not_at_all() {
        let mut refused = Vec::new();
        for stored in Dtype::all() {
            match metal(stored, None) {
                Ok(dtype) => {
                    assert_eq!(on_metal(dtype), OnMetal::Computes, "{stored}");
                    let made = to_stored(dtype).unwrap();
                    assert!(Some(dtype) == from_stored(stored) || Cast::exists(stored, made), "{stored}");
                }
                Err(error) => {
                    assert!(error.contains("Metal") || stored == Dtype::C64, "{error}");
                    refused.push(stored);
                }
            }
        }
        refused.sort_unstable_by_key(ToString::to_string);
        assert_eq!(refused, [Dtype::C64, Dtype::F4, Dtype::F64, Dtype::F6_E2M3, Dtype::F6_E3M2]);
    }

    #[test]
    fn the_table() {
        assert_eq!(metal(Dtype::I8, None).unwrap(), DType::I64);
        assert_eq!(metal(Dtype::I16, None).unwrap(), DType::I64);
        assert_eq!(metal(Dtype::I32, None).unwrap(), DType::I64);
        assert_eq!(metal(Dtype::U16, None).unwrap(), DType::U32);
        assert_eq!(metal(Dtype::U64, None).unwrap(), DType::I64);
        assert_eq!(metal(Dtype::F8_E4M3, None).unwrap(), DType::F16);
        assert_eq!(metal(Dtype::F8_E8M0, None).unwrap(), DType::F32);
        assert_eq!(metal(Dtype::BF16, None).unwrap(), DType::BF16);
        assert!(metal(Dtype::F64, None).unwrap_err().contains("DType::F32"));
        assert_eq!(metal(Dtype::F64, Some(DType::F32)).unwrap(), DType::F32);
        // As they are, for who asks.
        assert_eq!(metal(Dtype::F64, Some(DType::F64)).unwrap(), DType::F64);
        assert_eq!(metal(Dtype::I32, Some(DType::I32)).unwrap(), DType::I32);
        assert!(metal(Dtype::F8_E8M0, Some(DType::F8E8M0)).is_err());
        assert!(metal(Dtype::F4, Some(DType::F4)).is_err());
    }
}
