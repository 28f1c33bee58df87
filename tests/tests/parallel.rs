//! Ranks: what each has of a checkpoint, and that it reads that and nothing else.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use weighbridge::parallel::{Cut, DeviceMap, Held, ParallelPlan, RANK_KEY, RankedTensor, Ranks, Unit, join};
use weighbridge::write::{Save, Values};
use weighbridge::{Checkpoint, Dtype, ErrorKind, Names, Plan, TensorView};

/// The sizes of a model with the names of Llama.
#[derive(Clone, Copy)]
struct Model {
    layers: usize,
    hidden: usize,
    heads: usize,
    kv_heads: usize,
    inner: usize,
    vocabulary: usize,
    experts: usize,
}

const TINY: Model =
    Model { layers: 3, hidden: 24, heads: 6, kv_heads: 3, inner: 20, vocabulary: 13, experts: 4 };

impl Model {
    fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let Self { hidden, heads, kv_heads, inner, vocabulary, .. } = *self;
        let dim = hidden / heads;
        let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![vocabulary, hidden])];
        for layer in 0..self.layers {
            let mut push = |name: &str, shape: &[usize]| {
                tensors.push((format!("model.layers.{layer}.{name}"), shape.to_vec()));
            };
            push("input_layernorm.weight", &[hidden]);
            push("self_attn.q_proj.weight", &[heads * dim, hidden]);
            push("self_attn.q_proj.bias", &[heads * dim]);
            push("self_attn.k_proj.weight", &[kv_heads * dim, hidden]);
            push("self_attn.v_proj.weight", &[kv_heads * dim, hidden]);
            push("self_attn.o_proj.weight", &[hidden, heads * dim]);
            push("self_attn.o_proj.bias", &[hidden]);
            push("mlp.gate.weight", &[self.experts, hidden]);
            for expert in 0..self.experts {
                push(&format!("mlp.experts.{expert}.up_proj.weight"), &[inner, hidden]);
            }
            push("mlp.gate_up_proj.weight", &[2 * inner, hidden]);
            push("mlp.down_proj.weight", &[hidden, inner]);
        }
        tensors.push(("model.norm.weight".to_owned(), vec![hidden]));
        tensors.push(("lm_head.weight".to_owned(), vec![vocabulary, hidden]));
        tensors
    }

    fn config(&self) -> String {
        let Self { heads, kv_heads, .. } = self;
        format!(
            r#"{{"model_type": "llama", "num_attention_heads": {heads}, "num_key_value_heads": {kv_heads}}}"#
        )
    }

    /// Writes it, in several shards.
    fn write(&self, directory: &Path) -> Checkpoint {
        let tensors: Vec<_> =
            self.tensors().into_iter().map(|(name, shape)| (values(&name, &shape), name, shape)).collect();
        let views = tensors
            .iter()
            .map(|(bytes, name, shape)| (name.clone(), TensorView::new(Dtype::BF16, shape, bytes).unwrap()));
        let views: Vec<_> = views.collect();
        let whole: u64 = tensors.iter().map(|(bytes, ..)| bytes.len() as u64).sum();
        Save::new().max_shard_size(whole / 2).directory(directory, "model", views).unwrap();
        fs::write(directory.join("config.json"), self.config()).unwrap();
        Checkpoint::open(directory).unwrap()
    }
}

/// `BF16`, of which each element is another one.
fn values(name: &str, shape: &[usize]) -> Vec<u8> {
    let seed = name.bytes().fold(7_u16, |seed, byte| seed.wrapping_mul(31).wrapping_add(u16::from(byte)));
    let elements: usize = shape.iter().product();
    let value = |at: usize| (seed.wrapping_add((at as u16).wrapping_mul(3)) & 0x3fff).to_le_bytes();
    (0..elements).flat_map(value).collect()
}

