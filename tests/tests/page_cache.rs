//! What loads leave in the page cache: all they have read, or what was there before.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::Dtype as St;
use tempfile::TempDir;
use weighbridge::engine::{PageCache, Prefetch, ReadOrder};
use weighbridge::plan::{Input, Part};
use weighbridge::source::{Concat, FileSource, Source, Window};
use weighbridge::{Checkpoint, Dtype, Entry, LoadOptions, Plan, Session, Slice};
use weighbridge_tests::page_cache::{evict, is_told, page_size, resident, resident_bytes, warm};
use weighbridge_tests::{Stored, in_file_order, sharded};

/// Two shards: large tensors, small ones, and a long header.
struct Model {
    directory: TempDir,
    tensors: Vec<(String, Stored)>,
    files: [PathBuf; 2],
}

impl Model {
    /// `None`, and why, where pages of the temporary directory's file system cannot be evicted.
    fn cold() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let mut tensors: Vec<_> = (0..6)
            .map(|i| (format!("{i}.weight"), Stored::filled(St::F32, &[1021, 2048 + 3 * i], i)))
            .collect();
        tensors.extend((0..800).map(|i| (format!("{i}.a_small_one"), Stored::filled(St::F32, &[i % 50], i))));
        let named: Vec<_> = tensors.iter().map(|(name, stored)| (name.as_str(), stored.clone())).collect();
        let (one, two) = named.split_at(3);
        sharded(directory.path(), &[("1.safetensors", one), ("2.safetensors", two)]);
        let files = ["1.safetensors", "2.safetensors"].map(|name| directory.path().join(name));
        let model = Self { directory, tensors, files };
        if !model.evict() || !is_told(&model.files[0]) {
            let directory = model.directory.path().display();
            eprintln!(
                "skipped: pages of files in {directory} cannot be evicted, or the system does not tell of them"
            );
            return None;
        }
        Some(model)
    }

    fn evict(&self) -> bool {
        evict(self.files.iter().map(PathBuf::as_path))
    }

    fn open(&self) -> Checkpoint {
        Checkpoint::open(self.directory.path()).unwrap()
    }

    fn resident(&self) -> [Vec<bool>; 2] {
        [resident(&self.files[0]), resident(&self.files[1])]
    }

    fn resident_bytes(&self) -> u64 {
        self.files.iter().map(|file| resident_bytes(file)).sum()
    }

    fn check(&self, session: &Session) {
        for (name, stored) in &self.tensors {
            assert!(in_file_order(&session.take(name, None).unwrap().1) == stored.bytes(), "{name}");
        }
    }
}

/// Whether cached pages stay: the system may take some back at any time, but hardly three times.
fn in_three_tries(mut stay: impl FnMut() -> bool) {
    assert!((0..3).any(|_| stay()), "pages that are to stay in the page cache are gone");
}

/// All the ways in which a load can go about its work.
fn options() -> Vec<LoadOptions> {
    let all = LoadOptions::new();
    vec![
        all.clone(),
        all.clone().threads(1),
        all.clone().threads(5).chunk(100_000).order(ReadOrder::Natural),
        all.prefetch(Prefetch::Always).read_ahead(1 << 20),
    ]
}

fn start(plan: Plan, options: &LoadOptions, page_cache: PageCache) -> Session {
    plan.session().options(options.clone()).page_cache(page_cache).start().unwrap()
}

/// Ranges of bytes of both files that are cached before.
fn before(model: &Model) -> Vec<Vec<std::ops::Range<u64>>> {
    let size = std::fs::metadata(&model.files[1]).unwrap().len();
    let half = size / 2 / page_size() as u64 * page_size() as u64;
    let stripes = (0..size).step_by(1 << 20).map(|start| start..(start + 200_000).min(size)).collect();
    vec![vec![], vec![0..half], vec![half..size], stripes, vec![0..size]]
}

