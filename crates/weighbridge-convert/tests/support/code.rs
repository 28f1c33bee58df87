//! The opcodes of values in pickles.

/// The opcodes of a value.
pub(crate) type Code = Vec<u8>;

pub(crate) fn text(text: &str) -> Code {
    [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
}

pub(crate) fn int(value: u8) -> Code {
    vec![b'K', value]
}

pub(crate) fn float(value: f64) -> Code {
    [b"G", &value.to_be_bytes()[..]].concat()
}

pub(crate) fn of(open: &[u8], items: &[Code], close: &[u8]) -> Code {
    [open, &items.concat(), close].concat()
}

pub(crate) fn tuple(items: &[Code]) -> Code {
    of(b"(", items, b"t")
}

pub(crate) fn list(items: &[Code]) -> Code {
    of(b"](", items, b"e")
}

pub(crate) fn dict(pairs: &[(Code, Code)]) -> Code {
    let pairs: Vec<Code> = pairs.iter().map(|(key, value)| [&key[..], value].concat()).collect();
    of(b"}(", &pairs, b"u")
}

pub(crate) fn global(module: &str, name: &str) -> Code {
    format!("c{module}\n{name}\n").into_bytes()
}

/// An array of one byte, which names it.
pub(crate) fn tensor(value: u8) -> Code {
    let dtype = [global("numpy", "dtype"), text("u1"), b"\x85R".to_vec()].concat();
    let args = tuple(&[vec![b'C', 1, value], dtype, [int(1), vec![0x85]].concat(), text("C")]);
    [global("numpy._core.numeric", "_frombuffer"), args, b"R".to_vec()].concat()
}

/// A tensor that cannot be converted.
pub(crate) fn sparse() -> Code {
    [global("torch._utils", "_rebuild_sparse_tensor"), b")R".to_vec()].concat()
}

/// An object, by `NEWOBJ`, and what is done to it then.
pub(crate) fn object(class: &str, args: &[Code], then: &[Code]) -> Code {
    [global("my.module", class), tuple(args), vec![0x81], then.concat()].concat()
}
