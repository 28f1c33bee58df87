//! The slabs of a ring, wherever they are: free, in the hands of a thread that fills them, in flight, or being waited for.
//! Whoever has one in hand needs no other, so the ring cannot get stuck.
//!
//! There are no locks and no device in here: [`Stage`](super::Stage) does what it says.

use std::collections::VecDeque;

/// Slabs `S`, and copies from them that are in flight, `F`.
pub(super) struct Slabs<S, F> {
    free: Vec<S>,
    /// In the order in which they were sent.
    in_flight: VecDeque<F>,
    /// Copies that somebody waits for.
    landing: usize,
    /// Slabs that exist, wherever they are.
    count: usize,
    /// Slabs that may exist.
    most: usize,
    /// So many copies in flight keep the device busy.
    busy: usize,
}

/// What a thread that needs a slab is to do.
pub(super) enum Next<S, F> {
    /// Fill this one.
    Fill(S),
    /// Make one, which is counted already, and say if it [failed](Slabs::not_made).
    Make,
    /// Wait for this copy, whose slab is free then.
    WaitFor(F),
    /// Find out whether this copy is done. If so, its slab is free; if not, [put it back](Slabs::put_back).
    Check(F),
    /// All slabs are with other threads: wait until one of them is free, in flight or lost.
    Wait,
    /// There is none, and none may be made.
    Lost,
}

impl<S, F> Slabs<S, F> {
    /// At most `most` slabs, of which `busy` keep the device busy.
    pub(super) fn new(most: usize, busy: usize) -> Self {
        Self { free: Vec::new(), in_flight: VecDeque::new(), landing: 0, count: 0, most, busy }
    }

    pub(super) fn next(&mut self) -> Next<S, F> {
        if let Some(slab) = self.free.pop() {
            return Next::Fill(slab);
        }
        if self.most == 0 {
            return Next::Lost;
        }
        let may_make = self.may_make();
        match self.oldest() {
            Some(flight) if may_make => Next::Check(flight),
            Some(flight) => Next::WaitFor(flight),
            None if self.try_count() => Next::Make,
            None => Next::Wait,
        }
    }

    /// Whether another slab is allowed, and of use.
    fn may_make(&self) -> bool {
        self.count < self.most && self.in_flight.len() + self.landing < self.busy
    }

    /// Counts another slab, if one may be made.
    fn try_count(&mut self) -> bool {
        let may_make = self.may_make();
        self.count += usize::from(may_make);
        may_make
    }

    /// The copy that is done first, to be waited for, and to be told of with [`landed`](Self::landed).
    pub(super) fn oldest(&mut self) -> Option<F> {
        let flight = self.in_flight.pop_front()?;
        self.landing += 1;
        Some(flight)
    }

    /// Takes back a copy that is not done. Whether to make a slab, which is counted then: things may have changed.
    pub(super) fn put_back(&mut self, oldest: F) -> bool {
        self.landing -= 1;
        self.in_flight.push_front(oldest);
        self.free.is_empty() && self.try_count()
    }

    /// A copy was waited for. Its slab is [free](Self::put) or [lost](Self::lose).
    pub(super) fn landed(&mut self) {
        self.landing -= 1;
    }

    /// A slab was sent.
    pub(super) fn send(&mut self, flight: F) {
        self.in_flight.push_back(flight);
    }

    /// A slab is free.
    pub(super) fn put(&mut self, slab: S) {
        self.free.push(slab);
    }

    /// A slab is left to the device for good.
    pub(super) fn lose(&mut self) {
        self.count -= 1;
        self.most -= 1;
    }

    /// A slab that was counted could not be made. Whether there are others, which have to do.
    pub(super) fn not_made(&mut self) -> bool {
        self.count -= 1;
        let has_others = self.count > 0;
        if has_others {
            self.most = self.count;
        }
        has_others
    }

