//! Tensors of burnpack as safetensors files have them.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};

use burn::tensor::{BoolStore, DType};
use burn_pack::Tensor;
use weighbridge::write::{Save, TensorData};
use weighbridge::{Dtype, Error, ErrorKind, Result};

use crate::dtype::{from_stored, narrow_bools, to_stored};
use crate::metadata::{QUANTISED, Quantised, quantised_entry};

/// An error of burnpack, or of the records that are read from it.
pub(crate) fn refused(error: impl fmt::Display) -> Error {
    Error::new(ErrorKind::Value, format!("burnpack: {error}"))
}

/// Tensors as they are outside of a container, in a file.
pub(crate) struct Outside {
    pub(crate) tensors: Vec<(String, Packed)>,
    quantised: BTreeMap<String, Quantised>,
}

impl Outside {
    /// # Errors
    ///
    /// Fails for a dtype that safetensors does not have.
    pub(crate) fn of(tensors: impl IntoIterator<Item = (String, Tensor)>) -> Result<Self> {
        let mut outside = Self { tensors: Vec::new(), quantised: BTreeMap::new() };
        for (name, tensor) in tensors {
            if let dtype @ DType::QFloat(_) = tensor.dtype {
                let shape = tensor.shape.to_vec();
                outside.quantised.insert(name.clone(), Quantised { shape, dtype });
            }
            let packed = Packed::new(tensor).map_err(|error| error.in_tensor(&name))?;
            outside.tensors.push((name, packed));
        }
        Ok(outside)
    }

    /// Tensors whose dtype in the file does not say which one they had.
    pub(crate) fn retyped(&self) -> impl Iterator<Item = (&str, DType)> {
        let dtypes = self.tensors.iter().map(|(name, packed)| (&**name, packed.tensor.dtype, packed.dtype));
        dtypes
            .filter(|(_, dtype, stored)| {
                !matches!(dtype, DType::QFloat(_)) && from_stored(*stored) != Some(*dtype)
            })
            .map(|(name, dtype, _)| (name, dtype))
    }

    /// The save with what the metadata has to say about quantised tensors.
    pub(crate) fn save_with(&self, save: Save) -> Save {
        match self.quantised.is_empty() {
            true => save,
            false => save.metadata(QUANTISED, quantised_entry(&self.quantised)),
        }
    }
}

/// A tensor of a container, to be written.
pub(crate) struct Packed {
    tensor: Tensor,
    dtype: Dtype,
    shape: Vec<usize>,
}

impl Packed {
    fn new(tensor: Tensor) -> Result<Self> {
        let shape = tensor.shape.to_vec();
        let (dtype, shape) = match tensor.dtype {
            DType::QFloat(_) => (Dtype::U8, vec![tensor.byte_len()]),
            DType::Bool(_) => (Dtype::Bool, shape),
            dtype => match to_stored(dtype) {
                Some(dtype) => (dtype, shape),
                None => return Err(Error::new(ErrorKind::Dtype, format!("safetensors has no {dtype:?}"))),
            },
        };
        Ok(Self { tensor, dtype, shape })
    }
}

impl TensorData for Packed {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        /// The bytes that are written at a time; those of a file are read when they are looked at.
        const CHUNK: usize = 8 << 20;
        let other = |error: burn_pack::Error| io::Error::other(refused(error));
        let bytes = self.tensor.to_bytes().map_err(other)?;
        for start in (0..bytes.len()).step_by(CHUNK) {
            let end = bytes.len().min(start + CHUNK);
            let part = bytes.view(start, end);
            let part: &[u8] = match &part {
                Ok(part) => part,
                // Bytes that cannot be viewed in part are in memory.
                Err(_) => &bytes[start..end],
            };
            match self.tensor.dtype {
                DType::Bool(BoolStore::U32) => out.write_all(&narrow_bools(part))?,
                _ => out.write_all(part)?,
            }
        }
        Ok(())
    }
}
