//! Runs that are killed at any moment, and read by others while they save: what counts is one whole checkpoint.

#![cfg(unix)]
#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Module, Tensor};
use candle_nn::{Linear, Optimizer, ParamsAdamW, VarBuilder, VarMap, linear};
use weighbridge::epochs::Milestone;
use weighbridge_candle::{AdamW, Checkpoints, Cosine, Ema, Saver, Schedule, vars};

const HIDDEN: usize = 3000;

struct Run {
    map: VarMap,
    layers: [Linear; 2],
    optimizer: AdamW,
    schedule: Cosine,
    ema: Ema,
}

impl Run {
    /// The same every time.
    fn new() -> Self {
        let map = VarMap::new();
        let vb = VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu);
        let layers = [linear(3, HIDDEN, vb.pp("up")).unwrap(), linear(HIDDEN, 2, vb.pp("down")).unwrap()];
        for (name, var) in map.data().lock().unwrap().iter() {
            let first = name.len() as f32;
            let values: Vec<_> = (0..var.elem_count()).map(|i| ((i as f32 + first) * 0.7).sin()).collect();
            var.set(&Tensor::from_vec(values, var.shape(), &Device::Cpu).unwrap()).unwrap();
        }
        let optimizer = AdamW::of(&map, ParamsAdamW { weight_decay: 0.1, ..Default::default() }).unwrap();
        let ema = Ema::new(&map, 0.9).unwrap();
        Self { map, layers, optimizer, schedule: Cosine::new(0.01, 0.001, 10_000), ema }
    }

    fn step(&mut self, step: u64) {
        let input = Tensor::new(&[[(step % 7) as f32, 1.0, -0.5]], &Device::Cpu).unwrap();
        let hidden = self.layers[0].forward(&input).unwrap().tanh().unwrap();
        let loss = self.layers[1].forward(&hidden).unwrap().sqr().unwrap().sum_all().unwrap();
        self.optimizer.set_learning_rate(self.schedule.step());
        self.optimizer.backward_step(&loss).unwrap();
        self.ema.update().unwrap();
    }

    /// A run that goes on from the newest checkpoint, and after how many steps.
    fn resumed(checkpoints: &Checkpoints) -> Option<(Self, u64)> {
        let mut run = Self::new();
        let resumed = checkpoints.resume(&run.map, &mut run.optimizer, &mut run.schedule).unwrap()?;
        resumed.load_ema(&mut run.ema).unwrap();
        let steps = resumed.scalars["steps"].as_u64().unwrap();
        Some((run, steps))
    }

    fn hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        Saver::new().bytes(vars(&self.map)).unwrap().hash(&mut hasher);
        Saver::new().bytes(self.ema.tensors()).unwrap().hash(&mut hasher);
        hasher.finish()
    }
}

/// The run that never stopped, as far as somebody asked.
struct Whole {
    run: Run,
    /// After each number of steps.
    hashes: Vec<u64>,
}

impl Whole {
    fn new() -> Self {
        let run = Run::new();
        Self { hashes: vec![run.hash()], run }
    }

    fn hash(&mut self, steps: u64) -> u64 {
        while self.hashes.len() as u64 <= steps {
            self.run.step(self.hashes.len() as u64 - 1);
            self.hashes.push(self.run.hash());
        }
        self.hashes[steps as usize]
    }

    /// Looks at the newest checkpoint: weights, average, and by the next step the moments and the rate, too.
    fn check(&mut self, checkpoints: &Checkpoints) -> u64 {
        let (mut run, steps) = Run::resumed(checkpoints).unwrap();
        assert_eq!(run.hash(), self.hash(steps), "after {steps} steps");
        run.step(steps);
        assert_eq!(run.hash(), self.hash(steps + 1), "a step after {steps}");
        steps
    }
}

/// Trains and saves after each step, until it is killed: each time another checkpoint, or the same one anew.
fn train_for_ever(directory: &Path, anew: bool) {
    let checkpoints = checkpoints(directory);
    let (mut run, mut steps) = Run::resumed(&checkpoints).unwrap_or_else(|| (Run::new(), 0));
    loop {
        run.step(steps);
        steps += 1;
        let milestone = if anew { Milestone::epoch(1) } else { Milestone::at_step(steps) };
        let saver = checkpoints.at(milestone).note("steps", steps).ema(&run.ema);
        saver.save(&run.map, &run.optimizer, &run.schedule).unwrap();
    }
}

fn checkpoints(directory: &Path) -> Checkpoints {
    Checkpoints::new(directory).keep_last(1)
}

const DIRECTORY: &str = "WEIGHBRIDGE_TEST_DIRECTORY";

fn start(test: &str, directory: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test])
        .env(DIRECTORY, directory)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// Kills a run again and again, and looks at what is there while it saves and when it is dead.
fn killed(test: &str, times: usize) {
    if let Some(directory) = std::env::var_os(DIRECTORY) {
        return train_for_ever(directory.as_ref(), test.contains("anew"));
    }
    let directory = tempfile::tempdir().unwrap();
    let checkpoints = checkpoints(directory.path());
    let saved = || Run::resumed(&checkpoints).map_or(0, |(_, steps)| steps);
    let mut whole = Whole::new();
    let (mut random, mut done) = (0x2545_f491_4f6c_dd1d_u64, 0);
    let mut read = BTreeSet::new();
    for _ in 0..times {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let mut child = start(test, directory.path());
        let alive = |child: &mut Child| assert_eq!(child.try_wait().unwrap(), None, "it ended by itself");
        // Somewhere in the steps after its first.
        while saved() <= done {
            alive(&mut child);
            std::thread::sleep(Duration::from_millis(1));
        }
        let end = Instant::now() + Duration::from_micros(random % 60_000);
        while Instant::now() < end {
            read.insert(whole.check(&checkpoints));
        }
        alive(&mut child);
        child.kill().unwrap();
        child.wait().unwrap();
        let found = whole.check(&checkpoints);
        assert!(found > done);
        done = found;
    }
    assert!(read.len() > times / 2, "while they were saved, only {} were read", read.len());
    // What the dead left is swept away by the living: what counts, the manifest, and what was being written.
    assert!(std::fs::read_dir(&directory).unwrap().count() <= 4);
}

#[test]
fn killed_50_times_and_still_the_same_run() {
    killed("killed_50_times_and_still_the_same_run", 50);
}

#[test]
fn read_while_the_same_one_is_saved_anew() {
    killed("read_while_the_same_one_is_saved_anew", 20);
}
