use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use sha2::{Digest as _, Sha256};

use super::*;
use crate::cache::{Cache, Digest, Repo, RepoKind};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn repo(root: &Path) -> Repo {
    Cache::at(root).repo(RepoKind::Model, "org/name").unwrap()
}

fn content(len: usize) -> Vec<u8> {
    (0..len as u64).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u8).collect()
}

fn sha256(bytes: &[u8]) -> Digest {
    Digest::Sha256(Sha256::digest(bytes).into())
}

fn options() -> Options<'static> {
    Options { threads: 4, piece: 1 << 16, patience: Duration::from_millis(200), ..Options::default() }
}

fn go_on(_: Step) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// A reader of these bytes, and how many were read.
fn reader<'a>(bytes: &'a [u8], count: &'a AtomicU64) -> Box<Read<'a>> {
    Box::new(move |offset, buf, _| {
        count.fetch_add(buf.len() as u64, Ordering::Relaxed);
        buf.copy_from_slice(&bytes[offset as usize..offset as usize + buf.len()]);
        Ok(())
    })
}

#[test]
fn a_file_is_fetched_once_each_byte() {
    let directory = tempfile::tempdir().unwrap();
    let repo = repo(directory.path());
    for len in [0, 1, 65_536, 1_000_000] {
        let bytes = content(len);
        let count = AtomicU64::new(0);
        let partial = repo.partial(&sha256(&bytes), len as u64);
        partial.write_at(0, &bytes[..len / 3]).unwrap();
        let mut steps = Vec::new();
        let mut note = |step| {
            steps.push(step);
            ControlFlow::Continue(())
        };
        let path = download(&partial, COMMIT, "m", &reader(&bytes, &count), options(), &mut note).unwrap();
        assert_eq!(fs::read(path).unwrap(), bytes);
        assert_eq!(count.into_inner(), (len - len / 3) as u64);
        assert_eq!(steps.last(), Some(&Step::Fetched(len as u64, len as u64)));
        let again =
            download(&partial, COMMIT, "other", &|_, _, _| unreachable!(), options(), &mut go_on).unwrap();
        assert_eq!(again, repo.file(COMMIT, "other").unwrap());
    }
}

#[test]
fn what_was_fetched_before_an_error_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let repo = repo(directory.path());
    let bytes = content(1_000_000);
    let (count, calls) = (AtomicU64::new(0), AtomicUsize::new(0));
    let read = reader(&bytes, &count);
    let failing = |offset: u64, buf: &mut [u8], told: &mut dyn FnMut(&[u8])| {
        if calls.fetch_add(1, Ordering::Relaxed) == 8 {
            return Err(Error::new(ErrorKind::Io, "connection reset"));
        }
        read(offset, buf, told)
    };
    let start = || repo.partial(&sha256(&bytes), bytes.len() as u64);
    let error = download(&start(), COMMIT, "m", &failing, options(), &mut go_on).unwrap_err();
    assert_eq!(error.message(), "connection reset");
    let kept = start().recorded();
    assert!(kept >= 5 * 65_536 && kept == count.load(Ordering::Relaxed), "{kept}");
    let path = download(&start(), COMMIT, "m", &read, options(), &mut go_on).unwrap();
    assert_eq!(fs::read(path).unwrap(), bytes);
    assert_eq!(count.load(Ordering::Relaxed), 1_000_000);
}

#[test]
fn a_cancelled_download_ends_though_its_reads_are_stalled() {
    let directory = tempfile::tempdir().unwrap();
    let partial = repo(directory.path()).partial(&sha256(b"x"), 1_000_000);
    let woken = AtomicBool::new(false);
    let stalled = |_: u64, _: &mut [u8], _: &mut dyn FnMut(&[u8])| {
        while !woken.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(1));
        }
        Err(Error::new(ErrorKind::Cancelled, "interrupted"))
    };
    let interrupt = || woken.store(true, Ordering::Relaxed);
    let options = Options { interrupt: &interrupt, ..options() };
    let error =
        download(&partial, COMMIT, "m", &stalled, options, &mut |_| ControlFlow::Break(())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert!(error.message().contains("kept"));
}

#[test]
fn what_does_not_fit_its_record_is_fetched_again() {
    let directory = tempfile::tempdir().unwrap();
    let repo = repo(directory.path());
    let bytes = content(3_000_000);
    let start = || repo.partial(&sha256(&bytes), bytes.len() as u64);
    let partial = start();
    partial.write_at(0, &bytes[..2_500_000]).unwrap();
    drop(partial);
    let data = repo.path().join(".weighbridge").join(sha256(&bytes).to_string());
    let mut rotten = fs::read(&data).unwrap();
    rotten[100] ^= 1;
    rotten[2_300_000] ^= 1;
    fs::write(&data, rotten).unwrap();
    let count = AtomicU64::new(0);
    let path = download(&start(), COMMIT, "m", &reader(&bytes, &count), options(), &mut go_on).unwrap();
    assert_eq!(fs::read(path).unwrap(), bytes);
    assert_eq!(count.into_inner(), 500_000 + (1 << 20) + (2_500_000 - (2 << 20)));
}

#[test]
fn wrong_bytes_are_an_error_and_leave_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let repo = repo(directory.path());
    let (bytes, count) = (content(100_000), AtomicU64::new(0));
    let partial = repo.partial(&sha256(b"other"), 100_000);
    let error = download(&partial, COMMIT, "m", &reader(&bytes, &count), options(), &mut go_on).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Checksum);
    assert!(repo.file(COMMIT, "m").is_none());
    assert_eq!(fs::read_dir(repo.path().join(".weighbridge")).unwrap().count(), 0);
}

