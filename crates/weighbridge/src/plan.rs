//! What to load, under which name, as which dtype: everything that can be wrong is found here, before a byte of
//! data moves.

pub(crate) mod convert;
mod memory;
mod operation;
mod overflow;
mod stream;

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

pub use memory::cast_into;
pub use operation::{BitCast, Cast, Join, Operation, Part, Piece, Read, Transpose};
pub use overflow::Overflow;
pub use stream::Streamed;

use crate::checkpoint::{Checkpoint, TensorRef};
use crate::dtype::Dtype;
use crate::error::{Error, ErrorKind, Result};
use crate::pattern::Names;

/// A list of tensors to make out of a checkpoint's.
///
/// ```
/// use weighbridge::{Checkpoint, Dtype, Plan};
///
/// # fn main() -> weighbridge::Result<()> {
/// # let bytes = b"\x39\0\0\0\0\0\0\0{\"m.a\":{\"dtype\":\"BF16\",\"shape\":[1],\"data_offsets\":[0,2]}}\x80\x3f".to_vec();
/// let ckpt = Checkpoint::from_bytes(bytes)?;
/// let plan = Plan::of(&ckpt)
///     .filter(|tensor| tensor.name().starts_with("m."))
///     .rename(|name| name.trim_start_matches("m.").to_owned())
///     .dtype(|tensor| tensor.dtype().is_float().then_some(Dtype::F32))
///     .build()?;
/// assert_eq!(plan.entries()[0].name(), "a");
/// assert_eq!(plan.entries()[0].byte_len(), 4);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Plan {
    checkpoint: Checkpoint,
    entries: Vec<Arc<Entry>>,
}

impl Plan {
    /// Starts a plan for all tensors of `checkpoint`, as they are stored.
    pub fn of(checkpoint: &Checkpoint) -> PlanBuilder<'_> {
        PlanBuilder {
            checkpoint,
            filter: None,
            only: None,
            rename: None,
            part: None,
            dtype: None,
            overflow: Overflow::default(),
        }
    }

    /// Adds an entry whose inputs are of the plan's checkpoint. A session of a plan with two entries of one name
    /// does not start.
    #[must_use]
    pub fn with(mut self, entry: Entry) -> Self {
        self.entries.push(Arc::new(entry));
        self
    }

    /// The tensors that will be made.
    pub fn entries(&self) -> &[Arc<Entry>] {
        &self.entries
    }

    /// The bytes that they will have together.
    pub fn byte_len(&self) -> u64 {
        self.entries.iter().fold(0, |sum, entry| sum.saturating_add(entry.byte_len()))
    }

    /// The checkpoint whose tensors go in.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }
}

type Filter<'a> = dyn Fn(&TensorRef<'_>) -> bool + 'a;
type Rename<'a> = dyn Fn(&str) -> String + 'a;
type ToPart<'a> = dyn Fn(&TensorRef<'_>) -> Result<Option<Part>> + 'a;
type ToDtype<'a> = dyn Fn(&TensorRef<'_>) -> Option<Dtype> + 'a;

/// Chooses, renames and casts.
pub struct PlanBuilder<'a> {
    checkpoint: &'a Checkpoint,
    filter: Option<Box<Filter<'a>>>,
    only: Option<Names>,
    rename: Option<Box<Rename<'a>>>,
    part: Option<Box<ToPart<'a>>>,
    dtype: Option<Box<ToDtype<'a>>>,
    overflow: Overflow,
}

