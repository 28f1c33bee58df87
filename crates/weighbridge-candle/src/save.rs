//! Candle tensors into files.

#[cfg(feature = "fs")]
mod files;

use std::collections::HashMap;
use std::io::{self, Write};

use candle_core::cpu_backend::CpuStorage;
use candle_core::{Device, Storage, StridedBlocks, Tensor};
use candle_nn::VarMap;
use weighbridge::write::{Aliases, Save, TensorData, Values};
use weighbridge::{Dtype, Element, Error, ErrorKind, Result};

#[cfg(feature = "cuda")]
use crate::cuda::{Download, Downloads};
use crate::dtype::to_stored;
use crate::staging::Staging;

/// Writes Candle tensors: one file or a sharded checkpoint, streamed, without a second copy of the model.
///
/// How it is written, with which metadata and in shards of which size, a [`Save`] says; what it promises when
/// something fails holds here too. Tensors are taken in the order of their names, so that a `HashMap` gives
/// the same bytes every time. Views and transposed tensors are written as they are seen, element by element
/// if need be.
///
/// ```
/// use weighbridge_candle::candle_core::{DType, Device, Tensor};
/// use weighbridge_candle::{Saver, weighbridge::write::Save};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let directory = tempfile::tempdir()?;
/// let weight = Tensor::zeros((4, 2), DType::F32, &Device::Cpu)?;
/// let saver = Saver::new().with(Save::new().metadata("format", "pt"));
/// saver.directory(&directory, "model", [("linear.weight", &weight), ("linear.weight_t", &weight.t()?)])?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Saver {
    save: Save,
    aliases: Option<Aliases>,
    staging: Staging,
}

impl Saver {
    /// No metadata, the official order, each alias in full.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets how files are written.
    #[must_use]
    pub fn with(mut self, save: Save) -> Self {
        self.save = save;
        self
    }

    /// Sets what becomes of tensors that are the same memory, seen in the same way: tied weights. [`Aliases::Each`]
    /// otherwise.
    #[must_use]
    pub fn aliases(mut self, aliases: Aliases) -> Self {
        self.aliases = Some(aliases);
        self
    }

    /// Sets through which memory tensors come from a GPU; otherwise each save has some of its own. See
    /// [`Staging`].
    #[must_use]
    pub fn staging(mut self, staging: &Staging) -> Self {
        self.staging = staging.clone();
        self
    }

    /// Writes to memory; see [`Save::bytes`].
    ///
    /// # Errors
    ///
    /// As [`Save::bytes`]; fails, too, for a dtype that the format does not have.
    pub fn bytes<N: Into<String>, T: AsRef<Tensor>>(
        &self,
        tensors: impl IntoIterator<Item = (N, T)>,
    ) -> Result<Vec<u8>> {
        let (save, tensors) = self.prepare(tensors)?;
        save.bytes(tensors)
    }

    fn prepare<N: Into<String>, T: AsRef<Tensor>>(
        &self,
        tensors: impl IntoIterator<Item = (N, T)>,
    ) -> Result<(Save, Vec<(String, Stored)>)> {
        let mut tensors: Vec<_> =
            tensors.into_iter().map(|(name, tensor)| (name.into(), tensor.as_ref().clone())).collect();
        tensors.sort_by(|a, b| a.0.cmp(&b.0));
        let mut save = self.save.clone();
        let mut first_names = HashMap::new();
        let mut stored = Vec::with_capacity(tensors.len());
        #[cfg(feature = "cuda")]
        let mut downloads = Downloads::new(&self.staging);
        for (name, tensor) in tensors {
            let tensor = Stored::new(tensor).map_err(|error| error.in_tensor(&name))?;
            #[cfg(feature = "cuda")]
            let tensor = Stored { download: downloads.of(tensor.tensor.device())?, ..tensor };
            if self.aliases == Some(Aliases::Once) {
                let first = first_names.entry(tensor.identity()).or_insert_with(|| name.clone());
                if *first != name {
                    save = save.metadata(name, first.clone());
                    continue;
                }
            }
            stored.push((name, tensor));
        }
        Ok((save, stored))
    }
}

/// The variables of a map by name, to be [saved](Saver).
///
/// ```no_run
/// # use weighbridge_candle::{Saver, candle_nn::VarMap, vars};
/// # fn save(map: &VarMap) -> weighbridge_candle::weighbridge::Result<()> {
/// Saver::new().file("model.safetensors", vars(map))
/// # }
/// ```
pub fn vars(map: &VarMap) -> Vec<(String, Tensor)> {
    let vars = map.data().lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    vars.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect()
}

/// A Candle tensor as the writer wants it.
struct Stored {
    tensor: Tensor,
    dtype: Dtype,
    /// The way from its GPU, if it is on one.
    #[cfg(feature = "cuda")]
    download: Option<std::sync::Arc<Download>>,
}

impl Stored {
    fn new(tensor: Tensor) -> Result<Self> {
        let dtype = to_stored(tensor.dtype())
            .ok_or_else(|| Error::new(ErrorKind::Dtype, format!("the format has no {:?}", tensor.dtype())))?;
        Ok(Self {
            tensor,
            dtype,
            #[cfg(feature = "cuda")]
            download: None,
        })
    }

    /// Where its memory is: tensors that share it have the same.
    fn memory(&self) -> u64 {
        let (storage, _) = self.tensor.storage_and_layout();
        std::ptr::from_ref::<Storage>(&storage).addr() as u64
    }

