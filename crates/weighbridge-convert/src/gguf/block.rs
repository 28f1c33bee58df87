//! The types of tensors: what each is called, and how many bytes a block of its values has.

use weighbridge::{BlockType, Dtype};

use super::{codebook, quants};

/// What the values of a tensor are.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    /// Numbers as safetensors has them.
    Plain(Dtype),
    /// Blocks of small numbers with a scale.
    Quantised(&'static Quant),
}

/// How blocks are stored.
pub(super) struct Quant {
    /// The number in the file.
    id: u32,
    pub(super) name: &'static str,
    /// Values in a block.
    pub(super) values: usize,
    /// Bytes of a block.
    pub(super) bytes: usize,
    /// The offsets in a block of numbers of several bytes, and their sizes: they are byte-swapped in files that
    /// are big-endian.
    pub(super) wide: &'static [(usize, usize)],
    /// Makes the values of one little-endian block.
    pub(super) decode: fn(&[u8], &mut [f32]),
}

/// Every type that is dequantised.
static QUANTS: [Quant; 26] = [
    quant(2, "Q4_0", 32, 18, &[(0, 2)], quants::q4_0),
    quant(3, "Q4_1", 32, 20, &[(0, 2), (2, 2)], quants::q4_1),
    quant(6, "Q5_0", 32, 22, &[(0, 2)], quants::q5_0),
    quant(7, "Q5_1", 32, 24, &[(0, 2), (2, 2)], quants::q5_1),
    quant(8, "Q8_0", 32, 34, &[(0, 2)], quants::q8_0),
    quant(9, "Q8_1", 32, 36, &[(0, 2), (2, 2)], quants::q8_1),
    quant(10, "Q2_K", 256, 84, &[(80, 2), (82, 2)], quants::q2_k),
    quant(11, "Q3_K", 256, 110, &[(108, 2)], quants::q3_k),
    quant(12, "Q4_K", 256, 144, &[(0, 2), (2, 2)], quants::q4_k),
    quant(13, "Q5_K", 256, 176, &[(0, 2), (2, 2)], quants::q5_k),
    quant(14, "Q6_K", 256, 210, &[(208, 2)], quants::q6_k),
    quant(15, "Q8_K", 256, 292, &[(0, 4)], quants::q8_k),
    quant(16, "IQ2_XXS", 256, 66, &words::<33>(0), codebook::iq2_xxs),
    quant(17, "IQ2_XS", 256, 74, &words::<33>(0), codebook::iq2_xs),
    quant(18, "IQ3_XXS", 256, 98, &[(0, 2)], codebook::iq3_xxs),
    quant(19, "IQ1_S", 256, 50, &IQ1_S, codebook::iq1_s),
    quant(20, "IQ4_NL", 32, 18, &[(0, 2)], quants::iq4_nl),
    quant(21, "IQ3_S", 256, 110, &[(0, 2)], codebook::iq3_s),
    quant(22, "IQ2_S", 256, 82, &[(0, 2)], codebook::iq2_s),
    quant(23, "IQ4_XS", 256, 136, &[(0, 2), (2, 2)], quants::iq4_xs),
    quant(29, "IQ1_M", 256, 56, &[], codebook::iq1_m),
    quant(34, "TQ1_0", 256, 54, &[(52, 2)], quants::tq1_0),
    quant(35, "TQ2_0", 256, 66, &[(64, 2)], quants::tq2_0),
    quant(39, "MXFP4", 32, 17, &[], quants::mxfp4),
    quant(40, "NVFP4", 64, 36, &[], quants::nvfp4),
    quant(41, "Q1_0", 128, 18, &[(0, 2)], quants::q1_0),
];

/// `Q8_1` as it was at first, under the same number.
static Q8_1_LONG: Quant = quant(9, "Q8_1", 32, 40, &[(0, 4), (4, 4)], quants::q8_1_long);

const IQ1_S: [(usize, usize); 9] = {
    let mut wide = words::<9>(32);
    wide[0].0 = 0;
    wide
};

/// Numbers of two bytes, one behind another.
const fn words<const N: usize>(start: usize) -> [(usize, usize); N] {
    let mut words = [(0, 2); N];
    let mut at = 0;
    while at < N {
        words[at].0 = start + at * 2;
        at += 1;
    }
    words
}

const fn quant(
    id: u32,
    name: &'static str,
    values: usize,
    bytes: usize,
    wide: &'static [(usize, usize)],
    decode: fn(&[u8], &mut [f32]),
) -> Quant {
    Quant { id, name, values, bytes, wide, decode }
}

impl Quant {
    /// What frameworks call it.
    pub(super) fn block_type(&self) -> BlockType {
        let widest = self.wide.iter().map(|(_, size)| *size).max();
        BlockType::new(self.id, self.name, self.values, self.bytes, widest.unwrap_or(1))
    }
}

impl Kind {
    pub(super) fn of(id: u32) -> Option<Self> {
        Some(Self::Plain(match id {
            0 => Dtype::F32,
            1 => Dtype::F16,
            24 => Dtype::I8,
            25 => Dtype::I16,
            26 => Dtype::I32,
            27 => Dtype::I64,
            28 => Dtype::F64,
            30 => Dtype::BF16,
            _ => return QUANTS.iter().find(|quant| quant.id == id).map(Self::Quantised),
        }))
    }

    /// `Q8_1` has had two layouts: which it is, given the number of bytes until the next tensor.
    pub(super) fn in_room(self, shape: &[usize], room: u64, align: u64) -> Self {
        let old = Self::Quantised(&Q8_1_LONG);
        if self.name() != old.name() {
            return self;
        }
        let fits = |kind: Self| {
            let bytes = kind.byte_len(shape);
            bytes.is_some_and(|bytes| room == bytes || bytes.checked_next_multiple_of(align) == Some(room))
        };
        if fits(old) && !fits(self) { old } else { self }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Plain(dtype) => dtype.name(),
            Self::Quantised(quant) => quant.name,
        }
    }

    /// The bytes of a tensor. Blocks do not go beyond a row.
    pub(super) fn byte_len(self, shape: &[usize]) -> Option<u64> {
        match self {
            Self::Plain(dtype) => dtype.size_of(shape).ok(),
            Self::Quantised(quant) => {
                let row = shape.last().copied().unwrap_or(1);
                let values = shape.iter().try_fold(1_u64, |product, &dim| product.checked_mul(dim as u64))?;
                // What comes of it has to have a length, too.
                values.checked_mul(64)?;
                (row % quant.values == 0).then_some(())?;
                (values / quant.values as u64).checked_mul(quant.bytes as u64)
            }
        }
    }
}
