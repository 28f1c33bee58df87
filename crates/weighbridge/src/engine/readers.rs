//! What threads need to read, kept from one use to the next.

/// Those that nobody uses at the moment, and how many there may be.
pub(super) struct Readers<R> {
    idle: Vec<R>,
    /// In use or idle.
    count: usize,
    most: usize,
    /// How many may be in use for now.
    at_once: usize,
    /// Whether a thread went away without one.
    refused: bool,
}

impl<R> Readers<R> {
    /// At most so many, at least one.
    pub(super) fn new(most: usize) -> Self {
        Self { idle: Vec::new(), count: 0, most: most.max(1), at_once: usize::MAX, refused: false }
    }

    /// The same, but only one may be in use until it has done [some work](Self::grow): what is read first is what somebody
    /// waits for, and over a slow link it comes the later the more is read beside it.
    pub(super) fn one_at_first(self) -> Self {
        Self { at_once: 1, ..self }
    }

    /// Some work is done: more may be in use. Whether threads have to be woken that went away without one.
    pub(super) fn grow(&mut self) -> bool {
        /// So many fill most links, and are soon done on slow ones.
        const SECOND: usize = 8;
        if self.at_once >= self.most {
            return false;
        }
        self.at_once = if self.at_once < SECOND { SECOND } else { self.at_once.saturating_add(2) };
        std::mem::take(&mut self.refused)
    }

    /// Whether there is one to [take](Self::take). If not, the thread that asks is told when one is [put
    /// back](Self::put).
    pub(super) fn has_one(&mut self) -> bool {
        let may_be_used = self.count - self.idle.len() < self.at_once;
        let has_one = may_be_used && (!self.idle.is_empty() || self.count < self.most);
        self.refused |= !has_one;
        has_one
    }

    /// One that is idle, or a new one.
    pub(super) fn take(&mut self, make: impl FnOnce() -> R) -> Option<R> {
        if !self.has_one() {
            return None;
        }
        let idle = self.idle.pop();
        if idle.is_none() {
            self.count += 1;
        }
        Some(idle.unwrap_or_else(make))
    }

    /// Takes one back. Whether threads went away without one since the last time: they have to be woken.
    pub(super) fn put(&mut self, reader: R) -> bool {
        self.idle.push(reader);
        std::mem::take(&mut self.refused)
    }

    /// Says that one which was taken is of no use, and no more may be made in its place; whether there are
    /// others.
    pub(super) fn retire(&mut self) -> bool {
        let has_others = self.most > 1;
        if has_others {
            self.most -= 1;
            self.count -= 1;
        }
        has_others
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_at_first_then_more_and_more() {
        let mut readers = Readers::new(12).one_at_first();
        let first = readers.take(|| 0);
        assert_eq!((first, readers.take(|| 1)), (Some(0), None));
        assert!(readers.grow());
        let more: Vec<_> = (1..20).filter_map(|number| readers.take(|| number)).collect();
        assert_eq!(more.len(), 7);
        assert!(readers.put(0));
        assert_eq!(readers.take(|| 99), Some(0));
        assert!(!readers.grow());
        assert_eq!(
            (readers.take(|| 20), readers.take(|| 21), readers.take(|| 22)),
            (Some(20), Some(21), None)
        );
        assert!(readers.grow() && !readers.grow());
        assert_eq!((22..30).filter_map(|number| readers.take(|| number)).count(), 2);
    }

    proptest! {
        /// There are never more than allowed, whoever is refused is told of the next that is put back, and
        /// one stays.
        #[test]
        fn nobody_waits_for_a_reader_that_is_idle(
            most in 1..5_usize,
            steps in prop::collection::vec((0..4_u8, any::<prop::sample::Index>()), 0..60),
        ) {
            let mut readers = Readers::new(most);
            let (mut taken, mut made, mut waiting, mut retired) = (Vec::new(), 0, false, 0);
            for (step, which) in steps {
                match step {
                    0 | 1 => match readers.take(|| { made += 1; made }) {
                        Some(reader) => taken.push(reader),
                        None => {
                            prop_assert_eq!(taken.len(), most - retired, "there is one");
                            waiting = true;
                        }
                    },
                    _ if taken.is_empty() => {}
                    2 => {
                        let reader = taken.swap_remove(which.index(taken.len()));
                        prop_assert!(!taken.contains(&reader), "two threads have the same");
                        prop_assert_eq!(readers.put(reader), waiting);
                        waiting = false;
                    }
                    _ => {
                        if readers.retire() {
                            taken.swap_remove(which.index(taken.len()));
                            retired += 1;
                        } else {
                            prop_assert_eq!(retired + 1, most);
                        }
                    }
                }
                prop_assert!(taken.len() + readers.idle.len() <= most - retired);
                prop_assert!(retired < most);
            }
        }
    }
}