fn read(checkpoint: &Checkpoint) -> HashMap<String, (Vec<usize>, Vec<u8>)> {
    let session = Plan::of(checkpoint).build().unwrap().session().start().unwrap();
    let take = |name: &str| {
        let (entry, values) = session.take(name, None).unwrap();
        (name.to_owned(), (entry.shape().to_vec(), values.as_bytes().to_vec()))
    };
    checkpoint.tensors().map(|tensor| take(tensor.name())).collect()
}

/// The elements of some places of a dimension, picked one by one.
fn picked(bytes: &[u8], shape: &[usize], dim: usize, places: &[usize]) -> Vec<u8> {
    let inner: usize = shape[dim + 1..].iter().product::<usize>() * 2;
    let outer: usize = shape[..dim].iter().product();
    let mut out = Vec::new();
    for before in 0..outer {
        for place in places {
            let at = (before * shape[dim] + place) * inner;
            match place < &shape[dim] {
                true => out.extend_from_slice(&bytes[at..at + inner]),
                false => out.resize(out.len() + inner, 0),
            }
        }
    }
    out
}

fn list(ranges: &[(usize, usize)]) -> Vec<usize> {
    ranges.iter().flat_map(|(start, end)| *start..*end).collect()
}

#[test]
fn ranks_have_what_the_rules_of_llama_say() {
    let directory = tempfile::tempdir().unwrap();
    let whole = TINY.write(directory.path());
    let stored = read(&whole);
    let ranks = ParallelPlan::of(&whole).unwrap().tensor_parallel(2).ranks(&whole).unwrap();
    assert_eq!((ranks.len(), ranks.tensor_parallel(), ranks.pipeline_parallel()), (2, 2, 1));
    for rank in 0..2 {
        let own = read(&ranks.checkpoint(rank).unwrap());
        let expect = |name: &str, dim: usize, of: [&[(usize, usize)]; 2]| {
            let (shape, bytes) = &stored[name];
            let places = list(of[rank]);
            let (own_shape, own_bytes) = &own[name];
            assert_eq!(own_shape[dim], places.len(), "{name}");
            assert!(*own_bytes == picked(bytes, shape, dim, &places), "{name} of rank {rank}");
        };
        let layer = "model.layers.1";
        // Three heads of keys are two and one, and their queries follow: heads are of four rows.
        expect(&format!("{layer}.self_attn.q_proj.weight"), 0, [&[(0, 16)], &[(16, 24)]]);
        expect(&format!("{layer}.self_attn.q_proj.bias"), 0, [&[(0, 16)], &[(16, 24)]]);
        expect(&format!("{layer}.self_attn.k_proj.weight"), 0, [&[(0, 8)], &[(8, 12)]]);
        expect(&format!("{layer}.self_attn.o_proj.weight"), 1, [&[(0, 16)], &[(16, 24)]]);
        expect(&format!("{layer}.mlp.gate_up_proj.weight"), 0, [&[(0, 10), (20, 30)], &[(10, 20), (30, 40)]]);
        expect(&format!("{layer}.mlp.down_proj.weight"), 1, [&[(0, 10)], &[(10, 20)]]);
        expect("lm_head.weight", 0, [&[(0, 7)], &[(7, 14)]]); // 13, and a row of zeros
        for whole in ["self_attn.o_proj.bias", "input_layernorm.weight", "mlp.gate.weight"] {
            let name = format!("{layer}.{whole}");
            assert_eq!(own[&name], stored[&name]);
        }
        for expert in 0..4 {
            let name = format!("{layer}.mlp.experts.{expert}.up_proj.weight");
            assert_eq!(own.get(&name), (expert / 2 == rank).then(|| &stored[&name]), "{name}");
        }
    }
}

