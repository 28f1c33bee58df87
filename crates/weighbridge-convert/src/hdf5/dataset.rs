//! A dataset: its dtype, and its elements, where they are or put together from chunks.

use std::io::{Seek, SeekFrom, Write};

use hdf5_reader::messages::HdfMessage;
use hdf5_reader::messages::layout::DataLayout;
use hdf5_reader::{ByteOrder, Dataset, Datatype, Hdf5File};
use weighbridge::{Dtype, Error, ErrorKind, Result, Source};

use super::broken;
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

/// The datasets of a file.
pub(super) struct Datasets {
    pub(super) file: FilePart,
    pub(super) reader: Hdf5File,
    pub(super) spool: Spool,
    /// Bytes that were put together.
    pub(super) made: u64,
}

impl Datasets {
    /// The tensor that a dataset is, or why it is none.
    pub(super) fn tensor(
        &mut self,
        name: &str,
        dataset: &Dataset,
    ) -> Result<std::result::Result<Tensor, String>> {
        let (dtype, big) = match dtype(dataset)? {
            Ok(found) => found,
            Err(what) => return Ok(Err(format!("it is {what}, for which safetensors has no place"))),
        };
        let shape = dataset
            .shape()
            .iter()
            .map(|&dim| usize::try_from(dim))
            .collect::<std::result::Result<Vec<_>, _>>();
        let shape = shape.map_err(|_| malformed("it has a dimension that is too large"))?;
        let bytes = dtype.size_of(&shape)?;
        let part = match self.in_one_piece(dataset, bytes)? {
            Some(part) => part,
            None => self.put_together(dataset, &shape, dtype.bits() as usize / 8, bytes)?,
        };
        let data = arranged(part, dtype, &shape, Order { big, fortran: false });
        Ok(Ok(Tensor { name: name.to_owned(), dtype, shape, data }))
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
        let part = start.and_then(|start| self.file.part(start..start.checked_add(bytes)?));
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

/// The dtype of a dataset and whether it is big-endian, or what else it is.
fn dtype(dataset: &Dataset) -> Result<std::result::Result<(Dtype, bool), &'static str>> {
    let big = |order: &ByteOrder| *order == ByteOrder::BigEndian;
    let half = |big| Ok(Ok((Dtype::BF16, big)));
    Ok(Ok(match dataset.dtype() {
        // Keras says so beside the bytes, which have no dtype in HDF5.
        Datatype::FixedPoint { size: 2, byte_order, .. } if is_bfloat16(dataset) => {
            return half(big(byte_order));
        }
        Datatype::Opaque { size: 2, .. } if is_bfloat16(dataset) => return half(false),
        Datatype::FixedPoint { size, signed, byte_order } => {
            let dtype = match (size, signed) {
                (1, true) => Dtype::I8,
                (1, false) => Dtype::U8,
                (2, true) => Dtype::I16,
                (2, false) => Dtype::U16,
                (4, true) => Dtype::I32,
                (4, false) => Dtype::U32,
                (8, true) => Dtype::I64,
                (8, false) => Dtype::U64,
                _ => return Ok(Err("integers of another size")),
            };
            (dtype, big(byte_order))
        }
        Datatype::FloatingPoint { byte_order, .. } => match float(dataset)? {
            Some(dtype) => (dtype, big(byte_order)),
            None => return Ok(Err("floats of another form")),
        },
        // What h5py makes of truth values.
        Datatype::Enum { base, members } => match &**base {
            Datatype::FixedPoint { size: 1, .. } if members.len() == 2 => (Dtype::Bool, false),
            _ => return Ok(Err("an enumeration")),
        },
        Datatype::String { .. } | Datatype::VarLen { .. } => return Ok(Err("text")),
        Datatype::Compound { .. } => return Ok(Err("compound")),
        _ => return Ok(Err("no numbers")),
    }))
}

/// Which floats these are: the bits of exponent and mantissa say it.
fn float(dataset: &Dataset) -> Result<Option<Dtype>> {
    let message = dataset.raw_datatype().map_err(broken)?;
    // Behind class, flags and size: offset and precision of the bits, place and size of exponent and mantissa, bias.
    let Some(
        &[class, _, _, _, size, 0, 0, 0, 0, 0, precision, 0, _, exponent, 0, mantissa, b0, b1, b2, b3, ..],
    ) = message.first_chunk::<20>()
    else {
        return Ok(None);
    };
    let bias = u32::from_le_bytes([b0, b1, b2, b3]);
    let whole = class & 15 == 1 && u32::from(precision) == 8 * u32::from(size);
    Ok(match (whole, exponent, mantissa, bias) {
        (true, 11, 52, 1023) => Some(Dtype::F64),
        (true, 8, 23, 127) => Some(Dtype::F32),
        (true, 8, 7, 127) => Some(Dtype::BF16),
        (true, 5, 10, 15) => Some(Dtype::F16),
        _ => None,
    })
}

fn is_bfloat16(dataset: &Dataset) -> bool {
    let dtype = dataset.attribute("dtype").and_then(|attribute| attribute.read_string());
    dtype.is_ok_and(|dtype| dtype == "bfloat16")
}
