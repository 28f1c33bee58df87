//! A checkpoint of 64 MB from the page cache: into plain memory, and into Candle.

use benches::checkpoint::Layout;
use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use weighbridge::{Checkpoint, Plan};
use weighbridge_candle::Loader;

const SIZE: u64 = 64 << 20;

fn load(criterion: &mut Criterion) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut group = criterion.benchmark_group("load");
    group.sample_size(20).sampling_mode(SamplingMode::Flat);
    for layout in [Layout::Llama, Layout::Small] {
        let path = directory.path().join(layout.name());
        layout.write(&path, SIZE).expect("a checkpoint");
        let checkpoint = Checkpoint::open(&path).expect("what was just written");
        group.throughput(Throughput::Bytes(layout.byte_len(SIZE)));
        group.bench_function(format!("{}/engine", layout.name()), |bencher| {
            bencher.iter_with_large_drop(|| {
                let plan = Plan::of(&checkpoint).build().expect("a plan");
                let session = plan.session().read_ahead(u64::MAX).start().expect("threads");
                let names: Vec<_> = session.names().map(str::to_owned).collect();
                names.iter().map(|name| session.take(name, None).expect("a tensor")).collect::<Vec<_>>()
            });
        });
        group.bench_function(format!("{}/candle", layout.name()), |bencher| {
            bencher.iter_with_large_drop(|| Loader::new(&checkpoint).load().expect("tensors"));
        });
    }
}

criterion_group!(benches, load);
criterion_main!(benches);
