use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use sha1::Sha1;
use sha2::{Digest as _, Sha256};

use super::*;
use crate::error::ErrorKind;

const FIRST: &str = "1111111111111111111111111111111111111111";
const SECOND: &str = "2222222222222222222222222222222222222222";

fn git(bytes: &[u8]) -> Digest {
    let mut hasher = Sha1::new_with_prefix(format!("blob {}\0", bytes.len()));
    hasher.update(bytes);
    Digest::Git(hasher.finalize().into())
}

fn sha256(bytes: &[u8]) -> Digest {
    Digest::Sha256(Sha256::digest(bytes).into())
}

fn repo(cache: &Cache) -> Repo {
    cache.repo(RepoKind::Model, "org/name").unwrap()
}

fn whole(_: u64, _: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Two commits that share a file, and of which each has one of its own.
fn filled(cache: &Cache) -> Repo {
    let repo = repo(cache);
    for (commit, own) in [(FIRST, b"first"), (SECOND, b"secnd")] {
        repo.put(commit, "config.json", &git(b"{}"), b"{}").unwrap();
        repo.put(commit, "onnx/model.bin", &sha256(own), own).unwrap();
    }
    repo.set_commit("main", SECOND).unwrap();
    repo
}

#[test]
fn refs_are_those_of_huggingface_hub() {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::at(directory.path().join("hub"));
    let repo = repo(&cache);
    assert_eq!(repo.commit("main"), None);
    assert_eq!(repo.commit(FIRST).as_deref(), Some(FIRST));
    repo.set_commit("main", FIRST).unwrap();
    repo.set_commit("refs/pr/1", SECOND).unwrap();
    let root = directory.path().join("hub/models--org--name");
    assert_eq!(fs::read_to_string(root.join("refs/main")).unwrap(), FIRST);
    assert_eq!(fs::read_to_string(root.join("refs/refs/pr/1")).unwrap(), SECOND);
    assert!(root.join("snapshots").join(SECOND).is_dir());
    assert_eq!(repo.commit("refs/pr/1").as_deref(), Some(SECOND));
    // Other writers' line ends are forgiven; what is no commit is not believed.
    fs::write(root.join("refs/main"), format!("{SECOND}\n")).unwrap();
    assert_eq!(repo.commit("main").as_deref(), Some(SECOND));
    fs::write(root.join("refs/main"), "../../etc").unwrap();
    assert_eq!(repo.commit("main"), None);
    for (revision, commit) in
        [("../x", FIRST), ("main", "main"), ("main", "../../../x"), ("", FIRST), ("/tmp/x", FIRST)]
    {
        assert_eq!(repo.set_commit(revision, commit).unwrap_err().kind(), ErrorKind::Malformed);
        assert_eq!(repo.commit(revision).filter(|_| commit == FIRST), None);
    }
    assert!(
        fs::read_to_string(directory.path().join("hub/CACHEDIR.TAG"))
            .unwrap()
            .starts_with("Signature: 8a477f597d28d172")
    );
    assert!(cache.repo(RepoKind::Model, "../x").is_err());
    assert!(cache.repo(RepoKind::Dataset, "gpt2").unwrap().path().ends_with("datasets--gpt2"));
}

#[test]
fn a_small_file_is_checked_and_linked() {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::at(directory.path());
    let repo = repo(&cache);
    let path = repo.put(FIRST, "a/b/c.json", &git(b"{}"), b"{}").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"{}");
    assert_eq!(fs::read_link(&path).unwrap(), Path::new("../../../../blobs").join(git(b"{}").to_string()));
    assert_eq!(repo.file(FIRST, "a/b/c.json").unwrap(), path);
    assert_eq!(repo.put(FIRST, "x", &git(b"{}"), b"[]").unwrap_err().kind(), ErrorKind::Checksum);
    for bad in ["../x", "/x", "a\\b", "nul", "a/../../../x"] {
        assert_eq!(repo.put(FIRST, bad, &git(b"{}"), b"{}").unwrap_err().kind(), ErrorKind::Malformed);
        assert!(repo.file(FIRST, bad).is_none() && repo.set_absent(FIRST, bad).is_err());
    }
    assert!(repo.file(FIRST, "a/b").is_none() && repo.file(SECOND, "a/b/c.json").is_none());
    // By its checksum, it is a file of other commits, too.
    assert_eq!(repo.adopt(SECOND, "d.json", &git(b"{}"), 3).unwrap(), None);
    let adopted = repo.adopt(SECOND, "d.json", &git(b"{}"), 2).unwrap();
    assert_eq!(adopted, repo.file(SECOND, "d.json"));
    fs::remove_file(repo.path().join("blobs").join(git(b"{}").to_string())).unwrap();
    assert!(repo.file(FIRST, "a/b/c.json").is_none(), "a link to nothing is no file");

    assert!(!repo.is_absent(FIRST, "a/model.bin"));
    repo.set_absent(FIRST, "a/model.bin").unwrap();
    assert!(repo.is_absent(FIRST, "a/model.bin") && !repo.is_absent(SECOND, "a/model.bin"));
    assert_eq!(fs::metadata(repo.path().join(".no_exist").join(FIRST).join("a/model.bin")).unwrap().len(), 0);
    assert_eq!(fs::read_dir(repo.path().join(".weighbridge")).unwrap().count(), 0);
}

