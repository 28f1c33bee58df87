//! `peers`: us beside every peer, each measurement in a process of its own and in turn.

mod burn;
mod cold;
mod limits;
mod loads;
mod machine;
mod markdown;
mod measure;
mod modules;
mod opening;
mod opens;
mod python;
mod ranks;
mod results;
mod run;
mod saves;
mod svg;
mod training;
mod work;
mod works;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use benches::checkpoint::{self, Layout};
use clap::Parser;
use weighbridge::write::parse_size;

use machine::Machine;
use python::Python;
use results::Results;
use run::Run;
use work::Work;

const EXAMPLES: &str = "\
Examples:
  peers                                     everything that was built in, as Markdown
  peers --size 100MB --repeat 1             to see that it works
  peers --work load,cast --only candle,weighbridge
  peers --python .venv/bin/python --output results --update docs/benchmarks.md --update README.md
  peers --from results/peers.json --update docs/benchmarks.md
  peers --make DIRECTORY --size 2.2GB       a Llama to measure other programs with

Works: load, cast, shards, small (small, small-cast), rank (rank-rows, rank-columns),
open (open-headers, open-first), cold, save, burn (burn-load, burn-save, burn-train). Build with --features burn for Burn's.";

/// Measures loading and saving beside every peer, on the CPU.
#[derive(Debug, Parser)]
#[command(after_help = EXAMPLES)]
struct Arguments {
    /// Only these works; all otherwise.
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    work: Vec<String>,
    /// Only ways whose names contain one of these.
    #[arg(long, value_delimiter = ',', value_name = "PARTS")]
    only: Vec<String>,
    /// Size of the checkpoints that are made (bf16), such as 500MB; that of small tensors ends at 1.3 GB.
    #[arg(long, default_value = "2.2GB", value_parser = parse_size)]
    size: u64,
    /// How often each way runs; medians are shown.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    repeat: u64,
    /// Where checkpoints are made, in a directory that is removed at the end; on a disk, for cold loads and
    /// saves.
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    directory: PathBuf,
    /// A Python interpreter, to measure the loaders that it has.
    #[arg(long)]
    python: Option<PathBuf>,
    /// Gives up a way when one measurement takes longer than so many seconds.
    #[arg(long, default_value_t = 120, value_name = "SECONDS")]
    limit: u64,
    /// Writes peers.json, peers.md and a chart of each work there.
    #[arg(long, value_name = "DIRECTORY")]
    output: Option<PathBuf>,
    /// Replaces the marked sections of a page with what was measured, and its charts; may be repeated.
    #[arg(long, value_name = "PAGE")]
    update: Vec<PathBuf>,
    /// Measures nothing, and takes a peers.json from before.
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// Prints JSON instead of Markdown.
    #[arg(long)]
    json: bool,
    /// Makes a checkpoint there and measures nothing; a Llama comes with its config.json.
    #[arg(long, value_name = "DIRECTORY")]
    make: Option<PathBuf>,
    /// Which checkpoint to make.
    #[arg(long, value_enum, default_value_t = Layout::Llama, requires = "make")]
    layout: Layout,
    /// One measurement in this process: a work, a way, and the checkpoint's directory.
    #[arg(long, hide = true, num_args = 3)]
    measure: Vec<String>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let [work, way, directory] = &*arguments.measure {
        let work = works::ALL.into_iter().find(|known| known.name == work).context("no such work")?;
        let measure = run::measure(work, way, directory.into(), arguments.size)?;
        println!("{}", serde_json::to_string(&measure)?);
        return Ok(());
    }
    if let Some(directory) = &arguments.make {
        arguments.layout.write(directory, arguments.size)?;
        return match arguments.layout {
            Layout::Small => Ok(()),
            _ => checkpoint::write_config(&directory.join("config.json"), arguments.size),
        };
    }
    let results = match &arguments.from {
        Some(file) => serde_json::from_reader(BufReader::new(File::open(file)?))?,
        None => run_all(&arguments)?,
    };
    if let Some(directory) = &arguments.output {
        write(directory, &results)?;
    }
    for page in &arguments.update {
        markdown::update(page, &results)?;
    }
    match arguments.json {
        true => println!("{}", serde_json::to_string_pretty(&results)?),
        false => println!("{}", markdown::page(&results)),
    }
    Ok(())
}

/// The works that were asked for.
fn chosen(names: &[String]) -> Result<Vec<&'static Work>> {
    for name in names {
        ensure!(works::ALL.iter().any(|work| work.is_meant(name)), "there is no work {name:?}; see --help");
    }
    let meant = |work: &&Work| names.is_empty() || names.iter().any(|name| work.is_meant(name));
    Ok(works::ALL.into_iter().filter(meant).collect())
}

fn run_all(arguments: &Arguments) -> Result<Results> {
    let works = chosen(&arguments.work)?;
    let machine = Machine::here(&arguments.directory);
    if machine.filesystem == "tmpfs" {
        eprintln!("{} is in memory: cold loads and saves mean nothing there", arguments.directory.display());
    }
    let python = arguments.python.clone().map(Python::new).transpose()?;
    let run = Run {
        size: arguments.size,
        repeat: usize::try_from(arguments.repeat)?,
        only: &arguments.only,
        limit: Duration::from_secs(arguments.limit),
        python: python.as_ref(),
    };
    let temporary = tempfile::tempdir_in(&arguments.directory)?;
    let mut tables = Vec::new();
    // One checkpoint at a time is on the disk, and in the page cache.
    for layout in works.iter().map(|work| work.layout).collect::<BTreeSet<_>>() {
        let directory = temporary.path().join(layout.name());
        layout.write(&directory, arguments.size)?;
        for work in works.iter().filter(|work| work.layout == layout) {
            tables.push(run.work(work, &directory)?);
        }
        std::fs::remove_dir_all(&directory)?;
    }
    let place = |name: &str| works::ALL.iter().position(|work| work.name == name);
    tables.sort_by_key(|table| place(&table.name));
    Ok(Results { machine, size: arguments.size, repeat: run.repeat, works: tables })
}

fn write(directory: &Path, results: &Results) -> Result<()> {
    std::fs::create_dir_all(directory)?;
    let json = File::create(directory.join("peers.json"))?;
    serde_json::to_writer_pretty(json, results)?;
    std::fs::write(directory.join("peers.md"), markdown::page(results))?;
    for table in &results.works {
        let Some(work) = table.work() else { continue };
        let chart = directory.join(format!("{}.svg", work.name));
        std::fs::write(chart, svg::chart(results, table, work))?;
    }
    Ok(())
}
