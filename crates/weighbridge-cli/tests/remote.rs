//! Verbs at addresses: a hub and a web server on this machine.

#![cfg(feature = "remote")]
#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use remote_server::{Fault, Hub, HubOptions, Link, ObjectStore, Protocol, RepoSpec, StoreOptions, Web};
use support::{Ran, command};
use weighbridge::Checkpoint;
use weighbridge::write::{Save, Values};

/// A hub with a model of two shards, and a cache that is empty.
struct World {
    hub: Hub,
    dir: tempfile::TempDir,
    /// The model on the disk.
    here: PathBuf,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let here = dir.path().join("model");
        let values: Vec<f32> = (0..1 << 18).map(|at| at as f32).collect();
        let tensors: Vec<_> = (0..4)
            .flat_map(|layer| {
                [
                    (format!("layers.{layer}.w"), Values::new(&[512, 512], &values).unwrap()),
                    (format!("layers.{layer}.norm"), Values::new(&[512], &values[..512]).unwrap()),
                ]
            })
            .collect();
        Save::new().max_shard_size(2 << 20).directory(&here, "model", tensors).unwrap();
        fs::write(here.join("config.json"), "{\"model_type\": \"llama\"}").unwrap();
        fs::create_dir(here.join("onnx")).unwrap();
        fs::write(here.join("onnx/readme.txt"), "deeper").unwrap();
        let hub = Hub::start(HubOptions::default());
        hub.put("org/name", repo(&here));
        Self { hub, dir, here }
    }

    /// Runs the command with this hub and cache.
    fn run(&self, arguments: &[&str]) -> Ran {
        self.run_with(arguments, &[])
    }

    fn run_with(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Ran {
        let output = self.command(environment).args(arguments).output().unwrap();
        Ran {
            status: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            raw: output.stdout,
        }
    }

    fn command(&self, environment: &[(&str, &str)]) -> std::process::Command {
        let mut command = command();
        for variable in ["HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HTTPS_PROXY", "https_proxy"] {
            command.env_remove(variable);
        }
        command.env("HF_HOME", self.dir.path().join("hf")).env("HF_ENDPOINT", self.hub.url());
        command.envs(environment.iter().copied());
        command
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn asked(&self) -> usize {
        self.hub.server().log.len() + self.hub.cdn().log.len()
    }

    fn forget(&self) {
        // They count what they have sent after it has arrived.
        thread::sleep(Duration::from_millis(100));
        self.hub.server().log.clear();
        self.hub.cdn().log.clear();
    }
}

fn repo(directory: &Path) -> RepoSpec {
    let mut repo =
        RepoSpec { refs: vec!["v1".into()], ..RepoSpec::default() }.small("onnx/readme.txt", "deeper");
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        repo = match path.extension().and_then(|ending| ending.to_str()) {
            Some("safetensors") => repo.large(&name, fs::read(&path).unwrap()),
            Some(_) => repo.small(&name, fs::read(&path).unwrap()),
            None => repo,
        };
    }
    repo
}

#[track_caller]
fn assert_same(one: &Path, other: &Path) {
    let (one, other) = (Checkpoint::open(one).unwrap(), Checkpoint::open(other).unwrap());
    assert_eq!(one.len(), other.len());
    for tensor in one.tensors() {
        assert_eq!(one.read(tensor.name()).unwrap(), other.read(tensor.name()).unwrap(), "{}", tensor.name());
    }
}

#[test]
fn inspect_reads_headers_and_cat_what_it_prints() {
    let world = World::new();
    let seen = world.run(&["inspect", "hf://org/name"]).clean();
    assert!(seen.contains("layers.[0-3]"), "{seen}");
    // Its revision, its files, where the index is and the index, and two for each shard.
    let shards = fs::read_dir(&world.here).unwrap().flatten();
    let shards =
        shards.filter(|entry| entry.path().extension().is_some_and(|end| end == "safetensors")).count();
    assert!(world.asked() <= 4 + 2 * shards, "{}", world.asked());
    world.forget();
    let expected = world.run(&["cat", world.here.to_str().unwrap(), "layers.1.w[0:2]"]).clean();
    let printed = world.run(&["cat", "hf://org/name", "layers.1.w[0:2]"]).clean();
    assert_eq!(printed, expected);
    assert!(world.hub.cdn().log.bytes() < (shards as u64) * (300 << 10), "{}", world.hub.cdn().log.bytes());
}

