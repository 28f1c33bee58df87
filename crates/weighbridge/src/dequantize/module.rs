//! A quantised module while its recipe is written: its tensors, and what becomes of them.

use std::sync::Arc;

use super::codes::Codes;
use super::companion::{Companion, Grid, Numbers};
use super::config::Config;
use super::recipe::{Recipe, Value};
use crate::checkpoint::{Checkpoint, QuantizedModule, TensorRef};
use crate::dtype::Dtype;
use crate::error::{Error, ErrorKind, Result};
use crate::plan::Input;
use crate::text::{brief, start_of};

/// A quantised module.
pub(super) struct Module<'c> {
    pub(super) checkpoint: &'c Checkpoint,
    pub(super) config: &'c Config,
    pub(super) quantized: QuantizedModule<'c>,
    /// The name of its weight: `up.weight`.
    pub(super) weight: String,
    /// What the names of its other tensors begin with: `up.`, or `experts.down_proj_`.
    base: String,
}

/// The weight that a module stands for.
#[derive(Debug)]
pub(super) struct Dense<'c> {
    pub(super) recipe: Recipe,
    pub(super) shape: Vec<usize>,
    pub(super) dtype: Dtype,
    /// The tensors that it is made of; the first has the codes.
    pub(super) tensors: Vec<TensorRef<'c>>,
    /// Those that are not needed any more, besides.
    pub(super) unused: Vec<TensorRef<'c>>,
}

/// A tensor of more bytes is none that says something about others.
const MOST: u64 = 64 << 20;

impl<'c> Module<'c> {
    pub(super) fn new(
        checkpoint: &'c Checkpoint,
        config: &'c Config,
        quantized: QuantizedModule<'c>,
    ) -> Self {
        let weight = quantized.weight();
        let base = match weight.strip_suffix("weight") {
            Some(base) => base.to_owned(),
            None => format!("{weight}_"),
        };
        Self { checkpoint, config, quantized, weight, base }
    }