impl<'a> PlanBuilder<'a> {
    /// Keeps only the tensors for which `keep` holds.
    #[must_use]
    pub fn filter(mut self, keep: impl Fn(&TensorRef<'_>) -> bool + 'a) -> Self {
        self.filter = Some(Box::new(keep));
        self
    }

    /// Keeps only the tensors whose stored names are in the set; a [`filter`](Self::filter) must keep them, too.
    #[must_use]
    pub fn only(mut self, names: Names) -> Self {
        self.only = Some(names);
        self
    }

    /// Gives each tensor the name that `rename` makes of its stored one.
    #[must_use]
    pub fn rename(mut self, rename: impl Fn(&str) -> String + 'a) -> Self {
        self.rename = Some(Box::new(rename));
        self
    }

    /// Takes of each tensor the part that `part` gives; `None` takes it whole.
    ///
    /// ```
    /// use weighbridge::plan::Part;
    /// # use weighbridge::{Checkpoint, Plan};
    ///
    /// # fn main() -> weighbridge::Result<()> {
    /// # let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../samples/adder");
    /// # let ckpt = Checkpoint::open(dir)?;
    /// let (rank, world) = (1, 4);
    /// let plan = Plan::of(&ckpt).part(|tensor| match tensor.name() {
    ///     name if name.ends_with("q_proj.weight") => Part::of_rank(tensor.shape(), 0, rank, world).map(Some),
    ///     name if name.ends_with("o_proj.weight") => Part::of_rank(tensor.shape(), 1, rank, world).map(Some),
    ///     _ => Ok(None),
    /// });
    /// let session = plan.build()?.session().start()?; // reads no more than what this rank needs
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn part(mut self, part: impl Fn(&TensorRef<'_>) -> Result<Option<Part>> + 'a) -> Self {
        self.part = Some(Box::new(part));
        self
    }

    /// Casts each tensor to the dtype that `dtype` gives; `None` keeps the stored one.
    #[must_use]
    pub fn dtype(mut self, dtype: impl Fn(&TensorRef<'_>) -> Option<Dtype> + 'a) -> Self {
        self.dtype = Some(Box::new(dtype));
        self
    }

    /// Sets what casts do with values that are too large, those included that are asked for when a tensor is taken;
    /// [`Overflow::Infinity`] otherwise.
    #[must_use]
    pub fn overflow(mut self, overflow: Overflow) -> Self {
        self.overflow = overflow;
        self
    }

    /// The plan.
    ///
    /// # Errors
    ///
    /// Fails when two tensors would get one name, when there is no such part, and when a cast does not exist.
    pub fn build(self) -> Result<Plan> {
        let mut entries = Vec::new();
        let mut origins = HashMap::new();
        for tensor in self.checkpoint.tensors() {
            if self.filter.as_ref().is_some_and(|keep| !keep(&tensor))
                || self.only.as_ref().is_some_and(|names| !names.contains(tensor.name()))
            {
                continue;
            }
            let blame = |error: Error| tensor.shard().blame(error.in_tensor(tensor.name()));
            let part = self.part.as_ref().map_or(Ok(None), |part| part(&tensor));
            let operation: Arc<dyn Operation> = match part.map_err(blame)? {
                Some(part) => Arc::new(part),
                None => Arc::new(Read),
            };
            let dtype = self.dtype.as_ref().and_then(|dtype| dtype(&tensor));
            let entry = Entry::stored(&tensor, operation, dtype).map_err(blame)?.overflow(self.overflow);
            let entry = match &self.rename {
                Some(rename) => {
                    let name = rename(tensor.name());
                    if let Some(first) = origins.insert(name.clone(), tensor.name()) {
                        let message = format!("{first:?} and this one would both be named {name:?}");
                        return Err(blame(Error::new(ErrorKind::DuplicateTensor, message)));
                    }
                    Entry { name, ..entry }
                }
                None => entry,
            };
            entries.push(Arc::new(entry));
        }
        Ok(Plan { checkpoint: self.checkpoint.clone(), entries })
    }
}

impl fmt::Debug for PlanBuilder<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlanBuilder").field("checkpoint", self.checkpoint).finish_non_exhaustive()
    }
}

/// One tensor to make: from which stored ones, and how.
#[derive(Clone, Debug)]
pub struct Entry {
    name: String,
    inputs: Vec<Input>,
    /// Without the cast.
    base: Arc<dyn Operation>,
    operation: Arc<dyn Operation>,
    /// Of the cast, or of one to come.
    overflow: Overflow,
    bit_casts: fn(Dtype, Dtype) -> bool,
    deferred: bool,
    dtype: Dtype,
    shape: Vec<usize>,
    byte_len: u64,
}

impl Entry {
    /// The tensor as it is stored, cast to `dtype` if one is given.
    ///
    /// # Errors
    ///
    /// Fails when the cast does not exist.
    pub fn of(tensor: &TensorRef<'_>, dtype: Option<Dtype>) -> Result<Self> {
        Self::stored(tensor, Arc::new(Read), dtype)
    }

    /// What `operation` makes of one stored tensor, under its name.
    fn stored(tensor: &TensorRef<'_>, operation: Arc<dyn Operation>, dtype: Option<Dtype>) -> Result<Self> {
        let entry = Self::new(tensor.name(), vec![Input::of(tensor)], operation)?;
        match dtype {
            Some(dtype) => entry.recast(dtype),
            None => Ok(entry),
        }
    }

