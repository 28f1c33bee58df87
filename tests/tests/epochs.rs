//! Training checkpoints in object stores: saved, opened, kept, and what a save that fails leaves.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use std::path::Path;
use std::time::Duration;

use remote_server::{Fault, ObjectStore, Protocol, Trick};
use weighbridge::epochs::{Epochs, Milestone, Opened, Scalars};
use weighbridge::write::{Save, Values};
use weighbridge::{ErrorKind, Result};
use weighbridge_remote::Remote;
use weighbridge_tests::stores::{PROTOCOLS, store_of};

const PARTS: [&str; 3] = ["model", "optimizer", "scheduler"];
const DENIED: Fault = Fault::Status(403, vec![], "<Error><Code>AccessDenied</Code></Error>");

fn epochs_at(address: &str, remote: &Remote) -> Epochs {
    Epochs::new(address, PARTS).remote(remote.clone()).keep_last(2)
}

fn write(file: &Path, version: u64, remote: &Remote) -> Result<()> {
    let values = [version; 1000];
    Save::new().remote(remote.clone()).file(file, [("version", Values::new(&[1000], &values)?)])
}

/// Saves a checkpoint whose parts and numbers all say `version`.
fn save(epochs: &Epochs, remote: &Remote, milestone: Milestone, version: u64) -> Result<()> {
    let scalars = Scalars::from([("version".to_owned(), version.into())]);
    epochs.save_with(milestone, &scalars, |_, file| write(file, version, remote))
}

/// The version that all of it says.
#[track_caller]
fn version(opened: &Opened) -> u64 {
    let version = opened.scalars()["version"].as_u64().unwrap();
    for part in PARTS {
        let expected: Vec<u8> = [version; 1000].iter().flat_map(|value| value.to_le_bytes()).collect();
        assert!(opened.part(part).unwrap().read("version").unwrap().as_bytes() == expected, "{part}");
    }
    version
}

/// The version of the latest, after all that count were read.
#[track_caller]
fn latest(address: &str, remote: &Remote) -> u64 {
    let epochs = epochs_at(address, remote);
    for milestone in epochs.milestones().unwrap() {
        version(&epochs.open(milestone).unwrap());
    }
    epochs.open_latest().unwrap().map_or(0, |opened| version(&opened))
}

/// The files that there are, without the digits that make folders new.
fn files(store: &ObjectStore) -> Vec<String> {
    let short = |key: String| match key.rsplit_once('/') {
        Some((folder, file)) if folder.contains('-') => {
            format!("{}/{file}", folder.rsplit_once('-').unwrap().0)
        }
        _ => key,
    };
    store.keys().into_iter().map(short).collect()
}

fn files_of(folders: &[&str]) -> Vec<String> {
    let parts = |folder: &&str| PARTS.map(|part| format!("run/{folder}/{part}.safetensors"));
    std::iter::once("run/checkpoints.json".to_owned()).chain(folders.iter().flat_map(parts)).collect()
}

