use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::error::ErrorKind;

#[derive(Debug)]
struct Tile {
    slot: usize,
    bytes: u64,
    is_announced: bool,
}

impl Queued for Tile {
    type Read = usize;

    fn is_for(&self, slot: usize) -> bool {
        self.slot == slot
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn announce(&mut self) -> Vec<usize> {
        match std::mem::replace(&mut self.is_announced, true) {
            true => Vec::new(),
            false => vec![self.slot],
        }
    }
}

/// Memory and tensors are the numbers of their slots.
type Tested = Schedule<Tile, usize, usize>;

/// What threads have in hand, and what they have seen.
struct Crew {
    schedule: Tested,
    tiles: Vec<usize>,
    /// Slots that are being allocated, and whether they are the next to be read ahead.
    begins: Vec<(Vec<usize>, bool)>,
    jobs: Vec<Tile>,
    finished: Vec<Finished<usize>>,
    /// Slots that somebody waits for, and how often nobody could help.
    takers: Vec<usize>,
    taken: usize,
    failed: usize,
    announced: BTreeSet<usize>,
}

fn failure() -> Error {
    Error::new(ErrorKind::Io, "bad sector")
}

impl Crew {
    fn new(sizes: Vec<Option<u64>>, tiles: Vec<usize>, limit: u64) -> Self {
        let schedule = Schedule::new((0..sizes.len()).collect(), sizes, limit);
        let (begins, jobs, finished, takers) = Default::default();
        Self {
            schedule,
            tiles,
            begins,
            jobs,
            finished,
            takers,
            taken: 0,
            failed: 0,
            announced: BTreeSet::new(),
        }
    }

    fn check(&self) {
        let ahead = &self.schedule.ahead;
        let held: u64 = self.schedule.slots.iter().map(|slot| slot.held).sum();
        assert_eq!(ahead.held, held, "the budget is what slots hold");
        assert!(held <= ahead.limit, "{held} of {}", ahead.limit);
        let begun: Vec<usize> = self.begins.iter().flat_map(|(slots, _)| slots.clone()).collect();
        let beginning = self.schedule.slots.iter().filter(|slot| matches!(slot.state, State::Beginning));
        assert_eq!(beginning.count(), begun.len());
        assert_eq!(begun.iter().collect::<BTreeSet<_>>().len(), begun.len(), "one slot is begun twice");
        let preparing = self.begins.iter().filter(|(_, is_ahead)| *is_ahead).count();
        assert_eq!(usize::from(self.schedule.preparing), preparing, "one thread at a time prepares");
    }

    /// A thread looks for work.
    fn next(&mut self, least: usize) -> bool {
        match self.schedule.next(least) {
            Next::Job(mut job) => {
                let Announced { reads, slots } = self.schedule.announce(&mut job, true);
                for slot in reads {
                    assert!(slot < self.tiles.len());
                }
                for slot in slots {
                    assert!(self.announced.insert(slot), "{slot} is announced twice");
                }
                self.jobs.push(job);
            }
            Next::Begin(slots) => self.begins.push((slots, true)),
            Next::Nothing => return false,
        }
        true
    }

    fn enter(&mut self, slot: usize) {
        self.schedule.enter(slot);
        self.takers.push(slot);
    }

    /// One of those who wait asks; whether it came further.
    fn ask(&mut self, taker: usize) -> bool {
        let slot = self.takers[taker];
        match self.schedule.ask(slot, true) {
            Ask::Begin => self.begins.push((vec![slot], false)),
            Ask::BeginBatch(slots) => {
                assert_eq!(slots[0], slot);
                self.begins.push((slots, false));
            }
            Ask::Job(job) => {
                assert_eq!(job.slot, slot);
                self.jobs.push(job);
            }
            Ask::Ready { tensor, .. } => {
                assert_eq!(tensor, slot);
                self.leave(taker);
                self.taken += 1;
            }
            Ask::Failed(_) => {
                self.leave(taker);
                self.failed += 1;
            }
            Ask::Wait => return false,
        }
        true
    }

    fn leave(&mut self, taker: usize) {
        let slot = self.takers.swap_remove(taker);
        self.schedule.leave(slot);
    }

