//! The bytes of a file in a browser.

use std::io;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use js_sys::Uint8Array;
use wasm_bindgen::prelude::*;
use weighbridge::source::{Hints, Source};

#[wasm_bindgen]
extern "C" {
    /// The worker's: the bytes of a file from one offset to another.
    #[wasm_bindgen(catch, js_name = readSlice)]
    fn read_slice(file: u32, start: f64, end: f64) -> Result<Uint8Array, JsValue>;
}

/// A file that the worker has under a number. Nothing of it is in memory but what was read last.
pub(crate) struct BlobSource {
    file: u32,
    size: u64,
    recent: Mutex<Recent>,
}

/// Bytes that were read beyond what was asked for.
#[derive(Default)]
struct Recent {
    start: u64,
    bytes: Vec<u8>,
}

/// What is read at least: a call costs as much as a hundred kilobytes.
const BLOCK: u64 = 256 << 10;

impl BlobSource {
    pub(crate) fn new(file: u32, size: u64) -> Self {
        Self { file, size, recent: Mutex::default() }
    }

    fn read(&self, range: Range<u64>, buf: &mut [u8]) -> io::Result<()> {
        // Numbers of JavaScript are exact up to 2^53, and files are shorter.
        let bytes = read_slice(self.file, range.start as f64, range.end as f64).map_err(|error| {
            let why = js_sys::Reflect::get(&error, &"name".into()).ok().and_then(|name| name.as_string());
            let why = why.unwrap_or_else(|| "unknown".to_owned());
            io::Error::other(format!("the browser cannot read the file any more ({why}); choose it again"))
        })?;
        if bytes.length() as usize != buf.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        bytes.copy_to(buf);
        Ok(())
    }
}

impl Source for BlobSource {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(buf.len() as u64).filter(|&end| end <= self.size);
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        if buf.len() as u64 >= BLOCK {
            return self.read(offset..end, buf);
        }
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if offset < recent.start || end > recent.start + recent.bytes.len() as u64 {
            let until = self.size.min(offset + BLOCK);
            let mut bytes = vec![0; (until - offset) as usize];
            self.read(offset..until, &mut bytes)?;
            *recent = Recent { start: offset, bytes };
        }
        let skipped = (offset - recent.start) as usize;
        buf.copy_from_slice(&recent.bytes[skipped..skipped + buf.len()]);
        Ok(())
    }

    fn hints(&self) -> Hints {
        Hints::default()
    }
}
