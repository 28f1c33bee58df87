//! Rows that nobody stored.

use std::io;

use crate::checkpoint::Checkpoint;
use crate::dtype::Dtype;
use crate::error::{Error, ErrorKind, Result};
use crate::plan::Input;
use crate::source::Source;
use crate::write::{Order, Save};

/// A tensor of zeros that takes no memory.
pub(super) fn zeros(dtype: Dtype, shape: &[usize]) -> Result<Input> {
    const NAME: &str = "zeros";
    let layout = Save::new().order(Order::Given).layout([(NAME, dtype, shape.to_vec())])?;
    let header = layout.header().to_vec();
    let size = header.len() as u64 + dtype.size_of(shape)?;
    let checkpoint = Checkpoint::options().label("padding").from_source(Zeros { header, size })?;
    let tensor = checkpoint.tensor(NAME);
    tensor
        .map(|tensor| Input::of(&tensor))
        .ok_or_else(|| Error::new(ErrorKind::Internal, "there are no zeros"))
}

/// A header, and zeros behind it.
struct Zeros {
    header: Vec<u8>,
    size: u64,
}

impl Source for Zeros {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        if offset.checked_add(buf.len() as u64).is_none_or(|end| end > self.size) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let start = self.header.len().min(offset as usize);
        let of_header = &self.header[start..];
        let (head, rest) = buf.split_at_mut(of_header.len().min(buf.len()));
        head.copy_from_slice(&of_header[..head.len()]);
        rest.fill(0);
        Ok(())
    }
}
