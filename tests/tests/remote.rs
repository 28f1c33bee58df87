//! Checkpoints on a hub and on a web server: what is read, how often is asked, and what is said when it goes wrong.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use remote_server::{Fault, Hub, HubOptions, Link, RepoSpec, Web};
use safetensors::Dtype as St;
use weighbridge::plan::Part;
use weighbridge::{Checkpoint, Dtype, ErrorKind, Plan, Result};
use weighbridge_remote::{CacheMode, Remote, RemoteBuilder};
use weighbridge_tests::{Stored, file};

const MIB: usize = 1 << 20;

fn builder() -> RemoteBuilder {
    Remote::builder().stall(Duration::from_millis(400)).attempts(4).patience(Duration::from_secs(5))
}

fn open(remote: &Remote, address: &str) -> Result<Checkpoint> {
    Checkpoint::options().remote(remote.clone()).open(address)
}

/// A tensor of finite values, which are equal to themselves.
fn finite(shape: &[usize], seed: usize) -> Stored {
    let mut bytes = Stored::filled(St::F16, shape, seed).bytes().to_vec();
    bytes.iter_mut().skip(1).step_by(2).for_each(|byte| *byte &= 0x3F);
    Stored::new(St::F16, shape, bytes)
}

/// Layers, as a file.
fn shard(layers: std::ops::Range<usize>) -> Vec<u8> {
    let mut tensors = Vec::new();
    for layer in layers {
        tensors.push((format!("layers.{layer}.norm"), finite(&[512], layer)));
        tensors.push((format!("layers.{layer}.w"), finite(&[1024, 2048], layer + 100)));
    }
    let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect();
    file(&tensors)
}

const NAMES: [&str; 2] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];

/// A repository of two shards, an index and a configuration, and the same in memory.
fn model() -> (RepoSpec, Vec<Checkpoint>) {
    let shards = [shard(0..2), shard(2..4)];
    let weights: Vec<_> = (0..4)
        .flat_map(|layer| {
            ["norm", "w"].map(|name| format!("\"layers.{layer}.{name}\": {:?}", NAMES[layer / 2]))
        })
        .collect();
    let index = format!("{{\"metadata\": {{}}, \"weight_map\": {{{}}}}}", weights.join(", "));
    let here = shards.iter().map(|bytes| Checkpoint::from_bytes(bytes.clone()).unwrap()).collect();
    let [first, second] = shards;
    let repo = RepoSpec::default()
        .small("config.json", "{\"model_type\": \"llama\"}")
        .small("model.safetensors.index.json", index)
        .large(NAMES[0], first)
        .large(NAMES[1], second);
    (repo, here)
}

fn assert_same(far: &Checkpoint, here: &[Checkpoint]) {
    let session = Plan::of(far).build().unwrap().session().start().unwrap();
    assert_eq!(far.len(), here.iter().map(Checkpoint::len).sum::<usize>());
    for checkpoint in here {
        for tensor in checkpoint.tensors() {
            assert_eq!(session.take(tensor.name(), None).unwrap().1, checkpoint.read(tensor.name()).unwrap());
        }
    }
}

#[test]
fn a_repository_is_opened_in_few_requests_and_loads() {
    let hub = Hub::start(HubOptions::default());
    let (repo, here) = model();
    let commit = hub.put("org/name", repo);
    let remote = builder().endpoint(hub.url()).cache(CacheMode::None).build().unwrap();
    let far = open(&remote, "hf://org/name").unwrap();
    // Its revision, its files, where the index is and the index, and for each shard where it is and its head.
    let asked = hub.server().log.len() + hub.cdn().log.len();
    assert!(asked <= 4 + 2 * 2, "{asked}");
    assert!(hub.cdn().log.bytes() <= 2 * (256 << 10) + 8192);
    assert!(far.is_remote() && far.directory().is_none());
    assert_eq!(
        far.shards()[0].label().unwrap().to_str().unwrap(),
        format!("hf://org/name@{commit}/{}", NAMES[0])
    );
    assert_same(&far, &here);
    let received = settled(&hub) as f64;
    assert!(received <= 1.02 * far.byte_len() as f64 + 2.0 * 262_144.0, "{received}");
    // What lies beside it is fetched when it is asked for.
    let config = far.beside("config.json").unwrap().unwrap();
    assert_eq!(std::fs::read_to_string(config).unwrap(), "{\"model_type\": \"llama\"}");
    assert_eq!(far.beside("absent.json").unwrap(), None);
    assert!(far.names_beside().unwrap().contains(&"config.json".to_owned()));
}

