//! LZF, with which h5py compresses chunks on request: no filter of HDF5 itself, but one that many files need.

use hdf5_reader::FilterRegistry;
use hdf5_reader::error::{Error, Result};

/// Its number in the register of filters.
const LZF: u16 = 32000;

/// The filters of HDF5 and this one; no chunk becomes longer than `most` bytes.
pub(super) fn filters(most: usize) -> FilterRegistry {
    let mut registry = FilterRegistry::new();
    registry.register(LZF, Box::new(move |_, packed, _| unpack(packed, most)));
    registry
}

/// Runs of bytes, and copies of what came before.
fn unpack(packed: &[u8], most: usize) -> Result<Vec<u8>> {
    let cut = || Error::DecompressionError("LZF data ends in the middle of a run".to_owned());
    let mut bytes = packed.iter().copied();
    let mut next = || bytes.next().ok_or_else(cut);
    let mut out = Vec::new();
    let mut left = packed.len();
    while left > 0 {
        let control = next()?;
        left -= 1;
        let short = usize::from(control >> 5);
        if short == 0 {
            let len = usize::from(control) + 1;
            for _ in 0..len {
                out.push(next()?);
            }
            left = left.saturating_sub(len);
        } else {
            let is_long = short == 7;
            let len = 2 + short + if is_long { usize::from(next()?) } else { 0 };
            let back = (usize::from(control & 0x1F) << 8) + usize::from(next()?) + 1;
            left = left.saturating_sub(1 + usize::from(is_long));
            let start = out.len().checked_sub(back);
            let start = start.ok_or_else(|| {
                Error::DecompressionError("LZF data copies from before its start".to_owned())
            })?;
            // What is copied may be what is written.
            for at in start..start + len {
                out.push(out[at]);
            }
        }
        if out.len() > most {
            return Err(Error::ResourceLimit(format!("a chunk of more than {most} bytes")));
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_and_copies() {
        assert_eq!(unpack(b"", 10).unwrap(), b"");
        assert_eq!(unpack(b"\x02abc", 10).unwrap(), b"abc");
        // Three bytes of the last two; a long copy of one.
        assert_eq!(unpack(b"\x01ab\x20\x01", 10).unwrap(), b"ababa");
        assert_eq!(unpack(b"\x00a\xe0\x02\x00", 100).unwrap(), [b'a'; 12]);
    }

    #[test]
    fn what_is_broken_is_refused() {
        for packed in [&b"\x02ab"[..], b"\x00a\x20", b"\x00a\xe0\x02", b"\x20\x00", b"\x00a\x20\x01"] {
            assert!(matches!(unpack(packed, 100), Err(Error::DecompressionError(_))), "{packed:?}");
        }
        assert!(matches!(unpack(b"\x00a\xe0\xff\x00", 100), Err(Error::ResourceLimit(_))));
    }
}
