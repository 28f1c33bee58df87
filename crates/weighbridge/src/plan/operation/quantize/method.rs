//! Which methods there are, and which matrices each takes.

use std::fmt;

use super::block;
use super::mxfp4;
use crate::dtype::Dtype;

/// How a weight is quantised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum QuantizeMethod {
    /// `F8_E4M3` with a scale for each row, as compressed-tensors' `float-quantized`.
    Fp8,
    /// `F8_E4M3` with a scale for each block of 128 by 128, as DeepSeek's `weight_scale_inv`, which
    /// transformers calls `fp8`.
    Fp8Block,
    /// Integers of 8 bits with a scale for each row, as compressed-tensors' `int-quantized`.
    Int8,
    /// Integers of 4 bits with a scale for each `group` values of a row, as compressed-tensors'
    /// `pack-quantized`.
    Int4 {
        /// The number of values that share a scale: a multiple of 8.
        group: usize,
    },
    /// bitsandbytes' NormalFloat of 4 bits, in blocks of 64 values, scales not quantised again.
    Nf4,
    /// The OCP microscaling format of 4 bits, as compressed-tensors' `mxfp4-pack-quantized`.
    Mxfp4,
}

impl QuantizeMethod {
    /// 4 bits in the groups of 128 that compressed-tensors has by default.
    pub const INT4: Self = Self::Int4 { group: 128 };

    /// Its name: `fp8`, `fp8-block`, `int8`, `int4-rtn`, `nf4` or `mxfp4`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp8 => "fp8",
            Self::Fp8Block => "fp8-block",
            Self::Int8 => "int8",
            Self::Int4 { .. } => "int4-rtn",
            Self::Nf4 => "nf4",
            Self::Mxfp4 => "mxfp4",
        }
    }

    /// Whether a tensor can be quantised so that the method's library loads it; if not, why.
    ///
    /// # Errors
    ///
    /// What is not a matrix of floats with at least one element is refused, and what does not divide into
    /// groups. Of `Fp8Block` the last blocks may be smaller only where they are the only ones, because
    /// transformers finds the size of blocks by dividing.
    pub fn takes(self, dtype: Dtype, shape: &[usize]) -> Result<(), String> {
        if !matches!(dtype, Dtype::F16 | Dtype::BF16 | Dtype::F32 | Dtype::F64) {
            return Err(format!("it is {dtype}, not F16, BF16, F32 or F64"));
        }
        let &[rows, columns] = shape else {
            return Err("it is not a matrix".to_owned());
        };
        if rows == 0 || columns == 0 {
            return Err("it is empty".to_owned());
        }
        match self {
            Self::Fp8 | Self::Int8 | Self::Nf4 => Ok(()),
            Self::Int4 { group } if group == 0 || group % 8 != 0 => {
                Err(format!("groups of {group} are not a multiple of 8"))
            }
            Self::Int4 { group } => whole_groups(columns, group),
            Self::Mxfp4 => whole_groups(columns, mxfp4::GROUP),
            Self::Fp8Block => {
                let uneven = |len: &usize| *len > block::SIDE && len % block::SIDE != 0;
                match [rows, columns].into_iter().find(uneven) {
                    Some(len) => {
                        Err(format!("transformers does not read {len} in blocks of {}", block::SIDE))
                    }
                    None => Ok(()),
                }
            }
        }
    }
}

fn whole_groups(columns: usize, group: usize) -> Result<(), String> {
    match columns % group {
        0 => Ok(()),
        _ => Err(format!("its {columns} columns are no whole groups of {group}")),
    }
}

impl fmt::Display for QuantizeMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
