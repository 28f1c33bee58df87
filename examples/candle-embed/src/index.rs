//! Embeddings that are kept in a safetensors file, with what they were made of.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use weighbridge::write::Save;
use weighbridge::{Checkpoint, TensorRef};
use weighbridge_candle::{Loader, Saver};

use crate::embed::Embeddings;

/// The name of the tensor: a row for each text.
const TENSOR: &str = "embeddings";

/// Two runs of one model differ by less than this part of a vector's length, two models by more.
const TOLERANCE: f64 = 1e-3;

/// What embeddings were made of, as it is written into the file.
#[derive(Clone, Debug)]
pub(crate) struct MadeOf {
    /// The model, and the options that change vectors.
    pub(crate) settings: String,
    /// A number of 64 bits that other texts hardly have.
    pub(crate) texts: String,
}

impl MadeOf {
    pub(crate) fn new(settings: String, texts: &[String]) -> Self {
        Self { settings, texts: format!("{} lines, {:016x}", texts.len(), hash(texts)) }
    }

    fn pairs(&self) -> [(&'static str, &str); 2] {
        [("settings", &self.settings), ("texts", &self.texts)]
    }
}

/// Writes embeddings.
///
/// # Errors
///
/// The file cannot be written; then there is none, or the one that was there before.
pub(crate) fn save(path: &Path, embeddings: &Embeddings, made_of: &MadeOf) -> Result<()> {
    let Embeddings { dimensions, values } = embeddings;
    let shape = (values.len() / dimensions, *dimensions);
    let tensor = Tensor::from_slice(values, shape, &Device::Cpu)?;
    let save = made_of.pairs().into_iter().fold(Save::new(), |save, (key, value)| save.metadata(key, value));
    Saver::new().with(save).file(path, [(TENSOR, &tensor)])?;
    Ok(())
}

/// Reads embeddings back, if there are any and they were made of the same.
///
/// # Errors
///
/// The file is no such file, or of something else.
pub(crate) fn load(path: &Path, made_of: &MadeOf) -> Result<Option<Embeddings>> {
    if !path.exists() {
        return Ok(None);
    }
    let at = || path.display().to_string();
    let checkpoint = Checkpoint::open(path)?;
    let Some(&[rows, dimensions]) = checkpoint.tensor(TENSOR).as_ref().map(TensorRef::shape) else {
        bail!("{}: is no index: it has no matrix \"{TENSOR}\"", at());
    };
    for (key, expected) in made_of.pairs() {
        let found = checkpoint.shards().first().and_then(|shard| shard.header().metadata_value(key));
        let found = found.unwrap_or("nothing");
        ensure!(
            found == expected,
            "{}: was made with other {key} ({found}, now {expected}); remove it to make it anew",
            at()
        );
    }
    ensure!(rows > 0 && dimensions > 0, "{}: is empty", at());
    let weights = Loader::new(&checkpoint).dtype(DType::F32).device(&Device::Cpu).var_builder()?;
    let tensor = weights.get((rows, dimensions), TENSOR).with_context(at)?;
    Ok(Some(Embeddings { dimensions, values: tensor.flatten_all()?.to_vec1()? }))
}

/// Whether the first vector is what the model makes of the first text now: weights can change while all names stay.
///
/// # Errors
///
/// It is not.
pub(crate) fn check(path: &Path, embeddings: &Embeddings, first: &Embeddings) -> Result<()> {
    let (kept, now) = (embeddings.rows().next().unwrap_or_default(), &first.values[..]);
    let length = |values: &mut dyn Iterator<Item = f32>| -> f64 {
        values.map(|value| f64::from(value).powi(2)).sum::<f64>().sqrt()
    };
    let apart = length(&mut kept.iter().zip(now).map(|(x, y)| x - y));
    ensure!(
        kept.len() == now.len() && apart <= TOLERANCE * length(&mut now.iter().copied()),
        "{}: was made with another model: its first vector is not the one of the first line; remove it to make it anew",
        path.display()
    );
    Ok(())
}

/// FNV-1a.
fn hash(texts: &[String]) -> u64 {
    let lines = texts.iter().flat_map(|text| text.bytes().chain([b'\n']));
    lines.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
