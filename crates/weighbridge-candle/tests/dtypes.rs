//! Dtypes by name, as stored, and by their bits.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use safetensors::Dtype as St;
use weighbridge::{Checkpoint, ErrorKind, Names, Quantized};
use weighbridge_candle::Loader;
use weighbridge_tests::{Stored, file};

fn mixed() -> Checkpoint {
    let stored = |dtype, seed| Stored::filled(dtype, &[4], seed);
    Checkpoint::from_bytes(file(&[
        ("a.weight", stored(St::BF16, 1)),
        ("a.norm", stored(St::F32, 2)),
        ("a.ids", stored(St::I64, 3)),
        ("a.mask", stored(St::BOOL, 0)),
        ("a.small", stored(St::I8, 4)),
        ("a.packed", stored(St::I32, 5)),
        ("a.fp8", stored(St::F8_E4M3, 6)),
    ]))
    .unwrap()
}

const STORED: [(&str, DType); 7] = [
    ("a.weight", DType::BF16),
    ("a.norm", DType::F32),
    ("a.ids", DType::I64),
    ("a.mask", DType::U8),
    ("a.small", DType::I16),
    ("a.packed", DType::I32),
    ("a.fp8", DType::F8E4M3),
];

#[test]
fn a_builder_gives_each_tensor_as_it_is_stored() {
    let ckpt = mixed();
    let plain = Loader::new(&ckpt).load().unwrap().tensors;
    for dtype in [None, Some(DType::F16), Some(DType::F32)] {
        let loader = Loader::new(&ckpt).stored_dtypes();
        let loader = match dtype {
            Some(dtype) => loader.dtype(dtype),
            None => loader,
        };
        let backend = loader.backend().unwrap();
        assert_eq!(backend.dtype(), dtype.unwrap_or(DType::F32));
        let known: Vec<_> = backend.tensors().map(|(name, _, dtype)| (name.to_owned(), dtype)).collect();
        for (name, dtype) in STORED {
            assert!(known.contains(&(name.to_owned(), dtype)), "{name} is not {dtype:?} in {known:?}");
        }
        // Whatever the builder carries or asks for.
        let vb = VarBuilder::from_backend(Box::new(backend), DType::F64, Device::Cpu);
        for (name, dtype) in STORED {
            assert_eq!(vb.get(4, name).unwrap().dtype(), dtype, "{name}");
            assert_eq!(vb.get_unchecked(name).unwrap().dtype(), dtype, "{name}");
            assert_eq!(vb.to_dtype(DType::F32).get(4, name).unwrap().dtype(), dtype, "{name}");
            assert_eq!(vb.get_unchecked_dtype(name, DType::U32).unwrap().dtype(), dtype, "{name}");
            let (ours, plain) = (vb.get(4, name).unwrap(), &plain[name]);
            assert_eq!(format!("{:?}", values(&ours)), format!("{:?}", values(plain)), "{name}");
        }
    }
    let loaded = Loader::new(&ckpt).dtype(DType::F16).stored_dtypes().load().unwrap();
    for (name, dtype) in STORED {
        assert_eq!(loaded.tensors[name].dtype(), dtype, "{name}");
    }
}

/// Not as `F64`: Candle does not come back from casting some 8-bit floats to it.
fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().to_vec1().unwrap()
}

