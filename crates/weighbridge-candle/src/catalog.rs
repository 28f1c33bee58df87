//! The tensors of a load: which ones, under which names, as which part, in which dtype.
//!
//! Filters see tensors as they are stored, each once; every other rule goes by the names that [`Renames`]
//! give.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{DType, Device};
use candle_nn::var_builder::Shard;
use weighbridge::plan::{Input, Operation, Overflow, Part, Read};
use weighbridge::slice::Region;
use weighbridge::{
    Checkpoint, Entry, Error, ErrorKind, Names, NearestNames, Quantized, QuantizedModule, Renames, Result,
    Slice, TensorRef,
};

use crate::dtype::{Target, keeps_bits, target};
use crate::session::Request;

type Filter = dyn Fn(&TensorRef<'_>) -> bool + Send + Sync;

/// What a loader was told about tensors.
#[derive(Clone, Default)]
pub(crate) struct Rules {
    pub(crate) filter: Option<Arc<Filter>>,
    pub(crate) renames: Vec<Renames>,
    pub(crate) dtypes: Vec<(Names, DType)>,
    pub(crate) stored_dtypes: bool,
    pub(crate) parts: Vec<(Names, PartRule)>,
    pub(crate) complex_pairs: bool,
    pub(crate) overflow: Overflow,
    pub(crate) quantized: Quantized,
}

/// Which part of a tensor.
#[derive(Clone, Debug)]
pub(crate) enum PartRule {
    Slice(Slice),
    Shard(Shard),
}

impl Rules {
    fn renamed(&self, stored: &str) -> String {
        self.renames.iter().fold(stored.to_owned(), |name, renames| renames.apply(&name))
    }

    fn part(&self, name: &str, shape: &[usize]) -> Result<Option<Slice>> {
        match self.parts.iter().find(|(names, _)| names.contains(name)) {
            Some((_, PartRule::Slice(slice))) => Ok(Some(slice.clone())),
            Some((_, PartRule::Shard(shard))) => slice_of_shard(shape, *shard),
            None => Ok(None),
        }
    }
}

/// The part of a tensor of that shape that a rank has; `None` where it has the whole.
pub(crate) fn slice_of_shard(shape: &[usize], shard: Shard) -> Result<Option<Slice>> {
    if shard.world_size == 1 {
        return Ok(None);
    }
    let part = Part::of_rank(shape, shard.dim, shard.rank, shard.world_size)?;
    Ok(Some(part.slice().clone()))
}

/// The tensors of a load, in the checkpoint's order.
pub(crate) struct Catalog {
    checkpoint: Checkpoint,
    rules: Rules,
    rows: Vec<Row>,
    /// Indices of `rows`.
    by_name: HashMap<String, usize>,
}

struct Row {
    name: String,
    /// Its name in the checkpoint, where that is another.
    stored: Option<String>,
    part: Option<(Slice, Region)>,
    /// What [`Rules::dtypes`] give it.
    dtype: Option<DType>,
}

impl Catalog {
    /// Applies the rules.
    ///
    /// # Errors
    ///
    /// Fails when two tensors get one name, and when one does not have the part that it should have.
    pub(crate) fn new(checkpoint: &Checkpoint, rules: Rules) -> Result<Self> {
        let mut rows: Vec<Row> = Vec::new();
        let mut by_name = HashMap::new();
        for tensor in checkpoint.tensors() {
            if rules.filter.as_ref().is_some_and(|keep| !keep(&tensor)) {
                continue;
            }
            let name = rules.renamed(tensor.name());
            if let Some(first) = by_name.insert(name.clone(), rows.len()) {
                let first = rows.get(first).map_or("", Row::stored);
                let message = format!("{first:?} and this one would both be named {name:?}");
                return Err(blame(&tensor, Error::new(ErrorKind::DuplicateTensor, message)));
            }
            let part = rules.part(&name, tensor.shape()).and_then(|slice| match slice {
                Some(slice) => slice.of(tensor.dtype(), tensor.shape()).map(|region| Some((slice, region))),
                None => Ok(None),
            });
            let part = part.map_err(|error| blame(&tensor, error))?;
            let dtype = rules.dtypes.iter().find(|(names, _)| names.contains(&name)).map(|(_, dtype)| *dtype);
            let stored = (name != tensor.name()).then(|| tensor.name().to_owned());
            rows.push(Row { name, stored, part, dtype });
        }
        Ok(Self { checkpoint: checkpoint.clone(), rules, rows, by_name })
    }

    pub(crate) fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    pub(crate) fn items(&self) -> impl Iterator<Item = Item<'_>> {
        self.rows.iter().filter_map(|row| self.at(row))
    }

    /// The tensor of that name.
    pub(crate) fn item(&self, name: &str) -> Option<Item<'_>> {
        self.at(self.rows.get(*self.by_name.get(name)?)?)
    }

    fn at<'c>(&'c self, row: &'c Row) -> Option<Item<'c>> {
        Some(Item { rules: &self.rules, row, tensor: self.checkpoint.tensor(row.stored())? })
    }

    /// The names that are most like another.
    pub(crate) fn nearest(&self, name: &str) -> NearestNames<'_> {
        NearestNames::of(name, self.rows.iter().map(|row| &*row.name))
    }

    /// The name under which a tensor of the checkpoint is here.
    fn name_of(&self, tensor: &TensorRef<'_>) -> Option<&str> {
        let name = self.rules.renamed(tensor.name());
        let row = self.rows.get(*self.by_name.get(&name)?)?;
        (row.stored() == tensor.name()).then_some(&*row.name)
    }

    /// Fails where the tensor of that name holds codes of a quantised module or, where there is no such
    /// tensor, it would be the weight of one, unless codes are wanted.
    pub(crate) fn refuse_codes(&self, name: &str) -> Result<()> {
        if self.rules.quantized == Quantized::Raw {
            return Ok(());
        }
        let module = match self.item(name) {
            Some(item) => self.checkpoint.quantized_codes(item.tensor.name()),
            None => self.checkpoint.quantized().find(|module| {
                self.rules.renamed(&module.weight()) == name
                    && module.codes().any(|codes| self.name_of(&codes).is_some())
            }),
        };
        module.map_or(Ok(()), |module| Err(module.refusal(name, ADVICE)))
    }

    /// Fails where any tensor holds codes, unless they are wanted; says how many modules there are.
    pub(crate) fn refuse_all_codes(&self) -> Result<()> {
        if self.rules.quantized == Quantized::Raw {
            return Ok(());
        }
        let name = |module: QuantizedModule<'_>| module.codes().find_map(|codes| self.name_of(&codes));
        let mut found = self.checkpoint.quantized().filter_map(|module| Some((module, name(module)?)));
        let Some((module, name)) = found.next() else { return Ok(()) };
        let advice = match found.count() {
            0 => ADVICE.to_owned(),
            1 => format!("so is one more module; {ADVICE}"),
            more => format!("so are {more} more modules; {ADVICE}"),
        };
        Err(module.refusal(name, &advice))
    }

    /// Whether a tensor holds codes that only its model knows the dtype of.
    pub(crate) fn has_codes(&self, item: &Item<'_>) -> bool {
        item.rule(None).is_none()
            && !self.rules.stored_dtypes
            && self.checkpoint.quantized_codes(item.tensor.name()).is_some()
    }
}

