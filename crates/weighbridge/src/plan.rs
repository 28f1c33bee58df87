//! What to load, under which name, as which dtype: everything that can be wrong is found here, before a byte of
//! data moves.

mod derived;
mod input;
mod memory;
mod operation;

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

pub use crate::buffer::copied;
pub use crate::cast::{OutOfRange, Overflow};
pub(crate) use derived::{Derive, Derived};
pub use input::Input;
pub use memory::cast_into;
pub use operation::{
    BitCast, Blend, BlendMethod, Bound, Cast, Constant, Delta, Encode, Join, LowRank, Operation, Part, Piece,
    Quantize, QuantizeMethod, QuantizedWeight, Read, Tiles, Transpose,
};

use crate::checkpoint::{Checkpoint, Shard, TensorRef};
use crate::dtype::Dtype;
use crate::error::{Error, ErrorKind, Result};
use crate::panics::caught;
use crate::pattern::Names;

/// A list of tensors to make, each of stored tensors of one checkpoint or several.
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
    entries: Vec<Arc<Entry>>,
    checkpoints: Vec<Checkpoint>,
}

impl Plan {
    /// Starts a plan for all tensors of `checkpoint`, as they are stored.
    pub fn of(checkpoint: &Checkpoint) -> PlanBuilder<'_> {
        PlanBuilder {
            checkpoint,
            filters: Vec::new(),
            rename: None,
            part: None,
            dtype: None,
            overflow: Overflow::default(),
        }
    }

    /// A plan of these entries, whose inputs may be of different checkpoints.
    ///
    /// ```
    /// use weighbridge::{Checkpoint, Entry, Plan};
    ///
    /// # fn main() -> weighbridge::Result<()> {
    /// # let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../samples/adder");
    /// let ckpt = Checkpoint::open(dir)?;
    /// let norms = ckpt.tensors().filter(|tensor| tensor.name().ends_with("norm.weight"));
    /// let plan = Plan::new(norms.map(|tensor| Entry::of(&tensor, None)).collect::<weighbridge::Result<Vec<_>>>()?);
    /// # assert!(!plan.entries().is_empty());
    /// # Ok(())
    /// # }
    /// ```
    pub fn new(entries: impl IntoIterator<Item = Entry>) -> Self {
        Self { entries: entries.into_iter().map(Arc::new).collect(), checkpoints: Vec::new() }
    }

    /// Adds an entry. A session of a plan with two entries of one name does not start.
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

    /// The checkpoints that the plan was [made of](Self::of), which know what is [quantised](Checkpoint::quantized). Those of
    /// entries that were given one by one are not among them.
    pub fn checkpoints(&self) -> &[Checkpoint] {
        &self.checkpoints
    }
}

type Filter<'a> = dyn Fn(&TensorRef<'_>) -> bool + 'a;
type Rename<'a> = dyn Fn(&str) -> String + 'a;
type ToPart<'a> = dyn Fn(&TensorRef<'_>) -> Result<Option<Part>> + 'a;
type ToDtype<'a> = dyn Fn(&TensorRef<'_>) -> Option<Dtype> + 'a;

/// Chooses, renames and casts.
pub struct PlanBuilder<'a> {
    checkpoint: &'a Checkpoint,
    /// All of them must keep a tensor.
    filters: Vec<Box<Filter<'a>>>,
    rename: Option<Box<Rename<'a>>>,
    part: Option<Box<ToPart<'a>>>,
    dtype: Option<Box<ToDtype<'a>>>,
    overflow: Overflow,
}

impl<'a> PlanBuilder<'a> {
    /// Keeps only the tensors for which `keep` holds. Each further call, and each [`only`](Self::only), narrows the
    /// selection: a tensor must pass all of them.
    ///
    /// ```
    /// # use weighbridge::{Checkpoint, Names, Plan};
    /// # fn main() -> weighbridge::Result<()> {
    /// # let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../samples/adder");
    /// # let ckpt = Checkpoint::open(dir)?;
    /// let plan = Plan::of(&ckpt)
    ///     .only(Names::prefix("model.layers.0."))
    ///     .only(Names::glob("*.weight")?)
    ///     .filter(|tensor| tensor.shape().len() == 2)
    ///     .filter(|tensor| !tensor.name().contains("mlp"))
    ///     .build()?;
    /// assert_eq!(plan.entries().len(), 4); // q, k, v and o of the first layer
    /// # assert!(plan.entries().iter().all(|entry| entry.name().starts_with("model.layers.0.self_attn.")));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn filter(mut self, keep: impl Fn(&TensorRef<'_>) -> bool + 'a) -> Self {
        self.filters.push(Box::new(keep));
        self
    }

    /// Keeps only the tensors whose stored names are in the set: a [`filter`](Self::filter) by name, which narrows the
    /// selection as any other.
    #[must_use]
    pub fn only(self, names: Names) -> Self {
        self.filter(move |tensor| names.contains(tensor.name()))
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
            if !self.filters.iter().all(|keep| keep(&tensor)) {
                continue;
            }
            let blame = |error: Error| tensor.shard().blame(error.in_tensor(tensor.name()));
            let part = self.part.as_ref().map_or(Ok(None), |part| part(&tensor));
            let part = part.map_err(blame)?;
            let operation = part.as_ref().map_or(&Read as &dyn Operation, |part| part);
            let dtype = self.dtype.as_ref().and_then(|dtype| dtype(&tensor));
            let entry = Entry::stored(&tensor, operation, dtype, self.overflow).map_err(blame)?;
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
        Ok(Plan { entries, checkpoints: vec![self.checkpoint.clone()] })
    }
}