#[test]
fn a_dtype_for_names_wins_over_all_others() {
    let ckpt = mixed();
    let loader = || {
        Loader::new(&ckpt)
            .dtype(DType::BF16)
            .dtype_for(Names::exact("a.norm"), DType::F64)
            .dtype_for(Names::prefix("a.i"), DType::F32)
            // The first set that has a name counts.
            .dtype_for(Names::glob("a.{norm,ids,small}").unwrap(), DType::U32)
    };
    let loaded = loader().only(Names::exact("a.small").or(Names::all())).load();
    let error = loaded.unwrap_err();
    // Negative values of 8 bits are no U32.
    assert_eq!((error.kind(), error.tensor()), (ErrorKind::Value, Some("a.small")));
    let loaded = loader().only(Names::all().except(Names::exact("a.small"))).load().unwrap();
    let dtype = |name: &str| loaded.tensors[name].dtype();
    assert_eq!((dtype("a.norm"), dtype("a.ids")), (DType::F64, DType::F32));
    assert_eq!(
        (dtype("a.weight"), dtype("a.packed"), dtype("a.fp8")),
        (DType::BF16, DType::I32, DType::BF16)
    );

    let backend = loader().backend().unwrap();
    let dtypes: Vec<_> = backend.tensors().map(|(name, _, dtype)| (name.to_owned(), dtype)).collect();
    assert!(dtypes.contains(&("a.norm".to_owned(), DType::F64)), "{dtypes:?}");
    assert!(dtypes.contains(&("a.packed".to_owned(), DType::BF16)), "{dtypes:?}");
    let vb = VarBuilder::from_backend(Box::new(backend), DType::BF16, Device::Cpu);
    for vb in [vb.clone(), vb.to_dtype(DType::F16)] {
        assert_eq!(vb.get(4, "a.norm").unwrap().dtype(), DType::F64);
        assert_eq!(vb.get(4, "a.ids").unwrap().dtype(), DType::F32);
        assert_eq!(vb.get(4, "a.packed").unwrap().dtype(), vb.dtype());
    }
    assert_eq!(vb.get_unchecked_dtype("a.norm", DType::U8).unwrap().dtype(), DType::F64);

    let native = loader().stored_dtypes().var_builder().unwrap();
    assert_eq!(native.get(4, "a.norm").unwrap().dtype(), DType::F64);
    assert_eq!(native.get(4, "a.weight").unwrap().dtype(), DType::BF16);
    assert_eq!(native.get(4, "a.packed").unwrap().dtype(), DType::I32);

    // What does not exist is skipped, or an error when it is asked for.
    let loader = || Loader::new(&ckpt).dtype_for(Names::exact("a.norm"), DType::F6E2M3);
    assert_eq!(loader().load().unwrap().skipped[0].name, "a.norm");
    assert_eq!(loader().require_all().load().unwrap_err().tensor(), Some("a.norm"));
    let vb = loader().var_builder().unwrap();
    assert!(vb.get(4, "a.norm").unwrap_err().to_string().contains("no cast from F32 to F6E2M3"));
    assert!(vb.get(4, "a.weight").is_ok());
}

