//! All tensors that take the place of a weight.

use std::io::{self, Write};
use std::sync::Arc;

use super::{Quantize, QuantizeMethod, nf4};
use crate::checkpoint::TensorRef;
use crate::dtype::Dtype;
use crate::error::{Error, ErrorKind, Result};
use crate::plan::{Entry, Input, Operation};
use crate::write::TensorData;

/// The tensors that take the place of a weight.
#[derive(Clone, Debug)]
pub struct QuantizedWeight {
    /// Those that are made of it: codes, then scales.
    pub entries: Vec<Entry>,
    /// Those that do not depend on its values, by name.
    pub constants: Vec<(String, Constant)>,
}

impl QuantizeMethod {
    /// The tensors that take the place of a weight: of `up.weight`, say, `up.weight_packed`,
    /// `up.weight_scale` and `up.weight_shape`.
    ///
    /// # Errors
    ///
    /// Fails when the name does not end in `.weight`, and when the method does not [take](Self::takes) it.
    pub fn weight(self, tensor: &TensorRef<'_>) -> Result<QuantizedWeight> {
        let name = tensor.name();
        let blame = |error: Error| tensor.shard().blame(error.in_tensor(name));
        if !name.ends_with(".weight") {
            let message = "only what is called weight can be quantised";
            return Err(blame(Error::new(ErrorKind::TensorName, message)));
        }
        self.takes(tensor.dtype(), tensor.shape())
            .map_err(|why| blame(super::refusal(tensor.dtype(), tensor.shape(), &why)))?;
        let (codes, scales) = match self {
            Self::Fp8 | Self::Int8 => ("", "_scale"),
            Self::Fp8Block => ("", "_scale_inv"),
            Self::Int4 { .. } | Self::Mxfp4 => ("_packed", "_scale"),
            Self::Nf4 => ("", ".absmax"),
        };
        let entry = |suffix: &str, operation: Quantize| {
            let operation: Arc<dyn Operation> = Arc::new(operation);
            Entry::new(&format!("{name}{suffix}"), vec![Input::of(tensor)], operation)
        };
        let entries = vec![
            entry(codes, Quantize::codes(self)).map_err(blame)?,
            entry(scales, Quantize::scales(self)).map_err(blame)?,
        ];
        let constants = self.constants(tensor);
        let constants =
            constants.into_iter().map(|(suffix, constant)| (format!("{name}{suffix}"), constant)).collect();
        Ok(QuantizedWeight { entries, constants })
    }

    fn constants(self, tensor: &TensorRef<'_>) -> Vec<(&'static str, Constant)> {
        let shape = tensor.shape();
        match self {
            Self::Int4 { .. } => {
                let dims = shape.iter().flat_map(|&dim| (dim as u64).to_le_bytes()).collect();
                vec![("_shape", Constant { dtype: Dtype::I64, shape: vec![shape.len()], bytes: dims })]
            }
            Self::Nf4 => {
                let levels = nf4::LEVELS.iter().flat_map(|level| level.to_le_bytes()).collect();
                let state = state(tensor).into_bytes();
                vec![
                    (".quant_map", Constant { dtype: Dtype::F32, shape: vec![16], bytes: levels }),
                    (
                        ".quant_state.bitsandbytes__nf4",
                        Constant { dtype: Dtype::U8, shape: vec![state.len()], bytes: state },
                    ),
                ]
            }
            Self::Fp8 | Self::Fp8Block | Self::Int8 | Self::Mxfp4 => Vec::new(),
        }
    }
}

/// What bitsandbytes has to know of a weight, in its own JSON.
fn state(tensor: &TensorRef<'_>) -> String {
    let dtype = match tensor.dtype() {
        Dtype::F16 => "float16",
        Dtype::BF16 => "bfloat16",
        _ => "float32",
    };
    let (blocksize, shape) = (nf4::BLOCK, tensor.shape());
    format!(r#"{{"quant_type": "nf4", "blocksize": {blocksize}, "dtype": "{dtype}", "shape": {shape:?}}}"#)
}

/// A small tensor in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Constant {
    dtype: Dtype,
    shape: Vec<usize>,
    /// As the file has them.
    bytes: Vec<u8>,
}

impl TensorData for Constant {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(&self.bytes)
    }
}
