//! `headers`: decoding beside the official crate, in turn in one process, medians as a Markdown table.
//!
//! With `--update docs/benchmarks.md` the table goes into that page's section `headers`, too.

use std::fmt::Write;
use std::hint::black_box;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use clap::Parser;
use safetensors::SafeTensors as Official;
use weighbridge::SafeTensors;
use weighbridge::write::{Save, TensorData, Values};

/// Measures decoding of headers beside the official crate.
#[derive(Debug, Parser)]
struct Arguments {
    /// Replaces the section `headers` of a page.
    #[arg(long, value_name = "PAGE")]
    update: Option<PathBuf>,
}

/// A file with the names of a mixture of experts, four bytes of data each.
fn experts(count: usize) -> weighbridge::Result<Vec<u8>> {
    const PARTS: [&str; 3] = ["down", "gate", "up"];
    let names = (0..count).map(|i| {
        let (layer, expert, part) = (i / 384, i / 3 % 128, PARTS[i % 3]);
        format!("model.layers.{layer}.mlp.experts.{expert}.{part}_proj.weight")
    });
    let value = [1.0_f32];
    let tensors = names.map(|name| Ok((name, Values::new(&[1, 1], &value)?)));
    Save::new().metadata("format", "pt").bytes(tensors.collect::<weighbridge::Result<Vec<_>>>()?)
}

/// A header of that many bytes, almost all of them an unknown field of nested arrays.
fn nested(bytes: usize) -> Vec<u8> {
    let arrays = "[[[[]]]],".repeat(bytes / 9);
    let header = format!(r#"{{"a":{{"x":[{arrays}0],"dtype":"U8","shape":[0],"data_offsets":[0,0]}}}}"#);
    [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat()
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

fn timed(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

fn row(table: &mut String, what: &str, times: usize, ours: impl Fn(), theirs: impl Fn()) {
    let runs: Vec<_> = (0..times).map(|_| (timed(&ours), timed(&theirs))).collect();
    let ours = median(runs.iter().map(|run| run.0).collect());
    let theirs = median(runs.iter().map(|run| run.1).collect());
    let _ = writeln!(table, "| {what} | {:.2} | {:.2} | {:.1}x |", ours * 1e3, theirs * 1e3, theirs / ours);
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let mut table = "| | weighbridge, ms | safetensors 0.8.0, ms | |\n|---|---|---|---|\n".to_owned();
    for count in [1_000, 10_000, 100_000] {
        let file = experts(count)?;
        let ours = || assert_eq!(SafeTensors::parse(&file).map_or(0, |tensors| tensors.len()), count);
        let theirs = || assert_eq!(Official::deserialize(&file).map_or(0, |tensors| tensors.len()), count);
        row(&mut table, &format!("decode {count} tensors"), 25, ours, theirs);
        let (mine, official) = (SafeTensors::parse(&file)?, Official::deserialize(&file)?);
        // Sorted: the order of either's table would favour it.
        let mut names: Vec<_> = official.names().into_iter().map(str::to_owned).collect();
        names.sort();
        let ours = || names.iter().for_each(|name| assert!(black_box(mine.tensor(name)).is_some()));
        let theirs = || names.iter().for_each(|name| assert!(black_box(official.tensor(name)).is_ok()));
        row(&mut table, &format!("look {count} of them up by name"), 25, ours, theirs);
        let views: Vec<_> = mine.tensors().collect();
        let ours = || {
            let layout =
                views.iter().map(|(name, view)| (*name, view.dtype(), TensorData::shape(view).to_vec()));
            drop(black_box(Save::new().layout(layout)));
        };
        let theirs = || {
            let empty = std::collections::HashMap::new();
            drop(black_box(safetensors::serialize(official.iter(), Some(empty))));
        };
        row(&mut table, &format!("lay {count} tensors out (theirs: serialize)"), 9, ours, theirs);
    }
    let hostile = nested(48_000_000);
    let ours = || assert!(SafeTensors::parse(&hostile).is_ok());
    let theirs = || assert!(Official::deserialize(&hostile).is_ok());
    row(&mut table, "a header of 48 MB, nested arrays", 3, ours, theirs);
    print!("{table}");
    if let Some(page) = arguments.update {
        let text = std::fs::read_to_string(&page)?;
        let text = benches::page::replace(&text, "headers", &table)?.context("no section `headers`")?;
        std::fs::write(&page, text)?;
    }
    Ok(())
}
