use std::fs;
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::cache::journal::HEADER;
use crate::cache::{Cache, RepoKind};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn content(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}

fn sha256(bytes: &[u8]) -> Digest {
    let zero = Digest::Sha256([0; 32]);
    let mut hasher = Hasher::of(&zero, bytes.len() as u64);
    hasher.update(bytes);
    hasher.finish()
}

fn repo(root: &Path) -> Repo {
    Cache::at(root).repo(RepoKind::Model, "org/name").unwrap()
}

/// As another process would open it: without what this one has open.
fn elsewhere(partial: &Partial) -> Partial {
    let Inner { repo, etag, size, data_path, journal_path, format, .. } = &*partial.0;
    let hashed = Mutex::new(Hashed { hasher: Hasher::of(etag, *size), at: 0 });
    let inner = Inner {
        repo: repo.clone(),
        etag: *etag,
        size: *size,
        data_path: data_path.clone(),
        journal_path: journal_path.clone(),
        format: *format,
        state: Mutex::default(),
        hashed,
    };
    inner.look(&mut inner.current());
    Partial(Arc::new(inner))
}

fn read(partial: &Partial, range: Range<usize>) -> Option<Vec<u8>> {
    let mut buf = vec![0; range.len()];
    partial.read_at(range.start as u64, &mut buf).then_some(buf)
}

#[test]
fn what_was_written_is_read_and_becomes_a_blob() {
    let directory = tempfile::tempdir().unwrap();
    let repo = repo(directory.path());
    let bytes = content(3_000_000);
    let etag = sha256(&bytes);
    let partial = repo.partial(&etag, bytes.len() as u64);
    assert!(partial.is_writer() && !partial.is_complete());
    assert!(read(&partial, 0..1).is_none());
    assert!(partial.write_at(1_000_000, &bytes[1_000_000..2_500_000]).unwrap());
    assert_eq!(read(&partial, 1_000_001..2_400_000).unwrap(), bytes[1_000_001..2_400_000]);
    assert!(read(&partial, 999_999..1_000_001).is_none() && read(&partial, 2_499_999..2_500_001).is_none());
    assert_eq!(partial.missing(0..u64::MAX), [0..1_000_000, 2_500_000..3_000_000]);
    assert_eq!(partial.finish(COMMIT, "a/b").unwrap_err().kind(), ErrorKind::Io);
    assert!(!repo.blob_path(&etag).exists());

    // The overlap is not written again, wrong as it is.
    let mut wrong = bytes.clone();
    wrong[1_000_000..2_500_000].fill(0);
    assert!(partial.write_at(0, &wrong).unwrap());
    assert!(partial.is_complete());
    let path = partial.finish(COMMIT, "a/b").unwrap();
    assert_eq!(fs::read(&path).unwrap(), bytes);
    assert_eq!(fs::read_link(&path).unwrap(), Path::new("../../../blobs").join(etag.to_string()));
    assert_eq!(read(&partial, 5..10).unwrap(), bytes[5..10]);
    assert_eq!(partial.finish(COMMIT, "c").unwrap(), repo.file(COMMIT, "c").unwrap());
    assert_eq!(fs::read_dir(repo.own()).unwrap().count(), 0);
    // From now on it is there at once.
    assert!(repo.partial(&etag, bytes.len() as u64).is_blob());
    for (offset, len) in [(u64::MAX, 2), (3_000_000, 1), (0, 3_000_001)] {
        assert!(!partial.read_at(offset, &mut vec![0; len]));
        assert_eq!(partial.write_at(offset, &vec![0; len]).unwrap_err().kind(), ErrorKind::Malformed);
    }
}

#[test]
fn an_empty_file_and_a_blob_of_git() {
    let directory = tempfile::tempdir().unwrap();
    let repo = repo(directory.path());
    let empty = repo.partial(&Digest::parse("e69de29bb2d1d6434b8b29ae775ad8c2e48c5391").unwrap(), 0);
    assert!(empty.is_complete() && empty.read_at(0, &mut []));
    assert_eq!(fs::read(empty.finish(COMMIT, "empty").unwrap()).unwrap(), b"");
    let git = repo.partial(&Digest::parse("b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0").unwrap(), 5);
    assert!(git.write_at(0, b"hello").unwrap());
    assert_eq!(fs::read(git.finish(COMMIT, "git").unwrap()).unwrap(), b"hello");
}

