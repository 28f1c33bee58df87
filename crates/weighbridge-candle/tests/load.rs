//! Checkpoints of the official crate, loaded into Candle, compared with Candle's own loaders.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use safetensors::Dtype as St;
use weighbridge::{Checkpoint, ErrorKind, Names, Source};
use weighbridge_candle::candle_core::{self, DType, Device, Shape, Tensor};
use weighbridge_candle::candle_nn::VarBuilder;
use weighbridge_candle::{Loader, candle_nn};
use weighbridge_tests::{Stored, file, sharded};

const ALL: [St; 22] = [
    St::BOOL,
    St::F4,
    St::F6_E2M3,
    St::F6_E3M2,
    St::U8,
    St::I8,
    St::F8_E5M2,
    St::F8_E4M3,
    St::F8_E8M0,
    St::F8_E4M3FNUZ,
    St::F8_E5M2FNUZ,
    St::I16,
    St::U16,
    St::F16,
    St::BF16,
    St::I32,
    St::U32,
    St::F32,
    St::C64,
    St::F64,
    St::I64,
    St::U64,
];

fn every_dtype() -> Vec<u8> {
    let names: Vec<String> = ALL.iter().map(|dtype| format!("{dtype:?}")).collect();
    let tensors = ALL.iter().enumerate().map(|(seed, &dtype)| {
        let bytes = if dtype == St::U64 { Some(7_u64.to_le_bytes().repeat(8)) } else { None };
        let stored = bytes.map(|bytes| Stored::new(dtype, &[2, 4], bytes));
        (&*names[seed], stored.unwrap_or_else(|| Stored::filled(dtype, &[2, 4], seed)))
    });
    file(&tensors.collect::<Vec<_>>())
}

