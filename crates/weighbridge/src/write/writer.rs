//! Tensors into a sink, one after the other, every length checked.

use std::io;

use super::data::TensorData;
use super::layout::{Layout, Planned};
use super::watch::{Watch, Watched};
use crate::error::{Error, ErrorKind, Result};

/// Takes the tensors of a [`Layout`] in its order and writes them; nothing is held back.
///
/// After an error in the middle of a tensor the writer refuses everything: what its sink has is no
/// checkpoint.
#[derive(Debug)]
pub struct Writer<W> {
    pub(super) layout: Layout,
    pub(super) sink: W,
    /// The index of the tensor that is being written or comes next.
    pub(super) next: usize,
    /// Whether a tensor was begun and not finished.
    pub(super) open: bool,
}

impl Layout {
    /// Writes the header and takes the tensors then, one by one.
    ///
    /// # Errors
    ///
    /// Fails when the header cannot be written.
    pub fn writer<W: io::Write>(self, mut sink: W) -> Result<Writer<W>> {
        sink.write_all(self.header()).map_err(|error| Error::io("the header cannot be written", error))?;
        Ok(Writer { layout: self, sink, next: 0, open: false })
    }
}

impl<W: io::Write> Writer<W> {
    /// The tensor whose turn it is; `None` when all are written.
    pub fn expects(&self) -> Option<&str> {
        self.layout.tensors().get(self.next).map(Planned::name)
    }

    /// Where the tensor whose turn it is stood in the order given.
    pub(super) fn given(&self) -> Option<usize> {
        self.layout.tensors().get(self.next).map(Planned::given)
    }

    /// What is written.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Begins the next tensor, which is the one that [`expects`](Self::expects) names.
    ///
    /// # Errors
    ///
    /// Fails when it is another one's turn, or the one before was not finished.
    pub fn tensor(&mut self, name: &str) -> Result<TensorWriter<'_, W>> {
        let fail = |kind, message: String| Err(Error::new(kind, message).in_tensor(name));
        let Some(planned) = self.layout.tensors().get(self.next) else {
            return fail(ErrorKind::MissingTensor, "all tensors of the layout are written".to_owned());
        };
        if self.open {
            let message = format!("the tensor {:?} before it was not finished", planned.name());
            return fail(ErrorKind::TensorSize, message);
        }
        if planned.name() != name {
            let message = format!("it is the turn of {:?}", planned.name());
            return fail(ErrorKind::MissingTensor, message);
        }
        self.open = true;
        let left = planned.byte_len();
        Ok(TensorWriter { writer: self, left, excess: false })
    }

    /// Writes the next tensor as a whole.
    ///
    /// # Errors
    ///
    /// As [`tensor`](Self::tensor); fails, too, when the bytes are not as many as the layout says or cannot
    /// be written.
    pub fn put(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let mut tensor = self.tensor(name)?;
        let written = io::Write::write_all(&mut tensor, bytes);
        written.map_err(|error| Error::io("it cannot be written", error).in_tensor(name))?;
        tensor.finish()
    }

    /// The name of the next tensor, where there is one to be.
    pub(super) fn next_name(&self) -> Result<String> {
        let none = || Error::new(ErrorKind::Internal, "all tensors of the layout are written");
        self.expects().map(str::to_owned).ok_or_else(none)
    }

    /// Writes `data` as the next tensor, whatever its name.
    pub(super) fn write(&mut self, data: &dyn TensorData, watch: &mut Watch) -> Result<()> {
        let name = self.next_name()?;
        let mut tensor = self.tensor(&name)?;
        let written = data.write_to(&mut Watched { sink: &mut tensor, watch });
        // Bytes that were refused are the cause, whatever the tensor made of the refusal.
        tensor.check_excess()?;
        written.map_err(|error| Error::io("it cannot be written", error).in_tensor(&name))?;
        tensor.finish()
    }

    /// Flushes and gives back the sink, once every tensor is there.
    ///
    /// # Errors
    ///
    /// Fails when one is not, and when the sink cannot be flushed.
    pub fn finish(mut self) -> Result<W> {
        if let Some(name) = self.expects() {
            let what = if self.open { "it was not finished" } else { "it was not written" };
            return Err(Error::new(ErrorKind::MissingTensor, what).in_tensor(name));
        }
        self.sink.flush().map_err(|error| Error::io("it cannot be written", error))?;
        Ok(self.sink)
    }
}

/// Takes the bytes of one tensor, little-endian and row by row, in pieces of any size.
///
/// It is an [`io::Write`] and takes as many bytes as the tensor has, no more. One that is dropped before
/// [`finish`](Self::finish) makes the writer refuse what follows.
#[derive(Debug)]
pub struct TensorWriter<'w, W> {
    pub(super) writer: &'w mut Writer<W>,
    pub(super) left: u64,
    excess: bool,
}

impl<W: io::Write> TensorWriter<'_, W> {
    /// The bytes that are still missing.
    pub fn remaining(&self) -> u64 {
        self.left
    }

    /// Ends the tensor.
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::TensorSize`] when bytes are missing or too many were given.
    pub fn finish(self) -> Result<()> {
        self.check_excess()?;
        if self.left > 0 {
            return Err(self.wrong_size("only", self.needed() - self.left));
        }
        self.writer.open = false;
        self.writer.next += 1;
        Ok(())
    }

    fn check_excess(&self) -> Result<()> {
        if self.excess { Err(self.wrong_size("more than", self.needed())) } else { Ok(()) }
    }

    fn needed(&self) -> u64 {
        self.writer.layout.tensors()[self.writer.next].byte_len()
    }

    pub(super) fn wrong_size(&self, how: &str, came: u64) -> Error {
        let planned = &self.writer.layout.tensors()[self.writer.next];
        let (dtype, needed) = (planned.dtype(), planned.byte_len());
        let shape = crate::text::brief(planned.shape());
        let message = format!("shape {shape} of {dtype} needs {needed} bytes, but {how} {came} came");
        Error::new(ErrorKind::TensorSize, message).in_tensor(planned.name())
    }
}

impl<W: io::Write> io::Write for TensorWriter<'_, W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if buf.len() as u64 > self.left || self.excess {
            self.excess = true;
            return Err(io::Error::other(self.wrong_size("more than", self.needed())));
        }
        let written = self.writer.sink.write(buf)?;
        self.left = self.left.saturating_sub(written as u64);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.sink.flush()
    }
}
