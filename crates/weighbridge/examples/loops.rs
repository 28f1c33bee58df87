//! Runs the crate's loops one by one, each over some elements and over twice as many, between lines that a counter of
//! instructions waits for: `scripts/count-instructions` makes a table of how many an element takes.
//!
//! ```sh
//! cargo run --release -p weighbridge --example loops                          # all of them
//! cargo run --release -p weighbridge --example loops BF16:F32 quantize:nf4    # these
//! ```

use std::sync::Arc;

use weighbridge::plan::{Blend, BlendMethod, Cast, Delta, Input, LowRank, Overflow, QuantizeMethod};
use weighbridge::write::{Save, TensorData};
use weighbridge::{
    Checkpoint, Dtype, Entry, LowRankProduct, Plan, Result, TensorRef, TensorView, Truncation, norm_of_change,
};

/// Of matrices.
const COLUMNS: usize = 1024;
/// Of the smaller one of two: enough for whole tiles.
const ROWS: usize = 256;

fn main() -> Result<()> {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name);
    for from in Dtype::all() {
        for to in Dtype::all().filter(|&to| to != from && Cast::exists(from, to)) {
            for (overflow, suffix) in
                [(Overflow::Infinity, ""), (Overflow::Saturate, ":saturate"), (Overflow::Error, ":error")]
            {
                let name = format!("{from}:{to}{suffix}");
                if is_wanted(&name) {
                    measure(&name, |rows| cast(from, to, overflow, rows))?;
                }
            }
        }
    }
    for method in BlendMethod::ALL {
        let name = format!("blend:{method}");
        if is_wanted(&name) {
            measure(&name, |rows| blend(method, rows))?;
        }
    }
    let methods = [
        QuantizeMethod::Fp8,
        QuantizeMethod::Fp8Block,
        QuantizeMethod::Int8,
        QuantizeMethod::INT4,
        QuantizeMethod::Nf4,
        QuantizeMethod::Mxfp4,
    ];
    for method in methods {
        let name = format!("quantize:{method}");
        if is_wanted(&name) {
            measure(&name, |rows| quantize(method, rows))?;
        }
        let name = format!("dequantize:{method}");
        // What the blocks are is said by a configuration, which bytes have none of.
        if method != QuantizeMethod::Fp8Block && is_wanted(&name) {
            measure(&name, |rows| dequantize(method, rows))?;
        }
    }
    if is_wanted("low-rank:16") {
        measure("low-rank:16", |rows| low_rank(16, rows))?;
    }
    if is_wanted("norm") {
        measure("norm", |rows| of_two(rows, |base, tuned| norm_of_change(base, tuned).map(drop)))?;
    }
    if is_wanted("truncate:16") {
        measure("truncate:16", |rows| {
            of_two(rows, |base, tuned| {
                LowRankProduct::of_change(base, tuned, Truncation::rank(16), false).map(drop)
            })
        })?;
    }
    Ok(())
}

/// What is run, made beforehand.
type Run = Box<dyn FnOnce() -> Result<()>>;

/// Runs what `make` makes of a number of rows, and of twice as many, and says so: before, between, and afterwards.
fn measure(name: &str, make: impl Fn(usize) -> Result<Run>) -> Result<()> {
    // What happens once.
    make(1)?()?;
    let (once, twice) = (make(ROWS)?, make(2 * ROWS)?);
    println!("once");
    once()?;
    println!("twice");
    twice()?;
    println!("{name}");
    Ok(())
}

/// A load of entries by one thread.
fn load(entries: impl IntoIterator<Item = Entry>) -> Run {
    let plan = Plan::new(entries);
    Box::new(move || {
        let session = plan.clone().session().threads(1).read_ahead(0).start()?;
        plan.entries().iter().try_for_each(|entry| session.take(entry.name(), None).map(drop))
    })
}

/// A tensor in memory.
struct Tensor {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

fn checkpoint(tensors: &[Tensor]) -> Result<Checkpoint> {
    let views = tensors.iter().map(|tensor| {
        let Tensor { name, dtype, shape, bytes } = tensor;
        TensorView::new(*dtype, shape, bytes).map(|view| (name.clone(), view))
    });
    Checkpoint::from_bytes(Save::new().bytes(views.collect::<Result<Vec<_>>>()?)?)
}

/// Its only tensor, or the first.
fn first(checkpoint: &Checkpoint) -> Option<TensorRef<'_>> {
    checkpoint.tensors().next()
}

/// Values that are different and small.
fn floats(name: &str, shape: [usize; 2], seed: u32) -> Tensor {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 8_388_608.0 - 1.0
    };
    let bytes = (0..shape.iter().product()).flat_map(|_: usize| next().to_le_bytes()).collect();
    Tensor { name: name.to_owned(), dtype: Dtype::F32, shape: shape.to_vec(), bytes }
}

