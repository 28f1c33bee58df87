//! What the elements of a dataset are, from its datatype as it is in the file: only numbers whose bits are exactly those of
//! a dtype are read.

use weighbridge::Dtype;

/// What elements are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Elements {
    Numbers(Numbers),
    Text,
    /// What safetensors cannot hold.
    Other(String),
}

/// Numbers as safetensors has them, or pairs of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Numbers {
    pub(super) dtype: Dtype,
    /// Whether their bytes stand the other way round.
    pub(super) big: bool,
    /// The complex numbers that they are the parts of, if safetensors does not have these.
    pub(super) pair: Option<&'static str>,
    /// Whether the file does not say that they are these.
    pub(super) guessed: bool,
}

impl Elements {
    fn plain(dtype: Dtype, big: bool) -> Self {
        Self::Numbers(Numbers { dtype, big, pair: None, guessed: false })
    }
}

impl Numbers {
    /// Bytes of an element.
    pub(super) fn width(self) -> usize {
        self.dtype.bits() as usize / 8 * if self.pair.is_some() { 2 } else { 1 }
    }
}

/// A datatype: class, flags, size, and what follows.
struct Datatype<'b> {
    class: u8,
    version: u8,
    flags: u32,
    size: u32,
    rest: &'b [u8],
}

impl<'b> Datatype<'b> {
    fn of(message: &'b [u8]) -> Option<Self> {
        let (&[first, a, b, c, s0, s1, s2, s3], rest) = message.split_first_chunk::<8>()?;
        let (flags, size) = (u32::from_le_bytes([a, b, c, 0]), u32::from_le_bytes([s0, s1, s2, s3]));
        Some(Self { class: first & 15, version: first >> 4, flags, size, rest })
    }
}

/// What a datatype is. `named` is what an attribute beside the data says, as Keras writes it for bfloat16.
pub(super) fn elements(message: &[u8], named: Option<&str>) -> Elements {
    let other = |what: &str| Elements::Other(what.to_owned());
    let Some(datatype) = Datatype::of(message) else { return other("a datatype that is cut off") };
    match datatype.class {
        0 => integer(&datatype, named),
        1 => float(&datatype),
        2 => other("times"),
        3 => Elements::Text,
        4 => other("bit fields"),
        5 => opaque(&datatype, named),
        6 => compound(&datatype),
        7 => other("references"),
        8 => enumeration(&datatype),
        9 if datatype.flags & 15 == 1 => Elements::Text,
        9 => other("sequences of any length"),
        10 => other("arrays as elements"),
        class => Elements::Other(format!("of the unknown HDF5 datatype class {class}")),
    }
}

/// Offset and number of the bits that count.
fn bits(rest: &[u8]) -> Option<(u16, u16)> {
    let &[o0, o1, p0, p1] = rest.first_chunk()?;
    Some((u16::from_le_bytes([o0, o1]), u16::from_le_bytes([p0, p1])))
}

fn integer(datatype: &Datatype<'_>, named: Option<&str>) -> Elements {
    let (big, signed) = (datatype.flags & 1 == 1, datatype.flags & 8 == 8);
    let (offset, precision) = bits(datatype.rest).unwrap_or_default();
    let size = datatype.size;
    if offset != 0 || u32::from(precision) != size.saturating_mul(8) {
        let what = format!("integers of {precision} bits from bit {offset} on, in {size} bytes");
        return Elements::Other(what);
    }
    Elements::plain(
        match (size, signed) {
            (2, _) if named == Some("bfloat16") => Dtype::BF16,
            (1, true) => Dtype::I8,
            (1, false) => Dtype::U8,
            (2, true) => Dtype::I16,
            (2, false) => Dtype::U16,
            (4, true) => Dtype::I32,
            (4, false) => Dtype::U32,
            (8, true) => Dtype::I64,
            (8, false) => Dtype::U64,
            _ => return Elements::Other(format!("integers of {size} bytes")),
        },
        big,
    )
}

/// Which floats these are: the places of sign, exponent and mantissa say it.
fn float(datatype: &Datatype<'_>) -> Elements {
    let size = datatype.size;
    let (offset, precision) = bits(datatype.rest).unwrap_or_default();
    let other =
        || Elements::Other(format!("floats of {precision} bits in a form of their own, in {size} bytes"));
    let Some(&[exponent_at, exponent, mantissa_at, mantissa, b0, b1, b2, b3]) =
        datatype.rest.get(4..).and_then(<[u8]>::first_chunk)
    else {
        return other();
    };
    let bias = u32::from_le_bytes([b0, b1, b2, b3]);
    let (order, normal, sign_at) =
        (datatype.flags & 0x41, datatype.flags >> 4 & 3, datatype.flags >> 8 & 0xFF);
    // The mantissa is lowest, then the exponent, then the sign; the first bit of the mantissa is implied.
    let usual = offset == 0
        && u32::from(precision) == size.saturating_mul(8)
        && mantissa_at == 0
        && exponent_at == mantissa
        && sign_at + 1 == u32::from(precision)
        && normal == 2
        && order < 2;
    let dtype = match (size, exponent, mantissa, bias) {
        (8, 11, 52, 1023) => Dtype::F64,
        (4, 8, 23, 127) => Dtype::F32,
        (2, 8, 7, 127) => Dtype::BF16,
        (2, 5, 10, 15) => Dtype::F16,
        (1, 4, 3, 7) => Dtype::F8_E4M3,
        (1, 5, 2, 15) => Dtype::F8_E5M2,
        _ => return other(),
    };
    if usual { Elements::plain(dtype, order == 1) } else { other() }
}