fn bits(tensor: &Tensor) -> Vec<u8> {
    let flat = tensor.flatten_all().unwrap();
    match tensor.dtype() {
        DType::U8 => flat.to_vec1::<u8>().unwrap(),
        DType::F32 => flat.to_vec1::<f32>().unwrap().iter().flat_map(|v| v.to_le_bytes()).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_dtype_as_stored() {
    let bytes = every_dtype();
    let ckpt = Checkpoint::from_bytes(bytes.clone()).unwrap();
    let loaded = Loader::new(&ckpt).load().unwrap();
    assert_eq!(loaded.tensors.len(), 21);
    assert_eq!(loaded.skipped.len(), 1);
    assert_eq!(loaded.skipped[0].name, "C64");
    assert!(loaded.skipped[0].reason.contains("complex_pairs"), "{}", loaded.skipped[0].reason);
    let converted: Vec<_> = loaded.converted.iter().map(|c| c.name.clone()).collect();
    for name in ["I8", "U16", "U64", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"] {
        assert!(converted.contains(&name.to_owned()), "{name} is not in {converted:?}");
    }
    assert_eq!(converted.len(), 6);

    // Candle loads what it can; there we agree with it bit for bit.
    let view = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    for (name, tensor) in &loaded.tensors {
        assert_eq!(tensor.dims(), [2, 4], "{name}");
        use candle_core::safetensors::Load;
        let view = view.tensor(name).unwrap();
        if let Ok(theirs) = view.load(&Device::Cpu) {
            assert_eq!(theirs.dtype(), tensor.dtype(), "{name}");
            let (ours, theirs) = (tensor.storage_and_layout().0, theirs.storage_and_layout().0);
            let (candle_core::Storage::Cpu(ours), candle_core::Storage::Cpu(theirs)) = (&*ours, &*theirs)
            else {
                panic!()
            };
            assert_eq!(format!("{ours:?}"), format!("{theirs:?}"), "{name}");
        }
    }

    let error = Loader::new(&ckpt).require_all().load().unwrap_err();
    assert_eq!((error.kind(), error.tensor()), (ErrorKind::Dtype, Some("C64")));
    let loaded = Loader::new(&ckpt).complex_pairs().load().unwrap();
    assert_eq!(loaded.tensors["C64"].dims(), [2, 4, 2]);
    assert_eq!(bits(&loaded.tensors["C64"]), view.tensor("C64").unwrap().data());
}

#[test]
fn a_requested_dtype_casts_floats() {
    let ckpt = Checkpoint::from_bytes(every_dtype()).unwrap();
    let loaded = Loader::new(&ckpt).dtype(DType::F32).load().unwrap();
    for name in ["F16", "BF16", "F32", "F64", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4"] {
        assert_eq!(loaded.tensors[name].dtype(), DType::F32, "{name}");
    }
    for (name, dtype) in [("I64", DType::I64), ("BOOL", DType::U8), ("U16", DType::U32)] {
        assert_eq!(loaded.tensors[name].dtype(), dtype, "{name}");
    }
    let skipped: Vec<_> = loaded.skipped.iter().map(|s| &*s.name).collect();
    assert_eq!(skipped.len(), 3, "{skipped:?}");
    assert!(loaded.skipped.iter().all(|s| s.reason.contains("without a dtype") || s.name == "C64"));

    // The casts are Candle's own, where it has them.
    let stored = Loader::new(&ckpt).load().unwrap();
    for name in ["F16", "BF16", "F64", "F8_E4M3"] {
        same_floats(&loaded.tensors[name], &stored.tensors[name].to_dtype(DType::F32).unwrap(), name);
    }
}

/// Equal values, any NaN equal to any other.
fn same_floats(ours: &Tensor, theirs: &Tensor, name: &str) {
    assert_eq!(ours.dims(), theirs.dims());
    let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for (a, b) in values(ours).iter().zip(values(theirs)) {
        assert!(*a == b || (a.is_nan() && b.is_nan()), "{name}: {a} {b}");
    }
}

#[test]
fn a_value_that_does_not_fit_is_an_error() {
    let values = [1_u64, u64::MAX].map(u64::to_le_bytes).concat();
    let ckpt = Checkpoint::from_bytes(file(&[("ids", Stored::new(St::U64, &[2], values))])).unwrap();
    let error = Loader::new(&ckpt).load().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Value);
    assert_eq!(
        error.to_string(),
        "tensor \"ids\": 18446744073709551615 of U64 does not fit I64; `Overflow::Saturate` would take it"
    );
}

#[test]
fn what_is_too_large_follows_the_rule_that_was_set() {
    use weighbridge::plan::Overflow;
    use weighbridge_candle::candle_nn::var_builder::Shard;

    let values: Vec<u8> = [1.0_f32, -1e6].into_iter().flat_map(f32::to_le_bytes).collect();
    let ckpt = Checkpoint::from_bytes(file(&[("a", Stored::new(St::F32, &[2], values))])).unwrap();
    let loader = |overflow| Loader::new(&ckpt).dtype(DType::F16).overflow(overflow);
    let second = |tensor: candle_core::Result<Tensor>| {
        let tensor = tensor.and_then(|tensor| tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>());
        tensor.map(|values| *values.last().unwrap()).map_err(|error| error.to_string())
    };
    for (overflow, expected) in [
        (Overflow::Infinity, Some(f32::NEG_INFINITY)),
        (Overflow::Saturate, Some(-65_504.0)),
        (Overflow::Error, None),
    ] {
        let loaded = loader(overflow).load().map(|mut loaded| loaded.tensors.remove("a").unwrap());
        let planned = loader(overflow).var_builder().unwrap();
        let demanded = loader(overflow).dtype(DType::F32).var_builder().unwrap().to_dtype(DType::F16);
        let sharded = loader(overflow).sharded_var_builder().unwrap();
        let shard = Shard { dim: 0, rank: 1, world_size: 2 };
        let results = [
            second(loaded.map_err(candle_core::Error::wrap)),
            second(planned.get(2, "a")),
            second(demanded.get(2, "a")),
            second(sharded.get_with_hints((), "a", shard)),
        ];
        for result in results {
            match (&result, expected) {
                (Ok(made), Some(expected)) => assert_eq!(*made, expected),
                (Err(error), None) => {
                    assert!(
                        error.contains("-1000000 of F32 does not fit F16; `Overflow::Saturate` or"),
                        "{error}"
                    );
                }
                _ => panic!("{result:?} with {overflow:?}"),
            }
        }
    }
}

#[test]
fn var_builder_gives_what_is_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let weight = Stored::filled(St::F32, &[3, 5], 1);
    sharded(
        directory.path(),
        &[
            (
                "model-1.safetensors",
                &[("a.weight", weight.clone()), ("a.mask", Stored::filled(St::BOOL, &[7], 0))],
            ),
            ("model-2.safetensors", &[("b.weight", Stored::filled(St::BF16, &[2000, 1000], 2))]),
        ],
    );
    let ckpt = Checkpoint::open(directory.path()).unwrap();
    let vb: VarBuilder<'static> = Loader::new(&ckpt).dtype(DType::F32).var_builder().unwrap();
    assert!(vb.contains_tensor("a.weight") && !vb.contains_tensor("a"));
    let tensor = vb.pp("a").get((3, 5), "weight").unwrap();
    assert!(bits(&tensor) == weight.bytes());
    // Again, in another dtype, unchecked, as a whole layer.
    let tensor = vb.pp("a").get_with_hints_dtype((3, 5), "weight", Default::default(), DType::F64).unwrap();
    assert_eq!(tensor.dtype(), DType::F64);
    assert_eq!(vb.get_unchecked("b.weight").unwrap().dtype(), DType::F32);
    assert_eq!(vb.get_unchecked_dtype("a.mask", DType::U8).unwrap().dtype(), DType::U8);
    let linear = candle_nn::linear_no_bias(1000, 2000, vb.pp("b")).unwrap();
    let own = candles_own(directory.path().join("model-2.safetensors"));
    let theirs = own["b.weight"].to_dtype(DType::F32).unwrap();
    same_floats(linear.weight(), &theirs, "b.weight");

    let error = vb.get((5, 3), "a.weight").unwrap_err();
    let text = error.to_string();
    assert!(text.contains("a.weight") && text.contains("[5, 3]") && text.contains("[3, 5]"), "{text}");
    let error = vb.get(1, "a.bias").unwrap_err();
    assert!(error.to_string().contains("cannot find tensor a.bias"), "{error}");
}

