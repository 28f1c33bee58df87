//! Training state: what goes on as if it had never stopped, and what a crash leaves.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use burn::lr_scheduler::LrSchedulerRecord;
use burn::lr_scheduler::exponential::ExponentialLrSchedulerConfig;
use burn::lr_scheduler::module_lr_scheduler::ModuleLrScheduler;
use burn::module::Module;
use burn::nn::{BatchNorm, BatchNormConfig, Linear, LinearConfig};
use burn::optim::{
    AdamWConfig, GradientsParams, ModuleOptimizer, OptimizerRecord, SgdConfig, momentum::MomentumConfig,
};
use burn::store::ModuleRecord;
use burn::tensor::{Device, Tensor};
use burn::train::checkpoint::Checkpointer;
use burn_pack::Reader;
use weighbridge_burn::weighbridge::write::Save;
use weighbridge_burn::weighbridge::{Checkpoint, ErrorKind, Plan};
use weighbridge_burn::{Checkpoints, load_training, pack, save, save_training};

#[derive(Module, Debug)]
struct Model {
    first: Linear,
    norm: BatchNorm,
    second: Linear,
}

struct Run {
    model: Model,
    optimizer: ModuleOptimizer,
    scheduler: ModuleLrScheduler,
}

impl Run {
    fn new() -> Self {
        Self::with(AdamWConfig::new().init())
    }

    fn with(optimizer: ModuleOptimizer) -> Self {
        Self::wide(optimizer, 4)
    }

    fn wide(optimizer: ModuleOptimizer, hidden: usize) -> Self {
        let device = Device::flex().autodiff();
        let model = Model {
            first: LinearConfig::new(3, hidden).init(&device),
            norm: BatchNormConfig::new(hidden).init(&device),
            second: LinearConfig::new(hidden, 2).init(&device),
        };
        let scheduler = ExponentialLrSchedulerConfig::new(0.1, 0.9).init().unwrap();
        Self { model, optimizer, scheduler }
    }

    /// A step on data that the number of the step gives.
    fn step(&mut self, number: usize) {
        let device = Device::flex().autodiff();
        let values: Vec<f32> = (0..15).map(|i| ((i * 7 + number * 13) % 11) as f32 / 5.0 - 1.0).collect();
        let input = Tensor::<1>::from_floats(&*values, &device).reshape([5, 3]);
        let hidden = self.model.norm.forward(self.model.first.forward(input));
        let loss = self.model.second.forward(hidden).powi_scalar(2).mean();
        let gradients = GradientsParams::from_grads(loss.backward(), &self.model);
        let rate = self.scheduler.step();
        self.model = self.optimizer.step(rate, self.model.clone(), gradients);
    }

    /// Burn's own record lacks the last update of running statistics, unless they were asked for.
    fn record(&self) -> ModuleRecord {
        drop(self.model.valid());
        self.model.clone().into_record()
    }

    fn bytes(&self) -> Vec<u8> {
        save(&self.model).bytes().unwrap()
    }
}

fn values(ckpt: &Checkpoint, name: &str) -> Vec<u8> {
    Plan::of(ckpt).build().unwrap().session().start().unwrap().take(name, None).unwrap().1.as_bytes().to_vec()
}

/// What a container of Burn's holds; the order of its data is its own.
fn contents(pack: &Path) -> Vec<String> {
    let reader = Reader::from_file_exact(pack).unwrap();
    let mut contents = vec![format!("{:?} {:?}", reader.metadata(), reader.scalars())];
    for tensor in reader.into_tensors().unwrap() {
        let (name, dtype, shape, id, bytes) = tensor.into_parts().unwrap();
        contents.push(format!("{name} {dtype:?} {shape:?} {id:?} {:?}", &*bytes));
    }
    contents
}

