//! How NumPy and ml_dtypes spell element types, and what they are in safetensors.

use weighbridge::Dtype;

/// An element type that safetensors has, be it as two values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    /// The shortest of its names, without a byte order: `f4`.
    pub(crate) name: &'static str,
    pub(crate) dtype: Dtype,
    /// Whether two values of the dtype are one element: complex numbers of double precision.
    pub(crate) pair: bool,
}

/// Everything that `numpy.dtype` takes for a plain type, ml_dtypes imported. What differs from one machine to another is as
/// on Linux with 64 bits.
const KNOWN: [(&str, Dtype, bool, &[&str]); 20] = [
    ("b1", Dtype::Bool, false, &["?", "bool", "bool_", "bool8"]),
    ("i1", Dtype::I8, false, &["b", "int8", "byte"]),
    ("u1", Dtype::U8, false, &["B", "uint8", "ubyte"]),
    ("i2", Dtype::I16, false, &["h", "int16", "short"]),
    ("u2", Dtype::U16, false, &["H", "uint16", "ushort"]),
    ("i4", Dtype::I32, false, &["i", "int32", "intc"]),
    ("u4", Dtype::U32, false, &["I", "uint32", "uintc"]),
    (
        "i8",
        Dtype::I64,
        false,
        &["l", "q", "n", "p", "int64", "long", "longlong", "intp", "int_", "int", "int0"],
    ),
    (
        "u8",
        Dtype::U64,
        false,
        &["L", "Q", "N", "P", "uint64", "ulong", "ulonglong", "uintp", "uint", "uint0"],
    ),
    ("f2", Dtype::F16, false, &["e", "float16", "half"]),
    ("f4", Dtype::F32, false, &["f", "float32", "single"]),
    ("f8", Dtype::F64, false, &["d", "float64", "double", "float", "float_"]),
    ("c8", Dtype::C64, false, &["F", "complex64", "csingle", "singlecomplex"]),
    ("c16", Dtype::F64, true, &["D", "complex128", "cdouble", "complex", "complex_", "cfloat"]),
    ("bfloat16", Dtype::BF16, false, &[]),
    ("float8_e4m3fn", Dtype::F8_E4M3, false, &[]),
    ("float8_e4m3fnuz", Dtype::F8_E4M3FNUZ, false, &[]),
    // The only type of ml_dtypes that `numpy.save` gives a code of its own.
    ("float8_e5m2", Dtype::F8_E5M2, false, &["f1"]),
    ("float8_e5m2fnuz", Dtype::F8_E5M2FNUZ, false, &[]),
    ("float8_e8m0fnu", Dtype::F8_E8M0, false, &[]),
];

/// By any of its names, without a byte order.
pub(crate) fn named(name: &str) -> Option<Known> {
    let row = KNOWN.iter().find(|row| row.0 == name || row.3.contains(&name))?;
    Some(Known { name: row.0, dtype: row.1, pair: row.2 })
}

/// A type as a file has it, and whether its numbers are big-endian. The machine's own order is little-endian.
pub(crate) fn spelled(descr: &str) -> Option<(Known, bool)> {
    let bare = descr.strip_prefix(['<', '>', '=', '|']).unwrap_or(descr);
    // NumPy gives orders to codes only: `>f4`, not `>float32`.
    let is_code = bare.len() == 1 || bare.bytes().skip(1).all(|byte| byte.is_ascii_digit());
    if bare.len() != descr.len() && !is_code {
        return None;
    }
    Some((named(bare)?, descr.starts_with('>')))
}

/// The bytes of an element, also of a type that safetensors does not have; `None` for objects, and for what is not a code.
pub(super) fn width(descr: &str) -> Option<u64> {
    if let Some((known, _)) = spelled(descr) {
        return Some(u64::from(known.dtype.bits() / 8) << u32::from(known.pair));
    }
    let bare = descr.strip_prefix(['<', '>', '=', '|']).unwrap_or(descr);
    let kind = bare.chars().next()?;
    let count = bare[kind.len_utf8()..].split('[').next()?.parse::<u64>().ok()?;
    match kind {
        'U' => count.checked_mul(4),
        'S' | 'a' | 'V' | 'M' | 'm' | 'c' | 'f' => Some(count),
        _ => None,
    }
}