/// All elements have the bits of the integer 1, which nothing refuses: as a float it is very small.
fn cast(from: Dtype, to: Dtype, overflow: Overflow, rows: usize) -> Result<Run> {
    let element = match from.bits() {
        // Two of them.
        4 => vec![0x11],
        bits => (0..bits / 8).map(|byte| u8::from(byte == 0)).collect(),
    };
    let len = from.size_of(&[rows, COLUMNS])? as usize;
    let bytes = element.iter().copied().cycle().take(len).collect();
    let stored =
        checkpoint(&[Tensor { name: "w".to_owned(), dtype: from, shape: vec![rows, COLUMNS], bytes }])?;
    let operation = Arc::new(Cast::to(to).overflow(overflow));
    let entries = first(&stored).map(|tensor| Entry::new("w", vec![Input::of(&tensor)], operation));
    Ok(load(entries.transpose()?))
}

fn blend(method: BlendMethod, rows: usize) -> Result<Run> {
    let names = ["base", "one", "other"];
    let of = names.iter().zip(1..).map(|(name, seed)| floats(name, [rows, COLUMNS], seed));
    let stored = checkpoint(&of.collect::<Vec<_>>())?;
    let mut blend = Blend::new(method, [0.5, 0.5]);
    if method.has_density() {
        blend = blend.densities([0.5]);
    }
    let tensors = stored.tensors().map(|tensor| Input::of(&tensor)).take(blend.inputs());
    Ok(load([Entry::new("w", tensors.collect(), Arc::new(blend))?.recast(Dtype::BF16)?]))
}

fn quantize(method: QuantizeMethod, rows: usize) -> Result<Run> {
    // Whole blocks.
    let stored = checkpoint(&[floats("up.weight", [rows.next_multiple_of(128), COLUMNS], 1)])?;
    let made = first(&stored).map(|tensor| method.weight(&tensor)).transpose()?;
    Ok(load(made.into_iter().flat_map(|made| made.entries)))
}

/// To `BF16`.
fn dequantize(method: QuantizeMethod, rows: usize) -> Result<Run> {
    let stored = checkpoint(&[floats("up.weight", [rows, COLUMNS], 1)])?;
    let mut tensors = Vec::new();
    if let Some(made) = first(&stored).map(|tensor| method.weight(&tensor)).transpose()? {
        let session = Plan::new(made.entries.clone()).session().start()?;
        for entry in &made.entries {
            let bytes = session.take(entry.name(), None)?.1.as_bytes().to_vec();
            tensors.push(tensor(entry.name(), entry.dtype(), entry.shape(), bytes));
        }
        for (name, constant) in made.constants {
            let mut bytes = Vec::new();
            // Memory takes all that is written.
            let _ = constant.write_to(&mut bytes);
            tensors.push(tensor(&name, constant.dtype(), constant.shape(), bytes));
        }
    }
    let dense = checkpoint(&tensors)?.dequantized()?;
    let entries = dense.tensors().map(|tensor| Entry::of(&tensor, Some(Dtype::BF16)));
    Ok(load(entries.collect::<Result<Vec<_>>>()?))
}

fn tensor(name: &str, dtype: Dtype, shape: &[usize], bytes: Vec<u8>) -> Tensor {
    Tensor { name: name.to_owned(), dtype, shape: shape.to_vec(), bytes }
}

fn low_rank(rank: usize, rows: usize) -> Result<Run> {
    let stored = checkpoint(&[
        floats("1", [rows, COLUMNS], 1),
        floats("2", [rank, COLUMNS], 2),
        floats("3", [rows, rank], 3),
    ])?;
    let inputs = ["1", "2", "3"].iter().filter_map(|name| stored.tensor(name));
    let inputs = inputs.map(|tensor| Input::of(&tensor)).collect();
    Ok(load([Entry::new("w", inputs, Arc::new(LowRank::new([Delta::new(0.5)])))?.recast(Dtype::BF16)?]))
}

/// What is done with two tensors, all at once.
fn of_two(rows: usize, work: impl Fn(&TensorRef<'_>, &TensorRef<'_>) -> Result<()> + 'static) -> Result<Run> {
    let of = |name, seed| floats(name, [rows, COLUMNS], seed);
    let stored = checkpoint(&[of("base", 1), of("tuned", 2)])?;
    Ok(Box::new(move || match (stored.tensor("base"), stored.tensor("tuned")) {
        (Some(base), Some(tuned)) => work(&base, &tuned),
        _ => Ok(()),
    }))
}
