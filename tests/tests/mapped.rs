//! Mapped checkpoints: views and lent tensors without a copy, and what cannot be lent.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.
#![allow(unsafe_code)] // To promise that files stay as they are.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use safetensors::Dtype as St;
use weighbridge::plan::{Input, Part, Transpose};
use weighbridge::{
    Access, Checkpoint, Dtype, Entry, ErrorKind, HostBytes, Mapping, Plan, Populate, Slice, Source,
};
use weighbridge_tests::{Stored, file};

fn write(dir: &Path, tensors: &[(&str, Stored)]) -> std::path::PathBuf {
    let path = dir.join("model.safetensors");
    std::fs::write(&path, file(tensors)).unwrap();
    path
}

fn mapping() -> Mapping {
    // SAFETY: the files are in temporary directories of one test each, which does not change them.
    unsafe { Mapping::new() }
}

#[test]
fn every_policy_shows_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let tensors = [("a", Stored::filled(St::F32, &[300, 7], 1)), ("b", Stored::filled(St::BF16, &[0], 2))];
    let path = write(dir.path(), &tensors);
    for populate in [Populate::Never, Populate::Lent, Populate::All] {
        for access in [Access::Normal, Access::Sequential, Access::Random] {
            let mapping = mapping().populate(populate).access(access);
            let ckpt = Checkpoint::options().map(mapping).open(&path).unwrap();
            for (name, stored) in &tensors {
                let tensor = ckpt.tensor(name).unwrap();
                assert!(tensor.view().unwrap().bytes() == stored.bytes());
                let lent = Entry::of(&tensor, None).unwrap().lend().unwrap();
                let lent = lent.map(|lent| lent.as_bytes().to_vec());
                assert_eq!(lent.as_deref(), cfg!(target_endian = "little").then(|| stored.bytes()), "{name}");
            }
            // Copies come out of a mapping, too.
            let session = Plan::of(&ckpt).build().unwrap().session().start().unwrap();
            assert!(session.take("a", None).unwrap().1.as_bytes() == tensors[0].1.bytes());
        }
    }
}

#[test]
#[cfg(target_endian = "little")]
fn what_is_as_wanted_is_lent_and_the_rest_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let stored = Stored::filled(St::F32, &[100, 8], 1);
    let path = write(dir.path(), &[("w", stored.clone())]);
    let ckpt = Checkpoint::options().map(mapping()).open(&path).unwrap();
    let input = || vec![Input::of(&ckpt.tensor("w").unwrap())];
    let rows = Part::of_rank(&[100, 8], 0, 3, 4).unwrap();
    let columns = Part::of_rank(&[100, 8], 1, 0, 4).unwrap();
    let plan = Plan::of(&ckpt)
        .build()
        .unwrap()
        .with(Entry::new("rows", input(), Arc::new(rows)).unwrap())
        .with(Entry::new("columns", input(), Arc::new(columns)).unwrap())
        .with(Entry::new("turned", input(), Arc::new(Transpose::of(0))).unwrap())
        .with(Entry::new("reversed", input(), Arc::new(Part::of("::-1".parse::<Slice>().unwrap()))).unwrap());
    let whole = ckpt.tensor("w").unwrap().view().unwrap().bytes().as_ptr();
    let session = plan.session().read_ahead(0).start_lending().unwrap();
    let take = |name: &str, dtype| session.take(name, dtype).unwrap().1;
    let HostBytes::Lent(w) = take("w", None) else { panic!("w was copied") };
    assert_eq!((w.dtype(), w.shape(), w.as_bytes().as_ptr()), (Dtype::F32, &[100, 8][..], whole));
    assert!(w.is_aligned());
    let HostBytes::Lent(rows) = take("rows", None) else { panic!("rows were copied") };
    assert!(rows.as_bytes() == &stored.bytes()[75 * 32..]);
    assert_eq!(session.report().bytes_read(), 0);
    for name in ["columns", "turned", "reversed"] {
        assert!(matches!(take(name, None), HostBytes::Owned(_)), "{name}");
    }
    assert!(matches!(take("w", Some(Dtype::F64)), HostBytes::Owned(_)));

    // It outlives the session, the checkpoint, and the name of the file.
    drop((session, ckpt));
    std::fs::remove_file(&path).unwrap();
    assert!(w.as_bytes() == stored.bytes());
}

#[test]
fn bytes_in_memory_are_lent_and_files_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let tensors = [("a", Stored::filled(St::U8, &[1000], 1))];
    let path = write(dir.path(), &tensors);
    let is_lent = |ckpt: Checkpoint| {
        let session = Plan::of(&ckpt).build().unwrap().session().start_lending().unwrap();
        let (_, bytes) = session.take("a", None).unwrap();
        assert!(bytes.as_bytes() == tensors[0].1.bytes());
        matches!(bytes, HostBytes::Lent(_))
    };
    assert!(is_lent(Checkpoint::from_bytes(file(&tensors)).unwrap()));
    assert!(!is_lent(Checkpoint::open(&path).unwrap()));
}

#[test]
#[cfg(target_os = "linux")]
fn a_file_that_became_shorter_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), &[("a", Stored::filled(St::U8, &[1 << 20], 1))]);
    let ckpt = Checkpoint::options().map(mapping()).open(&path).unwrap();
    // The promise is broken; nothing touches what is gone.
    std::fs::File::options().write(true).open(&path).unwrap().set_len(4096).unwrap();
    let error = Entry::of(&ckpt.tensor("a").unwrap(), None).unwrap().lend().unwrap_err();
    assert_eq!((error.kind(), error.tensor()), (ErrorKind::Io, Some("a")), "{error}");
    assert!(error.to_string().contains("model.safetensors"), "{error}");
}

#[test]
fn a_mapped_shard_that_is_no_checkpoint_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for bytes in [&b""[..], b"short", &[0xFF; 100]] {
        let path = dir.path().join("model.safetensors");
        std::fs::write(&path, bytes).unwrap();
        assert!(Checkpoint::options().map(mapping()).open(&path).is_err());
    }
}

/// Bytes in memory that count how many of them were brought in.
struct Counted(Vec<u8>, Arc<AtomicU64>);

impl Source for Counted {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        buf.copy_from_slice(&self.0[offset as usize..][..buf.len()]);
        Ok(())
    }

    fn as_bytes(&self) -> Option<&[u8]> {
        Some(&self.0)
    }

    fn populate(&self, range: Range<u64>) -> io::Result<()> {
        self.1.fetch_add(range.end - range.start, Ordering::SeqCst);
        Ok(())
    }
}

#[test]
fn what_nobody_takes_is_not_brought_in() {
    let tensors = [("a", Stored::filled(St::U8, &[1000], 1)), ("b", Stored::filled(St::U8, &[500], 2))];
    let brought_in = Arc::new(AtomicU64::new(0));
    let ckpt = Checkpoint::from_source(Counted(file(&tensors), Arc::clone(&brought_in))).unwrap();
    for threads in [1, 3] {
        let done = Arc::new(AtomicU64::new(0));
        let told = Arc::clone(&done);
        let session = Plan::of(&ckpt).build().unwrap().session().threads(threads);
        let session = session.progress(move |p| told.store(p.bytes_done, Ordering::SeqCst));
        let session = session.start_lending().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(5));
        assert_eq!(brought_in.load(Ordering::SeqCst), 0);
        session.take("a", None).unwrap();
        assert_eq!(brought_in.swap(0, Ordering::SeqCst), 1000);
        assert_eq!(done.load(Ordering::SeqCst), 1000);
    }
}