    /// The copy that is done first, when the ring is drained.
    pub(super) fn drain(&mut self) -> Option<F> {
        self.in_flight.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// What threads have in hand: slabs are numbers, and copies the numbers of their slabs.
    #[derive(Default)]
    struct Threads {
        filling: Vec<u32>,
        making: u32,
        checking: Vec<u32>,
        landing: Vec<u32>,
        made: u32,
    }

    impl Threads {
        /// A thread that has none asks for a slab; whether it came further.
        fn ask(&mut self, slabs: &mut Slabs<u32, u32>) -> bool {
            match slabs.next() {
                Next::Fill(slab) => self.filling.push(slab),
                Next::Make => self.making += 1,
                Next::WaitFor(flight) => self.landing.push(flight),
                Next::Check(flight) => self.checking.push(flight),
                Next::Wait | Next::Lost => return false,
            }
            true
        }

        fn make(&mut self, slabs: &mut Slabs<u32, u32>, fails: bool) {
            self.making -= 1;
            if fails {
                slabs.not_made();
            } else {
                self.made += 1;
                self.filling.push(self.made);
            }
        }

        fn land(&mut self, slabs: &mut Slabs<u32, u32>, index: usize, fails: bool) {
            let slab = self.landing.swap_remove(index);
            slabs.landed();
            if fails { slabs.lose() } else { slabs.put(slab) }
        }

        fn check(&self, slabs: &Slabs<u32, u32>, most: usize) {
            let everywhere = [&self.filling, &self.checking, &self.landing, &slabs.free];
            let all: Vec<_> = everywhere.into_iter().flatten().chain(&slabs.in_flight).collect();
            assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len(), "a slab is in two places");
            assert_eq!(all.len() + self.making as usize, slabs.count);
            assert!(slabs.count <= slabs.most.max(slabs.count.min(most)) && slabs.count <= most);
            assert_eq!(slabs.landing, self.landing.len() + self.checking.len());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// Whatever threads do and whatever fails, no slab is lost or in two places, there are never more than allowed, and
        /// whoever waits gets one as long as there are any.
        #[test]
        fn the_ring_never_gets_stuck(
            most in 1..6_usize,
            busy in 1..6_usize,
            steps in prop::collection::vec((0..7_u8, any::<prop::sample::Index>(), prop::bool::weighted(0.1)), 0..120),
        ) {
            let (mut slabs, mut threads) = (Slabs::new(most, busy), Threads::default());
            for (step, which, fails) in steps {
                let pick = |len: usize| (len > 0).then(|| which.index(len));
                match step {
                    0 | 1 => drop(threads.ask(&mut slabs)),
                    2 if threads.making > 0 => threads.make(&mut slabs, fails),
                    3 => drop(pick(threads.filling.len()).map(|index| {
                        let slab = threads.filling.swap_remove(index);
                        if fails { slabs.put(slab) } else { slabs.send(slab) }
                    })),
                    4 => drop(pick(threads.checking.len()).map(|index| {
                        let flight = threads.checking.swap_remove(index);
                        if fails {
                            threads.landing.push(flight);
                        } else if slabs.put_back(flight) {
                            threads.making += 1;
                        }
                    })),
                    5 => drop(pick(threads.landing.len()).map(|index| threads.land(&mut slabs, index, fails))),
                    _ => drop(slabs.oldest().map(|flight| threads.landing.push(flight))),
                }
                threads.check(&slabs, most);
            }
            // All that is in hand is done with.
            while threads.making > 0 {
                threads.make(&mut slabs, false);
            }
            threads.filling.drain(..).for_each(|slab| slabs.send(slab));
            threads.checking.drain(..).for_each(|flight| threads.landing.push(flight));
            while !threads.landing.is_empty() {
                threads.land(&mut slabs, 0, false);
            }
            threads.check(&slabs, most);
            let is_lost = slabs.most == 0;
            prop_assert_eq!(threads.ask(&mut slabs), !is_lost, "a thread waits for ever");
        }
    }
}
