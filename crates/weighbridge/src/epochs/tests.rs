use std::fs;
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;

use super::manifest::MANIFEST;
use super::*;
use crate::write::{Save, Values};

const PARTS: [&str; 3] = ["model", "optimizer", "scheduler"];

fn epochs_in(directory: &Path) -> Epochs {
    Epochs::new(directory, PARTS).scratch("bpk")
}

fn save(epochs: &Epochs, milestone: Milestone) {
    for part in PARTS {
        fs::write(epochs.begin(milestone, part).unwrap(), format!("{part} of {milestone}")).unwrap();
        epochs.done(milestone, part).unwrap();
    }
}

fn save_epoch(epochs: &Epochs, epoch: usize) {
    save(epochs, Milestone::epoch(epoch));
}

fn numbers(epochs: &Epochs) -> Vec<usize> {
    epochs.milestones().unwrap().into_iter().map(Milestone::epoch_number).collect()
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_checkpoint_counts_when_all_its_parts_are_there() {
    let directory = tempfile::tempdir().unwrap();
    let epochs = epochs_in(directory.path());
    save_epoch(&epochs, 1);
    let second = Milestone::epoch(2);
    for part in ["scheduler", "model"] {
        fs::write(epochs.begin(second, part).unwrap(), "x").unwrap();
        epochs.done(second, part).unwrap();
        assert_eq!(numbers(&epochs), [1]);
        assert_eq!(epochs.find(second, part).unwrap_err().kind(), ErrorKind::NotFound);
    }
    // The process stops here; the next one does not see it, and removes it.
    drop(epochs);
    let epochs = epochs_in(directory.path()).keep_last(2);
    save_epoch(&epochs, 3);
    assert_eq!(names(directory.path()), ["checkpoints.json", "epoch-00001", "epoch-00003"]);
    save_epoch(&epochs, 4);
    assert_eq!(numbers(&epochs), [3, 4]);
    assert_eq!(names(directory.path()), ["checkpoints.json", "epoch-00003", "epoch-00004"]);
    let model = epochs.find(Milestone::epoch(4), "model").unwrap();
    assert_eq!(fs::read_to_string(model).unwrap(), "model of epoch 4");
}

#[test]
fn a_commit_that_fails_mixes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let epochs = epochs_in(directory.path());
    save_epoch(&epochs, 1);
    let again = Milestone::epoch(1);
    for part in PARTS {
        let file = epochs.begin(again, part).unwrap();
        if part != "scheduler" {
            fs::write(file, "first attempt").unwrap();
        }
        assert_eq!(epochs.done(again, part).is_err(), part == "scheduler");
    }
    // What was committed stays, and nothing of the attempt is taken over.
    assert_eq!(names(directory.path()), ["checkpoints.json", "epoch-00001"]);
    fs::write(epochs.begin(again, "model").unwrap(), "second attempt").unwrap();
    epochs.done(again, "model").unwrap();
    let model = || fs::read_to_string(epochs.find(again, "model").unwrap()).unwrap();
    assert_eq!(model(), "model of epoch 1");
    epochs.abandon(again);
    assert_eq!(epochs.done(again, "optimizer").unwrap_err().kind(), ErrorKind::Value);
    save_epoch(&epochs, 1);
    // A commit may fail when its manifest is there already: what that names stays.
    let mut state = epochs.lock();
    let mut saving = Saving::new(epochs.place().unwrap().hold(true).unwrap());
    let committed = saving.hold.committed().unwrap();
    saving.begin(again, &epochs.parts).unwrap();
    saving.pending.get_mut(&again).unwrap().directory = committed[0].directory.clone();
    saving.abandon(again, &epochs.parts);
    state.unlock_if_idle();
    drop(state);
    assert_eq!(model(), "model of epoch 1");
}

