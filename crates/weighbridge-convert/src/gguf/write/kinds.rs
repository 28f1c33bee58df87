//! Which type each tensor gets.

use weighbridge::{Dtype, Entry, Error, ErrorKind, Result};

use super::super::encode::{self, Encoder};

/// The type of the large tensors of a file.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Type {
    /// Floats of 32 bits.
    F32,
    /// Floats of 16 bits.
    F16,
    /// The upper half of `F32`.
    BF16,
    /// 8 bits with a scale for each 32 values.
    Q8_0,
    /// 4 bits with a scale for each 32 values.
    Q4_0,
    /// 4 bits with a scale and a least value for each 32.
    Q4_1,
    /// 5 bits with a scale for each 32 values.
    Q5_0,
    /// 5 bits with a scale and a least value for each 32.
    Q5_1,
    /// 4 bits with scales and least values of 6 bits for each 32, in blocks of 256.
    Q4_K,
    /// 5 bits, otherwise as `Q4_K`.
    Q5_K,
    /// 6 bits with scales of 8 bits for each 16 values, in blocks of 256.
    Q6_K,
}

impl Type {
    /// As llama.cpp writes it: `Q4_K`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q4_K => "Q4_K",
            Self::Q5_K => "Q5_K",
            Self::Q6_K => "Q6_K",
        }
    }

    /// The number of the type in a file.
    fn id(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q5_0 => 6,
            Self::Q5_1 => 7,
            Self::Q8_0 => 8,
            Self::Q4_K => 12,
            Self::Q5_K => 13,
            Self::Q6_K => 14,
            Self::BF16 => 30,
        }
    }

    /// What `general.file_type` says of a file in which most tensors have the type.
    pub(super) fn file_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q8_0 => 7,
            Self::Q5_0 => 8,
            Self::Q5_1 => 9,
            Self::Q4_K => 14,
            Self::Q5_K => 16,
            Self::Q6_K => 18,
            Self::BF16 => 32,
        }
    }

    /// How blocks are made, if there are any.
    fn encoder(self) -> Option<Encoder> {
        let by = |values, bytes, encode| Some(Encoder { values, bytes, encode });
        match self {
            Self::F32 | Self::F16 | Self::BF16 => None,
            Self::Q8_0 => by(32, 34, encode::q8_0),
            Self::Q4_0 => by(32, 18, encode::q4_0),
            Self::Q4_1 => by(32, 20, encode::q4_1),
            Self::Q5_0 => by(32, 22, encode::q5_0),
            Self::Q5_1 => by(32, 24, encode::q5_1),
            Self::Q4_K => by(256, 144, encode::q4_k),
            Self::Q5_K => by(256, 176, encode::q5_k),
            Self::Q6_K => by(256, 210, encode::q6_k),
        }
    }

    pub(super) fn is_quantised(self) -> bool {
        self.encoder().is_some()
    }

    /// What llama.cpp gives to a tensor whose rows do not divide into blocks.
    fn larger(self) -> Self {
        match self {
            Self::Q4_K => Self::Q5_0,
            Self::Q5_K => Self::Q5_1,
            Self::Q6_K => Self::Q8_0,
            _ => Self::F16,
        }
    }
}

/// How a tensor is stored.
#[derive(Clone, Copy)]
pub(super) enum Stored {
    /// Numbers of a dtype, with the number of their type.
    Plain(u32, Dtype),
    Blocks(Type, Encoder),
}

impl Stored {
    pub(super) fn of(entry: &Entry, kind: Option<Type>) -> Result<Self> {
        let Some(kind) = kind.filter(|_| entry.dtype().is_float()) else {
            return Self::plain(entry.dtype());
        };
        if entry.shape().len() < 2 || is_router(entry.name()) {
            return Ok(Self::Plain(Type::F32.id(), Dtype::F32));
        }
        Ok(Self::fitting(kind, entry.shape()))
    }

    /// Of that type, or the first larger one whose blocks rows divide into.
    fn fitting(mut kind: Type, shape: &[usize]) -> Self {
        let row = shape.last().copied().unwrap_or(1);
        loop {
            let dtype = match (kind, kind.encoder()) {
                (_, Some(encoder)) if row % encoder.values == 0 => return Self::Blocks(kind, encoder),
                (_, Some(_)) => {
                    kind = kind.larger();
                    continue;
                }
                (Type::F32, None) => Dtype::F32,
                (Type::BF16, None) => Dtype::BF16,
                (_, None) => Dtype::F16,
            };
            return Self::Plain(kind.id(), dtype);
        }
    }

    /// A dtype as it is.
    fn plain(dtype: Dtype) -> Result<Self> {
        let id = match dtype {
            Dtype::F32 => 0,
            Dtype::F16 => 1,
            Dtype::I8 => 24,
            Dtype::I16 => 25,
            Dtype::I32 => 26,
            Dtype::I64 => 27,
            Dtype::F64 => 28,
            Dtype::BF16 => 30,
            _ => {
                let message = format!("GGUF has no {dtype}; cast it to one that it has, such as F32");
                return Err(Error::new(ErrorKind::Dtype, message));
            }
        };
        Ok(Self::Plain(id, dtype))
    }

    /// The number of its type.
    pub(super) fn id(self) -> u32 {
        match self {
            Self::Plain(id, _) => id,
            Self::Blocks(kind, _) => kind.id(),
        }
    }

    /// What is to be said where a matrix got another type than was asked for.
    pub(super) fn instead_of(self, kind: Type, entry: &Entry) -> Option<String> {
        let is_other = entry.dtype().is_float() && entry.shape().len() >= 2 && self.id() != kind.id();
        let name = match self {
            Self::Plain(_, dtype) => dtype.name(),
            Self::Blocks(kind, _) => kind.name(),
        };
        let why = match is_router(entry.name()) {
            true => "routers are not quantised".to_owned(),
            false => format!("its rows of {} are no whole blocks", entry.shape().last().unwrap_or(&1)),
        };
        is_other.then(|| format!("{name} instead of {}: {why}", kind.name()))
    }
}

/// Whether a tensor chooses experts, in the names of transformers or of llama.cpp.
fn is_router(name: &str) -> bool {
    let module = name.strip_suffix(".weight").unwrap_or(name);
    let last = module.rsplit('.').next().unwrap_or(module);
    matches!(last, "gate" | "router" | "shared_expert_gate" | "ffn_gate_inp" | "ffn_gate_inp_shexp")
}