impl fmt::Debug for PlanBuilder<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlanBuilder").field("checkpoint", self.checkpoint).finish_non_exhaustive()
    }
}

/// One tensor to make: from which stored ones, and how.
///
/// The operation is bound to its inputs when the entry is made, so that whatever can be wrong with them is found then.
#[derive(Clone, Debug)]
pub struct Entry {
    name: String,
    inputs: Arc<[Input]>,
    /// What the operation makes, before a cast.
    base: Made,
    /// The same after the cast, if there is one.
    made: Made,
    /// Of casts.
    rules: Rules,
    /// Whether it is read only when it is taken.
    is_deferred: bool,
    /// Whether it is made of tensors that are derived from the inputs.
    is_derived: bool,
    shape: Vec<usize>,
    byte_len: u64,
    /// All bytes that it needs, if they are one run of the only input's shard.
    run: Option<Range<u64>>,
}

/// How values become those of another dtype, in the cast that was asked for and in those to come.
#[derive(Clone, Copy, Debug)]
struct Rules {
    overflow: Overflow,
    /// Whether bits are kept between two dtypes, and not values.
    keeps_bits: fn(Dtype, Dtype) -> bool,
}

impl Rules {
    fn new(overflow: Overflow) -> Self {
        Self { overflow, keeps_bits: |_, _| false }
    }
}

/// How the tiles of an entry are made, and of which dtype.
#[derive(Clone, Debug)]
struct Made {
    dtype: Dtype,
    tiles: Arc<dyn Tiles>,
}

impl Entry {
    /// The tensor as it is stored, cast to `dtype` if one is given.
    ///
    /// # Errors
    ///
    /// Fails when the cast does not exist.
    pub fn of(tensor: &TensorRef<'_>, dtype: Option<Dtype>) -> Result<Self> {
        Self::stored(tensor, &Read, dtype, Overflow::default())
    }

    /// What `operation` makes of one stored tensor, under its name.
    fn stored(
        tensor: &TensorRef<'_>,
        operation: &dyn Operation,
        dtype: Option<Dtype>,
        overflow: Overflow,
    ) -> Result<Self> {
        let inputs: Arc<[Input]> = Arc::new([Input::of(tensor)]);
        Self::bound(tensor.name(), inputs, operation, dtype, overflow)
    }

    /// A tensor named `name` that `operation` makes of `inputs`.
    ///
    /// # Errors
    ///
    /// Fails when the operation does not take these inputs, or its result has no whole number of bytes.
    pub fn new(name: &str, inputs: Vec<Input>, operation: Arc<dyn Operation>) -> Result<Self> {
        Self::bound(name, inputs.into(), &*operation, None, Overflow::default())
    }

    /// A tensor that is derived from stored ones.
    pub(crate) fn derived(name: &str, dtype: Dtype, shape: &[usize], derived: &Derived) -> Result<Self> {
        let (wide, own) = derived.made();
        let own = Made { dtype, tiles: own };
        // What is only moved was not rounded.
        let wide = wide.filter(|_| !own.tiles.is_direct());
        let base = wide.map_or_else(|| own.clone(), |tiles| Made { dtype: Dtype::F32, tiles });
        Self::made_of(name, shape.to_vec(), derived.inputs().into(), base, own)
    }

    /// A tensor that `tiles` make of stored ones, in this dtype and no other.
    pub(crate) fn tiled(
        name: &str,
        dtype: Dtype,
        shape: Vec<usize>,
        inputs: Arc<[Input]>,
        tiles: Arc<dyn Tiles>,
    ) -> Result<Self> {
        let made = Made { dtype, tiles };
        Self::made_of(name, shape, inputs, made.clone(), made)
    }

