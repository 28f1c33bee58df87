//! Figures of the values, read piece by piece.

use weighbridge::{Error, Result, TensorRef};
use weighbridge_page::{Count, Figures, Survey};

/// Bytes at a time: a multiple of every element's size.
const PIECE: u64 = 3 << 20;

/// Milliseconds after which it is looked whether anybody wants no more.
const A_WHILE: f64 = 150.0;

/// How far the values were read.
pub(crate) struct Reading {
    bytes: u64,
    done: u64,
    /// How far the tensor was read that comes next, and what is known of it.
    offset: u64,
    count: Count,
    /// Of the tensors before it.
    figures: Vec<Option<Figures>>,
    memory: Vec<u8>,
}

impl Reading {
    /// Nothing was read yet.
    pub(crate) fn of(survey: &Survey<'_>) -> Self {
        let readable = survey.tensors().iter().filter(|tensor| Count::can_read(tensor.dtype()));
        Self {
            bytes: readable.map(TensorRef::byte_len).sum(),
            done: 0,
            offset: 0,
            count: Count::default(),
            figures: Vec::new(),
            memory: Vec::new(),
        }
    }

    /// What there is to read.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Reads for a while; `None` when all values were read, the number of bytes that were otherwise.
    pub(crate) fn step(&mut self, tensors: &[TensorRef<'_>]) -> Result<Option<u64>> {
        let start = js_sys::Date::now();
        while js_sys::Date::now() - start < A_WHILE {
            let Some(tensor) = tensors.get(self.figures.len()) else { return Ok(None) };
            if !Count::can_read(tensor.dtype()) {
                self.figures.push(None);
                continue;
            }
            let len = PIECE.min(tensor.byte_len() - self.offset);
            if len > 0 {
                self.memory.resize(len as usize, 0);
                let start = tensor.info().file_range().start + self.offset;
                let read = tensor.shard().source().read_at(start, &mut self.memory);
                read.map_err(|error| Error::io("its values cannot be read", error).in_tensor(tensor.name()))?;
                let count = Count::of(tensor.dtype(), &self.memory)?;
                self.count = std::mem::take(&mut self.count).merge(count);
            }
            self.offset += len;
            self.done += len;
            if self.offset == tensor.byte_len() {
                self.figures.push(Some(std::mem::take(&mut self.count).figures(tensor.dtype())?));
                self.offset = 0;
            }
        }
        Ok(Some(self.done))
    }

    /// Those of all tensors, of which there are so many, if they were read.
    pub(crate) fn figures(&self, tensors: usize) -> Option<Vec<Option<Figures>>> {
        (self.figures.len() == tensors).then(|| self.figures.clone())
    }
}
