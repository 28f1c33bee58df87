//! What a load could reach: the page cache to the device with nothing in between, and what a save could
//! reach.
//!
//! As many threads as read in a load, each with two small page-locked slabs and a stream of its own: it reads
//! into one while the device copies from the other. There are no tensors and nothing is scheduled.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use anyhow::{Result, anyhow};
use candle_core::cuda_backend::cudarc::driver::{
    CudaContext, CudaEvent, CudaSlice, CudaStream, DevicePtr, PinnedHostSlice, result, sys,
};
use gpu_check_common::checkpoint::Model;
use gpu_check_common::run::{Measured, measure};

struct Lane {
    stream: Arc<CudaStream>,
    slabs: Vec<(PinnedHostSlice<u8>, CudaEvent)>,
}

fn threads() -> usize {
    thread::available_parallelism().map_or(1, usize::from).min(16)
}

/// Brings a file to the device in pieces of `slab` bytes. The first time makes slabs, streams and memory of
/// the device, too.
pub(crate) fn load(file: &Path, model: &Model, slab: usize, repeat: usize) -> Result<Measured> {
    let context = CudaContext::new(0)?;
    let stream = context.new_stream()?;
    let file = File::open(file)?;
    let len = file.metadata()?.len();
    let lane = || {
        let slab = || {
            // SAFETY: any byte is a value of `u8`, and it is filled before it is copied.
            #[allow(unsafe_code)]
            let pinned =
                unsafe { context.alloc_pinned_with_flags::<u8>(slab, sys::CU_MEMHOSTALLOC_PORTABLE) }?;
            let event = context.new_event(Some(sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC))?;
            Ok((pinned, event))
        };
        let slabs = [slab(), slab()].into_iter().collect::<Result<_>>()?;
        Ok::<_, anyhow::Error>(Lane { stream: context.new_stream()?, slabs })
    };
    let mut lanes: Vec<Option<Lane>> = (0..threads()).map(|_| None).collect();
    let mut device: Option<CudaSlice<u8>> = None;
    let bring = || {
        let device = match device.take() {
            Some(device) => device,
            // SAFETY: all of it is copied to before it is read.
            #[allow(unsafe_code)]
            None => unsafe { stream.alloc(len as usize) }?,
        };
        stream.synchronize()?;
        let (to, _) = device.device_ptr(&stream);
        let next = AtomicU64::new(0);
        let (next, lane, file) = (&next, &lane, &file);
        thread::scope(|scope| {
            let bring = move |of: &mut Option<Lane>| {
                if of.is_none() {
                    *of = Some(lane()?);
                }
                let lane = of.as_mut().ok_or_else(|| anyhow!("a bug"))?;
                bring(file, len, slab, next, lane, to)
            };
            let readers: Vec<_> = lanes.iter_mut().map(|lane| scope.spawn(move || bring(lane))).collect();
            readers.into_iter().try_for_each(|reader| reader.join().unwrap_or_else(|_| Err(anyhow!("a bug"))))
        })?;
        Ok(device)
    };
    let start = len - model.bytes();
    let verify = |device: CudaSlice<u8>| {
        model.verify_all(|name| {
            let tensor = model.tensors.get(name).ok_or_else(|| anyhow!("no {name}"))?;
            let first = (start + tensor.start) as usize;
            Ok(stream.clone_dtoh(&device.slice(first..first + tensor.bytes as usize))?)
        })
    };
    measure(repeat, || Ok(()), bring, verify)
}

/// What one thread does.
fn bring(
    file: &File,
    len: u64,
    size: usize,
    next: &AtomicU64,
    Lane { stream, slabs }: &mut Lane,
    to: sys::CUdeviceptr,
) -> Result<()> {
    for round in 0.. {
        let start = next.fetch_add(size as u64, Ordering::Relaxed);
        if start >= len {
            break;
        }
        let turn = round % slabs.len();
        let (pinned, event) = &mut slabs[turn];
        event.synchronize()?;
        let bytes = &mut pinned.as_mut_slice()?[..(len - start).min(size as u64) as usize];
        file.read_exact_at(bytes, start)?;
        // SAFETY: both have so many bytes there; the slab is touched again when the event was waited for, and
        // lives longer.
        #[allow(unsafe_code)]
        unsafe { result::memcpy_htod_async(to + start, bytes, stream.cu_stream()) }?;
        event.record(stream)?;
    }
    Ok(stream.synchronize()?)
}

/// Writes as many bytes from memory to a new file in the directory of `file`, from several threads, and syncs
/// it.
pub(crate) fn save(file: &Path, model: &Model, repeat: usize) -> Result<Measured> {
    const PIECE: usize = 2 << 20;
    let path = file.with_file_name("limit");
    let save = || {
        let file = File::create(&path)?;
        let next = AtomicU64::new(0);
        let (next, file, len) = (&next, &file, model.bytes());
        thread::scope(|scope| {
            let write = move || {
                let piece = vec![1; PIECE];
                loop {
                    let start = next.fetch_add(PIECE as u64, Ordering::Relaxed);
                    if start >= len {
                        return Ok(());
                    }
                    file.write_all_at(&piece[..(len - start).min(PIECE as u64) as usize], start)?;
                }
            };
            let writers: Vec<_> = (0..threads()).map(|_| scope.spawn(write)).collect();
            writers.into_iter().try_for_each(|writer| writer.join().unwrap_or_else(|_| Err(anyhow!("a bug"))))
        })?;
        Ok(file.sync_all()?)
    };
    let measured = measure(repeat, || Ok(()), save, |()| Ok(()));
    let _ = std::fs::remove_file(&path);
    measured
}