    /// A tensor that no operation had to be bound for.
    fn made_of(name: &str, shape: Vec<usize>, inputs: Arc<[Input]>, base: Made, made: Made) -> Result<Self> {
        let (name, byte_len) = (name.to_owned(), made.dtype.size_of(&shape)?);
        let (rules, is_deferred, is_derived) = (Rules::new(Overflow::default()), false, true);
        Ok(Self { name, inputs, base, made, rules, is_deferred, is_derived, shape, byte_len, run: None })
    }

    fn bound(
        name: &str,
        inputs: Arc<[Input]>,
        operation: &dyn Operation,
        dtype: Option<Dtype>,
        overflow: Overflow,
    ) -> Result<Self> {
        let rules = Rules::new(overflow);
        let is_derived = inputs.iter().any(|input| input.derived().is_some());
        let bind = || {
            let (inputs, Bases { base, dtype: own, shape }) = Bases::of(operation, &inputs)?;
            let made = base.cast(dtype.unwrap_or(own), rules)?;
            let byte_len = made.dtype.size_of(&shape)?;
            Ok((inputs, base, made, shape, byte_len))
        };
        let bound = caught("it was planned", bind).map_err(|error| error.in_tensor(name))?;
        let (inputs, base, made, shape, byte_len) = bound;
        let run = run_of(&*made.tiles, &inputs, &(0..byte_len));
        let (name, is_deferred) = (name.to_owned(), false);
        Ok(Self { name, inputs, base, made, rules, is_deferred, is_derived, shape, byte_len, run })
    }

    /// The same tensor in another dtype, made from the stored values whatever dtype this entry has, and under its
    /// rule for values that are [too large](Self::overflow).
    ///
    /// # Errors
    ///
    /// Fails when the cast does not exist.
    pub fn recast(&self, dtype: Dtype) -> Result<Self> {
        let cast = || {
            let made = self.base.cast(dtype, self.rules)?;
            Ok((dtype.size_of(&self.shape)?, made))
        };
        let (byte_len, made) = cast().map_err(|error: Error| error.in_tensor(&self.name))?;
        // A cast needs the bytes that its operation does.
        Ok(Self { byte_len, made, ..self.clone() })
    }

    /// The same tensor, with another rule for values that are too large: in the cast that was asked for when the entry
    /// was made, and in those that [`recast`](Self::recast) makes. A [`Cast`] among the operations given to
    /// [`new`](Self::new) keeps its own.
    #[must_use]
    pub fn overflow(mut self, overflow: Overflow) -> Self {
        self.rules.overflow = overflow;
        self.cast_anew()
    }

    /// The same tensor, with bits kept instead of values ([`BitCast`]) wherever `keeps(from, to)` holds for its stored
    /// dtype and another one of the same size: in its own dtype, and in those that [`recast`](Self::recast), or taking
    /// it from a session, asks for. Otherwise values are kept.
    #[must_use]
    pub fn bit_casts(mut self, keeps: fn(Dtype, Dtype) -> bool) -> Self {
        self.rules.keeps_bits = keeps;
        self.cast_anew()
    }

    /// The same tensor as its operation makes it, if values are cast after that.
    pub(crate) fn uncast(&self) -> Option<Self> {
        let is_cast = !Arc::ptr_eq(&self.base.tiles, &self.made.tiles);
        is_cast.then(|| self.recast(self.base.dtype).ok()).flatten()
    }

    fn cast_anew(mut self) -> Self {
        // Under other rules the same casts exist.
        if let Ok(made) = self.base.cast(self.made.dtype, self.rules) {
            self.made = made;
        }
        self
    }

    /// The same tensor, which a session does not read ahead: it is read when it is taken.
    #[must_use]
    pub fn deferred(mut self) -> Self {
        self.is_deferred = true;
        self
    }

    /// Whether it is read only when it is taken.
    pub fn is_deferred(&self) -> bool {
        self.is_deferred
    }

    /// Whether it is made of tensors that are derived from its inputs.
    pub(crate) fn is_derived(&self) -> bool {
        self.is_derived
    }

    /// The name that it gets.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The dtype that it gets.
    pub fn dtype(&self) -> Dtype {
        self.made.dtype
    }

    /// The shape that it gets.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The bytes that it gets.
    pub fn byte_len(&self) -> u64 {
        self.byte_len
    }