    /// The memory of slots is allocated, or cannot be.
    fn allocate(&mut self, begin: usize, fails: bool) {
        let (slots, is_ahead) = self.begins.swap_remove(begin);
        if fails {
            slots.iter().for_each(|&slot| self.schedule.not_begun(slot));
        } else {
            let begun = slots.iter().map(|&slot| Begun { slot, memory: slot, tiles: self.tiles[slot] });
            self.finished.extend(self.schedule.begun(begun.collect::<Vec<_>>()));
            let tile = |&slot: &usize| {
                (0..self.tiles[slot]).map(move |_| Tile { slot, bytes: 10 << 20, is_announced: false })
            };
            let jobs = slots.iter().flat_map(tile).collect();
            match slots.len() == 1 && !is_ahead {
                true => self.schedule.push_front(jobs),
                false => self.schedule.push_back(jobs),
            }
        }
        if is_ahead {
            self.schedule.prepared();
        }
    }

    fn do_job(&mut self, job: usize, fails: bool) {
        let Tile { slot, .. } = self.jobs.swap_remove(job);
        let outcome = if fails { Err(failure()) } else { Ok(()) };
        self.finished.extend(self.schedule.tile_done(slot, outcome));
    }

    fn land(&mut self, finished: usize) {
        let Finished { slot, memory, error } = self.finished.swap_remove(finished);
        assert_eq!(memory, slot);
        if let Some(unused) = self.schedule.landed(slot, error.map_or(Ok(slot), Err)) {
            assert_eq!(unused, slot);
            assert!(!self.takers.contains(&slot), "somebody waited for it");
        }
    }

    /// Everybody goes on until nobody can.
    fn settle(&mut self) {
        loop {
            self.check();
            let mut moved = false;
            while !self.begins.is_empty() {
                self.allocate(0, false);
                moved = true;
            }
            while !self.jobs.is_empty() {
                self.do_job(0, false);
                moved = true;
            }
            while !self.finished.is_empty() {
                self.land(0);
                moved = true;
            }
            let mut taker = 0;
            while taker < self.takers.len() {
                let waiting = self.takers.len();
                let came_further = self.ask(taker);
                moved |= came_further;
                // Whoever left makes room for another at its index.
                taker += usize::from(self.takers.len() == waiting);
            }
            moved |= self.next(1);
            if !moved {
                return;
            }
        }
    }
}

const MIB: u64 = 1 << 20;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever threads do, in whatever order, whatever fails: the budget is kept, no slot is begun twice, and whoever waits
    /// is told.
    #[test]
    fn every_taker_is_told(
        slots in prop::collection::vec((prop::option::weighted(0.8, 0..80 * MIB), 0..4_usize), 1..12),
        limit in prop_oneof![Just(0), 0..200 * MIB, Just(u64::MAX)],
        steps in prop::collection::vec((0..7_u8, any::<prop::sample::Index>(), prop::bool::weighted(0.1)), 0..120),
    ) {
        let (sizes, tiles): (Vec<_>, Vec<_>) = slots.into_iter().unzip();
        let count = sizes.len();
        let mut crew = Crew::new(sizes, tiles, limit);
        let mut entered = 0;
        for (step, which, fails) in steps {
            let pick = |len: usize| (len > 0).then(|| which.index(len));
            match step {
                0 => drop(crew.next(if fails { 3 } else { 1 })),
                1 => {
                    crew.enter(which.index(count));
                    entered += 1;
                }
                2 => drop(pick(crew.takers.len()).map(|taker| crew.ask(taker))),
                3 => drop(pick(crew.begins.len()).map(|begin| crew.allocate(begin, fails))),
                4 => drop(pick(crew.jobs.len()).map(|job| crew.do_job(job, fails))),
                5 => drop(pick(crew.finished.len()).map(|finished| crew.land(finished))),
                _ => drop(crew.schedule.abandon(which.index(count))),
            }
            crew.check();
        }
        crew.settle();
        prop_assert!(crew.takers.is_empty(), "{:?} wait for ever", crew.takers);
        prop_assert_eq!(crew.taken + crew.failed, entered);
        // Nobody waits any more, so that nothing has to be kept.
        for slot in 0..count {
            crew.schedule.abandon(slot);
        }
        prop_assert_eq!(crew.schedule.ahead.held, 0);
    }
}

fn batch(next: Next<Tile>) -> Vec<usize> {
    match next {
        Next::Begin(slots) => slots,
        other => panic!("{other:?}"),
    }
}

