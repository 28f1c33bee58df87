//! Headers: decoding them, and finding tensors in them.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use weighbridge::SafeTensors;
use weighbridge::write::{Save, Values};

/// A file of `count` tensors with the names of a mixture of experts, in their order.
fn file(count: usize) -> (Vec<String>, Vec<u8>) {
    let name = |i: usize| format!("model.layers.{}.mlp.experts.{}.up_proj.weight", i / 128, i % 128);
    let names: Vec<_> = (0..count).map(name).collect();
    let value = [1.0_f32];
    let tensors = names.iter().map(|name| (name.as_str(), Values::new(&[1, 1], &value).expect("one value")));
    let bytes = Save::new().bytes(tensors).expect("a small file");
    (names, bytes)
}

fn decode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("header/decode");
    for count in [100, 10_000] {
        let (_, bytes) = file(count);
        group.throughput(Throughput::Elements(count as u64));
        group.bench_with_input(BenchmarkId::from_parameter(count), &bytes, |bencher, bytes| {
            bencher.iter(|| SafeTensors::parse(bytes).expect("a sound file").len());
        });
    }
}

fn lookup(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("header/lookup");
    let (names, bytes) = file(10_000);
    let tensors = SafeTensors::parse(&bytes).expect("a sound file");
    group.throughput(Throughput::Elements(names.len() as u64));
    group.bench_function("10000", |bencher| {
        bencher.iter(|| names.iter().filter(|name| black_box(tensors.tensor(name)).is_some()).count());
    });
}

criterion_group!(benches, decode, lookup);
criterion_main!(benches);