/// An array of a type that safetensors does not have, and what to do about it.
pub(crate) fn unheld(descr: &str) -> String {
    let bare = descr.strip_prefix(['<', '>', '=', '|']).unwrap_or(descr);
    let word: String = bare.chars().take_while(|char| char.is_alphabetic()).collect();
    let why = match (&*word, bare) {
        _ if bare.contains([',', '(']) || bare.starts_with(|char: char| char.is_ascii_digit()) => {
            "structured: save each of its fields as an array of its own"
        }
        ("O" | "object" | "object_", _) => "Python objects, which are a pickle: save numbers",
        ("V" | "void", _) => {
            "raw bytes: what dtype they had, bfloat16 say, is not in the file; save them as float32"
        }
        ("U" | "S" | "a" | "T" | "str" | "str_" | "bytes" | "bytes_" | "unicode", _) | (_, "c") => "text",
        ("M" | "m" | "datetime" | "timedelta", _) => "times: save them as int64",
        ("D" | "G" | "complex" | "cdouble" | "clongdouble" | "bcomplex", _) | (_, "c16" | "c32") => {
            "complex numbers: save them as complex64"
        }
        ("g" | "longdouble", _) | (_, "f12" | "f16" | "float96" | "float128") => {
            "floats of more than 64 bits: save them as float64"
        }
        (_, "int1" | "uint1" | "int2" | "uint2" | "int4" | "uint4") => {
            "integers of less than a byte, one to a byte: save them as int8"
        }
        ("float", _) if bare.contains("_e") => "a float that only ml_dtypes has: save it as float32",
        _ => "nothing that NumPy or ml_dtypes knows",
    };
    let start: String = descr.chars().take(32).collect();
    format!("an array of dtype {start:?} ({why})")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `numpy.dtype(x).str` of NumPy 2.4 on Linux with 64 bits.
    #[test]
    fn is_what_numpy_says() {
        let cases = "? b1, bool b1, bool_ b1, b i1, byte i1, int8 i1, B u1, ubyte u1, uint8 u1, h i2, short i2, int16 i2, H u2, \
             ushort u2, uint16 u2, i i4, intc i4, int32 i4, I u4, uintc u4, uint32 u4, l i8, q i8, n i8, p i8, int i8, \
             int_ i8, int64 i8, long i8, longlong i8, intp i8, L u8, Q u8, N u8, P u8, uint u8, uint64 u8, ulong u8, \
             ulonglong u8, uintp u8, e f2, half f2, float16 f2, f f4, single f4, float32 f4, d f8, double f8, float f8, \
             float64 f8, F c8, csingle c8, complex64 c8, D c16, cdouble c16, complex c16, complex128 c16";
        for case in cases.split(", ") {
            let (name, code) = case.split_once(' ').unwrap();
            assert_eq!(spelled(name), spelled(code), "{case}");
            assert_eq!(spelled(code).unwrap().0.name, code);
            let is_code = name.len() == 1;
            assert_eq!(spelled(&format!(">{name}")).map(|it| it.1), is_code.then_some(true), "{case}");
            assert_eq!(spelled(&format!("={name}")).map(|it| it.1), is_code.then_some(false), "{case}");
            assert_eq!(spelled(&format!("|{code}")), Some((named(name).unwrap(), false)), "{case}");
        }
        for name in ["", "<", "F4", "f4 ", "f32", "u", "b2", "O", "V2", "c", "a", ">bfloat16", "<<f4", "int4"]
        {
            assert_eq!(spelled(name), None, "{name}");
        }
    }

    #[test]
    fn objects_have_no_width() {
        for (descr, expected) in [
            ("<f4", Some(4)),
            ("<c16", Some(16)),
            ("<U4", Some(16)),
            ("|S3", Some(3)),
            ("|V2", Some(2)),
            ("<M8[ns]", Some(8)),
            ("<f16", Some(16)),
            ("bfloat16", Some(2)),
            ("|O", None),
            ("O8", None),
            ("object", None),
            ("U", None),
            ("<U99999999999999999999", None),
            ("<U9999999999999999999", None),
            ("", None),
        ] {
            assert_eq!(width(descr), expected, "{descr}");
        }
    }

    #[test]
    fn refusals_say_why() {
        for (name, why) in [
            ("|O", "Python objects"),
            ("object", "Python objects"),
            ("|V2", "bfloat16"),
            ("<U3", "text"),
            ("c", "text"),
            ("<M8[ns]", "times"),
            ("timedelta64[s]", "times"),
            ("<c16", "complex64"),
            ("complex256", "complex64"),
            ("<f16", "float64"),
            ("longdouble", "float64"),
            ("int4", "int8"),
            ("float8_e4m3b11fnuz", "ml_dtypes"),
            ("float4_e2m1fn", "ml_dtypes"),
            ("f4,f4", "structured"),
            ("3f4", "structured"),
            ("float33", "nothing that NumPy"),
            ("", "nothing that NumPy"),
        ] {
            assert!(unheld(name).contains(why), "{name}: {}", unheld(name));
        }
    }
}
