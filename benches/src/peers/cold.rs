//! Loads from the disk: nothing of the files is in the page cache.

use std::fs::File;
use std::io::Read;

use anyhow::Result;
use benches::loaders::ours;
use rustix::fs::{Advice, fadvise};
use weighbridge::engine::PageCache;

use crate::loads::{CANDLE_LOAD, CANDLE_MMAP, LOAD, OUR_LOAD, VAR_BUILDER, in_candle};
use crate::measure::{Measure, Size, measure};
use crate::work::{Column, Job, Side, Way, Work};

pub(crate) const COLD: Work = Work {
    name: "cold",
    title: "The same Llama from the disk, page cache cold",
    cold: true,
    ways: &[SEQUENTIAL, VAR_BUILDER, OUR_LOAD, RELEASED, CANDLE_MMAP, CANDLE_LOAD],
    columns: &[Column::Speed, Column::DiskRead, Column::Cpu, Column::Peak],
    ..LOAD
};

const SEQUENTIAL: Way = Way {
    name: "sequential",
    title: "the file in order, 128 KiB at a time, as `cat` does",
    side: Side::Machine,
    run: sequential,
};

/// What it leaves behind is in the table of `slow-files`.
const RELEASED: Way = Way {
    name: "weighbridge-released",
    title: "**weighbridge** `load`, page cache released",
    side: Side::Ours,
    run: |job| in_candle(job, || ours(&job.directory, job.work.dtype, PageCache::Release)),
};

fn sequential(job: &Job) -> Result<Measure> {
    let read = || {
        let mut buffer = vec![0; 128 << 10];
        let mut total = 0;
        for file in &job.files {
            let mut file = File::open(file)?;
            loop {
                match file.read(&mut buffer)? {
                    0 => break,
                    count => total += count as u64,
                }
            }
        }
        Ok(total)
    };
    measure(read, |&total| Size { tensors: 0, moved: total })
}

/// Takes the pages of the job's files out of the page cache. The table's column of bytes that came from the
/// disk shows whether it worked.
pub(crate) fn drop_pages(job: &Job) -> Result<()> {
    for file in &job.files {
        let file = File::open(file)?;
        // Pages that are not yet on the disk stay.
        file.sync_all()?;
        fadvise(&file, 0, None, Advice::DontNeed)?;
    }
    // Drops what a mapping still held, too; it needs the administrator, and the pages are gone without.
    let _ = std::fs::write("/proc/sys/vm/drop_caches", "1");
    Ok(())
}