    /// The bytes of its values as they are stored, before a cast; of a weight that is
    /// [dequantised](Checkpoint::dequantized), those of the tensors that it is made of.
    pub fn stored_byte_len(&self) -> u64 {
        match self.is_derived && !self.base.tiles.is_direct() {
            true => self.inputs.iter().map(|input| input.range().end - input.range().start).sum(),
            false => self.base.dtype.size_of(&self.shape).unwrap_or(self.byte_len),
        }
    }

    /// The stored tensors that it is made of.
    pub fn inputs(&self) -> &[Input] {
        &self.inputs
    }

    /// How its tiles are made.
    pub fn tiles(&self) -> &dyn Tiles {
        &*self.made.tiles
    }

    /// The bytes of a shard that `tile` of the output needs, if they are one run.
    pub(crate) fn run_of(&self, tile: &Range<u64>) -> Option<(&Arc<Shard>, Range<u64>)> {
        let bytes = run_of(self.tiles(), &self.inputs, tile)?;
        self.inputs.first().map(|input| (input.shard(), bytes))
    }

    /// The same for the whole output.
    pub(crate) fn run(&self) -> Option<(&Arc<Shard>, Range<u64>)> {
        let [input] = &*self.inputs else { return None };
        self.run.clone().map(|bytes| (input.shard(), bytes))
    }

    /// Where the output is stored as it is, if it is: one run of a shard.
    pub(crate) fn stored_run(&self) -> Option<(&Arc<Shard>, Range<u64>)> {
        let run = self.run().filter(|_| self.tiles().is_direct());
        run.filter(|(_, bytes)| bytes.end - bytes.start == self.byte_len)
    }
}

/// The bytes of the only input's shard that a tile needs, if they are one run.
fn run_of(tiles: &dyn Tiles, inputs: &[Input], tile: &Range<u64>) -> Option<Range<u64>> {
    let [input] = inputs else { return None };
    // Tiles that panic do so again when they are made, and are reported then.
    let bytes = caught("it was planned", || Ok(tiles.run(tile))).ok()??;
    input.bytes(&bytes)
}

/// What an operation makes, to be cast.
struct Bases {
    base: Made,
    /// The dtype that it has unless another one is asked for.
    dtype: Dtype,
    shape: Vec<usize>,
}

impl Bases {
    /// Binds an operation, and gives the stored tensors that its tiles are made of. Of derived inputs it takes the values
    /// before they were rounded where it can, so that they are rounded once, to the dtype that is asked for.
    fn of(operation: &dyn Operation, inputs: &Arc<[Input]>) -> Result<(Arc<[Input]>, Self)> {
        let bound = operation.bind(inputs)?;
        let own = bound.dtype;
        let (stored, Bound { dtype, shape, tiles }) = derived::flatten(inputs, bound.clone());
        let is_derived = |input: &Input| input.derived().is_some();
        // What is only moved was not rounded.
        if tiles.is_direct() || !inputs.iter().any(is_derived) {
            return Ok((stored, Self { base: Made { dtype, tiles }, dtype, shape }));
        }
        let (inputs, base) = match Self::wide(operation, inputs, &bound) {
            Some((inputs, bound)) => {
                let (stored, Bound { dtype, tiles, .. }) = derived::flatten(&inputs, bound);
                (stored, Made { dtype, tiles })
            }
            None => (stored, Made { dtype, tiles }),
        };
        Ok((inputs, Self { base, dtype: own, shape }))
    }

    /// The operation on the same inputs in `F32`, if it makes the same of them as of `inputs`.
    fn wide(operation: &dyn Operation, inputs: &[Input], bound: &Bound) -> Option<(Arc<[Input]>, Bound)> {
        let wide: Arc<[Input]> = inputs.iter().map(Input::widened).collect();
        let made = operation.bind(&wide).ok().filter(|made| made.shape == bound.shape)?;
        // What has the dtype of its first input has it now, too.
        let first = inputs.first().map(Input::dtype);
        let keeps_dtype = made.dtype == Dtype::F32 && first == Some(bound.dtype);
        (made.dtype == bound.dtype || keeps_dtype).then_some((wide, made))
    }
}

impl Made {
    fn cast(&self, dtype: Dtype, rules: Rules) -> Result<Self> {
        let keeps_bits = (rules.keeps_bits)(self.dtype, dtype) && BitCast::exists(self.dtype, dtype);
        if self.dtype == dtype || keeps_bits {
            return Ok(Self { dtype, ..self.clone() });
        }
        if let Some(tiles) = self.tiles.in_dtype(dtype, rules.overflow) {
            return Ok(Self { dtype, tiles });
        }
        let tiles = Cast::tiles(&self.tiles, self.dtype, dtype, rules.overflow)?;
        Ok(Self { dtype, tiles: Arc::new(tiles) })
    }
}
