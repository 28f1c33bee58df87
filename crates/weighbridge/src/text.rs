//! Names and shapes in messages, cut to a length that a hostile file cannot choose.

/// The first characters of a name, which may be as long as the header.
pub(crate) fn start_of(name: &str) -> &str {
    const MOST: usize = 256;
    name.char_indices().nth(MOST).map_or(name, |(end, _)| &name[..end])
}

/// A shape for a message; hostile ones have millions of dimensions.
pub(crate) fn brief(shape: &[usize]) -> String {
    const MOST: usize = 8;
    if shape.len() <= MOST {
        return format!("{shape:?}");
    }
    let first: Vec<_> = shape[..MOST].iter().map(usize::to_string).collect();
    format!("[{}, ... {} dimensions]", first.join(", "), shape.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_and_shapes_are_cut() {
        assert_eq!(start_of("h.0"), "h.0");
        assert_eq!(start_of(&"\u{e9}".repeat(1000)), "\u{e9}".repeat(256));
        assert_eq!(brief(&[]), "[]");
        assert_eq!(brief(&[1; 8]), "[1, 1, 1, 1, 1, 1, 1, 1]");
        assert_eq!(brief(&[2; 9]), "[2, 2, 2, 2, 2, 2, 2, 2, ... 9 dimensions]");
    }
}
