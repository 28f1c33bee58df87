//! Downloads into the cache that are killed, that several processes want at once, or whose disk is full.

#![cfg(unix)]
#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use sha2::{Digest as _, Sha256};
use weighbridge_remote::cache::{Cache, Digest, Repo, RepoKind};
use weighbridge_tests::made_up;

const DRIVER: &str = env!("CARGO_BIN_EXE_hub-cache");
const SIZE: usize = 3_000_000;

struct Place {
    directory: tempfile::TempDir,
    repo: Repo,
    content: Vec<u8>,
    digest: Digest,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let repo = Cache::at(directory.path()).repo(RepoKind::Model, "org/name").unwrap();
        let mut content = vec![0; SIZE];
        made_up(0, &mut content);
        let digest = Digest::Sha256(Sha256::digest(&content).into());
        Self { directory, repo, content, digest }
    }

    fn start(&self, seconds: f64) -> Child {
        let mut child = Command::new(DRIVER)
            .args(["fetch", self.directory.path().to_str().unwrap(), &SIZE.to_string(), &seconds.to_string()])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0; 6];
        child.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
        child
    }

    fn blob(&self) -> PathBuf {
        self.repo.path().join("blobs").join(self.digest.to_string())
    }

    /// Looks at what is there, which has to be right, and returns how many bytes that are.
    fn check(&self) -> u64 {
        if self.blob().exists() {
            assert!(fs::read(self.blob()).unwrap() == self.content, "a wrong blob");
        }
        let partial = self.repo.partial(&self.digest, SIZE as u64);
        let mut buf = vec![0; 10_000];
        let mut served = 0;
        for (at, expected) in (0..).step_by(buf.len()).zip(self.content.chunks(buf.len())) {
            if partial.read_at(at, &mut buf[..expected.len()]) {
                assert!(buf[..expected.len()] == *expected, "wrong bytes at {at}");
                served += expected.len() as u64;
            }
        }
        served
    }

    fn clear(&self) {
        fs::remove_dir_all(self.repo.path()).unwrap();
    }
}

fn result(mut child: Child) -> Value {
    let mut errors = String::new();
    child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(child.wait().unwrap().success(), "{errors}");
    serde_json::from_str(&line).unwrap()
}

fn random(state: &mut u64, most: u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) % most
}

#[test]
fn killed_200_times_while_it_downloads() {
    let place = Place::new();
    let mut state = 1;
    let (mut before, mut finished, mut grew) = (0, 0, 0);
    for _ in 0..200 {
        let mut child = place.start(0.1);
        std::thread::sleep(Duration::from_micros(random(&mut state, 60_000)));
        child.kill().unwrap();
        child.wait().unwrap();
        let now = place.check();
        // Whatever was served before the kill is served after it.
        assert!(now >= before, "{now} bytes after a kill, {before} before");
        grew += u32::from(now > before);
        before = now;
        if place.repo.file("0123456789abcdef0123456789abcdef01234567", "model.bin").is_some() {
            finished += 1;
            before = 0;
            place.clear();
        }
    }
    assert!(finished >= 2 && grew >= 20, "finished {finished} times, grew {grew} times");
    result(place.start(0.0));
    assert_eq!(place.check(), SIZE as u64);
    let left = fs::read_dir(place.repo.path().join(".weighbridge")).unwrap().count();
    assert!(left <= 20, "{left} temporary files");
    let faults =
        Cache::at(place.directory.path()).verify(None, &mut |_, _| std::ops::ControlFlow::Continue(()));
    assert_eq!(faults.unwrap(), []);
}