#[test]
fn what_was_cached_stays_and_nothing_else_does() {
    let Some(model) = Model::cold() else { return };
    for cached in before(&model) {
        for options in options() {
            in_three_tries(|| {
                assert!(model.evict());
                let warm_size = std::fs::metadata(&model.files[0]).unwrap().len();
                for file in &model.files {
                    cached
                        .iter()
                        .for_each(|range| warm(file, range.start.min(warm_size)..range.end.min(warm_size)));
                }
                let before = model.resident();
                let session = start(Plan::of(&model.open()).build().unwrap(), &options, PageCache::Release);
                model.check(&session);
                drop(session);
                let after = model.resident();
                let pages = || before.iter().flatten().zip(after.iter().flatten());
                assert!(
                    pages().all(|(before, after)| before >= after),
                    "{options:?}: {} bytes",
                    model.resident_bytes()
                );
                pages().all(|(before, after)| before == after)
            });
        }
    }
}

#[test]
fn casts_slices_and_single_reads_leave_nothing_either() {
    let Some(model) = Model::cold() else { return };
    let casts = || Plan::of(&model.open()).dtype(|_| Some(Dtype::BF16)).build().unwrap();
    let session = casts().session().start().unwrap();
    let expected: Vec<_> =
        model.tensors.iter().map(|(name, _)| session.take(name, None).unwrap().1).collect();
    drop(session);
    for options in options() {
        assert!(model.evict());
        let session = start(casts(), &options, PageCache::Release);
        for ((name, _), expected) in model.tensors.iter().zip(&expected) {
            let made = session.take(name, None).unwrap().1;
            assert!(made.as_bytes() == expected.as_bytes(), "{name}");
        }
        assert_eq!(model.resident_bytes(), 0, "{options:?}: casts");

        let checkpoint = model.open();
        let (name, stored) = &model.tensors[1];
        let input = Input::of(&checkpoint.tensor(name).unwrap());
        let columns =
            Entry::new("columns", vec![input], Arc::new(Part::of(Slice::along(1, 100..612)))).unwrap();
        let session = start(Plan::new([columns]), &options, PageCache::Release);
        let columns = in_file_order(&session.take("columns", None).unwrap().1);
        let row = stored.bytes().len() / 1021;
        assert!(
            columns[..2048] == stored.bytes()[400..2448]
                && columns.ends_with(&stored.bytes()[1020 * row..][400..2448])
        );
        // Of the other file the header stays: the plan knows nothing of it.
        assert_eq!(resident_bytes(&model.files[0]), 0, "{options:?}: columns");
    }
}

#[test]
fn a_load_that_ends_early_leaves_nothing() {
    let Some(model) = Model::cold() else { return };
    for options in options() {
        for is_cancelled in [false, true] {
            let session = start(Plan::of(&model.open()).build().unwrap(), &options, PageCache::Release);
            session.take(&model.tensors[0].0, None).unwrap();
            if is_cancelled {
                session.cancel();
            }
            drop(session);
            assert_eq!(model.resident_bytes(), 0, "{options:?}");
        }
    }
}

#[test]
fn otherwise_all_is_kept() {
    let Some(model) = Model::cold() else { return };
    for options in options() {
        in_three_tries(|| {
            assert!(model.evict());
            model.check(&start(Plan::of(&model.open()).build().unwrap(), &options, PageCache::Keep));
            model.resident().iter().flatten().all(|&is_resident| is_resident)
        });
    }
}

#[test]
fn files_inside_of_others_are_released() {
    let Some(model) = Model::cold() else { return };
    let size = std::fs::metadata(&model.files[1]).unwrap().len();
    let parts = |path: &Path| -> Vec<Arc<dyn Source>> {
        let part = |range| Window::new(FileSource::open(path).unwrap(), range).unwrap();
        vec![Arc::new(part(0..10_000_001)), Arc::new(part(10_000_001..size))]
    };
    let checkpoint = Checkpoint::from_source(Concat::new(parts(&model.files[1])).unwrap()).unwrap();
    // Of a source that is not opened by its path, the header stays.
    assert!(model.evict());
    let session = start(Plan::of(&checkpoint).build().unwrap(), &LoadOptions::new(), PageCache::Release);
    for (name, stored) in &model.tensors[3..] {
        assert!(in_file_order(&session.take(name, None).unwrap().1) == stored.bytes(), "{name}");
    }
    assert_eq!(model.resident_bytes(), 0);
}