/// The bytes of integers.
fn bytes(tensor: &Tensor) -> Vec<u8> {
    let flat = tensor.flatten_all().unwrap();
    match tensor.dtype() {
        DType::U8 => flat.to_vec1::<u8>().unwrap(),
        DType::U32 => flat.to_vec1::<u32>().unwrap().iter().flat_map(|v| v.to_le_bytes()).collect(),
        DType::I16 => flat.to_vec1::<i16>().unwrap().iter().flat_map(|v| v.to_le_bytes()).collect(),
        DType::I32 => flat.to_vec1::<i32>().unwrap().iter().flat_map(|v| v.to_le_bytes()).collect(),
        DType::I64 => flat.to_vec1::<i64>().unwrap().iter().flat_map(|v| v.to_le_bytes()).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn integers_of_one_width_are_the_same_bits() {
    use weighbridge_candle::candle_nn::var_builder::Shard;

    let pairs = [
        (St::I8, DType::U8),
        (St::U16, DType::I16),
        (St::I32, DType::U32),
        (St::U32, DType::I32),
        (St::U64, DType::I64),
        (St::F8_E4M3, DType::U8),
        (St::F8_E5M2, DType::U8),
        (St::F8_E4M3FNUZ, DType::U8),
        (St::F8_E5M2FNUZ, DType::U8),
        (St::F8_E8M0, DType::U8),
    ];
    for (dtype, requested) in pairs {
        // Every byte, so that there are negative numbers and the largest.
        let stored = Stored::filled(dtype, &[64, 64], 200);
        let ckpt = Checkpoint::from_bytes(file(&[("w", stored.clone())])).unwrap();
        let case = format!("{dtype:?} as {requested:?}");
        let loader = || Loader::new(&ckpt).dtype(DType::F32);
        // Asked for when all were planned as something else, by name, and as the builder's own.
        let asked = loader().var_builder().unwrap().get_unchecked_dtype("w", requested).unwrap();
        assert!(asked.dtype() == requested && bytes(&asked) == stored.bytes(), "{case}");
        let by_name = loader().dtype_for(Names::all(), requested);
        assert!(bytes(&by_name.load().unwrap().tensors["w"]) == stored.bytes(), "{case}");
        let own = Loader::new(&ckpt).dtype(requested).var_builder().unwrap();
        assert!(bytes(&own.get((64, 64), "w").unwrap()) == stored.bytes(), "{case}");
        // As a part, too.
        let vb = loader().sharded_var_builder().unwrap();
        let shard = Shard { dim: 0, rank: 1, world_size: 2 };
        let half = vb.get_with_hints_dtype((), "w", shard, requested).unwrap();
        assert!(bytes(&half) == stored.bytes()[stored.bytes().len() / 2..], "{case}");
        // Values are still values, after bits were asked for.
        if dtype == St::I32 {
            let vb = loader().var_builder().unwrap();
            let before = vb.get_unchecked_dtype("w", DType::U32).unwrap();
            let floats = vb.get_unchecked_dtype("w", DType::F64).unwrap().flatten_all().unwrap();
            let ints = vb.get_unchecked_dtype("w", DType::I32).unwrap();
            assert_eq!(bytes(&ints), bytes(&before));
            let ints = ints.flatten_all().unwrap().to_vec1::<i32>().unwrap();
            assert!(ints.iter().any(|&value| value < 0));
            let ints: Vec<f64> = ints.into_iter().map(f64::from).collect();
            assert_eq!(floats.to_vec1::<f64>().unwrap(), ints);
            assert!(vb.get_unchecked_dtype("w", DType::U8).is_err());
        }
    }
}

#[test]
fn they_are_what_candle_makes_of_them() {
    let stored = Stored::filled(St::I32, &[1000], 7);
    let ckpt = Checkpoint::from_bytes(file(&[("w", stored.clone())])).unwrap();
    let theirs = Tensor::from_raw_buffer(stored.bytes(), DType::I32, &[1000], &Device::Cpu).unwrap();
    let theirs = theirs.to_dtype(DType::U32).unwrap();
    let vb = Loader::new(&ckpt).var_builder().unwrap();
    let ours = vb.get_unchecked_dtype("w", DType::U32).unwrap();
    assert_eq!(ours.to_vec1::<u32>().unwrap(), theirs.to_vec1::<u32>().unwrap());

    // U16 comes to Candle as U32.
    let stored = Stored::filled(St::U16, &[1000], 7);
    let bytes = file(&[("w", stored)]);
    let theirs = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).unwrap()["w"].clone();
    let theirs = theirs.to_dtype(DType::I16).unwrap();
    let vb = Loader::new(&Checkpoint::from_bytes(bytes).unwrap()).var_builder().unwrap();
    let ours = vb.get_unchecked_dtype("w", DType::I16).unwrap();
    assert_eq!(ours.to_vec1::<i16>().unwrap(), theirs.to_vec1::<i16>().unwrap());
}

#[test]
fn what_nobody_asked_for_keeps_its_values() {
    let values = [1_u64, u64::MAX].map(u64::to_le_bytes).concat();
    let ckpt = Checkpoint::from_bytes(file(&[("ids", Stored::new(St::U64, &[2], values))])).unwrap();
    let kind = |loader: Loader| loader.load().unwrap_err().kind();
    assert_eq!(kind(Loader::new(&ckpt)), ErrorKind::Value);
    assert_eq!(kind(Loader::new(&ckpt).dtype(DType::I64)), ErrorKind::Value);
    let vb = Loader::new(&ckpt).stored_dtypes().var_builder().unwrap();
    assert!(vb.get_unchecked("ids").unwrap_err().to_string().contains("does not fit I64"));
    let loaded = Loader::new(&ckpt).dtype_for(Names::all(), DType::I64).load().unwrap();
    assert_eq!(loaded.tensors["ids"].to_vec1::<i64>().unwrap(), [1, -1]);
}

#[test]
fn packed_weights_of_gptq_load_as_kernels_want_them() {
    let qweight = Stored::filled(St::I32, &[8, 16], 1);
    let ckpt = Checkpoint::from_bytes(file(&[
        ("up.qweight", qweight.clone()),
        ("up.qzeros", Stored::filled(St::I32, &[1, 2], 2)),
        ("up.scales", Stored::filled(St::F16, &[1, 16], 3)),
    ]))
    .unwrap();
    let loader = || Loader::new(&ckpt).dtype(DType::F16);
    assert!(loader().var_builder().unwrap().get_unchecked_dtype("up.qweight", DType::U32).is_err());
    let backend = loader().quantized(Quantized::Raw).backend().unwrap();
    let report = backend.report();
    let vb = VarBuilder::from_backend(Box::new(backend), DType::F16, Device::Cpu).pp("up");
    let hints = candle_nn::Init::default();
    let codes = vb.get_with_hints_dtype((8, 16), "qweight", hints, DType::U32).unwrap();
    assert!(codes.dtype() == DType::U32 && bytes(&codes) == qweight.bytes());
    assert_eq!(vb.get((1, 16), "scales").unwrap().dtype(), DType::F16);
    vb.get_with_hints_dtype((1, 2), "qzeros", hints, DType::U32).unwrap();
    // Nothing was read in a dtype that nobody can compute with.
    assert_eq!(report.bytes_read(), ckpt.byte_len());
}