#[test]
fn a_loop_goes_on_as_if_it_had_never_stopped() {
    let optimizers: [fn() -> ModuleOptimizer; 3] = [
        || AdamWConfig::new().init(),
        || AdamWConfig::new().with_amsgrad(true).init(),
        || SgdConfig::new().with_momentum(Some(MomentumConfig::new())).init(),
    ];
    for optimizer in optimizers {
        let directory = tempfile::tempdir().unwrap();
        let mut run = Run::with(optimizer());
        (0..4).for_each(|number| run.step(number));
        save_training(&directory, &run.model, &run.optimizer, &run.scheduler).unwrap();
        let mut other = Run::with(optimizer());
        let Run { model, optimizer, scheduler } = &mut other;
        let report = load_training(&directory, model, optimizer, scheduler).unwrap();
        assert_eq!(report.loaded.len(), 8);
        assert_eq!(run.bytes(), other.bytes());
        for number in 4..7 {
            run.step(number);
            other.step(number);
        }
        assert_eq!(run.bytes(), other.bytes());
        // Also into what has gone on.
        let Run { model, optimizer, scheduler } = &mut other;
        load_training(&directory, model, optimizer, scheduler).unwrap();
        (4..7).for_each(|number| other.step(number));
        assert_eq!(run.bytes(), other.bytes());
        // The last one counts, and only it is there.
        save_training(&directory, &other.model, &other.optimizer, &other.scheduler).unwrap();
        assert_eq!(Checkpoints::new(&directory).epochs().unwrap(), [2]);
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 2);
    }
}

#[test]
fn names_are_readable_and_scalars_exact() {
    let directory = tempfile::tempdir().unwrap();
    let mut run = Run::new();
    (0..3).for_each(|number| run.step(number));
    save_training(&directory, &run.model, &run.optimizer, &run.scheduler).unwrap();
    let epoch = directory.path().join("epoch-00001");
    let ckpt = Checkpoint::open(epoch.join("optimizer.safetensors")).unwrap();
    let names: Vec<_> = ckpt.tensors().map(|tensor| tensor.name().to_owned()).collect();
    assert!(names.contains(&"first.weight.momentum.moment_1".to_owned()), "{names:?}");
    assert!(names.contains(&"second.bias.momentum.moment_2".to_owned()), "{names:?}");
    assert_eq!(names.len(), 12);
    let metadata = |key| ckpt.shards()[0].header().metadata_value(key).unwrap().to_owned();
    assert_eq!(metadata("format"), "pt");
    let scalars: serde_json::Value = serde_json::from_str(&metadata("weighbridge.burn.scalars")).unwrap();
    assert!(scalars["first.weight.momentum.time"].as_str().unwrap().ends_with(" 3"), "{scalars}");
    let ids: serde_json::Value = serde_json::from_str(&metadata("weighbridge.burn.ids")).unwrap();
    assert_eq!(ids["first.weight"], run.model.first.weight.id.val().to_string());
    let model = Checkpoint::open(epoch.join("model.safetensors")).unwrap();
    assert!(model.tensor("norm.running_mean").is_some());
    let scheduler = Checkpoint::open(epoch.join("scheduler.safetensors")).unwrap();
    assert!(scheduler.is_empty());
    assert!(
        scheduler.shards()[0].header().metadata_value("weighbridge.burn.scalars").unwrap().contains("float ")
    );
}

#[test]
fn burns_own_files_convert_both_ways() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let mut run = Run::new();
    (0..3).for_each(|number| run.step(number));
    run.optimizer.save(path("optimizer.bpk")).unwrap();
    run.record().save(path("model.bpk")).unwrap();
    run.scheduler.to_record().save(path("scheduler.bpk")).unwrap();
    for name in ["model", "optimizer", "scheduler"] {
        let (bpk, st, back) = (
            path(&format!("{name}.bpk")),
            path(&format!("{name}.safetensors")),
            path(&format!("{name}-2.bpk")),
        );
        pack::to_safetensors(&bpk, &st).unwrap();
        pack::from_safetensors(&st, &back).unwrap();
        assert_eq!(contents(&bpk), contents(&back), "{name}");
    }
    let error = pack::to_safetensors(path("model.safetensors"), path("x.safetensors")).unwrap_err();
    assert!(error.to_string().contains("model.safetensors"), "{error}");
    save(&run.model).file(path("plain.safetensors")).unwrap();
    let error = pack::from_safetensors(path("plain.safetensors"), path("x.bpk")).unwrap_err();
    assert!(error.to_string().contains("not a training record"), "{error}");
    assert!(error.to_string().contains("plain.safetensors"), "{error}");
    // What burnpack would not read again is not written.
    let header = br#"{"__metadata__":{"weighbridge.burn.record":"named"},"a":{"dtype":"U8","shape":[11000000000],"data_offsets":[0,11000000000]}}"#;
    let mut large = (header.len() as u64).to_le_bytes().to_vec();
    large.extend(header);
    std::fs::write(path("large.safetensors"), large).unwrap();
    let file = std::fs::File::options().write(true).open(path("large.safetensors")).unwrap();
    file.set_len(8 + header.len() as u64 + 11_000_000_000).unwrap();
    let error = pack::from_safetensors(path("large.safetensors"), path("x.bpk")).unwrap_err();
    assert_eq!((error.kind(), error.tensor()), (ErrorKind::Size, Some("a")), "{error}");
    assert!(!path("x.bpk").exists() && !path("x.safetensors").exists());
}

