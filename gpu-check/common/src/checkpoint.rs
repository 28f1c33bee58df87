//! A checkpoint that is made here, byte by byte known.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::dice::mixed;

/// The dtype of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Float {
    /// Two bytes.
    Bf16,
    /// Four bytes.
    F32,
}

impl Float {
    /// Bytes of an element.
    pub fn size(self) -> usize {
        match self {
            Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "BF16",
            Self::F32 => "F32",
        }
    }
}

/// A tensor of a checkpoint.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Its shape.
    pub shape: Vec<usize>,
    /// Where its bytes begin in the data.
    pub start: u64,
    /// How many there are.
    pub bytes: u64,
}

/// What a checkpoint holds: the tensors of a Llama, so to speak.
#[derive(Clone, Debug)]
pub struct Model {
    /// Its dtype.
    pub float: Float,
    /// Rows of the embedding.
    pub vocabulary: usize,
    /// Width of the layers.
    pub width: usize,
    /// Width inside of them.
    pub inner: usize,
    /// Number of layers.
    pub layers: usize,
    /// Its tensors by name.
    pub tensors: BTreeMap<String, Tensor>,
    seed: u64,
}

impl Model {
    /// A model of about `size` bytes.
    pub fn new(size: u64, float: Float, seed: u64) -> Self {
        let width = (2048.0 * (size as f64 / float.size() as f64 / 1.1e9).sqrt() / 64.0).round().max(1.0);
        let width = (width as usize * 64).min(8192);
        let (vocabulary, inner) = (if width < 512 { 512 } else { 32_000 }, width * 11 / 4);
        let layer = (4 * width * width + 3 * width * inner) * float.size();
        let ends = 2 * vocabulary * width * float.size();
        let layers = (size.saturating_sub(ends as u64) / layer as u64).max(1) as usize;
        let mut model = Self { float, vocabulary, width, inner, layers, tensors: BTreeMap::new(), seed };
        let mut start = 0;
        let mut add = |name: String, shape: &[usize]| {
            let bytes = (shape.iter().product::<usize>() * float.size()) as u64;
            model.tensors.insert(name, Tensor { shape: shape.to_vec(), start, bytes });
            start += bytes;
        };
        add("embed.weight".to_owned(), &[vocabulary, width]);
        for layer in 0..layers {
            for (name, shape) in [
                ("q", [width, width]),
                ("k", [width, width]),
                ("v", [width, width]),
                ("o", [width, width]),
                ("gate", [inner, width]),
                ("up", [inner, width]),
                ("down", [width, inner]),
            ] {
                add(format!("layers.{layer}.{name}.weight"), &shape);
            }
            add(format!("layers.{layer}.norm.gamma"), &[width]);
        }
        add("head.weight".to_owned(), &[vocabulary, width]);
        model
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> u64 {
        self.tensors.values().map(|tensor| tensor.bytes).sum()
    }

    /// Writes it as a file in `directory`, with all cores.
    ///
    /// # Errors
    ///
    /// Fails when the disk does.
    pub fn write(&self, directory: &Path) -> Result<PathBuf> {
        fs::create_dir_all(directory)?;
        let path = directory.join("model.safetensors");
        let header = self.header()?;
        let file = File::create(&path).with_context(|| format!("{} cannot be made", path.display()))?;
        let mut out = BufWriter::new(&file);
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        out.flush()?;
        drop(out);
        let (data, bytes) = (8 + header.len() as u64, self.bytes());
        const PIECE: u64 = 16 << 20;
        let threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
        std::thread::scope(|scope| {
            let write = |first: u64| {
                let mut piece = vec![0; PIECE as usize];
                for start in (first * PIECE..bytes).step_by((threads * PIECE) as usize) {
                    let piece = &mut piece[..PIECE.min(bytes - start) as usize];
                    self.fill(start, piece);
                    file.write_all_at(piece, data + start)?;
                }
                Ok::<_, anyhow::Error>(())
            };
            let writers: Vec<_> = (0..threads).map(|first| scope.spawn(move || write(first))).collect();
            writers
                .into_iter()
                .try_for_each(|writer| writer.join().unwrap_or_else(|_| anyhow::bail!("a bug")))
        })?;
        Ok(path)
    }

    fn header(&self) -> Result<Vec<u8>> {
        let mut header = serde_json::Map::new();
        for (name, Tensor { shape, start, bytes }) in &self.tensors {
            let entry =
                json!({"dtype": self.float.name(), "shape": shape, "data_offsets": [start, start + bytes]});
            header.insert(name.clone(), entry);
        }
        let mut header = serde_json::to_vec(&header)?;
        header.resize(header.len().next_multiple_of(8), b' ');
        Ok(header)
    }

    /// The bytes of the data from `start` on, a multiple of 8. They are numbers between -2 and 2.
    fn fill(&self, start: u64, bytes: &mut [u8]) {
        for (number, word) in (start / 8..).zip(bytes.chunks_mut(8)) {
            word.copy_from_slice(&self.word(number)[..word.len()]);
        }
    }

    fn word(&self, number: u64) -> [u8; 8] {
        (mixed(number ^ self.seed << 40) & 0xBFFF_BFFF_BFFF_BFFF).to_le_bytes()
    }

    /// Finds out whether these are the bytes of that tensor.
    ///
    /// # Errors
    ///
    /// Fails when they are not, and says where.
    pub fn verify(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let tensor = self.tensors.get(name).with_context(|| format!("there is no {name}"))?;
        anyhow::ensure!(bytes.len() as u64 == tensor.bytes, "{name} has {} bytes", bytes.len());
        for (number, word) in (tensor.start / 8..).zip(bytes.chunks(8)) {
            if word != &self.word(number)[..word.len()] {
                let at = (number * 8).saturating_sub(tensor.start);
                anyhow::bail!("{name} differs near byte {at} of {}", tensor.bytes);
            }
        }
        Ok(())
    }

    /// As [`verify`](Self::verify), of several tensors at a time.
    ///
    /// # Errors
    ///
    /// As [`verify`](Self::verify), for the first that differs, and when `bytes` fails.
    pub fn verify_all<B: AsRef<[u8]>>(&self, bytes: impl Fn(&str) -> Result<B> + Sync) -> Result<()> {
        let names: Vec<&String> = self.tensors.keys().collect();
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(8);
        std::thread::scope(|scope| {
            let (names, bytes) = (&names, &bytes);
            let verify = |first: usize| {
                let mut names = names.iter().skip(first).step_by(threads);
                names.try_for_each(|name| self.verify(name, bytes(name)?.as_ref()))
            };
            let all: Vec<_> = (0..threads).map(|first| scope.spawn(move || verify(first))).collect();
            all.into_iter().try_for_each(|one| one.join().unwrap_or_else(|_| anyhow::bail!("a bug")))
        })
    }
}