#[test]
fn wrong_bytes_get_no_name_and_are_served_no_more() {
    let directory = tempfile::tempdir().unwrap();
    let repo = repo(directory.path());
    let partial = repo.partial(&sha256(b"right"), 5);
    assert!(partial.write_at(0, b"wrong").unwrap());
    let error = partial.finish(COMMIT, "m.safetensors").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Checksum);
    assert!(error.to_string().starts_with("m.safetensors: its 5 bytes do not have the checksum"), "{error}");
    assert!(read(&partial, 0..5).is_none() && !partial.write_at(0, b"right").unwrap());
    assert!(repo.file(COMMIT, "m.safetensors").is_none());
    // And the next try is a new one, while the last is still held.
    let again = repo.partial(&sha256(b"right"), 5);
    assert!(again.write_at(0, b"right").unwrap());
    assert_eq!(fs::read(again.finish(COMMIT, "m.safetensors").unwrap()).unwrap(), b"right");
}

#[test]
fn one_writes_and_others_read_and_the_next_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let repo = repo(directory.path());
    let bytes = content(2_000_000);
    let first = repo.partial(&sha256(&bytes), bytes.len() as u64);
    let second = elsewhere(&first);
    assert!(repo.partial(&sha256(&bytes), bytes.len() as u64).is_writer(), "this process has it open");
    assert!(!second.is_writer() && !second.write_at(0, &bytes).unwrap());
    assert_eq!(second.writer(), Some(std::process::id()));
    assert_eq!(second.finish(COMMIT, "m").unwrap_err().kind(), ErrorKind::Busy);
    first.write_at(0, &bytes[..1_200_000]).unwrap();
    std::thread::sleep(LOOK);
    assert_eq!(read(&second, 0..1_200_000).unwrap(), bytes[..1_200_000]);
    assert!(read(&second, 0..1_200_001).is_none());
    drop(first);
    std::thread::sleep(LOOK);
    assert!(second.is_writer());
    assert_eq!(second.missing(0..2_000_000), [1_200_000..2_000_000]);
    let third = elsewhere(&second);
    second.write_at(0, &bytes).unwrap();
    second.finish(COMMIT, "m").unwrap();
    std::thread::sleep(LOOK);
    assert!(third.is_blob());
    assert_eq!(read(&third, 0..2_000_000).unwrap(), bytes);
    assert_eq!(third.finish(COMMIT, "m").unwrap(), repo.file(COMMIT, "m").unwrap());
}

#[test]
fn what_rots_on_the_disk_is_fetched_again() {
    let directory = tempfile::tempdir().unwrap();
    let repo = repo(directory.path());
    let bytes = content(3 << 20);
    let first = repo.partial(&sha256(&bytes), bytes.len() as u64);
    first.write_at(0, &bytes).unwrap();
    let data_path = first.0.data_path.clone();
    drop(first);
    let mut rotten = fs::read(&data_path).unwrap();
    rotten[(1 << 20) + 77] ^= 4;
    fs::write(&data_path, rotten).unwrap();
    let second = repo.partial(&sha256(&bytes), bytes.len() as u64);
    assert!(second.is_complete());
    // Its block only, and by whatever part of it is read.
    assert!(read(&second, 0..1 << 20).is_some() && read(&second, (1 << 20) + 500..(1 << 20) + 501).is_none());
    assert_eq!(second.missing(0..bytes.len() as u64), [1 << 20..2 << 20]);
    assert_eq!(second.hash_ahead(&|| false), 1 << 20);
    second.write_at(0, &bytes).unwrap();
    assert_eq!(fs::read(second.finish(COMMIT, "m").unwrap()).unwrap(), bytes);
}

#[test]
fn threads_write_the_same_ranges_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let repo = repo(directory.path());
    let bytes = content(5_000_000);
    let partial = repo.partial(&sha256(&bytes), bytes.len() as u64);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (partial, bytes) = (&partial, &bytes);
            scope.spawn(move || {
                for step in 0..100 {
                    let start = (step * 50_000 + thread * 7_001).min(4_999_999);
                    let end = (start + 120_000).min(bytes.len());
                    assert!(partial.write_at(start as u64, &bytes[start..end]).unwrap());
                    if let Some(found) = read(partial, start..end) {
                        assert_eq!(found, bytes[start..end]);
                    }
                }
            });
        }
    });
    assert_eq!(fs::read(partial.finish(COMMIT, "m").unwrap()).unwrap(), bytes);
    // Each byte was recorded once, or its journal would have grown without end.
    assert_eq!(partial.recorded(), 5_000_000);
}