#[test]
fn a_panic_is_passed_on_and_stops_the_rest() {
    let directory = tempfile::tempdir().unwrap();
    let partial = repo(directory.path()).partial(&sha256(b"x"), 10_000_000);
    let (bytes, count) = (content(10_000_000), AtomicU64::new(0));
    let read = reader(&bytes, &count);
    let panicking = |offset: u64, buf: &mut [u8], told: &mut dyn FnMut(&[u8])| {
        assert_ne!(offset, 1 << 16, "a fault of the reader");
        read(offset, buf, told)
    };
    let run = || drop(download(&partial, COMMIT, "m", &panicking, options(), &mut go_on));
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err());
    assert!(repo(directory.path()).file(COMMIT, "m").is_none());
}

/// As huggingface_hub does: it locks, writes beside, and renames.
#[test]
fn the_download_of_another_program_is_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let repo = repo(directory.path());
    let bytes = content(100_000);
    let etag = sha256(&bytes);
    let lock = directory.path().join(".locks/models--org--name").join(format!("{etag}.lock"));
    fs::create_dir_all(lock.parent().unwrap()).unwrap();
    let held = fs::File::create(&lock).unwrap();
    held.lock().unwrap();
    let partial = repo.partial(&etag, 100_000);
    let mut held = Some(held);
    let mut steps = Vec::new();
    let mut note = |step| {
        steps.push(step);
        if steps.len() == 3 {
            fs::create_dir_all(repo.path().join("blobs")).unwrap();
            fs::write(repo.path().join("blobs").join(etag.to_string()), &bytes).unwrap();
            held = None;
        }
        ControlFlow::Continue(())
    };
    let path = download(&partial, COMMIT, "m", &|_, _, _| unreachable!(), options(), &mut note).unwrap();
    assert_eq!(fs::read(path).unwrap(), bytes);
    assert_eq!(steps[0], Step::Waiting(0, 100_000, None));
    assert!(steps.len() >= 4);
}

#[test]
fn threads_of_one_process_download_it_once() {
    let directory = tempfile::tempdir().unwrap();
    let repo = repo(directory.path());
    let (bytes, count) = (content(1_000_000), AtomicU64::new(0));
    let read = reader(&bytes, &count);
    let slow = |offset: u64, buf: &mut [u8], told: &mut dyn FnMut(&[u8])| {
        thread::sleep(Duration::from_millis(10));
        read(offset, buf, told)
    };
    thread::scope(|scope| {
        for name in ["a", "b", "c", "d"] {
            let (repo, bytes, slow) = (&repo, &bytes, &slow);
            scope.spawn(move || {
                let partial = repo.partial(&sha256(bytes), 1_000_000);
                let path = download(&partial, COMMIT, name, slow, options(), &mut go_on).unwrap();
                assert_eq!(fs::read(path).unwrap(), *bytes);
            });
        }
    });
    assert_eq!(count.load(Ordering::Relaxed), 1_000_000);
    assert_eq!(fs::read_dir(repo.path().join("blobs")).unwrap().count(), 1);
}

/// A load of another process that reads parts of the file, and stays open.
#[test]
fn who_holds_on_to_a_file_without_going_on_is_not_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let repo = repo(directory.path());
    let (bytes, count) = (content(1_000_000), AtomicU64::new(0));
    let etag = sha256(&bytes);
    let partial = repo.partial(&etag, 1_000_000);
    partial.write_at(131_072, &bytes[131_072..655_360]).unwrap();
    drop(partial);
    let own = repo.path().join(".weighbridge");
    let journal =
        fs::File::options().read(true).write(true).open(own.join(format!("{etag}.journal"))).unwrap();
    journal.lock().unwrap();
    let partial = repo.partial(&etag, 1_000_000);
    let mut waited = 0;
    let mut note = |step| {
        waited += u32::from(step == Step::Waiting(524_288, 1_000_000, Some(std::process::id())));
        ControlFlow::Continue(())
    };
    let path = download(&partial, COMMIT, "m", &reader(&bytes, &count), options(), &mut note).unwrap();
    assert_eq!(fs::read(path).unwrap(), bytes);
    assert!(waited > 1, "it was given time");
    assert_eq!(count.into_inner(), 1_000_000 - 524_288, "what the other has was not fetched again");
    assert_eq!(fs::read_dir(own).unwrap().count(), 2, "the other's files are its own");
    assert!(partial.is_blob());
}

#[test]
#[cfg(unix)]
fn what_another_user_began_is_used_and_left_alone() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let repo = repo(directory.path());
    let (bytes, count) = (content(500_000), AtomicU64::new(0));
    let etag = sha256(&bytes);
    let partial = repo.partial(&etag, 500_000);
    partial.write_at(0, &bytes[..300_000]).unwrap();
    drop(partial);
    // Whoever runs the tests as root may write them even so, and simply goes on.
    for entry in fs::read_dir(repo.path().join(".weighbridge")).unwrap() {
        fs::set_permissions(entry.unwrap().path(), fs::Permissions::from_mode(0o444)).unwrap();
    }
    let partial = repo.partial(&etag, 500_000);
    let path = download(&partial, COMMIT, "m", &reader(&bytes, &count), options(), &mut go_on).unwrap();
    assert_eq!(fs::read(path).unwrap(), bytes);
    assert_eq!(count.into_inner(), 200_000);
}
