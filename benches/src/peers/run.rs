//! Measurements in processes of their own, in rounds, each in another order.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use gpu_check_common::complaint::complaint;
use memmap2::{Advice, MmapMut};

use crate::cold::drop_pages;
use crate::limits::read_all;
use crate::measure::Measure;
use crate::python::Python;
use crate::results::{Absent, Row, Table};
use crate::work::{Job, Side, Work};

/// How to run.
#[derive(Debug)]
pub(crate) struct Run<'a> {
    pub(crate) size: u64,
    pub(crate) repeat: usize,
    /// Only ways whose names contain one of these; all if there is none.
    pub(crate) only: &'a [String],
    /// A measurement that takes longer is given up, and its way with it.
    pub(crate) limit: Duration,
    pub(crate) python: Option<&'a Python>,
}

/// Who takes part in a work.
#[derive(Debug)]
struct Contender {
    name: String,
    title: String,
    side: Side,
    command: Command,
    measures: Vec<Measure>,
    /// Why it is out.
    failure: Option<String>,
}

impl Run<'_> {
    /// Measures a work whose checkpoint is in `directory`.
    pub(crate) fn work(&self, work: &'static Work, directory: &Path) -> Result<Table> {
        let job = Job::new(work, directory.to_owned(), self.size)?;
        let mut contenders = self.contenders(&job)?;
        // The first round finds out who cannot take part, and is thrown away.
        for round in 0..=self.repeat {
            for place in shuffled(contenders.len(), round) {
                let contender = &mut contenders[place];
                if contender.failure.is_some() {
                    continue;
                }
                self.child(&mut own_command(&job, WARM, self.size)?).context("warming up")?;
                if work.cold {
                    drop_pages(&job)?;
                }
                match self.child(&mut contender.command) {
                    Ok(measure) => {
                        eprintln!("{} {round} {:24} {:.4} s", work.name, contender.name, measure.seconds);
                        if round > 0 {
                            contender.measures.push(measure);
                        }
                    }
                    Err(error) => {
                        eprintln!("{} {round} {:24} {error}", work.name, contender.name);
                        contender.failure = Some(error.to_string());
                    }
                }
            }
        }
        let mut table = Table {
            name: work.name.to_owned(),
            tensors: job.tensors.len(),
            files: job.files.len(),
            bytes: job.byte_len()?,
            rows: Vec::new(),
            absent: Vec::new(),
        };
        for Contender { name, title, side, measures, failure, .. } in contenders {
            match (failure, Measure::median(&measures)) {
                (None, Some(median)) => {
                    let seconds = measures.iter().map(|measure| measure.seconds).collect();
                    table.rows.push(Row { name, title, side, median, seconds });
                }
                (failure, _) => {
                    table.absent.push(Absent { title, reason: failure.unwrap_or_default() });
                }
            }
        }
        Ok(table)
    }

    fn contenders(&self, job: &Job) -> Result<Vec<Contender>> {
        let mut contenders = Vec::new();
        for way in job.work.ways {
            contenders.push(Contender {
                name: way.name.to_owned(),
                title: way.title.to_owned(),
                side: way.side,
                command: own_command(job, way.name, self.size)?,
                measures: Vec::new(),
                failure: None,
            });
        }
        if let Some(python) = self.python.filter(|_| job.work.python) {
            contenders.extend(python.loaders.iter().cloned().map(|loader| Contender {
                command: python.command(&loader.name, &job.files),
                name: loader.name,
                title: loader.title,
                side: Side::Peer,
                measures: Vec::new(),
                failure: loader.absent,
            }));
        }
        let wanted = |name: &str| self.only.is_empty() || self.only.iter().any(|part| name.contains(part));
        contenders.retain(|contender| wanted(&contender.name));
        Ok(contenders)
    }

    /// What a process measures in itself and prints.
    fn child(&self, command: &mut Command) -> Result<Measure> {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let start = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if start.elapsed() > self.limit {
                child.kill()?;
                child.wait()?;
                bail!("took longer than {} seconds", self.limit.as_secs());
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        // Both are short enough for their pipes.
        let (mut out, mut errors) = (String::new(), String::new());
        child.stdout.take().context("no output")?.read_to_string(&mut out)?;
        child.stderr.take().context("no output")?.read_to_string(&mut errors)?;
        ensure!(status.success(), "{}", complaint(&errors).unwrap_or_else(|| status.to_string()));
        // Libraries may print, too: the measurement is the last line.
        let line = out.trim().lines().last().context("it printed nothing")?;
        serde_json::from_str(line).with_context(|| format!("{line} is not a measurement"))
    }
}

/// The name of no way: what goes before each measurement.
const WARM: &str = "warm";

/// This program, to measure one way of a work in itself.
fn own_command(job: &Job, way: &str, size: u64) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--measure", job.work.name, way]).arg(&job.directory).args(["--size", &size.to_string()]);
    Ok(command)
}

/// What [`own_command`] does.
pub(crate) fn measure(work: &'static Work, way: &str, directory: PathBuf, size: u64) -> Result<Measure> {
    let job = Job::new(work, directory, size)?;
    if way == WARM {
        return warm(&job);
    }
    (work.way(way).context("no such way")?.run)(&job)
}

/// Touches as much memory as the hungriest way will, so that a virtual machine has it from its host before a
/// measurement, and, unless the work is cold, the files, so that they are in the page cache.
fn warm(job: &Job) -> Result<Measure> {
    crate::measure::measure(
        || {
            if !job.work.cold {
                drop(read_all(&job.files)?);
            }
            let mut memory = MmapMut::map_anon((usize::try_from(job.byte_len()?)? * 7 / 2).min(available()))?;
            memory.advise(Advice::HugePage)?;
            memory.chunks_mut(4096).for_each(|page| page[0] = 1);
            Ok(memory)
        },
        |memory| crate::measure::Size { tensors: memory.len() as u64, moved: 0 },
    )
}

/// Half of the memory that the kernel could give.
fn available() -> usize {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kilobytes = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<usize>().ok());
    kilobytes.unwrap_or(2 << 20) * 1024 / 2
}

/// The numbers below `count` in an order that depends on the round: nobody always follows the same one.
fn shuffled(count: usize, round: usize) -> Vec<usize> {
    let mut places: Vec<_> = (0..count).collect();
    let mut state = round as u64 + 1;
    for last in (1..count).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        places.swap(last, (state >> 33) as usize % (last + 1));
    }
    places
}
