//! What one piece of work takes, by the kernel's own counts.

use std::time::Instant;

use anyhow::{Context, Result};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// What one measurement gives, or the medians of several. Floats throughout, for medians and for JSON.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Measure {
    pub(crate) seconds: f64,
    /// Of all threads, the kernel's time included.
    pub(crate) cpu_seconds: f64,
    /// The peak of resident memory during the work.
    pub(crate) peak_bytes: f64,
    /// What of it is the tensors themselves.
    pub(crate) tensor_bytes: f64,
    /// Bytes of the files that the work is about: what a speed is computed from.
    pub(crate) moved_bytes: f64,
    pub(crate) page_faults: f64,
    /// Through `read` and its relatives, from the page cache or not.
    pub(crate) read_call_bytes: f64,
    /// What the kernel fetched from the disk on behalf of the process.
    pub(crate) disk_read_bytes: f64,
}

impl Measure {
    /// The median of each figure.
    pub(crate) fn median(measures: &[Self]) -> Option<Self> {
        let median = |figure: fn(&Self) -> f64| {
            let mut figures: Vec<_> = measures.iter().map(figure).collect();
            figures.sort_by(f64::total_cmp);
            figures.get(figures.len() / 2).copied()
        };
        Some(Self {
            seconds: median(|m| m.seconds)?,
            cpu_seconds: median(|m| m.cpu_seconds)?,
            peak_bytes: median(|m| m.peak_bytes)?,
            tensor_bytes: median(|m| m.tensor_bytes)?,
            moved_bytes: median(|m| m.moved_bytes)?,
            page_faults: median(|m| m.page_faults)?,
            read_call_bytes: median(|m| m.read_call_bytes)?,
            disk_read_bytes: median(|m| m.disk_read_bytes)?,
        })
    }
}

/// How large the result of a piece of work is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    /// Tensors that are in memory at the end.
    pub(crate) tensors: u64,
    /// Bytes of the files that were needed, or written.
    pub(crate) moved: u64,
}

/// Does `work` and says what it took. The clock stops before its result is dropped.
pub(crate) fn measure<T>(work: impl FnOnce() -> Result<T>, size: impl FnOnce(&T) -> Size) -> Result<Measure> {
    // Forgets the peak so far; where that is not allowed, the peak is that of the whole process.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
    let (cpu, before, start) = (cpu_seconds(), Counts::now()?, Instant::now());
    let result = work()?;
    let (seconds, cpu, after) = (start.elapsed().as_secs_f64(), cpu_seconds() - cpu, Counts::now()?);
    let size = size(&result);
    Ok(Measure {
        seconds,
        cpu_seconds: cpu,
        peak_bytes: after.peak_bytes,
        tensor_bytes: size.tensors as f64,
        moved_bytes: size.moved as f64,
        page_faults: after.page_faults - before.page_faults,
        read_call_bytes: after.read_call_bytes - before.read_call_bytes,
        disk_read_bytes: after.disk_read_bytes - before.disk_read_bytes,
    })
}

fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// What the kernel has counted of this process so far.
struct Counts {
    peak_bytes: f64,
    page_faults: f64,
    read_call_bytes: f64,
    disk_read_bytes: f64,
}

impl Counts {
    fn now() -> Result<Self> {
        let status = std::fs::read_to_string("/proc/self/status")?;
        let peak = labelled(&status, "VmHWM:").context("no VmHWM")?;
        let stat = std::fs::read_to_string("/proc/self/stat")?;
        // The name, in parentheses, may hold anything; minor faults are field 10 and major ones 12, counted
        // from 1.
        let (_, fields) = stat.rsplit_once(") ").context("no fields in stat")?;
        let fields: Vec<f64> = fields.split(' ').map(|field| field.parse().unwrap_or(0.0)).collect();
        // Some sandboxes do not have it.
        let io = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
        Ok(Self {
            peak_bytes: peak * 1024.0,
            page_faults: fields.get(7).unwrap_or(&0.0) + fields.get(9).unwrap_or(&0.0),
            read_call_bytes: labelled(&io, "rchar:").unwrap_or(0.0),
            disk_read_bytes: labelled(&io, "read_bytes:").unwrap_or(0.0),
        })
    }
}

/// The number behind a label at the start of a line.
fn labelled(text: &str, label: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(label))?;
    line.split_whitespace().next()?.parse().ok()
}