fn candles_own(path: std::path::PathBuf) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

#[test]
fn var_builder_fails_only_for_what_candle_cannot_hold() {
    let ckpt = Checkpoint::from_bytes(every_dtype()).unwrap();
    let vb = Loader::new(&ckpt).var_builder().unwrap();
    let error = vb.get((2, 4), "C64").unwrap_err().to_string();
    assert!(error.contains("C64") && error.contains("complex_pairs"), "{error}");
    let error = vb.get((2, 4), "F6_E2M3").unwrap_err().to_string();
    assert!(error.contains("\"F6_E2M3\"") && error.contains("no cast"), "{error}");
    assert!(vb.get((2, 4), "F4").is_ok());
    assert_eq!(vb.get_unchecked_dtype("F4", DType::F4).unwrap().dtype(), DType::F4);
    assert!(vb.get((2, 4), "F16").is_ok());
}

#[test]
fn without_a_dtype_the_builder_has_that_of_most_bytes() {
    let ckpt = Checkpoint::from_bytes(file(&[
        ("ids", Stored::filled(St::I64, &[100], 0)),
        ("norm", Stored::filled(St::F32, &[10], 0)),
        ("weight", Stored::filled(St::BF16, &[10, 10], 0)),
    ]))
    .unwrap();
    let vb = Loader::new(&ckpt).var_builder().unwrap();
    assert_eq!(vb.dtype(), DType::BF16);
    assert_eq!(vb.get(10, "norm").unwrap().dtype(), DType::BF16);
}

