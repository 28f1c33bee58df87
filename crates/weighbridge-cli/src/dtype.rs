//! Names of dtypes on the command line.

use weighbridge::Dtype;

/// Reads the name of a dtype: the format's, in any case, or PyTorch's.
pub(crate) fn parse_dtype(text: &str) -> Result<Dtype, String> {
    let torch = match text {
        "float64" | "double" => Some(Dtype::F64),
        "float32" | "float" => Some(Dtype::F32),
        "float16" | "half" => Some(Dtype::F16),
        "bfloat16" => Some(Dtype::BF16),
        "float8_e4m3fn" => Some(Dtype::F8_E4M3),
        "float8_e5m2" => Some(Dtype::F8_E5M2),
        "float8_e4m3fnuz" => Some(Dtype::F8_E4M3FNUZ),
        "float8_e5m2fnuz" => Some(Dtype::F8_E5M2FNUZ),
        "float8_e8m0fnu" => Some(Dtype::F8_E8M0),
        "int8" => Some(Dtype::I8),
        "int16" => Some(Dtype::I16),
        "int32" => Some(Dtype::I32),
        "int64" => Some(Dtype::I64),
        "uint8" => Some(Dtype::U8),
        "uint16" => Some(Dtype::U16),
        "uint32" => Some(Dtype::U32),
        "uint64" => Some(Dtype::U64),
        _ => None,
    };
    torch.or_else(|| text.to_ascii_uppercase().parse().ok()).ok_or_else(|| {
        let known: Vec<_> = Dtype::all().map(Dtype::name).collect();
        format!("no dtype has that name; known are {}", known.join(", "))
    })
}

/// The same of a dtype that weights are made in.
pub(crate) fn parse_weight_dtype(text: &str) -> Result<Dtype, String> {
    let dtype = parse_dtype(text)?;
    match dtype {
        Dtype::BF16 | Dtype::F16 | Dtype::F32 => Ok(dtype),
        _ => Err("weights become BF16, F16 or F32; `weighbridge cast` casts to other dtypes".to_owned()),
    }
}

/// Whether the values of a dtype can be looked at: those of 6 bits have no agreed packing.
pub(crate) fn can_read(dtype: Dtype) -> bool {
    weighbridge_page::Count::can_read(dtype)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_read_in_any_case() {
        for dtype in Dtype::all() {
            assert_eq!(parse_dtype(dtype.name()), Ok(dtype));
            assert_eq!(parse_dtype(&dtype.name().to_ascii_lowercase()), Ok(dtype));
        }
        assert_eq!(parse_dtype("bfloat16"), Ok(Dtype::BF16));
        assert_eq!(parse_dtype("float8_e4m3fn"), Ok(Dtype::F8_E4M3));
        assert!(parse_dtype("fp12").is_err());
    }
}
