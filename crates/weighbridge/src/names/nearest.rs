//! Names like one that is missing, to suggest in a message.

use std::fmt;

use super::natural_order;

/// The names that somebody who asked for a missing one may have meant. It prints as a question, `did you mean "a" or "b"?`.
///
/// Those are, the first kind that there is: names that end in what was asked for, from a dot on, or that it ends in; names that
/// are a few letters off, the fewest; names that contain it.
#[derive(Clone, Debug)]
pub struct NearestNames<'n> {
    /// In natural order, no more than are shown.
    shown: Vec<&'n str>,
    others: usize,
}

/// A message has room for so many.
const SHOWN: usize = 3;

/// A suggestion is not worth more comparisons than this.
const COMPARED: usize = 20_000;

/// What is shorter is contained in too many names.
const LEAST_CONTAINED: usize = 3;

impl<'n> NearestNames<'n> {
    /// Those of `names` that are most like `name`.
    ///
    /// ```
    /// use weighbridge::NearestNames;
    ///
    /// let names = ["model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight", "model.norm.weight"];
    /// let near = NearestNames::of("layers.1.mlp.up_proj.weight", names);
    /// assert_eq!(near.to_string(), "did you mean \"model.layers.1.mlp.up_proj.weight\"?");
    /// assert_eq!(NearestNames::of("model.nrom.weight", names).first(), Some("model.norm.weight"));
    /// ```
    pub fn of(name: &str, names: impl IntoIterator<Item = &'n str>) -> Self {
        let names: Vec<_> = names.into_iter().collect();
        let kinds = [ending, longest_end, few_letters_off, containing];
        let found = kinds.iter().map(|kind| kind(name, &names)).find(|found| !found.is_empty());
        let mut shown = found.unwrap_or_default();
        shown.sort_by(|a, b| natural_order(a, b));
        let others = shown.len().saturating_sub(SHOWN);
        shown.truncate(SHOWN);
        Self { shown, others }
    }

    /// Whether there is nothing to suggest.
    pub fn is_empty(&self) -> bool {
        self.shown.is_empty()
    }

    /// The first of them.
    pub fn first(&self) -> Option<&'n str> {
        self.shown.first().copied()
    }

    /// The question as the end of a message, behind a semicolon; empty where there is nothing to suggest.
    pub fn hint(&self) -> String {
        if self.is_empty() { String::new() } else { format!("; {self}") }
    }
}

impl fmt::Display for NearestNames<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((last, before)) = self.shown.split_last() else { return Ok(()) };
        f.write_str("did you mean ")?;
        for (place, name) in before.iter().enumerate() {
            let comma = if place > 0 { ", " } else { "" };
            write!(f, "{comma}{name:?}")?;
        }
        match (before.len(), self.others) {
            (0, 0) => write!(f, "{last:?}?"),
            (_, 0) => write!(f, " or {last:?}?"),
            (_, 1) => write!(f, ", {last:?} or 1 other?"),
            (_, others) => write!(f, ", {last:?} or {others} others?"),
        }
    }
}

/// The one among `names` that is most like `name`, to suggest in a message: the first of [`NearestNames`].
pub fn nearest_name<'n>(name: &str, names: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    NearestNames::of(name, names).first()
}

/// What ends in `name`, which lacks a prefix then.
fn ending<'n>(name: &str, names: &[&'n str]) -> Vec<&'n str> {
    names.iter().copied().filter(|other| is_end(name, other)).collect()
}

/// What `name` ends in, which has a prefix too many then.
fn longest_end<'n>(name: &str, names: &[&'n str]) -> Vec<&'n str> {
    let ends = names.iter().copied().filter(|other| is_end(other, name));
    ends.max_by_key(|other| other.len()).into_iter().collect()
}

/// Whether `end` is that of `name`, from a dot on.
fn is_end(end: &str, name: &str) -> bool {
    let before = name.strip_suffix(end).unwrap_or_default();
    !end.is_empty() && before.ends_with('.')
}

fn few_letters_off<'n>(name: &str, names: &[&'n str]) -> Vec<&'n str> {
    let distances = names.iter().take(COMPARED).map(|other| (distance(name, other), *other));
    let close: Vec<_> = distances.filter(|(distance, _)| *distance <= name.len() / 3).collect();
    let least = close.iter().map(|(distance, _)| *distance).min();
    close.into_iter().filter(|(distance, _)| Some(*distance) == least).map(|(_, other)| other).collect()
}

/// What contains `name`, the case of letters apart.
fn containing<'n>(name: &str, names: &[&'n str]) -> Vec<&'n str> {
    if name.len() < LEAST_CONTAINED {
        return Vec::new();
    }
    let name = name.to_lowercase();
    names.iter().copied().filter(|other| other.to_lowercase().contains(&name)).collect()
}

/// The edit distance of two names; `usize::MAX` for long names and for names of very different lengths.
fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    if a.len().abs_diff(b.len()) > a.len() / 3 || a.len() > 256 {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 8] = [
        "model.embed_tokens.weight",
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.1.mlp.up_proj.weight",
        "model.layers.2.mlp.up_proj.weight",
        "model.layers.10.mlp.up_proj.weight",
        "model.norm.weight",
        "model.norm.bias",
        "lm_head.weight",
    ];

    fn asked(name: &str) -> String {
        NearestNames::of(name, NAMES).to_string()
    }

    #[test]
    fn the_nearest_name_is_a_likely_one() {
        assert_eq!(nearest_name("model.norm.wieght", NAMES), Some("model.norm.weight"));
        assert_eq!(nearest_name("x", NAMES), None);
        assert_eq!(nearest_name("", NAMES), None);
        assert_eq!(nearest_name("", []), None);
        assert_eq!(nearest_name("quite.another.tensor", NAMES), None);
        assert_eq!(NearestNames::of("x", NAMES).hint(), "");
    }

    #[test]
    fn a_missing_prefix_is_found_and_one_too_many() {
        assert_eq!(
            asked("layers.1.mlp.up_proj.weight"),
            "did you mean \"model.layers.1.mlp.up_proj.weight\"?"
        );
        assert_eq!(asked("base_model.model.lm_head.weight"), "did you mean \"lm_head.weight\"?");
        assert_eq!(asked("module.model.norm.bias"), "did you mean \"model.norm.bias\"?");
        // It ends so, but not from a dot on.
        assert_eq!(nearest_name("head.weight", ["lm_head.weight", "x.head.weight"]), Some("x.head.weight"));
    }

    #[test]
    fn many_are_counted() {
        let three = "did you mean \"model.layers.0.mlp.up_proj.weight\", \"model.layers.1.mlp.up_proj.weight\", \
                     \"model.layers.2.mlp.up_proj.weight\" or 1 other?";
        assert_eq!(asked("mlp.up_proj.weight"), three);
        assert_eq!(asked("up_proj"), three);
        assert_eq!(asked("UP_PROJ"), three);
        assert_eq!(asked("norm"), "did you mean \"model.norm.bias\" or \"model.norm.weight\"?");
        assert!(asked("weight").ends_with(" or 4 others?"), "{}", asked("weight"));
        // Of those a few letters off the nearest alone are meant.
        assert_eq!(
            asked("model.layers.1.mlp.upproj.weight"),
            "did you mean \"model.layers.1.mlp.up_proj.weight\"?"
        );
    }

    #[test]
    fn names_are_escaped() {
        let names = ["a.b\u{1b}[31m"];
        assert_eq!(NearestNames::of("b\u{1b}[31m", names).to_string(), "did you mean \"a.b\\u{1b}[31m\"?");
    }
}