#[test]
fn a_deletion_waits_for_the_next_commit() {
    let directory = tempfile::tempdir().unwrap();
    let epochs = epochs_in(directory.path());
    save_epoch(&epochs, 1);
    epochs.begin(Milestone::epoch(2), "model").unwrap();
    epochs.delete(Milestone::epoch(1)).unwrap();
    assert_eq!(numbers(&epochs), [1]);
    save_epoch(&epochs, 2);
    assert_eq!(numbers(&epochs), [2]);
    save_epoch(&epochs, 3);
    epochs.delete(Milestone::epoch(2)).unwrap();
    epochs.delete(Milestone::epoch(7)).unwrap();
    assert_eq!(numbers(&epochs), [3]);
    assert_eq!(names(directory.path()), ["checkpoints.json", "epoch-00003"]);
}

#[test]
fn as_many_are_kept_as_was_said() {
    let directory = tempfile::tempdir().unwrap();
    let epochs = epochs_in(directory.path()).keep_last(3);
    for epoch in 1..=5 {
        save_epoch(&epochs, epoch);
        epochs.delete(Milestone::epoch(epoch.saturating_sub(1))).unwrap();
    }
    assert_eq!(numbers(&epochs), [3, 4, 5]);
}

#[test]
fn one_that_is_saved_again_leaves_the_old_one_until_it_is_whole() {
    let directory = tempfile::tempdir().unwrap();
    let epochs = epochs_in(directory.path());
    let first = Milestone::epoch(1);
    save(&epochs, first);
    fs::write(epochs.begin(first, "model").unwrap(), "half").unwrap();
    assert_eq!(fs::read_to_string(epochs.find(first, "model").unwrap()).unwrap(), "model of epoch 1");
    save(&epochs, first);
    assert_eq!(names(directory.path()), ["checkpoints.json", "epoch-00001-2"]);
    assert_eq!(numbers(&epochs), [1]);
}

#[test]
fn one_saves_at_a_time() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path().join("new");
    let [one, other] = [(); 2].map(|()| epochs_in(&directory));
    save_epoch(&one, 1);
    save_epoch(&one, 2);
    fs::write(one.begin(Milestone::epoch(3), "model").unwrap(), "half").unwrap();
    let error = other.begin(Milestone::epoch(4), "model").unwrap_err();
    assert_eq!((error.kind(), error.file()), (ErrorKind::Busy, Some(&*directory)), "{error}");
    // Readers need not wait. A deletion does.
    assert_eq!(numbers(&other), [1, 2]);
    other.delete(Milestone::epoch(1)).unwrap();
    assert_eq!(numbers(&other), [1, 2]);

    save_epoch(&one, 3);
    assert_eq!(numbers(&one), [1, 2, 3]);
    save_epoch(&other, 4);
    assert_eq!(numbers(&one), [2, 3, 4]);
    let directories = ["checkpoints.json", "epoch-00002", "epoch-00003", "epoch-00004"];
    assert_eq!(names(&directory), directories);
    one.begin(Milestone::epoch(5), "model").unwrap();
    drop(one);
    save_epoch(&other, 6);
}

