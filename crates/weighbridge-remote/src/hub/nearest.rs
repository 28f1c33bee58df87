//! The names most like one that is absent.

/// At most three of the names, those that take the fewest edits first; none that have little in common.
pub(crate) fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let most = name.chars().count() / 2;
    let mut near: Vec<_> = names
        .take(10_000)
        .map(|other| (distance(name, other).min(distance_of_ends(name, other)), other))
        .filter(|(distance, _)| *distance <= most)
        .collect();
    near.sort();
    near.into_iter().take(3).map(|(_, name)| name).collect()
}

/// A file of the same name in another folder is one edit away.
fn distance_of_ends(a: &str, b: &str) -> usize {
    let end = |text: &str| text.rsplit('/').next().map(str::to_owned);
    if end(a) == end(b) { 1 } else { usize::MAX }
}

/// How many characters are to be put in, taken out or replaced.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(256).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().take(256).enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn likely_names_first() {
        let names = ["config.json", "model.safetensors", "onnx/model.onnx", "model.safetensors.index.json"];
        assert_eq!(nearest("model.safetensor", names.into_iter()), ["model.safetensors"]);
        assert_eq!(nearest("model.onnx", names.into_iter())[0], "onnx/model.onnx");
        assert_eq!(nearest("zzz", names.into_iter()), [""; 0]);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
