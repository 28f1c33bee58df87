//! Tensors in memory of their own: read straight into their destination, without another copy.

use std::collections::HashMap;

use super::{Allocated, CarriedOut, Placement, TileStats, Watch, each_tile};
use crate::buffer::{self, Allocation, Chunk, Filling, HostBuffer, HugePage};
use crate::engine::job::{Job, Tile, coalesce};
use crate::engine::tile::TileMaker;
use crate::error::{Error, ErrorKind, Result};
use crate::panics::caught;
use crate::plan::Entry;

/// Makes each tensor the `Vec` of its element type.
pub(in crate::engine) struct Fill;

impl Placement for Fill {
    type Tensor = HostBuffer;
    type Memory = Filling;
    type Chunk = Chunk;
    type Lane = ();

    fn allocate(&self, entries: &[(&Entry, usize)]) -> Vec<Result<Allocated<Self>>> {
        // All of them before anything else is allocated, so that small ones lie next to each other on huge pages.
        let allocations: Vec<_> = entries.iter().map(|(entry, _)| allocation(entry)).collect();
        let cut = |(&(entry, size), allocation): (&(&Entry, usize), Result<Allocation>)| {
            // Many small reads take longer than to clear a page twice.
            let (memory, chunks) = allocation?.into_chunks(size, entry.run().is_some());
            Ok(Allocated { memory, chunks: chunks.into_iter().map(|chunk| (chunk.range(), chunk)).collect() })
        };
        entries.iter().zip(allocations).map(cut).collect()
    }

    /// Tiles that begin in one huge page are one job.
    fn jobs(&self, tiles: Vec<Tile<Chunk>>) -> Vec<Job<Chunk>> {
        let pages = buffer::huge_pages(tiles.iter().map(|tile| &tile.chunk));
        let mut jobs: Vec<Job<Chunk>> = Vec::new();
        let mut of_page = HashMap::<_, usize>::new();
        for group in coalesce(tiles) {
            let first = group.tiles.first().map(|tile| tile.chunk.huge_page());
            let huge_page = first.filter(|page| pages.contains(page));
            match huge_page.and_then(|page| of_page.get(&page)) {
                Some(&job) => jobs[job].groups.push(group),
                None => {
                    of_page.extend(huge_page.map(|page| (page, jobs.len())));
                    jobs.push(Job::new(huge_page, vec![group]));
                }
            }
        }
        jobs
    }

    fn lane(&self) {}

    fn carry_out(
        &self,
        job: Job<Chunk>,
        (): &mut (),
        maker: &mut TileMaker,
        watch: &dyn Watch,
    ) -> CarriedOut<Chunk> {
        let on_huge_page = job.huge_page.is_some_and(HugePage::make);
        each_tile(job.groups, maker, watch, |tile, maker| {
            let mut stats = TileStats::of(&tile);
            if !on_huge_page {
                tile.chunk.populate();
            }
            let Tile { entry, range, chunk, .. } = tile;
            let outcome = caught("it was loaded", || {
                chunk.fill(|memory| {
                    let (memory, read) = maker.make(&entry, range, memory)?;
                    stats.read = read;
                    Ok(memory)
                })
            });
            watch.done(stats, outcome);
        });
        Ok(())
    }

    fn finish(&self, _: &Entry, memory: Filling) -> Result<HostBuffer> {
        let unfilled = || Error::new(ErrorKind::Internal, "not all of its memory was filled");
        memory.finish().ok_or_else(unfilled)
    }
}

fn allocation(entry: &Entry) -> Result<Allocation> {
    let bytes = usize::try_from(entry.byte_len())
        .map_err(|_| Error::new(ErrorKind::Memory, "it does not fit this machine's address space"))?;
    Allocation::new(entry.dtype(), bytes)
}
