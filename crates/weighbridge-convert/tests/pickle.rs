//! Files that PyTorch and NumPy wrote, against what the official library says is in them. `pickle/generate.py` makes both.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use weighbridge::{Checkpoint, ErrorKind, Names, Plan, TensorRef, write::Save};
use weighbridge_convert::{Aliases, Foreign, Format, Note, NoteKind, Options, Verdict, open, scan};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pickle").join(name)
}

fn read(name: &str) -> Foreign {
    open(fixture(name), &Options::new()).unwrap()
}

fn bytes(tensor: &TensorRef<'_>) -> Vec<u8> {
    let mut bytes = vec![0; tensor.byte_len() as usize];
    tensor.shard().source().read_at(tensor.info().file_range().start, &mut bytes).unwrap();
    bytes
}

fn metadata(checkpoint: &Checkpoint) -> BTreeMap<String, String> {
    let entries =
        checkpoint.shards().iter().flat_map(|shard| shard.header().metadata().into_iter().flatten());
    entries.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

#[track_caller]
fn same(found: &Checkpoint, expected: &str) {
    let expected = Checkpoint::open(fixture(expected)).unwrap();
    let names = |checkpoint: &Checkpoint| {
        let mut names: Vec<_> = checkpoint.tensors().map(|tensor| tensor.name().to_owned()).collect();
        names.sort();
        names
    };
    assert_eq!(names(found), names(&expected));
    for tensor in expected.tensors() {
        let there = found.tensor(tensor.name()).unwrap();
        assert_eq!(there.dtype(), tensor.dtype(), "{}", tensor.name());
        assert_eq!(there.shape(), tensor.shape(), "{}", tensor.name());
        assert_eq!(bytes(&there), bytes(&tensor), "{}", tensor.name());
    }
    assert_eq!(metadata(found), metadata(&expected));
}

#[test]
fn are_what_pytorch_reads() {
    let cases = [
        ("dtypes.pt", "dtypes", Format::TorchZip),
        ("views2.pt", "views", Format::TorchZip),
        ("views3.pt", "views", Format::TorchZip),
        ("views4.pt", "views", Format::TorchZip),
        ("views5.pt", "views", Format::TorchZip),
        ("big_endian.pt", "views", Format::TorchZip),
        ("deflated.pt", "views", Format::TorchZip),
        ("legacy2.pt", "views", Format::TorchLegacy),
        ("legacy3.pt", "views", Format::TorchLegacy),
        ("legacy4.pt", "views", Format::TorchLegacy),
        ("legacy5.pt", "views", Format::TorchLegacy),
        ("tied.bin", "tied", Format::TorchZip),
        ("lightning.ckpt", "lightning", Format::TorchZip),
        ("training.pth", "training", Format::TorchZip),
        ("module.pt", "module", Format::TorchZip),
        ("quantised.pt", "quantised", Format::TorchZip),
        ("module_legacy.pt", "module_legacy", Format::TorchLegacy),
        ("layer.pt", "layer", Format::TorchZip),
        ("float4.pt", "float4", Format::TorchZip),
        ("numpy2.pkl", "numpy", Format::Pickle),
        ("numpy3.pkl", "numpy", Format::Pickle),
        ("numpy4.pkl", "numpy", Format::Pickle),
        ("numpy5.pkl", "numpy", Format::Pickle),
        ("sharded", "sharded", Format::TorchShards),
        ("sharded/pytorch_model.bin.index.json", "sharded", Format::TorchShards),
    ];
    for (file, expected, format) in cases {
        println!("{file}");
        let foreign = read(file);
        assert_eq!(foreign.format(), format);
        same(foreign.checkpoint(), &format!("{expected}.safetensors"));
    }
}

#[test]
fn saved_they_are_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.safetensors");
    let foreign = read("views2.pt");
    let plan = Plan::of(foreign.checkpoint()).build().unwrap();
    foreign.save().file(&path, plan.tensors()).unwrap();
    same(&Checkpoint::open(&path).unwrap(), "views.safetensors");
    // And what is cast is what a saved one would be.
    let cast = |checkpoint: &Checkpoint| {
        let to = |tensor: &TensorRef<'_>| tensor.dtype().is_float().then_some(weighbridge::Dtype::F64);
        let plan = Plan::of(checkpoint).dtype(to).build().unwrap();
        Save::new().bytes(plan.tensors()).unwrap()
    };
    assert_eq!(cast(foreign.checkpoint()), cast(&Checkpoint::open(&path).unwrap()));
}

#[test]
fn contiguous_tensors_lie_in_the_file() {
    let foreign = read("views2.pt");
    let in_file = |name: &str| {
        let tensor = foreign.checkpoint().tensor(name).unwrap();
        tensor.shard().source().in_file(tensor.info().file_range()).is_some()
    };
    assert!(in_file("rows") && in_file("parameter"));
    assert!(!in_file("transposed"));
}

