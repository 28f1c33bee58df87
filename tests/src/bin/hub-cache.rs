//! Drives the cache of remote files, for tests that kill it and for the oracle that holds it against `huggingface_hub`:
//!
//! ```text
//! hub-cache fill CACHE KIND REPO REVISION COMMIT DIRECTORY   the files of a directory become those of a commit
//! hub-cache show CACHE KIND REPO REVISION NAME...            what is there of it, as JSON
//! hub-cache fetch CACHE SIZE SECONDS                         downloads a made-up file, in about so many seconds
//! hub-cache full CACHE SIZE                                  fills a disk that is too small, and goes on when it is not
//! hub-cache list|verify|prune CACHE                          prune: what no ref names
//! hub-cache speed CACHE SIZE                                 figures
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sha1::{Digest as _, Sha1};
use sha2::Sha256;
use weighbridge_remote::cache::{Cache, Digest, Prune, Repo, RepoKind, Tree, TreeEntry};
use weighbridge_remote::download::{Options, Step, download};
use weighbridge_remote::{Error, ErrorKind, Result};
use weighbridge_tests::made_up;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match *args {
        ["fill", cache, kind, repo, revision, commit, directory] => {
            fill(&repository(cache, kind, repo), revision, commit, Path::new(directory))
        }
        ["show", cache, kind, repo, revision, ref names @ ..] => {
            show(&repository(cache, kind, repo), revision, names)
        }
        ["fetch", cache, size, seconds] => {
            fetch(cache, size.parse().unwrap_or(0), seconds.parse().unwrap_or(0.0))
        }
        ["full", cache, size] => full(cache, size.parse().unwrap_or(0)),
        ["list", cache] => list(cache),
        ["verify", cache] => verify(cache),
        ["prune", cache] => prune(cache),
        ["speed", cache, size] => speed(cache, size.parse().unwrap_or(0)),
        _ => panic!("hub-cache fill|show|fetch|full|list|verify|prune|speed ..."),
    };
    if let Err(error) = done {
        eprintln!("{error}");
        std::process::exit(1);
    }
}

fn repository(cache: &str, kind: &str, id: &str) -> Repo {
    let kind = if kind == "dataset" { RepoKind::Dataset } else { RepoKind::Model };
    Cache::at(cache).repo(kind, id).unwrap_or_else(|error| panic!("{error}"))
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.display().to_string();
    move |error| Error::new(ErrorKind::Io, format!("{path}: {error}"))
}

fn go_on(_: Step) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn git(bytes: &[u8]) -> Digest {
    let mut hasher = Sha1::new_with_prefix(format!("blob {}\0", bytes.len()));
    hasher.update(bytes);
    Digest::Git(hasher.finalize().into())
}

fn files(directory: &Path, prefix: &str, found: &mut BTreeMap<String, Vec<u8>>) -> Result<()> {
    for entry in fs::read_dir(directory).map_err(io(directory))?.flatten() {
        let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.path().is_dir() {
            files(&entry.path(), &format!("{path}/"), found)?;
        } else {
            found.insert(path, fs::read(entry.path()).map_err(io(&entry.path()))?);
        }
    }
    Ok(())
}

fn fill(repo: &Repo, revision: &str, commit: &str, directory: &Path) -> Result<()> {
    let mut found = BTreeMap::new();
    files(directory, "", &mut found)?;
    let mut tree = Tree::default();
    for (path, bytes) in &found {
        let size = bytes.len() as u64;
        let lfs = path.ends_with(".safetensors").then(|| (format!("{:x}", Sha256::digest(bytes)), size));
        tree.files.insert(path.clone(), TreeEntry { size, blob: git(bytes).to_string(), lfs, xet: None });
    }
    repo.set_tree(commit, &tree)?;
    repo.set_commit(revision, commit)?;
    for (path, bytes) in &found {
        let entry = &tree.files[path];
        let digest = entry.digest().ok_or_else(|| Error::new(ErrorKind::Malformed, "no digest"))?;
        if entry.lfs.is_none() {
            repo.put(commit, path, &digest, bytes)?;
            continue;
        }
        let read = |offset: u64, buf: &mut [u8], _: &mut dyn FnMut(&[u8])| {
            buf.copy_from_slice(&bytes[offset as usize..offset as usize + buf.len()]);
            Ok(())
        };
        let partial = repo.partial(&digest, entry.size);
        download(
            &partial,
            commit,
            path,
            &read,
            Options { piece: 1 << 16, ..Options::default() },
            &mut go_on,
        )?;
    }
    repo.set_absent(commit, "adapter_config.json")
}

