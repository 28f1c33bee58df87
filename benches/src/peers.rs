//! Loads one checkpoint with us and with each peer, in processes of their own and in turn, and prints a table.
//!
//! ```text
//! cargo run --release -p benches --bin peers -- --size 2.2GB --repeat 5
//! ```

mod checkpoint;
mod loaders;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use serde_json::{Value, json};
use weighbridge::write::parse_size;

use checkpoint::Layout;
use loaders::{Loader, Measure};

/// Measures loading into Candle on the CPU, beside every peer.
#[derive(Debug, Parser)]
struct Arguments {
    /// Size of the checkpoint that is made (bf16, the layout of a Llama), such as 500MB or 2.2GB.
    #[arg(long, default_value = "2.2GB", value_parser = parse_size)]
    size: u64,
    /// What its tensors are like.
    #[arg(long, value_enum, default_value = "llama")]
    layout: Layout,
    /// How often each loader runs; medians are shown.
    #[arg(long, default_value_t = 5)]
    repeat: usize,
    /// Where the checkpoint is made; a temporary directory otherwise.
    #[arg(long)]
    directory: Option<PathBuf>,
    /// Prints JSON instead of Markdown.
    #[arg(long)]
    json: bool,
    /// Only the loaders whose names contain this.
    #[arg(long, default_value = "")]
    only: String,
    /// Makes the checkpoint there, with the config.json of a Llama, and measures nothing.
    #[arg(long, value_name = "DIRECTORY")]
    make: Option<PathBuf>,
    /// One measurement in this process: a loader's name, and the file.
    #[arg(long, hide = true, num_args = 2)]
    measure: Vec<String>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let [loader, file] = &*arguments.measure {
        let measure = Loader::named(loader).context("no such loader")?.measure(Path::new(file))?;
        println!("{}", serde_json::to_string(&measure.to_json())?);
        return Ok(());
    }
    if let Some(directory) = &arguments.make {
        checkpoint::write(&directory.join("model.safetensors"), Layout::Llama, arguments.size)?;
        return checkpoint::write_config(&directory.join("config.json"), arguments.size);
    }
    let temporary = tempfile::tempdir()?;
    let directory = arguments.directory.as_deref().unwrap_or(temporary.path());
    let file = directory.join("peers.safetensors");
    let tensors = checkpoint::write(&file, arguments.layout, arguments.size)?;
    let bytes = std::fs::metadata(&file)?.len();
    eprintln!("{} tensors, {:.2} GB", tensors, bytes as f64 / 1e9);

    let loaders: Vec<_> = Loader::ALL.into_iter().filter(|l| l.name().contains(&arguments.only)).collect();
    let mut measures: Vec<Vec<Measure>> = vec![Vec::new(); loaders.len()];
    // The first round fills the page cache and is thrown away.
    for round in 0..=arguments.repeat {
        // Each round begins with another loader, so that none always follows the same one.
        for turn in 0..loaders.len() {
            let place = (round + turn) % loaders.len();
            in_child(Loader::Warm, &file)?;
            let measure = in_child(loaders[place], &file)?;
            eprintln!("{round} {:24} {:.3} s", loaders[place].name(), measure.seconds);
            if round > 0 {
                measures[place].push(measure);
            }
        }
    }
    if arguments.directory.is_some() {
        std::fs::remove_file(&file)?;
    }
    let rows: Vec<Row> = loaders.iter().zip(&measures).map(|(l, m)| Row::new(*l, m)).collect();
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&rows.iter().map(Row::to_json).collect::<Vec<_>>())?);
    } else {
        print_table(&rows, bytes);
    }
    Ok(())
}

fn in_child(loader: Loader, file: &Path) -> Result<Measure> {
    let child =
        Command::new(std::env::current_exe()?).args(["--measure", loader.name()]).arg(file).output()?;
    ensure!(child.status.success(), "{}: {}", loader.name(), String::from_utf8_lossy(&child.stderr));
    Measure::from_json(&serde_json::from_slice(&child.stdout)?).context("a measurement cannot be read")
}

/// Medians of one loader.
struct Row {
    loader: Loader,
    median: Measure,
}

impl Row {
    fn new(loader: Loader, measures: &[Measure]) -> Self {
        let median = |figure: fn(&Measure) -> f64| {
            let mut figures: Vec<_> = measures.iter().map(figure).collect();
            figures.sort_by(f64::total_cmp);
            figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
        };
        let median = Measure {
            seconds: median(|m| m.seconds),
            cpu_seconds: median(|m| m.cpu_seconds),
            peak_bytes: median(|m| m.peak_bytes),
            tensor_bytes: median(|m| m.tensor_bytes),
            page_faults: median(|m| m.page_faults),
        };
        Self { loader, median }
    }

    fn to_json(&self) -> Value {
        json!({ "loader": self.loader.name(), "median": self.median.to_json() })
    }
}

fn print_table(rows: &[Row], bytes: u64) {
    let ours = |dtype| {
        let ours = rows.iter().find(|row| row.loader.is_ours() && row.loader.casts() == dtype);
        ours.map_or(f64::NAN, |row| row.median.seconds)
    };
    println!(
        "| loader | seconds | GB/s | our VarBuilder is | CPU seconds | peak above tensors, MiB | page faults |"
    );
    println!("|---|---|---|---|---|---|---|");
    for Row { loader, median } in rows {
        println!(
            "| {} | {:.3} | {:.2} | {:.2}x | {:.3} | {:.0} | {:.0} |",
            loader.title(),
            median.seconds,
            bytes as f64 / 1e9 / median.seconds,
            median.seconds / ours(loader.casts()),
            median.cpu_seconds,
            (median.peak_bytes - median.tensor_bytes) / f64::from(1 << 20),
            median.page_faults,
        );
    }
}
