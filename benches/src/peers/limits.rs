//! What the machine itself takes for the same bytes: programs that no loader which copies, and no writer, can beat.
//! They make no tensors, know where everything is, and do nothing but what cannot be left out.

use std::fs::File;
use std::hint::black_box;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result, bail};
use memmap2::{Advice, MmapMut};
use rustix::fs::{FallocateFlags, fallocate};
use weighbridge::plan::{Cast, Input, Operation, Tiles};
use weighbridge::{Checkpoint, Dtype};

use crate::measure::{Measure, Size, measure};
use crate::saves::Destination;
use crate::work::{Job, Side, Way};

pub(crate) const COPY: Way = Way {
    name: "limit",
    title: "the limit of a copy: every core, `pread`, huge pages",
    side: Side::Machine,
    run: |job| measure(|| read_all(&job.files), |memory| job_size(memory.iter().map(|part| part.len()))),
};

pub(crate) const CAST: Way = Way {
    name: "limit",
    title: "the limit of a cast: every core, `pread` of 256 KiB into the cache, cast into huge pages",
    side: Side::Machine,
    run: |job| {
        let cast = to_f32(job)?;
        let all = || job.files.iter().map(|file| cast_shared(file, &*cast)).collect::<Result<Vec<_>>>();
        measure(all, |memory| cast_size(memory.iter().map(|part| part.len())))
    },
};

pub(crate) const SMALL: Way = Way {
    name: "limit-small",
    title: "the limit of small tensors: every core, an allocation and a `pread` for each",
    side: Side::Machine,
    run: |job| {
        let read = |file: &File, bytes: Range<u64>, _: &mut Vec<u8>| {
            let mut memory = Vec::with_capacity((bytes.end - bytes.start) as usize);
            fill(file, bytes, &mut memory)?;
            Ok(memory)
        };
        measure(|| each_tensor(job, read), |tensors| job_size(tensors.iter().map(Vec::len)))
    },
};

pub(crate) const SMALL_CAST: Way = Way {
    name: "limit-small",
    title: "the limit of small tensors: every core, an allocation, a `pread` into the cache and a cast for each",
    side: Side::Machine,
    run: |job| {
        let cast = to_f32(job)?;
        let read = |file: &File, bytes: Range<u64>, buffer: &mut Vec<u8>| {
            buffer.clear();
            buffer.reserve((bytes.end - bytes.start) as usize);
            fill(file, bytes, buffer)?;
            let mut memory = Box::<[u8]>::new_uninit_slice(buffer.len() * 2);
            compute(&*cast, buffer, &mut memory)?;
            Ok(memory)
        };
        measure(|| each_tensor(job, read), |tensors| cast_size(tensors.iter().map(|tensor| tensor.len())))
    },
};

pub(crate) const SAVE: Way = Way {
    name: "limit",
    title: "the limit of a save: room made first, every core, `pwrite`, and `fsync`",
    side: Side::Machine,
    run: save,
};

/// Where all that was stored is in memory afterwards.
fn job_size(parts: impl Iterator<Item = usize>) -> Size {
    let bytes = parts.map(|len| len as u64).sum();
    Size { tensors: bytes, moved: bytes }
}

/// The same, twice as large as it was stored.
fn cast_size(parts: impl Iterator<Item = usize>) -> Size {
    let Size { tensors, moved } = job_size(parts);
    Size { tensors, moved: moved / 2 }
}

/// Every core reads its share of each file into one mapping with huge pages.
pub(crate) fn read_all(files: &[impl AsRef<Path>]) -> Result<Vec<MmapMut>> {
    files.iter().map(|file| read_shared(file.as_ref())).collect()
}

fn read_shared(file: &Path) -> Result<MmapMut> {
    const CHUNK: usize = 4 << 20;
    let file = File::open(file)?;
    let len = usize::try_from(file.metadata()?.len())?;
    let mut memory = huge_pages(len)?;
    let share = share(len)?.next_multiple_of(CHUNK);
    let read = |start: usize, memory: &mut [u8]| -> Result<()> {
        for (number, chunk) in memory.chunks_mut(CHUNK).enumerate() {
            file.read_exact_at(chunk, (start + number * CHUNK) as u64)?;
        }
        Ok(())
    };
    on_all_cores(
        memory.chunks_mut(share).enumerate().map(|(number, part)| move || read(number * share, part)),
    )?;
    Ok(memory)
}

/// The same, with each value made an `f32`.
fn cast_shared(file: &Path, cast: &dyn Tiles) -> Result<MmapMut> {
    const STORED: usize = 256 << 10;
    let file = File::open(file)?;
    let len = usize::try_from(file.metadata()?.len())? / 2 * 2;
    let mut memory = huge_pages(len * 2)?;
    let share = share(len)?.next_multiple_of(STORED);
    let read = |start: usize, memory: &mut [u8]| -> Result<()> {
        let mut buffer = vec![0; STORED];
        for (number, made) in memory.chunks_mut(2 * STORED).enumerate() {
            let stored = &mut buffer[..made.len() / 2];
            file.read_exact_at(stored, (start + number * STORED) as u64)?;
            compute(cast, stored, uninit(made))?;
        }
        Ok(())
    };
    let parts = memory.chunks_mut(share * 2).enumerate();
    on_all_cores(parts.map(|(number, part)| move || read(number * share, part)))?;
    Ok(memory)
}

