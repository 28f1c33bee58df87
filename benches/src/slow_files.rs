//! `slow-files`: whole loads from file systems on which every request takes its time, and what they leave in the page
//! cache, as a Markdown table.
//!
//! The file system is one of ours (`tests/slow-files`): its requests overlap, and each takes 2 ms, as on a server in
//! another building. It has the page cache in front of it, or not (`direct_io`). With `--update docs/benchmarks.md` the
//! table goes into that page's section `slow-files`, too.

use std::path::{Path, PathBuf};

use clap::Parser;

/// Measures loads from slow file systems.
#[derive(Debug, Parser)]
struct Arguments {
    /// Bytes of the checkpoint.
    #[arg(long, default_value_t = 400_000_000)]
    size: u64,
    /// Milliseconds that a request takes.
    #[arg(long, default_value_t = 2)]
    delay: u64,
    /// How often each is measured; the table has medians.
    #[arg(long, default_value_t = 3)]
    repeat: usize,
    /// Where the checkpoint is made: on a disk.
    #[arg(long, default_value = ".")]
    directory: PathBuf,
    /// Replaces the section `slow-files` of a page.
    #[arg(long, value_name = "PAGE")]
    update: Option<PathBuf>,
}

#[cfg(target_os = "linux")]
fn main() -> anyhow::Result<()> {
    linux::run(&Arguments::parse())
}

#[cfg(not(target_os = "linux"))]
fn main() -> anyhow::Result<()> {
    let Arguments { size: _, delay: _, repeat: _, directory: _, update: _ } = Arguments::parse();
    anyhow::bail!("slow file systems are measured on Linux")
}

#[cfg(target_os = "linux")]
mod linux {
    use std::fmt::Write;
    use std::fs::File;
    use std::time::{Duration, Instant};

    use anyhow::{Context, Result};
    use benches::checkpoint::{Layout, files};
    use benches::loaders::{candle_load, candle_mapped, collect, map, ours};
    use candle_core::{DType, Tensor};
    use safetensors::SafeTensors;
    use slow_files::Behaviour;
    use weighbridge::engine::PageCache;
    use weighbridge_tests::page_cache::{evict, resident_bytes};

    use super::{Arguments, Path, PathBuf};

    const LAYOUT: Layout = Layout::Llama;

    /// What is loaded, in the order in which a model asks.
    struct Job {
        directory: PathBuf,
        files: Vec<PathBuf>,
        tensors: Vec<(String, Vec<usize>)>,
    }

    type Load = fn(&Job) -> Result<Loaded>;

