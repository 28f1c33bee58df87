//! Any bytes as a model, which begins with its version: read without a panic, and written back with its own tensors it is a
//! model of the same tensors.
#![no_main]

use fuzz_files::{file, open, options, scan, told};
use libfuzzer_sys::fuzz_target;
use weighbridge::Plan;
use weighbridge_convert::onnx::Graph;

/// Larger models are not written.
const MOST: u64 = 1 << 20;

fuzz_target!(|input: &[u8]| {
    let Some((&choice, body)) = input.split_first() else { return };
    let marked;
    let bytes = match body {
        [0x08, 1..=64, 0x12 | 0x1a | 0x22 | 0x28 | 0x32 | 0x3a | 0x42 | 0x72, ..] => body,
        _ => {
            marked = [b"\x08\x08\x12\x00", body].concat();
            &marked
        }
    };
    scan(bytes);
    let foreign = open(bytes, &options(choice));
    let Some(graph) = told(Graph::open(file(bytes))) else { return };
    let Some(foreign) = foreign.filter(|foreign| foreign.checkpoint().byte_len() <= MOST) else { return };
    let plan = Plan::of(foreign.checkpoint()).build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.onnx");
    if told(graph.replace(&plan, true, &path)).is_some() {
        let again = Graph::open(&path).unwrap();
        assert!(graph.initializers().eq(again.initializers()));
    }
});
