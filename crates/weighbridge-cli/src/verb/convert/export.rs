//! The way back: NumPy's archives, and the initialisers of ONNX models.

use std::path::Path;

use anyhow::{Result, bail};
use weighbridge::Plan;
use weighbridge_convert::onnx::Graph;
use weighbridge_convert::{Note, NoteKind, numpy};

use crate::destination::Destination;

/// What is written instead of safetensors.
pub(super) enum Export<'a> {
    Npy(&'a Path),
    Npz(&'a Path),
    /// The model that is taken, whether dtypes are cast, and where it goes.
    Onnx(&'a Path, bool, &'a Path),
}

impl<'a> Export<'a> {
    /// Whether something else is written, as the name of the output says.
    pub(super) fn of(
        destination: &'a Destination,
        into: Option<&'a Path>,
        cast: bool,
    ) -> Result<Option<Self>> {
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

    /// Writes what is planned; returns what was left as it was, and what has no place.
    pub(super) fn write(&self, plan: &Plan) -> Result<Vec<Note>> {
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
            Self::Onnx(model, cast, output) => Ok(Graph::open(model)?.replace(plan, cast, output)?),
        }
    }
}

/// The tensors that went nowhere.
pub(super) fn dropped(notes: &[Note]) -> usize {
    notes.iter().filter(|note| note.kind() == NoteKind::Dropped).count()
}
