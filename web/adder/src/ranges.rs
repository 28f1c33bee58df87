//! A file on a web server, read by ranges.

use std::io;

use js_sys::Uint8Array;
use wasm_bindgen::prelude::*;
use weighbridge_candle::weighbridge::source::{Hints, Source};

#[wasm_bindgen]
extern "C" {
    /// The worker's: how long a file is.
    #[wasm_bindgen(catch, js_name = sizeOf)]
    fn size_of(file: &str) -> Result<f64, JsValue>;

    /// The worker's: bytes of a file; of a host that ignores ranges it has the whole file.
    #[wasm_bindgen(catch, js_name = readRange)]
    fn read_range(file: &str, start: f64, end: f64) -> Result<Uint8Array, JsValue>;

    /// The worker's: so many bytes of so many were loaded.
    #[wasm_bindgen]
    pub(crate) fn told(done: f64, total: f64);
}

/// A file beside the page.
pub(crate) struct RangeSource {
    name: String,
    size: u64,
}

impl RangeSource {
    pub(crate) fn open(name: &str) -> io::Result<Self> {
        let size = size_of(name).map_err(|error| failed(&error))?;
        Ok(Self { name: name.to_owned(), size: size as u64 })
    }
}

impl Source for RangeSource {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(buf.len() as u64).filter(|&end| end <= self.size);
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        let bytes = read_range(&self.name, offset as f64, end as f64).map_err(|error| failed(&error))?;
        if bytes.length() as usize != buf.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        bytes.copy_to(buf);
        Ok(())
    }

    /// A request costs as much as a few hundred kilobytes.
    fn hints(&self) -> Hints {
        Hints::default().read_through(512 << 10)
    }
}

fn failed(error: &JsValue) -> io::Error {
    io::Error::other(error.as_string().unwrap_or_else(|| "it cannot be fetched".to_owned()))
}
