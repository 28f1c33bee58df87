//! A dataset: its elements, where they are or put together from chunks.

use std::io::{Seek, SeekFrom, Write};

use hdf5_reader::messages::HdfMessage;
use hdf5_reader::messages::dataspace::DataspaceType;
use hdf5_reader::messages::layout::DataLayout;
use hdf5_reader::{Dataset, Hdf5File};
use weighbridge::{Error, ErrorKind, Result, Source};

use super::datatype::{self, Elements, Numbers};
use super::read::broken;
use crate::arranged::{Order, arranged};
use crate::contents::Tensor;
use crate::cursor::{malformed, unsupported};
use crate::input::FilePart;
use crate::spool::{Spool, unwritten};

/// Smaller datasets that are not in one piece are read as a whole, in bytes.
pub(super) const AT_ONCE: usize = 16 << 20;

/// What is put together may be this many times longer than the file, or as long as this.
const MOST_RATIO: u64 = 200;
const ALWAYS: u64 = 64 << 20;

/// What a dataset is.
pub(super) enum Found {
    Tensor(Tensor, Numbers),
    Text,
    /// It has no elements, and no shape either.
    Empty,
    /// What safetensors cannot hold.
    Other(String),
}

/// The datasets of a file.
pub(super) struct Datasets {
    pub(super) file: FilePart,
    pub(super) reader: Hdf5File,
    pub(super) spool: Spool,
    /// Bytes that were put together.
    pub(super) made: u64,
}

impl Datasets {
    /// What a dataset is.
    pub(super) fn read(&mut self, name: &str, dataset: &Dataset) -> Result<Found> {
        let header = self.reader.get_or_parse_header(dataset.address()).map_err(broken)?;
        let is_empty = |message: &HdfMessage| match message {
            HdfMessage::Dataspace(space) => space.dataspace_type == DataspaceType::Null,
            _ => false,
        };
        if header.messages.iter().any(is_empty) {
            return Ok(Found::Empty);
        }
        let named = dataset.attribute("dtype").and_then(|attribute| attribute.read_string()).ok();
        let message = dataset.raw_datatype().map_err(broken)?;
        let numbers = match datatype::elements(&message, named.as_deref()) {
            Elements::Numbers(numbers) => numbers,
            Elements::Text => return Ok(Found::Text),
            Elements::Other(what) => return Ok(Found::Other(what)),
        };
        let dims = dataset.shape().iter().map(|&dim| usize::try_from(dim));
        let dims = dims.collect::<std::result::Result<Vec<_>, _>>();
        let dims = dims.map_err(|_| malformed("it has a dimension that is too large"))?;
        let shape: Vec<usize> = dims.iter().copied().chain(numbers.pair.map(|_| 2)).collect();
        let bytes = numbers.dtype.size_of(&shape)?;
        let part = match self.in_one_piece(dataset, bytes)? {
            Some(part) => part,
            None => self.put_together(dataset, &dims, numbers.width(), bytes)?,
        };
        let Numbers { dtype, big, .. } = numbers;
        let data = arranged(part, dtype, &shape, Order { big, fortran: false });
        Ok(Found::Tensor(Tensor { name: name.to_owned(), dtype, shape, data }, numbers))
    }

    /// Where the elements are, if they are in one piece.
    fn in_one_piece(&self, dataset: &Dataset, bytes: u64) -> Result<Option<FilePart>> {
        let header = self.reader.get_or_parse_header(dataset.address()).map_err(broken)?;
        let external = header.messages.iter().any(|message| matches!(message, HdfMessage::ExternalFiles(_)));
        if external {
            return Err(unsupported("its data is in another file, which is not read"));
        }
        let layout = header.messages.iter().find_map(|message| match message {
            HdfMessage::DataLayout(layout) => Some(&layout.layout),
            _ => None,
        });
        let Some(DataLayout::Contiguous { address, .. }) = layout else { return Ok(None) };
        // An address of ones: nothing was ever written.
        let undefined = u64::MAX >> (64 - 8 * u32::from(self.reader.superblock().offset_size.clamp(1, 8)));
        if *address == undefined || bytes == 0 {
            return Ok(None);
        }
        let start = address.checked_add(self.reader.superblock().base_address);
        let part = start.and_then(|start| self.file.narrow(start..start.checked_add(bytes)?));
        part.map(Some)
            .ok_or_else(|| malformed(format!("its {bytes} bytes at {address} are not within the file")))
    }

