//! Tensors of a record: since Burn 0.14 bytes with their dtype, before that a list of numbers.

use std::io::Write;
use std::ops::Range;
use std::sync::Arc;

use weighbridge::{Dtype, Result, Source};

use super::Reader;
use super::tree::{Kind, Node, Number, Numbers};
use crate::contents::Tensor;
use crate::cursor::{Cursor, malformed};
use crate::spool::unwritten;

/// Dimensions.
const MOST_DIMS: u64 = 64;
/// The greatest `i16`: greater numbers of 16 bits are floats.
const GREATEST_INT: i128 = 0x7FFF;

/// A tensor as a record has it.
pub(super) struct Data<'n> {
    values: Values<'n>,
    shape: &'n Node,
}

enum Values<'n> {
    /// Where the bytes are, and the dtype.
    Bytes(Range<u64>, &'n Node),
    /// The numbers, if there are any.
    Numbers(Option<&'n Numbers>),
}

impl<'n> Data<'n> {
    /// Whether a value has the fields of a tensor, and no others.
    pub(super) fn of(node: &'n Node) -> Option<Self> {
        let shape = node.entry("shape").filter(|shape| {
            matches!(shape, Node::List(dims) if dims.is_empty())
                || matches!(shape, Node::Numbers(Numbers { kind: Kind::Int(..), .. }))
        })?;
        let values = match node.entries().len() {
            3 => match (node.entry("bytes")?, node.entry("dtype")?) {
                (Node::Bytes(range), dtype) => Values::Bytes(range.clone(), dtype),
                _ => return None,
            },
            2 => match node.entry("value")? {
                Node::Numbers(numbers) => Values::Numbers(Some(numbers)),
                Node::List(nodes) if nodes.is_empty() => Values::Numbers(None),
                _ => return None,
            },
            _ => return None,
        };
        Some(Self { values, shape })
    }
}

/// The dtype of a type's name in Rust.
pub(super) fn rust_type(name: &str) -> Option<Dtype> {
    Some(match name.rsplit("::").next()? {
        "f64" => Dtype::F64,
        "f32" => Dtype::F32,
        "f16" => Dtype::F16,
        "bf16" => Dtype::BF16,
        "i64" => Dtype::I64,
        "i32" => Dtype::I32,
        "i16" => Dtype::I16,
        "i8" => Dtype::I8,
        "u64" => Dtype::U64,
        "u32" => Dtype::U32,
        "u16" => Dtype::U16,
        "u8" => Dtype::U8,
        _ => return None,
    })
}

/// The dtype of one of Burn's, or what it is that safetensors does not have.
fn dtype(node: &Node) -> std::result::Result<Dtype, String> {
    let unknown = |name: &str| format!("a tensor of Burn's dtype {name:?}");
    match node {
        Node::Text(name) => match &**name {
            "Bool" => Ok(Dtype::Bool),
            // Floats that a GPU may compute with in fewer bits; they are stored whole.
            "Flex32" => Ok(Dtype::F32),
            name => rust_type(&name.to_lowercase()).ok_or_else(|| unknown(name)),
        },
        Node::Dict(entries) => match &entries[..] {
            [(name, _)] if name.text == "QFloat" => {
                Err("a quantised tensor (QFloat; dequantise it in Burn)".to_owned())
            }
            [(name, Node::Text(store))] if name.text == "Bool" => match &**store {
                "Native" | "U8" => Ok(Dtype::Bool),
                store => Err(unknown(&format!("Bool({store})"))),
            },
            [(name, _), ..] => Err(unknown(&name.text)),
            [] => Err(unknown("")),
        },
        _ => Err(unknown("")),
    }
}

/// Whether truth values have four bytes each, as on some GPUs.
fn is_wide_bool(dtype: &Node) -> bool {
    matches!(dtype.entries(), [(name, Node::Text(store))] if name.text == "Bool" && store == "U32")
}

impl Reader<'_> {
    /// Adds a tensor.
    pub(super) fn tensor(&mut self, data: &Data<'_>) -> Result<()> {
        let name = self.name().to_owned();
        if !self.options.wants(&name) {
            self.contents.unchosen += 1;
            return Ok(());
        }
        let made = self.made(data).map_err(|error| error.in_tensor(&name))?;
        match made {
            Err(what) => self.contents.leave_out(self.options, &name, &what),
            Ok((dtype, shape, data)) => {
                self.keys.give()?;
                self.contents.tensors.push(Tensor { name, dtype, shape, data });
                Ok(())
            }
        }
    }

    #[allow(clippy::type_complexity)]
    fn made(
        &mut self,
        data: &Data<'_>,
    ) -> Result<std::result::Result<(Dtype, Vec<usize>, Arc<dyn Source>), String>> {
        let shape = self.shape(data.shape)?;
        match &data.values {
            Values::Bytes(range, node) if is_wide_bool(node) => {
                let words = Dtype::U32.size_of(&shape)?;
                let part = self.file.narrow(range.clone()).filter(|part| part.size() == words);
                let part = part
                    .ok_or_else(|| malformed(format!("Bool(U32) of shape {shape:?} needs {words} bytes")))?;
                let data = self.spool.append(words / 4, |out| {
                    let mut cursor = Cursor::new(&part, 0, words);
                    for _ in 0..words / 4 {
                        let is_true = cursor.array::<4>()? != [0; 4];
                        out.write_all(&[is_true.into()]).map_err(unwritten)?;
                    }
                    Ok(())
                })?;
                Ok(Ok((Dtype::Bool, shape, Arc::new(data))))
            }
            Values::Bytes(range, node) => {
                let dtype = match dtype(node) {
                    Ok(dtype) => dtype,
                    Err(what) => return Ok(Err(what)),
                };
                let (need, given) = (dtype.size_of(&shape)?, range.end - range.start);
                if need != given {
                    let message = format!("{dtype} of shape {shape:?} needs {need} bytes, it has {given}");
                    return Err(malformed(message));
                }
                let part = self.file.narrow(range.clone());
                let part = part.ok_or_else(|| malformed("its bytes are not in the file"))?;
                Ok(Ok((dtype, shape, Arc::new(part))))
            }
            Values::Numbers(numbers) => {
                let dtype = self.dtype_of(*numbers)?;
                let need = dtype.size_of(&shape)?;
                let width = u64::from(dtype.bits() / 8);
                let given = numbers.map_or(0, |numbers| numbers.count);
                if given.checked_mul(width) != Some(need) {
                    let message =
                        format!("{dtype} of shape {shape:?} has {} numbers, not {given}", need / width);
                    return Err(malformed(message));
                }
                let file = self.file;
                let part = self.spool.append(need, |out| match numbers {
                    None => Ok(()),
                    Some(numbers) => numbers.for_each(file, |number| {
                        let (bytes, len) = encoded(number, dtype)?;
                        out.write_all(&bytes[..len]).map_err(unwritten)
                    }),
                })?;
                Ok(Ok((dtype, shape, Arc::new(part))))
            }
        }
    }

    fn shape(&self, node: &Node) -> Result<Vec<usize>> {
        let mut shape = Vec::new();
        if let Node::Numbers(dims) = node {
            if dims.count > MOST_DIMS {
                return Err(malformed(format!("it has more than {MOST_DIMS} dimensions")));
            }
            dims.for_each(self.file, |dim| {
                let dim = match dim {
                    Number::Int(dim) => usize::try_from(dim).ok(),
                    _ => None,
                };
                shape.push(dim.ok_or_else(|| malformed("a dimension that cannot be one"))?);
                Ok(())
            })?;
        }
        Ok(shape)
    }

    /// What numbers are that have no dtype of their own. Floats of 16 bits are in a record as the integers that have the
    /// same bits.
    fn dtype_of(&mut self, numbers: Option<&Numbers>) -> Result<Dtype> {
        let said = |dtype: Option<Dtype>, what: &str| {
            dtype.ok_or_else(|| malformed(format!("the record does not say what its {what} are")))
        };
        Ok(match numbers.map(|numbers| numbers.kind) {
            None => said(self.float, "floats")?,
            Some(Kind::F32) => Dtype::F32,
            Some(Kind::F64) => Dtype::F64,
            Some(Kind::Bool) => Dtype::Bool,
            Some(Kind::Int(least, most)) => match self.float {
                Some(half @ (Dtype::F16 | Dtype::BF16)) if least >= 0 => {
                    self.ambiguous += u64::from(most <= GREATEST_INT);
                    half
                }
                _ => said(self.int, "integers")?,
            },
        })
    }
}

/// The bytes of a number, and how many they are.
fn encoded(number: Number, dtype: Dtype) -> Result<([u8; 16], usize)> {
    let mut bytes = [0; 16];
    let len = dtype.bits() as usize / 8;
    match number {
        Number::F32(value) => bytes[..4].copy_from_slice(&value.to_le_bytes()),
        Number::F64(value) => bytes[..8].copy_from_slice(&value.to_le_bytes()),
        Number::Bool(value) => bytes[0] = value.into(),
        Number::Int(value) => {
            let signed = matches!(dtype, Dtype::I8 | Dtype::I16 | Dtype::I32 | Dtype::I64);
            let bits = dtype.bits() - u32::from(signed);
            let (least, most) = (if signed { -(1_i128 << bits) } else { 0 }, (1_i128 << bits) - 1);
            if value < least || value > most {
                return Err(malformed(format!("{value} is not within {dtype}")));
            }
            bytes = value.to_le_bytes();
        }
    }
    Ok((bytes, len))
}
