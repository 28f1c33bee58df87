//! One rank's part of a matrix of 32 MB, cut by rows and by columns.

use benches::checkpoint::{Weights, block};
use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use weighbridge::plan::Part;
use weighbridge::write::Save;
use weighbridge::{Checkpoint, Dtype, Plan};

const SHAPE: [usize; 2] = [4096, 4096];
const RANKS: usize = 8;

fn slice(criterion: &mut Criterion) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("model.safetensors");
    let weights = Weights { dtype: Dtype::BF16, shape: SHAPE.to_vec(), block: &block(Dtype::BF16) };
    Save::new().file(&file, [("w", weights)]).expect("a file");
    let checkpoint = Checkpoint::open(&file).expect("what was just written");
    let mut group = criterion.benchmark_group("slice");
    group.sample_size(20).sampling_mode(SamplingMode::Flat);
    group.throughput(Throughput::Bytes((2 * SHAPE[0] * SHAPE[1] / RANKS) as u64));
    for (name, dim) in [("rows", 0), ("columns", 1)] {
        group.bench_function(name, |bencher| {
            bencher.iter_with_large_drop(|| {
                let plan = Plan::of(&checkpoint)
                    .part(|tensor| Part::of_rank(tensor.shape(), dim, RANKS / 2, RANKS).map(Some));
                let session = plan.build().expect("a plan").session().start().expect("threads");
                session.take("w", None).expect("a part")
            });
        });
    }
}

criterion_group!(benches, slice);
criterion_main!(benches);