#[test]
fn the_last_ones_are_kept() {
    for protocol in PROTOCOLS {
        let (store, remote, scheme) = store_of(protocol);
        let address = format!("{scheme}://bucket/run");
        let epochs = epochs_at(&address, &remote);
        assert!(epochs.open_latest().unwrap().is_none());
        for epoch in 1..=4 {
            save(&epochs, &remote, Milestone::epoch(epoch), epoch as u64).unwrap();
        }
        save(&epochs, &remote, Milestone::epoch(5).step(7), 5).unwrap();
        assert_eq!(epochs.milestones().unwrap(), [Milestone::epoch(4), Milestone::epoch(5).step(7)]);
        assert_eq!(files(&store), files_of(&["epoch-00004", "epoch-00005-step-00000007"]));
        assert_eq!(latest(&address, &remote), 5);

        // A later run, which saves one of them anew, and has the old one until then.
        let epochs = epochs_at(&format!("{address}/"), &remote);
        let old = epochs.open(Milestone::epoch(4)).unwrap();
        save(&epochs, &remote, Milestone::epoch(4), 40).unwrap();
        assert_eq!(latest(&address, &remote), 40);
        assert!(old.part("model").unwrap().read("version").is_ok(), "it is among the first bytes");
        assert_eq!(files(&store), files_of(&["epoch-00004", "epoch-00005-step-00000007"]));
        let model = epochs.find(Milestone::epoch(4), "model").unwrap();
        assert!(model.to_str().unwrap().starts_with(&format!("{address}/epoch-00004-")), "{model:?}");
        assert_eq!(epochs.open(Milestone::epoch(9)).unwrap_err().kind(), ErrorKind::NotFound);

        // What others put there stays.
        store.put("run/epoch-00009-1/notes.txt", b"mine".to_vec());
        store.put("run/epoch-best/model.safetensors", b"mine".to_vec());
        store.age(Duration::from_secs(86_400 * 2));
        let epochs = Epochs::new(&address, PARTS).remote(remote.clone());
        epochs.delete(Milestone::epoch(5).step(7)).unwrap();
        epochs.delete(Milestone::epoch(9)).unwrap();
        assert_eq!(epochs.milestones().unwrap(), [Milestone::epoch(4)]);
        assert_eq!(store.keys().len(), 6, "{:?}", store.keys());
    }
}

#[test]
fn what_a_killed_run_has_left_is_removed_a_day_later() {
    for protocol in PROTOCOLS {
        let (store, remote, scheme) = store_of(protocol);
        let address = format!("{scheme}://bucket/run");
        let killed = epochs_at(&address, &remote);
        let file = killed.begin(Milestone::epoch(1), "model").unwrap();
        write(&file, 1, &remote).unwrap();
        drop(killed);
        // It may still be at work.
        let epochs = epochs_at(&address, &remote);
        save(&epochs, &remote, Milestone::epoch(1), 2).unwrap();
        assert_eq!(store.keys().len(), 5);
        assert_eq!(latest(&address, &remote), 2);
        store.age(Duration::from_secs(86_401));
        save(&epochs, &remote, Milestone::epoch(2), 3).unwrap();
        assert_eq!(files(&store), files_of(&["epoch-00001", "epoch-00002"]));
    }
}

#[test]
fn a_save_that_is_denied_leaves_the_old_state() {
    for protocol in PROTOCOLS {
        let (store, remote, scheme) = store_of(protocol);
        let address = format!("{scheme}://bucket/run");
        let mut saved = 0;
        let (mut failed, mut whole) = (0, false);
        for times in [1, usize::MAX] {
            for allowed in 0..28 {
                let new = saved + 1;
                store.refusals.add_after("", allowed, times, DENIED);
                let epochs = epochs_at(&address, &remote);
                let outcome = save(&epochs, &remote, Milestone::at_step(new), new);
                store.refusals.clear();
                let now = latest(&address, &remote);
                match outcome {
                    Ok(()) => assert_eq!(now, new),
                    Err(error) => {
                        failed += 1;
                        assert!(!error.to_string().contains('\n'), "{error}");
                        let is_saved = error.to_string().contains("the checkpoint is saved");
                        assert_eq!(now, if is_saved { new } else { saved }, "{error}");
                    }
                }
                // It goes on where it was, as nothing had been.
                save(&epochs, &remote, Milestone::at_step(now + 1), now + 1).unwrap();
                saved = latest(&address, &remote);
                assert_eq!(saved, now + 1);
                whole |= now == new;
            }
        }
        assert!(failed > 15 && whole, "{failed} failed");
        store.age(Duration::from_secs(86_401));
        let epochs = epochs_at(&address, &remote);
        save(&epochs, &remote, Milestone::at_step(saved + 1), saved + 1).unwrap();
        assert_eq!(store.keys().len(), 7, "{:?}", store.keys());
    }
}

#[test]
fn an_answer_that_is_lost_changes_nothing() {
    for protocol in PROTOCOLS {
        let (store, remote, scheme) = store_of(protocol);
        let address = format!("{scheme}://bucket/run");
        for lost in 0..12 {
            store.faults.add_after("", lost, 1, Fault::Send(Trick::CutHead(0)));
            let number = lost as u64 + 1;
            save(&epochs_at(&address, &remote), &remote, Milestone::at_step(number), number).unwrap();
            store.faults.clear();
            assert_eq!(latest(&address, &remote), number);
        }
        assert_eq!(store.keys().len(), 7, "{:?}", store.keys());
    }
}

