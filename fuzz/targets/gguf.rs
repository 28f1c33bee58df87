//! Any bytes behind the magic of GGUF: read and scanned without a panic.
#![no_main]

use fuzz_files::{open, options, scan};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((&choice, body)) = input.split_first() else { return };
    let mut bytes = body.to_vec();
    bytes.resize(bytes.len().max(4), 0);
    bytes[..4].copy_from_slice(b"GGUF");
    scan(&bytes);
    open(&bytes, &options(choice));
});
