//! What DeepSpeed's ZeRO writes, put together byte by byte: `.ci/oracle/consolidate.py` has DeepSpeed itself write it.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use half::bf16;
use support::code::{Code, dict, global, int, list, text, tuple};
use support::zip::{archive, member};
use tempfile::TempDir;
use weighbridge::{Checkpoint, Dtype, ErrorKind};
use weighbridge_convert::{Aliases, Format, Options, open, open_any};

/// A file of `torch.save`, made of a pickle and its storages.
#[derive(Default)]
struct File {
    storages: Vec<Vec<u8>>,
}

impl File {
    fn floats(&mut self, shape: &[u8], values: &[f32]) -> Code {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.tensor("FloatStorage", shape, values.len(), bytes)
    }

    fn halves(&mut self, shape: &[u8], values: &[f32]) -> Code {
        let bytes = values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect();
        self.tensor("BFloat16Storage", shape, values.len(), bytes)
    }

    fn tensor(&mut self, class: &str, shape: &[u8], len: usize, bytes: Vec<u8>) -> Code {
        let key = self.storages.len().to_string();
        self.storages.push(bytes);
        let id = [text("storage"), global("torch", class), text(&key), text("cpu"), int(len as u8)];
        let storage = [tuple(&id), b"Q".to_vec()].concat();
        let strides: Vec<u8> = (0..shape.len()).map(|dim| shape[dim + 1..].iter().product()).collect();
        let ints = |numbers: &[u8]| tuple(&numbers.iter().map(|&number| int(number)).collect::<Vec<_>>());
        let args = tuple(&[storage, int(0), ints(shape), ints(&strides), b"\x89".to_vec(), dict(&[])]);
        [global("torch._utils", "_rebuild_tensor_v2"), args, b"R".to_vec()].concat()
    }

    fn write(&self, path: &Path, root: &Code) {
        let pickle = [b"\x80\x02", &root[..], b"."].concat();
        let names: Vec<String> = (0..self.storages.len()).map(|key| format!("a/data/{key}")).collect();
        let mut members = vec![member("a/data.pkl", &pickle)];
        members.extend(names.iter().zip(&self.storages).map(|(name, bytes)| member(name, bytes)));
        fs::write(path, archive(&members)).unwrap();
    }
}

fn named(pairs: &[(&str, Code)]) -> Code {
    dict(&pairs.iter().map(|(name, value)| (text(name), value.clone())).collect::<Vec<_>>())
}

fn shapes(of: &[(&str, &[u8])]) -> Code {
    let size = |shape: &[u8]| {
        let numbers = tuple(&shape.iter().map(|&dim| int(dim)).collect::<Vec<_>>());
        [global("torch", "Size"), tuple(&[numbers]), b"R".to_vec()].concat()
    };
    named(&of.iter().map(|(name, shape)| (*name, size(shape))).collect::<Vec<_>>())
}

/// A run whose group 0 has `a` and `b`, and whose group 1 has `c`; each of two ranks has its part.
#[derive(Clone)]
struct Run {
    stage: u8,
    partitions: u8,
    /// For each rank, the groups.
    groups: Vec<Vec<Vec<f32>>>,
    a: Vec<u8>,
}

impl Run {
    fn two() -> Self {
        let groups =
            vec![vec![vec![1., 2., 3., 4., 5., 6.], vec![10., 11.]], vec![vec![7., 8., 9., 0.], vec![12.]]];
        Self { stage: 2, partitions: 2, groups, a: vec![2, 3] }
    }

    /// Of `a`, three elements each; of `b` two, the last of which are padding; of `c`, in another group, two.
    fn three() -> Self {
        let groups = vec![
            vec![vec![1., 2., 3., 7.], vec![8., 10., 11.]],
            vec![vec![4., 5., 6., 9.], vec![-1., 12., -1.]],
        ];
        Self { stage: 3, groups, ..Self::two() }
    }

