//! Saving, and loading into what is there, beside Candle's own.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, IndexOp, Tensor, Var};
use candle_nn::VarMap;
use candle_nn::var_builder::{Shard, ShardedSafeTensors};
use weighbridge::write::Save;
use weighbridge::{Checkpoint, ErrorKind, SafeTensors};
use weighbridge_candle::{Aliases, Loader, Saver, vars};

fn numbers(shape: &[usize], dtype: DType) -> Tensor {
    let count = shape.iter().product::<usize>();
    let values: Vec<f32> = (0..count).map(|i| (i % 97) as f32).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

fn same(a: &Tensor, b: &Tensor) -> bool {
    if a.elem_count() == 0 {
        // Candle does not come back from casting a view without elements.
        return a.dtype() == b.dtype() && a.shape() == b.shape();
    }
    let flat = |t: &Tensor| t.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap();
    a.dtype() == b.dtype() && a.shape() == b.shape() && flat(a) == flat(b)
}

const DTYPES: [DType; 10] = [
    DType::U8,
    DType::U32,
    DType::I16,
    DType::I32,
    DType::I64,
    DType::BF16,
    DType::F16,
    DType::F32,
    DType::F64,
    DType::F8E4M3,
];

/// Tensors of every dtype that Candle computes with, whole and seen in all ways.
fn tensors() -> HashMap<String, Tensor> {
    let mut tensors = HashMap::new();
    for dtype in DTYPES {
        let whole = numbers(&[6, 5, 40], dtype);
        let mut add = |name: &str, tensor: Tensor| drop(tensors.insert(format!("{dtype:?}.{name}"), tensor));
        if dtype == DType::F8E4M3 {
            // Candle does not come back from copying some views of this dtype; see the test below.
            add("whole", whole);
            continue;
        }
        add("narrow", whole.narrow(1, 1, 3).unwrap());
        add("last", whole.narrow(2, 7, 30).unwrap());
        add("transposed", whole.transpose(0, 2).unwrap());
        add("permuted", whole.permute((1, 2, 0)).unwrap().narrow(0, 1, 2).unwrap());
        add("selected", whole.i((.., 2, ..)).unwrap());
        add("scalar", whole.i((1, 1, 1)).unwrap());
        add("empty", whole.narrow(0, 2, 0).unwrap());
        add("whole", whole);
    }
    tensors.insert("long".to_owned(), numbers(&[300, 500], DType::F32).t().unwrap());
    tensors.insert("rows".to_owned(), numbers(&[3, 2, 40_000], DType::BF16).i((.., 1, ..)).unwrap());
    tensors
}

#[test]
fn candle_and_we_read_what_is_saved() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.safetensors");
    let tensors = tensors();
    let saver = Saver::new().with(Save::new().metadata("format", "pt"));
    saver.file(&path, &tensors).unwrap();
    let theirs = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    let ours = Loader::new(&Checkpoint::open(&path).unwrap()).load().unwrap().tensors;
    assert_eq!((theirs.len(), ours.len()), (tensors.len(), tensors.len()));
    // Bytes say more than casts to a common dtype would, which Candle does not come back from for some views.
    let first = std::fs::read(&path).unwrap();
    let copies: HashMap<_, _> =
        tensors.iter().map(|(name, tensor)| (name, tensor.contiguous().unwrap())).collect();
    assert!(saver.bytes(copies).unwrap() == first, "views are written as they are seen");
    assert!(saver.bytes(&theirs).unwrap() == first);
    assert!(saver.bytes(&ours).unwrap() == first);

    let saved = saver.with(Save::new().max_shard_size(100_000));
    assert!(saved.directory(directory.path().join("s"), "model", &tensors).unwrap().shards.len() > 2);
    let sharded = Loader::new(&Checkpoint::open(directory.path().join("s")).unwrap()).load().unwrap().tensors;
    let saver = Saver::new().with(Save::new().metadata("format", "pt"));
    assert!(saver.bytes(&sharded).unwrap() == first);
}

#[test]
fn views_of_8_bit_floats() {
    let seen = |tensor: &Tensor| tensor.permute((1, 2, 0)).unwrap().narrow(0, 1, 2).unwrap();
    let whole = numbers(&[6, 5, 40], DType::F32);
    let expected = seen(&whole).contiguous().unwrap().to_dtype(DType::F8E4M3).unwrap();
    let view = seen(&whole.to_dtype(DType::F8E4M3).unwrap());
    assert_eq!(Saver::new().bytes([("x", view)]).unwrap(), Saver::new().bytes([("x", expected)]).unwrap());
}

