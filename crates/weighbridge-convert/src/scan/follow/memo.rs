//! The memo: values by number. Writers count up from 0, so that most lie in a row.

use std::collections::HashMap;

use super::Id;

/// No value.
const ABSENT: Id = Id::MAX;

#[derive(Default)]
pub(super) struct Memo {
    row: Vec<Id>,
    /// Those far behind the row.
    others: HashMap<u64, Id>,
    len: u64,
}

impl Memo {
    /// How many numbers have a value.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// The bytes that it takes.
    pub(super) fn bytes(&self) -> usize {
        self.row.len() * size_of::<Id>() + self.others.len() * 32
    }

    pub(super) fn get(&self, number: u64) -> Option<Id> {
        let in_row = usize::try_from(number).ok().and_then(|at| self.row.get(at)).copied();
        in_row.filter(|&id| id != ABSENT).or_else(|| self.others.get(&number).copied())
    }

    pub(super) fn insert(&mut self, number: u64, id: Id) {
        let is_new = match usize::try_from(number) {
            Ok(at) if at <= 2 * self.row.len() + 1024 => {
                if at >= self.row.len() {
                    self.row.resize(at + 1, ABSENT);
                }
                let before = std::mem::replace(&mut self.row[at], id);
                before == ABSENT && self.others.remove(&number).is_none()
            }
            _ => self.others.insert(number, id).is_none(),
        };
        self.len += u64::from(is_new);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_any_order() {
        let mut memo = Memo::default();
        for (number, id) in
            [(5, 1), (0, 2), (1 << 40, 3), (3000, 4), (3000, 5), (1 << 40, 6), (2000, 7), (900, 8)]
        {
            memo.insert(number, id);
        }
        assert_eq!((memo.len(), memo.get(3000)), (6, Some(5)));
        // By now it is near enough to the row to be in it.
        memo.insert(3000, 9);
        assert_eq!((memo.len(), memo.get(3000), memo.get(2000)), (6, Some(9), Some(7)));
        assert_eq!((memo.get(1 << 40), memo.get(1), memo.get(9999)), (Some(6), None, None));
    }
}
