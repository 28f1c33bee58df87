//! Tensors of 64 MB into memory, into a file, and into one that survives a crash.

use benches::checkpoint::{Layout, Weights, block};
use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use weighbridge::Dtype;
use weighbridge::write::Save;

const SIZE: u64 = 64 << 20;

fn save(criterion: &mut Criterion) {
    let block = block(Dtype::BF16);
    let tensors = || {
        let tensors = Layout::Llama.tensors(SIZE).into_iter();
        tensors.map(|(name, shape)| (name, Weights { dtype: Dtype::BF16, shape, block: &block }))
    };
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("model.safetensors");
    let mut group = criterion.benchmark_group("save");
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    group.throughput(Throughput::Bytes(Layout::Llama.byte_len(SIZE)));
    group.bench_function("memory", |bencher| {
        bencher.iter_with_large_drop(|| Save::new().bytes(tensors()).expect("bytes"));
    });
    group.bench_function("file, unprotected", |bencher| {
        bencher.iter(|| Save::new().unprotected().file(&file, tensors()).expect("a file"));
    });
    group.bench_function("file, synced and renamed", |bencher| {
        bencher.iter(|| Save::new().file(&file, tensors()).expect("a file"));
    });
}

criterion_group!(benches, save);
criterion_main!(benches);