fn show(repo: &Repo, revision: &str, names: &[&str]) -> Result<()> {
    let commit = repo.commit(revision);
    let at = commit.clone().unwrap_or_default();
    let mut shown = BTreeMap::new();
    for name in names {
        let file = match repo.file(&at, name) {
            Some(path) => json!(format!("{:x}", Sha256::digest(fs::read(&path).map_err(io(&path))?))),
            None if repo.is_absent(&at, name) => json!("absent"),
            None => Value::Null,
        };
        shown.insert(*name, file);
    }
    let tree = repo.tree(&at).map(|tree| {
        let files = tree.files.iter();
        let shown = files
            .map(|(path, entry)| (path.clone(), json!([entry.size, entry.digest().map(|d| d.to_string())])));
        shown.collect::<BTreeMap<_, _>>()
    });
    println!("{}", json!({ "commit": commit, "files": shown, "tree": tree }));
    Ok(())
}

fn made_up_digest(size: u64) -> Digest {
    let mut hasher = Sha256::new();
    let mut buf = vec![0; 1 << 20];
    let mut at = 0;
    while at < size {
        let len = buf.len().min((size - at) as usize);
        made_up(at, &mut buf[..len]);
        hasher.update(&buf[..len]);
        at += len as u64;
    }
    Digest::Sha256(hasher.finalize().into())
}

fn fetch(cache: &str, size: u64, seconds: f64) -> Result<()> {
    const PIECE: usize = 1 << 16;
    const THREADS: usize = 4;
    let digest = made_up_digest(size);
    let repo = repository(cache, "model", "org/name");
    let received = AtomicU64::new(0);
    let pause = Duration::from_secs_f64(seconds * PIECE as f64 * THREADS as f64 / size as f64);
    let read = |offset: u64, buf: &mut [u8], _: &mut dyn FnMut(&[u8])| {
        std::thread::sleep(pause);
        received.fetch_add(buf.len() as u64, Ordering::Relaxed);
        made_up(offset, buf);
        Ok(())
    };
    println!("ready");
    let options = Options { threads: THREADS, piece: PIECE, ..Options::default() };
    let mut waited = None;
    let mut note = |step| {
        if let Step::Waiting(_, _, who) = step {
            waited = waited.or(who);
        }
        ControlFlow::Continue(())
    };
    let path = download(&repo.partial(&digest, size), COMMIT, "model.bin", &read, options, &mut note)?;
    println!("{}", json!({ "received": received.into_inner(), "path": path, "waited": waited }));
    Ok(())
}

/// Writes as a load does, until the disk is full; reads what is there; makes room, and downloads the rest.
fn full(cache: &str, size: u64) -> Result<()> {
    let digest = made_up_digest(size);
    let repo = repository(cache, "model", "org/name");
    let ballast = Path::new(cache).join("CACHEDIR.TAG");
    fs::write(&ballast, vec![1; size as usize]).map_err(io(&ballast))?;
    let partial = repo.partial(&digest, size);
    let mut buf = vec![0; 100_000];
    let (mut errors, mut refused, mut served) = (Vec::new(), 0, 0);
    for at in (0..size - 100_000).step_by(100_000) {
        made_up(at, &mut buf);
        match partial.write_at(at, &buf) {
            Ok(true) => {}
            Ok(false) => refused += 1,
            Err(error) => errors.push(error.to_string()),
        }
    }
    let mut expected = buf.clone();
    for at in (0..size - 100_000).step_by(100_000) {
        made_up(at, &mut expected);
        if partial.read_at(at, &mut buf) {
            assert!(buf == expected, "wrong bytes at {at}");
            served += 1;
        }
    }
    let read = |offset: u64, buf: &mut [u8], _: &mut dyn FnMut(&[u8])| {
        made_up(offset, buf);
        Ok(())
    };
    let fetch = || {
        let options = Options { piece: 1 << 16, ..Options::default() };
        download(&partial, COMMIT, "model.bin", &read, options, &mut go_on)
    };
    let download = fetch().map_or_else(|error| error.to_string(), |path| path.display().to_string());
    let kept = partial.recorded();
    fs::remove_file(&ballast).map_err(io(&ballast))?;
    let path = fetch()?;
    println!(
        "{}",
        json!({
            "errors": errors, "refused": refused, "served": served, "download": download, "kept": kept, "path": path,
        })
    );
    Ok(())
}

