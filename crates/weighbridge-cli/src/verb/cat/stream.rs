//! Values written while they are made.

use std::io::{self, Write};

use anyhow::Result;
use weighbridge::engine::Streamed;
use weighbridge::write::TensorData;

use crate::term::Bar;
use crate::{casts, interrupt};

/// Writes the values while they are made.
pub(super) fn stream(tensor: &Streamed, out: &mut dyn Write, bar: &Bar) -> Result<()> {
    let mut watched = Watched { out, bar };
    tensor.write_to(&mut watched).map_err(|error| match error.downcast::<weighbridge::Error>() {
        Ok(own) => casts::without_options(own).into(),
        Err(other) => other.into(),
    })
}

/// Passes bytes on, counts them, and looks for Ctrl-C.
struct Watched<'a> {
    out: &'a mut dyn Write,
    bar: &'a Bar,
}

impl Write for Watched<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        interrupt::check().map_err(io::Error::other)?;
        let written = self.out.write(bytes)?;
        self.bar.add(written as u64);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
