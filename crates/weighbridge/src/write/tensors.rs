//! Named tensors, written in the order of a layout.

use std::io;

use super::copy::worth_a_call;
use super::data::TensorData;
use super::layout::{Layout, Planned};
use super::output::OutputFile;
use super::watch::Watch;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::progress::Handler;

pub(super) fn named<N: Into<String>, T>(tensors: impl IntoIterator<Item = (N, T)>) -> Vec<(String, T)> {
    tensors.into_iter().map(|(name, data)| (name.into(), data)).collect()
}

pub(super) fn described<T: TensorData>((name, data): &(String, T)) -> (String, Dtype, Vec<usize>) {
    (name.clone(), data.dtype(), data.shape().to_vec())
}

/// Counts the bytes of all tensors of the layouts.
pub(super) fn watch<'l>(handler: Option<Handler>, layouts: impl IntoIterator<Item = &'l Layout>) -> Watch {
    let planned = layouts.into_iter().flat_map(Layout::tensors);
    Watch::new(handler, planned.map(Planned::byte_len).sum())
}

/// Writes what was laid out; `tensor` gives each tensor by its index in the order in which they were given.
pub(super) fn write_into<'t, T: TensorData + 't, W: io::Write>(
    layout: Layout,
    sink: W,
    tensor: impl Fn(usize) -> &'t T,
    watch: &mut Watch,
) -> Result<W> {
    let mut writer = layout.writer(sink)?;
    while let Some(given) = writer.given() {
        writer.write(tensor(given), watch)?;
    }
    writer.finish()
}

/// The same into a file, to which the kernel copies what lies in other files, and several threads write what
/// comes in any order.
pub(super) fn write_file<'t, T: TensorData + 't>(
    layout: Layout,
    output: OutputFile,
    tensor: impl Fn(usize) -> &'t T,
    watch: &mut Watch,
) -> Result<OutputFile> {
    let mut writer = layout.writer(output)?;
    // So many of the next tensors are not worth several threads.
    let mut alone = 0_usize;
    while let Some(given) = writer.given() {
        let data = tensor(given);
        if let Some(stored) = data.stored().filter(worth_a_call) {
            if writer.copy(&stored, watch)? {
                continue;
            }
        }
        if alone == 0 && data.ranges().is_some() {
            alone = writer.write_together(|given| tensor(given).ranges(), watch)?;
            if alone == 0 {
                continue;
            }
        }
        writer.write(data, watch)?;
        alone = alone.saturating_sub(1);
    }
    writer.finish()
}
