//! The program, run as a user runs it.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use examples_support::testing::{Directory, error_of, run};

const PROGRAM: &str = env!("CARGO_BIN_EXE_candle-train");
/// A run that takes seconds.
const SMALL: [&str; 4] = ["--steps", "6", "--batch", "3"];

fn train(arguments: &[&str]) -> String {
    let output = run(PROGRAM, arguments);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    said
}

/// Every file below a directory.
fn files(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => found.extend(
                files(&entry.path()).into_iter().map(|(file, bytes)| (format!("{name}/{file}"), bytes)),
            ),
            false => drop(found.insert(name, fs::read(entry.path()).unwrap())),
        }
    }
    found
}

#[test]
fn an_interrupted_run_gives_the_same_bytes() {
    let directory = Directory::new();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    train(&[&[&*path("one"), "--every", "2", "--export", &path("one-model")], &SMALL[..]].concat());
    train(&[&[&*path("two"), "--every", "2", "--until", "3"], &SMALL[..]].concat());
    let said = train(&[&path("two"), "--every", "2", "--resume", "--export", &path("two-model")]);
    assert!(said.contains("going on after step 3"), "{said}");
    let exported = files(&directory.path().join("one-model"));
    assert!(exported == files(&directory.path().join("two-model")));
    assert!(exported.contains_key("model.safetensors") && exported.contains_key("tokenizer.json"));
    let last = |run: &str| files(&directory.path().join(run).join("step-00000006"));
    assert_eq!(
        last("one").keys().collect::<Vec<_>>(),
        ["ema.safetensors", "model.safetensors", "optimizer.safetensors", "scheduler.safetensors"]
    );
    assert!(last("one") == last("two"));

    // What is exported can be begun with, and a run is not begun over another one.
    let said = train(&[&path("three"), "--from", &path("one-model"), "--steps", "1", "--batch", "2"]);
    assert!(said.contains("step 1 of 1"), "{said}");
    let error = error_of(&run(PROGRAM, &[&path("one")]));
    assert!(error.contains("--resume goes on with it"), "{error}");
    let error = error_of(&run(PROGRAM, &[&path("one"), "--resume", "--seed", "7"]));
    assert!(error.contains("begun with --seed 0, not 7"), "{error}");
    let error = error_of(&run(PROGRAM, &[&path("none"), "--resume"]));
    assert!(error.contains("no checkpoint to resume from"), "{error}");
}

#[test]
fn a_killed_run_gives_the_same_bytes() {
    let directory = Directory::new();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let arguments = |run: &str| {
        let export = path(&format!("{run}-model"));
        let run = path(run);
        ["--every", "1", "--steps", "12", "--batch", "2", "--export", &export, &run]
            .map(str::to_owned)
            .to_vec()
    };
    train(&arguments("whole").iter().map(String::as_str).collect::<Vec<_>>());
    let mut killed = 0;
    for attempt in 0..40_u64 {
        let mut arguments = arguments("killed");
        // A run that was killed before its first checkpoint is begun anew.
        if directory.path().join("killed/checkpoints.json").exists() {
            arguments.push("--resume".to_owned());
        }
        let mut child = Command::new(PROGRAM).args(&arguments).stderr(Stdio::null()).spawn().unwrap();
        if attempt < 12 {
            thread::sleep(Duration::from_millis(40 + attempt * 7919 % 230));
            killed += u64::from(child.try_wait().unwrap().is_none());
            child.kill().unwrap();
            child.wait().unwrap();
        } else {
            assert!(child.wait().unwrap().success());
            break;
        }
    }
    assert!(killed > 0);
    let last = |run: &str| files(&directory.path().join(run).join("step-00000012"));
    assert!(last("whole") == last("killed"));
    assert!(files(&directory.path().join("whole-model")) == files(&directory.path().join("killed-model")));
}
