//! Casts of 16 million values, from memory into memory.

use benches::checkpoint::{Weights, block};
use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use weighbridge::write::Save;
use weighbridge::{Checkpoint, Dtype, Plan};

const SHAPE: [usize; 2] = [4096, 4096];

const PAIRS: [(Dtype, Dtype); 6] = [
    // No cast: what the rest is to be compared with.
    (Dtype::BF16, Dtype::BF16),
    (Dtype::BF16, Dtype::F32),
    (Dtype::F16, Dtype::F32),
    (Dtype::F32, Dtype::BF16),
    (Dtype::F32, Dtype::F8_E4M3),
    (Dtype::F8_E4M3, Dtype::BF16),
];

fn cast(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("cast");
    group.sample_size(20).sampling_mode(SamplingMode::Flat);
    group.throughput(Throughput::Elements(SHAPE.iter().product::<usize>() as u64));
    for (from, to) in PAIRS {
        let weights = Weights { dtype: from, shape: SHAPE.to_vec(), block: &block(from) };
        let file = Save::new().bytes([("w", weights)]).expect("a small file");
        let checkpoint = Checkpoint::from_bytes(file).expect("a sound file");
        group.bench_function(format!("{from} to {to}"), |bencher| {
            bencher.iter_with_large_drop(|| {
                let plan = Plan::of(&checkpoint).dtype(|_| Some(to)).build().expect("a plan");
                plan.session().start().expect("threads").take("w", None).expect("a tensor")
            });
        });
    }
}

criterion_group!(benches, cast);
criterion_main!(benches);
