//! What the machine can do: the bus, and what stands in its way.

use std::time::Instant;

use anyhow::Result;
use candle_core::cuda_backend::cudarc::driver::{CudaContext, CudaSlice, DevicePtr, result, sys};
use gpu_check_common::checkpoint::Model;
use gpu_check_common::table::Results;

/// Measures the machine, and says what it is.
#[allow(unsafe_code)]
pub(crate) fn measure(model: &Model, results: &mut Results) -> Result<()> {
    let start = Instant::now();
    let context = CudaContext::new(0)?;
    let name = context.name()?;
    results.machine = format!("{name}, {}", results.machine);
    results.ceiling("the device's context", start.elapsed().as_secs_f64(), "s");

    const PIECE: usize = 16 << 20;
    const ALL: usize = 256 << 20;
    const ROUNDS: usize = 16;
    let stream = context.new_stream()?;
    let start = Instant::now();
    // SAFETY: any byte is a value of `u8`, and it is filled before it is copied.
    let mut pinned = unsafe { context.alloc_pinned_with_flags::<u8>(ALL, sys::CU_MEMHOSTALLOC_PORTABLE) }?;
    results.ceiling("256 MiB of page-locked memory", start.elapsed().as_secs_f64(), "s");
    pinned.as_mut_slice()?.fill(7);
    let mut device: CudaSlice<u8> = stream.alloc_zeros(ALL)?;
    let (to, _) = device.device_ptr(&stream);
    for size in [ALL, PIECE, 4 << 20] {
        let mut best = f64::INFINITY;
        for _ in 0..3 {
            stream.synchronize()?;
            let start = Instant::now();
            let host = pinned.as_slice()?;
            for _ in 0..ROUNDS {
                for (piece, start) in host.chunks(size).zip((0..).step_by(size)) {
                    // SAFETY: both have so many bytes there and live until the stream was waited for; nobody else
                    // touches them.
                    unsafe { result::memcpy_htod_async(to + start, piece, stream.cu_stream()) }?;
                }
            }
            stream.synchronize()?;
            best = best.min(start.elapsed().as_secs_f64() / (ROUNDS * ALL) as f64);
        }
        let name = format!("page-locked memory to the device, {} MiB at a time", size >> 20);
        results.ceiling(name, 1e-9 / best, "GB/s");
        results.bus = Some(results.bus.unwrap_or_default().max(1e-9 / best));
    }
    let usual = vec![1_u8; ALL];
    let start = Instant::now();
    stream.memcpy_htod(&usual, &mut device)?;
    stream.synchronize()?;
    results.ceiling("usual memory to the device", ALL as f64 / start.elapsed().as_secs_f64() / 1e9, "GB/s");
    drop(device);

    // What a load allocates, in the way that Candle does it.
    let start = Instant::now();
    let mut memory: Vec<CudaSlice<u8>> = Vec::new();
    for tensor in model.tensors.values() {
        // SAFETY: nobody reads it.
        memory.push(unsafe { stream.alloc(tensor.bytes as usize) }?);
    }
    stream.synchronize()?;
    results.ceiling("memory of the device for every tensor", start.elapsed().as_secs_f64(), "s");
    Ok(())
}