#[test]
fn what_is_written_is_made_of_what_is_far_away() {
    let world = World::new();
    let out = |name: &str| world.path(name).to_str().unwrap().to_owned();
    for (name, arguments) in [
        ("merged.safetensors", &["merge"][..]),
        ("cast.safetensors", &["cast", "--to", "bf16"]),
        ("filtered.safetensors", &["filter", "--only", "*.w"]),
    ] {
        let run = |input: &str, output: &str| {
            let mut all: Vec<&str> = arguments.to_vec();
            all.extend([input, "-o", output]);
            world.run(&all).clean();
        };
        let (far, here) = (out(name), out(&format!("here-{name}")));
        run("hf://org/name", &far);
        run(world.here.to_str().unwrap(), &here);
        assert!(fs::read(&far).unwrap() == fs::read(&here).unwrap(), "{name}");
    }
    let same = world.run(&["diff", "hf://org/name@v1", world.here.to_str().unwrap()]);
    assert_eq!(same.status, 0, "{same:?}");
    let hashes = |input: &str| world.run(&["hash", input]).clean();
    assert_eq!(hashes("hf://org/name"), hashes(world.here.to_str().unwrap()));
}

#[test]
fn fetch_fills_the_cache_and_what_is_there_is_not_asked_for() {
    let world = World::new();
    let snapshot = world.run(&["fetch", "hf://org/name"]).clean();
    let snapshot = Path::new(snapshot.trim());
    assert_same(snapshot, &world.here);
    assert_eq!(fs::read_to_string(snapshot.join("onnx/readme.txt")).unwrap(), "deeper");
    world.forget();
    world.run(&["fetch", "hf://org/name", "--only", "*.safetensors"]).clean();
    assert_eq!(world.hub.cdn().log.len(), 0);
    world.forget();
    let offline = [("HF_HUB_OFFLINE", "1")];
    let seen = world.run_with(&["inspect", "hf://org/name"], &offline).clean();
    assert!(seen.contains("layers.[0-3]"));
    let other = world.run_with(&["inspect", "hf://org/other"], &offline);
    assert_eq!(other.status, 2);
    assert!(other.stderr.contains("HF_HUB_OFFLINE"), "{other:?}");
    assert_eq!(world.asked(), 0);
    // By its id alone, as from what Python has fetched.
    world.run(&["verify", "org/name", "--data"]).clean();

    let listed = world.run(&["cache", "list"]).clean();
    assert!(listed.contains("hf://org/name") && listed.contains("main"), "{listed}");
    world.run(&["cache", "verify"]).clean();
    let files: Vec<_> = fs::read_dir(snapshot).unwrap().map(|entry| entry.unwrap().path()).collect();
    let shard = files.iter().find(|path| path.extension().is_some_and(|end| end == "safetensors")).unwrap();
    let blob = shard.canonicalize().unwrap();
    let mut bytes = fs::read(&blob).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&blob, bytes).unwrap();
    let broken = world.run(&["cache", "verify"]);
    assert_eq!(broken.status, 1);
    assert!(broken.stdout.contains(blob.file_name().unwrap().to_str().unwrap()), "{broken:?}");
    let tried = world.run(&["cache", "prune", "hf://org/name", "--dry-run"]).clean();
    assert!(!tried.is_empty() && blob.exists());
    world.run(&["cache", "prune", "hf://org/name"]).clean();
    assert!(!blob.exists());
    assert_eq!(world.run(&["cache", "list"]).clean(), "");
}

