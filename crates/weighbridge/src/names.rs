//! Names of tensors compared: in the order in which models are built, and by likeness.

mod nearest;

use std::cmp::Ordering;

pub use nearest::{NearestNames, nearest_name};

/// Compares two names with the numbers in them by value, so that `layers.2` comes before `layers.10`.
///
/// Runs of ASCII digits are numbers of any length, everything else is compared byte by byte. The order is
/// total: names that differ in leading zeros only are ordered as text.
///
/// ```
/// let mut names = ["h.10.w", "norm", "h.2.w", "h.2.b"];
/// names.sort_by(|a, b| weighbridge::natural_order(a, b));
/// assert_eq!(names, ["h.2.b", "h.2.w", "h.10.w", "norm"]);
/// ```
pub fn natural_order(a: &str, b: &str) -> Ordering {
    let same = a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
    // A number that the names have in common so far may go on.
    let digits = a.as_bytes()[..same].iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
    let start = same - digits;
    let (mut left, mut right) = (&a.as_bytes()[start..], &b.as_bytes()[start..]);
    loop {
        let (Some(&l), Some(&r)) = (left.first(), right.first()) else {
            // Equal but for leading zeros, or one is the start of the other.
            return left.len().cmp(&right.len()).then_with(|| a.cmp(b));
        };
        if l.is_ascii_digit() && r.is_ascii_digit() {
            let ((l, rest_left), (r, rest_right)) = (split_number(left), split_number(right));
            // Without leading zeros, the longer number is the larger one.
            let order = l.len().cmp(&r.len()).then_with(|| l.cmp(r));
            if order.is_ne() {
                return order;
            }
            (left, right) = (rest_left, rest_right);
        } else if l != r {
            return l.cmp(&r);
        } else {
            (left, right) = (&left[1..], &right[1..]);
        }
    }
}

/// The digits at the start, without leading zeros, and what follows them.
fn split_number(text: &[u8]) -> (&[u8], &[u8]) {
    let zeros = text.iter().take_while(|&&byte| byte == b'0').count();
    let digits = text[zeros..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    text[zeros..].split_at(digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_sort_by_value() {
        let sorted = [
            "a",
            "a.01",
            "a.1",
            "b",
            "layers",
            "layers.2.b",
            "layers.2.w",
            "layers.9.w",
            "layers.10",
            "layers.10.w",
            "layers.100",
            "norm",
            "x99999999999999999999",
            "x100000000000000000000",
        ];
        let mut names = sorted;
        names.reverse();
        names.sort_by(|a, b| natural_order(a, b));
        assert_eq!(names, sorted);
    }

    #[test]
    fn the_order_is_total() {
        let mut names = vec![String::new()];
        for length in 1..4 {
            let longer = names.iter().filter(|name| name.len() + 1 == length);
            let longer: Vec<_> =
                longer.flat_map(|name| ["a", "0", "1", "."].map(|c| name.clone() + c)).collect();
            names.extend(longer);
        }
        for (a, b) in names.iter().flat_map(|a| names.iter().map(move |b| (a, b))) {
            let order = natural_order(a, b);
            assert_eq!(order, natural_order(b, a).reverse(), "{a:?} {b:?}");
            assert_eq!(order.is_eq(), a == b, "{a:?} {b:?}");
            for c in names.iter().filter(|c| order.is_lt() && natural_order(b, c).is_lt()) {
                assert_eq!(natural_order(a, c), Ordering::Less, "{a:?} {b:?} {c:?}");
            }
        }
    }
}