#[test]
fn without_links_the_file_itself_is_in_the_snapshot() {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::at(directory.path()).without_links();
    let repo = repo(&cache);
    let path = repo.put(FIRST, "a", &git(b"{}"), b"{}").unwrap();
    assert!(fs::symlink_metadata(&path).unwrap().is_file());
    let partial = repo.partial(&sha256(b"weights"), 7);
    partial.write_at(0, b"weights").unwrap();
    let path = partial.finish(FIRST, "w").unwrap();
    assert!(fs::symlink_metadata(&path).unwrap().is_file());
    assert_eq!((fs::read(&path).unwrap(), partial.finish(FIRST, "w").unwrap()), (b"weights".to_vec(), path));
    assert_eq!(fs::read_dir(repo.path().join("blobs")).unwrap().count(), 0);
    let info = &cache.repos().unwrap()[0];
    assert_eq!(info.revisions[0].files.len(), 2);
    assert!(info.size > 0 && info.revisions[0].size == 9);
    // A blob of others is copied.
    fs::write(repo.blob_path(&git(b"{}")), b"{}").unwrap();
    let copy = repo.adopt(SECOND, "b", &git(b"{}"), 2).unwrap().unwrap();
    assert!(fs::symlink_metadata(copy).unwrap().is_file() && repo.blob(&git(b"{}"), 2).is_some());
}

#[test]
fn lists_of_files_come_back() {
    let directory = tempfile::tempdir().unwrap();
    let repo = repo(&Cache::at(directory.path()));
    let sha = sha256(b"x").to_string();
    let small = TreeEntry { size: 2, blob: git(b"{}").to_string(), lfs: None, xet: None };
    let large =
        TreeEntry { size: 1, blob: "1".repeat(40), lfs: Some((sha.clone(), 1)), xet: Some("a".repeat(64)) };
    assert_eq!((small.digest(), large.digest()), (Some(git(b"{}")), Some(sha256(b"x"))));
    let files = [("a".to_owned(), small), ("b/c".to_owned(), large)];
    let tree = Tree { files: files.into_iter().collect() };
    repo.set_tree(FIRST, &tree).unwrap();
    assert_eq!(repo.tree(FIRST).unwrap(), tree);
    assert_eq!(repo.tree(SECOND), None);
    let path = repo.path().join("trees").join(format!("{FIRST}.json"));
    for bad in [
        "",
        "[]",
        "{\"format_version\":2,\"files\":{}}",
        "{\"format_version\":1,\"files\":{\"a\":{\"size\":-1}}}",
    ] {
        fs::write(&path, bad).unwrap();
        assert_eq!(repo.tree(FIRST), None);
    }
}

#[test]
fn what_is_in_it_is_listed() {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::at(directory.path());
    assert!(Cache::at(directory.path().join("none")).repos().unwrap().is_empty());
    let repo = filled(&cache);
    let partial = repo.partial(&sha256(b"big"), 1 << 30);
    partial.write_at(5, &[1; 5000]).unwrap();
    cache.repo(RepoKind::Dataset, "d").unwrap().set_commit("main", FIRST).unwrap();
    fs::create_dir(directory.path().join("models--a--b--c")).unwrap();
    let repos = cache.repos().unwrap();
    let names: Vec<_> = repos.iter().map(|info| (info.repo.kind(), info.repo.id())).collect();
    assert_eq!(names, [(RepoKind::Model, "org/name"), (RepoKind::Dataset, "d")]);
    let info = &repos[0];
    assert_eq!(
        info.revisions.iter().map(|r| (&*r.commit, r.refs.len(), r.size)).collect::<Vec<_>>(),
        [(FIRST, 0, 7), (SECOND, 1, 7)]
    );
    assert_eq!(info.revisions[1].refs, ["main"]);
    assert_eq!(info.revisions[0].files[1].path, "onnx/model.bin");
    assert_eq!(info.partials.len(), 1);
    assert!(info.partials[0].size < 1 << 20 && info.size >= info.partials[0].size, "sparse: {info:?}");
    assert!(info.used.is_some());
}

