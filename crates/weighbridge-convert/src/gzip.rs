//! Files that are compressed as a whole with gzip.

use std::io::{self, BufReader, Read};

use flate2::bufread::GzDecoder;
use weighbridge::{Error, ErrorKind, Result};

use crate::cursor::malformed;
use crate::input::{FilePart, Input, Sequential, unread};
use crate::spool::{Spool, unwritten};

/// As with archives: this many times as long as the file, and a gibibyte more.
const MOST_RATIO: u64 = 16;
const MOST_MORE: u64 = 1 << 30;

/// Whether these are the first bytes of such a file.
pub(crate) fn is_compressed(head: &[u8]) -> bool {
    head.starts_with(&[0x1F, 0x8B, 8])
}

/// The first bytes of what is in it: fewer where it ends or is broken.
pub(crate) fn head(input: &Input, len: u64) -> Vec<u8> {
    let whole = input.whole();
    let mut head = Vec::new();
    let _ = GzDecoder::new(BufReader::new(Sequential::new(&whole))).take(len).read_to_end(&mut head);
    head
}

/// Decompresses into a temporary file that has no name.
pub(crate) fn unpack(input: &Input) -> Result<FilePart> {
    let limit = input.size().saturating_mul(MOST_RATIO).saturating_add(MOST_MORE);
    let whole = input.whole();
    let mut read = GzDecoder::new(BufReader::new(Sequential::new(&whole)));
    let (part, copied) = Spool::default().grow(|output| {
        let (mut size, mut memory) = (0_u64, vec![0; 256 << 10]);
        loop {
            let len = read.read(&mut memory).map_err(|error| match error.kind() {
                io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                    malformed(format!("it cannot be decompressed: {error}"))
                }
                _ => unread(error),
            })?;
            if len == 0 {
                return Ok(());
            }
            size += len as u64;
            if size > limit {
                let message = format!("its {} bytes become more than {limit}: it is a bomb", input.size());
                return Err(Error::new(ErrorKind::Unsafe, message));
            }
            output.write_all(&memory[..len]).map_err(unwritten)?;
        }
    })?;
    copied?;
    let mut rest = read.into_inner();
    match rest.read(&mut [0]) {
        Ok(0) => Ok(part),
        Ok(_) => Err(malformed("there is more behind the end of what is compressed")),
        Err(error) => Err(unread(error)),
    }
}