    /// Values that are in memory.
    enum Loaded {
        Tensors(#[expect(dead_code, reason = "they are dropped when the clock has stopped")] Vec<Tensor>),
        Bytes(#[expect(dead_code, reason = "as above")] Vec<Vec<u8>>),
    }

    const WAYS: [(&str, Load); 5] = [
        ("**weighbridge** `load`", |job| our_load(job, PageCache::Keep)),
        ("**weighbridge** `load`, page cache released", |job| our_load(job, PageCache::Release)),
        ("candle `VarBuilder::from_mmaped_safetensors`", |job| {
            Ok(Loaded::Tensors(collect(&candle_mapped(&job.files, DType::BF16)?, &job.tensors)?))
        }),
        ("candle `safetensors::load`", |job| Ok(Loaded::Tensors(candle_load(&job.files)?))),
        ("safetensors: mapped, `to_vec` of each", official_mapped),
    ];

    fn our_load(job: &Job, page_cache: PageCache) -> Result<Loaded> {
        Ok(Loaded::Tensors(ours(&job.directory, DType::BF16, page_cache)?))
    }

    fn official_mapped(job: &Job) -> Result<Loaded> {
        let mut all = Vec::new();
        for file in &job.files {
            let map = map(file)?;
            let tensors = SafeTensors::deserialize(&map)?;
            all.extend(tensors.tensors().into_iter().map(|(_, view)| view.data().to_vec()));
        }
        Ok(Loaded::Bytes(all))
    }

    #[derive(Clone, Copy)]
    struct Measured {
        seconds: f64,
        requests: f64,
        left: f64,
    }

    /// The disk itself, or a file system in front of it.
    const PLACES: [(&str, Option<bool>); 3] = [
        ("the disk, cold", None),
        ("a slow file system", Some(false)),
        ("the same with `direct_io`", Some(true)),
    ];

    pub(super) fn run(arguments: &Arguments) -> Result<()> {
        let directory = tempfile::tempdir_in(&arguments.directory)?;
        LAYOUT.write(directory.path(), arguments.size)?;
        let bytes = LAYOUT.byte_len(arguments.size);
        let mut table = "| | way | s | GB/s | ours is | requests | left in the page cache |\n".to_owned();
        table += "|---|---|---:|---:|---:|---:|---:|\n";
        for (place, direct_io) in PLACES {
            let mut measured: [Vec<Measured>; WAYS.len()] = Default::default();
            for _ in 0..arguments.repeat {
                // In turns, so that whatever else the machine does hits all alike.
                for ((_, load), measured) in WAYS.iter().zip(&mut measured) {
                    let behaviour = direct_io.map(|direct_io| Behaviour {
                        direct_io,
                        delay: Duration::from_millis(arguments.delay),
                        broken_from: None,
                    });
                    measured.push(measure(directory.path(), behaviour, *load, arguments.size)?);
                }
            }
            let medians = measured.map(|measured| median(&measured));
            for ((way, _), measure) in WAYS.iter().zip(&medians) {
                let Measured { seconds, requests, left } = *measure;
                let requests = if direct_io.is_some() { format!("{requests:.0}") } else { String::new() };
                let _ = writeln!(
                    table,
                    "| {place} | {way} | {seconds:.2} | {:.2} | {:.1}x | {requests} | {:.0} % |",
                    bytes as f64 / 1e9 / seconds,
                    seconds / medians[0].seconds,
                    left * 100.0 / bytes as f64,
                );
            }
        }
        print!("{table}");
        if let Some(page) = &arguments.update {
            let text = std::fs::read_to_string(page)?;
            let text =
                benches::page::replace(&text, "slow-files", &table)?.context("no section `slow-files`")?;
            std::fs::write(page, text)?;
        }
        Ok(())
    }

    fn measure(disk: &Path, behaviour: Option<Behaviour>, load: Load, size: u64) -> Result<Measured> {
        let on_disk = files(disk)?;
        let paths = on_disk.iter().map(PathBuf::as_path);
        let mounted = match behaviour {
            None => {
                evict(paths);
                None
            }
            // What is behind it is not measured.
            Some(behaviour) => {
                for path in paths {
                    std::io::copy(&mut File::open(path)?, &mut std::io::sink())?;
                }
                Some(behaviour.mount(disk).context("no FUSE file system can be mounted")?)
            }
        };
        let directory = mounted.as_ref().map_or(disk, |mounted| mounted.path()).to_owned();
        let job = Job { files: files(&directory)?, directory, tensors: LAYOUT.tensors(size) };
        let start = Instant::now();
        let loaded = load(&job)?;
        let seconds = start.elapsed().as_secs_f64();
        drop(loaded);
        let requests = mounted.as_ref().map_or(0, slow_files::Mounted::requests) as f64;
        let left = job.files.iter().map(|file| resident_bytes(file)).sum::<u64>() as f64;
        Ok(Measured { seconds, requests, left })
    }

    fn median(measured: &[Measured]) -> Measured {
        let median = |figure: fn(&Measured) -> f64| {
            let mut figures: Vec<_> = measured.iter().map(figure).collect();
            figures.sort_by(f64::total_cmp);
            figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
        };
        Measured {
            seconds: median(|m| m.seconds),
            requests: median(|m| m.requests),
            left: median(|m| m.left),
        }
    }
}