#[test]
fn faults_are_found() {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::at(directory.path());
    let repo = filled(&cache);
    let partial = repo.partial(&sha256(b"big"), 10_000_000);
    partial.write_at(0, &[1; 3_000_000]).unwrap();
    assert_eq!(cache.verify(None, &mut whole).unwrap(), []);
    let rotten = repo.blob_path(&sha256(b"first"));
    fs::write(&rotten, b"rotten").unwrap();
    fs::remove_file(repo.blob_path(&sha256(b"secnd"))).unwrap();
    let data = repo.own().join(sha256(b"big").to_string());
    let file = fs::File::options().write(true).open(&data).unwrap();
    std::os::unix::fs::FileExt::write_at(&file, b"x", 2_000_000).unwrap();
    let mut tree = Tree::default();
    let other = TreeEntry { size: 2, blob: git(b"[]").to_string(), lfs: None, xet: None };
    tree.files.insert("config.json".to_owned(), other);
    repo.set_tree(FIRST, &tree).unwrap();
    let mut told = (0, 0);
    let mut note = |done, total| {
        told = (done, total);
        ControlFlow::Continue(())
    };
    let faults = cache.verify(Some(&repo), &mut note).unwrap();
    let found: Vec<_> =
        faults.iter().map(|fault| (fault.path.as_path(), fault.what.split(':').next().unwrap())).collect();
    assert_eq!(
        found,
        [
            (&*data, "1 of its 3 records do not fit"),
            (&*rotten, "its bytes are not those that it is named by"),
            (&*repo.snapshot(FIRST).join("config.json"), "it is another file than the commit has"),
            (&*repo.snapshot(SECOND).join("onnx/model.bin"), "its blob is missing"),
        ]
    );
    assert!(told.0 > 3_000_000 && told.0 == told.1, "{told:?}");
    let cancelled = cache.verify(None, &mut |_, _| ControlFlow::Break(())).unwrap_err();
    assert_eq!(cancelled.kind(), ErrorKind::Cancelled);
}

#[test]
fn what_no_ref_names_is_taken_out() {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::at(directory.path());
    let repo = filled(&cache);
    repo.set_absent(FIRST, "x").unwrap();
    repo.set_tree(FIRST, &Tree::default()).unwrap();
    let blobs = || fs::read_dir(repo.path().join("blobs")).unwrap().count();
    let mut what = Prune { unreferenced: true, dry_run: true, ..Prune::default() };
    let dry = cache.prune(&what).unwrap();
    assert_eq!(blobs(), 3);
    what.dry_run = false;
    // Not while a load has it open.
    let hold = repo.hold(FIRST);
    assert_eq!(cache.prune(&what).unwrap().busy, [repo.snapshot(FIRST)]);
    assert!(repo.file(FIRST, "config.json").is_some());
    drop(hold);
    let pruned = cache.prune(&what).unwrap();
    assert_eq!((pruned.bytes, &pruned.removed), (dry.bytes, &dry.removed));
    assert_eq!(pruned.removed.len(), 2);
    assert!(pruned.bytes > 0 && pruned.busy.is_empty());
    assert_eq!(blobs(), 2);
    assert!(repo.file(SECOND, "config.json").is_some() && repo.file(SECOND, "onnx/model.bin").is_some());
    assert!(!repo.snapshot(FIRST).exists() && !repo.is_absent(FIRST, "x") && repo.tree(FIRST).is_none());
    assert!(cache.prune(&what).unwrap().removed.is_empty());
}

#[test]
fn revisions_and_repositories_are_taken_out_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::at(directory.path());
    let repo = filled(&cache);
    let named = |revision: &str| Prune {
        repo: Some(repo.clone()),
        revisions: vec![revision.to_owned()],
        ..Prune::default()
    };
    let error = cache.prune(&named("v2")).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("org/name: the cache has not one revision \"v2\"; it has {FIRST}, main, {SECOND}")
    );
    assert!(cache.prune(&named("222222")).is_err(), "six digits are too few");
    assert!(cache.prune(&Prune { whole: true, ..Prune::default() }).is_err());
    cache.prune(&named("main")).unwrap();
    assert_eq!(repo.commit("main"), None);
    assert!(repo.file(FIRST, "config.json").is_some() && repo.file(SECOND, "config.json").is_none());
    // What another process writes stays, and so does the rest.
    let partial = repo.partial(&sha256(b"big"), 1 << 20);
    partial.write_at(5, &[1; 5000]).unwrap();
    let all = Prune { repo: Some(repo.clone()), whole: true, ..Prune::default() };
    assert_eq!(cache.prune(&all).unwrap().busy.len(), 1);
    assert!(repo.path().exists());
    drop(partial);
    cache.prune(&all).unwrap();
    assert!(!repo.path().exists() && cache.repos().unwrap().is_empty());
}

