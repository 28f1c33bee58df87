//! Which parameters are loaded and saved, and under which names stored tensors are looked for.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use burn::module::{Module, Param};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Tensor};
use weighbridge_burn::weighbridge::write::{Save, Values};
use weighbridge_burn::weighbridge::{Checkpoint, ErrorKind, Names, Plan, Renames};
use weighbridge_burn::{Loader, Saver, load, save};

#[derive(Module, Debug)]
struct Model {
    fc: Vec<Linear>,
    head: Linear,
}

fn model() -> Model {
    let device = Device::flex();
    Model {
        fc: (0..3).map(|_| LinearConfig::new(2, 2).init(&device)).collect(),
        head: LinearConfig::new(2, 1).init(&device),
    }
}

fn bytes(model: &Model) -> Vec<u8> {
    save(model).bytes().unwrap()
}

/// The model's checkpoint with other names.
fn renamed(model: &Model, renames: Renames) -> Checkpoint {
    Checkpoint::from_bytes(save(model).rename(renames).bytes().unwrap()).unwrap()
}

/// `fc.0`, `fc.1`, `fc.2` as an `nn.Sequential` with activations has them: `fc.0`, `fc.2`, `fc.10`.
fn with_gaps(model: &Model) -> Checkpoint {
    let renames = Renames::new().regex(r"^fc\.2\.", "fc.10.").unwrap().regex(r"^fc\.1\.", "fc.2.").unwrap();
    renamed(model, renames)
}

#[test]
fn each_further_only_narrows_the_selection() {
    let ckpt = renamed(&model(), Renames::new());
    let (fc, weights) = (Names::prefix("fc."), Names::glob("*.weight").unwrap());
    let expected = ["fc.0.weight", "fc.1.weight", "fc.2.weight"];

    let load = Loader::new(&ckpt).only(fc.clone()).only(weights.clone());
    assert_eq!(load.into(&mut model()).unwrap().loaded, expected);

    let saved = Saver::new(&model()).only(fc.clone()).only(weights.clone()).bytes().unwrap();
    let saved = Checkpoint::from_bytes(saved).unwrap();
    assert_eq!(saved.tensors().map(|tensor| tensor.name()).collect::<Vec<_>>(), expected);

    // As plans of the core do.
    let plan = Plan::of(&ckpt).only(fc.clone()).only(weights).filter(|tensor| tensor.name() != "fc.1.weight");
    let plan = plan.filter(|tensor| tensor.shape().len() == 2).build().unwrap();
    let names: Vec<_> = plan.entries().iter().map(|entry| entry.name().to_owned()).collect();
    assert_eq!(names, [expected[0], expected[2]]);

    // Two sets that have nothing in common select nothing, which cannot have been meant.
    let none = Loader::new(&ckpt).only(fc.clone()).only(Names::prefix("head."));
    assert_eq!(none.into(&mut model()).unwrap_err().kind(), ErrorKind::MissingTensor);
    let none = Saver::new(&model()).only(fc).only(Names::prefix("head."));
    assert_eq!(none.bytes().unwrap_err().kind(), ErrorKind::MissingTensor);
}

#[test]
fn gaps_in_indices_are_closed_on_request() {
    let (first, mut second) = (model(), model());
    let ckpt = with_gaps(&first);
    let missing = load(&ckpt).check(&second).unwrap().missing;
    assert_eq!(
        missing.iter().map(|missing| &*missing.path).collect::<Vec<_>>(),
        ["fc.1.weight", "fc.1.bias"]
    );
    let report = load(&ckpt).map_indices_contiguous().all_used().into(&mut second).unwrap();
    assert_eq!(report.loaded.len(), 8);
    assert_eq!(bytes(&first), bytes(&second));
}

#[test]
fn indices_are_closed_after_renaming() {
    let (first, mut second) = (model(), model());
    let ckpt = with_gaps(&first);
    let ckpt = {
        let plan =
            Plan::of(&ckpt).rename(|name| format!("net.{}", name.replace("fc.", "seq_"))).build().unwrap();
        Checkpoint::from_bytes(Save::new().bytes(plan.tensors()).unwrap()).unwrap()
    };
    assert!(ckpt.tensor("net.seq_10.weight").is_some());
    let renames = Renames::new().prefix("net.", "").regex("^seq_", "fc.").unwrap();
    load(&ckpt).rename(renames).map_indices_contiguous().into(&mut second).unwrap();
    assert_eq!(bytes(&first), bytes(&second));
}

#[derive(Module, Debug)]
struct Lists {
    flows: Vec<Option<Param<Tensor<1>>>>,
    fc: Vec<Param<Tensor<1>>>,
}

#[test]
fn lists_keep_their_indices_where_they_are_excepted() {
    let device = Device::flex();
    let zero = || Param::from_tensor(Tensor::<1>::zeros([1], &device));
    let mut lists = Lists { flows: vec![Some(zero()), None, Some(zero())], fc: vec![zero(), zero()] };
    let one = |name: &'static str, value: f32| (name, [value]);
    let tensors = [one("flows.0", 1.0), one("flows.2", 2.0), one("fc.3", 3.0), one("fc.7", 4.0)];
    let tensors = tensors.iter().map(|(name, value)| (*name, Values::new(&[1], value).unwrap()));
    let ckpt = Checkpoint::from_bytes(Save::new().bytes(tensors).unwrap()).unwrap();

    let error = load(&ckpt).map_indices_contiguous().into(&mut lists).unwrap_err();
    assert!(error.to_string().contains("\"flows.2\""), "{error}");
    let except = Names::exact("flows");
    load(&ckpt).map_indices_contiguous_except(except).all_used().into(&mut lists).unwrap();
    let value = |param: &Param<Tensor<1>>| param.val().into_data().try_to_vec::<f32>().unwrap()[0];
    let flows: Vec<_> = lists.flows.iter().map(|flow| flow.as_ref().map(value)).collect();
    assert_eq!(flows, [Some(1.0), None, Some(2.0)]);
    assert_eq!(lists.fc.iter().map(value).collect::<Vec<_>>(), [3.0, 4.0]);
}

#[test]
fn indices_that_are_closed_to_one_name_are_an_error() {
    let values = [1.0_f32];
    let tensors = ["fc.1", "fc.01"].map(|name| (name, Values::new(&[1], &values).unwrap()));
    let ckpt = Checkpoint::from_bytes(Save::new().bytes(tensors).unwrap()).unwrap();
    let error = load(&ckpt).map_indices_contiguous().check(&model()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DuplicateTensor);
    assert!(error.to_string().contains("would both be named \"fc.0\""), "{error}");
}
