//! Weights that stay quantised: Candle's tensors of GGML blocks, where blocks hold exactly what is stored.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{Device, Shape, Tensor};
use weighbridge::engine::ReadOrder;
use weighbridge::plan::Entry;
use weighbridge::{Blocks, Error, ErrorKind, HostBuffer, LoadOptions, Report, Result, Session};

use crate::Loader;
use crate::catalog::Item;
use crate::load::{Conversion, Fate, Skipped};
use crate::qtensor;
use crate::quantized_var_builder::QuantizedVarBuilder;
use crate::session::Request;

/// What [`Loader::load_quantized`] gives.
#[derive(Debug)]
#[non_exhaustive]
pub struct LoadedQuantized {
    /// The tensors by name.
    pub tensors: HashMap<String, Weight>,
    /// The quantised weights that came dense, because [`Loader::dense_where_needed`] was set.
    pub dense: Vec<Dequantized>,
    /// The tensors that Candle cannot hold.
    pub skipped: Vec<Skipped>,
    /// The dense tensors whose dtype was changed.
    pub converted: Vec<Conversion>,
    /// Bytes taken and read.
    pub report: Report,
}

/// A quantised weight that could not stay as it was.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Dequantized {
    /// Its name.
    pub name: String,
    /// Why Candle's blocks do not hold it.
    pub reason: String,
}

/// A tensor of a model that is quantised in part.
#[derive(Clone, Debug)]
pub enum Weight {
    /// GGML's blocks.
    Quantized(Arc<QTensor>),
    /// Numbers.
    Dense(Tensor),
}

impl Weight {
    /// Its shape.
    pub fn shape(&self) -> &Shape {
        match self {
            Self::Quantized(blocks) => blocks.shape(),
            Self::Dense(tensor) => tensor.shape(),
        }
    }

    /// Its blocks, if it has any.
    pub fn blocks(&self) -> Option<&Arc<QTensor>> {
        match self {
            Self::Quantized(blocks) => Some(blocks),
            Self::Dense(_) => None,
        }
    }

    /// What multiplies by it. Candle's kernels for blocks round the other factor, too: on the CPU to 8 bits
    /// with a scale for each block. A dense weight takes factors of its own dtype only.
    ///
    /// Debug builds of Candle 0.11 assert that `Q4_1`, `Q5_0` and `Q5_1` have rows of an even number of
    /// blocks, though their kernels for CPUs need no such thing.
    ///
    /// # Errors
    ///
    /// Fails when Candle cannot make it.
    pub fn matmul(&self) -> candle_core::Result<QMatMul> {
        match self {
            Self::Quantized(blocks) => QMatMul::from_arc(Arc::clone(blocks)),
            Self::Dense(tensor) => Ok(QMatMul::Tensor(tensor.clone())),
        }
    }

    /// Its numbers: of blocks in `F32`.
    ///
    /// # Errors
    ///
    /// Fails when Candle cannot dequantise it.
    pub fn tensor(&self) -> candle_core::Result<Tensor> {
        match self {
            Self::Quantized(blocks) => blocks.dequantize(&blocks.device()),
            Self::Dense(tensor) => Ok(tensor.clone()),
        }
    }

    /// The same as a `QTensor`, which code for GGUF models takes of everything: of a dense tensor a copy,
    /// `F16` and
    /// `BF16` as they are, other numbers in `F32`.
    ///
    /// # Errors
    ///
    /// Fails when Candle cannot make it: of a tensor without dimensions.
    pub fn qtensor(&self) -> candle_core::Result<Arc<QTensor>> {
        let tensor = match self {
            Self::Quantized(blocks) => return Ok(Arc::clone(blocks)),
            Self::Dense(tensor) => tensor,
        };
        let dtype = match tensor.dtype() {
            candle_core::DType::F16 => GgmlDType::F16,
            candle_core::DType::BF16 => GgmlDType::BF16,
            _ => GgmlDType::F32,
        };
        QTensor::quantize(tensor, dtype).map(Arc::new)
    }
}

impl LoadedQuantized {
    /// The tensors for models that ask for them by name.
    pub fn var_builder(self, device: &Device) -> QuantizedVarBuilder {
        QuantizedVarBuilder::new(self.tensors, device)
    }
}