#[test]
fn fetch_into_a_directory() {
    let world = World::new();
    let to = world.path("to");
    let to_text = to.to_str().unwrap();
    let arguments =
        ["fetch", "hf://org/name", "--only", "*.safetensors", "--only", "*.json", "--to", to_text];
    world.run(&arguments).clean();
    assert_same(&to, &world.here);
    assert!(to.join("config.json").is_file() && !to.join("onnx").exists());
    let names: Vec<_> = fs::read_dir(&to).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert!(names.iter().all(|name| !name.to_string_lossy().starts_with('.')), "{names:?}");
    assert!(!world.path("hf").join("hub").exists());
    world.forget();
    world.run(&arguments).clean();
    assert_eq!(world.hub.cdn().log.len(), 0);
    // Nothing is replaced that is something else.
    fs::write(to.join("config.json"), "mine").unwrap();
    let refused = world.run(&arguments);
    assert_eq!((refused.status, fs::read_to_string(to.join("config.json")).unwrap()), (2, "mine".to_owned()));
    // Of a web server, too.
    let web = Web::start();
    let url = web.put(
        "/a/model.safetensors",
        fs::read(world.path("to").join("model.safetensors.index.json")).unwrap(),
    );
    let from_web = world.path("web");
    world.run(&["fetch", &url, "--to", from_web.to_str().unwrap()]).clean();
    assert!(from_web.join("model.safetensors").is_file());
}

