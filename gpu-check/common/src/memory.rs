//! Memory of this process, as it comes and goes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Bytes that are in memory now: all, and those of them that are pages of files.
pub fn resident() -> (u64, u64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
        kib.unwrap_or(0) << 10
    };
    (field("VmRSS:"), field("RssFile:"))
}

/// Looks every few milliseconds until it is [asked](Self::peak).
#[derive(Debug)]
pub struct Watch {
    before: (u64, u64),
    peak: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Watch {
    /// Begins.
    pub fn start() -> Self {
        let (peak, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let before = resident();
        let thread = thread::spawn({
            let (peak, stop) = (Arc::clone(&peak), Arc::clone(&stop));
            move || {
                while !stop.load(Ordering::Relaxed) {
                    let (all, file) = resident();
                    let above = all.saturating_sub(before.0);
                    // Pages of mapped files are the kernel's, and given up when it needs them.
                    peak.fetch_max(above.saturating_sub(file.saturating_sub(before.1)), Ordering::Relaxed);
                    thread::sleep(Duration::from_millis(2));
                }
            }
        });
        Self { before, peak, stop, thread }
    }

    /// The most bytes that there were above those in the beginning, without pages of files.
    pub fn peak(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let _ = (self.thread.join(), self.before);
        self.peak.load(Ordering::Relaxed)
    }
}
