//! Names after renaming, and what a backend tells of its tensors.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use std::collections::{BTreeMap, HashSet};

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};
use safetensors::Dtype as St;
use weighbridge::{Checkpoint, ErrorKind, Names, Quantized, Renames, Slice};
use weighbridge_candle::Loader;
use weighbridge_tests::{Stored, file};

fn bert() -> Checkpoint {
    Checkpoint::from_bytes(file(&[
        ("bert.embed.weight", Stored::filled(St::BF16, &[6, 2], 1)),
        ("bert.layer.0.norm.weight", Stored::filled(St::F32, &[2], 2)),
        ("bert.layer.0.norm.bias", Stored::filled(St::F32, &[2], 3)),
        ("cls.weight", Stored::filled(St::F32, &[4], 4)),
    ]))
    .unwrap()
}

fn renames() -> Renames {
    Renames::new().prefix("bert.", "").glob("layer.*.norm.*", "blocks.*.ln.*").unwrap()
}

#[test]
fn everything_but_filters_goes_by_the_new_names() {
    let ckpt = bert();
    let loader = || {
        Loader::new(&ckpt)
            .rename(renames())
            // Filters see stored names, wherever they are given.
            .only(Names::prefix("bert."))
            .filter(|tensor| tensor.name() != "bert.layer.0.norm.bias")
            // These see new ones; a stored name means nothing to them.
            .dtype_for(Names::exact("blocks.0.ln.weight"), DType::F64)
            .dtype_for(Names::exact("bert.embed.weight"), DType::F16)
            .device_for(Names::prefix("blocks."), &Device::Cpu)
    };
    let loaded = loader().load().unwrap();
    let names: HashSet<_> = loaded.tensors.keys().map(String::as_str).collect();
    assert_eq!(names, HashSet::from(["embed.weight", "blocks.0.ln.weight"]));
    assert_eq!(loaded.tensors["blocks.0.ln.weight"].dtype(), DType::F64);
    assert_eq!(loaded.tensors["embed.weight"].dtype(), DType::BF16);
    assert_eq!(loaded.converted[0].name, "blocks.0.ln.weight");

    let vb = loader().var_builder().unwrap();
    assert!(vb.contains_tensor("embed.weight") && vb.pp("blocks.0.ln").contains_tensor("weight"));
    for gone in ["bert.embed.weight", "bert.layer.0.norm.weight", "blocks.0.ln.bias", "cls.weight"] {
        assert!(!vb.contains_tensor(gone), "{gone}");
        assert!(vb.get_unchecked(gone).unwrap_err().to_string().contains("cannot find tensor"), "{gone}");
    }
    let embed = vb.get((6, 2), "embed.weight").unwrap();
    let plain = Loader::new(&ckpt).load().unwrap().tensors["bert.embed.weight"].clone();
    let bits = |tensor: Tensor| {
        let values = tensor.flatten_all().unwrap().to_vec1::<half::bf16>().unwrap();
        values.into_iter().map(half::bf16::to_bits).collect::<Vec<_>>()
    };
    assert_eq!(bits(embed), bits(plain));
    let error = vb.get((2, 6), "embed.weight").unwrap_err().to_string();
    assert!(error.contains("embed.weight"), "{error}");
}

#[test]
fn renames_follow_one_another() {
    let ckpt = bert();
    let loader = Loader::new(&ckpt).rename(renames()).rename(Renames::new().prefix("", "model."));
    let loaded = loader.load().unwrap();
    assert!(loaded.tensors.contains_key("model.blocks.0.ln.bias"));
    assert!(loaded.tensors.contains_key("model.cls.weight"));
    // Two names may be exchanged.
    let swap = [("cls.weight", "bert.layer.0.norm.bias"), ("bert.layer.0.norm.bias", "cls.weight")];
    let swap = swap.map(|(from, to)| (from.to_owned(), to.to_owned()));
    let loaded = Loader::new(&ckpt).rename(Renames::new().map(swap)).load().unwrap();
    assert_eq!(loaded.tensors["cls.weight"].dims(), [2]);
    assert_eq!(loaded.tensors["bert.layer.0.norm.bias"].dims(), [4]);
}

#[test]
fn two_tensors_of_one_name_are_an_error() {
    let ckpt = bert();
    let collide = || Renames::new().regex(r"^bert\.layer\.0\.norm\..*", "norm").unwrap();
    let kinds = [
        Loader::new(&ckpt).rename(collide()).load().err(),
        Loader::new(&ckpt).rename(collide()).backend().err(),
        Loader::new(&ckpt).rename(collide()).sharded_backend().err(),
        Loader::new(&ckpt).rename(collide()).fill(&VarMap::new()).err(),
    ];
    for error in kinds {
        let error = error.unwrap();
        assert_eq!(error.kind(), ErrorKind::DuplicateTensor);
        let text = error.to_string();
        for name in ["bert.layer.0.norm.weight", "bert.layer.0.norm.bias", "\"norm\""] {
            assert!(text.contains(name), "{name} is not in {text}");
        }
    }
    // What is filtered out collides with nothing.
    let loader = Loader::new(&ckpt).rename(collide()).filter(|tensor| !tensor.name().ends_with("bias"));
    assert!(loader.load().unwrap().tensors.contains_key("norm"));
    // A new name may be one that is stored, if that one goes elsewhere.
    let chain = Renames::new()
        .map([("cls.weight", "x"), ("bert.embed.weight", "cls.weight")].map(|(a, b)| (a.into(), b.into())));
    assert_eq!(Loader::new(&ckpt).rename(chain).load().unwrap().tensors["cls.weight"].dims(), [6, 2]);
}