#[test]
fn raw_dtypes_come_back_as_they_were() {
    let path = tempfile::tempdir().unwrap();
    let path = path.path().join("raw.safetensors");
    let stored = [
        ("e", safetensors::Dtype::F8_E8M0, vec![4_usize]),
        ("four", safetensors::Dtype::F4, vec![2, 4]),
        ("six", safetensors::Dtype::F6_E2M3, vec![4]),
    ];
    let stored =
        stored.map(|(name, dtype, shape)| (name, weighbridge_tests::Stored::filled(dtype, &shape, 3)));
    weighbridge_tests::write(&path, &weighbridge_tests::file(&stored));
    let tensors = Loader::new(&Checkpoint::open(&path).unwrap()).load().unwrap().tensors;
    let again = Saver::new().bytes(&tensors).unwrap();
    let again = SafeTensors::parse(&again).unwrap();
    for (name, stored) in &stored {
        assert_eq!(again.tensor(name).unwrap().bytes(), stored.bytes(), "{name}");
    }
}

#[test]
fn aliases_are_written_in_full_or_once() {
    let tied = numbers(&[4, 3], DType::F32);
    let other = numbers(&[4, 3], DType::F32);
    let view = tied.narrow(0, 0, 2).unwrap();
    let tensors = [("lm_head", &tied), ("embed", &tied), ("other", &other), ("view", &view)];
    let full = Saver::new().bytes(tensors).unwrap();
    assert_eq!(SafeTensors::parse(&full).unwrap().len(), 4);
    let once = Saver::new().aliases(Aliases::Once).bytes(tensors).unwrap();
    let once = SafeTensors::parse(&once).unwrap();
    assert_eq!(once.len(), 3, "a view of another shape is no alias");
    assert!(once.tensor("embed").is_some() && once.tensor("lm_head").is_none());
    assert_eq!(once.header().metadata_value("lm_head"), Some("embed"));
    // Shared memory goes into one shard, whatever the order of the names.
    let directory = tempfile::tempdir().unwrap();
    let saver = Saver::new().with(Save::new().max_shard_size(48));
    saver.directory(directory.path(), "model", tensors).unwrap();
    let ckpt = Checkpoint::open(directory.path()).unwrap();
    let shard = |name: &str| ckpt.tensor(name).unwrap().shard_number();
    assert_eq!((shard("embed"), shard("embed")), (shard("lm_head"), shard("view")));
    assert_ne!(shard("embed"), shard("other"));
}

fn map(shapes: &[(&str, &[usize], DType)]) -> VarMap {
    let map = VarMap::new();
    for (name, shape, dtype) in shapes {
        let var = Var::zeros(*shape, *dtype, &Device::Cpu).unwrap();
        map.data().lock().unwrap().insert((*name).to_owned(), var);
    }
    map
}

fn sum(map: &VarMap, name: &str) -> f64 {
    let data = map.data().lock().unwrap();
    data[name].to_dtype(DType::F64).unwrap().sum_all().unwrap().to_scalar().unwrap()
}

#[test]
fn a_var_map_is_filled_as_a_whole_or_not_at_all() {
    let stored = HashMap::from([
        ("a".to_owned(), numbers(&[2, 3], DType::F32)),
        ("b".to_owned(), numbers(&[4], DType::BF16)),
        ("c".to_owned(), numbers(&[1], DType::F32)),
    ]);
    let bytes = Saver::new().bytes(&stored).unwrap();
    let ckpt = Checkpoint::from_bytes(bytes.clone()).unwrap();
    let vars_of = [("a", &[2_usize, 3][..], DType::F32), ("b", &[4][..], DType::F64)];
    let full = map(&vars_of);
    for in_place in [false, true] {
        let loader = Loader::new(&ckpt);
        let filled = if in_place { loader.fill_in_place(&full) } else { loader.fill(&full) }.unwrap();
        assert_eq!((filled.set.len(), filled.unused), (2, vec!["c".to_owned()]));
        assert_eq!((sum(&full, "a"), sum(&full, "b")), (15.0, 6.0));
    }
    assert_eq!(full.data().lock().unwrap()["b"].dtype(), DType::F64);

    for (wrong, kind, words) in [
        (("bb", &[4][..], DType::F32), ErrorKind::MissingTensor, "tensor \"bb\""),
        (("b", &[5][..], DType::F32), ErrorKind::Shape, "[5]"),
    ] {
        let broken = map(&[vars_of[0], wrong]);
        let error = Loader::new(&ckpt).fill(&broken).unwrap_err();
        assert_eq!(error.kind(), kind);
        assert!(error.to_string().contains(words), "{error}");
        assert_eq!(sum(&broken, "a"), 0.0, "nothing was set");
    }

    // The data of the last tensor cannot be read any more.
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("m.safetensors");
    std::fs::write(&path, &bytes).unwrap();
    let ckpt = Checkpoint::open(&path).unwrap();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(bytes.len() as u64 - 3).unwrap();
    let (kept, changed) = (map(&vars_of), map(&vars_of));
    assert_eq!(Loader::new(&ckpt).fill(&kept).unwrap_err().kind(), ErrorKind::Io);
    assert_eq!((sum(&kept, "a"), sum(&kept, "b")), (0.0, 0.0));
    let error = Loader::new(&ckpt).fill_in_place(&changed).unwrap_err();
    assert!(error.to_string().contains("1 of 2 variables had changed"), "{error}");
    assert_eq!((sum(&changed, "a"), sum(&changed, "b")), (15.0, 0.0));
}

