//! Opening a checkpoint of any format.

use std::path::Path;

use weighbridge::{Checkpoint, Result};

pub fn open(location: impl AsRef<Path>) -> Result<Checkpoint> {
    Checkpoint::open(location)
}