#[test]
fn a_fetch_that_was_killed_goes_on() {
    let world = World::new();
    let values: Vec<f32> = (0..6 << 20).map(|at| at as f32).collect();
    let large = world.path("large.safetensors");
    Save::new().file(&large, [("w", Values::new(&[6, 1 << 20], &values).unwrap())]).unwrap();
    world.hub.put("org/large", RepoSpec::default().large("model.safetensors", fs::read(&large).unwrap()));
    let link = Link::start(world.hub.cdn().address(), Duration::ZERO, Some(24 << 20));
    world.hub.send_to(&link.url());
    let mut child =
        world.command(&[]).args(["fetch", "hf://org/large"]).stdout(Stdio::null()).spawn().unwrap();
    let started = Instant::now();
    while link.passed() < 14 << 20 && started.elapsed() < Duration::from_secs(20) {
        thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    thread::sleep(Duration::from_millis(100));
    let before = link.passed();
    let path = world.run(&["fetch", "hf://org/large", "--only", "*.safetensors"]).clean();
    assert!(
        fs::read(Path::new(path.trim()).join("model.safetensors"))
            .is_ok_and(|bytes| bytes == fs::read(&large).unwrap())
            || fs::read(path.trim()).is_ok_and(|bytes| bytes == fs::read(&large).unwrap())
    );
    let again = link.passed() - before;
    // Of each request that was under way less than 1 MiB is lost.
    assert!(again < 14 << 20, "{again}");
}

#[test]
fn what_cannot_be_reached_is_said_once_and_what_to_do() {
    let world = World::new();
    // A port that nobody listens at.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let here = format!("http://{closed}");
    let file = format!("{here}/model.safetensors");
    let store = [
        ("AWS_ENDPOINT_URL", &*here),
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ALLOW_HTTP", "true"),
    ];
    let proxied = [("HF_ENDPOINT", "https://hub.test"), ("HTTPS_PROXY", &*here), ("NO_PROXY", "")];
    let advice = "; check the address and the network, and HTTPS_PROXY where a proxy is needed";
    for (arguments, environment, start, end) in [
        (
            ["inspect", "hf://org/name"],
            &[("HF_ENDPOINT", &*here)][..],
            "hf://org/name",
            "; the cache has nothing of it",
        ),
        (
            ["fetch", "hf://org/name"],
            &[("HF_ENDPOINT", &*here)][..],
            "hf://org/name",
            "; the cache has nothing of it",
        ),
        (["inspect", "hf://org/name"], &proxied[..], "hf://org/name", "; the cache has nothing of it"),
        (["inspect", &file], &[][..], &file, ""),
        (["inspect", "s3://bucket/m.safetensors"], &store[..], "s3://bucket/m.safetensors", ""),
    ] {
        let ran = world.run_with(&arguments, environment);
        assert_eq!(ran.status, 2, "{ran:?}");
        let said = ran.stderr.trim_end();
        assert!(said.starts_with(&format!("error: {start}: connection refused (")), "{said}");
        assert!(said.ends_with(&format!("{advice}{end}")), "{said}");
        assert_eq!((said.lines().count(), said.matches("refused").count()), (1, 1), "{said}");
        assert_eq!(said.contains("through the proxy"), environment.len() == 3, "{said}");
    }
    // What was asked for before is there without a network.
    world.run(&["inspect", "hf://org/name"]).clean();
    world.run(&["fetch", "hf://org/name"]).clean();
    world.run_with(&["inspect", "hf://org/name"], &[("HF_ENDPOINT", &here)]).clean();
    let offline = world.run_with(&["inspect", "hf://org/other"], &[("HF_HUB_OFFLINE", "1")]);
    assert!(
        offline.stderr.contains("HF_HUB_OFFLINE is set, and the cache lacks the revision"),
        "{offline:?}"
    );
}

#[test]
fn errors_say_what_to_do_and_no_secret() {
    let world = World::new();
    let secret = [("HF_TOKEN", "hf_right")];
    for (address, words) in [
        ("hf://org/absent", "no such repository"),
        ("hf://org/name@absent", "revision"),
        ("hf://org/name/confg.json", "nearest: config.json"),
        ("https://user:pass@example.org/model.safetensors", "password"),
        ("hf://", "owner/name"),
    ] {
        let ran = world.run_with(&["inspect", address], &secret);
        assert_eq!(ran.status, 2, "{ran:?}");
        assert!(ran.stderr.lines().count() == 1, "{ran:?}");
        assert!(ran.stderr.to_lowercase().contains(words), "{address}: {}", ran.stderr);
        assert!(!ran.stderr.contains("hf_right") && !ran.stderr.contains("pass@"), "{ran:?}");
    }
    for (only, words) in [
        (
            "confg.json",
            "no file has a name that matches --only \"confg.json\"; did you mean \"config.json\"?",
        ),
        ("readme*", "; a glob is for whole names, and \"*readme*\" matches 1"),
    ] {
        let ran = world.run(&["fetch", "hf://org/name", "--only", only]);
        assert!(ran.status == 2 && ran.stderr.trim_end().ends_with(words), "{ran:?}");
        let ran = world.run(&["fetch", "hf://org/name", "--list", "--only", "*.json", "--only", only]);
        assert!(ran.status == 0 && ran.stderr.starts_with("warning: "), "{ran:?}");
        assert!(ran.stderr.contains(words), "{ran:?}");
    }
    let ran = world.run(&["fetch", "model.safetensors"]);
    assert!(ran.status == 2 && ran.stderr.contains("no address"), "{ran:?}");
}

/// A store, and the environment of who may write to it.
fn store() -> (ObjectStore, Vec<(&'static str, String)>) {
    let store = ObjectStore::start(StoreOptions { protocol: Protocol::S3, ..StoreOptions::default() });
    let mut environment = store.settings();
    environment.push(("AWS_ALLOW_HTTP", "true".to_owned()));
    (store, environment)
}

#[test]
fn from_the_hub_to_a_store() {
    let world = World::new();
    let (store, environment) = store();
    let environment: Vec<_> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let run = |arguments: &[&str]| world.run_with(arguments, &environment);
    let split =
        ["cast", "hf://org/name", "--to", "bf16", "--max-shard-size", "1MB", "-o", "s3://bucket/out/"];
    run(&split).clean();
    let here = world.path("here");
    let here = here.to_str().unwrap();
    run(&["cast", world.here.to_str().unwrap(), "--to", "bf16", "-o", here]).clean();
    run(&["diff", "s3://bucket/out/", here]).clean();
    assert!(store.keys().len() > 2, "{:?}", store.keys());
    let again = run(&split);
    assert!(again.status == 2 && again.stderr.contains("--force"), "{again:?}");
    let mut forced = split.to_vec();
    forced.push("--force");
    run(&forced).clean();
    let one = ["merge", "s3://bucket/out", "-o", "s3://bucket/one/model.safetensors"];
    run(&one).clean();
    run(&["diff", "s3://bucket/one/model.safetensors", here]).clean();
    let to = world.path("fetched");
    run(&["fetch", "s3://bucket/out/", "--to", to.to_str().unwrap()]).clean();
    run(&["diff", to.to_str().unwrap(), here]).clean();
    let refused = run(&["cast", here, "--to", "f32", "-o", "hf://org/name"]);
    assert!(refused.status == 2 && refused.stderr.contains("hf upload"), "{refused:?}");
    assert!(!Path::new("s3:").exists() && !Path::new("hf:").exists());
}

#[test]
fn what_belongs_to_a_model_goes_to_the_store_with_it() {
    let world = World::new();
    let here = world.path("linear");
    let values: Vec<f32> = (0..1 << 18).map(|at| (at % 1009) as f32).collect();
    let names = (0..3).map(|layer| format!("model.layers.{layer}.mlp.up_proj.weight"));
    let tensors = names.map(|name| (name, Values::new(&[512, 512], &values).unwrap()));
    Save::new().directory(&here, "model", tensors).unwrap();
    fs::write(here.join("config.json"), "{\"model_type\": \"llama\"}").unwrap();
    fs::write(here.join("tokenizer.json"), "{\"tokens\": 1}").unwrap();
    fs::write(here.join("notes.md"), "mine").unwrap();
    world.hub.put("org/linear", repo(&here));
    let (store, environment) = store();
    let environment: Vec<_> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let run = |arguments: &[&str]| world.run_with(arguments, &environment);
    let text = |key: &str| String::from_utf8(store.content(key).unwrap().to_vec()).unwrap();

    // From the hub, in one object, and back from the store to the disk.
    let quantize = ["quantize", "hf://org/linear", "--method", "int8", "-o", "s3://bucket/q"];
    let told = run(&quantize);
    assert_eq!(told.status, 0, "{told:?}");
    let keys = ["q/config.json", "q/model.safetensors", "q/tokenizer.json"];
    assert_eq!(store.keys(), keys, "{told:?}");
    assert!(text("q/config.json").contains("quantization_config"));
    assert_eq!(text("q/tokenizer.json"), "{\"tokens\": 1}");
    let order: Vec<_> = store.log().all().into_iter().map(|asked| asked.request).collect();
    let puts: Vec<_> =
        order.iter().filter(|request| request.method == "PUT").map(remote_server::Request::path).collect();
    assert!(puts.last().unwrap().ends_with("model.safetensors"), "{puts:?}");
    let again = run(&quantize);
    assert!(again.status == 2 && again.stderr.contains("config.json: it is there already"), "{again:?}");
    assert!(again.stderr.contains("--force"), "{again:?}");

    // In shards, the index last, and what says how codes are read is left out.
    let dense =
        ["dequantize", "s3://bucket/q/", "--max-shard-size", "1MB", "--to", "f32", "-o", "s3://bucket/d/"];
    run(&dense).clean();
    assert!(!text("d/config.json").contains("quantization_config"));
    assert_eq!(text("d/tokenizer.json"), "{\"tokens\": 1}");
    let order: Vec<_> = store.log().all().into_iter().map(|asked| asked.request).collect();
    let puts: Vec<_> =
        order.iter().filter(|request| request.method == "PUT").map(remote_server::Request::path).collect();
    assert!(puts.last().unwrap().ends_with("index.json"), "{puts:?}");
    let over = run(&["dequantize", "s3://bucket/q", "--force", "-o", "s3://bucket/q/"]);
    assert!(over.status == 2 && over.stderr.contains("name another directory"), "{over:?}");

    // What is written anew has new files beside it; a save that is refused changes none.
    store.put("q2/config.json", b"{}".to_vec());
    let to = ["quantize", "hf://org/linear", "--method", "fp8", "-o", "s3://bucket/q2", "--force"];
    let denied = Fault::Status(403, vec![], "<Error><Code>AccessDenied</Code></Error>");
    store.refusals.always("config.json", denied);
    assert_eq!(run(&to).status, 2);
    store.refusals.clear();
    assert_eq!(text("q2/config.json"), "{}");
    assert!(store.content("q2/model.safetensors").is_none());
    run(&to).clean();
    assert!(text("q2/config.json").contains("quantization_config"));
    run(&["shard", "hf://org/linear", "--tp", "2", "-o", "s3://bucket/ranks"]).clean();
    assert!(store.content("ranks/rank-00001/config.json").is_some(), "{:?}", store.keys());
    assert!(!Path::new("s3:").exists());
}