#[test]
fn old_leavings_are_taken_out() {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::at(directory.path());
    let repo = filled(&cache);
    let partial = repo.partial(&sha256(b"big"), 1 << 20);
    partial.write_at(5, &[1; 5000]).unwrap();
    let foreign = repo.path().join("blobs").join(format!("{}.0a1b2c3d.incomplete", sha256(b"big")));
    fs::write(&foreign, "x").unwrap();
    let temporary = repo.own().join("1-2-3.tmp");
    fs::write(&temporary, "x").unwrap();
    let past = std::time::SystemTime::now() - Duration::from_secs(3 * 86_400);
    let age = |path: &Path| fs::File::options().write(true).open(path).unwrap().set_modified(past).unwrap();
    let data = repo.own().join(sha256(b"big").to_string());
    [&foreign, &temporary, &data, &repo.own().join(format!("{}.journal", sha256(b"big")))]
        .into_iter()
        .for_each(|path| age(path));
    let older =
        |days: u64| Prune { partials_older: Some(Duration::from_secs(days * 86_400)), ..Prune::default() };
    assert_eq!(cache.prune(&older(4)).unwrap().removed.len(), 1, "the temporary file");
    let pruned = cache.prune(&older(2)).unwrap();
    assert_eq!((pruned.removed.len(), pruned.busy), (1, vec![data.clone()]));
    drop(partial);
    assert!(!foreign.exists() && data.exists());
    cache.prune(&older(2)).unwrap();
    assert!(!data.exists() && fs::read_dir(repo.own()).unwrap().all(|entry| entry.unwrap().path().is_dir()));
    assert!(repo.file(SECOND, "config.json").is_some());
}

/// The store of huggingface_hub for several repositories, as it makes it.
#[test]
fn shared_blobs_are_followed_and_go_with_the_last_link() {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::at(directory.path());
    let hash = "ab".repeat(32);
    let store = directory.path().join("blobs/ab");
    let stored = store.join(&hash);
    fs::create_dir_all(&store).unwrap();
    fs::write(directory.path().join("blobs/.huggingface-shared-blobs"), "1\n").unwrap();
    fs::write(&stored, b"weights").unwrap();
    let etag = sha256(b"weights");
    let repos = ["org/a", "org/b"].map(|id| cache.repo(RepoKind::Model, id).unwrap());
    let mut list = String::new();
    for repo in &repos {
        fs::create_dir_all(repo.path().join("blobs")).unwrap();
        symlink(format!("../../blobs/ab/{hash}"), repo.blob_path(&etag)).unwrap();
        list += &format!("{}/blobs/{etag}\n", repo.path().file_name().unwrap().to_str().unwrap());
        let partial = repo.partial(&etag, 7);
        assert!(partial.is_blob() && partial.write_at(0, b"WEIGHTS").unwrap());
        let path = partial.finish(FIRST, "w").unwrap();
        assert_eq!(fs::read(path).unwrap(), b"weights");
    }
    fs::write(store.join(format!("{hash}.refs")), list).unwrap();
    assert_eq!(cache.repos().unwrap().len(), 2);
    assert_eq!(cache.verify(None, &mut whole).unwrap(), []);
    let prune = |repo: &Repo| {
        cache.prune(&Prune { repo: Some(repo.clone()), whole: true, ..Prune::default() }).unwrap()
    };
    assert_eq!(prune(&repos[0]).bytes, 0);
    assert!(stored.exists());
    assert!(prune(&repos[1]).bytes > 0);
    assert!(!stored.exists());
}

#[test]
fn a_cache_that_cannot_be_written_serves_what_it_has() {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::at(directory.path());
    let repo = filled(&cache);
    let partial = repo.partial(&sha256(b"big"), 1 << 20);
    partial.write_at(5, &[1; 5000]).unwrap();
    drop(partial);
    let set = |mode: u32| {
        let mut left = vec![directory.path().to_owned()];
        while let Some(path) = left.pop() {
            if fs::symlink_metadata(&path).unwrap().is_symlink() {
                continue;
            }
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            if path.is_dir() {
                left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            }
        }
    };
    set(0o555);
    let mut buf = [0; 5000];
    let partial = repo.partial(&sha256(b"big"), 1 << 20);
    assert!(partial.read_at(5, &mut buf) && buf == [1; 5000]);
    assert!(repo.file(FIRST, "config.json").is_some());
    // Permissions do not hold root back.
    if fs::write(directory.path().join("x"), "").is_err() {
        assert!(!partial.is_writer());
        assert_eq!(partial.write_at(0, b"x").unwrap_err().kind(), ErrorKind::Denied);
        assert!(!partial.write_at(0, b"x").unwrap(), "once is enough");
        assert_eq!(repo.adopt(FIRST, "c", &git(b"{}"), 2).unwrap(), repo.blob(&git(b"{}"), 2));
        assert_eq!(repo.put(FIRST, "d", &git(b"[]"), b"[]").unwrap_err().kind(), ErrorKind::Denied);
    }
    drop(partial);
    set(0o755);
}