/// What a planned tensor becomes.
enum Planned<'d> {
    Blocks(GgmlDType, Shape, &'d Device),
    Dense(Request<'d>),
}

impl Loader {
    /// Loads all tensors, those that are quantised as Candle's own [`QTensor`], which its kernels compute
    /// with as it is: a quarter of the memory of the dense weights, and less.
    ///
    /// Blocks are read by all threads into the memory that becomes the tensor. They hold exactly what is
    /// stored, so that `QTensor::dequantize` gives the very numbers that [`load`](Self::load) gives in `F32`:
    ///
    /// - GGUF, opened with the feature `convert`: the file's own blocks, of all types that Candle has; those of
    ///   a big-endian file come dense;
    /// - GPTQ, AWQ, compressed-tensors and other integers with scales: `Q4_0`, `Q5_0` or `Q8_0`. Symmetric
    ///   codes of 4 bits become `Q4_0`, asymmetric ones `Q5_0`, symmetric ones of 8 bits `Q8_0`;
    /// - MLX with 4 bits or less: `Q4_1`; with 5 bits: `Q5_1`.
    ///
    /// Rows have to be whole blocks of 32, each of which has one scale, and all scales and biases numbers of
    /// `F16`. What cannot be had so, floating-point codes such as FP8, NF4 or MXFP4 among it, is an error
    /// that says which condition fails, or comes dense: [`dense_where_needed`](Self::dense_where_needed).
    ///
    /// Everything else is loaded as by [`load`](Self::load), with the same rules. A weight that
    /// [`dtype_for`](Self::dtype_for) names comes dense in that dtype; a [part](Self::part_for) of a
    /// quantised one is dense, too.
    ///
    /// ```
    /// use weighbridge_candle::Loader;
    /// use weighbridge_candle::candle_core::{DType, Device, Module, Tensor};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/quantized/vectors/gptq-4bit-v1-sym/checkpoint");
    /// let ckpt = weighbridge_candle::open(dir)?;
    /// # let name = ckpt.dequantized()?.tensors().find(|tensor| tensor.shape().len() == 2).unwrap().name().to_owned();
    /// let loaded = Loader::new(&ckpt).dtype(DType::F32).load_quantized()?;
    /// let weight = &loaded.tensors[&name]; // "model.layers.0.mlp.up_proj.weight"
    /// println!("{:?}", weight.blocks()); // Some(QTensor[[96, 256]; Q4_0])
    /// # assert!(weight.blocks().is_some());
    /// let inputs = weight.shape().dims()[1];
    /// let y = weight.matmul()?.forward(&Tensor::ones((1, inputs), DType::F32, &Device::Cpu)?)?;
    /// # assert_eq!(y.dims()[1], weight.shape().dims()[0]);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load), and for the first weight that no block of Candle's holds exactly.
    pub fn load_quantized(self) -> Result<LoadedQuantized> {
        let catalog = self.catalog()?;
        catalog.refuse_all_codes()?;
        let devices = self.devices.clone();
        let (mut entries, mut planned) = (Vec::new(), Vec::new());
        let (mut skipped, mut converted, mut dense) = (Vec::new(), Vec::new(), Vec::new());
        for item in catalog.items() {
            let device = devices.for_name(item.name());
            match blocks(&item) {
                Ok(Some((entry, dtype, shape))) => {
                    entries.push(entry);
                    planned.push((item, Planned::Blocks(dtype, shape, device)));
                    continue;
                }
                Ok(None) => {}
                Err(error) => dense.push(self.dequantized(&item, error)?),
            }
            match self.fate(&item, device)? {
                Fate::Loaded(entry, request, conversion) => {
                    converted.extend(conversion);
                    entries.push(entry);
                    planned.push((item, Planned::Dense(request)));
                }
                Fate::Skipped(reason) => skipped.push(reason),
            }
        }
        let session =
            self.session(entries, LoadOptions::new().order(ReadOrder::File), Some(u64::MAX)).start()?;
        let mut tensors = HashMap::with_capacity(planned.len());
        for (item, planned) in planned {
            let weight = match planned {
                Planned::Dense(request) => Weight::Dense(take(&session, item.name(), request)?),
                Planned::Blocks(dtype, shape, device) => {
                    let words = session.take(item.name(), None).map(|(_, words)| words);
                    match words.and_then(|words| qtensor::place(words, dtype, shape, device)) {
                        Ok(blocks) => Weight::Quantized(Arc::new(blocks)),
                        Err(error) if error.kind() == ErrorKind::Unsupported => {
                            dense.push(self.dequantized(&item, error)?);
                            match self.fate(&item, device)? {
                                Fate::Loaded(entry, request, conversion) => {
                                    converted.extend(conversion);
                                    let buffer = session.make(entry)?;
                                    Weight::Dense(request.placed(item.name(), buffer)?)
                                }
                                Fate::Skipped(reason) => {
                                    skipped.push(reason);
                                    continue;
                                }
                            }
                        }
                        Err(error) => return Err(error.in_tensor(item.name())),
                    }
                }
            };
            tensors.insert(item.name().to_owned(), weight);
        }
        Ok(LoadedQuantized { tensors, dense, skipped, converted, report: session.report() })
    }

    /// Makes [`load_quantized`](Self::load_quantized) load dense what no block of Candle's holds exactly,
    /// instead of failing; [`LoadedQuantized::dense`] says what that was.
    pub fn dense_where_needed(mut self) -> Self {
        self.dense_where_needed = true;
        self
    }

    /// The note about a weight that comes dense, if it may.
    fn dequantized(&self, item: &Item<'_>, error: Error) -> Result<Dequantized> {
        match self.dense_where_needed {
            true => Ok(Dequantized { name: item.name().to_owned(), reason: error.message().to_owned() }),
            false => Err(error
                .advised("`Loader::dense_where_needed()` loads such weights dense")
                .in_tensor(item.name())),
        }
    }
}

/// The blocks that a tensor has, as Candle has them; `None` if it is to be dense.
fn blocks(item: &Item<'_>) -> Result<Option<(Entry, GgmlDType, Shape)>> {
    if item.part().is_some() || item.rule(None).is_some() {
        return Ok(None);
    }
    let Some(blocks) = Blocks::of(&item.tensor, item.name())? else { return Ok(None) };
    let block_type = blocks.block_type();
    let dtype = qtensor::ggml_dtype(block_type)
        .ok_or_else(|| Error::new(ErrorKind::Unsupported, format!("Candle has no {block_type}")))?;
    Ok(Some((blocks.entry().clone(), dtype, Shape::from(blocks.shape()))))
}

fn take(session: &Session<HostBuffer>, name: &str, request: Request<'_>) -> Result<Tensor> {
    let (_, buffer) = session.take(name, Some(request.read_as))?;
    request.placed(name, buffer)
}
