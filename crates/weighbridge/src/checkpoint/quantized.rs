//! Quantised modules: which tensors hold codes instead of weights, and by which method.
//!
//! Detection works module by module, from names, dtypes and shapes. `config.json` is not consulted: it is
//! often wrong or incomplete. A module is quantised if its codes have the companions that they need, such as
//! scales: an 8-bit float without a scale is an ordinary number.

mod evidence;
mod find;
mod layout;
mod method;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

use super::catalog::TensorIndex;
use super::{Checkpoint, Inner, TensorRef};
use crate::error::{Error, ErrorKind};
use crate::text::start_of;
pub(crate) use evidence::may_be_codes;
pub use method::QuantMethod;

/// What becomes of the weights of quantised modules that are asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Quantized {
    /// They come as the numbers that they stand for, under the names that they have where they are not quantised
    /// ([`Checkpoint::dequantized`]). What cannot be had so is an error.
    #[default]
    Dequantize,
    /// They are an error: their values are codes, meaningless without their scales.
    Refuse,
    /// Their codes come as they are stored, and are cast like other numbers.
    Raw,
}

/// The quantised modules of a checkpoint.
#[derive(Default)]
pub(super) struct Modules {
    modules: Vec<Module>,
    /// The tensors of all modules, one module after the other: first those that hold codes.
    tensors: Vec<TensorIndex>,
    /// The module whose codes a tensor holds.
    by_codes: HashMap<TensorIndex, u32>,
}

#[derive(Clone, Copy)]
struct Module {
    method: QuantMethod,
    /// Its tensors begin here, then those that hold no codes; they end where the next module's begin.
    codes: usize,
    numbers: usize,
    end: usize,
    /// The tensor that gives it away; `None` where the metadata does.
    sign: Option<TensorIndex>,
    /// The length of the module's name, which the name of its first tensor begins with.
    name: usize,
    /// What its weight would be called: this much of the name of its first tensor, and this.
    stem: usize,
    dense: &'static str,
}

impl Checkpoint {
    /// The quantised modules.
    ///
    /// They are detected once, on first use, from the names, dtypes and shapes in all shards; `config.json`
    /// is not consulted.
    ///
    /// ```
    /// use weighbridge::{Checkpoint, Dtype, QuantMethod, TensorView, write::Save};
    ///
    /// # fn main() -> weighbridge::Result<()> {
    /// let codes = TensorView::new(Dtype::I8, &[2, 3], &[0; 6])?;
    /// let scales = TensorView::new(Dtype::F32, &[2], &[0; 8])?;
    /// let file = Save::new().bytes([("up.weight", codes), ("up.SCB", scales)])?;
    /// let ckpt = Checkpoint::from_bytes(file)?;
    /// let module = ckpt.quantized().next().unwrap();
    /// assert_eq!((module.name(), module.method()), ("up", QuantMethod::BitsAndBytes8));
    /// # Ok(())
    /// # }
    /// ```
    pub fn quantized(&self) -> impl ExactSizeIterator<Item = QuantizedModule<'_>> {
        let modules = &self.0.modules().modules;
        modules.iter().map(|module| QuantizedModule { inner: &self.0, module: *module })
    }

    /// The quantised module whose codes are in the tensor of that name.
    pub fn quantized_codes(&self, name: &str) -> Option<QuantizedModule<'_>> {
        let modules = self.0.modules();
        if modules.modules.is_empty() {
            return None;
        }
        let number = *modules.by_codes.get(&self.0.catalog.find(name)?)?;
        let module = *modules.modules.get(number as usize)?;
        Some(QuantizedModule { inner: &self.0, module })
    }

    /// The quantised module whose weight would have that name if it were not quantised: `up.weight` where
    /// `up.qweight` and its companions are stored.
    pub fn quantized_weight(&self, name: &str) -> Option<QuantizedModule<'_>> {
        self.quantized().find(|module| module.has_weight(name))
    }
}

impl Inner {
    fn modules(&self) -> &Modules {
        self.quantized.get_or_init(|| find::modules(&self.catalog, &self.alone))
    }
}

/// A quantised module of a checkpoint.
#[derive(Clone, Copy)]
pub struct QuantizedModule<'c> {
    inner: &'c Inner,
    module: Module,
}

impl<'c> QuantizedModule<'c> {
    /// How it is quantised.
    pub fn method(&self) -> QuantMethod {
        self.module.method
    }

    /// Its name: `model.layers.0.mlp.up_proj`, of fused experts `model.layers.0.mlp.experts.down_proj`.
    pub fn name(&self) -> &'c str {
        self.first().get(..self.module.name).unwrap_or_default()
    }

    /// The name that its weight has in a checkpoint that is not quantised.
    pub fn weight(&self) -> String {
        self.first().get(..self.module.stem).unwrap_or_default().to_owned() + self.module.dense
    }

    fn has_weight(&self, name: &str) -> bool {
        let dense = name.split_at_checked(self.module.stem);
        dense.is_some_and(|(stem, dense)| dense == self.module.dense && self.first().starts_with(stem))
    }

    /// The tensors that hold codes: the weight's, and those of zero points and scales that are coded, too.
    pub fn codes(&self) -> impl Iterator<Item = TensorRef<'c>> + use<'c> {
        self.tensors_at(self.module.codes, self.module.numbers)
    }

    /// All its tensors: first those that hold codes, then the companions that are numbers.
    pub fn tensors(&self) -> impl Iterator<Item = TensorRef<'c>> + use<'c> {
        self.tensors_at(self.module.codes, self.module.end)
    }

    /// The bytes that all its tensors have in the files.
    pub fn byte_len(&self) -> u64 {
        self.tensors().fold(0, |sum, tensor| sum.saturating_add(tensor.byte_len()))
    }

    /// Why its weight cannot be had of its codes, if [`Checkpoint::dequantized`] tried and left the module as it is.
    pub fn reason(&self) -> Option<&'c Error> {
        self.inner.refusals.get(&self.weight())
    }

    /// The error for a request of `tensor` as a weight; `advice` is the end of the message: what to do
    /// instead.
    pub fn refusal(&self, tensor: &str, advice: &str) -> Error {
        let mut message = format!("the module {:?} is quantised as {}", start_of(self.name()), self.method());
        let codes = self.codes().next();
        if let Some(codes) = codes {
            message += &format!(": {:?} holds codes, not weights", start_of(codes.name()));
        }
        if let Some(sign) = self.module.sign.and_then(|sign| self.inner.catalog.at(sign)) {
            message += &format!(", as {:?} shows", start_of(sign.name()));
        }
        if let Some(reason) = self.reason() {
            // It names file and tensor itself.
            return reason.clone().advised(advice);
        }
        let error = Error::new(ErrorKind::Dtype, format!("{message}; {advice}")).in_tensor(tensor);
        match codes {
            Some(codes) => codes.shard().blame(error),
            None => error,
        }
    }

    fn first(&self) -> &'c str {
        self.tensors().next().map_or("", |tensor| tensor.name())
    }

    fn tensors_at(&self, start: usize, end: usize) -> impl Iterator<Item = TensorRef<'c>> + use<'c> {
        let inner = self.inner;
        let tensors = inner.modules().tensors.get(start..end).unwrap_or_default();
        tensors.iter().filter_map(move |&tensor| inner.catalog.at(tensor))
    }
}

impl std::fmt::Debug for QuantizedModule<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QuantizedModule").field("name", &self.name()).field("method", &self.method()).finish()
    }
}
