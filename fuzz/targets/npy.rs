//! Any bytes as an array of NumPy's, by itself or the only one in an archive, or as an archive: read without a panic, and
//! written back it is read as the same.
#![no_main]

use std::io::{Cursor, Write};

use fuzz_files::{open, options, scan, told};
use libfuzzer_sys::fuzz_target;
use weighbridge::{Checkpoint, Plan};
use weighbridge_convert::{Foreign, Options, numpy};

/// Larger arrays are not written.
const MOST: u64 = 1 << 20;

fuzz_target!(|input: &[u8]| {
    let Some((&choice, body)) = input.split_first() else { return };
    let mut bytes = body.to_vec();
    if !body.starts_with(b"PK") {
        // The header's length is right where it could not be.
        bytes.resize(bytes.len().max(12), 0);
        bytes[..6].copy_from_slice(b"\x93NUMPY");
        if choice & 32 != 0 {
            let end = bytes.iter().position(|&byte| byte == b'}').map_or(bytes.len(), |at| at + 1);
            let wide = if bytes[6] == 1 { 10 } else { 12 };
            bytes[8..10].copy_from_slice(&(end.saturating_sub(wide) as u16).to_le_bytes());
            if wide == 12 {
                bytes[10..12].fill(0);
            }
        }
        if choice & 16 != 0 {
            let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
            let how =
                zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
            zip.start_file("a.npy", how).unwrap();
            zip.write_all(&bytes).unwrap();
            bytes = zip.finish().unwrap().into_inner();
        }
    }
    scan(&bytes);
    let foreign = open(&bytes, &options(choice));
    let Some(foreign) = foreign.filter(|foreign| foreign.checkpoint().byte_len() <= MOST) else { return };
    written_back(&foreign);
});

fn written_back(foreign: &Foreign) {
    // An archive of nothing is not NumPy's.
    if foreign.checkpoint().is_empty() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.npz");
    let plan = Plan::of(foreign.checkpoint()).build().unwrap();
    if told(numpy::npz(&path, plan.tensors())).is_none() {
        return;
    }
    let again = weighbridge_convert::open(&path, &Options::new()).unwrap();
    assert_eq!(values(foreign.checkpoint()), values(again.checkpoint()));
}

fn values(checkpoint: &Checkpoint) -> Vec<u8> {
    weighbridge::write::Save::new().bytes(Plan::of(checkpoint).build().unwrap().tensors()).unwrap()
}
