//! Commands that are killed while they replace something: it is what it was or what it was to be, and what is left over
//! the next run takes away.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

mod support;

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use support::weighbridge;
use weighbridge::Checkpoint;
use weighbridge::write::{Save, Values};

const ROWS: usize = 512;
const KILLS: usize = 20;

/// Two models of 8 MB, an adapter, and the ranks of both.
fn inputs(dir: &Path) {
    for (number, model) in ["one", "other"].into_iter().enumerate() {
        let values: Vec<Vec<f32>> = (0..8)
            .map(|layer| {
                (0..ROWS * ROWS).map(|at| ((at * 7 + layer * 13 + number * 5) % 101) as f32).collect()
            })
            .collect();
        let names: Vec<_> = (0..8).map(|layer| format!("model.layers.{layer}.mlp.up_proj.weight")).collect();
        let tensors = names.iter().zip(&values);
        let tensors = tensors.map(|(name, values)| (name, Values::new(&[ROWS, ROWS], values).unwrap()));
        fs::create_dir(dir.join(model)).unwrap();
        Save::new().file(dir.join(model).join("model.safetensors"), tensors).unwrap();
        fs::write(dir.join(model).join("config.json"), "{}").unwrap();
    }
    let (down, up) = (vec![0.5_f32; ROWS], vec![0.25_f32; ROWS]);
    let adapter = [
        ("model.layers.3.mlp.up_proj.lora_A.weight", Values::new(&[1, ROWS], &down).unwrap()),
        ("model.layers.3.mlp.up_proj.lora_B.weight", Values::new(&[ROWS, 1], &up).unwrap()),
    ];
    Save::new().file(dir.join("adapter.safetensors"), adapter).unwrap();
    fs::write(dir.join("rules"), "*.up_proj.weight: column\n").unwrap();
    for model in ["one", "other"] {
        run(dir, &format!("shard {{}}/{model} --plan {{}}/rules --tp 2 -o {{}}/ranks-{model}"));
    }
}

fn arguments(dir: &Path, line: &str) -> Vec<String> {
    line.split_whitespace().map(|argument| argument.replace("{}", dir.to_str().unwrap())).collect()
}

fn run(dir: &Path, line: &str) -> Duration {
    let start = Instant::now();
    weighbridge(arguments(dir, line)).clean();
    start.elapsed()
}

/// All that tensors are.
fn state(location: &Path) -> u64 {
    let ckpt = Checkpoint::open(location).unwrap();
    let mut hasher = DefaultHasher::new();
    for tensor in ckpt.tensors() {
        (tensor.name(), tensor.shape(), ckpt.read(tensor.name()).unwrap().as_bytes()).hash(&mut hasher);
    }
    hasher.finish()
}

/// All files below a directory.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.push(path),
        }
    }
    found.sort();
    found
}

/// Runs a command that replaces `{}/out` by what it makes of the one model and of the other, in turn, and kills it at any
/// moment of its run.
fn killed(command: &str, state: impl Fn(&Path) -> Result<u64, String>) {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    inputs(dir);
    let out = dir.join("results/out");
    fs::create_dir(dir.join("results")).unwrap();
    let line = |model: &str| command.replace("MODEL", model) + " -o {}/results/out --force";
    let mut longest = Duration::ZERO;
    let made = ["one", "other"].map(|model| {
        longest = longest.max(run(dir, &line(model)));
        state(&out).unwrap()
    });
    assert_ne!(made[0], made[1]);
    let clean = files(&dir.join("results"));
    let (mut is, mut killed, mut kept) = (1, 0, 0);
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    while killed < KILLS {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let to = 1 - is;
        let mut command = support::command();
        command.args(arguments(dir, &line(["one", "other"][to]))).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        std::thread::sleep(longest.mul_f64((random % 1000) as f64 / 1000.0));
        child.kill().unwrap();
        killed += usize::from(!child.wait().unwrap().success());
        match state(&out) {
            Ok(found) => {
                assert!(made.contains(&found), "half of both after {killed} kills");
                kept += usize::from(found == made[is]);
                is = usize::from(found == made[1]);
            }
            // It says so, and the same command completes it.
            Err(error) => {
                assert!(error.contains("of another model") && error.contains("run it again"), "{error}");
                run(dir, &line(["one", "other"][to]));
                is = to;
                assert_eq!(state(&out).unwrap(), made[is]);
            }
        }
    }
    assert!(kept > 0, "it was never killed before its end");
    run(dir, &line(["one", "other"][is]));
    assert_eq!((state(&out).unwrap(), files(&dir.join("results"))), (made[is], clean));
}

#[test]
fn a_merge_of_an_adapter() {
    killed("lora merge {}/MODEL {}/adapter.safetensors --max-shard-size 3MB", |out| Ok(state(out)));
}

#[test]
fn a_blend() {
    killed("blend --method linear --weight 1,3 {}/MODEL {}/one --max-shard-size 3MB", |out| Ok(state(out)));
}

#[test]
fn ranks_that_are_joined() {
    killed("consolidate {}/ranks-MODEL --max-shard-size 3MB", |out| Ok(state(out)));
}

#[test]
fn ranks_that_are_cut() {
    killed("shard {}/MODEL --plan {}/rules --tp 2 --max-shard-size 3MB", |out| {
        let joined = out.with_extension("joined.safetensors");
        let ran = weighbridge(["consolidate".as_ref(), out.as_os_str(), "-o".as_ref(), joined.as_os_str()]);
        if ran.status != 0 {
            return Err(ran.stderr);
        }
        let found = state(&joined);
        fs::remove_file(&joined).unwrap();
        Ok(found)
    });
}
