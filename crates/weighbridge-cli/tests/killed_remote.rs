//! Fetches and casts from a hub that are killed at any moment, with faults on the way: what is there afterwards is whole or is
//! not there. `WEIGHBRIDGE_KILLS` says how often; it is 20 otherwise.

#![cfg(feature = "remote")]
#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use remote_server::{Hub, HubOptions, Link, RepoSpec, git_sha1, sha256};
use support::command;
use weighbridge::write::{Save, Values};
use weighbridge::{Checkpoint, ErrorKind};

fn kills() -> u64 {
    std::env::var("WEIGHBRIDGE_KILLS").ok().and_then(|number| number.parse().ok()).unwrap_or(20)
}

/// Numbers that are the same every time (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed ^ (mixed >> 27)) % end
    }
}

/// A hub behind a slow link, and a cache of its own.
struct World {
    hub: Hub,
    _link: Link,
    dir: tempfile::TempDir,
    /// What files of the repositories hold, by what names it in a cache.
    contents: BTreeMap<String, Arc<Vec<u8>>>,
    random: Random,
}

impl World {
    /// The models are `org/1` and `org/2`.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let hub = Hub::start(HubOptions::default());
        let mut contents = BTreeMap::new();
        for seed in 1..=2_usize {
            let here = dir.path().join(format!("model-{seed}"));
            let values: Vec<f32> = (0..1 << 20).map(|at| (at * 7 % 1001 + seed) as f32).collect();
            let tensors = (0..3).map(|layer| {
                let values = Values::new(&[1024, 1024], &values).unwrap();
                (format!("layers.{layer}.w"), values)
            });
            Save::new().max_shard_size(5 << 20).directory(&here, "model", tensors).unwrap();
            fs::write(here.join("config.json"), format!("{{\"seed\": {seed}}}")).unwrap();
            let mut repo = RepoSpec::default();
            for entry in fs::read_dir(&here).unwrap() {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                let content = Arc::new(fs::read(&path).unwrap());
                if name.ends_with(".safetensors") {
                    contents.insert(sha256(&content), content.clone());
                    repo = repo.large(&name, content);
                } else {
                    contents.insert(git_sha1(&content), content.clone());
                    repo = repo.small(&name, content.to_vec());
                }
            }
            hub.put(&format!("org/{seed}"), repo);
        }
        let link = Link::start(hub.cdn().address(), Duration::from_millis(2), Some(60 << 20));
        hub.send_to(&link.url());
        Self { hub, _link: link, dir, contents, random: Random(7) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> std::process::Command {
        let mut command = command();
        for variable in ["HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HTTPS_PROXY", "https_proxy"] {
            command.env_remove(variable);
        }
        command.env("HF_HOME", self.path("hf")).env("HF_ENDPOINT", self.hub.url()).args(arguments);
        command
    }

    /// Runs the command with faults, and kills it unless it ends before; whether it ended well.
    fn run_and_kill(&mut self, arguments: &[&str]) -> bool {
        let seed = self.random.below(u64::MAX);
        self.hub.cdn_faults.cut_randomly(seed, 4, 3);
        let mut child = self.command(arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        // Windows starts processes slower, Wine above all.
        let longest = if cfg!(windows) { 3000 } else { 450 };
        thread::sleep(Duration::from_millis(self.random.below(longest)));
        let ended = child.try_wait().unwrap();
        child.kill().unwrap();
        let output = child.wait_with_output().unwrap();
        self.hub.cdn_faults.clear();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(!told.contains("panicked"), "{told}");
        match ended.map(|status| status.code()) {
            Some(Some(0)) => true,
            Some(code) => {
                assert!(code == Some(2) && told.lines().count() == 1, "{code:?}: {told}");
                false
            }
            None => false,
        }
    }

    /// Fails unless all that has its last name in the cache is what it should be.
    fn check_cache(&self) {
        for seed in 1..=2 {
            let repo = self.path("hf").join(format!("hub/models--org--{seed}"));
            for blob in files(&repo.join("blobs")) {
                let name = blob.file_name().unwrap().to_str().unwrap();
                let is_last = [40, 64].contains(&name.len()) && name.bytes().all(|b| b.is_ascii_hexdigit());
                if is_last {
                    assert!(fs::read(&blob).unwrap() == **self.contents[name], "{}", blob.display());
                }
            }
            for snapshot in files(&repo.join("snapshots")) {
                for file in files(&snapshot) {
                    let name = file.file_name().unwrap().to_str().unwrap();
                    let right = fs::read(self.path(&format!("model-{seed}")).join(name)).unwrap();
                    assert!(fs::read(&file).unwrap() == right, "{}", file.display());
                }
            }
        }
    }

    fn run(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    fn forget_cache(&self) {
        let _ = fs::remove_dir_all(self.path("hf"));
    }
}

fn files(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn fetches() {
    let mut world = World::new();
    let (mut ended, mut resumed) = (0, 0);
    for round in 0..kills() {
        if world.run_and_kill(&["fetch", "hf://org/1"]) {
            ended += 1;
        }
        world.check_cache();
        // Now and then to the end, from wherever it stands.
        if round % 8 == 7 {
            resumed += 1;
            let snapshot = PathBuf::from(world.run(&["fetch", "hf://org/1"]));
            assert_eq!(files(&snapshot).len(), files(&world.path("model-1")).len());
            world.check_cache();
            world.run(&["cache", "verify"]);
        }
        if ended > 0 || round % 8 == 7 {
            world.forget_cache();
            ended = 0;
        }
    }
    assert!(resumed > 0 || kills() < 8);
}

/// Whether a checkpoint is that of a seed, cast; `None`: there is none.
fn seed_of(location: &Path) -> Option<usize> {
    let checkpoint = match Checkpoint::open(location) {
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        opened => opened.unwrap(),
    };
    assert_eq!(checkpoint.len(), 3);
    let bytes: Vec<_> = checkpoint.tensors().map(|tensor| checkpoint.read(tensor.name()).unwrap()).collect();
    let right = |seed: usize| {
        let values = (0..1 << 20).map(|at: usize| (at * 7 % 1001 + seed) as f32);
        // They fit into F16.
        values.flat_map(|value| half::f16::from_f32(value).to_le_bytes()).collect::<Vec<u8>>()
    };
    let seed = (1..=2).find(|&seed| bytes[0].as_bytes() == right(seed));
    let seed = seed.unwrap_or_else(|| panic!("{}: it is of neither model", location.display()));
    let right = right(seed);
    assert!(bytes.iter().all(|bytes| bytes.as_bytes() == right), "{}: it is mixed", location.display());
    Some(seed)
}

#[test]
fn casts() {
    let mut world = World::new();
    let (file, set) = (world.path("out/cast.safetensors"), world.path("set"));
    fs::create_dir(world.path("out")).unwrap();
    let cast = |seed: u64, to: &Path| -> Vec<String> {
        let from = format!("hf://org/{seed}");
        ["cast", &from, "--to", "f16", "--max-shard-size", "3MB", "--force", "-o", to.to_str().unwrap()]
            .map(str::to_owned)
            .to_vec()
    };
    let mut seen = [false; 3];
    for round in 0..kills() {
        let to = if world.random.below(2) == 0 { &file } else { &set };
        let seed = 1 + world.random.below(2);
        let before = seed_of(to);
        let arguments = cast(seed, to);
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        let ended = world.run_and_kill(&arguments);
        let after = seed_of(to);
        assert!(after == Some(seed as usize) || !ended && after == before, "{before:?}, {after:?}: {ended}");
        seen[after.unwrap_or(0)] = true;
        world.check_cache();
        if round % 4 == 3 {
            world.forget_cache();
        }
    }
    assert!(kills() < 20 || seen.iter().filter(|seen| **seen).count() > 1, "{seen:?}");
    // The next ones end what was begun, and leave nothing of it.
    for (seed, to) in [(1, &file), (2, &set)] {
        let arguments = cast(seed, to);
        world.run(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(seed_of(to), Some(seed as usize));
    }
    assert_eq!(files(&world.path("out")).len(), 1, "{:?}", files(&world.path("out")));
    assert_eq!(files(&set).len(), 4, "{:?}", files(&set));
}