#[test]
fn four_processes_download_it_once() {
    let place = Place::new();
    let children: Vec<_> = (0..4).map(|_| place.start(0.5)).collect();
    let ids: Vec<_> = children.iter().map(|child| u64::from(child.id())).collect();
    let results: Vec<_> = children.into_iter().map(result).collect();
    let received: u64 = results.iter().map(|result| result["received"].as_u64().unwrap()).sum();
    assert_eq!(received, SIZE as u64);
    let waited: Vec<_> = results.iter().filter_map(|result| result["waited"].as_u64()).collect();
    assert!(!waited.is_empty() && waited.iter().all(|id| ids.contains(id)), "{results:?}");
    assert!(
        results.iter().all(|result| fs::read(result["path"].as_str().unwrap()).unwrap() == place.content)
    );
    assert_eq!(fs::read_dir(place.repo.path().join("blobs")).unwrap().count(), 1);
}

#[test]
fn the_next_process_takes_over_from_one_that_was_killed() {
    let place = Place::new();
    let mut state = 7;
    for _ in 0..10 {
        let mut children: Vec<_> = (0..4).map(|_| place.start(0.4)).collect();
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(20 + random(&mut state, 80)));
            let mut child = children.swap_remove(random(&mut state, children.len() as u64) as usize);
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let start = Instant::now();
        let last = result(children.remove(0));
        assert!(fs::read(last["path"].as_str().unwrap()).unwrap() == place.content);
        // Nobody waits for the dead.
        assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
        place.check();
        place.clear();
    }
}

/// A command with a file system of 3 MB of its own, if this user may mount one.
fn small_disk(directory: &Path) -> Option<Command> {
    let with_mount = |script: &str| {
        let mut command = Command::new("unshare");
        let script = format!("mount -t tmpfs -o size=3m tmpfs \"$0\" && {script}");
        command.args(["-rm", "bash", "-c", &script]).arg(directory);
        command
    };
    let works = with_mount("true").output().is_ok_and(|ran| ran.status.success());
    works.then(|| with_mount("exec \"$@\""))
}

#[test]
fn a_full_disk_ends_a_download_and_not_a_load() {
    let directory = tempfile::tempdir().unwrap();
    let Some(mut command) = small_disk(directory.path()) else {
        eprintln!("not run: this user may not mount a small disk");
        return;
    };
    let ran = command.args([DRIVER, "full"]).arg(directory.path()).arg("2000000").output().unwrap();
    let errors = String::from_utf8(ran.stderr).unwrap();
    assert!(ran.status.success(), "{errors}");
    let found: Value = serde_json::from_slice(&ran.stdout).unwrap();
    // Told once, then left alone; what came before is served; the download says why it ends.
    assert_eq!(found["errors"].as_array().unwrap().len(), 1, "{found}");
    let error = found["errors"][0].as_str().unwrap();
    assert!(
        error.contains(".weighbridge") && error.contains("cannot write to the cache: No space left"),
        "{error}"
    );
    assert!(found["refused"].as_u64().unwrap() > 2 && found["served"].as_u64().unwrap() > 2, "{found}");
    assert!(found["download"].as_str().unwrap().contains("has room for"), "{found}");
    assert!(found["kept"].as_u64().unwrap() >= found["served"].as_u64().unwrap() * 100_000, "{found}");
    assert!(found["path"].as_str().unwrap().ends_with("model.bin"));
}

#[test]
fn a_full_disk_by_a_limit_ends_with_an_error() {
    let place = Place::new();
    let script = "trap '' XFSZ; ulimit -f 1000; exec \"$0\" \"$@\"";
    let mut command = Command::new("bash");
    command.args(["-c", script, DRIVER, "fetch"]).arg(place.directory.path()).args([&SIZE.to_string(), "0"]);
    let ran = command.output().unwrap();
    let error = String::from_utf8(ran.stderr).unwrap();
    assert!(!ran.status.success());
    assert!(
        error.contains(".weighbridge") && error.contains("cannot write to the cache: File too large"),
        "{error}"
    );
    assert!(place.check() == 0 && !place.blob().exists());
    result(place.start(0.0));
    assert_eq!(place.check(), SIZE as u64);
}
