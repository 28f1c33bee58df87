//! A safetensors file that exists nowhere as a whole: its header is in memory, its tensors are where they
//! are.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use weighbridge::plan::Input;
use weighbridge::source::{Concat, MemorySource, Source};
use weighbridge::write::{Order, Save};
use weighbridge::{BlockType, Checkpoint, Error, ErrorKind, Result};

use crate::contents::Tensor;

/// Lays the tensors of a foreign file out, in the order given; errors name the file, and the checkpoint has its directory.
pub(crate) fn checkpoint(
    file: &Path,
    directory: Option<&Path>,
    save: &Save,
    tensors: Vec<Tensor>,
) -> Result<Checkpoint> {
    checkpoint_of_blocks(file, directory, save, tensors, HashMap::new())
}

/// The same of tensors some of which are computed from blocks: these are the tensors of a checkpoint of their own.
pub(crate) fn checkpoint_of_blocks(
    file: &Path,
    directory: Option<&Path>,
    save: &Save,
    tensors: Vec<Tensor>,
    blocks: HashMap<String, (BlockType, Arc<dyn Source>)>,
) -> Result<Checkpoint> {
    let blocks = stored_blocks(file, &tensors, blocks)?;
    let described = tensors.iter().map(|tensor| (tensor.name.clone(), tensor.dtype, tensor.shape.clone()));
    let layout = save.clone().order(Order::Given).layout(described)?;
    let mut data: HashMap<String, Arc<dyn Source>> =
        tensors.into_iter().map(|tensor| (tensor.name, tensor.data)).collect();
    let mut parts: Vec<Arc<dyn Source>> = Vec::with_capacity(1 + data.len());
    parts.push(Arc::new(MemorySource(layout.header().to_vec())));
    let mut end = 0;
    for planned in layout.tensors() {
        let fail = |message| Error::new(ErrorKind::Internal, message).in_tensor(planned.name());
        let data = data.remove(planned.name()).ok_or_else(|| fail("it has no data".to_owned()))?;
        if data.size() != planned.byte_len() || planned.data_offsets().start != end {
            let (size, len) = (data.size(), planned.byte_len());
            return Err(fail(format!("its data has {size} bytes at {end}, its shape needs {len}")));
        }
        end = planned.data_offsets().end;
        parts.push(data);
    }
    let whole = Concat::new(parts);
    let whole = whole
        .ok_or_else(|| Error::new(ErrorKind::Overflow, "its tensors are more bytes than a file can have"))?;
    let options = Checkpoint::options().label(file);
    let options = match directory {
        Some(directory) => options.directory(directory),
        None => options,
    };
    options.from_source_of_blocks(whole, blocks)
}

/// Where in which checkpoint the blocks of tensors are.
fn stored_blocks(
    file: &Path,
    tensors: &[Tensor],
    mut blocks: HashMap<String, (BlockType, Arc<dyn Source>)>,
) -> Result<HashMap<String, (BlockType, Input)>> {
    let (mut stored, mut types) = (Vec::new(), Vec::new());
    for Tensor { name, shape, .. } in tensors {
        let Some((block_type, data)) = blocks.remove(name) else { continue };
        let Some(shape) = block_type.shape_in_words(shape) else { continue };
        stored.push(Tensor { name: name.clone(), dtype: block_type.words(), shape, data });
        types.push(block_type);
    }
    if stored.is_empty() {
        return Ok(HashMap::new());
    }
    let checkpoint = checkpoint(file, None, &Save::new(), stored)?;
    let named = checkpoint.tensors().zip(types);
    Ok(named
        .map(|(tensor, block_type)| (tensor.name().to_owned(), (block_type, Input::of(&tensor))))
        .collect())
}

#[cfg(test)]
mod tests {
    use std::mem::MaybeUninit;

    use weighbridge::Dtype;
    use weighbridge::source::Window;

    use super::*;
    use crate::probe::{Asked, Probe};

    /// Tensors `a` and `b` of 8 bytes each, behind 4 others, in one storage, and the source of the whole.
    fn assembled(probe: &Probe) -> Arc<dyn Source> {
        let tensor = |name: &str, start: u64| Tensor {
            name: name.to_owned(),
            dtype: Dtype::F32,
            shape: vec![2],
            data: Arc::new(Window::new(probe.clone(), start..start + 8).unwrap()),
        };
        let tensors = vec![tensor("b", 4), tensor("a", 12)];
        let checkpoint = checkpoint(Path::new("a.pt"), None, &Save::new(), tensors).unwrap();
        // The header is not read alone.
        probe.asked();
        Arc::clone(checkpoint.shards()[0].source())
    }

    #[test]
    fn tensors_are_read_where_they_are_into_memory_that_holds_nothing() {
        let probe = Probe::new((0..20).collect());
        let whole = assembled(&probe);
        let mut memory = [MaybeUninit::uninit(); 16];
        let bytes = whole.read_uninit_at(whole.size() - 16, &mut memory).unwrap();
        assert_eq!(bytes, (4..20).collect::<Vec<u8>>());
        // Nothing was zeroed first: that would be followed by a usual read.
        assert_eq!(probe.asked(), [Asked::ReadUninit(4..12), Asked::ReadUninit(12..20)]);
    }

    #[test]
    fn what_is_known_of_the_file_is_known_of_the_whole() {
        let probe = Probe::new(vec![0; 20]);
        let whole = assembled(&probe);
        assert_eq!(whole.is_cached(0..whole.size()), Some(true));
        whole.prefetch(whole.size() - 10..whole.size() - 2);
        let asked = [
            Asked::IsCached(4..12),
            Asked::IsCached(12..20),
            Asked::Prefetch(10..12),
            Asked::Prefetch(12..18),
        ];
        assert_eq!(probe.asked(), asked);
        let cold = assembled(&probe.cached_to(12));
        assert_eq!(cold.is_cached(0..cold.size() - 8), Some(true));
        assert_eq!(cold.is_cached(0..cold.size()), Some(false));
    }
}