#[test]
fn a_var_map_is_saved() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vars.safetensors");
    let saved = map(&[("x", &[2, 2], DType::F32), ("y", &[3], DType::I64)]);
    saved.data().lock().unwrap()["x"].set(&numbers(&[2, 2], DType::F32)).unwrap();
    Saver::new().file(&path, vars(&saved)).unwrap();
    let mut theirs = map(&[("x", &[2, 2], DType::F32), ("y", &[3], DType::I64)]);
    theirs.load(&path).unwrap();
    assert_eq!((sum(&theirs, "x"), sum(&theirs, "y")), (6.0, 0.0));
}

/// What Candle's own sharded builder gives.
#[allow(unsafe_code)]
fn theirs(path: &Path, name: &str, shard: Shard) -> Tensor {
    // SAFETY: the file is ours, and nobody changes it.
    let vb = unsafe { ShardedSafeTensors::var_builder(&[path], DType::F32, &Device::Cpu) }.unwrap();
    vb.get_with_hints((), name, shard).unwrap()
}

#[test]
fn each_rank_gets_what_candle_gives_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("m.safetensors");
    let weight = numbers(&[64, 48], DType::BF16);
    let cube = numbers(&[4, 6, 8], DType::F32);
    Saver::new().file(&path, [("layer.w", &weight), ("cube", &cube)]).unwrap();
    let ckpt = Checkpoint::open(&path).unwrap();
    let vb = Loader::new(&ckpt).dtype(DType::F32).sharded_var_builder().unwrap();
    for (dim, world_size) in [(0, 1), (0, 2), (0, 8), (1, 1), (1, 2), (1, 3)] {
        for rank in 0..world_size {
            let shard = Shard { dim, rank, world_size };
            let part = vb.pp("layer").get_with_hints((), "w", shard);
            if world_size == 1 {
                // Candle takes the shape seriously then, and so `()` is none; the whole is ours to give.
                assert_eq!(part.unwrap().dims(), [64, 48]);
                assert!(vb.pp("layer").get_with_hints((64, 48), "w", shard).is_ok());
                assert!(vb.pp("layer").get_with_hints((64, 47), "w", shard).is_err());
                continue;
            }
            assert!(same(&part.unwrap(), &theirs(&path, "layer.w", shard)), "{shard:?}");
        }
    }
    // And along dimensions that Candle does not cut.
    let part = vb.get_with_hints((4, 6, 2), "cube", Shard { dim: 2, rank: 3, world_size: 4 }).unwrap();
    assert!(same(&part, &cube.narrow(2, 6, 2).unwrap()));
    for (shape, shard) in [
        (vec![64, 48], Shard { dim: 0, rank: 8, world_size: 8 }),
        (vec![64, 48], Shard { dim: 2, rank: 0, world_size: 2 }),
        (vec![64, 48], Shard { dim: 1, rank: 0, world_size: 5 }),
        (vec![32, 47], Shard { dim: 0, rank: 0, world_size: 2 }),
    ] {
        assert!(vb.get_with_hints(shape, "layer.w", shard).is_err(), "{shard:?}");
    }
    assert!(vb.get_with_hints((), "none", Shard { dim: 0, rank: 0, world_size: 2 }).is_err());
}