#[test]
fn state_that_has_no_place_is_an_error() {
    let sgd = || SgdConfig::new().with_momentum(Some(MomentumConfig::new())).init();
    let adamw = || AdamWConfig::new().init();
    for [saved, other] in [[sgd(), adamw()], [adamw(), sgd()]] {
        let directory = tempfile::tempdir().unwrap();
        let mut run = Run::with(saved);
        run.step(0);
        save_training(&directory, &run.model, &run.optimizer, &run.scheduler).unwrap();
        let mut other = Run::with(other);
        let before = other.bytes();
        let Run { model, optimizer, scheduler } = &mut other;
        let error = load_training(&directory, model, optimizer, scheduler).unwrap_err();
        assert!(error.to_string().contains("the optimizer does not take it"), "{error}");
        assert!(error.tensor().unwrap().contains(".momentum."), "{error}");
        assert!(error.file().unwrap().ends_with("epoch-00001/optimizer.safetensors"), "{error}");
        assert_eq!(other.bytes(), before);
    }
}

#[test]
fn a_tensor_of_no_parameter_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let mut run = Run::new();
    run.step(0);
    save_training(&directory, &run.model, &run.optimizer, &run.scheduler).unwrap();
    // As a script would add one: the name is not among the ids.
    let file = directory.path().join("epoch-00001/optimizer.safetensors");
    let ckpt = Checkpoint::from_bytes(std::fs::read(&file).unwrap()).unwrap();
    let mut changed = Save::new();
    for (key, value) in ckpt.shards()[0].header().metadata().unwrap() {
        changed = changed.metadata(key, value);
    }
    let tensors = ckpt.tensors().map(|tensor| {
        let name = tensor.name().replace("second.bias.momentum.moment_1", "new.weight.momentum.moment_1");
        (name, tensor.view().unwrap())
    });
    changed.file(&file, tensors).unwrap();
    let length = std::fs::metadata(&file).unwrap().len();
    let manifest = directory.path().join("checkpoints.json");
    let text = std::fs::read_to_string(&manifest).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
    json["checkpoints"][0]["bytes"]["optimizer.safetensors"] = length.into();
    std::fs::write(&manifest, json.to_string()).unwrap();
    let Run { model, optimizer, scheduler } = &mut run;
    let error = load_training(&directory, model, optimizer, scheduler).unwrap_err();
    assert_eq!(
        (error.file(), error.tensor()),
        (Some(&*file), Some("new.weight.momentum.moment_1")),
        "{error}"
    );
    let (_, optimizer, _) = Checkpoints::new(&directory).split();
    let error = Checkpointer::<OptimizerRecord>::restore(&optimizer, 1).unwrap_err().to_string();
    assert!(error.contains("optimizer.safetensors") && error.contains("new.weight"), "{error}");
}