    fn write(&self) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        let step = dir.path().join("global_step2");
        fs::create_dir(&step).unwrap();
        fs::write(dir.path().join("latest"), "global_step2\n").unwrap();
        for (rank, groups) in self.groups.iter().enumerate() {
            let mut file = File::default();
            let flat: Vec<Code> = groups.iter().map(|it| file.floats(&[it.len() as u8], it)).collect();
            let key = if self.stage == 3 { "fp32_flat_groups" } else { "single_partition_of_fp32_groups" };
            let class = global("deepspeed.runtime.zero.config", "ZeroStageEnum");
            let stage = [class, tuple(&[int(self.stage)]), b"R".to_vec()].concat();
            let partitions = match self.stage {
                3 => int(self.partitions),
                _ => list(&[int(self.partitions), int(self.partitions)]),
            };
            let state = named(&[(key, list(&flat)), ("zero_stage", stage), ("partition_count", partitions)]);
            let unknown = [global("my.trainer", "Arguments"), b")\x81".to_vec()].concat();
            let root = named(&[("optimizer_state_dict", state), ("args", unknown)]);
            file.write(&step.join(format!("zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")), &root);
            let mut file = File::default();
            let buffers =
                [("table", file.halves(&[2], &[0.5, 1.5])), ("untrained", file.floats(&[1], &[9.]))];
            let (whole, cut): (&[f32], &[f32]) = (&[21., 22., 23.], &[[21., 22.], [23., 0.]][rank]);
            let fragment = if self.stage == 3 { cut } else { whole };
            let fragments = named(&[("frozen", file.halves(&[fragment.len() as u8], fragment))]);
            let root = named(&[
                ("module", named(&buffers)),
                ("buffer_names", list(&[text("table"), text("not_persistent")])),
                ("param_shapes", list(&[shapes(&[("a", &self.a), ("b", &[3])]), shapes(&[("c", &[3, 1])])])),
                ("frozen_param_shapes", shapes(&[("frozen", &[3])])),
                ("frozen_param_fragments", fragments),
                ("shared_params", named(&[("head", text("a"))])),
            ]);
            match (self.stage, rank) {
                (3, _) => {
                    file.write(&step.join(format!("zero_pp_rank_{rank}_mp_rank_00_model_states.pt")), &root);
                }
                (_, 0) => file.write(&step.join("mp_rank_00_model_states.pt"), &root),
                _ => {}
            }
        }
        dir
    }

    #[track_caller]
    fn refused(&self, kind: ErrorKind, what: &str) {
        refused(self.write().path(), kind, what);
    }
}

#[track_caller]
fn refused(directory: &Path, kind: ErrorKind, what: &str) {
    let error = open(directory, &Options::new()).unwrap_err();
    assert!(error.to_string().contains(what), "{error}");
    assert_eq!(error.kind(), kind, "{error}");
    assert!(!error.to_string().contains('\n'), "{error}");
}

fn tensors(checkpoint: &Checkpoint) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let tensor = |tensor: weighbridge::TensorRef<'_>| {
        assert_eq!(tensor.dtype(), Dtype::F32);
        let mut bytes = vec![0; tensor.byte_len() as usize];
        tensor.shard().source().read_at(tensor.info().file_range().start, &mut bytes).unwrap();
        let values = bytes.chunks_exact(4).map(|it| f32::from_le_bytes(it.try_into().unwrap())).collect();
        (tensor.name().to_owned(), (tensor.shape().to_vec(), values))
    };
    checkpoint.tensors().map(tensor).collect()
}

#[test]
fn every_stage_is_the_same_model() {
    let expected: BTreeMap<String, (Vec<usize>, Vec<f32>)> = [
        ("a", vec![2, 3], vec![1., 2., 3., 4., 5., 6.]),
        ("b", vec![3], vec![7., 8., 9.]),
        ("c", vec![3, 1], vec![10., 11., 12.]),
        ("frozen", vec![3], vec![21., 22., 23.]),
        ("head", vec![2, 3], vec![1., 2., 3., 4., 5., 6.]),
        ("table", vec![2], vec![0.5, 1.5]),
    ]
    .map(|(name, shape, values)| (name.to_owned(), (shape, values)))
    .into();
    // `b` begins in the first of the groups of stage 3, and ends in the second.
    for run in [Run::two(), Run { stage: 1, ..Run::two() }, Run::three()] {
        let (dir, stage) = (run.write(), run.stage);
        let mut expected = expected.clone();
        if stage < 3 {
            // Whole in the module, and named nowhere else.
            expected.insert("untrained".to_owned(), (vec![1], vec![9.]));
        }
        for path in [dir.path().to_owned(), dir.path().join("global_step2")] {
            assert_eq!(Format::of_file(&path).unwrap(), Some(Format::DeepSpeedZero));
            let foreign = open(path, &Options::new().aliases(Aliases::Each)).unwrap();
            assert_eq!(tensors(foreign.checkpoint()), expected, "stage {stage}");
        }
        assert_eq!(tensors(&open_any(dir.path()).unwrap()), expected);
        let once = open(dir.path(), &Options::new()).unwrap();
        assert!(once.checkpoint().tensor("head").is_none());
        assert!(once.notes().iter().any(|note| note.to_string().starts_with("aliased \"head\"")));
    }
}