/// The bytes that the CDN has sent; it counts them after they have arrived.
fn settled(hub: &Hub) -> u64 {
    let mut sent = hub.cdn().log.bytes();
    loop {
        thread::sleep(Duration::from_millis(50));
        let now = hub.cdn().log.bytes();
        if std::mem::replace(&mut sent, now) == now {
            return now;
        }
    }
}

#[test]
fn a_part_and_a_cast_read_what_they_need() {
    let hub = Hub::start(HubOptions::default());
    let (repo, here) = model();
    hub.put("org/name", repo);
    let remote = builder().endpoint(hub.url()).cache(CacheMode::None).build().unwrap();
    let far = open(&remote, "hf://org/name").unwrap();
    for dim in 0..2 {
        let before = settled(&hub);
        let part = |tensor: &weighbridge::TensorRef<'_>| match tensor.shape() {
            [_, _] => Part::of_rank(tensor.shape(), dim, 1, 4).map(Some),
            _ => Ok(None),
        };
        let plan = |of: &Checkpoint| Plan::of(of).part(part).dtype(|_| Some(Dtype::F32)).build().unwrap();
        let needed = plan(&far).byte_len() / 2;
        let session = plan(&far).session().start().unwrap();
        for checkpoint in &here {
            let expected = plan(checkpoint).session().start().unwrap();
            for tensor in checkpoint.tensors() {
                let (taken, expected) =
                    (session.take(tensor.name(), None), expected.take(tensor.name(), None));
                assert_eq!(taken.unwrap().1, expected.unwrap().1);
            }
        }
        let received = (settled(&hub) - before) as f64;
        // Of columns all of a tensor, which is cheaper than to ask for each.
        let most = if dim == 0 { needed } else { far.byte_len() };
        assert!(received <= 1.02 * most as f64, "{received} of {most}");
    }
}

#[test]
fn a_file_and_an_index_on_a_web_server() {
    let web = Web::start();
    let (repo, here) = model();
    for (name, (content, _)) in &repo.files {
        web.put(&format!("/models/{name}"), Arc::clone(content));
    }
    let remote = builder().build().unwrap();
    let base = format!("{}/models", web.server().url());
    let far = open(&remote, &format!("{base}/model.safetensors.index.json")).unwrap();
    assert_same(&far, &here);
    assert_eq!(far.beside("config.json").unwrap().map(|path| path.is_file()), Some(true));
    let one = open(&remote, &format!("{base}/{}", NAMES[0])).unwrap();
    assert_same(&one, &here[..1]);
    let error = open(&remote, &format!("{base}/")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("does not list"), "{error}");
    let error = open(&remote, &format!("{base}/absent.safetensors")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
}

#[test]
fn connections_are_cut_and_the_tensors_are_right() {
    let hub = Hub::start(HubOptions::default());
    let (repo, here) = model();
    hub.put("org/name", repo);
    let remote = builder().endpoint(hub.url()).cache(CacheMode::None).attempts(30).build().unwrap();
    let far = open(&remote, "hf://org/name").unwrap();
    hub.cdn_faults.cut_randomly(7, 2, 3 * MIB as u64);
    for _ in 0..5 {
        assert_same(&far, &here);
    }
    assert!(hub.cdn_faults.done() > 5);
}

#[test]
fn what_cannot_be_read_is_said_with_the_tensor_and_the_cause() {
    let hub = Hub::start(HubOptions::default());
    let (repo, _) = model();
    hub.put("org/name", repo);
    let remote = builder().endpoint(hub.url()).cache(CacheMode::None).build().unwrap();
    let far = open(&remote, "hf://org/name").unwrap();
    hub.cdn_faults.always("", Fault::Status(500, Vec::new(), ""));
    let error = far.read("layers.3.w").unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with("hf://org/name@") && text.contains(NAMES[1]) && text.contains("\"layers.3.w\""),
        "{text}"
    );
    assert!(text.contains("500") && !text.contains('\n'), "{text}");
    let error = open(&remote, "hf://org/absent").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
}

#[test]
fn an_end_of_the_session_does_not_wait_for_the_server() {
    let web = Web::start();
    let bytes = shard(0..16);
    let url = web.put("/model.safetensors", bytes);
    let link = Link::start(web.server().address(), Duration::from_millis(1), Some(2 << 20));
    let remote = Remote::builder().build().unwrap();
    let far = open(&remote, &url.replace(&web.server().url(), &link.url())).unwrap();
    let session = Plan::of(&far).build().unwrap().session().start().unwrap();
    thread::sleep(Duration::from_millis(200));
    let started = Instant::now();
    drop(session);
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    // And the checkpoint is still good.
    assert_eq!(
        far.read("layers.0.norm").unwrap(),
        Checkpoint::from_bytes(shard(0..1)).unwrap().read("layers.0.norm").unwrap()
    );
}