#[test]
fn three_threads_share_a_commit() {
    let directory = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::new(&directory).keep_last(2);
    assert_eq!(checkpoints.latest().unwrap(), None);
    let (model, optimizer, scheduler) = checkpoints.clone().split();
    let mut run = Run::new();
    let mut states = Vec::new();
    for epoch in 1..=4 {
        run.step(epoch);
        states.push(run.bytes());
        let (a, b, c) =
            (run.model.clone().into_record(), run.optimizer.to_record(), run.scheduler.to_record());
        std::thread::scope(|scope| {
            // Burn deletes before or after the others have saved.
            scope.spawn(|| Checkpointer::<ModuleRecord>::delete(&model, epoch.saturating_sub(1)).unwrap());
            scope.spawn(|| model.save(epoch, a).unwrap());
            scope.spawn(|| optimizer.save(epoch, b).unwrap());
            scope.spawn(|| scheduler.save(epoch, c).unwrap());
        });
        assert_eq!(checkpoints.latest().unwrap(), Some(epoch));
    }
    assert_eq!(checkpoints.epochs().unwrap(), [3, 4]);

    let mut other = Run::new();
    let (model, optimizer, scheduler) = Checkpoints::new(&directory).split();
    let record: ModuleRecord = model.restore(4).unwrap();
    other.model = other.model.load_record(record);
    let record: OptimizerRecord = optimizer.restore(4).unwrap();
    other.optimizer = other.optimizer.load_record(record);
    let record: LrSchedulerRecord = scheduler.restore(4).unwrap();
    other.scheduler = other.scheduler.load_record(record);
    assert_eq!(other.bytes(), states[3]);
    run.step(5);
    other.step(5);
    assert_eq!(run.bytes(), other.bytes());
    let error = Checkpointer::<ModuleRecord>::restore(&model, 9).unwrap_err();
    assert!(error.to_string().contains("no checkpoint of epoch 9; there are: "), "{error}");
}

#[test]
fn a_load_that_fails_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let mut run = Run::new();
    let Run { model, optimizer, scheduler } = &mut run;
    let error = load_training(&directory, model, optimizer, scheduler).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    run.step(0);
    save_training(&directory, &run.model, &run.optimizer, &run.scheduler).unwrap();

    let mut other = Run::new();
    other.model.first = LinearConfig::new(3, 5).init(&Device::flex().autodiff());
    let before = other.bytes();
    let Run { model, optimizer, scheduler } = &mut other;
    let error = load_training(&directory, model, optimizer, scheduler).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Shape);
    assert_eq!(other.bytes(), before);
    assert!(other.optimizer.to_record().is_empty());

    let optimizer = directory.path().join("epoch-00001/optimizer.safetensors");
    let whole = std::fs::read(&optimizer).unwrap();
    std::fs::write(&optimizer, &whole[..whole.len() - 4]).unwrap();
    let mut other = Run::new();
    let before = other.bytes();
    let Run { model, optimizer, scheduler } = &mut other;
    let error = load_training(&directory, model, optimizer, scheduler).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DataLength);
    assert_eq!(other.bytes(), before);
}

#[cfg(unix)] // Elsewhere directories cannot be locked.
mod two_processes {
    use std::io::{BufRead, BufReader, Write};

    use super::*;

    const MODEL_IS_WRITTEN: &str = "the model of epoch 1 is written";

    /// Saves the model of epoch 1, and the rest of it when it is told to.
    fn save_in_two_steps(directory: &Path) {
        let (model, optimizer, scheduler) = Checkpoints::new(directory).split();
        let mut run = Run::new();
        run.step(0);
        model.save(1, run.model.clone().into_record()).unwrap();
        // Not by `println!`, which the test harness captures.
        let mut out = std::io::stdout();
        writeln!(out, "\n{MODEL_IS_WRITTEN}").unwrap();
        std::io::stdin().read_line(&mut String::new()).unwrap();
        optimizer.save(1, run.optimizer.to_record()).unwrap();
        scheduler.save(1, run.scheduler.to_record()).unwrap();
    }

