//! What can be written: tensors that give their bytes.

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::path::Path;

use crate::checkpoint::{Shard, TensorRef};
use crate::dtype::Dtype;
use crate::error::{Error, ErrorKind, Result};
use crate::text::brief;
use crate::view::{Element, TensorView};

/// A tensor that can be written.
///
/// It is asked for dtype and shape first, and for its bytes once, when they are due. So a tensor may be
/// anything that can get at its bytes: memory, a device, a place in another file, a computation.
///
/// ```
/// use std::io::{self, Write};
/// use weighbridge::{Dtype, write::TensorData};
///
/// /// A matrix of zeros that is nowhere.
/// struct Zeros(Vec<usize>);
///
/// impl TensorData for Zeros {
///     fn dtype(&self) -> Dtype {
///         Dtype::BF16
///     }
///
///     fn shape(&self) -> &[usize] {
///         &self.0
///     }
///
///     fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
///         let bytes = 2 * self.0.iter().product::<usize>() as u64;
///         io::copy(&mut io::Read::take(io::repeat(0), bytes), out).map(drop)
///     }
/// }
/// ```
pub trait TensorData {
    /// The type of the elements.
    fn dtype(&self) -> Dtype;

    /// The size of each dimension, in elements; empty for a scalar.
    fn shape(&self) -> &[usize];

    /// Writes the bytes as the file has them, little-endian and row by row, in pieces of any size.
    ///
    /// # Errors
    ///
    /// Passes on what `out` says, and fails when the bytes cannot be read or made. An [`Error`] of this crate may be
    /// wrapped by [`io::Error::other`]; it comes out again as it was.
    fn write_to(&self, out: &mut dyn Write) -> io::Result<()>;

    /// Where its bytes lie in a file just as they are to be written, if they do: the kernel may then copy
    /// them from there, and [`write_to`](Self::write_to) is not called.
    fn stored(&self) -> Option<Stored<'_>> {
        None
    }

    /// Its bytes in any order, if it can give them so: several threads may then write them to a file at a
    /// time, and [`write_to`](Self::write_to) is not called. It is of use where the bytes come from a device,
    /// or are made.
    fn ranges(&self) -> Option<&dyn Ranges> {
        None
    }

    /// A number that tensors have in common which share their memory. Such tensors are put into one shard and
    /// count once towards its size, as in `huggingface_hub`; each is still written, as the format knows no
    /// sharing.
    fn storage(&self) -> Option<u64> {
        None
    }
}

/// Bytes of a tensor in any order, for several threads at a time.
pub trait Ranges: Sync {
    /// Writes these bytes of the tensor, counted from its first, as the file has them, in pieces of any size.
    ///
    /// # Errors
    ///
    /// As [`TensorData::write_to`].
    fn write_range(&self, bytes: Range<u64>, out: &mut dyn Write) -> io::Result<()>;

    /// The number of ranges that are best asked for at a time, where each waits for something slow, such as a network; there
    /// are at least as many as there are cores.
    fn concurrency(&self) -> usize {
        1
    }
}

/// Bytes of a file.
#[derive(Clone, Debug)]
#[cfg_attr(not(all(feature = "fs", target_os = "linux")), allow(dead_code))]
pub struct Stored<'a> {
    pub(super) file: &'a File,
    pub(super) path: Option<&'a Path>,
    pub(super) range: Range<u64>,
}

impl<'a> Stored<'a> {
    /// The bytes in `range` of a file that is open for reading.
    pub fn new(file: &'a File, range: Range<u64>) -> Self {
        Self { file, path: None, range }
    }

    /// Sets the path of the file, for error messages.
    #[must_use]
    pub fn with_path(mut self, path: &'a Path) -> Self {
        self.path = Some(path);
        self
    }

    /// Bytes of a shard, if they are contiguous in a file.
    pub(crate) fn of(shard: &'a Shard, range: Range<u64>) -> Option<Self> {
        let len = range.end.checked_sub(range.start)?;
        let (file, start) = shard.source().in_file(range)?;
        Some(Self { file, path: shard.label(), range: start..start.checked_add(len)? })
    }
}

impl<T: TensorData + ?Sized> TensorData for &T {
    fn dtype(&self) -> Dtype {
        (**self).dtype()
    }

    fn shape(&self) -> &[usize] {
        (**self).shape()
    }

    fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        (**self).write_to(out)
    }

    fn stored(&self) -> Option<Stored<'_>> {
        (**self).stored()
    }

    fn ranges(&self) -> Option<&dyn Ranges> {
        (**self).ranges()
    }

    fn storage(&self) -> Option<u64> {
        (**self).storage()
    }
}

impl<T: TensorData + ?Sized> TensorData for Box<T> {
    fn dtype(&self) -> Dtype {
        (**self).dtype()
    }

    fn shape(&self) -> &[usize] {
        (**self).shape()
    }

    fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        (**self).write_to(out)
    }

    fn stored(&self) -> Option<Stored<'_>> {
        (**self).stored()
    }

    fn ranges(&self) -> Option<&dyn Ranges> {
        (**self).ranges()
    }

    fn storage(&self) -> Option<u64> {
        (**self).storage()
    }
}

impl TensorData for TensorView<'_> {
    fn dtype(&self) -> Dtype {
        TensorView::dtype(self)
    }

    fn shape(&self) -> &[usize] {
        TensorView::shape(self)
    }

    fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(self.bytes())
    }
}

/// Copied from its own file, by the kernel where it can.
impl TensorData for TensorRef<'_> {
    fn dtype(&self) -> Dtype {
        TensorRef::dtype(self)
    }

    fn shape(&self) -> &[usize] {
        TensorRef::shape(self)
    }

    fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        match self.view() {
            Some(view) => view.write_to(out),
            None => self.write_range(0..self.byte_len(), out),
        }
    }

    /// Bytes from far away are asked for by several threads; from a disk, one is enough.
    fn ranges(&self) -> Option<&dyn Ranges> {
        self.shard().hints().is_far().then_some(self)
    }

    fn stored(&self) -> Option<Stored<'_>> {
        Stored::of(self.shard(), self.info().file_range())
    }
}

impl Ranges for TensorRef<'_> {
    fn write_range(&self, bytes: Range<u64>, out: &mut dyn Write) -> io::Result<()> {
        const STEP: u64 = 4 << 20;
        let start = self.info().file_range().start;
        let (mut at, end) = (start.saturating_add(bytes.start), start.saturating_add(bytes.end));
        let mut buf = vec![0; STEP.min(end.saturating_sub(at)) as usize];
        while at < end {
            let part = &mut buf[..(end - at).min(STEP) as usize];
            self.shard().source().read_at(at, part).map_err(|error| {
                let error = Error::io("its bytes cannot be read", error).in_tensor(self.name());
                io::Error::other(self.shard().blame(error))
            })?;
            out.write_all(part)?;
            at += part.len() as u64;
        }
        Ok(())
    }

    fn concurrency(&self) -> usize {
        self.shard().hints().concurrency
    }
}

/// Values in memory, to be written as a tensor.
///
/// ```
/// use weighbridge::write::Values;
///
/// # fn main() -> weighbridge::Result<()> {
/// let weight = Values::new(&[2, 2], &[1.0_f32, 0.0, 0.0, 1.0])?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Values<'a, T> {
    shape: &'a [usize],
    values: &'a [T],
}

impl<'a, T: Element> Values<'a, T> {
    /// A tensor of that shape, of the first of [`Element::DTYPES`].
    ///
    /// # Errors
    ///
    /// Fails with [`ErrorKind::Shape`] when the shape does not have as many elements as there are values.
    pub fn new(shape: &'a [usize], values: &'a [T]) -> Result<Self> {
        let elements = shape.iter().try_fold(1_usize, |product, &dim| product.checked_mul(dim));
        if elements != Some(values.len()) {
            let message = format!("{} values are not a tensor of shape {}", values.len(), brief(shape));
            return Err(Error::new(ErrorKind::Shape, message));
        }
        Ok(Self { shape, values })
    }
}

impl<T: Element> TensorData for Values<'_, T> {
    fn dtype(&self) -> Dtype {
        T::DTYPES[0]
    }

    fn shape(&self) -> &[usize] {
        self.shape
    }

    fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        if cfg!(target_endian = "little") || size_of::<T>() == 1 {
            return out.write_all(bytemuck::cast_slice(self.values));
        }
        self.values.chunks(4096).try_for_each(|values| {
            let mut bytes = vec![0; size_of_val(values)];
            let places = bytes.chunks_exact_mut(size_of::<T>());
            values.iter().zip(places).for_each(|(value, bytes)| value.to_file(bytes));
            out.write_all(&bytes)
        })
    }
}
