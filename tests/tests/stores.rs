//! Checkpoints in object stores: read, saved, replaced, and what a save that fails leaves.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use std::ops::ControlFlow;

use remote_server::{Fault, Protocol};
use weighbridge::write::{Save, Values};
use weighbridge::{Checkpoint, Dtype, ErrorKind, Plan, Progress};
use weighbridge_remote::Remote;
use weighbridge_tests::stores::{PROTOCOLS, store_of};

struct Model {
    names: Vec<String>,
    values: Vec<Vec<f32>>,
}

impl Model {
    /// Some tensors of 4 MiB, all of them of the seed.
    fn new(tensors: usize, seed: usize) -> Self {
        let names = (0..tensors).map(|number| format!("layers.{number}.w")).collect();
        let values =
            (0..tensors).map(|number| (0..1 << 20).map(|at| (at * 7 + number * 13 + seed) as f32).collect());
        Self { names, values: values.collect() }
    }

    fn tensors(&self) -> Vec<(&str, Values<'_, f32>)> {
        let shape = &[1024, 1024];
        self.names
            .iter()
            .zip(&self.values)
            .map(|(name, values)| (&**name, Values::new(shape, values).unwrap()))
            .collect()
    }

    #[track_caller]
    fn assert_is(&self, checkpoint: &Checkpoint) {
        let session = Plan::of(checkpoint).build().unwrap().session().start().unwrap();
        assert_eq!(checkpoint.len(), self.names.len());
        for (name, values) in self.names.iter().zip(&self.values) {
            assert!(session.take(name, None).unwrap().1.as_bytes() == bytes_of(values), "{name}");
        }
    }
}

fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn open(remote: &Remote, address: &str) -> weighbridge::Result<Checkpoint> {
    Checkpoint::options().remote(remote.clone()).open(address)
}

#[test]
fn a_set_is_saved_read_and_replaced() {
    for protocol in PROTOCOLS {
        let (store, remote, scheme) = store_of(protocol);
        let address = format!("{scheme}://bucket/m/");
        let save = Save::new().max_shard_size(9 << 20).remote(remote.clone());
        let first = Model::new(5, 1);
        let saved = save.directory(&address, "model", first.tensors()).unwrap();
        assert_eq!((saved.shards.len(), saved.index.is_some()), (3, true));
        store.put("m/config.json", b"{}".to_vec());
        first.assert_is(&open(&remote, &address).unwrap());
        let far = open(&remote, &format!("{address}model.safetensors.index.json")).unwrap();
        first.assert_is(&far);
        assert_eq!(far.beside("config.json").unwrap().map(|path| path.is_file()), Some(true));

        let second = Model::new(3, 2);
        save.directory(&address, "model", second.tensors()).unwrap();
        second.assert_is(&open(&remote, &address).unwrap());
        // Two shards, the index, and what is not ours.
        assert_eq!(store.keys().len(), 4, "{:?}", store.keys());
        let third = Model::new(2, 3);
        save.clone().max_shard_size(1 << 30).directory(&address, "model", third.tensors()).unwrap();
        third.assert_is(&open(&remote, &address).unwrap());
        assert_eq!(store.keys(), ["m/config.json", "m/model.safetensors"]);
        save.directory(&address, "model", first.tensors()).unwrap();
        first.assert_is(&open(&remote, &address).unwrap());
        assert_eq!(store.keys().len(), 5, "{:?}", store.keys());
        assert_eq!(store.uploads(), 0);
    }
}

#[test]
fn one_object_in_parts_and_what_is_cast_on_its_way() {
    for protocol in PROTOCOLS {
        let (_store, remote, scheme) = store_of(protocol);
        let address = format!("{scheme}://bucket/one/model.safetensors");
        // More than one part.
        let model = Model::new(10, 4);
        let save = Save::new().remote(remote.clone());
        save.file(&address, model.tensors()).unwrap();
        let far = open(&remote, &address).unwrap();
        model.assert_is(&far);
        // From a store to a store, cast, and with no copy on the disk.
        let narrow = format!("{scheme}://bucket/narrow/model.safetensors");
        let plan = Plan::of(&far).dtype(|_| Some(Dtype::BF16)).build().unwrap();
        save.file(&narrow, plan.tensors()).unwrap();
        let narrow = open(&remote, &narrow).unwrap();
        assert_eq!(narrow.byte_len() * 2, far.byte_len());
        let expected = plan.session().start().unwrap();
        for name in &model.names {
            assert_eq!(narrow.read(name).unwrap(), expected.take(name, None).unwrap().1, "{name}");
        }
    }
}