/// Counts what is read, and fails at one place if told to.
struct Watched {
    bytes: Vec<u8>,
    read: Arc<AtomicU64>,
    fail_at: Option<u64>,
}

impl Source for Watched {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let range = offset..offset + buf.len() as u64;
        if self.fail_at.is_some_and(|place| range.contains(&place)) {
            return Err(io::Error::other("the disk is on fire"));
        }
        self.read.fetch_add(buf.len() as u64, Ordering::Relaxed);
        buf.copy_from_slice(&self.bytes[range.start as usize..range.end as usize]);
        Ok(())
    }
}

fn watched(fail_at: Option<u64>) -> (Checkpoint, Arc<AtomicU64>, u64) {
    let tensors =
        [("a", Stored::filled(St::F32, &[1 << 20], 0)), ("b", Stored::filled(St::F32, &[3 << 20], 0))];
    let read = Arc::new(AtomicU64::new(0));
    let bytes = file(&tensors);
    let ckpt = Checkpoint::from_source(Watched { bytes, read: Arc::clone(&read), fail_at }).unwrap();
    let header = read.swap(0, Ordering::Relaxed);
    (ckpt, read, header)
}

#[test]
fn a_wrong_shape_is_refused_before_it_is_read() {
    let (ckpt, read, _) = watched(None);
    let vb = Loader::new(&ckpt).read_ahead(0).var_builder().unwrap();
    assert!(vb.get((2, 2), "a").is_err());
    assert_eq!(read.load(Ordering::Relaxed), 0);
    assert!(vb.get(1 << 20, "a").is_ok());
    assert_eq!(read.load(Ordering::Relaxed), 4 << 20);
}

#[test]
fn read_errors_name_the_tensor_and_leave_the_rest() {
    let (ckpt, ..) = watched(Some(10 << 20));
    let error = Loader::new(&ckpt).load().unwrap_err();
    assert_eq!((error.kind(), error.tensor()), (ErrorKind::Io, Some("b")));
    assert!(error.to_string().contains("the disk is on fire"), "{error}");
    let vb = Loader::new(&ckpt).var_builder().unwrap();
    assert!(vb.get(3 << 20, "b").is_err());
    assert!(vb.get(1 << 20, "a").is_ok());
}

#[test]
fn the_result_does_not_depend_on_threads_and_everything_is_read_once() {
    for threads in [1, 2, 3, 8] {
        let (ckpt, read, _) = watched(None);
        let progress = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&progress);
        let loader = Loader::new(&ckpt).threads(threads).progress(move |p| seen.lock().unwrap().push(p));
        let loaded = loader.load().unwrap();
        assert!(bits(&loaded.tensors["b"]) == Stored::filled(St::F32, &[3 << 20], 0).bytes());
        assert_eq!(read.load(Ordering::Relaxed), ckpt.byte_len());
        assert_eq!(loaded.report.bytes_read(), ckpt.byte_len());
        assert_eq!(loaded.report.bytes_taken(), ckpt.byte_len());
        let progress = progress.lock().unwrap();
        assert!(progress.is_sorted_by_key(|p| p.bytes_done));
        assert_eq!(progress.last().unwrap().bytes_done, ckpt.byte_len());
    }
}

#[test]
fn the_report_names_what_was_never_asked_for() {
    let (ckpt, ..) = watched(None);
    let backend = Loader::new(&ckpt).dtype(DType::BF16).backend().unwrap();
    let report = backend.report();
    let vb = VarBuilder::from_backend(Box::new(backend), DType::BF16, Device::Cpu);
    vb.get(Shape::from(1 << 20), "a").unwrap();
    drop(vb);
    assert_eq!(report.unused(), ["b"]);
    assert_eq!(report.loaded(), 1);
    assert_eq!(report.casts(), [("a".to_owned(), weighbridge::Dtype::F32, weighbridge::Dtype::BF16)]);
}