#[test]
fn variables_are_filled_by_the_new_names() {
    let ckpt = bert();
    let map = VarMap::new();
    let zeros = Tensor::zeros(2, DType::F32, &Device::Cpu).unwrap();
    let insert = |name: &str| {
        map.data().lock().unwrap().insert(name.to_owned(), Var::from_tensor(&zeros).unwrap());
    };
    insert("blocks.0.ln.weight");
    let filled = Loader::new(&ckpt).rename(renames()).fill(&map).unwrap();
    assert_eq!(filled.set, ["blocks.0.ln.weight"]);
    let unused: HashSet<_> = filled.unused.iter().map(String::as_str).collect();
    assert_eq!(unused, HashSet::from(["embed.weight", "blocks.0.ln.bias", "cls.weight"]));
    let stored = Loader::new(&ckpt).load().unwrap().tensors["bert.layer.0.norm.weight"].clone();
    let var = map.data().lock().unwrap()["blocks.0.ln.weight"].as_tensor().clone();
    let bits =
        |tensor: Tensor| tensor.to_vec1::<f32>().unwrap().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(var), bits(stored));
    insert("blocks.0.ln.weigth");
    let error = Loader::new(&ckpt).rename(renames()).fill(&map).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::MissingTensor);
    assert!(error.to_string().contains("did you mean \"blocks.0.ln.weight\""), "{error}");
}

#[test]
fn codes_are_refused_by_their_new_names() {
    let ckpt = Checkpoint::from_bytes(file(&[
        ("old.up.qweight", Stored::filled(St::I32, &[8, 16], 1)),
        ("old.up.qzeros", Stored::filled(St::I32, &[1, 2], 2)),
        ("old.up.scales", Stored::filled(St::F16, &[1, 16], 3)),
    ]))
    .unwrap();
    let renamed = || Loader::new(&ckpt).rename(Renames::new().prefix("old.", "new."));
    let loader = || renamed().quantized(Quantized::Refuse);
    let error = loader().load().unwrap_err();
    assert_eq!((error.kind(), error.tensor()), (ErrorKind::Dtype, Some("new.up.qweight")));
    let backend = loader().backend().unwrap();
    assert_eq!(backend.tensors().map(|(name, ..)| name).collect::<Vec<_>>(), ["new.up.scales"]);
    let vb = VarBuilder::from_backend(Box::new(backend), DType::F16, Device::Cpu);
    for (name, quantised) in [("new.up.qweight", true), ("new.up.weight", true), ("old.up.weight", false)] {
        let error = vb.get_unchecked(name).unwrap_err().to_string();
        assert_eq!(error.contains("GPTQ"), quantised, "{error}");
    }
    let raw = loader().quantized(Quantized::Raw).load().unwrap();
    assert_eq!(raw.tensors["new.up.qweight"].dtype(), DType::I32);
}

#[test]
fn a_backend_knows_names_shapes_and_dtypes() {
    let ckpt = Checkpoint::from_bytes(file(&[
        ("x.w", Stored::filled(St::F32, &[6, 2], 1)),
        ("x.fp8", Stored::filled(St::F8_E5M2, &[3], 2)),
        ("x.ids", Stored::filled(St::I64, &[], 3)),
        ("x.complex", Stored::filled(St::C64, &[2], 4)),
        ("x.packed", Stored::filled(St::F6_E2M3, &[4], 5)),
        ("y.w", Stored::filled(St::F32, &[2], 6)),
    ]))
    .unwrap();
    let loader = || {
        Loader::new(&ckpt)
            .dtype(DType::BF16)
            .only(Names::prefix("x."))
            .rename(Renames::new().prefix("x.", ""))
            .dtype_for(Names::exact("ids"), DType::I64)
            .part_for(Names::exact("w"), Slice::new().range(1..4))
    };
    let backend = loader().backend().unwrap();
    let known: BTreeMap<_, _> =
        backend.tensors().map(|(name, shape, dtype)| (name.to_owned(), (shape.into_dims(), dtype))).collect();
    let expected =
        [("fp8", (vec![3], DType::BF16)), ("ids", (vec![], DType::I64)), ("w", (vec![3, 2], DType::BF16))];
    assert_eq!(known, BTreeMap::from(expected.map(|(name, what)| (name.to_owned(), what))));
    // What it says is what it gives.
    assert_eq!((backend.dtype(), backend.device().is_cpu()), (DType::BF16, true));
    let (checkpoint, sharded) = (backend.checkpoint().clone(), loader().sharded_backend().unwrap());
    let vb = VarBuilder::from_backend(Box::new(backend), DType::BF16, Device::Cpu);
    for (name, (shape, dtype)) in &known {
        assert_eq!(vb.get(&**shape, name).unwrap().dtype(), *dtype, "{name}");
    }
    // The checkpoint has everything, as it is stored.
    assert!(checkpoint.tensor("y.w").is_some() && checkpoint.len() == 6);
    assert_eq!((sharded.tensors().count(), sharded.checkpoint().len()), (3, 6));
    let complex = loader().complex_pairs().stored_dtypes().backend().unwrap();
    let complex = complex.tensors().find(|(name, ..)| *name == "complex").unwrap();
    assert_eq!((complex.1.dims(), complex.2), (&[2, 2][..], DType::F32));
}
