//! Training states that are saved and resumed.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Module, Tensor};
use candle_nn::{Linear as Layer, ParamsAdamW, VarBuilder, VarMap, linear};
use weighbridge::epochs::{Milestone, Scalar};
use weighbridge::{Checkpoint, ErrorKind, Names, Renames};
use weighbridge_candle::{
    AdamW, BurnLayout, Checkpoints, Cosine, Ema, ParamsSgd, Saver, Schedule, Sgd, Stateful, load_training,
    save_training, vars,
};

struct Run<O> {
    map: VarMap,
    layers: [Layer; 2],
    optimizer: O,
    schedule: Cosine,
}

impl<O: Stateful> Run<O> {
    /// A model whose weights are the same every time.
    fn new(dtype: DType, optimizer: impl Fn(&VarMap) -> candle_core::Result<O>) -> Self {
        let map = VarMap::new();
        let vb = VarBuilder::from_varmap(&map, dtype, &Device::Cpu);
        let layers = [linear(3, 4, vb.pp("up")).unwrap(), linear(4, 3, vb.pp("down")).unwrap()];
        linear(2, 2, vb.pp("unused")).unwrap();
        for (name, var) in map.data().lock().unwrap().iter() {
            let first = name.len() as f32;
            let values: Vec<_> = (0..var.elem_count()).map(|i| ((i as f32 + first) * 0.7).sin()).collect();
            let values = Tensor::from_vec(values, var.shape(), &Device::Cpu).unwrap();
            var.set(&values.to_dtype(dtype).unwrap()).unwrap();
        }
        let optimizer = optimizer(&map).unwrap();
        Self { map, layers, optimizer, schedule: Cosine::new(0.05, 0.0, 20) }
    }