    #[test]
    fn save_one_after_the_other() {
        const DIRECTORY: &str = "WEIGHBRIDGE_TEST_DIRECTORY";
        if let Some(directory) = std::env::var_os(DIRECTORY) {
            return save_in_two_steps(directory.as_ref());
        }
        let directory = tempfile::tempdir().unwrap();
        let mut other = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "two_processes::save_one_after_the_other"])
            .env(DIRECTORY, directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(other.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap() == MODEL_IS_WRITTEN), "it ended by itself");

        // It has an epoch in the making, which nobody may take for that of a dead process.
        let pending = directory.path().join("epoch-00001/model.safetensors");
        let checkpoints = Checkpoints::new(&directory);
        let (model, optimizer, scheduler) = checkpoints.clone().split();
        let mut run = Run::new();
        run.step(0);
        let error = model.save(2, run.model.clone().into_record()).unwrap_err().to_string();
        assert!(error.contains("another process is saving there") && error.lines().count() == 1, "{error}");
        let error = save_training(&directory, &run.model, &run.optimizer, &run.scheduler).unwrap_err();
        assert_eq!((error.kind(), error.file()), (ErrorKind::Busy, Some(directory.path())), "{error}");
        assert!(pending.exists());
        assert_eq!(checkpoints.latest().unwrap(), None);

        writeln!(other.stdin.take().unwrap()).unwrap();
        lines.for_each(drop);
        assert!(other.wait().unwrap().success());
        assert_eq!(checkpoints.latest().unwrap(), Some(1));
        model.save(2, run.model.clone().into_record()).unwrap();
        optimizer.save(2, run.optimizer.to_record()).unwrap();
        scheduler.save(2, run.scheduler.to_record()).unwrap();
        assert_eq!(checkpoints.epochs().unwrap(), [1, 2]);
        for epoch in [1, 2] {
            let _: ModuleRecord = model.restore(epoch).unwrap();
            let _: OptimizerRecord = optimizer.restore(epoch).unwrap();
            let _: LrSchedulerRecord = scheduler.restore(epoch).unwrap();
        }
    }
}

/// Some megabytes.
const HIDDEN: usize = 60_000;

/// Saves epoch after epoch, each of one value in all three parts, until it is killed.
fn save_for_ever(directory: &Path) {
    let checkpoints = Checkpoints::new(directory).keep_last(2);
    let first = checkpoints.latest().unwrap().unwrap_or(0);
    let (model, optimizer, scheduler) = checkpoints.split();
    let mut run = Run::wide(AdamWConfig::new().init(), HIDDEN);
    run.step(0);
    for epoch in first + 1.. {
        run.model.second.bias =
            run.model.second.bias.map(|bias| bias.map(|bias| bias.zeros_like() + epoch as f32));
        let (a, b) = (run.model.clone().into_record(), run.optimizer.to_record());
        let c = LrSchedulerRecord::new().with_scalar("epoch", epoch);
        std::thread::scope(|scope| {
            scope.spawn(|| model.save(epoch, a).unwrap());
            scope.spawn(|| optimizer.save(epoch, b).unwrap());
            scope.spawn(|| scheduler.save(epoch, c).unwrap());
        });
    }
}

#[test]
fn killed_100_times_while_it_saves() {
    const DIRECTORY: &str = "WEIGHBRIDGE_TEST_DIRECTORY";
    if let Some(directory) = std::env::var_os(DIRECTORY) {
        return save_for_ever(directory.as_ref());
    }
    let directory = tempfile::tempdir().unwrap();
    let checkpoints = || Checkpoints::new(&directory);
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut last = 0;
    for _ in 0..100 {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "killed_100_times_while_it_saves"])
            .env(DIRECTORY, directory.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // It is killed somewhere in the epochs after its first.
        while checkpoints().latest().unwrap().unwrap_or(0) <= last {
            assert_eq!(child.try_wait().unwrap(), None, "it ended by itself");
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_micros(random % 100_000));
        assert_eq!(child.try_wait().unwrap(), None, "it ended by itself");
        child.kill().unwrap();
        child.wait().unwrap();
        let latest = checkpoints().latest().unwrap().unwrap();
        last = latest;
        let (model, optimizer, scheduler) = checkpoints().split();
        let record: LrSchedulerRecord = scheduler.restore(latest).unwrap();
        assert_eq!(record.scalar::<usize>("epoch"), Some(latest));
        let record: OptimizerRecord = optimizer.restore(latest).unwrap();
        assert!(!record.is_empty());
        let record: ModuleRecord = model.restore(latest).unwrap();
        let model = Run::wide(AdamWConfig::new().init(), HIDDEN).model.load_record(record);
        let bias = model.second.bias.unwrap().val().into_data();
        assert_eq!(bias.try_to_vec::<f32>().unwrap(), [latest as f32; 2]);
        let file =
            Checkpoint::open(directory.path().join(format!("epoch-{latest:05}/model.safetensors"))).unwrap();
        assert_eq!(values(&file, "second.bias"), [(latest as f32).to_le_bytes(); 2].concat());
    }
    // What the dead left is swept away by the living: at most what is being written.
    assert!(std::fs::read_dir(&directory).unwrap().count() <= 6);
}