#[test]
fn a_link_in_place_of_the_file_is_not_followed() {
    let directory = tempfile::tempdir().unwrap();
    let repo = repo(directory.path());
    let victim = directory.path().join("victim");
    fs::write(&victim, "12345").unwrap();
    fs::create_dir_all(repo.own()).unwrap();
    let etag = sha256(b"right");
    std::os::unix::fs::symlink(&victim, repo.own().join(etag.to_string())).unwrap();
    let partial = repo.partial(&etag, 5);
    assert!(partial.write_at(0, b"right").unwrap());
    assert_eq!(fs::read(partial.finish(COMMIT, "m").unwrap()).unwrap(), b"right");
    assert_eq!(fs::read(&victim).unwrap(), b"12345");
    std::os::unix::fs::symlink(&victim, repo.own().join(format!("{}.journal", sha256(b"other")))).unwrap();
    let partial = repo.partial(&sha256(b"other"), 5);
    assert!(partial.write_at(0, b"other").is_err() && !partial.write_at(0, b"other").unwrap());
    assert_eq!(fs::read(&victim).unwrap(), b"12345");
}

/// What may happen to a file on a disk, or be done to it.
#[derive(Clone, Debug)]
enum Damage {
    Flip(usize),
    Cut(usize),
    Append(Vec<u8>),
    Overwrite(usize, Vec<u8>),
    CopyRecord(usize, usize),
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        any::<usize>().prop_map(Damage::Flip),
        any::<usize>().prop_map(Damage::Cut),
        prop::collection::vec(any::<u8>(), 1..100).prop_map(Damage::Append),
        (any::<usize>(), prop::collection::vec(any::<u8>(), 1..100))
            .prop_map(|(at, new)| Damage::Overwrite(at, new)),
        (any::<usize>(), any::<usize>()).prop_map(|(from, to)| Damage::CopyRecord(from, to)),
    ]
}

fn harm(path: &Path, damage: &Damage) {
    let mut bytes = fs::read(path).unwrap();
    let len = bytes.len().max(1);
    let (header, record) = (HEADER as usize, RECORD as usize);
    match damage {
        Damage::Flip(at) => {
            if let Some(byte) = bytes.get_mut(at % len) {
                *byte ^= 1 << (at % 8);
            }
        }
        Damage::Cut(at) => bytes.truncate(at % len),
        Damage::Append(new) => bytes.extend(new),
        Damage::Overwrite(at, new) => {
            let start = at % len;
            bytes.iter_mut().skip(start).zip(new).for_each(|(old, new)| *old = *new);
        }
        Damage::CopyRecord(from, to) => {
            let count = (bytes.len().saturating_sub(header) / record).max(1);
            let place = |at: &usize| header + at % count * record;
            if bytes.len() >= header + record {
                bytes.copy_within(place(from)..place(from) + record, place(to));
            }
        }
    }
    fs::write(path, bytes).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Whatever is done to the journal and to the data, no wrong byte is served, and what is made of it is right.
    #[test]
    fn torn_and_forged_files_never_give_wrong_bytes(
        written in prop::collection::vec((0..60_000_usize, 1..9_000_usize), 1..12),
        journal in prop::collection::vec(damage(), 0..4), data in prop::collection::vec(damage(), 0..3), seed in any::<u64>(),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let repo = repo(directory.path());
        let bytes = content(65_536);
        let partial = repo.partial(&sha256(&bytes), 65_536);
        for (start, len) in &written {
            let end = (start + len).min(bytes.len());
            partial.write_at(*start as u64, &bytes[*start..end]).unwrap();
        }
        let paths = [partial.0.data_path.clone(), partial.0.journal_path.clone()];
        drop(partial);
        data.iter().for_each(|damage| harm(&paths[0], damage));
        journal.iter().for_each(|damage| harm(&paths[1], damage));

        let partial = repo.partial(&sha256(&bytes), 65_536);
        prop_assert!(partial.is_writer());
        let mut random = seed;
        for _ in 0..20 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let start = (random >> 33) as usize % 65_536;
            let end = (start + (random >> 20) as usize % 5_000).min(65_536);
            if let Some(found) = read(&partial, start..end) {
                prop_assert_eq!(&found, &bytes[start..end]);
            }
        }
        // As a download does: what is missing, until the whole could be read.
        for _ in 0..3 {
            for gap in partial.missing(0..65_536) {
                partial.write_at(gap.start, &bytes[gap.start as usize..gap.end as usize]).unwrap();
            }
            let at = partial.hash_ahead(&|| false);
            if at < 65_536 {
                partial.write_at(at, &bytes[at as usize..]).unwrap();
            }
        }
        while partial.hash_ahead(&|| false) < 65_536 {
            prop_assert!(partial.write_at(0, &bytes).unwrap());
        }
        prop_assert_eq!(fs::read(partial.finish(COMMIT, "m").unwrap()).unwrap(), bytes);
    }
}