#[test]
fn damage_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let epochs = epochs_in(directory.path());
    save_epoch(&epochs, 1);
    let first = Milestone::epoch(1);
    fs::write(epochs.find(first, "model").unwrap(), "short").unwrap();
    assert_eq!(epochs.find(first, "model").unwrap_err().kind(), ErrorKind::DataLength);
    let manifest = directory.path().join(MANIFEST);
    for bad in ["", "{}", "[]", r#"{"version":3,"checkpoints":[]}"#] {
        fs::write(&manifest, bad).unwrap();
        assert_eq!(epochs.milestones().unwrap_err().kind(), ErrorKind::Value);
    }
    let with = |directory: &str, file: &str, rest: &str| {
        let bytes = format!(r#""bytes":{{"{file}":1}}"#);
        format!(r#"{{"version":2,"checkpoints":[{{"epoch":1,"directory":"{directory}",{bytes}{rest}}}]}}"#)
    };
    fs::write(&manifest, with("x", "model.safetensors", r#","scalars":{"a":"int 3"}"#)).unwrap();
    assert_eq!(epochs.scalars(first).unwrap(), Scalars::from([("a".to_owned(), Scalar::Int(3))]));
    for leaving in [
        with("../x", "model.safetensors", ""),
        with("x", "../model.safetensors", ""),
        with("x", "model.safetensors", r#","step":-1"#),
        with("x", "model.safetensors", r#","scalars":{"a":3}"#),
    ] {
        fs::write(&manifest, &leaving).unwrap();
        assert!(epochs.milestones().is_err(), "{leaving}");
    }
}

#[test]
fn what_is_not_ours_stays() {
    let directory = tempfile::tempdir().unwrap();
    let epochs = epochs_in(directory.path()).keep_last(1);
    save_epoch(&epochs, 1);
    for mine in ["notes.txt", "ema_model.safetensors", "model.safetensors.best", ".model.safetensors.tmp"] {
        fs::write(directory.path().join("epoch-00001").join(mine), "mine").unwrap();
    }
    for left in [".model.safetensors.aB3xYz.tmp", "optimizer.bpk", "optimizer.bpk.4711-0.tmp"] {
        fs::write(directory.path().join("epoch-00001").join(left), "left").unwrap();
    }
    fs::create_dir(directory.path().join("epoch-best")).unwrap();
    save_epoch(&epochs, 2);
    assert_eq!(names(directory.path()), ["checkpoints.json", "epoch-00001", "epoch-00002", "epoch-best"]);
    assert_eq!(
        names(&directory.path().join("epoch-00001")),
        [".model.safetensors.tmp", "ema_model.safetensors", "model.safetensors.best", "notes.txt"]
    );
}

#[test]
fn an_older_version_reads_what_it_knows() {
    let directory = tempfile::tempdir().unwrap();
    let manifest = || fs::read_to_string(directory.path().join(MANIFEST)).unwrap();
    save_epoch(&epochs_in(directory.path()), 1);
    assert_eq!(
        manifest(),
        "{\n  \"checkpoints\": [\n    {\n      \"bytes\": {\n        \"model.safetensors\": 16,\n        \
         \"optimizer.safetensors\": 20,\n        \"scheduler.safetensors\": 20\n      },\n      \"directory\": \
         \"epoch-00001\",\n      \"epoch\": 1\n    }\n  ],\n  \"version\": 1\n}\n"
    );
    // A step, or another part, it would take for something else.
    save(&epochs_in(directory.path()), Milestone::epoch(2).step(40));
    assert!(manifest().contains("\"version\": 2") && manifest().contains("\"step\": 40"));
    save_epoch(&epochs_in(directory.path()).keep_last(1), 2);
    assert!(manifest().contains("\"version\": 1"));
    let with_ema = Epochs::new(directory.path(), ["model", "optimizer", "scheduler", "ema"]);
    with_ema
        .save(Milestone::epoch(3), |part, file| fs::write(file, part).map_err(|e| Error::io("", e)))
        .unwrap();
    assert!(manifest().contains("\"version\": 2"));
    assert!(with_ema.has(Milestone::epoch(3), "ema").unwrap());
    assert!(!with_ema.has(Milestone::epoch(2), "ema").unwrap());
    assert_eq!(with_ema.find(Milestone::epoch(2), "ema").unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn steps_and_numbers_are_kept() {
    let directory = tempfile::tempdir().unwrap();
    let epochs = Epochs::new(directory.path(), ["model", "ema"]).keep_last(2);
    let write = |part: &str, file: &Path| fs::write(file, part).map_err(|error| Error::io("written", error));
    for step in [100, 200, 300] {
        let scalars = Scalars::from([("seed".to_owned(), u64::MAX.into()), ("loss".to_owned(), 0.1.into())]);
        epochs.save_with(Milestone::at_step(step), &scalars, write).unwrap();
        assert_eq!(epochs.scalars(Milestone::at_step(step)).unwrap(), scalars);
    }
    assert_eq!(names(directory.path()), ["checkpoints.json", "step-00000200", "step-00000300"]);
    assert_eq!(epochs.latest().unwrap(), Some(Milestone::at_step(300)));

    // One that fails leaves nothing, and nobody waits for it.
    let failing = |part: &str, file: &Path| match part {
        "model" => Err(Error::new(ErrorKind::Value, "no")),
        _ => write(part, file),
    };
    assert!(epochs.save(Milestone::at_step(400), failing).is_err());
    assert_eq!(names(directory.path()), ["checkpoints.json", "step-00000200", "step-00000300"]);
    Epochs::new(directory.path(), ["model"]).save(Milestone::at_step(400), write).unwrap();
    let error = epochs.begin(Milestone::at_step(500), "optimizer").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Value);
}

/// Saves a checkpoint whose parts and numbers all say `version`.
fn save_version(epochs: &Epochs, milestone: Milestone, version: u64) -> Result<()> {
    let scalars = Scalars::from([("version".to_owned(), version.into())]);
    epochs.save_with(milestone, &scalars, |_, file| {
        let values = [version];
        Save::new().file(file, [("version", &Values::new(&[1], &values)?)])
    })
}

/// The version that all of it says.
fn version(opened: &Opened) -> u64 {
    let scalar = opened.scalars()["version"].as_u64().unwrap();
    for part in PARTS {
        let ckpt = opened.part(part).unwrap();
        let tensor = ckpt.tensor("version").unwrap();
        let mut bytes = [0; 8];
        tensor.shard().source().read_at(tensor.info().file_range().start, &mut bytes).unwrap();
        assert_eq!(bytes, scalar.to_le_bytes(), "{part} of {scalar}");
    }
    scalar
}

#[test]
fn what_is_opened_is_of_one_commit() {
    let directory = tempfile::tempdir().unwrap();
    let milestone = Milestone::epoch(1);
    let other = Milestone::epoch(2);
    save_version(&epochs_in(directory.path()).keep_last(1), milestone, 0).unwrap();
    let enough = std::sync::atomic::AtomicBool::new(false);
    let mut opened = 0;
    let mut seen = BTreeSet::new();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let epochs = epochs_in(directory.path()).keep_last(1);
            // Where files are opened slowly, as under Wine, the reader needs more of them.
            for number in (1..2000).take_while(|&number| number <= 120 || !enough.load(Relaxed)) {
                // Every third time it goes away for a while, and its directory gets its first name again.
                if number % 3 == 0 {
                    save_version(&epochs, other, number).unwrap();
                }
                save_version(&epochs, milestone, number).unwrap();
            }
        });
        let epochs = epochs_in(directory.path());
        while !writer.is_finished() {
            // Where opening takes long it may be told to try again.
            match epochs.open_latest() {
                Ok(found) => drop(seen.insert(version(&found.unwrap()))),
                Err(error) => assert_eq!(error.kind(), ErrorKind::Busy, "{error}"),
            }
            match epochs.open(milestone) {
                Ok(found) => {
                    version(&found);
                    opened += 1;
                }
                Err(error) => {
                    assert!(matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Busy), "{error}");
                }
            }
            enough.store(opened > 20 && seen.len() > 20, Relaxed);
        }
    });
    assert!(opened > 20 && seen.len() > 20, "{opened} were opened, {} of them different", seen.len());
}

#[test]
fn what_is_open_stays_what_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let epochs = epochs_in(directory.path()).keep_last(1);
    assert!(epochs.open_latest().unwrap().is_none());
    let milestone = Milestone::at_step(7);
    assert_eq!(epochs.open(milestone).unwrap_err().kind(), ErrorKind::NotFound);
    save_version(&epochs, milestone, 1).unwrap();
    let opened = epochs.open(milestone).unwrap();
    for number in 2..4 {
        save_version(&epochs, milestone, number).unwrap();
    }
    assert_eq!((version(&opened), version(&epochs.open(milestone).unwrap())), (1, 3));
    assert_eq!(opened.part("ema").unwrap_err().kind(), ErrorKind::NotFound);
    // A part that is damaged is in nobody's way who does not ask for it.
    fs::write(epochs.find(milestone, "optimizer").unwrap(), "short").unwrap();
    let opened = epochs.open_latest().unwrap().unwrap();
    assert!(opened.part("model").is_ok() && opened.has("optimizer"));
    let error = opened.read("optimizer", |_| Ok(())).unwrap_err();
    assert_eq!((error.kind(), error.file()), (ErrorKind::DataLength, Some(&*opened.file("optimizer"))));
}