    /// A tensor named `name` that `operation` makes of `inputs`.
    ///
    /// # Errors
    ///
    /// Fails when the operation does not take these inputs, or its result has no whole number of bytes.
    pub fn new(name: &str, inputs: Vec<Input>, operation: Arc<dyn Operation>) -> Result<Self> {
        let named = |error: Error| error.in_tensor(name);
        let (dtype, shape) = operation.output(&inputs).map_err(named)?;
        let byte_len = dtype.size_of(&shape).map_err(named)?;
        let base = Arc::clone(&operation);
        let (name, overflow) = (name.to_owned(), Overflow::default());
        let (bit_casts, deferred): (fn(Dtype, Dtype) -> bool, _) = (|_, _| false, false);
        Ok(Self { name, inputs, base, operation, overflow, bit_casts, deferred, dtype, shape, byte_len })
    }

    /// The same tensor in another dtype, made from the stored values whatever dtype this entry has, and under its
    /// rule for values that are [too large](Self::overflow).
    ///
    /// # Errors
    ///
    /// Fails when the cast does not exist.
    pub fn recast(&self, dtype: Dtype) -> Result<Self> {
        let named = |error: Error| error.in_tensor(&self.name);
        let stored = self.base.output(&self.inputs).map_err(named)?.0;
        let operation = self.conversion(stored, dtype);
        let (dtype, shape) = operation.output(&self.inputs).map_err(named)?;
        let byte_len = dtype.size_of(&shape).map_err(named)?;
        Ok(Self {
            name: self.name.clone(),
            inputs: self.inputs.clone(),
            base: Arc::clone(&self.base),
            operation,
            dtype,
            shape,
            byte_len,
            ..*self
        })
    }

    /// The same tensor, with another rule for values that are too large: in the cast that was asked for when the entry
    /// was made, and in those that [`recast`](Self::recast) makes. A [`Cast`] among the operations given to
    /// [`new`](Self::new) keeps its own.
    #[must_use]
    pub fn overflow(mut self, overflow: Overflow) -> Self {
        self.overflow = overflow;
        self.converted_anew()
    }

    /// The same tensor, with bits kept instead of values ([`BitCast`]) wherever `keeps(from, to)` holds for its stored
    /// dtype and another one of the same size: in its own dtype, and in those that [`recast`](Self::recast), or taking
    /// it from a session, asks for. Otherwise values are kept.
    #[must_use]
    pub fn bit_casts(mut self, keeps: fn(Dtype, Dtype) -> bool) -> Self {
        self.bit_casts = keeps;
        self.converted_anew()
    }

    /// The same tensor, which a session does not read ahead, but when it is taken.
    #[must_use]
    pub fn deferred(mut self) -> Self {
        self.deferred = true;
        self
    }

    /// Whether it is read only when it is taken.
    pub fn is_deferred(&self) -> bool {
        self.deferred
    }

    fn converted_anew(mut self) -> Self {
        if let Ok((stored, _)) = self.base.output(&self.inputs) {
            self.operation = self.conversion(stored, self.dtype);
        }
        self
    }

    /// From the stored dtype to another one, by the rules of this entry.
    fn conversion(&self, from: Dtype, to: Dtype) -> Arc<dyn Operation> {
        let base = Arc::clone(&self.base);
        if from == to {
            base
        } else if (self.bit_casts)(from, to) && BitCast::exists(from, to) {
            Arc::new(BitCast::of(base, to))
        } else {
            Arc::new(Cast::of(base, to).overflow(self.overflow))
        }
    }

    /// The name that it gets.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The dtype that it gets.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The shape that it gets.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The bytes that it gets.
    pub fn byte_len(&self) -> u64 {
        self.byte_len
    }

    /// The bytes of its values as they are stored, before a cast.
    pub fn stored_byte_len(&self) -> u64 {
        let stored = self.base.output(&self.inputs).and_then(|(dtype, shape)| dtype.size_of(&shape));
        stored.unwrap_or(self.byte_len)
    }

    /// The stored tensors that it is made of.
    pub fn inputs(&self) -> &[Input] {
        &self.inputs
    }

    /// How it is made of them.
    pub fn operation(&self) -> &dyn Operation {
        &*self.operation
    }
}

/// A stored tensor that goes into an [`Entry`].
#[derive(Clone, Debug)]
pub struct Input {
    shard: usize,
    range: Range<u64>,
    dtype: Dtype,
    shape: Vec<usize>,
}

impl Input {
    /// A tensor of the checkpoint that the plan is for.
    pub fn of(tensor: &TensorRef<'_>) -> Self {
        Self {
            shard: tensor.shard_number(),
            range: tensor.info().file_range(),
            dtype: tensor.dtype(),
            shape: tensor.shape().to_vec(),
        }
    }

    /// The shard that holds it, by its place in [`Checkpoint::shards`].
    pub fn shard(&self) -> usize {
        self.shard
    }

    /// Its bytes in that file.
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// Its stored dtype.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Its stored shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }
}