/// Raw bytes. h5py makes them of the bfloat16 of `ml_dtypes`, and says nothing.
fn opaque(datatype: &Datatype<'_>, named: Option<&str>) -> Elements {
    let size = datatype.size;
    let tag = datatype.rest.get(..(datatype.flags & 0xFF) as usize).unwrap_or_default();
    let tag = std::str::from_utf8(tag).unwrap_or("?").trim_end_matches('\0');
    let known = match (size, named) {
        (2, Some("bfloat16")) => Some(Dtype::BF16),
        (1, Some("float8_e4m3fn")) => Some(Dtype::F8_E4M3),
        (1, Some("float8_e5m2")) => Some(Dtype::F8_E5M2),
        _ => None,
    };
    if let Some(dtype) = known {
        return Elements::plain(dtype, false);
    }
    match (size, tag) {
        (2, "" | "bfloat16") => {
            Elements::Numbers(Numbers { dtype: Dtype::BF16, big: false, pair: None, guessed: true })
        }
        (_, "") => Elements::Other(format!("raw bytes, {size} to an element")),
        _ => Elements::Other(format!("raw bytes with the tag {tag:?}")),
    }
}

/// Complex numbers, which are compounds of two floats.
fn compound(datatype: &Datatype<'_>) -> Elements {
    let other = || Elements::Other("compounds of several values".to_owned());
    if datatype.flags & 0xFFFF != 2 {
        return other();
    }
    let half = datatype.size / 2;
    let parts = || {
        let (name, real, rest) = member(datatype, datatype.rest, 0)?;
        matches!(name, b"r" | b"real").then_some(())?;
        let (name, imaginary, _) = member(datatype, rest, half)?;
        (matches!(name, b"i" | b"imag") && real == imaginary && half * 2 == datatype.size).then_some(real)
    };
    match parts() {
        Some(Numbers { dtype: Dtype::F32, big, .. }) => Elements::plain(Dtype::C64, big),
        Some(part @ Numbers { dtype: Dtype::F64, .. }) => {
            Elements::Numbers(Numbers { pair: Some("complex128"), ..part })
        }
        Some(part @ Numbers { dtype: Dtype::F16, .. }) => {
            Elements::Numbers(Numbers { pair: Some("complex32"), ..part })
        }
        _ => other(),
    }
}

/// The name of a compound's next member, which must be a float at a place, and what follows it.
fn member<'b>(compound: &Datatype<'b>, bytes: &'b [u8], place: u32) -> Option<(&'b [u8], Numbers, &'b [u8])> {
    let end = bytes.iter().position(|&byte| byte == 0)?;
    let (name, padded) = (&bytes[..end], (end + 1).next_multiple_of(8));
    let mut rest = bytes.get(if compound.version < 3 { padded } else { end + 1 }..)?;
    // From version 3 on the place has as many bytes as the size of all needs.
    let width = if compound.version < 3 { 4 } else { (compound.size.max(1).ilog2() / 8 + 1) as usize };
    let found = rest.get(..width)?.iter().rev().fold(0_u64, |place, &byte| place << 8 | u64::from(byte));
    rest = rest.get(width..)?;
    if compound.version == 1 {
        // Dimensions, of which there must be none.
        (*rest.first()? == 0).then_some(())?;
        rest = rest.get(28..)?;
    }
    let datatype = Datatype::of(rest)?;
    let numbers = match (datatype.class, float(&datatype)) {
        (1, Elements::Numbers(numbers)) if found == u64::from(place) => numbers,
        _ => return None,
    };
    Some((name, numbers, rest.get(20..)?))
}

/// Truth values, which h5py makes an enumeration of.
fn enumeration(datatype: &Datatype<'_>) -> Elements {
    let truth = || {
        let base = Datatype::of(datatype.rest)?;
        let members = base.rest.get(4..)?;
        let whole = base.class == 0 && base.size == 1 && bits(base.rest)? == (0, 8);
        (whole && datatype.flags & 0xFFFF == 2).then_some(())?;
        // Two names, padded in old files, and two values.
        let names: [&[u8]; 2] = match datatype.version {
            0..3 => [b"FALSE\0\0\0", b"TRUE\0\0\0\0"],
            _ => [b"FALSE\0", b"TRUE\0"],
        };
        members.starts_with(&[names[0], names[1], &[0, 1]].concat()).then_some(())
    };
    match truth() {
        Some(()) => Elements::plain(Dtype::Bool, false),
        None => Elements::Other("an enumeration".to_owned()),
    }
}
