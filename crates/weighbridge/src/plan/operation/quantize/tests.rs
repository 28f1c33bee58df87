use std::collections::BTreeMap;
use std::path::Path;

use super::*;
use crate::write::{Save, TensorData, Values};
use crate::{Checkpoint, Plan};

/// Dtype, shape and bytes of each tensor, by name.
type Made = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// What `method` makes of a weight.
fn made(method: QuantizeMethod, checkpoint: &Checkpoint, name: &str) -> Result<Made> {
    let QuantizedWeight { entries, constants } = method.weight(&checkpoint.tensor(name).unwrap())?;
    let plan = Plan::new(entries);
    let session = plan.clone().session().start()?;
    let mut made = BTreeMap::new();
    for entry in plan.entries() {
        let bytes = session.take(entry.name(), None)?.1.as_bytes().to_vec();
        made.insert(entry.name().to_owned(), (entry.dtype(), entry.shape().to_vec(), bytes));
    }
    for (name, constant) in constants {
        let mut bytes = Vec::new();
        constant.write_to(&mut bytes).unwrap();
        made.insert(name, (constant.dtype(), constant.shape().to_vec(), bytes));
    }
    Ok(made)
}

/// Holds a file of tests/quantized/written, which a library made, against the method.
fn as_the_library(method: QuantizeMethod, file: &str) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/quantized/written");
    let theirs = Checkpoint::open(dir.join(file)).unwrap();
    let session = Plan::of(&theirs).build().unwrap().session().start().unwrap();
    let mut weights = 0;
    for source in theirs.tensors().filter(|tensor| tensor.name().starts_with("source.")) {
        let mut ours = made(method, &theirs, source.name()).unwrap();
        let module = source.name().strip_prefix("source.").unwrap();
        for tensor in theirs.tensors().filter(|tensor| tensor.name().starts_with(module)) {
            let name = format!("source.{}", tensor.name());
            let (dtype, shape, bytes) = ours.remove(&name).unwrap_or_else(|| panic!("{name} is not made"));
            assert_eq!((dtype, &*shape), (tensor.dtype(), tensor.shape()), "{name}");
            let expected = session.take(tensor.name(), None).unwrap().1;
            if name.contains("quant_state") {
                let json = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).unwrap();
                assert_eq!(json(&bytes), json(expected.as_bytes()));
            } else {
                assert!(bytes == expected.as_bytes(), "{name}: {bytes:?} {:?}", expected.as_bytes());
            }
        }
        assert!(ours.is_empty(), "{ours:?}");
        weights += 1;
    }
    assert!(weights >= 3);
}

#[test]
fn fp8_is_compressed_tensors() {
    as_the_library(QuantizeMethod::Fp8, "fp8.safetensors");
}

#[test]
fn fp8_in_blocks_is_transformers() {
    as_the_library(QuantizeMethod::Fp8Block, "fp8-block.safetensors");
}

#[test]
fn int8_is_compressed_tensors() {
    as_the_library(QuantizeMethod::Int8, "int8.safetensors");
}

#[test]
fn int4_is_compressed_tensors() {
    as_the_library(QuantizeMethod::INT4, "int4-rtn.safetensors");
    as_the_library(QuantizeMethod::Int4 { group: 32 }, "int4-rtn-32.safetensors");
}

#[test]
fn nf4_is_bitsandbytes() {
    as_the_library(QuantizeMethod::Nf4, "nf4.safetensors");
}

#[test]
fn mxfp4_is_compressed_tensors() {
    as_the_library(QuantizeMethod::Mxfp4, "mxfp4.safetensors");
}

const METHODS: [QuantizeMethod; 6] = [
    QuantizeMethod::Fp8,
    QuantizeMethod::Fp8Block,
    QuantizeMethod::Int8,
    QuantizeMethod::INT4,
    QuantizeMethod::Nf4,
    QuantizeMethod::Mxfp4,
];

fn checkpoint(shape: &[usize], value: f32) -> Checkpoint {
    let values = vec![value; shape.iter().product()];
    let bytes = Save::new().bytes([("up.weight", Values::new(shape, &values).unwrap())]).unwrap();
    Checkpoint::from_bytes(bytes).unwrap()
}

#[test]
fn what_is_not_finite_is_refused() {
    for method in METHODS {
        for value in [f32::NAN, f32::NEG_INFINITY] {
            let error = made(method, &checkpoint(&[2, 128], value), "up.weight").unwrap_err();
            assert_eq!((error.kind(), error.tensor().is_some()), (ErrorKind::Value, true));
            assert!(error.to_string().contains("cannot be quantised"), "{error}");
        }
    }
}

/// The extremes of single precision give finite scales, and codes that stand for what is nearest.
#[test]
fn the_smallest_and_largest_values_are_quantised() {
    for method in METHODS {
        for value in [f32::MAX, f32::MIN_POSITIVE, f32::from_bits(1)] {
            let made = made(method, &checkpoint(&[2, 128], value), "up.weight").unwrap();
            for (name, (dtype, _, bytes)) in made {
                if dtype == Dtype::F32 {
                    let mut numbers = bytes.chunks_exact(4).map(bytemuck::pod_read_unaligned::<f32>);
                    assert!(numbers.all(f32::is_finite), "{method}: {name}");
                } else if dtype == Dtype::F8_E4M3 {
                    assert!(bytes.iter().all(|code| code & 0x7F != 0x7F), "{method}: {name}");
                }
            }
        }
    }
}

#[test]
fn what_has_no_place_in_a_format_is_refused() {
    let refused = |method: QuantizeMethod, shape: &[usize]| {
        method.weight(&checkpoint(shape, 1.0).tensor("up.weight").unwrap()).unwrap_err().to_string()
    };
    let place = "tensor \"up.weight\": F32 of shape";
    let expected = |rest: &str| format!("{place} {rest}");
    assert_eq!(
        refused(QuantizeMethod::INT4, &[2, 192]),
        expected("[2, 192] cannot be quantised: its 192 columns are no whole groups of 128")
    );
    assert_eq!(
        refused(QuantizeMethod::Int4 { group: 12 }, &[2, 24]),
        expected("[2, 24] cannot be quantised: groups of 12 are not a multiple of 8")
    );
    assert_eq!(
        refused(QuantizeMethod::Fp8Block, &[300, 128]),
        expected("[300, 128] cannot be quantised: transformers does not read 300 in blocks of 128")
    );
    for method in METHODS {
        assert_eq!(refused(method, &[128]), expected("[128] cannot be quantised: it is not a matrix"));
        assert_eq!(refused(method, &[0, 128]), expected("[0, 128] cannot be quantised: it is empty"));
    }
    assert!(QuantizeMethod::Fp8.takes(Dtype::I32, &[2, 2]).is_err());
}
