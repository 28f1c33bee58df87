//! From which values tensors can be reached.

use super::value::{Id, Pickle, Value};

/// Whether each node is a tensor or holds one, at any depth.
pub(super) fn holds_tensors(pickle: &Pickle) -> Vec<bool> {
    let count = pickle.nodes.len();
    let ids = || (0..count).filter_map(|id| Id::try_from(id).ok());
    // The edges in the opposite direction: where those of a node begin, then which nodes hold it.
    let mut starts = vec![0_u32; count + 1];
    for id in ids() {
        pickle.for_children(id, |child| {
            if let Some(start) = starts.get_mut(child as usize + 1) {
                *start = start.saturating_add(1);
            }
        });
    }
    let mut sum = 0_u32;
    for start in &mut starts {
        sum = sum.saturating_add(*start);
        *start = sum;
    }
    let mut next = starts.clone();
    let mut holders = vec![0; sum as usize];
    for id in ids() {
        pickle.for_children(id, |child| {
            if let Some(place) = next.get_mut(child as usize)
                && let Some(holder) = holders.get_mut(*place as usize)
            {
                *holder = id;
                *place += 1;
            }
        });
    }
    let mut holds = vec![false; count];
    let mut open: Vec<Id> =
        ids().filter(|&id| matches!(pickle.at(id), Value::Tensor(_) | Value::Refused(_))).collect();
    while let Some(id) = open.pop() {
        match holds.get_mut(id as usize) {
            Some(known) if !*known => *known = true,
            _ => continue,
        }
        let range = starts.get(id as usize).zip(starts.get(id as usize + 1));
        let range = range.map(|(&start, &end)| start as usize..end as usize);
        open.extend(range.and_then(|range| holders.get(range)).unwrap_or_default());
    }
    holds
}