#[test]
fn what_is_filtered_out_is_not_there() {
    let (ckpt, ..) = watched(None);
    let vb = Loader::new(&ckpt).filter(|tensor| tensor.name() != "b").var_builder().unwrap();
    assert!(vb.contains_tensor("a") && !vb.contains_tensor("b"));
    assert!(vb.get(3 << 20, "b").unwrap_err().to_string().contains("cannot find tensor b"));
}

#[test]
fn a_shape_whose_strides_overflow_is_an_error() {
    let header =
        format!(r#"{{"a":{{"dtype":"F32","shape":[0,{0},{0}],"data_offsets":[0,0]}}}}"#, 1_u64 << 40);
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
    let error = Loader::new(&Checkpoint::from_bytes(bytes).unwrap()).load().unwrap_err();
    assert_eq!((error.kind(), error.tensor()), (ErrorKind::Device, Some("a")));
}

#[test]
fn a_failed_read_ahead_does_not_fail_another_dtype() {
    let bytes = 300.0_f32.to_le_bytes().to_vec();
    let ckpt = Checkpoint::from_bytes(file(&[("t", Stored::new(St::F32, &[1], bytes))])).unwrap();
    let (told, progress) = std::sync::mpsc::channel();
    let tell = move |_| told.send(()).unwrap_or_default();
    let vb = Loader::new(&ckpt).dtype(DType::U8).threads(2).progress(tell).var_builder().unwrap();
    // 300 was read, and is no U8.
    progress.recv_timeout(std::time::Duration::from_secs(60)).unwrap();
    assert_eq!(vb.get_unchecked_dtype("t", DType::F32).unwrap().to_vec1::<f32>().unwrap(), [300.0]);
    assert!(vb.get_unchecked("t").is_err());
}

#[test]
fn many_threads_may_build_at_a_time() {
    let tensors: Vec<_> =
        (0..200).map(|i| (format!("layers.{i}.w"), Stored::filled(St::F16, &[64, i], i))).collect();
    let views: Vec<_> = tensors.iter().map(|(name, stored)| (&**name, stored.clone())).collect();
    let ckpt = Checkpoint::from_bytes(file(&views)).unwrap();
    let vb = Loader::new(&ckpt).dtype(DType::F16).read_ahead(1000).var_builder().unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (vb, tensors) = (&vb, &tensors);
            scope.spawn(move || {
                for i in (0..200).map(|i| (i * 7 + thread * 50) % 200) {
                    let tensor = vb.get((64, i), &tensors[i].0).unwrap();
                    let values = tensor.flatten_all().unwrap().to_vec1::<half::f16>().unwrap();
                    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                    assert!(bytes == tensors[i].1.bytes());
                }
            });
        }
    });
}

#[test]
fn names_choose_what_is_loaded() {
    let stored = |seed| Stored::filled(St::F32, &[4], seed);
    let tensors = [("a.0.w", stored(1)), ("a.10.w", stored(2)), ("a.0.norm", stored(3)), ("b", stored(4))];
    let ckpt = Checkpoint::from_bytes(file(&tensors)).unwrap();
    let names = Names::glob("a.*").unwrap().except(Names::regex("norm$").unwrap());
    let device = Device::Cpu;
    let loader = || Loader::new(&ckpt).only(names.clone()).device_for(Names::prefix("a.1"), &device);
    let loaded = loader().load().unwrap();
    let mut loaded_names: Vec<_> = loaded.tensors.keys().map(String::as_str).collect();
    loaded_names.sort_unstable();
    assert_eq!(loaded_names, ["a.0.w", "a.10.w"]);
    assert_eq!(loaded.report.bytes_read(), 32);
    let only_first = loader().filter(|tensor| tensor.name().contains(".0.")).load().unwrap();
    assert_eq!(only_first.tensors.len(), 1);
    let vb = loader().var_builder().unwrap();
    assert!(vb.get(4, "a.10.w").is_ok() && vb.get(4, "b").is_err() && !vb.contains_tensor("a.0.norm"));
}

