//! Weights of quantised checkpoints against what the libraries that wrote them make of them: `tests/quantized/vectors`, made by
//! `.ci/oracle/quantized.py`.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use weighbridge::plan::{Input, Join, Part};
use weighbridge::write::Save;
use weighbridge::{Checkpoint, Dtype, Entry, ErrorKind, Plan, ScaledCodes, Slice, TensorView};

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

/// The bytes of the weights of a checkpoint, each of which is made in small tiles, as `part` says.
fn made(dense: &Checkpoint, part: impl Fn(&[usize]) -> Option<Slice>) -> Vec<(String, Vec<usize>, Vec<u8>)> {
    let plan =
        Plan::of(dense).part(|tensor| Ok(part(tensor.shape()).map(Part::of))).dtype(|_| Some(Dtype::F32));
    let session = plan.build().unwrap().session().threads(3).chunk(4096).start().unwrap();
    let names: Vec<_> = session.names().map(str::to_owned).collect();
    let take = |name: String| {
        let (entry, values) = session.take(&name, None).unwrap();
        (name, entry.shape().to_vec(), values.as_bytes().to_vec())
    };
    names.into_iter().map(take).collect()
}

#[test]
fn a_part_of_a_weight_is_that_part() {
    for case in cases("vectors") {
        let dense = Checkpoint::open(case.join("checkpoint")).unwrap().dequantized().unwrap();
        let wholes = made(&dense, |_| None);
        // Some of the middle of the last two dimensions: rows, columns, and both.
        for (rows, columns) in [(true, false), (false, true), (true, true)] {
            let bound = |at: usize| i64::try_from(at).unwrap();
            let middle = |dim: usize| dim / 3..(dim / 3 + dim.div_ceil(2)).min(dim);
            let of = |shape: &[usize]| {
                let last = shape.len().checked_sub(2)?;
                let range = |dim: usize, cut: bool| if cut { middle(shape[dim]) } else { 0..shape[dim] };
                let outer = (0..last).map(|dim| 0..shape[dim]);
                Some(outer.chain([range(last, rows), range(last + 1, columns)]).collect::<Vec<_>>())
            };
            let slice = |shape: &[usize]| {
                let all = of(shape)?.into_iter();
                Some(all.fold(Slice::new(), |slice, range| slice.range(bound(range.start)..bound(range.end))))
            };
            for ((name, shape, whole), (_, _, part)) in wholes.iter().zip(made(&dense, slice)) {
                let Some(ranges) = of(shape) else { continue };
                let mut expected = vec![0_usize];
                for (range, dim) in ranges.iter().zip(shape) {
                    expected =
                        expected.iter().flat_map(|at| range.clone().map(move |own| at * dim + own)).collect();
                }
                let expected: Vec<u8> =
                    expected.into_iter().flat_map(|at| whole[at * 4..at * 4 + 4].to_vec()).collect();
                assert!(part == expected, "{}: {name} {ranges:?} of {shape:?}", case.display());
            }
        }
    }
}

/// A checkpoint of the same tensors, of which one has another shape or dtype, beside the configuration of the other.
fn changed(case: &Path, into: &Path, seed: usize) -> Option<String> {
    let stored = Checkpoint::open(case.join("checkpoint")).unwrap();
    let count = stored.len();
    let mut tensors = Vec::new();
    let mut what = None;
    for (number, tensor) in stored.tensors().enumerate() {
        let (mut dtype, mut shape) = (tensor.dtype(), tensor.shape().to_vec());
        if number == seed % count {
            let dim = seed / count % shape.len().max(1);
            match (seed / 7 % 5, shape.get_mut(dim)) {
                (0, Some(size)) => *size += 1,
                (1, Some(size)) => *size = size.saturating_sub(1),
                (2, Some(size)) => *size *= 2,
                (3, Some(_)) => drop(shape.remove(dim)),
                _ => dtype = [Dtype::I32, Dtype::U8, Dtype::F32, Dtype::BF16, Dtype::I64][seed / 3 % 5],
            }
            what = Some(format!("{} as {shape:?} of {dtype}", tensor.name()));
        }
        let bytes = stored.read(tensor.name()).unwrap().as_bytes().to_vec();
        let len = dtype.size_of(&shape).ok()? as usize;
        let bytes: Vec<u8> =
            bytes.iter().copied().cycle().take(if bytes.is_empty() { 0 } else { len }).collect();
        if bytes.len() != len {
            return None;
        }
        tensors.push((tensor.name().to_owned(), dtype, shape, bytes));
    }
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| (name.as_str(), TensorView::new(*dtype, shape, bytes).unwrap()));
    Save::new().file(into.join("model.safetensors"), views).unwrap();
    what
}

#[test]
fn no_shape_makes_it_panic() {
    let dir = tempfile::tempdir().unwrap();
    for case in cases("vectors") {
        let into = dir.path().join(case.file_name().unwrap());
        fs::create_dir(&into).unwrap();
        for file in fs::read_dir(case.join("checkpoint")).unwrap().map(|entry| entry.unwrap().path()) {
            if file.extension().is_some_and(|ending| ending == "json")
                && !file.ends_with("model.safetensors.index.json")
            {
                fs::copy(&file, into.join(file.file_name().unwrap())).unwrap();
            }
        }
        for seed in 0..12 {
            let Some(what) = changed(&case, &into, seed * 31 + 7) else { continue };
            // It is read, or refused; neither panics, nor reads what is not there.
            let Ok(dense) = Checkpoint::open(&into).unwrap().dequantized() else { continue };
            let session = Plan::of(&dense).build().unwrap().session().start().unwrap();
            for name in session.names() {
                if let Err(error) = session.take(name, None) {
                    assert_ne!(error.kind(), ErrorKind::Internal, "{}: {what}: {error}", case.display());
                }
            }
            for scaled in dense.tensors().filter_map(|tensor| ScaledCodes::of(&tensor).ok()?) {
                let blocks = [scaled.group(), Some([1, 1])];
                for entry in blocks.iter().filter_map(|blocks| scaled.entry("w", *blocks).ok()) {
                    let session = Plan::new([entry]).session().start().unwrap();
                    if let Err(error) = session.take("w", None) {
                        assert_ne!(error.kind(), ErrorKind::Internal, "{}: {what}: {error}", case.display());
                    }
                }
            }
        }
    }
}