#[test]
fn more_ranks_than_heads_of_keys_have_the_same_keys() {
    let directory = tempfile::tempdir().unwrap();
    let whole = TINY.write(directory.path());
    let stored = read(&whole);
    let rules = "*.experts.*: replicated";
    let plan = ParallelPlan::of(&whole).unwrap().rule_line(rules).unwrap();
    let ranks = plan.clone().tensor_parallel(6).ranks(&whole).unwrap();
    let (q, k) = ("model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight");
    for rank in 0..6 {
        let own = read(&ranks.checkpoint(rank).unwrap());
        let head = rank / 2;
        assert!(own[q].1 == picked(&stored[q].1, &stored[q].0, 0, &list(&[(rank * 4, rank * 4 + 4)])));
        assert!(own[k].1 == picked(&stored[k].1, &stored[k].0, 0, &list(&[(head * 4, head * 4 + 4)])));
    }
    let error = plan.tensor_parallel(7).ranks(&whole).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Slice);
    assert!(error.to_string().contains("6 attention heads are too few for 7 ranks"), "{error}");
}

#[test]
fn stages_have_their_layers_and_the_ends() {
    let directory = tempfile::tempdir().unwrap();
    let whole = TINY.write(directory.path());
    let ranks = ParallelPlan::of(&whole).unwrap().pipeline_parallel(2).ranks(&whole).unwrap();
    let [first, last] = [0, 1].map(|rank| ranks.checkpoint(rank).unwrap());
    assert_eq!((ranks.layers(0), ranks.layers(1), ranks.layer_prefix()), (0..2, 2..3, Some("model.layers")));
    assert_eq!(first.len() + last.len(), whole.len());
    for tensor in whole.tensors() {
        let name = tensor.name();
        let at_end = ["model.layers.2", "model.norm", "lm_head"].iter().any(|end| name.starts_with(end));
        assert_eq!((first.tensor(name).is_some(), last.tensor(name).is_some()), (!at_end, at_end), "{name}");
    }
    // A head that is the embedding is needed at both ends.
    let tied: Vec<_> = whole
        .tensors()
        .filter(|tensor| tensor.name() != "lm_head.weight")
        .map(|t| (t.name().to_owned(), t))
        .collect();
    let tied = Save::new().bytes(tied.iter().map(|(name, tensor)| (name.clone(), *tensor))).unwrap();
    let tied = Checkpoint::from_bytes(tied).unwrap();
    let plan = ParallelPlan::of(&tied).unwrap().pipeline_parallel(3);
    let ranks = plan.ranks(&tied).unwrap();
    let embedding = "model.embed_tokens.weight";
    let has: Vec<_> =
        (0..3).map(|rank| ranks.checkpoint(rank).unwrap().tensor(embedding).is_some()).collect();
    assert_eq!(has, [true, false, true]);
    assert_eq!(plan.clone().pipeline_parallel(4).ranks(&tied).unwrap_err().kind(), ErrorKind::Slice);
    let ranks = plan.pipeline_parallel(2).stages(&[1, 2]).ranks(&tied).unwrap();
    assert_eq!((ranks.layers(0), ranks.layers(1)), (0..1, 1..3));
}

#[test]
fn what_no_rule_is_about_is_named() {
    let bytes = Save::new()
        .bytes([("mystery.weight", TensorView::new(Dtype::U8, &[4, 2], &[0; 8]).unwrap())])
        .unwrap();
    let strange = Checkpoint::from_bytes(bytes).unwrap();
    let plan = ParallelPlan::of(&strange).unwrap();
    assert_eq!(plan.ranks(&strange).unwrap().len(), 1);
    let error = plan.clone().tensor_parallel(2).ranks(&strange).unwrap_err();
    assert_eq!((error.kind(), error.tensor()), (ErrorKind::Pattern, Some("mystery.weight")));
    let plan = plan.rule(Names::all(), Cut::column().by(Unit::Multiple(3))).tensor_parallel(2);
    let ranks = plan.ranks(&strange).unwrap();
    let shapes: Vec<_> = (0..2).map(|rank| ranks.tensors().next().unwrap().shape(rank).unwrap()).collect();
    assert_eq!(shapes, [[3, 2], [1, 2]]);
    assert_eq!(ranks.checkpoint(2).unwrap_err().kind(), ErrorKind::Value);
    for many in ["@tensor_parallel 9223372036854775808", "@pipeline_parallel 5000\n*: replicated"] {
        let error = ParallelPlan::parse(many).and_then(|plan| plan.ranks(&strange)).unwrap_err();
        assert!(error.to_string().contains("more than 4096"), "{error}");
    }
    for (text, line) in [
        ("*.w: column\n*.v column", "line 2"),
        ("*.w: colum", "line 1"),
        ("@heads 6 4", "line 1"),
        ("@mystery 1", "line 1"),
        ("@tensor_parallel 0", "line 1"),
        ("[: row", "line 1"),
        ("*: row, middle", "line 1"),
    ] {
        let error = ParallelPlan::parse(text).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Pattern, "{text}");
        assert!(error.to_string().contains(line), "{error}");
    }
}