    /// The tensor whose name is that of the weight and `ending`.
    pub(super) fn beside(&self, ending: &str) -> Option<TensorRef<'c>> {
        self.checkpoint.tensor(&format!("{}{ending}", self.weight))
    }

    /// The tensor of the module that is called so.
    pub(super) fn own(&self, name: &str) -> Option<TensorRef<'c>> {
        self.checkpoint.tensor(&format!("{}{name}", self.base))
    }

    /// The same, which has to be there.
    pub(super) fn needed(&self, name: &str) -> Result<TensorRef<'c>> {
        self.own(name).ok_or_else(|| self.missing(&format!("{}{name}", self.base)))
    }

    /// The tensor with the weight's codes.
    pub(super) fn codes(&self) -> Result<TensorRef<'c>> {
        self.quantized.codes().next().ok_or_else(|| self.missing(&self.weight))
    }

    /// The error that a tensor is not there.
    pub(super) fn missing(&self, name: &str) -> Error {
        let message = format!("the checkpoint has no {:?}, which belongs to its codes", start_of(name));
        self.blame(Error::new(ErrorKind::MissingTensor, message))
    }

    /// The error that the format is not read.
    pub(super) fn unsupported(&self, why: &str) -> Error {
        self.blame(Error::new(ErrorKind::Unsupported, why))
    }

    /// The error that a tensor has a wrong shape.
    pub(super) fn misshapen(&self, tensor: &TensorRef<'_>, why: &str) -> Error {
        let message = format!("{:?} has shape {}, {why}", start_of(tensor.name()), brief(tensor.shape()));
        self.blame(Error::new(ErrorKind::Shape, message))
    }

    /// The error that a tensor has a wrong dtype.
    pub(super) fn mistyped(&self, tensor: &TensorRef<'_>, expected: &str) -> Error {
        let message = format!("{:?} is {}, not {expected}", start_of(tensor.name()), tensor.dtype());
        self.blame(Error::new(ErrorKind::Dtype, message))
    }

    /// Names the tensor with the codes, and its file.
    pub(super) fn blame(&self, error: Error) -> Error {
        match self.quantized.codes().next() {
            Some(codes) => codes.shard().blame(error.in_tensor(codes.name())),
            None => error.in_tensor(&self.weight),
        }
    }

    /// The bytes of a small tensor.
    pub(super) fn read(&self, tensor: &TensorRef<'_>) -> Result<Vec<u8>> {
        if tensor.byte_len() > MOST {
            return Err(self.misshapen(tensor, "which is far more than belongs to a module"));
        }
        self.start_of(tensor, MOST)
    }

    /// The first bytes of a tensor, `most` at the most.
    pub(super) fn start_of(&self, tensor: &TensorRef<'_>, most: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; tensor.byte_len().min(most) as usize];
        let read = tensor.shard().source().read_at(tensor.info().file_range().start, &mut bytes);
        read.map_err(|error| {
            let error = Error::io("its data cannot be read", error).in_tensor(tensor.name());
            tensor.shard().blame(error)
        })?;
        Ok(bytes)
    }

    /// The integers of a small tensor.
    pub(super) fn integers(&self, tensor: &TensorRef<'_>) -> Result<Vec<i64>> {
        let bytes = self.read(tensor)?;
        let size = tensor.dtype().bits() as usize / 8;
        let signed = matches!(tensor.dtype(), Dtype::I8 | Dtype::I16 | Dtype::I32 | Dtype::I64);
        let unsigned =
            matches!(tensor.dtype(), Dtype::U8 | Dtype::U16 | Dtype::U32 | Dtype::U64 | Dtype::Bool);
        if !signed && !unsigned {
            return Err(self.mistyped(tensor, "an integer"));
        }
        Ok(bytes
            .chunks_exact(size.max(1))
            .map(|chunk| {
                let fill = if signed && chunk.last().is_some_and(|last| last & 0x80 != 0) { 0xFF } else { 0 };
                let mut word = [fill; 8];
                word[..chunk.len()].copy_from_slice(chunk);
                i64::from_le_bytes(word)
            })
            .collect())
    }

    /// The floats of a small tensor.
    pub(super) fn floats(&self, tensor: &TensorRef<'_>) -> Result<Vec<f32>> {
        let bytes = self.read(tensor)?;
        let mut values = vec![0.0; tensor.elements() as usize];
        crate::plan::cast_into(tensor.dtype(), &bytes, &mut values).map_err(|error| self.blame(error))?;
        Ok(values)
    }

    /// The only integer of a tensor.
    pub(super) fn integer(&self, tensor: &TensorRef<'_>) -> Result<i64> {
        match *self.integers(tensor)? {
            [value] => Ok(value),
            _ => Err(self.misshapen(tensor, "where one number is expected")),
        }
    }

    /// A tensor of the module that a weight is not made of, though it may change it.
    fn left_over(&self, dense: &Dense<'c>) -> Option<TensorRef<'c>> {
        let is_used = |tensor: &TensorRef<'_>| {
            dense.tensors.iter().chain(&dense.unused).any(|used| used.name() == tensor.name())
        };
        let beside = ["_scale_2", "_global_scale", "_zero_point", "_pre_quant_scale"];
        let own = CHANGES.iter().filter_map(|name| self.own(name));
        let beside = beside.iter().filter_map(|ending| self.beside(ending));
        let of_module = self.quantized.tensors().filter(|tensor| !super::is_left_out(tensor.name()));
        own.chain(beside).chain(of_module).find(|tensor| !is_used(tensor))
    }

    /// The dtype that the weight has if nobody asks for another: that of its scales, if it is one of weights, else
    /// that of the model.
    pub(super) fn dtype(&self, scales: Option<Dtype>) -> Dtype {
        match scales {
            Some(dtype @ (Dtype::F16 | Dtype::BF16)) => dtype,
            _ => self.config.dtype().unwrap_or(Dtype::BF16),
        }
    }
}