    fn step(&mut self, step: u64) {
        let dtype = self.layers[0].weight().dtype();
        let input = Tensor::new(&[[step as f32, 1.0, -0.5]], &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
        let hidden = self.layers[0].forward(&input).unwrap().tanh().unwrap();
        let loss = self.layers[1].forward(&hidden).unwrap().sqr().unwrap().sum_all().unwrap();
        self.optimizer.set_learning_rate(self.schedule.step());
        self.optimizer.backward_step(&loss).unwrap();
    }

    fn bytes(&self) -> Vec<u8> {
        Saver::new().bytes(vars(&self.map)).unwrap()
    }
}

fn adamw(map: &VarMap) -> candle_core::Result<AdamW> {
    AdamW::of(map, ParamsAdamW { weight_decay: 0.1, ..Default::default() })
}

fn sgd(map: &VarMap) -> candle_core::Result<Sgd> {
    Sgd::of(map, ParamsSgd { momentum: 0.9, nesterov: true, ..Default::default() })
}

fn goes_on<O: Stateful>(dtype: DType, optimizer: impl Fn(&VarMap) -> candle_core::Result<O> + Copy) {
    let directory = tempfile::tempdir().unwrap();
    let mut through = Run::new(dtype, optimizer);
    for step in 0..6 {
        if step == 3 {
            save_training(&directory, &through.map, &through.optimizer, &through.schedule).unwrap();
        }
        through.step(step);
    }
    let mut resumed = Run::new(dtype, optimizer);
    resumed.step(7); // what is here is replaced
    load_training(&directory, &resumed.map, &mut resumed.optimizer, &mut resumed.schedule).unwrap();
    for step in 3..6 {
        resumed.step(step);
    }
    assert!(through.bytes() == resumed.bytes());
}

#[test]
fn a_run_goes_on_bit_for_bit() {
    goes_on(DType::F32, adamw);
    goes_on(DType::BF16, adamw);
    goes_on(DType::F64, adamw);
    goes_on(DType::F32, |map| Ok(adamw(map)?.amsgrad()));
    goes_on(DType::F32, sgd);
    goes_on(DType::F32, |map| Sgd::of(map, ParamsSgd::default()));
}

#[test]
fn the_files_are_those_of_burn() {
    let directory = tempfile::tempdir().unwrap();
    let layout = BurnLayout::new()
        .linear(Names::glob("*.weight").unwrap())
        .rename(Renames::new().exact("up.bias", "up.offset"));
    let checkpoints = Checkpoints::new(&directory).burn(layout).note("seed", u64::MAX);
    let mut run = Run::new(DType::F32, adamw);
    run.step(0);
    run.step(1);
    checkpoints.at(Milestone::epoch(1)).save(&run.map, &run.optimizer, &run.schedule).unwrap();

    let open = |part: &str| Checkpoint::open(directory.path().join("epoch-00001").join(part)).unwrap();
    let metadata = |ckpt: &Checkpoint, key: &str| -> BTreeMap<String, String> {
        serde_json::from_str(ckpt.shards()[0].header().metadata_value(key).unwrap()).unwrap()
    };
    let (model, optimizer, scheduler) =
        (open("model.safetensors"), open("optimizer.safetensors"), open("scheduler.safetensors"));
    assert_eq!(model.tensor("up.weight").unwrap().shape(), [3, 4]);
    let moments: Vec<_> = optimizer.tensors().map(|tensor| tensor.name().to_owned()).collect();
    let mut expected = Vec::new();
    for name in ["down.bias", "down.weight", "up.offset", "up.weight"] {
        expected.extend([1, 2].map(|number| format!("{name}.momentum.moment_{number}")));
    }
    assert_eq!(
        {
            let mut moments = moments;
            moments.sort();
            moments
        },
        expected
    );
    assert_eq!(optimizer.tensor("down.weight.momentum.moment_2").unwrap().shape(), [4, 3]);
    let scalars = metadata(&optimizer, "weighbridge.burn.scalars");
    assert_eq!((&*scalars["up.offset.momentum.time"], &*scalars["up.weight.__rank"]), ("uint 2", "uint 2"));
    let (ids, trained) =
        (metadata(&model, "weighbridge.burn.ids"), metadata(&optimizer, "weighbridge.burn.ids"));
    assert_eq!((ids.len(), trained.len()), (6, 4));
    assert!(trained.iter().all(|(name, id)| ids[name] == *id));
    assert_eq!(optimizer.shards()[0].header().metadata_value("weighbridge.burn.record"), Some("by id"));
    assert_eq!(metadata(&scheduler, "weighbridge.burn.scalars")["0.current_iter"], "uint 1");

    // They are read as they were written, and ids that are there stay.
    let mut other = Run::new(DType::F32, adamw);
    let resumed = checkpoints.resume(&other.map, &mut other.optimizer, &mut other.schedule).unwrap().unwrap();
    assert_eq!(resumed.scalars["seed"], Scalar::UInt(u64::MAX));
    assert!(other.bytes() == run.bytes());
    let renumbered = directory.path().join("epoch-00001/model.safetensors");
    let id = &ids["up.weight"];
    let text = fs::read(&renumbered).unwrap();
    let at = text.windows(id.len()).position(|window| window == id.as_bytes()).unwrap();
    let mut text = text;
    text[at..at + id.len()].copy_from_slice(&vec![b'1'; id.len()]);
    fs::write(&renumbered, text).unwrap();
    other.step(2);
    checkpoints.at(Milestone::epoch(2)).save(&other.map, &other.optimizer, &other.schedule).unwrap();
    let optimizer = Checkpoint::open(directory.path().join("epoch-00002/optimizer.safetensors")).unwrap();
    assert_eq!(metadata(&optimizer, "weighbridge.burn.ids")["up.weight"], "1".repeat(id.len()));
}

/// What a load says that must not succeed, after which everything is as it was.
fn refusal<O: Stateful>(
    directory: &Path,
    optimizer: impl Fn(&VarMap) -> candle_core::Result<O> + Copy,
) -> (ErrorKind, String) {
    let mut run = Run::new(DType::F32, optimizer);
    run.step(1);
    let state = |run: &Run<O>| {
        let saved = tempfile::tempdir().unwrap();
        save_training(&saved, &run.map, &run.optimizer, &run.schedule).unwrap();
        let parts = ["model", "optimizer", "scheduler"].map(|part| format!("epoch-00001/{part}.safetensors"));
        parts.map(|part| fs::read(saved.path().join(part)).unwrap())
    };
    let before = state(&run);
    let error = load_training(directory, &run.map, &mut run.optimizer, &mut run.schedule).unwrap_err();
    assert!(before == state(&run), "{error}");
    (error.kind(), error.to_string())
}

type Tensors = BTreeMap<String, Tensor>;
type Metadata = BTreeMap<String, String>;

/// A state with one of its parts changed.
fn changed(part: &str, change: impl Fn(&mut Tensors, &mut Metadata)) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let mut run = Run::new(DType::F32, adamw);
    run.step(0);
    save_training(&directory, &run.map, &run.optimizer, &run.schedule).unwrap();
    let file = directory.path().join("epoch-00001").join(format!("{part}.safetensors"));
    let ckpt = Checkpoint::open(&file).unwrap();
    let loaded = weighbridge_candle::Loader::new(&ckpt).load().unwrap();
    let mut tensors: BTreeMap<_, _> = loaded.tensors.into_iter().collect();
    let metadata = ckpt.shards()[0].header().metadata().into_iter().flatten();
    let mut metadata: BTreeMap<_, _> =
        metadata.map(|(key, value)| (key.to_string(), value.to_string())).collect();
    drop(ckpt);
    change(&mut tensors, &mut metadata);
    let save =
        metadata.iter().fold(weighbridge::write::Save::new(), |save, (key, value)| save.metadata(key, value));
    Saver::new().with(save).file(&file, tensors).unwrap();
    let manifest = directory.path().join("checkpoints.json");
    let mut json: serde_json::Value = serde_json::from_slice(&fs::read(&manifest).unwrap()).unwrap();
    json["checkpoints"][0]["bytes"][format!("{part}.safetensors")] =
        fs::metadata(&file).unwrap().len().into();
    fs::write(&manifest, json.to_string()).unwrap();
    directory
}

