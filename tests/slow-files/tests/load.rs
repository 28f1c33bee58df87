//! Loads from a file system that takes 2 ms for a request, with and without the page cache.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.
#![allow(unsafe_code)] // To promise that files stay as they are.

use std::path::Path;
use std::time::{Duration, Instant};

use safetensors::Dtype as St;
use slow_files::{Behaviour, Mounted};
use tempfile::TempDir;
use weighbridge::engine::PageCache;
use weighbridge::{Checkpoint, Dtype, ErrorKind, LoadOptions, Mapping, Plan};
use weighbridge_tests::{Stored, sharded};

const DELAY: Duration = Duration::from_millis(2);

/// Tensors of two shards, 48 MiB in all.
struct Model {
    directory: TempDir,
    tensors: Vec<(String, Stored)>,
}

impl Model {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut tensors: Vec<_> = (0..6)
            .map(|i| (format!("layer.{i}.weight"), Stored::filled(St::F32, &[1024, 2048], i)))
            .collect();
        tensors.extend((0..40).map(|i| (format!("layer.{i}.bias"), Stored::filled(St::F32, &[50], 100 + i))));
        let named: Vec<_> = tensors.iter().map(|(name, stored)| (name.as_str(), stored.clone())).collect();
        let (one, two) = named.split_at(3);
        sharded(directory.path(), &[("model-1.safetensors", one), ("model-2.safetensors", two)]);
        Self { directory, tensors }
    }

    /// Mounts it; says why not, where that cannot be done.
    fn mounted(&self, behaviour: Behaviour) -> Option<Mounted> {
        let mounted = behaviour.mount(self.directory.path());
        mounted.inspect_err(|error| eprintln!("skipped: no FUSE file system can be mounted: {error}")).ok()
    }

    fn bytes(&self) -> u64 {
        self.tensors.iter().map(|(_, stored)| stored.bytes().len() as u64).sum()
    }

    /// Loads everything and compares it.
    fn load(&self, checkpoint: &Checkpoint, options: LoadOptions) {
        let session = Plan::of(checkpoint).build().unwrap().session().options(options).start().unwrap();
        for (name, stored) in &self.tensors {
            let (_, values) = session.take(name, None).unwrap();
            assert!(weighbridge_tests::in_file_order(&values) == stored.bytes(), "{name}");
        }
    }
}

fn open(at: &Path) -> Checkpoint {
    Checkpoint::open(at).unwrap()
}

/// With the page cache, and without.
fn both() -> [Behaviour; 2] {
    [false, true].map(|direct_io| Behaviour { direct_io, delay: DELAY, broken_from: None })
}

#[test]
fn requests_are_large_and_overlap() {
    let model = Model::new();
    for behaviour in both() {
        for page_cache in [PageCache::Keep, PageCache::Release] {
            let Some(mounted) = model.mounted(behaviour) else { return };
            let checkpoint = open(mounted.path());
            mounted.requests();
            let start = Instant::now();
            model.load(&checkpoint, LoadOptions::new().page_cache(page_cache));
            let (time, requests, bytes) = (start.elapsed(), mounted.requests(), mounted.bytes());
            // More than a reader with the kernel's own reading ahead, and what a core each could do.
            let in_flight = mounted.most_in_flight();
            assert!(
                in_flight >= 10,
                "{behaviour:?}, {page_cache:?}: {in_flight} requests at a time at the most"
            );
            eprintln!("{behaviour:?}, {page_cache:?}: {time:?}, {requests} requests, {bytes} bytes");
            // Requests of 256 KiB, some for the ends of chunks, and a few that find out how the file is.
            let most = model.bytes() / (256 << 10) * 3 / 2 + 40;
            assert!(requests <= most, "{behaviour:?}, {page_cache:?}: {requests} requests, {most} at most");
            assert!(bytes < model.bytes() * 5 / 4, "{behaviour:?}, {page_cache:?}: {bytes} bytes were read");
            // One after the other they would take twice as long at the least, on whatever machine.
            let most = DELAY * u32::try_from(requests).unwrap() / 2;
            assert!(
                requests < 100 || time < most,
                "{behaviour:?}, {page_cache:?}: {time:?} for {requests} requests"
            );
        }
    }
}

#[test]
fn nothing_is_left_in_the_page_cache_if_it_is_released() {
    let model = Model::new();
    for behaviour in both() {
        let Some(mounted) = model.mounted(behaviour) else { return };
        if !weighbridge_tests::page_cache::is_told(&mounted.path().join("model-1.safetensors")) {
            eprintln!("skipped: the system does not tell what is cached");
            return;
        }
        for page_cache in [PageCache::Release, PageCache::Keep] {
            model.load(&open(mounted.path()), LoadOptions::new().page_cache(page_cache));
            let cached: u64 = ["model-1.safetensors", "model-2.safetensors"]
                .map(|file| weighbridge_tests::page_cache::resident_bytes(&mounted.path().join(file)))
                .iter()
                .sum();
            match page_cache {
                PageCache::Keep if !behaviour.direct_io => assert!(cached >= model.bytes(), "{cached}"),
                _ => assert_eq!(cached, 0, "{behaviour:?}, {page_cache:?}"),
            }
        }
    }
}

#[test]
fn mapped_checkpoints_are_read() {
    let model = Model::new();
    for behaviour in both() {
        let Some(mounted) = model.mounted(behaviour) else { return };
        // SAFETY: nobody changes the files of the temporary directory.
        let mapping = unsafe { Mapping::new() };
        let checkpoint = Checkpoint::options().map(mapping).open(mounted.path()).unwrap();
        model.load(&checkpoint, LoadOptions::new());
    }
}

#[test]
fn casts_and_slices_are_right() {
    let model = Model::new();
    for behaviour in both() {
        let Some(mounted) = model.mounted(behaviour) else { return };
        let session = |directory: &Path| {
            let checkpoint = open(directory);
            let plan = Plan::of(&checkpoint).dtype(|_| Some(Dtype::BF16)).build().unwrap();
            plan.session().page_cache(PageCache::Release).start().unwrap()
        };
        let (slow, fast) = (session(mounted.path()), session(model.directory.path()));
        for (name, _) in &model.tensors {
            let (slow, fast) = (slow.take(name, None).unwrap().1, fast.take(name, None).unwrap().1);
            assert!(slow.as_bytes() == fast.as_bytes(), "{name}");
        }
    }
}

#[test]
fn a_file_system_that_fails_is_named() {
    let model = Model::new();
    for behaviour in both() {
        for page_cache in [PageCache::Keep, PageCache::Release] {
            let broken_from = Some(20 << 20);
            let Some(mounted) = model.mounted(Behaviour { broken_from, ..behaviour }) else { return };
            let checkpoint = open(mounted.path());
            let plan = Plan::of(&checkpoint).build().unwrap();
            let session = plan.session().page_cache(page_cache).start().unwrap();
            let (last, stored) = (&model.tensors[2].0, &model.tensors[0]);
            let (_, values) = session.take(&stored.0, None).unwrap();
            assert!(values.as_bytes() == stored.1.bytes() || cfg!(target_endian = "big"));
            let error = session.take(last, None).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Io);
            let text = error.to_string();
            assert!(text.contains("model-1.safetensors") && text.contains(last), "{text}");
        }
    }
}