    /// Puts the elements together in a temporary file.
    fn put_together(
        &mut self,
        dataset: &Dataset,
        shape: &[usize],
        width: usize,
        bytes: u64,
    ) -> Result<FilePart> {
        self.made = self.made.saturating_add(bytes);
        if self.made > self.file.size().saturating_mul(MOST_RATIO).max(ALWAYS) {
            let message = format!("its {} bytes become {}: it is a bomb", self.file.size(), self.made);
            return Err(Error::new(ErrorKind::Unsafe, message));
        }
        if bytes <= AT_ONCE as u64 {
            let values = dataset.read_raw_bytes().map_err(broken)?;
            if values.len() as u64 != bytes {
                return Err(malformed(format!("its shape needs {bytes} bytes, it has {}", values.len())));
            }
            return self.spool.append(bytes, |out| out.write_all(&values).map_err(unwritten));
        }
        let chunks = dataset.chunks().ok_or_else(|| unsupported("it is large and was never written"))?;
        let most = shape.iter().zip(&chunks).try_fold(1_u64, |product, (&dim, &chunk)| {
            product.checked_mul((dim as u64).div_ceil(u64::from(chunk.max(1))))
        });
        let mut found = 0;
        let part = self.spool.append(bytes, |out| {
            for chunk in dataset.iter_chunks().map_err(broken)? {
                let chunk = chunk.map_err(broken)?;
                found += 1;
                place(chunk.offsets(), chunk.shape(), shape, width, |from, to, len| {
                    let bytes = chunk
                        .bytes()
                        .get(from..from + len)
                        .ok_or_else(|| malformed("a chunk is too short"))?;
                    out.seek(SeekFrom::Start(to)).map_err(unwritten)?;
                    out.write_all(bytes).map_err(unwritten)
                })?;
            }
            Ok(())
        })?;
        if Some(found) != most {
            return Err(unsupported("it is large and parts of it were never written"));
        }
        Ok(part)
    }
}

/// Calls `row` for each row of a chunk that is within the array: where in the chunk it is, where in the array, in bytes, and
/// how long.
fn place(
    offsets: &[u64],
    chunk: &[u64],
    shape: &[usize],
    width: usize,
    mut row: impl FnMut(usize, u64, usize) -> Result<()>,
) -> Result<()> {
    let dims = shape.len();
    if offsets.len() < dims || chunk.len() < dims || dims == 0 {
        return Err(malformed("a chunk has other dimensions than the array"));
    }
    // What of the chunk is within.
    let inner: Vec<u64> =
        (0..dims).map(|dim| chunk[dim].min((shape[dim] as u64).saturating_sub(offsets[dim]))).collect();
    let rows: u64 = inner[..dims - 1].iter().product();
    if inner.contains(&0) {
        return Ok(());
    }
    for mut number in 0..rows {
        let (mut from, mut to) = (0_u64, offsets[dims - 1]);
        let (mut chunk_step, mut step) = (chunk[dims - 1], shape[dims - 1] as u64);
        for dim in (0..dims - 1).rev() {
            let index = number % inner[dim];
            number /= inner[dim];
            from += index * chunk_step;
            to += (offsets[dim] + index) * step;
            chunk_step *= chunk[dim];
            step *= shape[dim] as u64;
        }
        let width64 = width as u64;
        row((from * width64) as usize, to * width64, inner[dims - 1] as usize * width)?;
    }
    Ok(())
}
