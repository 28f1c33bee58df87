//! The slabs of one reader: free, in its hand, or in flight. It fills one while the device copies from the
//! others.
//!
//! There are no locks and no device in here: [`Stage`](super::Stage) does what it says.

use std::collections::VecDeque;

/// Slabs `S`, and copies from them that are in flight, `F`.
pub(super) struct Slabs<S, F> {
    free: Vec<S>,
    /// In the order in which they were sent.
    in_flight: VecDeque<F>,
    /// Slabs that exist, wherever they are.
    count: usize,
    /// Slabs that may exist.
    most: usize,
}

/// What a reader that needs a slab is to do.
pub(super) enum Next<S, F> {
    /// Fill this one.
    Fill(S),
    /// Make one, which is counted already, and say if it [failed](Slabs::not_made).
    Make,
    /// Wait for this copy, whose slab is [free](Slabs::put) or [lost](Slabs::lose) then.
    WaitFor(F),
    /// There is none, and none may be made.
    Lost,
}

impl<S, F> Slabs<S, F> {
    /// At most so many.
    pub(super) fn new(most: usize) -> Self {
        Self { free: Vec::new(), in_flight: VecDeque::new(), count: 0, most }
    }

    pub(super) fn next(&mut self) -> Next<S, F> {
        if let Some(slab) = self.free.pop() {
            return Next::Fill(slab);
        }
        if self.count < self.most {
            self.count += 1;
            return Next::Make;
        }
        self.land().map_or(Next::Lost, Next::WaitFor)
    }

    /// Copies in flight, the one that is done first in front.
    pub(super) fn in_flight(&self) -> impl Iterator<Item = &F> {
        self.in_flight.iter()
    }

    /// The copy that is done first, to be waited for.
    pub(super) fn land(&mut self) -> Option<F> {
        self.in_flight.pop_front()
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
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// Slabs are numbers, and copies the numbers of their slabs.
    fn check(slabs: &Slabs<u32, u32>, in_hand: Option<u32>, most: usize) {
        let all: Vec<_> = slabs.free.iter().chain(&slabs.in_flight).chain(&in_hand).collect();
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len(), "a slab is in two places");
        assert_eq!(all.len(), slabs.count);
        assert!(slabs.count <= slabs.most && slabs.most <= most);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// Whatever fails, no slab is lost or in two places, there are never more than allowed, copies land
        /// in the order in which they were sent, and a reader gets a slab as long as there are any.
        #[test]
        fn a_reader_never_gets_stuck(
            most in 1..4_usize,
            steps in prop::collection::vec((0..4_u8, prop::bool::weighted(0.1)), 0..80),
        ) {
            let mut slabs = Slabs::<u32, u32>::new(most);
            let (mut in_hand, mut made, mut sent) = (None, 0, VecDeque::new());
            for (step, fails) in steps {
                match (step, in_hand) {
                    (0 | 1, None) => match slabs.next() {
                        Next::Fill(slab) => in_hand = Some(slab),
                        Next::Make if fails => {
                            let others = slabs.count - 1;
                            prop_assert_eq!(slabs.not_made(), others > 0);
                        }
                        Next::Make => {
                            made += 1;
                            in_hand = Some(made);
                        }
                        Next::WaitFor(flight) => {
                            prop_assert_eq!(sent.pop_front(), Some(flight));
                            if fails { slabs.lose() } else { slabs.put(flight) }
                        }
                        Next::Lost => prop_assert_eq!(slabs.most, 0, "a reader has none and may make one"),
                    },
                    (_, Some(slab)) => {
                        in_hand = None;
                        match (step, fails) {
                            (_, true) => slabs.lose(),
                            (2, false) => slabs.put(slab),
                            (_, false) => {
                                sent.push_back(slab);
                                slabs.send(slab);
                            }
                        }
                    }
                    (_, None) => if let Some(flight) = slabs.land() {
                        prop_assert_eq!(sent.pop_front(), Some(flight));
                        slabs.put(flight);
                    },
                }
                check(&slabs, in_hand, most);
            }
        }
    }
}
