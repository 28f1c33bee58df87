//! The order of names in which models are built.

/// Sorts names with numbers by value: pairs of text and the number behind it.
pub(super) fn natural_key(name: &str) -> Vec<(String, u64)> {
    let mut key = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        let text = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let (text, behind) = rest.split_at(text);
        let digits = behind.find(|c: char| !c.is_ascii_digit()).unwrap_or(behind.len());
        let (digits, behind) = behind.split_at(digits);
        key.push((text.to_owned(), digits.parse().unwrap_or(if digits.is_empty() { 0 } else { u64::MAX })));
        rest = behind;
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_sort_by_value() {
        let mut names =
            ["layers.10.w", "layers.2.w", "layers.2.b", "norm", "layers", "x99999999999999999999"];
        names.sort_by_cached_key(|name| natural_key(name));
        let expected = ["layers", "layers.2.b", "layers.2.w", "layers.10.w", "norm", "x99999999999999999999"];
        assert_eq!(names, expected);
    }
}