#[test]
fn what_does_not_add_up_is_refused() {
    use ErrorKind::{Malformed, MissingShard, Overflow};
    let (two, three) = (Run::two(), Run::three());
    Run { partitions: 3, ..two.clone() }.refused(MissingShard, "it is of 3 ranks, and 2 files");
    Run { stage: 4, ..two.clone() }.refused(Malformed, "ZeRO stage 4");
    Run { a: vec![2, 9], ..two.clone() }
        .refused(Malformed, "\"a\": its 18 elements at 0 are not within the 10");
    Run { a: vec![1, 1], ..two.clone() }.refused(Malformed, "the parameters of group 0 are 4 elements");
    Run { a: vec![1, 1], ..three.clone() }.refused(Malformed, "elements of each rank, which has 7");
    Run { a: vec![9, 9], ..three.clone() }
        .refused(Malformed, "\"a\": its 41 elements at 0 are not within the 7");
    Run { a: vec![255; 20], ..two.clone() }.refused(Overflow, "\"a\": it is more bytes than a file can have");
    let mut fewer = two.clone();
    fewer.groups.iter_mut().for_each(|groups| drop(groups.pop()));
    fewer.refused(Malformed, "1 groups of weights, the model states 2");
    let mut uneven = three.clone();
    uneven.groups[1][0].pop();
    uneven.refused(Malformed, "not as long as those of rank 0");
}

#[test]
fn files_of_ranks_that_are_missing_are_named() {
    let file = |dir: &TempDir, name: &str| dir.path().join("global_step2").join(name);
    let dir = Run::two().write();
    fs::remove_file(file(&dir, "zero_pp_rank_0_mp_rank_00_optim_states.pt")).unwrap();
    refused(dir.path(), ErrorKind::MissingShard, "the optim_states.pt of rank 0 is missing");
    let dir = Run::two().write();
    fs::remove_file(file(&dir, "zero_pp_rank_1_mp_rank_00_optim_states.pt")).unwrap();
    refused(dir.path(), ErrorKind::MissingShard, "it is of 2 ranks, and 1 files");
    let dir = Run::three().write();
    fs::remove_file(file(&dir, "zero_pp_rank_1_mp_rank_00_model_states.pt")).unwrap();
    refused(dir.path(), ErrorKind::MissingShard, "the model states of 1 of 2 ranks");
    for (name, what) in [
        ("layer_00-model_00_model_states.pt", "pipeline"),
        ("layer_0_expert_1_mp_rank_00_model_states.pt", "mixture of experts"),
        ("zero_pp_rank_0_mp_rank_01_optim_states.pt", "model-parallel"),
    ] {
        let dir = Run::two().write();
        fs::write(file(&dir, name), "").unwrap();
        refused(dir.path(), ErrorKind::Unsupported, what);
    }
}

#[test]
fn damaged_files_make_an_error_or_tensors() {
    let dir = Run::three().write();
    let path = dir.path().join("global_step2/zero_pp_rank_0_mp_rank_00_optim_states.pt");
    let bytes = fs::read(&path).unwrap();
    let mut refused = 0;
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x11;
        fs::write(&path, damaged).unwrap();
        match open(dir.path(), &Options::new()) {
            Ok(foreign) => drop(tensors(foreign.checkpoint())),
            Err(_) => refused += 1,
        }
    }
    assert!(refused > bytes.len() / 2, "{refused} of {}", bytes.len());
}