#[test]
fn a_save_that_fails_leaves_the_old_set_and_nothing_else() {
    for protocol in PROTOCOLS {
        let (store, remote, scheme) = store_of(protocol);
        let address = format!("{scheme}://bucket/m/");
        let save = Save::new().max_shard_size(9 << 20).remote(remote.clone());
        let (old, new) = (Model::new(4, 1), Model::new(5, 2));
        save.directory(&address, "model", old.tensors()).unwrap();
        let before = store.keys();
        // Cancelled in the middle.
        let cancelled = save.clone().progress(|progress: Progress| match progress.bytes_done > 10 << 20 {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        });
        let error = cancelled.directory(&address, "model", new.tensors()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
        assert_eq!((store.keys(), store.uploads()), (before.clone(), 0));
        // Not allowed any more, from some request on.
        for allowed in 0..6 {
            store.refusals.clear();
            let denied = Fault::Status(403, vec![], "<Error><Code>AccessDenied</Code></Error>");
            store.refusals.add_after("-0000", allowed, 100, denied);
            let failed = save.directory(&address, "model", new.tensors());
            store.refusals.clear();
            match failed {
                Ok(_) => new.assert_is(&open(&remote, &address).unwrap()),
                Err(error) => {
                    assert!(!error.to_string().contains('\n'), "{error}");
                    old.assert_is(&open(&remote, &address).unwrap());
                }
            }
            save.directory(&address, "model", old.tensors()).unwrap();
        }
    }
}

#[test]
fn two_that_save_at_once_do_not_mix() {
    for protocol in PROTOCOLS {
        let (store, remote, scheme) = store_of(protocol);
        let address = format!("{scheme}://bucket/m/");
        let save = Save::new().max_shard_size(5 << 20).remote(remote.clone());
        save.directory(&address, "model", Model::new(2, 0).tensors()).unwrap();
        let models: Vec<_> = (1..5).map(|seed| Model::new(3, seed * 1000)).collect();
        let saved: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = models
                .iter()
                .map(|model| scope.spawn(|| save.directory(&address, "model", model.tensors()).map(drop)))
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(saved.iter().any(Result::is_ok));
        for error in saved.iter().filter_map(|saved| saved.as_ref().err()) {
            assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
        }
        let checkpoint = open(&remote, &address).unwrap();
        let first = checkpoint.read("layers.0.w").unwrap();
        let whose = models.iter().find(|model| bytes_of(&model.values[0]) == first.as_bytes());
        whose.unwrap().assert_is(&checkpoint);
        assert_eq!(store.uploads(), 0);
    }
}

#[test]
fn an_object_that_changes_during_a_load_is_an_error() {
    for protocol in PROTOCOLS {
        let (store, remote, scheme) = store_of(protocol);
        let address = format!("{scheme}://bucket/one/model.safetensors");
        let save = Save::new().remote(remote.clone());
        save.file(&address, Model::new(3, 1).tensors()).unwrap();
        let far = open(&remote, &address).unwrap();
        save.file(&address, Model::new(3, 2).tensors()).unwrap();
        let error = far.read("layers.2.w").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Changed, "{error}");
        let text = error.to_string();
        assert!(
            text.starts_with(&address) && text.contains("layers.2.w") && text.contains("changed"),
            "{text}"
        );
        drop(store);
    }
}

#[test]
fn where_nothing_can_be_written_is_said() {
    let (_store, remote, _) = store_of(Protocol::S3);
    let model = Model::new(1, 1);
    let save = Save::new().remote(remote);
    for (address, words) in [
        ("hf://org/name/model.safetensors", "hf upload"),
        ("https://example.org/model.safetensors", "only read"),
        ("s3://bucket/folder/", "name of a file"),
    ] {
        let error = save.file(address, model.tensors()).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }
}
