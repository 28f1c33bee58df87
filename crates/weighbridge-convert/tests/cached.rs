//! Files that are in the page cache: a session that loads what became of them need not fetch anything.

#![cfg(target_os = "linux")]

use std::fs;
use std::path::Path;

use weighbridge::source::Source;
use weighbridge_convert::Options;

#[test]
fn a_file_that_was_just_read_is_not_cold() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    // A file that is in memory and nowhere else, where there may be one.
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    for name in [
        "pickle/tied.bin",         // stored in an archive
        "foreign/big.gguf",        // dequantised, and byte-swapped
        "foreign/little.gguf",     // dequantised
        "foreign/stored.npz",      // stored, and in Fortran's order
        "foreign/deflated.npz",    // decompressed
        "foreign/version1.npy",    // stored
        "foreign/chunked.msgpack", // cut into pieces
        "foreign/inline.onnx",     // stored, and in typed fields
        "foreign/late.h5",         // stored, and in chunks
        "burn/0.21-full.mpk",      // stored
        "burn/0.20-full.mpk.gz",   // decompressed
    ] {
        let path = dir.path().join(Path::new(name).file_name().unwrap());
        fs::copy(fixtures.join(name), &path).unwrap();
        let foreign = weighbridge_convert::open(&path, &Options::new().skip_unsupported()).unwrap();
        let [shard] = foreign.checkpoint().shards() else { panic!("{name} has several shards") };
        assert!(!foreign.checkpoint().is_empty(), "{name}");
        let source = shard.source();
        assert_eq!(source.is_cached(0..source.size()), Some(true), "{name}");
    }
}
