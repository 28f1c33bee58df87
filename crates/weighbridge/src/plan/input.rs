//! The stored tensors that go into an entry, and those that are derived from stored ones.

use std::hash::{Hash, Hasher};
use std::ops::Range;
use std::sync::Arc;

use super::derived::Derived;
use crate::checkpoint::{Shard, TensorRef};
use crate::dtype::Dtype;

/// A stored tensor that goes into an [`Entry`](super::Entry): the shard that holds it, and which of its bytes.
#[derive(Clone, Debug)]
pub struct Input {
    shard: Arc<Shard>,
    range: Range<u64>,
    dtype: Dtype,
    shape: Vec<usize>,
    /// What makes it, if it is not stored.
    derived: Option<Arc<Derived>>,
}

impl Input {
    /// What tells inputs apart, and their order: as they lie in the shards, which come in the order in which they were
    /// opened.
    fn key(&self) -> (u64, u64, u64, Dtype, &[usize]) {
        (self.shard.number(), self.range.start, self.range.end, self.dtype, &self.shape)
    }
}

/// Whether they are the same bytes of the same shard, of one dtype and shape.
impl PartialEq for Input {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Input {}

impl Hash for Input {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

impl PartialOrd for Input {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// The order in which inputs lie in their files; files come in the order in which they were opened.
impl Ord for Input {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

impl Input {
    /// A tensor of a checkpoint.
    pub fn of(tensor: &TensorRef<'_>) -> Self {
        Self {
            shard: Arc::clone(tensor.shard()),
            range: tensor.info().file_range(),
            dtype: tensor.dtype(),
            shape: tensor.shape().to_vec(),
            derived: tensor.shard().derived(tensor.number()).cloned(),
        }
    }

    /// What makes it, if it is not stored.
    pub(crate) fn derived(&self) -> Option<&Arc<Derived>> {
        self.derived.as_ref()
    }

    /// The same tensor in `F32`, which holds its values before they were rounded; as it is if it has none of those.
    pub(super) fn widened(&self) -> Self {
        let derived = match &self.derived {
            Some(derived) => derived.widened(),
            // Smaller ones may be codes.
            None if matches!(self.dtype, Dtype::F16 | Dtype::BF16) => Derived::cast(self, Dtype::F32),
            None => None,
        };
        match derived {
            Some(derived) => Self { dtype: Dtype::F32, derived: Some(Arc::new(derived)), ..self.clone() },
            None => self.clone(),
        }
    }

    /// The shard that holds it.
    pub fn shard(&self) -> &Arc<Shard> {
        &self.shard
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

    /// Where in the shard some of its bytes are; `None` if it does not have them.
    pub(crate) fn bytes(&self, bytes: &Range<u64>) -> Option<Range<u64>> {
        let within = bytes.start <= bytes.end && bytes.end <= self.range.end - self.range.start;
        within.then(|| self.range.start + bytes.start..self.range.start + bytes.end)
    }
}