const ADVICE: &str = "`quantized(Quantized::Raw)` loads the codes as they are";

impl Row {
    fn stored(&self) -> &str {
        self.stored.as_deref().unwrap_or(&self.name)
    }
}

/// One tensor of a load.
#[derive(Clone, Copy)]
pub(crate) struct Item<'c> {
    rules: &'c Rules,
    row: &'c Row,
    /// As it is stored.
    pub(crate) tensor: TensorRef<'c>,
}

impl<'c> Item<'c> {
    pub(crate) fn name(&self) -> &'c str {
        &self.row.name
    }

    /// The part that is taken of it, if not all.
    pub(crate) fn part(&self) -> Option<&'c Slice> {
        self.row.part.as_ref().map(|(slice, _)| slice)
    }

    /// The shape of what is taken of it.
    pub(crate) fn shape(&self) -> &'c [usize] {
        self.row.part.as_ref().map_or(self.tensor.shape(), |(_, region)| region.shape())
    }

    /// Whether a slice is what is taken of it anyway.
    pub(crate) fn is_part(&self, slice: &Slice) -> Result<bool> {
        let region = |slice: &Slice| slice.of(self.tensor.dtype(), self.tensor.shape());
        let whole;
        let taken = match &self.row.part {
            Some((_, region)) => region,
            None => {
                whole = region(&Slice::new())?;
                &whole
            }
        };
        Ok(region(slice)? == *taken)
    }

    /// The dtype that it has by the rules where `requested` is asked for; `None` leaves it as it is stored.
    pub(crate) fn rule(&self, requested: Option<DType>) -> Option<DType> {
        self.row.dtype.or(requested.filter(|_| !self.rules.stored_dtypes))
    }

    /// What it becomes.
    ///
    /// # Errors
    ///
    /// Fails when Candle cannot hold it, or not in that dtype.
    pub(crate) fn target(&self, dtype: Option<DType>, device: &Device) -> Result<Target> {
        target(self.tensor.dtype(), dtype, self.rules.complex_pairs, device)
    }

    /// The entry of a plan for what is taken of it, in the dtype in which it is read, and what it is to become.
    pub(crate) fn planned<'d>(
        &self,
        target: &Target,
        requested: bool,
        device: &'d Device,
    ) -> Result<(Entry, Request<'d>)> {
        let entry = self.entry(self.part(), requested)?;
        let read_as = target.read_as;
        let shape = target.shape(entry.shape());
        let entry = if entry.dtype() == read_as { entry } else { entry.recast(read_as)? };
        Ok((entry, Request { read_as, dtype: target.dtype, shape, device }))
    }

    /// The entry of a plan for a part of it, or for all, in the stored dtype. Where another dtype is `requested`, and
    /// not just given because Candle lacks the stored one, bits may be kept.
    pub(crate) fn entry(&self, slice: Option<&Slice>, requested: bool) -> Result<Entry> {
        let operation: Arc<dyn Operation> = match slice {
            Some(slice) => Arc::new(Part::of(slice.clone())),
            None => Arc::new(Read),
        };
        let entry = Entry::new(self.name(), vec![Input::of(&self.tensor)], operation);
        let entry = entry.map_err(|error| blame(&self.tensor, error))?.overflow(self.rules.overflow);
        Ok(if requested { entry.bit_casts(keeps_bits) } else { entry })
    }
}

/// Names the tensor and its file in an error.
fn blame(tensor: &TensorRef<'_>, error: Error) -> Error {
    let error = error.in_tensor(tensor.name());
    match tensor.shard().path() {
        Some(path) => error.in_file(path),
        None => error,
    }
}