#[test]
fn plans_of_transformers_are_understood() {
    let directory = tempfile::tempdir().unwrap();
    let whole = TINY.write(directory.path());
    let plan = r#"{
        "layers.*.self_attn.q_proj": "colwise", "layers.*.self_attn.k_proj": "colwise", "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.o_proj": "rowwise", "layers.*.mlp.gate_up_proj": "packed_colwise",
        "layers.*.mlp.down_proj": "rowwise", "layers.*.mlp.experts.*.up_proj": "colwise", "lm_head": "colwise_gather_output"
    }"#;
    let named = format!(r#"{{"model_type": "x", "text_config": {{"base_model_tp_plan": {plan}}}}}"#);
    for text in [plan, &named] {
        let ranks = ParallelPlan::parse(text).unwrap().tensor_parallel(3).ranks(&whole).unwrap();
        let held = |name: &str, rank: usize| {
            ranks.tensors().find(|tensor| tensor.name() == name).unwrap().held(rank).cloned()
        };
        assert_part(held("model.layers.0.self_attn.q_proj.weight", 1), 0, &[(8, 16)]);
        assert_part(held("model.layers.0.self_attn.o_proj.weight", 2), 1, &[(16, 24)]);
        assert_eq!(held("model.layers.0.self_attn.o_proj.bias", 2), Some(Held::Whole));
        assert_eq!(held("model.embed_tokens.weight", 2), Some(Held::Whole));
        // As torch.chunk: 13 are 5, 5 and 3; 20 are 7, 7 and 6.
        assert_part(held("lm_head.weight", 2), 0, &[(10, 13)]);
        assert_part(held("model.layers.0.mlp.experts.3.up_proj.weight", 2), 0, &[(14, 20)]);
        assert_part(held("model.layers.0.mlp.gate_up_proj.weight", 1), 0, &[(7, 14), (27, 34)]);
    }
    // One entry about experts that transformers puts together, where the file has them one by one.
    for (style, expected) in [("packed_colwise", [Some(10), Some(10)]), ("grouped_gemm", [Some(20), None])] {
        let plan = format!(r#"{{"layers.*.mlp.experts.gate_up_proj": "{style}"}}"#);
        let ranks = ParallelPlan::parse(&plan).unwrap().tensor_parallel(2).ranks(&whole).unwrap();
        let expert =
            |tensor: &RankedTensor<'_>| tensor.name() == "model.layers.2.mlp.experts.1.up_proj.weight";
        let tensor = ranks.tensors().find(expert).unwrap();
        assert_eq!([0, 1].map(|rank| tensor.shape(rank).map(|shape| shape[0])), expected);
    }
    let error = ParallelPlan::parse(r#"{"layers.*.q": "sideways"}"#).unwrap_err();
    assert!(error.to_string().contains("sideways"), "{error}");
    assert!(ParallelPlan::parse(r#"{"hidden_size": 4}"#).is_err());
}

fn assert_part(held: Option<Held>, at: usize, expected: &[(usize, usize)]) {
    match held {
        Some(Held::Part { dim, ranges, padding: 0 }) => {
            let ranges: Vec<_> = ranges.iter().map(|range| (range.start, range.end)).collect();
            assert_eq!((dim, &*ranges), (at, expected));
        }
        other => panic!("{other:?}"),
    }
}

/// Whatever the sizes, the parts are the whole again: by the plan, and by what `shard` writes down.
#[test]
fn parts_joined_again_are_the_whole() {
    for (heads, kv_heads) in [(6, 3), (4, 4), (8, 1), (5, 5)] {
        for (world, stages) in [(2, 1), (3, 1), (4, 1), (2, 3), (1, 2)] {
            let model = Model { hidden: heads * 4, heads, kv_heads, experts: 5, ..TINY };
            let directory = tempfile::tempdir().unwrap();
            let whole = model.write(directory.path());
            let plan = ParallelPlan::of(&whole).unwrap().tensor_parallel(world).pipeline_parallel(stages);
            let ranks = plan.ranks(&whole).unwrap();
            let plan = plan.heads(heads, kv_heads).unwrap();
            let stored = read(&whole);
            let parts: Vec<_> = (0..ranks.len()).map(|rank| ranks.checkpoint(rank).unwrap()).collect();
            let mut joined = read(&plan.join(&parts, &Names::all()).unwrap());
            for name in ["model.embed_tokens.weight", "lm_head.weight"] {
                // Rows that were added stay.
                let (shape, bytes) = joined.get_mut(name).unwrap();
                assert_eq!(shape[0], 13_usize.next_multiple_of(world));
                assert!(bytes[13 * shape[1] * 2..].iter().all(|byte| *byte == 0));
                bytes.truncate(13 * shape[1] * 2);
                shape[0] = 13;
            }
            assert!(joined == stored);

            let mut written: Vec<_> = parts
                .iter()
                .enumerate()
                .map(|(rank, part)| {
                    let tensors: Vec<_> =
                        part.tensors().map(|tensor| (tensor.name().to_owned(), tensor)).collect();
                    Save::new().metadata(RANK_KEY, ranks.record(rank)).bytes(tensors).unwrap()
                })
                .map(|bytes| Checkpoint::from_bytes(bytes).unwrap())
                .collect();
            assert!(read(&join(&written, &Names::all()).unwrap()) == stored);
            written.reverse();
            assert!(read(&join(&written, &Names::all()).unwrap()) == stored);
            let last = written.pop().unwrap();
            let error = join(&written, &Names::all()).unwrap_err();
            assert!(error.to_string().contains("the checkpoint of rank 0 of"), "{error}");
            assert!(
                written.is_empty()
                    || read(&join(&[written, vec![last]].concat(), &Names::all()).unwrap()) == stored
            );
        }
    }
}

#[test]
fn records_that_cannot_be_true_are_refused() {
    let of = |record: &str, rows: usize| {
        let bytes = vec![7; rows * 2];
        let shape = [rows, 2];
        let view = TensorView::new(Dtype::U8, &shape, &bytes).unwrap();
        Checkpoint::from_bytes(Save::new().metadata(RANK_KEY, record).bytes([("w", view)]).unwrap()).unwrap()
    };
    let record = |rank: usize, parts: &str| {
        format!(r#"{{"rank": {rank}, "ranks": 2, "tensor_parallel": 2, "parts": {{{parts}}}}}"#)
    };
    let part = |shape: &str, dim: usize, ranges: &str| {
        format!(r#""w": {{"shape": {shape}, "dim": {dim}, "ranges": {ranges}}}"#)
    };
    let first = of(&record(0, &part("[4, 2]", 0, "[[0, 2]]")), 2);
    let error = |record: &str| join(&[first.clone(), of(record, 2)], &Names::all()).unwrap_err().to_string();
    for (parts, what) in [
        (part("[4, 2]", 0, "[[1, 3]]"), "overlap"),
        (part("[5, 2]", 0, "[[3, 5]]"), "has a part of U8 [4, 2]"),
        (part("[4, 2]", 0, "[[2, 5]]"), "nothing that can be true"),
        (part("[4, 2]", 0, "[[2, 9]]"), "nothing that can be true"),
        (part("[4, 2]", 2, "[[2, 4]]"), "nothing that can be true"),
        (part("[4, 3]", 0, "[[2, 4]]"), "nothing that can be true"),
        (part("[4, 2]", 0, "[[2, 3]]"), "no rank has places 3 to 4"),
        (part("[4, 2]", 0, "[[4, 2]]"), "nothing that can be true"),
        (String::new(), "has a part of U8 [4, 2]"),
    ] {
        let error = error(&record(1, &parts));
        assert!(error.contains(what), "{parts}: {error}");
    }
    for (wrong, what) in [("{}", "nothing that can be understood"), ("[", "nothing that can be understood")] {
        assert!(error(wrong).contains(what));
    }
    assert!(error(&record(2, "")).contains("nothing that can be understood"));
    assert!(error(&record(0, &part("[4, 2]", 0, "[[2, 4]]"))).contains("two checkpoints are of rank 0"));
    let other = record(1, &part("[4, 2]", 0, "[[2, 4]]")).replace(r#""ranks": 2"#, r#""ranks": 3"#);
    assert!(error(&other).contains("cut for 3 ranks"));
    let second = of(&record(1, &part("[4, 2]", 0, "[[2, 4]]")), 2);
    assert_eq!(read(&join(&[second, first.clone()], &Names::all()).unwrap())["w"], (vec![4, 2], vec![7; 8]));
}

#[test]
fn a_rank_reads_its_bytes_and_no_others() {
    let directory = tempfile::tempdir().unwrap();
    let whole = TINY.write(directory.path());
    let ranks =
        ParallelPlan::of(&whole).unwrap().tensor_parallel(2).pipeline_parallel(3).ranks(&whole).unwrap();
    for rank in 0..ranks.len() {
        let own = ranks.checkpoint(rank).unwrap();
        for dtype in [None, Some(Dtype::F32)] {
            let session = Plan::of(&own).dtype(|_| dtype).build().unwrap().session().start().unwrap();
            for tensor in own.tensors() {
                session.take(tensor.name(), None).unwrap();
            }
            let padding = ranks.held_byte_len(rank) - ranks.byte_len(rank);
            let (report, planned) = (session.report(), ranks.byte_len(rank) + padding);
            assert_eq!((report.bytes_needed(), report.bytes_read()), (planned, planned), "rank {rank}");
        }
    }
}

#[test]
fn a_part_of_what_is_computed_is_a_part_of_what_comes_out() {
    use std::sync::Arc;
    use weighbridge::Entry;
    use weighbridge::plan::{Input, Join};

    let directory = tempfile::tempdir().unwrap();
    let whole = TINY.write(directory.path());
    let input =
        |name: &str| Input::of(&whole.tensor(&format!("model.layers.0.self_attn.{name}.weight")).unwrap());
    let inputs = vec![input("q_proj"), input("k_proj"), input("v_proj")];
    let name = "model.layers.0.self_attn.qkv_proj.weight";
    let fused = whole.with_entries([Entry::new(name, inputs, Arc::new(Join::along(0))).unwrap()]).unwrap();
    let stored = read(&fused);
    let ranks = ParallelPlan::of(&fused).unwrap().tensor_parallel(3).ranks(&fused).unwrap();
    for rank in 0..3 {
        let places =
            list(&[(rank * 8, rank * 8 + 8), (24 + rank * 4, 28 + rank * 4), (36 + rank * 4, 40 + rank * 4)]);
        let own = read(&ranks.checkpoint(rank).unwrap());
        assert!(own[name].1 == picked(&stored[name].1, &stored[name].0, 0, &places));
    }
}

#[test]
fn devices_get_layers_while_there_is_room() {
    let directory = tempfile::tempdir().unwrap();
    let whole = TINY.write(directory.path());
    let sizes = || whole.tensors().map(|tensor| (tensor.name(), tensor.byte_len()));
    let map = DeviceMap::by_memory([(0, 12_000), (1, 100_000)]);
    let placed = map.place(sizes()).unwrap();
    let mut sums = [0, 0];
    for (name, bytes) in sizes() {
        sums[*placed.device_of(name).unwrap()] += bytes;
    }
    let devices: Vec<_> = placed.devices().map(|(_, bytes, _)| bytes).collect();
    assert_eq!(devices, sums);
    assert!(sums[0] <= 12_000 && sums[0] > 0 && sums[1] > 0);
    assert!(placed.device_of("model.layers.0.mlp.gate.weight") == Some(&0));
    let error = DeviceMap::by_memory([(0, 12_000)]).place(sizes()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Memory);
}

const RANK: &str = "WEIGHBRIDGE_TEST_RANK";

/// Of the process: bytes of all its reads.
#[cfg(target_os = "linux")]
fn bytes_read() -> u64 {
    let io = fs::read_to_string("/proc/self/io").unwrap();
    let line = io.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap();
    line.parse().unwrap()
}

fn ranks_of(directory: &Path) -> Ranks {
    let whole = Checkpoint::open(directory).unwrap();
    ParallelPlan::of(&whole).unwrap().tensor_parallel(8).ranks(&whole).unwrap()
}

/// Not a test by itself: what each process of [`eight_processes_load_one_checkpoint`] does.
#[cfg(target_os = "linux")]
#[test]
fn one_of_eight_processes() {
    let Ok(task) = std::env::var(RANK) else { return };
    let (rank, directory) = task.split_once(':').unwrap();
    let (rank, directory) = (rank.parse().unwrap(), Path::new(directory));
    let before = bytes_read();
    let ranks = ranks_of(directory);
    let own = ranks.checkpoint(rank).unwrap();
    let session = Plan::of(&own).build().unwrap().session().start().unwrap();
    let taken: Vec<_> =
        own.tensors().map(|tensor| (tensor.name(), session.take(tensor.name(), None).unwrap().1)).collect();
    // What the system itself lets a process read of the memory at hand and so on is no kilobyte a thread.
    let read = bytes_read() - before;
    let planned = ranks.byte_len(rank) + ranks.header_len();
    assert!(read * 100 <= planned * 102, "rank {rank} read {read} bytes of {planned}");
    let shapes: Vec<_> = own.tensors().map(|tensor| tensor.shape().to_vec()).collect();
    let views = taken.iter().zip(&shapes).map(|((name, values), shape)| {
        (*name, TensorView::new(Dtype::BF16, shape, values.as_bytes()).unwrap())
    });
    Save::new().file(directory.join(format!("rank-{rank}.safetensors")), views.collect::<Vec<_>>()).unwrap();
    fs::write(directory.join(format!("rank-{rank}.bytes")), read.to_string()).unwrap();
}

#[cfg(target_os = "linux")]
#[test]
fn eight_processes_load_one_checkpoint() {
    let model =
        Model { layers: 4, hidden: 1024, heads: 16, kv_heads: 8, inner: 1024, vocabulary: 1024, experts: 8 };
    let directory = tempfile::tempdir().unwrap();
    let whole = model.write(directory.path());
    let start = |rank: usize| {
        let task = format!("{rank}:{}", directory.path().display());
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["one_of_eight_processes", "--exact", "--nocapture"]).env(RANK, task).spawn().unwrap()
    };
    let processes: Vec<_> = (0..8).map(start).collect();
    for mut process in processes {
        assert!(process.wait().unwrap().success());
    }
    let sum: u64 = (0..8)
        .map(|rank| {
            fs::read_to_string(directory.path().join(format!("rank-{rank}.bytes")))
                .unwrap()
                .parse::<u64>()
                .unwrap()
        })
        .sum();
    let ranks = ranks_of(directory.path());
    let replicated: u64 = ranks
        .tensors()
        .filter(|tensor| tensor.held(0) == tensor.held(1))
        .map(|tensor| tensor.whole().byte_len())
        .sum();
    let most = whole.byte_len() + 7 * replicated + 8 * ranks.header_len();
    assert!(sum * 100 <= most * 102, "{sum} bytes were read for {most}");

    let plan = ParallelPlan::of(&whole).unwrap().heads(16, 8).unwrap();
    let parts: Vec<_> = (0..8)
        .map(|rank| Checkpoint::open(directory.path().join(format!("rank-{rank}.safetensors"))).unwrap())
        .collect();
    assert!(read(&plan.join(&parts, &Names::all()).unwrap()) == read(&whole));
}

fn rank(dir: &Path, number: usize, tensors: &[(&str, &[usize], &[f32])]) -> Checkpoint {
    let path = dir.join(format!("rank{number}.safetensors"));
    let tensors =
        tensors.iter().map(|&(name, shape, values)| (name.to_owned(), Values::new(shape, values).unwrap()));
    Save::new().metadata("format", "pt").file(&path, tensors).unwrap();
    Checkpoint::open(path).unwrap()
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

#[test]
fn rules_join_what_tensor_parallelism_cut() {
    let dir = tempfile::tempdir().unwrap();
    let ranks = [
        rank(dir.path(), 0, &[("q", &[1, 2], &[1., 2.]), ("o", &[2, 1], &[1., 3.]), ("norm", &[1], &[9.])]),
        rank(
            dir.path(),
            1,
            &[("q", &[2, 2], &[3., 4., 5., 6.]), ("o", &[2, 1], &[2., 4.]), ("norm", &[1], &[9.])],
        ),
    ];
    let plan = ParallelPlan::parse("# all\n\nq: column\n  o : row\n*: replicated\n").unwrap();
    let joined = plan.join(&ranks, &Names::all()).unwrap();
    let found = read(&joined);
    assert_eq!(found["q"], (vec![3, 2], bytes(&[1., 2., 3., 4., 5., 6.])));
    assert_eq!(found["o"], (vec![2, 2], bytes(&[1., 2., 3., 4.])));
    assert_eq!(found["norm"], (vec![1], bytes(&[9.])));
    assert_eq!(joined.shards()[0].header().metadata_value("format"), Some("pt"));
    // In the other order other values.
    let [first, second] = ranks;
    let turned = plan.join(&[second, first], &Names::exact("q")).unwrap();
    assert_eq!((turned.len(), &read(&turned)["q"].1), (1, &bytes(&[3., 4., 5., 6., 1., 2.])));
}

#[test]
fn rules_that_do_not_fit_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let first = rank(dir.path(), 0, &[("a", &[2, 2], &[1., 2., 3., 4.])]);
    let refused = |rules: &str, other: &[(&str, &[usize], &[f32])]| {
        let ranks = [first.clone(), rank(dir.path(), 1, other)];
        ParallelPlan::parse(rules).unwrap().join(&ranks, &Names::all()).unwrap_err().to_string()
    };
    let same: (&str, &[usize], &[f32]) = ("a", &[2, 2], &[1., 2., 3., 4.]);
    for (rules, other, what) in [
        ("b: 0", same, "no rule is about it"),
        ("a: 2", same, "it has 2 dimensions"),
        ("a: 0", ("a", &[2, 1], &[1., 2.]), "cannot be joined along dimension 0"),
        ("a: 0", ("a", &[2], &[1., 2.]), "cannot be joined along dimension 0"),
        ("a: 0", ("b", &[2], &[1., 2.]), "rank 1 does not have it"),
        ("a: replicated", ("a", &[2, 1], &[1., 2.]), "the same in all ranks"),
        (
            "a: replicated",
            ("a", &[2, 2], &[1., 2., 3., 5.]),
            "ranks 0 and 1 have other values for the same place, from byte 14",
        ),
    ] {
        let error = refused(rules, &[other]);
        assert!(error.contains(what) && error.contains("\"a\""), "{error}");
    }
}