/// The tensors that a weight is made of, while they are found.
pub(super) struct Draft<'c> {
    pub(super) recipe: Recipe,
    tensors: Vec<TensorRef<'c>>,
    unused: Vec<TensorRef<'c>>,
}

impl<'c> Draft<'c> {
    /// Weights of codes in a tensor.
    pub(super) fn new(tensor: TensorRef<'c>, dims: [usize; 3], codes: Codes, value: Value) -> Self {
        Self { recipe: Recipe::new(dims, codes, value), tensors: vec![tensor], unused: Vec::new() }
    }

    /// A companion, whose numbers are `numbers` if they are not what its dtype says.
    pub(super) fn companion(
        &mut self,
        tensor: TensorRef<'c>,
        numbers: Option<Numbers>,
        grid: Grid,
    ) -> Companion {
        self.tensors.push(tensor);
        let numbers = numbers.unwrap_or(Numbers::Stored(tensor.dtype()));
        Companion { input: self.tensors.len() - 1, numbers, grid }
    }

    /// Leaves a tensor out that says nothing about weights, or whose numbers are known.
    pub(super) fn leave_out(&mut self, tensor: impl IntoIterator<Item = TensorRef<'c>>) {
        self.unused.extend(tensor);
    }

    /// The weight, if all that its recipe reads is there.
    pub(super) fn dense(self, module: &Module<'c>, shape: Vec<usize>, dtype: Dtype) -> Result<Dense<'c>> {
        let Self { recipe, tensors, unused } = self;
        let lens: Vec<_> = tensors.iter().map(TensorRef::byte_len).collect();
        let elements = shape.iter().try_fold(1_usize, |product, &dim| product.checked_mul(dim));
        let own = recipe.matrices.checked_mul(recipe.rows).and_then(|all| all.checked_mul(recipe.columns));
        if elements.is_none() || elements != own || !recipe.is_sound(&lens) {
            let Some(codes) = tensors.first() else { return Err(module.missing(&module.weight)) };
            let why = "which does not fit the shapes of its scales and zero points";
            return Err(module.misshapen(codes, why));
        }
        let dense = Dense { recipe, shape, dtype, tensors, unused };
        match module.left_over(&dense) {
            Some(tensor) => {
                let message = format!(
                    "{:?} belongs to it, and what it does to a weight of this method is not known",
                    start_of(tensor.name())
                );
                Err(module.blame(Error::new(ErrorKind::Unsupported, message)))
            }
            None => Ok(dense),
        }
    }
}

/// What may change a weight: a recipe that does not use it makes another one.
const CHANGES: &[&str] = &[
    "weight_scale_2",
    "weight_global_scale",
    "weight_zero_point",
    "zero_point",
    "zeros",
    "biases",
    "pre_quant_scale",
];

impl Dense<'_> {
    /// The stored tensors, in the order of the recipe's inputs.
    pub(super) fn inputs(&self) -> Vec<Input> {
        self.tensors.iter().map(Input::of).collect()
    }
}

/// Rows and columns, and how many such matrices there are: of the last two dimensions of a shape.
pub(super) fn matrices(shape: &[usize]) -> Option<[usize; 3]> {
    let (&columns, outer) = shape.split_last()?;
    let (rows, outer) = outer.split_last().map_or((1, outer), |(&rows, outer)| (rows, outer));
    let matrices = outer.iter().try_fold(1_usize, |product, &dim| product.checked_mul(dim))?;
    Some([matrices, rows, columns])
}

/// Codes that take whole rows of a stored tensor, a row of which has `stride` bytes.
pub(super) fn rows(
    packing: super::codes::Packing,
    bits: u32,
    [rows, columns]: [usize; 2],
    stride: usize,
) -> Codes {
    Codes { packing, bits, rows, columns, stride, word_rows: rows }
}

/// Shares a table.
pub(super) fn table(table: &Arc<[f32; 256]>) -> Value {
    Value::Table(Arc::clone(table))
}
