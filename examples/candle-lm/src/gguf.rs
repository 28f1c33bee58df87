//! GGUF files, whose blocks Candle computes with: its own `from_gguf`, over a source of weighbridge's, which reads with
//! all cores.

use std::collections::{BTreeMap, HashSet};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::{DType, Device};
use candle_transformers::models::{
    quantized_llama, quantized_phi, quantized_phi3, quantized_qwen2, quantized_qwen3, quantized_qwen3_moe,
};
use examples_support::weights::caught;
use weighbridge::source::{FileSource, SourceReader};

use crate::family::{Cached, LanguageModel};

/// A file whose header is read.
pub(crate) struct Gguf {
    path: std::path::PathBuf,
    architecture: String,
    pub(crate) vocabulary: usize,
    pub(crate) eos: Vec<u32>,
    pub(crate) tensors: usize,
    pub(crate) dtypes: BTreeMap<String, usize>,
    pub(crate) bytes: u64,
    /// So many positions are right, and why not more.
    pub(crate) limit: Option<(usize, String)>,
}

/// Whether a file is one, by its content.
pub(crate) fn is_gguf(path: &Path) -> bool {
    let mut magic = [0; 4];
    let read = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut magic));
    read.is_ok() && magic == *b"GGUF"
}

impl Gguf {
    /// Reads the header.
    ///
    /// # Errors
    ///
    /// What Candle does not compute, by its name in the header.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let (content, mut reader) = header(path)?;
        let architecture = text(&content, "general.architecture")?
            .ok_or_else(|| anyhow!("there is no general.architecture"))?
            .to_owned();
        let limit = checked(&content, &architecture)?;
        let embeddings = content.tensor_infos.get("token_embd.weight");
        let vocabulary = embeddings.and_then(|info| info.shape.dims().first().copied());
        let mut dtypes = BTreeMap::new();
        for info in content.tensor_infos.values() {
            *dtypes.entry(format!("{:?}", info.ggml_dtype)).or_default() += 1;
        }
        let eos = number(&content, "tokenizer.ggml.eos_token_id")?;
        Ok(Self {
            path: path.to_owned(),
            architecture,
            vocabulary: vocabulary.ok_or_else(|| anyhow!("there is no token_embd.weight"))?,
            eos: eos.map(u32::try_from).transpose()?.into_iter().collect(),
            tensors: content.tensor_infos.len(),
            dtypes,
            bytes: reader.seek(SeekFrom::End(0))?,
            limit,
        })
    }

    /// Loads the model for texts of so many tokens.
    ///
    /// # Errors
    ///
    /// Tensors that Candle's model does not read, and a failed read.
    pub(crate) fn load(&self, positions: usize, device: &Device) -> Result<Box<dyn LanguageModel>> {
        let (mut content, reader) = header(&self.path)?;
        let mut reader = Noting { reader, starts: HashSet::new() };
        let starts: Vec<(String, u64)> = content
            .tensor_infos
            .iter()
            .map(|(name, info)| (name.clone(), content.tensor_data_offset.saturating_add(info.offset)))
            .collect();
        // Tables and caches are as long as this says, which is often more than a machine has.
        let length = Value::U32(u32::try_from(positions)?);
        content.metadata.insert(format!("{}.context_length", self.architecture), length);
        // Of rotary embeddings; without it they are in 16 bits.
        content.metadata.insert("general.dtype".into(), Value::U32(0));

        let model = caught(|| build(&self.architecture, content, &mut reader, device))?;
        let mut unread = starts.iter().filter(|(_, start)| !reader.starts.contains(start));
        if let Some((name, _)) = unread.next() {
            bail!("Candle's model for \"{}\" does not read the tensor \"{name}\"", self.architecture);
        }
        Ok(model)
    }
}

type FileReader = SourceReader<FileSource>;

fn header(path: &Path) -> Result<(Content, FileReader)> {
    let mut reader = SourceReader::new(FileSource::open(path)?);
    let content = Content::read(&mut reader)?;
    Ok((content, reader))
}