#[test]
fn of_two_that_save_at_once_one_is_refused() {
    for protocol in PROTOCOLS {
        let (store, remote, scheme) = store_of(protocol);
        let address = format!("{scheme}://bucket/run");
        let [one, other] = [(); 2].map(|()| epochs_at(&address, &remote));
        let first = Milestone::epoch(1);
        for part in PARTS {
            write(&one.begin(first, part).unwrap(), 1, &remote).unwrap();
            if part != "scheduler" {
                one.done(first, part).unwrap();
            }
        }
        save(&other, &remote, first, 2).unwrap();
        let error = one.done(first, "scheduler").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
        assert!(error.to_string().starts_with(&format!("{address}/checkpoints.json: another")), "{error}");
        assert_eq!(latest(&address, &remote), 2);
        assert_eq!(files(&store), files_of(&["epoch-00001"]));
        // The next time nobody is in its way.
        save(&one, &remote, first, 3).unwrap();
        assert_eq!(latest(&address, &remote), 3);
        assert_eq!(files(&store), files_of(&["epoch-00001"]));
    }
}

#[test]
fn many_that_save_and_read_at_once_do_not_mix() {
    for protocol in PROTOCOLS {
        let (store, remote, scheme) = store_of(protocol);
        let address = format!("{scheme}://bucket/run");
        let saved: u64 = std::thread::scope(|scope| {
            let writers: Vec<_> = (1..=3_u64)
                .map(|writer| {
                    let (address, remote) = (&address, &remote);
                    scope.spawn(move || {
                        let epochs = epochs_at(address, remote);
                        (1..=6).fold(0, |saved, number| {
                            let at = Milestone::at_step(number);
                            match save(&epochs, remote, at, writer * 100 + number) {
                                Ok(()) => saved + 1,
                                Err(error) if error.kind() == ErrorKind::Busy => saved,
                                Err(error) => panic!("{error}"),
                            }
                        })
                    })
                })
                .collect();
            for _ in 0..10 {
                if let Some(opened) = epochs_at(&address, &remote).open_latest().unwrap() {
                    version(&opened);
                }
            }
            writers.into_iter().map(|writer| writer.join().unwrap()).sum()
        });
        assert!(saved >= 6, "{saved} were saved");
        assert_ne!(latest(&address, &remote), 0);
        assert_eq!(store.keys().len(), 7, "{:?}", store.keys());
    }
}

#[test]
fn damage_is_said() {
    let (store, remote, scheme) = store_of(Protocol::S3);
    let address = format!("{scheme}://bucket/run");
    let epochs = epochs_at(&address, &remote);
    save(&epochs, &remote, Milestone::epoch(1), 1).unwrap();
    let key = store.keys().into_iter().find(|key| key.ends_with("model.safetensors")).unwrap();
    let model = store.content(&key).unwrap();
    store.put(&key, model[..100].to_vec());
    assert_eq!(epochs.find(Milestone::epoch(1), "model").unwrap_err().kind(), ErrorKind::DataLength);
    let opened = epochs.open_latest().unwrap().unwrap();
    let error = opened.part("model").unwrap_err();
    assert_eq!((error.kind(), error.file()), (ErrorKind::DataLength, Some(&*opened.file("model"))));
    assert!(opened.part("optimizer").is_ok());
    store.put("run/checkpoints.json", b"{}".to_vec());
    assert_eq!(epochs.milestones().unwrap_err().kind(), ErrorKind::Value);
    assert_eq!(save(&epochs, &remote, Milestone::epoch(2), 2).unwrap_err().kind(), ErrorKind::Value);
}

#[test]
fn what_is_only_read_is_said() {
    let (_store, remote, _) = store_of(Protocol::S3);
    let epochs = epochs_at("https://127.0.0.1:1/run", &remote);
    let error = save(&epochs, &remote, Milestone::epoch(1), 1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
}
