//! What has to be made when a file is opened, because it cannot be made piece by piece later.

#[cfg(feature = "fs")]
mod file;
#[cfg(not(feature = "fs"))]
mod memory;

use std::io;

use weighbridge::Error;

#[cfg(feature = "fs")]
pub(crate) use file::Spool;
#[cfg(not(feature = "fs"))]
pub(crate) use memory::Spool;

pub(crate) fn unwritten(error: io::Error) -> Error {
    Error::io("what is unpacked of it cannot be kept", error)
}
