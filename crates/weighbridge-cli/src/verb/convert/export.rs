//! The way back: NumPy's archives, GGUF, and the initialisers of ONNX models.

use std::path::Path;

use anyhow::{Result, bail};
use clap::ValueEnum;
use weighbridge::Plan;
use weighbridge_convert::onnx::Graph;
use weighbridge_convert::{Note, NoteKind, gguf, numpy};

use crate::destination::Destination;

/// What is written instead of safetensors.
pub(super) enum Export<'a> {
    Npy(&'a Path),
    Npz(&'a Path),
    /// The type of its matrices, if one was given.
    Gguf(&'a Path, Option<GgufType>),
    /// The model that is taken, whether dtypes are cast, and where it goes.
    Onnx(&'a Path, bool, &'a Path),
}

impl<'a> Export<'a> {
    /// Whether something else is written, as the name of the output says.
    pub(super) fn of(
        destination: &'a Destination,
        into: Option<&'a Path>,
        cast: bool,
        kind: Option<GgufType>,
    ) -> Result<Option<Self>> {
        if let Some(output) = destination.foreign_file(&["gguf"])?.filter(|_| into.is_none()) {
            return Ok(Some(Self::Gguf(output, kind)));
        }
        if kind.is_some() && !destination.is_dry_run() {
            bail!("--type takes an output that ends in .gguf");
        }
        if let Some(model) = into {
            let Some(output) = destination.foreign_file(&["onnx"])? else {
                bail!("--into takes an output that ends in .onnx");
            };
            return Ok(Some(Self::Onnx(model, cast, output)));
        }
        if let Some(output) = destination.foreign_file(&["npz"])? {
            return Ok(Some(Self::Npz(output)));
        }
        Ok(destination.foreign_file(&["npy"])?.map(Self::Npy))
    }

    /// What the file is good for, where more might be expected.
    pub(super) fn is_good_for(&self) -> Option<&'static str> {
        match self {
            Self::Gguf(..) => Some(
                "for programs that read tensors by these names; llama.cpp and candle-lm do not run it: it has neither \
                 llama.cpp's names nor its hyperparameters and tokenizer",
            ),
            _ => None,
        }
    }

    /// Writes what is planned; returns what was left as it was, and what has no place. Codes of quantised
    /// modules go into GGUF only if they are wanted `raw`.
    pub(super) fn write(&self, plan: &Plan, raw: bool) -> Result<Vec<Note>> {
        match *self {
            Self::Npz(output) => Ok(numpy::npz(output, plan.tensors())?),
            Self::Npy(output) => {
                let mut tensors = plan.tensors();
                let (Some((_, tensor)), None) = (tensors.next(), tensors.next()) else {
                    let count = plan.entries().len();
                    bail!("{}: one array is in it, not {count}; .npz holds several", output.display());
                };
                Ok(numpy::npy(output, &tensor)?)
            }
            Self::Gguf(output, kind) => {
                if !raw {
                    refuse_quantized(plan)?;
                }
                Ok(gguf::write(output, plan, kind.map(gguf::Type::from))?)
            }
            Self::Onnx(model, cast, output) => Ok(Graph::open(model)?.replace(plan, cast, output)?),
        }
    }
}

/// Fails where codes would go into a file that has no place for what they mean.
fn refuse_quantized(plan: &Plan) -> Result<()> {
    let mut modules = plan.checkpoints().iter().flat_map(weighbridge::Checkpoint::quantized);
    let Some(module) = modules.next() else { return Ok(()) };
    let codes = module.codes().next().map_or("", |codes| codes.name());
    let advice = "`weighbridge dequantize` makes weights of it first, --quantized raw writes the codes";
    Err(module.refusal(codes, advice).into())
}

/// The tensors that went nowhere.
pub(super) fn dropped(notes: &[Note]) -> usize {
    notes.iter().filter(|note| note.kind() == NoteKind::Dropped).count()
}

/// The types that GGUF files are written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(super) enum GgufType {
    F32,
    F16,
    Bf16,
    /// 8.5 bits a weight
    #[value(name = "q8_0")]
    Q8_0,
    /// 6.6 bits a weight
    #[value(name = "q6_k")]
    Q6K,
    /// 5.5 bits a weight
    #[value(name = "q5_k")]
    Q5K,
    /// 5.5 bits a weight
    #[value(name = "q5_0")]
    Q5_0,
    /// 6 bits a weight
    #[value(name = "q5_1")]
    Q5_1,
    /// 4.5 bits a weight
    #[value(name = "q4_k")]
    Q4K,
    /// 4.5 bits a weight
    #[value(name = "q4_0")]
    Q4_0,
    /// 5 bits a weight
    #[value(name = "q4_1")]
    Q4_1,
}

impl From<GgufType> for gguf::Type {
    fn from(kind: GgufType) -> Self {
        match kind {
            GgufType::F32 => Self::F32,
            GgufType::F16 => Self::F16,
            GgufType::Bf16 => Self::BF16,
            GgufType::Q8_0 => Self::Q8_0,
            GgufType::Q6K => Self::Q6_K,
            GgufType::Q5K => Self::Q5_K,
            GgufType::Q5_0 => Self::Q5_0,
            GgufType::Q5_1 => Self::Q5_1,
            GgufType::Q4K => Self::Q4_K,
            GgufType::Q4_0 => Self::Q4_0,
            GgufType::Q4_1 => Self::Q4_1,
        }
    }
}