fn list(cache: &str) -> Result<()> {
    let mut repos = Vec::new();
    for info in Cache::at(cache).repos()? {
        let revisions = info.revisions.iter().map(|revision| {
            let files: Vec<_> = revision.files.iter().map(|file| json!([file.path, file.size])).collect();
            json!({ "commit": revision.commit, "refs": revision.refs, "files": files, "size": revision.size })
        });
        let revisions: Vec<_> = revisions.collect();
        repos.push(json!({ "id": info.repo.id(), "kind": format!("{:?}", info.repo.kind()), "revisions": revisions }));
    }
    println!("{}", Value::from(repos));
    Ok(())
}

fn verify(cache: &str) -> Result<()> {
    for fault in Cache::at(cache).verify(None, &mut |_, _| ControlFlow::Continue(()))? {
        println!("{}: {}", fault.path.display(), fault.what);
    }
    Ok(())
}

fn prune(cache: &str) -> Result<()> {
    let pruned = Cache::at(cache).prune(&Prune { unreferenced: true, ..Prune::default() })?;
    println!(
        "{}",
        json!({ "bytes": pruned.bytes, "removed": pruned.removed.len(), "busy": pruned.busy.len() })
    );
    Ok(())
}

fn speed(cache: &str, size: u64) -> Result<()> {
    const PIECE: usize = 8 << 20;
    let mut data = vec![0; size as usize];
    made_up(0, &mut data);
    let rate = |start: Instant| size as f64 / 1e6 / start.elapsed().as_secs_f64();
    let start = Instant::now();
    let digest = Digest::Sha256(Sha256::digest(&data).into());
    println!("sha256 of memory       {:6.0} MB/s", rate(start));

    let plain = Path::new(cache).join("plain");
    let start = Instant::now();
    let file = fs::File::create(&plain).map_err(io(&plain))?;
    for (piece, at) in data.chunks(PIECE).zip((0_u64..).step_by(PIECE)) {
        std::os::unix::fs::FileExt::write_all_at(&file, piece, at).map_err(io(&plain))?;
    }
    println!("plain writes           {:6.0} MB/s", rate(start));
    drop(file);
    fs::remove_file(&plain).map_err(io(&plain))?;

    let repo = repository(cache, "model", "org/name");
    let partial = repo.partial(&digest, size);
    let start = Instant::now();
    for (piece, at) in data.chunks(PIECE).zip((0_u64..).step_by(PIECE)) {
        partial.write_at(at, piece)?;
    }
    println!("write_at               {:6.0} MB/s", rate(start));
    let mut buf = vec![0; PIECE];
    let mut read = |partial: &weighbridge_remote::cache::Partial| {
        let start = Instant::now();
        for at in (0..size).step_by(PIECE) {
            let len = PIECE.min((size - at) as usize);
            assert!(partial.read_at(at, &mut buf[..len]));
        }
        rate(start)
    };
    println!("read_at                {:6.0} MB/s", read(&partial));
    drop(partial);
    let start = Instant::now();
    let partial = repo.partial(&digest, size);
    println!("opened again           {:6.2} ms", start.elapsed().as_secs_f64() * 1e3);
    println!("read_at, first time    {:6.0} MB/s", read(&partial));
    let start = Instant::now();
    partial.hash_ahead(&|| false);
    println!("hash_ahead             {:6.0} MB/s", rate(start));
    let start = Instant::now();
    partial.finish(COMMIT, "model.bin")?;
    println!("finish                 {:6.0} ms", start.elapsed().as_secs_f64() * 1e3);
    drop(partial);
    fs::remove_dir_all(repo.path()).map_err(io(&repo.path()))?;

    let read = |offset: u64, buf: &mut [u8], _: &mut dyn FnMut(&[u8])| {
        buf.copy_from_slice(&data[offset as usize..offset as usize + buf.len()]);
        Ok(())
    };
    let start = Instant::now();
    download(&repo.partial(&digest, size), COMMIT, "model.bin", &read, Options::default(), &mut go_on)?;
    println!("download, from memory  {:6.0} MB/s", rate(start));
    fs::remove_dir_all(repo.path()).map_err(io(&repo.path()))
}