#[test]
fn small_entries_are_read_ahead_together_and_large_ones_alone() {
    let sizes = [10, 10, 10, 10, 40, 5, 80, 5].map(|mib| Some(mib * MIB));
    let mut schedule = Tested::new((0..8).collect(), sizes.to_vec(), u64::MAX);
    let mut batches = Vec::new();
    while let Next::Begin(slots) = schedule.next(1) {
        batches.push(slots);
        schedule.prepared();
    }
    assert_eq!(batches, [vec![0, 1, 2], vec![3], vec![4], vec![5], vec![6], vec![7]]);
}

#[test]
fn reading_ahead_waits_for_room_that_is_worth_it() {
    let mut schedule = Tested::new((0..100).collect(), vec![Some(MIB); 100], 40 * MIB);
    assert_eq!(batch(schedule.next(1)).len(), 32);
    schedule.prepared();
    // 8 MiB are left, less than a quarter of the budget.
    assert!(matches!(schedule.next(1), Next::Nothing));
    let mut has_room = Vec::new();
    for slot in 0..3 {
        schedule.begun([Begun { slot, memory: slot, tiles: 0 }]);
        schedule.landed(slot, Ok(slot));
        schedule.enter(slot);
        match schedule.ask(slot, true) {
            Ask::Ready { has_room: room, .. } => has_room.push(room),
            other => panic!("{other:?}"),
        }
        schedule.leave(slot);
    }
    assert_eq!(has_room, [false, true, true]);
    assert_eq!(batch(schedule.next(1)).len(), 11);
}

#[test]
fn what_comes_next_brings_its_neighbours_and_what_does_not_comes_alone() {
    let mut schedule = Tested::new((0..10).collect(), vec![Some(MIB); 10], 5 * MIB);
    schedule.enter(7);
    assert!(matches!(schedule.ask(7, true), Ask::Begin));
    schedule.enter(0);
    match schedule.ask(0, true) {
        Ask::BeginBatch(slots) => assert_eq!(slots, [0, 1, 2, 3, 4]),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_slot_that_was_added_is_used_again() {
    let mut schedule = Tested::new(Vec::new(), Vec::new(), 0);
    let slot = schedule.add_slot();
    schedule.enter(slot);
    assert!(matches!(schedule.ask(slot, true), Ask::Begin));
    // Cancelled in the middle: its memory may still be written to.
    schedule.leave(slot);
    assert!(schedule.remove_slot(slot).is_none());
    assert_ne!(schedule.add_slot(), slot);
    schedule.begun([Begun { slot, memory: slot, tiles: 1 }]);
    assert!(schedule.tile_done(slot, Ok(())).is_some());
    assert_eq!(schedule.landed(slot, Ok(slot)), Some(slot));
}

#[test]
fn what_is_surrendered_is_given_up_at_last() {
    let sizes = vec![Some(10 << 20), Some(10 << 20), Some(10 << 20), None];
    let mut schedule = Tested::new(vec![0, 1, 2, 3], sizes, u64::MAX);
    let Next::Begin(slots) = schedule.next(1) else { panic!("nothing is read ahead") };
    assert_eq!(slots, [0, 1, 2]);
    // One is ready, one is being read, one is being allocated, and one is asked for.
    let begun = slots[..2].iter().map(|&slot| Begun { slot, memory: slot, tiles: 1 });
    assert!(schedule.begun(begun).is_empty());
    assert!(schedule.tile_done(0, Ok(())).is_some());
    assert_eq!(schedule.landed(0, Ok(0)), None);
    schedule.enter(3);
    assert!(matches!(schedule.ask(3, true), Ask::Begin));
    schedule.not_begun(3);
    assert_eq!(schedule.surrender(), [0]);
    assert!(schedule.is_giving_up());
    assert!(schedule.tile_done(1, Ok(())).is_some());
    assert_eq!(schedule.landed(1, Ok(1)), Some(1), "it is given back, since nobody wants it");
    assert!(schedule.is_giving_up());
    schedule.not_begun(2);
    assert!(!schedule.is_giving_up());
    schedule.prepared();
    assert!(matches!(schedule.next(1), Next::Nothing), "it reads ahead no more");
    assert!(matches!(schedule.ask(3, true), Ask::Begin));
}
