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

/// A model that is not the sample: its vocabulary has one more token.
fn other_model(directory: &Path) {
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../samples/adder");
    fs::create_dir(directory).unwrap();
    for name in ["config.json", "tokenizer.json"] {
        let mut json: serde_json::Value =
            serde_json::from_slice(&fs::read(sample.join(name)).unwrap()).unwrap();
        match name {
            "config.json" => json["rope_parameters"]["rope_theta"] = 5000.0.into(),
            _ => json["model"]["vocab"]["another"] = 99.into(),
        }
        fs::write(directory.join(name), json.to_string()).unwrap();
    }
    for entry in fs::read_dir(&sample).unwrap().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        if name.contains(".safetensors") {
            fs::copy(entry.path(), directory.join(name)).unwrap();
        }
    }
}

#[test]
fn a_run_begun_with_a_model_goes_on_as_that_model() {
    let directory = Directory::new();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    other_model(&directory.path().join("other"));
    train(&[&[&*path("one"), "--from", &path("other"), "--export", &path("one-model")], &SMALL[..]].concat());
    train(&[&[&*path("two"), "--from", &path("other"), "--until", "3"], &SMALL[..]].concat());
    fs::remove_dir_all(directory.path().join("other")).unwrap();
    train(&[&path("two"), "--resume", "--export", &path("two-model")]);
    let exported = files(&directory.path().join("one-model"));
    assert!(String::from_utf8_lossy(&exported["tokenizer.json"]).contains("another"));
    assert!(exported == files(&directory.path().join("two-model")));
}

#[test]
fn an_export_does_not_write_over_what_the_run_is_made_of() {
    let directory = Directory::new();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    other_model(&directory.path().join("other"));
    let before = files(&directory.path().join("other"));
    let again = path("other/../other");
    let error = error_of(&run(PROGRAM, &[&path("run"), "--from", &path("other"), "--export", &again]));
    assert!(error.contains("what the run begins with"), "{error}");
    assert!(before == files(&directory.path().join("other")));
    assert!(!directory.path().join("run").exists());
    train(&[&[&*path("run"), "--until", "1"], &SMALL[..]].concat());
    let error = error_of(&run(PROGRAM, &[&path("run"), "--resume", "--export", &path("run/../run")]));
    assert!(error.contains("the directory of the run"), "{error}");
}
