//! The formats: how each is recognised, and what reads it.

use std::fmt;

use weighbridge::header::disguise;
use weighbridge::{Error, ErrorKind, Result};

use crate::archive::Archive;
use crate::contents::Contents;
use crate::input::Input;
use crate::options::Options;
use crate::{burn_record, dcp, flax, gguf, gzip, hdf5, numpy, onnx, pickle};

/// A format that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Format {
    /// What `torch.save` writes since PyTorch 1.6: a zip archive of a pickle and its storages.
    TorchZip,
    /// What `torch.save` wrote before: pickles one behind another, then the storages.
    TorchLegacy,
    /// An index of such files, `pytorch_model.bin.index.json`.
    TorchShards,
    /// What `torch.distributed.checkpoint` writes: `.metadata`, and a file or more of each rank.
    Distributed,
    /// Safetensors files of ranks, as `HuggingFaceStorageWriter` writes them.
    DistributedSafetensors,
    /// What DeepSpeed's ZeRO writes: `*_model_states.pt` and `*_optim_states.pt` of each rank.
    DeepSpeedZero,
    /// A pickle by itself.
    Pickle,
    /// An array of NumPy's.
    Npy,
    /// Several arrays of NumPy's.
    Npz,
    /// A model of ONNX: its initialisers.
    Onnx,
    /// A file of llama.cpp's.
    Gguf,
    /// HDF5, as Keras wrote weights before version 3.
    Hdf5,
    /// A Keras archive since version 3.
    Keras,
    /// Flax's msgpack.
    Flax,
    /// A record that Burn wrote before 0.22.
    BurnRecord,
}

impl Format {
    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::TorchZip => "PyTorch zip",
            Self::TorchLegacy => "PyTorch legacy",
            Self::TorchShards => "PyTorch shards",
            Self::Distributed => "PyTorch distributed checkpoint",
            Self::DistributedSafetensors => "PyTorch distributed safetensors",
            Self::DeepSpeedZero => "DeepSpeed ZeRO checkpoint",
            Self::Pickle => "pickle",
            Self::Npy => "NumPy array",
            Self::Npz => "NumPy archive",
            Self::Onnx => "ONNX",
            Self::Gguf => "GGUF",
            Self::Hdf5 => "HDF5",
            Self::Keras => "Keras archive",
            Self::Flax => "Flax msgpack",
            Self::BurnRecord => "Burn record",
        }
    }

    /// Looks at the first bytes.
    pub(crate) fn of(input: &Input) -> Result<Self> {
        let head = input.head(0, 64)?;
        Ok(match &*head {
            // A local file header, or the end of an archive that holds nothing.
            [b'P', b'K', 3, 4, ..] | [b'P', b'K', 5, 6, ..] => Self::of_archive(input)?,
            head if pickle::is_legacy(head) => Self::TorchLegacy,
            head @ [0x80, 2..=5, ..] if dcp::is_metadata(head) => Self::Distributed,
            [0x80, 2..=5, ..] => Self::Pickle,
            head if head.starts_with(numpy::MAGIC) => Self::Npy,
            head if head.starts_with(gguf::MAGIC) => Self::Gguf,
            _ if hdf5::start(input.file()).is_some() => Self::Hdf5,
            head if onnx::is_model(head) => Self::Onnx,
            head if burn_record::is_record(head) => Self::BurnRecord,
            head if gzip::is_compressed(head) && burn_record::is_compressed_record(input) => Self::BurnRecord,
            head if flax::is_tree(head) => Self::Flax,
            head if head.trim_ascii_start().starts_with(b"{") => Self::TorchShards,
            // Protocols 0 and 1 do not say what they are.
            head if !head.is_empty() && pickle::is_whole(std::sync::Arc::clone(input.file())) => Self::Pickle,
            _ => return Err(Self::unknown(input)),
        })
    }

    /// The error for a file of none of the formats, with what it is where that is known.
    fn unknown(input: &Input) -> Error {
        /// What all that is told apart needs.
        const HEAD: usize = 512;
        let message = match input.head(0, HEAD) {
            Ok(head) if head.is_empty() => "the file is empty: fetch it again".to_owned(),
            Ok(head) if matches!(*head, [_, _, _, _, 0, 0, 0, 0, b'{', ..]) => {
                "it is safetensors already: there is nothing to convert".to_owned()
            }
            Ok(head) => match disguise(&head) {
                Some(what) => format!("its format is not recognised: this is {what}"),
                None => "its format is not recognised; pickle, NumPy, ONNX, GGUF, HDF5, Flax and Burn's records are read"
                    .to_owned(),
            },
            Err(error) => return error,
        };
        Error::new(ErrorKind::Unsupported, message).in_file(input.path())
    }

    /// Looks at what is in a zip archive.
    fn of_archive(input: &Input) -> Result<Self> {
        let archive = Archive::open(input.whole())?;
        match pickle::pickle_in(&archive) {
            Some(_) => Ok(Self::TorchZip),
            None if hdf5::is_keras(&archive) => Ok(Self::Keras),
            None if numpy::is_archive(&archive) => Ok(Self::Npz),
            None => {
                let message = "it is a zip archive of an unknown kind: it has no data.pkl (PyTorch), no .npy (NumPy) and no model.weights.h5 (Keras)";
                Err(Error::new(ErrorKind::Unsupported, message))
            }
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Reads a file, whatever it is.
pub(crate) fn read(input: &Input, options: &Options) -> Result<(Format, Contents)> {
    let format = Format::of(input)?;
    let contents = match format {
        Format::TorchZip | Format::TorchLegacy | Format::TorchShards | Format::Pickle => {
            pickle::read(input, format, options)?
        }
        Format::Distributed => dcp::read(input, options)?,
        Format::DistributedSafetensors | Format::DeepSpeedZero => {
            return Err(Error::new(ErrorKind::Internal, "a file is no directory").in_file(input.path()));
        }
        Format::Npy => numpy::read(input, options)?,
        Format::Npz => numpy::read_archive(&Archive::open(input.whole())?, options)?,
        Format::Onnx => onnx::read(input, options)?,
        Format::Gguf => gguf::read(input, options)?,
        Format::Hdf5 => hdf5::read(input, options)?,
        Format::Keras => hdf5::read_keras(&Archive::open(input.whole())?, options)?,
        Format::Flax => flax::read(input, options)?,
        Format::BurnRecord => burn_record::read(input, options)?,
    };
    Ok((format, contents))
}