#[test]
fn tied_tensors_can_be_kept_under_each_name() {
    let foreign = open(fixture("tied.bin"), &Options::new().aliases(Aliases::Each)).unwrap();
    let names: Vec<_> = foreign.checkpoint().tensors().map(|tensor| tensor.name().to_owned()).collect();
    assert_eq!(names, ["model.embed.weight", "lm_head.weight", "first_rows", "other"]);
    assert!(foreign.notes().is_empty());
    let once = read("tied.bin");
    let notes: Vec<_> = once.notes().iter().map(ToString::to_string).collect();
    assert_eq!(notes, [r#"aliased "model.embed.weight": the same tensor as "lm_head.weight""#]);
}

#[test]
fn prefixes_can_be_kept() {
    let foreign = open(fixture("training.pth"), &Options::new().raw_names()).unwrap();
    assert!(foreign.checkpoint().tensor("model.module.0.weight").is_some());
    let renamed: Vec<_> = read("training.pth").notes().iter().map(ToString::to_string).collect();
    assert!(
        renamed.contains(&r#"renamed "model.*": left out of the names of 7 tensors"#.to_owned()),
        "{renamed:?}"
    );
    assert!(
        renamed.contains(&r#"renamed "module.*": left out of the names of 7 tensors"#.to_owned()),
        "{renamed:?}"
    );
}

#[test]
fn what_safetensors_cannot_hold_is_refused_or_left_out() {
    let error = open(fixture("sparse.pt"), &Options::new()).unwrap_err();
    assert_eq!((error.kind(), error.tensor()), (ErrorKind::Unsupported, Some("w")));
    assert!(error.to_string().contains("sparse.pt: tensor \"w\": it is a sparse tensor"), "{error}");
    let foreign = open(fixture("sparse.pt"), &Options::new().skip_unsupported()).unwrap();
    assert_eq!(foreign.checkpoint().len(), 1);
    assert_eq!(foreign.notes()[0].kind(), NoteKind::Dropped);
    let error = open(fixture("conjugate.pt"), &Options::new()).unwrap_err();
    assert!(error.to_string().contains("resolve_conj"), "{error}");
}

fn notes(foreign: &Foreign) -> Vec<String> {
    foreign.notes().iter().map(ToString::to_string).collect()
}

#[test]
fn of_a_module_stays_what_its_state_dict_has() {
    let notes = notes(&read("layer.pt"));
    assert!(
        notes.contains(&r#"dropped "temporary": a buffer that is not persistent"#.to_owned()),
        "{notes:?}"
    );
    assert!(
        notes.iter().any(|note| note.starts_with(r#"dropped "plain": an attribute of a module"#)),
        "{notes:?}"
    );
}

#[test]
fn dtypes_that_are_not_read_are_refused_by_name() {
    for (file, names) in [("bits.pt", &["b"][..]), ("jagged.pt", &["j", "m"])] {
        let error = open(fixture(file), &Options::new()).unwrap_err();
        assert_eq!((error.kind(), error.tensor()), (ErrorKind::Unsupported, Some(names[0])));
        let foreign = open(fixture(file), &Options::new().skip_unsupported()).unwrap();
        assert_eq!(foreign.checkpoint().len(), 1);
        assert_eq!(foreign.notes().iter().map(Note::name).collect::<Vec<_>>(), names);
        let foreign = open(fixture(file), &Options::new().only(Names::exact("ok"))).unwrap();
        assert_eq!((foreign.checkpoint().len(), foreign.notes().len()), (1, 0));
    }
    let error = open(fixture("bits.pt"), &Options::new()).unwrap_err();
    assert!(error.to_string().contains("it is a tensor of the dtype torch.bits8"), "{error}");
}

#[test]
fn torchscript_is_read_without_its_code() {
    let foreign = read("script.pt");
    let expected = Checkpoint::open(fixture("script.safetensors")).unwrap();
    for tensor in expected.tensors() {
        let found = foreign.checkpoint().tensor(tensor.name()).unwrap();
        assert_eq!((found.shape(), bytes(&found)), (tensor.shape(), bytes(&tensor)), "{}", tensor.name());
    }
    assert_eq!(foreign.checkpoint().len(), expected.len());
    let kept: Vec<_> =
        foreign.notes().iter().filter(|it| it.kind() == NoteKind::Kept).map(Note::name).collect();
    assert_eq!(kept, ["plain", "listed.0"]);
    let foreign = read("frozen.pt");
    assert_eq!(foreign.notes()[0].name(), "constants.pkl");
    assert!(foreign.checkpoint().tensor("CONSTANTS.c0").is_some());
    assert!(
        foreign.checkpoint().tensors().any(|tensor| tensor.shape() == [1, 2]),
        "the weight of the linear"
    );
}

#[test]
fn of_shards_what_is_left_out_is_not_missed() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(fixture("sparse.pt"), dir.path().join("a.bin")).unwrap();
    let index = dir.path().join("pytorch_model.bin.index.json");
    std::fs::write(&index, r#"{"weight_map": {"w": "a.bin", "v": "a.bin"}}"#).unwrap();
    assert_eq!(open(&index, &Options::new()).unwrap_err().kind(), ErrorKind::Unsupported);
    for options in [Options::new().skip_unsupported(), Options::new().only(Names::exact("v"))] {
        assert_eq!(open(&index, &options).unwrap().checkpoint().len(), 1);
    }
}

#[test]
fn of_a_tensor_in_two_shards_the_index_says_which_counts() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a.bin", "b.bin"] {
        std::fs::copy(fixture("dtypes.pt"), dir.path().join(name)).unwrap();
    }
    let index = dir.path().join("pytorch_model.bin.index.json");
    let alone = read("dtypes.pt");
    let names: Vec<_> = alone.checkpoint().tensors().map(|tensor| tensor.name()).collect();
    let list = |in_a: &[&str], in_b: &[&str]| {
        let weights = in_a.iter().map(|name| (name, "a.bin")).chain(in_b.iter().map(|name| (name, "b.bin")));
        let weights: Vec<_> = weights.map(|(name, shard)| format!("{name:?}: {shard:?}")).collect();
        std::fs::write(&index, format!(r#"{{"weight_map": {{{}}}}}"#, weights.join(", "))).unwrap();
    };
    list(&names[..2], &names[2..]);
    let foreign = open(&index, &Options::new()).unwrap();
    same(foreign.checkpoint(), "dtypes.safetensors");
    let unused = |note: &&Note| note.kind() == NoteKind::Dropped && note.why().contains("not used");
    assert_eq!(foreign.notes().iter().filter(unused).count(), names.len());
    // Whatever was named, errors name the file that it was found to be.
    let found = open(dir.path(), &Options::new()).unwrap();
    assert_eq!(found.checkpoint().shards()[0].label(), Some(&*index));
    // One that is not listed is in both, and nothing decides.
    list(&names[..2], &names[3..]);
    let error = open(&index, &Options::new()).unwrap_err();
    assert_eq!((error.kind(), error.tensor()), (ErrorKind::DuplicateTensor, Some(names[2])));
    // One that is listed for a shard that does not hold it is missing.
    std::fs::copy(fixture("layer.pt"), dir.path().join("b.bin")).unwrap();
    list(&names[..2], &names[2..]);
    assert_eq!(open(&index, &Options::new()).unwrap_err().kind(), ErrorKind::MissingTensor);
}

#[test]
fn a_foreign_file_is_a_part_of_a_union() {
    let dir = tempfile::tempdir().unwrap();
    let foreign = read("training.pth");
    let file = dir.path().join("m.safetensors");
    let plan = Plan::of(foreign.checkpoint()).build().unwrap();
    foreign.save().file(&file, plan.tensors()).unwrap();
    let memory = Checkpoint::from_bytes(std::fs::read(&file).unwrap()).unwrap();
    let parts = [
        ("pth.", foreign.checkpoint().clone()),
        ("file.", Checkpoint::open(&file).unwrap()),
        ("bytes.", memory),
    ];
    let union = Checkpoint::union(parts).unwrap();
    assert_eq!(union.len(), 3 * foreign.checkpoint().len());
    let session = Plan::of(&union).build().unwrap().session().start().unwrap();
    for tensor in foreign.checkpoint().tensors() {
        for prefix in ["bytes.", "pth.", "file."] {
            let name = format!("{prefix}{}", tensor.name());
            let (_, values) = session.take(&name, None).unwrap();
            assert_eq!(values.as_bytes(), bytes(&tensor), "{name}");
        }
    }
    // Errors name a foreign file like any other.
    let path = fixture("training.pth");
    assert_eq!(foreign.checkpoint().shards()[0].label(), Some(&*path));
    let parts = || [("", foreign.checkpoint().clone()), ("", Checkpoint::open(&file).unwrap())];
    let error = Checkpoint::union(parts()).unwrap_err();
    assert_eq!((error.kind(), error.file()), (ErrorKind::DuplicateTensor, Some(&*file)));
    assert!(error.to_string().contains(&format!("{:?}", path.display())), "{error}");
    let error = Checkpoint::union(parts().into_iter().rev()).unwrap_err();
    assert_eq!(error.file(), Some(&*path));
}

#[test]
fn a_foreign_file_that_becomes_shorter_is_named_by_the_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.pt");
    std::fs::copy(fixture("views4.pt"), &path).unwrap();
    let foreign = open(&path, &Options::new()).unwrap();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(100).unwrap();
    let session = Plan::of(foreign.checkpoint()).build().unwrap().session().start().unwrap();
    let name = foreign.checkpoint().tensors().find(|tensor| tensor.byte_len() > 0).unwrap().name();
    let error = session.take(name, None).unwrap_err();
    assert_eq!((error.file(), error.tensor()), (Some(&*path), Some(name)), "{error}");
}

#[test]
fn what_they_import_is_harmless() {
    for entry in fixture("").read_dir().unwrap() {
        let path = entry.unwrap().path();
        let is_pickle = path.extension().is_some_and(|it| it != "py" && it != "safetensors");
        if !is_pickle {
            continue;
        }
        let scan = scan(&path).unwrap();
        assert!(scan.is_complete(), "{scan:?}");
        assert_eq!(scan.verdict(), Verdict::Harmless, "{scan:?}");
        assert!(scan.globals().count() > 0, "{scan:?}");
    }
}
