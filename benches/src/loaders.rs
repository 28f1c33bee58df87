//! Whole checkpoints into tensors, ours and Candle's way, for every program that measures them.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use memmap2::Mmap;
use weighbridge::Checkpoint;
use weighbridge::engine::PageCache;
use weighbridge_candle::Loader;

/// Our `load` of a checkpoint's directory.
///
/// # Errors
///
/// Fails when the checkpoint cannot be loaded.
pub fn ours(directory: &Path, dtype: DType, page_cache: PageCache) -> Result<Vec<Tensor>> {
    let checkpoint = Checkpoint::open(directory)?;
    let loaded = Loader::new(&checkpoint).dtype(dtype).page_cache(page_cache).load()?;
    Ok(loaded.tensors.into_values().collect())
}

/// Candle's `load` of each file.
///
/// # Errors
///
/// Fails when a file cannot be loaded.
pub fn candle_load(files: &[PathBuf]) -> Result<Vec<Tensor>> {
    let mut tensors = Vec::new();
    for file in files {
        tensors.extend(candle_core::safetensors::load(file, &Device::Cpu)?.into_values());
    }
    Ok(tensors)
}

/// Candle's builder of mapped files.
///
/// # Errors
///
/// Fails when a file cannot be mapped or parsed.
#[allow(unsafe_code)]
pub fn candle_mapped(files: &[PathBuf], dtype: DType) -> Result<VarBuilder<'static>> {
    // SAFETY: the files are ours, and nobody changes them while they are mapped.
    Ok(unsafe { VarBuilder::from_mmaped_safetensors(files, dtype, &Device::Cpu) }?)
}

/// All tensors, of these names and shapes, asked for as a model does.
///
/// # Errors
///
/// Fails when one is not there.
pub fn collect(builder: &VarBuilder<'_>, tensors: &[(String, Vec<usize>)]) -> Result<Vec<Tensor>> {
    tensors.iter().map(|(name, shape)| Ok(builder.get(&**shape, name)?)).collect()
}

/// A mapped file.
///
/// # Errors
///
/// Fails when it cannot be mapped.
#[allow(unsafe_code)]
pub fn map(file: &Path) -> Result<Mmap> {
    // SAFETY: the file is ours, and nobody changes it while it is mapped.
    Ok(unsafe { Mmap::map(&File::open(file)?) }?)
}
