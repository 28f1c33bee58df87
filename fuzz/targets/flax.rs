//! Any bytes as MessagePack: a tree of Flax's, or a record of Burn's, which may be compressed. Read and scanned without a
//! panic.
#![no_main]

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use fuzz_files::{open, options, scan};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((&choice, body)) = input.split_first() else { return };
    let mut bytes = match choice & 48 {
        16 => [b"\x81\xa1a", body].concat(),
        32 => [b"\x82\xa8metadata\x82\xa5float\xa3f32\xa3int\xa3i32\xa4item", body].concat(),
        _ => body.to_vec(),
    };
    if choice & 64 != 0 {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(&bytes).unwrap();
        bytes = encoder.finish().unwrap();
    }
    scan(&bytes);
    open(&bytes, &options(choice));
});