/// What decides whether Candle's model is the one that the file is for; the number of positions that are right.
fn checked(content: &Content, architecture: &str) -> Result<Option<(usize, String)>> {
    ensure!(architecture != "gemma3", "Candle's Gemma 3 for GGUF files computes SiLU where Gemma 3 has GELU");
    let known = ["llama", "phi2", "phi3", "qwen2", "qwen3", "qwen3moe"];
    ensure!(
        known.contains(&architecture),
        "general.architecture is \"{architecture}\", this program runs {}",
        known.join(", ")
    );
    let of = |key: &str| format!("{architecture}.{key}");
    if let Some(kind) = text(content, &of("rope.scaling.type"))? {
        ensure!(kind == "none", "rope.scaling.type is \"{kind}\", Candle computes none from a GGUF file");
    }
    let factor = content.metadata.get(&of("rope.scaling.factor")).map(Value::to_f32).transpose()?;
    ensure!(
        factor.is_none_or(|factor| factor == 1.0),
        "rope.scaling.factor is set, Candle computes none from a GGUF file"
    );
    if let (Some(base), true) =
        (content.metadata.get(&of("rope.freq_base")), matches!(architecture, "phi2" | "phi3"))
    {
        let base = base.to_f32()?;
        ensure!(base == 10_000.0, "rope.freq_base is {base}, Candle computes with 10000");
    }
    // What others compute with a head size of its own.
    if matches!(architecture, "llama" | "phi2" | "phi3" | "qwen2")
        && let (Some(head), Some(width), Some(heads)) = (
            number(content, &of("attention.key_length"))?,
            number(content, &of("embedding_length"))?,
            number(content, &of("attention.head_count"))?,
        )
    {
        ensure!(
            head * heads == width,
            "attention.key_length is {head}, Candle computes only embedding_length / head_count"
        );
    }
    let window = number(content, &of("attention.sliding_window"))?.filter(|&window| window > 0);
    let mut limit = match architecture {
        "llama" | "phi2" => Some((4096, "Candle's table of rotations ends there".to_owned())),
        "qwen3" => Some((4096, "Candle's cache ends there".to_owned())),
        _ => None,
    };
    if let Some(window) = window {
        let why = format!("beyond the sliding window of {window} Candle attends to other tokens");
        if limit.as_ref().is_none_or(|(most, _)| *most > window) {
            limit = Some((window, why));
        }
    }
    Ok(limit)
}

fn build(
    architecture: &str,
    content: Content,
    reader: &mut Noting<FileReader>,
    device: &Device,
) -> candle_core::Result<Box<dyn LanguageModel>> {
    /// A model that forgets when a text begins at position 0.
    macro_rules! forgets_by_itself {
        ($model:expr) => {
            Box::new(Cached {
                model: $model?,
                device: device.clone(),
                forward: |model, tokens, position| model.forward(tokens, position),
                reset: |_| Ok(()),
            })
        };
    }
    Ok(match architecture {
        "llama" => forgets_by_itself!(quantized_llama::ModelWeights::from_gguf(content, reader, device)),
        "phi2" => forgets_by_itself!(quantized_phi::ModelWeights::from_gguf(content, reader, device)),
        "phi3" => {
            forgets_by_itself!(quantized_phi3::ModelWeights::from_gguf(false, content, reader, device))
        }
        "qwen2" => forgets_by_itself!(quantized_qwen2::ModelWeights::from_gguf(content, reader, device)),
        "qwen3" => Box::new(Cached {
            model: quantized_qwen3::ModelWeights::from_gguf(content, reader, device)?,
            device: device.clone(),
            forward: |model, tokens, position| model.forward(tokens, position),
            reset: |model| {
                model.clear_kv_cache();
                Ok(())
            },
        }),
        _ => {
            if !device.is_cuda() {
                candle_core::bail!("Candle computes the experts of a GGUF file on CUDA only");
            }
            let model = quantized_qwen3_moe::GGUFQWenMoE::from_gguf(content, reader, device, DType::F32)?;
            Box::new(Cached {
                model: (model, false),
                device: device.clone(),
                forward: |(model, _), tokens, position| model.forward(tokens, position),
                reset: |(_, was_used)| {
                    if std::mem::replace(was_used, true) {
                        candle_core::bail!("Candle's model cannot forget a text: one prompt at a time");
                    }
                    Ok(())
                },
            })
        }
    })
}

fn text<'a>(content: &'a Content, key: &str) -> Result<Option<&'a str>> {
    let value = content.metadata.get(key).map(Value::to_string).transpose();
    Ok(value.with_context(|| key.to_owned())?.map(String::as_str))
}

fn number(content: &Content, key: &str) -> Result<Option<usize>> {
    let Some(value) = content.metadata.get(key) else { return Ok(None) };
    let number = value.to_u32().with_context(|| key.to_owned())?;
    Ok(Some(number as usize))
}

/// Notes where reads begin.
struct Noting<R> {
    reader: R,
    starts: HashSet<u64>,
}

impl<R: Read> Read for Noting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.reader.read(buffer)
    }

    fn read_exact(&mut self, buffer: &mut [u8]) -> std::io::Result<()> {
        self.reader.read_exact(buffer)
    }
}

impl<R: Seek> Seek for Noting<R> {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        let position = self.reader.seek(to)?;
        self.starts.insert(position);
        Ok(position)
    }
}
