//! Tensors in memory of their own: read straight into its place, without another copy.

use std::collections::HashMap;

use super::{Cut, Placement, Ticket, Watch, caught, each_part};
use crate::buffer::{self, Allocation, Chunk, Filling, HostBuffer, HugePage};
use crate::checkpoint::Checkpoint;
use crate::engine::job::{Job, Part, coalesce, lies_together};
use crate::engine::tile::TileMaker;
use crate::error::{Error, ErrorKind, Result};
use crate::plan::Entry;

/// Makes each tensor the `Vec` of its element type.
pub(in crate::engine) struct Fill;

impl Placement for Fill {
    type Tensor = HostBuffer;
    type Blank = Allocation;
    type Memory = Filling;
    type Chunk = Chunk;

    fn allocate(&self, _: &Checkpoint, entry: &Entry) -> Result<Allocation> {
        let bytes = usize::try_from(entry.byte_len())
            .map_err(|_| Error::new(ErrorKind::Memory, "it does not fit this machine's address space"))?;
        Allocation::new(entry.dtype(), bytes)
    }

    fn cut(&self, entry: &Entry, blank: Allocation, size: usize) -> Cut<Self> {
        // Many small reads take longer than to clear a page twice.
        let (filling, chunks) = blank.into_chunks(size, lies_together(entry));
        (filling, chunks.into_iter().map(|chunk| (chunk.range(), chunk)).collect())
    }

    /// Parts that begin in one huge page are one job.
    fn jobs(&self, checkpoint: &Checkpoint, parts: Vec<Part<Chunk>>) -> Vec<Job<Chunk>> {
        let pages = buffer::huge_pages(parts.iter().map(|part| &part.chunk));
        let mut jobs: Vec<Job<Chunk>> = Vec::new();
        let mut of_page = HashMap::<_, usize>::new();
        for group in coalesce(checkpoint, parts) {
            let first = group.parts.first().map(|part| part.chunk.huge_page());
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

    fn carry_out(&self, job: Job<Chunk>, maker: &mut TileMaker, watch: &dyn Watch) {
        let on_huge_page = job.huge_page.map(HugePage::make).is_some();
        each_part(job.groups, maker, watch, |part, maker| {
            let mut ticket = Ticket::of(&part);
            if !on_huge_page {
                part.chunk.populate();
            }
            let outcome = caught("it was loaded", || {
                part.chunk.fill(|memory| {
                    let (memory, read) = maker.make(&part.entry, part.tile.clone(), memory)?;
                    ticket.read = read;
                    Ok(memory)
                })
            });
            watch.done(ticket, outcome);
        });
    }

    fn finish(&self, _: &Entry, memory: Filling) -> Result<HostBuffer> {
        let unfilled = || Error::new(ErrorKind::Internal, "not all of its memory was filled");
        memory.finish().ok_or_else(unfilled)
    }
}
