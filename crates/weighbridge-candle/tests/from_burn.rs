//! A run that began in Burn goes on in Candle. The files are those that `examples/burn-adamw` writes.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{ParamsAdamW, VarBuilder, VarMap};
use weighbridge::epochs::Milestone;
use weighbridge::{Checkpoint, Names, Renames};
use weighbridge_candle::{AdamW, BurnLayout, Checkpoints, Loader, ParamsSgd, Sgd, Stateful};

fn tensors(file: &Path) -> HashMap<String, Tensor> {
    Loader::new(&Checkpoint::open(file).unwrap()).load().unwrap().tensors
}

#[test]
fn the_next_step_is_that_of_burn() {
    // Burn's own defaults, and what the program sets.
    let params = || ParamsAdamW { lr: RATE, eps: 1e-5, weight_decay: 0.05, ..Default::default() };
    goes_on("adamw", |map| AdamW::of(map, params()));
    goes_on("amsgrad", |map| Ok(AdamW::of(map, params())?.amsgrad()));
    goes_on("sgd", |map| Sgd::of(map, ParamsSgd { lr: RATE, momentum: 0.9, ..Default::default() }));
}

const RATE: f64 = 0.01;

fn goes_on<O: Stateful>(name: &str, make: impl Fn(&VarMap) -> candle_core::Result<O>) {
    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/burn").join(name);
    let gradients = tensors(&files.join("gradients.safetensors"));
    let map = VarMap::new();
    let vb = VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu);
    for (name, tensor) in &tensors(&files.join("before.safetensors")) {
        vb.get(tensor.shape(), name).unwrap();
    }
    let mut optimizer = make(&map).unwrap();
    let layout = BurnLayout::new()
        .linear(Names::list(["up.weight", "down.weight", "unused.weight"]))
        .norm(Names::prefix("norm."))
        .norm(Names::prefix("scale."))
        .rename(Renames::new().exact("prelu.weight", "prelu.alpha"));
    let checkpoints = Checkpoints::new(files.join("training")).burn(layout.clone());
    let resumed = checkpoints.resume(&map, &mut optimizer, &mut { RATE }).unwrap().unwrap();
    assert_eq!(resumed.milestone, Milestone::at_step(5));

    let same = |ours: &Tensor, theirs: &Tensor| {
        let apart = (ours - theirs).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
        apart.to_scalar::<f32>().unwrap()
    };
    for (name, theirs) in tensors(&files.join("before.safetensors")) {
        assert_eq!(same(map.data().lock().unwrap()[&name].as_tensor(), &theirs), 0.0, "{name}");
    }
    // The loss whose gradients are these.
    let data = map.data().lock().unwrap();
    let trained = data.iter().filter(|(name, _)| !name.starts_with("unused."));
    let product =
        |(name, var): (&String, &Var)| (var.as_tensor() * &gradients[name]).unwrap().sum_all().unwrap();
    let loss = trained.map(product).reduce(|a, b| (a + b).unwrap()).unwrap();
    drop(data);
    optimizer.backward_step(&loss).unwrap();
    for (name, theirs) in tensors(&files.join("after.safetensors")) {
        let apart = same(map.data().lock().unwrap()[&name].as_tensor(), &theirs);
        assert!(apart < 1e-6, "{name}: {apart}");
    }

    // What is saved here has what Burn's own state after the step has.
    let directory = tempfile::tempdir().unwrap();
    Checkpoints::new(&directory)
        .burn(layout)
        .at(Milestone::at_step(6))
        .save(&map, &optimizer, &RATE)
        .unwrap();
    for part in ["model", "optimizer"] {
        let file = format!("step-00000006/{part}.safetensors");
        let (ours, theirs) =
            (tensors(&directory.path().join(&file)), tensors(&files.join("after").join(&file)));
        assert_eq!(ours.len(), theirs.len());
        for (name, theirs) in theirs {
            let apart = same(&ours[&name], &theirs);
            assert!(apart < 1e-6, "{name}: {apart}");
        }
    }
    let scalars = |directory: &Path| {
        let ckpt = Checkpoint::open(directory.join("step-00000006/optimizer.safetensors")).unwrap();
        let entry = ckpt.shards()[0].header().metadata_value("weighbridge.burn.scalars").unwrap().to_owned();
        serde_json::from_str::<serde_json::Value>(&entry).unwrap()
    };
    assert_eq!(scalars(directory.path()), scalars(&files.join("after")));
}