const SCALARS: &str = "weighbridge.burn.scalars";

#[test]
fn a_state_that_does_not_fit_is_refused_by_name() {
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    let check =
        |part: &str, kind: ErrorKind, words: &[&str], change: &dyn Fn(&mut Tensors, &mut Metadata)| {
            let (found, text) = refusal(changed(part, change).path(), adamw);
            assert_eq!(found, kind, "{text}");
            for word in words.iter().chain(&[part]) {
                assert!(text.contains(word), "{text:?} does not say {word:?}");
            }
        };
    check("optimizer", ErrorKind::MissingTensor, &["up.bias.momentum.moment_2", "missing"], &|tensors, _| {
        tensors.remove("up.bias.momentum.moment_2");
    });
    check("optimizer", ErrorKind::Shape, &["up.bias.momentum.moment_1", "[4]", "[5]"], &|tensors, _| {
        tensors.insert("up.bias.momentum.moment_1".to_owned(), zeros(&[5]));
    });
    check("optimizer", ErrorKind::Value, &["other.momentum.moment_1", "another model"], &|tensors, _| {
        tensors.insert("other.momentum.moment_1".to_owned(), zeros(&[5]));
    });
    check(
        "optimizer",
        ErrorKind::Value,
        &["up.bias.momentum.velocity", "another optimizer"],
        &|tensors, _| {
            tensors.insert("up.bias.momentum.velocity".to_owned(), zeros(&[4]));
        },
    );
    check("optimizer", ErrorKind::Value, &["up.bias.momentum.max_moment_2", "amsgrad()"], &|tensors, _| {
        tensors.insert("up.bias.momentum.max_moment_2".to_owned(), zeros(&[4]));
    });
    check("optimizer", ErrorKind::Value, &["up.bias", "momentum.time"], &|_, metadata| {
        let scalars = metadata.get_mut(SCALARS).unwrap();
        *scalars =
            scalars.replace(r#""up.bias.momentum.time":"uint 1""#, r#""up.bias.momentum.time":"float 1.0""#);
    });
    check("optimizer", ErrorKind::Shape, &["up.bias", "dimensions"], &|_, metadata| {
        let scalars = metadata.get_mut(SCALARS).unwrap();
        *scalars = scalars.replace(r#""up.bias.__rank":"uint 1""#, r#""up.bias.__rank":"uint 2""#);
    });
    check("optimizer", ErrorKind::Value, &["not a training record"], &|_, metadata| metadata.clear());
    check("model", ErrorKind::MissingTensor, &["up.bias"], &|tensors, _| {
        tensors.remove("up.bias");
    });
    check("model", ErrorKind::Shape, &["up.bias"], &|tensors, _| {
        tensors.insert("up.bias".to_owned(), zeros(&[5]));
    });
    check("model", ErrorKind::Value, &["up.more", "another model"], &|tensors, _| {
        tensors.insert("up.more".to_owned(), zeros(&[5]));
    });
    check("scheduler", ErrorKind::Value, &["remaining_iters"], &|_, metadata| {
        metadata.insert(SCALARS.to_owned(), r#"{"0.remaining_iters":"uint 3"}"#.to_owned());
    });
    check("scheduler", ErrorKind::Value, &["1.current_iter", "several"], &|_, metadata| {
        metadata.insert(SCALARS.to_owned(), r#"{"1.current_iter":"uint 3"}"#.to_owned());
    });
}

#[test]
fn the_state_of_another_optimizer_is_refused() {
    let of_adamw = changed("model", |_, _| {});
    let (kind, text) = refusal(of_adamw.path(), sgd);
    assert!(kind == ErrorKind::Value && text.contains("another optimizer"), "{text}");
    let (kind, text) = refusal(of_adamw.path(), |map| Ok(adamw(map)?.amsgrad()));
    assert!(kind == ErrorKind::MissingTensor && text.contains("max_moment_2"), "{text}");
    let of_sgd = tempfile::tempdir().unwrap();
    let mut run = Run::new(DType::F32, sgd);
    run.step(0);
    save_training(&of_sgd, &run.map, &run.optimizer, &run.schedule).unwrap();
    let (kind, text) = refusal(of_sgd.path(), adamw);
    assert!(kind == ErrorKind::Value && text.contains("another optimizer"), "{text}");
    let (kind, text) = refusal(of_sgd.path(), |map| Sgd::of(map, ParamsSgd::default()));
    assert!(kind == ErrorKind::Value && text.contains("with momentum"), "{text}");
    let (kind, _) = refusal(tempfile::tempdir().unwrap().path(), adamw);
    assert_eq!(kind, ErrorKind::NotFound);
}

#[test]
fn an_average_is_saved_applied_and_taken_away() {
    let directory = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::new(&directory).keep_last(2).every(2);
    let mut run = Run::new(DType::BF16, adamw);
    let mut ema = Ema::new(&run.map, 0.5).unwrap();
    let value = |tensors: &[(String, Tensor)]| -> f32 {
        let found = tensors.iter().find(|(name, _)| name == "up.bias").unwrap();
        found.1.to_dtype(DType::F32).unwrap().get(0).unwrap().to_scalar().unwrap()
    };
    let mut expected = value(&vars(&run.map));
    let mut saved = Vec::new();
    for step in 1..=6 {
        run.step(step);
        ema.update().unwrap();
        expected = 0.5 * expected + 0.5 * value(&vars(&run.map));
        if checkpoints.is_due(step) {
            checkpoints
                .at(Milestone::at_step(step))
                .ema(&ema)
                .save(&run.map, &run.optimizer, &run.schedule)
                .unwrap();
            saved.push(step);
        }
    }
    assert_eq!(saved, [2, 4, 6]);
    assert_eq!(checkpoints.milestones().unwrap(), [Milestone::at_step(4), Milestone::at_step(6)]);
    assert_eq!(value(&ema.tensors()), expected);

    let (before, view) = (run.bytes(), run.layers[0].bias().unwrap().clone());
    let applied = ema.apply().unwrap();
    let rounded = Tensor::new(&[expected], &Device::Cpu).unwrap().to_dtype(DType::BF16).unwrap();
    let rounded: f32 = rounded.to_dtype(DType::F32).unwrap().get(0).unwrap().to_scalar().unwrap();
    assert_eq!(value(&[("up.bias".to_owned(), view)]), rounded);
    drop(applied);
    assert!(before == run.bytes());

    // By itself it is a checkpoint of the model.
    let averages = Saver::new().bytes(ema.tensors()).unwrap();
    let file = directory.path().join("step-00000006/ema.safetensors");
    let mut other = Ema::new(&Run::new(DType::BF16, adamw).map, 0.5).unwrap();
    other.load(&Checkpoint::open(&file).unwrap()).unwrap();
    assert!(averages == Saver::new().bytes(other.tensors()).unwrap());
    let mut other = Ema::new(&run.map, 0.5).unwrap();
    checkpoints.load_ema(Milestone::at_step(6), &mut other).unwrap();
    assert!(averages == Saver::new().bytes(other.tensors()).unwrap());
    checkpoints.at(Milestone::epoch(1)).save(&run.map, &run.optimizer, &run.schedule).unwrap();
    let error = checkpoints.load_ema(Milestone::epoch(1), &mut other).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    assert!(Ema::new(&run.map, 1.5).is_err());
}

#[test]
fn a_variable_that_is_not_in_the_map_is_refused() {
    let (one, other) = (Run::new(DType::F32, adamw), Run::new(DType::F32, adamw));
    let directory = tempfile::tempdir().unwrap();
    let error = save_training(&directory, &one.map, &other.optimizer, &1e-3).unwrap_err();
    assert!(error.to_string().contains("not in the map"), "{error}");
    assert_eq!(Checkpoints::new(&directory).latest().unwrap(), None);
}

#[test]
fn amsgrad_may_begin_after_steps_were_taken() {
    for steps_after in 0..2 {
        let mut run = Run::new(DType::F32, adamw);
        run.step(0);
        run.optimizer = run.optimizer.amsgrad();
        for step in 1..=steps_after {
            run.step(step);
        }
        let directory = tempfile::tempdir().unwrap();
        save_training(&directory, &run.map, &run.optimizer, &run.schedule).unwrap();
        let mut resumed = Run::new(DType::F32, |map| Ok(adamw(map)?.amsgrad()));
        load_training(&directory, &resumed.map, &mut resumed.optimizer, &mut resumed.schedule).unwrap();
        for step in 2..4 {
            run.step(step);
            resumed.step(step);
        }
        assert!(run.bytes() == resumed.bytes(), "{steps_after} steps");
    }
}

#[test]
fn a_variable_of_two_names_is_trained_averaged_and_saved() {
    let tied = || {
        Run::new(DType::F32, |map| {
            let mut vars = map.data().lock().unwrap();
            let shared = vars["up.weight"].clone();
            vars.insert("tied.weight".to_owned(), shared);
            drop(vars);
            adamw(map)
        })
    };
    let (mut run, mut plain) = (tied(), Run::new(DType::F32, adamw));
    let mut ema = Ema::new(&run.map, 0.5).unwrap();
    let mut plain_ema = Ema::new(&plain.map, 0.5).unwrap();
    run.step(0);
    plain.step(0);
    ema.update().unwrap();
    plain_ema.update().unwrap();
    let of = |tensors: Vec<(String, Tensor)>, name: &str| {
        let found = tensors.into_iter().find(|(other, _)| other == name).unwrap().1;
        found.to_vec2::<f32>().unwrap()
    };
    let trained = of(vars(&plain.map), "up.weight");
    let averaged = of(plain_ema.tensors(), "up.weight");
    for name in ["up.weight", "tied.weight"] {
        assert_eq!(of(vars(&run.map), name), trained);
        assert_eq!(of(ema.tensors(), name), averaged);
    }
    let applied = ema.apply().unwrap();
    assert_eq!(of(vars(&run.map), "up.weight"), averaged);
    drop(applied);
    assert_eq!(of(vars(&run.map), "up.weight"), trained);

    let directory = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::new(&directory);
    checkpoints.at(Milestone::epoch(1)).ema(&ema).save(&run.map, &run.optimizer, &run.schedule).unwrap();
    let mut resumed = tied();
    checkpoints.resume(&resumed.map, &mut resumed.optimizer, &mut resumed.schedule).unwrap().unwrap();
    let mut resumed_ema = Ema::new(&resumed.map, 0.5).unwrap();
    checkpoints.load_ema(Milestone::epoch(1), &mut resumed_ema).unwrap();
    assert_eq!(of(resumed_ema.tensors(), "tied.weight"), averaged);
    run.step(1);
    resumed.step(1);
    assert!(run.bytes() == resumed.bytes());
}

#[test]
fn a_run_knows_where_it_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::new(&directory);
    let mut run = Run::new(DType::F32, adamw);
    let all = [
        (Milestone::at_step(5), (0, 5)),
        (Milestone::epoch(2).step(7), (2, 7)),
        (Milestone::epoch(3), (4, 0)),
    ];
    for (milestone, next) in all {
        checkpoints.at(milestone).save(&run.map, &run.optimizer, &run.schedule).unwrap();
        let resumed = checkpoints.load(milestone, &run.map, &mut run.optimizer, &mut run.schedule).unwrap();
        assert_eq!(resumed.next(), next);
    }
}