    /// The same memory, seen in the same way.
    fn identity(&self) -> (u64, usize, Vec<usize>, Vec<usize>) {
        let layout = self.tensor.layout();
        (self.memory(), layout.start_offset(), layout.dims().to_vec(), layout.stride().to_vec())
    }
}

impl TensorData for Stored {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        self.tensor.dims()
    }

    fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        let other =
            |error: candle_core::Error| io::Error::other(Error::new(ErrorKind::Device, error.to_string()));
        #[cfg(feature = "cuda")]
        if let Some(download) = &self.download {
            return download.write(&self.tensor, out).map_err(io::Error::other)?;
        }
        if !matches!(self.tensor.device(), Device::Cpu) {
            // One tensor at a time comes to the host.
            let tensor = self.tensor.to_device(&Device::Cpu).map_err(other)?;
            return write(&tensor, out);
        }
        write(&self.tensor, out)
    }

    #[cfg(feature = "cuda")]
    fn ranges(&self) -> Option<&dyn weighbridge::write::Ranges> {
        // What does not lie in one piece would be put together for each range.
        (self.download.is_some() && self.tensor.is_contiguous()).then_some(self)
    }

    /// Tensors without elements share nothing.
    fn storage(&self) -> Option<u64> {
        (self.tensor.elem_count() > 0).then(|| self.memory())
    }
}

#[cfg(feature = "cuda")]
impl weighbridge::write::Ranges for Stored {
    fn write_range(&self, bytes: std::ops::Range<u64>, out: &mut dyn Write) -> io::Result<()> {
        let lost = || Error::new(ErrorKind::Internal, "it is not on a GPU");
        let download = self.download.as_ref().ok_or_else(|| io::Error::other(lost()))?;
        download.write_range(&self.tensor, bytes, out).map_err(io::Error::other)?
    }
}

fn write(tensor: &Tensor, out: &mut dyn Write) -> io::Result<()> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else {
        return Err(io::Error::other(Error::new(ErrorKind::Device, "its memory is not the host's")));
    };
    match storage {
        CpuStorage::U8(values) => write_values(values, tensor, out),
        CpuStorage::U32(values) => write_values(values, tensor, out),
        CpuStorage::I16(values) => write_values(values, tensor, out),
        CpuStorage::I32(values) => write_values(values, tensor, out),
        CpuStorage::I64(values) => write_values(values, tensor, out),
        CpuStorage::BF16(values) => write_values(values, tensor, out),
        CpuStorage::F16(values) => write_values(values, tensor, out),
        CpuStorage::F32(values) => write_values(values, tensor, out),
        CpuStorage::F64(values) => write_values(values, tensor, out),
        CpuStorage::F8E4M3(values) => in_blocks(tensor, |start, len| {
            let mut bytes = [0; 4096];
            values[start..start + len].chunks(bytes.len()).try_for_each(|values| {
                values.iter().zip(&mut bytes).for_each(|(value, byte)| *byte = value.to_bits());
                out.write_all(&bytes[..values.len()])
            })
        }),
        CpuStorage::F4(bytes)
        | CpuStorage::F6E2M3(bytes)
        | CpuStorage::F6E3M2(bytes)
        | CpuStorage::F8E8M0(bytes) => {
            // Candle has no views of packed values.
            if layout.start_offset() > 0 || !layout.is_contiguous() {
                let message = format!("a view of {:?} cannot be written", tensor.dtype());
                return Err(io::Error::other(Error::new(ErrorKind::Dtype, message)));
            }
            out.write_all(bytes)
        }
    }
}

/// Writes what a tensor sees of `values`, in its order.
fn write_values<T: Element>(values: &[T], tensor: &Tensor, out: &mut dyn Write) -> io::Result<()> {
    /// Short runs are gathered into pieces of so many elements.
    const PIECE: usize = 16 << 10;
    let mut gathered = Vec::new();
    let flush = |gathered: &mut Vec<T>, out: &mut dyn Write| {
        write_all(gathered, out)?;
        gathered.clear();
        Ok::<_, io::Error>(())
    };
    in_blocks(tensor, |start, len| {
        let block = &values[start..start + len];
        if block.len() >= PIECE {
            flush(&mut gathered, out)?;
            return write_all(block, out);
        }
        gathered.extend_from_slice(block);
        if gathered.len() >= PIECE { flush(&mut gathered, out) } else { Ok(()) }
    })?;
    flush(&mut gathered, out)
}

fn write_all<T: Element>(values: &[T], out: &mut dyn Write) -> io::Result<()> {
    Values::new(&[values.len()], values).map_err(io::Error::other)?.write_to(out)
}

/// Calls `block` with start and length of each run of elements that lie together.
fn in_blocks(tensor: &Tensor, mut block: impl FnMut(usize, usize) -> io::Result<()>) -> io::Result<()> {
    if tensor.elem_count() == 0 {
        // Candle's iterators over strides do not end there.
        return Ok(());
    }
    match tensor.strided_blocks() {
        StridedBlocks::SingleBlock { start_offset, len } => block(start_offset, len),
        StridedBlocks::UniformBlocks { start_offset, block_len, count, src_stride } => {
            (0..count).try_for_each(|number| block(start_offset + number * src_stride, block_len))
        }
        StridedBlocks::MultipleBlocks { mut block_start_index, block_len } => {
            block_start_index.try_for_each(|start| block(start, block_len))
        }
    }
}
