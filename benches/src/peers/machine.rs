//! What a run was made on, and with which versions.

use std::path::Path;

use serde::{Deserialize, Serialize};

/// The packages whose versions a page must name.
const PEERS: [&str; 3] = ["candle-core", "safetensors", "burn-store"];

/// The machine, as its kernel describes it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) processor: String,
    pub(crate) cores: usize,
    pub(crate) memory_bytes: u64,
    pub(crate) kernel: String,
    /// Where the checkpoints were.
    pub(crate) filesystem: String,
    pub(crate) huge_pages: String,
    /// Of the peers, name and version.
    pub(crate) versions: Vec<(String, String)>,
}

impl Machine {
    pub(crate) fn here(directory: &Path) -> Self {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, label: &str| {
            let line = text.lines().find(|line| line.starts_with(label));
            line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned())
        };
        let memory = field(&read("/proc/meminfo"), "MemTotal");
        let kilobytes = memory.and_then(|text| text.trim_end_matches(" kB").parse::<u64>().ok());
        let huge = read("/sys/kernel/mm/transparent_hugepage/enabled");
        let chosen = huge.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
        Self {
            processor: field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "unknown".to_owned()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: kilobytes.unwrap_or(0) * 1024,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            filesystem: filesystem(&read("/proc/self/mountinfo"), directory),
            huge_pages: chosen.map_or_else(|| "unknown".to_owned(), |(chosen, _)| chosen.to_owned()),
            versions: PEERS.map(|name| (name.to_owned(), version(name))).to_vec(),
        }
    }

    /// In a sentence.
    pub(crate) fn describe(&self) -> String {
        let versions: Vec<_> =
            self.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
        format!(
            "Machine: {} cores of {}, {:.0} GB of memory, Linux {}, {}, transparent huge pages on `{}`. Peers: {}.",
            self.cores,
            self.processor,
            self.memory_bytes as f64 / 1e9,
            self.kernel,
            self.filesystem,
            self.huge_pages,
            versions.join(", "),
        )
    }
}

/// The kind of the filesystem that `directory` is on.
fn filesystem(mounts: &str, directory: &Path) -> String {
    let directory = directory.canonicalize().unwrap_or_else(|_| directory.to_owned());
    let mounts = mounts.lines().filter_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        Some((mount.split(' ').nth(4)?, kind.split(' ').next()?))
    });
    let holding = mounts.filter(|(point, _)| directory.starts_with(point));
    holding.max_by_key(|(point, _)| point.len()).map_or("unknown", |(_, kind)| kind).to_owned()
}

/// The version of a package that this program was built with: the newest that is locked.
fn version(package: &str) -> String {
    let lock = include_str!("../../../Cargo.lock");
    let entry = lock.rsplit_once(&format!("name = \"{package}\"\nversion = \"")).map(|(_, rest)| rest);
    entry.and_then(|rest| rest.split_once('"')).map_or("unknown", |(version, _)| version).to_owned()
}
