//! Weights of quantised checkpoints against what the libraries that wrote them make of them: `tests/quantized/vectors`, made by
//! `.ci/oracle/quantized.py`.

use std::fs;
use std::path::{Path, PathBuf};

use weighbridge::{Checkpoint, Dtype, Plan};

fn cases(kind: &str) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("quantized").join(kind);
    let mut cases: Vec<_> = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    assert!(!cases.is_empty());
    cases
}

/// The bits of floats, with all NaN the same.
fn bits(dtype: Dtype, bytes: &[u8]) -> Vec<u32> {
    match dtype {
        Dtype::BF16 | Dtype::F16 => {
            let infinity = if dtype == Dtype::BF16 { 0x7F80 } else { 0x7C00 };
            let halves = bytes.chunks_exact(2).map(|half| u16::from_le_bytes([half[0], half[1]]));
            halves.map(|half| u32::from(if half & 0x7FFF > infinity { 0x7FFF } else { half })).collect()
        }
        Dtype::F32 => {
            let words = bytes.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap()));
            words.map(|word| if word & 0x7FFF_FFFF > 0x7F80_0000 { u32::MAX } else { word }).collect()
        }
        _ => bytes.iter().map(|&byte| u32::from(byte)).collect(),
    }
}

/// What differs between a dense checkpoint and the one that a library made.
fn differences(dense: &Checkpoint, expected: &Path, to: Option<Dtype>) -> Vec<String> {
    let expected = Checkpoint::open(expected).unwrap();
    let mut wrong = Vec::new();
    let plan = Plan::of(dense).build().unwrap();
    let session = plan.session().threads(2).start().unwrap();
    for tensor in expected.tensors() {
        let name = tensor.name();
        let Some(ours) = dense.tensor(name) else {
            let why = dense.quantized_weight(name).map(|module| module.refusal(name, "-").to_string());
            wrong.push(format!("{name} is missing: {}", why.unwrap_or_default()));
            continue;
        };
        // An 8-bit float without a scale is a number like any other, and stays as it is stored.
        let is_bare = ours.dtype() == Dtype::F8_E4M3;
        let dtype = if to.is_some() || is_bare { tensor.dtype() } else { ours.dtype() };
        if ours.shape() != tensor.shape() || dtype != tensor.dtype() {
            let (own, its) = (ours.shape(), tensor.shape());
            wrong.push(format!("{name}: {own:?} of {dtype}, not {its:?} of {}", tensor.dtype()));
            continue;
        }
        let (_, values) = session.take(name, Some(tensor.dtype())).unwrap();
        let (ours, its) =
            (bits(dtype, values.as_bytes()), bits(dtype, expected.read(name).unwrap().as_bytes()));
        let differing: Vec<_> = (0..ours.len()).filter(|&at| ours[at] != its[at]).collect();
        if let Some(&first) = differing.first() {
            wrong.push(format!(
                "{name} {:?}: {} of {} differ, first at {first}: {:x} is {:x}",
                tensor.shape(),
                differing.len(),
                ours.len(),
                its[first],
                ours[first]
            ));
        }
    }
    if to.is_none() {
        let extra = dense.tensors().filter(|tensor| expected.tensor(tensor.name()).is_none());
        wrong.extend(extra.map(|tensor| format!("{} is left over", tensor.name())));
    }
    wrong
}

#[test]
fn weights_are_those_of_the_libraries() {
    let mut wrong = Vec::new();
    for case in cases("vectors") {
        let dense = Checkpoint::open(case.join("checkpoint")).and_then(|stored| stored.dequantized());
        let dense = match dense {
            Ok(dense) => dense,
            Err(error) => {
                wrong.push(format!("{}: {error}", case.display()));
                continue;
            }
        };
        let name = case.file_name().unwrap().to_str().unwrap();
        let mut found = differences(&dense, &case.join("dense.safetensors"), None);
        let wide = case.join("dense_f32.safetensors");
        if wide.exists() {
            found.extend(
                differences(&dense, &wide, Some(Dtype::F32))
                    .into_iter()
                    .map(|line| format!("as F32: {line}")),
            );
        }
        wrong.extend(found.into_iter().map(|line| format!("{name}: {line}")));
    }
    assert!(wrong.is_empty(), "{} faults:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn what_contradicts_itself_is_refused_by_name() {
    let mut wrong = Vec::new();
    for case in cases("refused") {
        let name = case.file_name().unwrap().to_str().unwrap();
        let expected = fs::read_to_string(case.join("expect.txt")).unwrap();
        let dense = Checkpoint::open(case.join("checkpoint")).unwrap().dequantized().unwrap();
        let refusals: Vec<_> =
            dense.quantized().map(|module| module.refusal(&module.weight(), "advice").to_string()).collect();
        if refusals.is_empty() {
            let made: Vec<_> = dense.tensors().map(|tensor| tensor.name()).collect();
            wrong.push(format!("{name}: nothing is refused of {made:?}"));
        }
        for refusal in &refusals {
            if refusal.lines().count() != 1 || !refusal.ends_with("; advice") {
                wrong.push(format!("{name}: {refusal}"));
            }
        }
        let has_all = |refusal: &String| expected.lines().all(|part| refusal.contains(part));
        if !refusals.is_empty() && !refusals.iter().any(has_all) {
            wrong.push(format!("{name}: not {:?}: {}", expected.lines().collect::<Vec<_>>(), refusals[0]));
        }
    }
    assert!(wrong.is_empty(), "{} faults:\n{}", wrong.len(), wrong.join("\n"));
}