/// Has every core make its share of the job's tensors, which are in one file, in order.
fn each_tensor<T: Send>(
    job: &Job,
    make: impl Fn(&File, Range<u64>, &mut Vec<u8>) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let file = File::open(&job.files[0])?;
    let mut header = [0; 8];
    file.read_exact_at(&mut header, 0)?;
    let mut start = 8 + u64::from_le_bytes(header);
    let ranges: Vec<_> = job
        .tensors
        .iter()
        .map(|(_, shape)| {
            let bytes = start..start + 2 * shape.iter().product::<usize>() as u64;
            start = bytes.end;
            bytes
        })
        .collect();
    let mut tensors: Vec<Option<T>> = ranges.iter().map(|_| None).collect();
    let share = share(ranges.len())?;
    let parts = tensors.chunks_mut(share).zip(ranges.chunks(share));
    on_all_cores(parts.map(|(tensors, ranges)| {
        let (file, make) = (&file, &make);
        move || {
            let mut buffer = Vec::new();
            for (tensor, bytes) in tensors.iter_mut().zip(ranges) {
                *tensor = Some(make(file, bytes.clone(), &mut buffer)?);
            }
            Ok(())
        }
    }))?;
    tensors.into_iter().collect::<Option<_>>().context("a tensor is missing")
}

/// Every core writes its share of a file for which there is room already.
fn save(job: &Job) -> Result<Measure> {
    const PIECE: usize = 1 << 20;
    let len = job.byte_len()?;
    let piece = vec![0x3C; PIECE];
    let to = Destination::of(job)?;
    let write = || {
        let file = File::create(to.path())?;
        fallocate(&file, FallocateFlags::empty(), 0, len)?;
        let share = (share(usize::try_from(len)?)?.next_multiple_of(PIECE)) as u64;
        let write = |bytes: Range<u64>| -> Result<()> {
            for offset in bytes.clone().step_by(PIECE) {
                let part = (bytes.end - offset).min(PIECE as u64) as usize;
                file.write_all_at(&piece[..part], offset)?;
            }
            Ok(())
        };
        let parts = (0..len).step_by(usize::try_from(share)?).map(|start| start..len.min(start + share));
        on_all_cores(parts.map(|bytes| || write(bytes)))?;
        Ok(file.sync_all()?)
    };
    measure(write, |()| Size { tensors: 0, moved: len })
}

/// Runs each task on a thread of its own.
fn on_all_cores<F: FnOnce() -> Result<()> + Send>(tasks: impl Iterator<Item = F>) -> Result<()> {
    thread::scope(|scope| {
        let threads: Vec<_> = tasks.map(|task| scope.spawn(task)).collect();
        let join = |thread: thread::ScopedJoinHandle<'_, Result<()>>| {
            thread.join().unwrap_or_else(|_| bail!("a thread panicked"))
        };
        threads.into_iter().try_for_each(join)
    })
}

/// What one core has of so many.
fn share(count: usize) -> Result<usize> {
    Ok(count.div_ceil(thread::available_parallelism()?.get()).max(1))
}

fn huge_pages(len: usize) -> Result<MmapMut> {
    let memory = MmapMut::map_anon(len)?;
    memory.advise(Advice::HugePage)?;
    Ok(memory)
}

/// Our own loops from BF16 to F32, without an engine around them.
fn to_f32(job: &Job) -> Result<Arc<dyn Tiles>> {
    let checkpoint = Checkpoint::open(&job.directory)?;
    let first = checkpoint.tensors().next().context("no tensors")?;
    Ok(Arc::clone(Cast::to(Dtype::F32).bind(&[Input::of(&first)])?.tiles()))
}

fn compute(cast: &dyn Tiles, stored: &[u8], made: &mut [MaybeUninit<u8>]) -> Result<()> {
    black_box(cast.compute(0..made.len() as u64, stored, made)?);
    Ok(())
}

/// Reads into memory that has room for the bytes, and no values yet.
fn fill(file: &File, bytes: Range<u64>, memory: &mut Vec<u8>) -> Result<()> {
    let len = (bytes.end - bytes.start) as usize;
    while memory.len() < len {
        let (offset, left) = (bytes.start + memory.len() as u64, len - memory.len());
        let room = &mut memory.spare_capacity_mut()[..left];
        let (read, _) = rustix::io::pread(file, room, offset)?;
        let read = read.len();
        if read == 0 {
            bail!("the file is too short");
        }
        #[allow(unsafe_code)]
        // SAFETY: so many bytes behind the vector's end were initialised by the read.
        unsafe {
            memory.set_len(memory.len() + read);
        }
    }
    Ok(())
}

fn uninit(memory: &mut [u8]) -> &mut [MaybeUninit<u8>] {
    #[allow(unsafe_code)]
    // SAFETY: the same memory, of a type that asks for less; nothing that is not initialised is written to it.
    unsafe {
        &mut *(std::ptr::from_mut(memory) as *mut [MaybeUninit<u8>])
    }
}