/// Name, dtype and shape.
type Described<'a> = (&'a str, Dtype, &'a [usize]);

/// A file of these tensors, all of whose bytes are ones.
fn ones(tensors: &[Described<'_>]) -> Checkpoint {
    let bytes = vec![0x11; 1 << 16];
    let views = tensors.iter().map(|&(name, dtype, shape)| {
        let len = dtype.size_of(shape).unwrap() as usize;
        (name, TensorView::new(dtype, shape, &bytes[..len]).unwrap())
    });
    Checkpoint::from_bytes(Save::new().bytes(views.collect::<Vec<_>>()).unwrap()).unwrap()
}

#[test]
fn what_may_mean_two_things_is_refused() {
    use Dtype::{BF16, F8_E4M3, F16, F32, I8, I32, U8};
    let cases: &[(&str, &[Described<'_>])] = &[
        // Nothing says which version of GPTQ it is.
        (
            "gptq_v2",
            &[("up.qweight", I32, &[8, 32]), ("up.qzeros", I32, &[1, 4]), ("up.scales", F16, &[1, 32])],
        ),
        // Bytes that may be anything.
        ("quant_method", &[("up.weight", U8, &[16, 16]), ("up.weight_scale", BF16, &[1])]),
        ("number of 8 bits", &[("up._weight_qdata", U8, &[16, 16]), ("up._weight_scale", F32, &[16, 1])]),
        // Scales and zero points that the method does not have.
        (
            "weight_scale_2",
            &[
                ("up.weight", F8_E4M3, &[4, 8]),
                ("up.weight_scale", F32, &[]),
                ("up.weight_scale_2", F32, &[]),
            ],
        ),
        ("zeros", &[("up.weight", I8, &[4, 8]), ("up.scale", F32, &[4]), ("up.zeros", F32, &[4])]),
        ("biases", &[("up.weight", I8, &[4, 8]), ("up.scale", F32, &[4]), ("up.biases", F32, &[4])]),
        ("EETQ", &[("up.weight", I8, &[8, 8]), ("up.weight_scales", F16, &[8])]),
        // For outputs, or for rows of the kernel.
        ("dimensions", &[("conv.weight", F8_E4M3, &[3, 5, 3, 3]), ("conv.weight_scale", F32, &[3])]),
    ];
    for (expected, tensors) in cases {
        let dense = ones(tensors).dequantized().unwrap();
        let refused: Vec<_> = dense.quantized().map(|module| module.refusal("x", "-").to_string()).collect();
        assert_eq!(refused.len(), 1, "{expected}: {tensors:?}");
        assert!(refused[0].contains(expected), "{expected}: {}", refused[0]);
    }
}

#[test]
fn parameters_with_such_names_stay() {
    use Dtype::{F8_E4M3, F32};
    let dense = ones(&[
        ("layers.0.mlp.up.weight", F8_E4M3, &[4, 8]),
        ("layers.0.mlp.up.weight_scale", F32, &[]),
        ("layers.0.mlp.up.input_scale", F32, &[]),
        ("layers.0.attn.k_scale", F32, &[]),
        ("vision.blocks.0.attn.q_scale", F32, &[64]),
        ("vision.head.input_scale", F32, &[1]),
    ]);
    let dense = dense.dequantized().unwrap();
    let mut names: Vec<_> = dense.tensors().map(|tensor| tensor.name()).collect();
    names.sort_unstable();
    assert_eq!(names, ["layers.0.mlp.up.weight", "vision.blocks.0.attn.q_scale", "vision.head.input_scale"]);
}

#[test]
fn a_weight_is_joined_with_one_that_is_stored() {
    // FP8: 2^-6, times 2^-100 and more, which BF16 rounds; and what is stored as BF16.
    let dense = ones(&[
        ("q.weight", Dtype::F8_E4M3, &[2, 4]),
        ("q.weight_scale", Dtype::F32, &[]),
        ("v.weight", Dtype::BF16, &[3, 4]),
    ]);
    let dense = dense.dequantized().unwrap();
    let session = Plan::of(&dense).dtype(|_| Some(Dtype::F32)).build().unwrap().session().start().unwrap();
    let parts = ["q.weight", "v.weight"].map(|name| session.take(name, None).unwrap().1.as_bytes().to_vec());
    let inputs = ["q.weight", "v.weight"].map(|name| Input::of(&dense.tensor(name).unwrap()));
    let joined = Entry::new("qv", inputs.to_vec(), Arc::new(Join::along(0))).unwrap();
    assert_eq!((joined.dtype(), joined.shape()), (Dtype::BF16, &[5, 4][..]));
    let session = Plan::new([joined]).session().start().unwrap();
    assert!(session.take("qv", Some(Dtype::F32)).unwrap().1.as_bytes() == parts.concat());
}