#[test]
fn a_rank_reads_what_it_needs() {
    use weighbridge_candle::candle_nn::var_builder::Shard;

    // Rows of 32 KiB, of which a rank of 8 has 4 KiB: far enough apart not to be read through.
    let ckpt = Checkpoint::from_bytes(file(&[("w", Stored::filled(St::BF16, &[64, 16_384], 1))])).unwrap();
    for dim in [0, 1] {
        let loader = Loader::new(&ckpt);
        let (vb, report) = loader.sharded_var_builder_and_report().unwrap();
        vb.get_with_hints((), "w", Shard { dim, rank: 5, world_size: 8 }).unwrap();
        assert_eq!((report.bytes_needed(), report.bytes_read()), (1 << 18, 1 << 18), "dimension {dim}");
    }
    // What is not cut may have no dimension to cut.
    let ckpt = Checkpoint::from_bytes(file(&[("scale", Stored::filled(St::F32, &[], 1))])).unwrap();
    let vb = Loader::new(&ckpt).sharded_var_builder().unwrap();
    assert!(vb.get((), "scale").unwrap().dims().is_empty());
}

#[test]
fn a_progress_handler_can_end_a_load() {
    let tensors: Vec<_> = (0..20).map(|i| (format!("{i}"), Stored::filled(St::U8, &[1000], i))).collect();
    let views: Vec<_> = tensors.iter().map(|(name, stored)| (&**name, stored.clone())).collect();
    let ckpt = Checkpoint::from_bytes(file(&views)).unwrap();
    let error = Loader::new(&ckpt).progress(|_| std::ops::ControlFlow::Break(())).load().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert!(Loader::new(&ckpt).progress(|_| ()).load().is_ok());
}

#[test]
fn layers_go_onto_devices_by_the_bytes_that_they_will_have() {
    use weighbridge::parallel::DeviceMap;

    let names = ["model.embed_tokens.weight", "model.layers.0.a", "model.layers.1.a", "lm_head.weight"];
    let tensors = names.map(|name| (name, Stored::new(St::BF16, &[4], [0, 0].repeat(4))));
    let ckpt = Checkpoint::from_bytes(file(&tensors)).unwrap();
    // Each tensor has 8 bytes as it is stored, and 16 in F32.
    let load = |budgets: [u64; 2], dtype: Option<DType>| {
        let map = DeviceMap::by_memory(budgets.map(|bytes| (Device::Cpu, bytes)));
        let loader = Loader::new(&ckpt).device_map(map);
        match dtype {
            Some(dtype) => loader.dtype(dtype).load(),
            None => loader.load(),
        }
    };
    let refused = |budgets: [u64; 2], dtype: Option<DType>| {
        let error = load(budgets, dtype).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Memory, "{error}");
        error.to_string()
    };
    assert_eq!(load([16, 16], None).unwrap().tensors.len(), 4);
    let error = refused([16, 7], None);
    assert!(error.contains("layer model.layers.1 (8 bytes)") && error.contains("needs 32 bytes"), "{error}");

    let wide = load([32, 32], Some(DType::F32)).unwrap();
    assert!(names.iter().all(|name| wide.tensors[*name].dtype() == DType::F32));
    let error = refused([32, 15], Some(DType::F32));
    assert!(error.contains("layer model.layers.1 (16 bytes)") && error.contains("needs 64 bytes"), "{error}");
    let error = refused([16, 16], Some(DType::F32));
    assert!(error.contains("what is behind") || error.contains("layer model.layers.1"), "{error}");
}
