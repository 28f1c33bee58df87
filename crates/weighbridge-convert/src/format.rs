//! The formats: how each is recognised, and who reads it.

use std::fmt;
use std::path::Path;

use weighbridge::{Error, ErrorKind, Result};

use crate::contents::Contents;
use crate::input::Input;
use crate::options::Options;
use crate::pickle;

/// A format that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Format {
    /// What `torch.save` writes since PyTorch 1.6: a zip archive of a pickle and its storages.
    TorchZip,
    /// What `torch.save` wrote before: pickles one behind another, then the storages.
    TorchLegacy,
    /// A pickle by itself.
    Pickle,
}

impl Format {
    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::TorchZip => "PyTorch zip",
            Self::TorchLegacy => "PyTorch legacy",
            Self::Pickle => "pickle",
        }
    }

    /// Looks at the first bytes.
    fn of(input: &Input) -> Result<Self> {
        let head = input.head(0, 64)?;
        Ok(match &*head {
            // A local file header, or the end of an archive that holds nothing.
            [b'P', b'K', 3, 4, ..] | [b'P', b'K', 5, 6, ..] => Self::TorchZip,
            head if pickle::is_legacy(head) => Self::TorchLegacy,
            [0x80, 2..=5, ..] => Self::Pickle,
            _ => {
                let message = "it is of no format that is known here: pickle";
                return Err(Error::new(ErrorKind::Unsupported, message).in_file(input.path()));
            }
        })
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Reads what is there, whatever it is.
pub(crate) fn read(path: &Path, options: &Options) -> Result<(Format, Contents)> {
    let input = Input::open(path)?;
    let format = Format::of(&input)?;
    let contents = match format {
        Format::TorchZip | Format::TorchLegacy | Format::Pickle => pickle::read(&input, format, options)?,
    };
    Ok((format, contents))
}