/// The files of a directory and of those below it.
fn files(directory: &std::path::Path) -> Vec<std::path::PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let entries = entries.flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[test]
fn what_was_loaded_is_in_the_cache_and_is_not_asked_for_again() {
    let hub = Hub::start(HubOptions::default());
    let (repo, here) = model();
    hub.put("org/name", repo);
    let directory = tempfile::tempdir().unwrap();
    let remote = || builder().endpoint(hub.url()).cache(CacheMode::At(directory.path().into()));
    // Who looks leaves no shard behind.
    drop(open(&remote().build().unwrap(), "hf://org/name").unwrap());
    let is_shard = |path: &std::path::PathBuf| path.metadata().is_ok_and(|data| data.len() > MIB as u64);
    assert!(!files(directory.path()).iter().any(is_shard));
    let far = open(&remote().build().unwrap(), "hf://org/name").unwrap();
    assert_same(&far, &here);
    drop(far);
    assert!(files(directory.path()).iter().any(is_shard));
    settled(&hub);
    hub.cdn().log.clear();
    let again = open(&remote().build().unwrap(), "hf://org/name").unwrap();
    assert_same(&again, &here);
    assert!(again.shards().iter().all(|shard| shard.path().is_some()));
    assert_eq!(hub.cdn().log.len(), 0);
    assert_eq!(again.beside("config.json").unwrap().map(|path| path.is_file()), Some(true));
    // Without a network at all, with what the environment would say.
    hub.server().log.clear();
    let offline = open(&remote().offline(true).build().unwrap(), "hf://org/name").unwrap();
    assert_same(&offline, &here);
    let error = open(&remote().offline(true).build().unwrap(), "hf://org/other").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Offline, "{error}");
    assert_eq!(hub.server().log.len(), 0);
    // And as a repository of the cache, by its snapshot.
    let snapshot = again.shards()[0].path().unwrap().parent().unwrap();
    assert_same(&Checkpoint::open(snapshot).unwrap(), &here);
}

#[test]
fn a_load_that_was_broken_off_goes_on_where_it_was() {
    let hub = Hub::start(HubOptions::default());
    let (repo, here) = model();
    hub.put("org/name", repo);
    let directory = tempfile::tempdir().unwrap();
    let remote =
        || builder().endpoint(hub.url()).cache(CacheMode::At(directory.path().into())).build().unwrap();
    let far = open(&remote(), "hf://org/name").unwrap();
    for name in ["layers.0.w", "layers.1.norm", "layers.3.w"] {
        far.read(name).unwrap();
    }
    drop(far);
    settled(&hub);
    hub.cdn().log.clear();
    let far = open(&remote(), "hf://org/name").unwrap();
    assert_same(&far, &here);
    let received = settled(&hub);
    // Two tensors of 4 MiB are left, and two heads.
    assert!(received <= 2 * (4 * MIB as u64 + (256 << 10)) * 102 / 100 + 65536, "{received}");
}

#[test]
fn bytes_that_do_not_have_their_checksum_never_get_a_name() {
    let hub = Hub::start(HubOptions::default());
    let (repo, here) = model();
    let content = repo.files[NAMES[0]].0.to_vec();
    hub.put("org/name", repo);
    let mut other = content.clone();
    let last = other.len() - 1;
    other[last] ^= 1;
    hub.corrupt(&content, other, &remote_server::sha256(&content));
    let directory = tempfile::tempdir().unwrap();
    let remote =
        || builder().endpoint(hub.url()).cache(CacheMode::At(directory.path().into())).build().unwrap();
    let far = open(&remote(), "hf://org/name").unwrap();
    for tensor in far.tensors() {
        far.read(tensor.name()).unwrap();
    }
    drop(far);
    let blob = remote_server::sha256(&content);
    assert!(!files(directory.path()).iter().any(|path| path.file_name().is_some_and(|name| *name == *blob)));
    hub.corrupt(&content, content.clone(), &blob);
    assert_same(&open(&remote(), "hf://org/name").unwrap(), &here);
    assert!(files(directory.path()).iter().any(|path| path.file_name().is_some_and(|name| *name == *blob)));
}
