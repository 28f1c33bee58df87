//! How things are written for people: sizes with units, names without control characters, errors on one line.

use std::borrow::Cow;

/// Bytes in decimal units, three digits: `1.50 GB`.
#[expect(clippy::cast_precision_loss, reason = "for people to read")]
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    let mut value = count as f64;
    let mut unit = 0;
    // What would be rounded to 1000 is one of the next unit.
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    match unit {
        0 => format!("{count} B"),
        _ if value < 9.995 => format!("{value:.2} {}", UNITS[unit]),
        _ if value < 99.95 => format!("{value:.1} {}", UNITS[unit]),
        _ => format!("{value:.0} {}", UNITS[unit]),
    }
}

/// A number with its digits in groups: `1,500,000`.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 tensor`, `1,500 tensors`.
pub(crate) fn plural(number: usize, noun: &str) -> String {
    let ending = if number == 1 { "" } else { "s" };
    format!("{} {noun}{ending}", count(number as u64))
}

/// A shape: `[4, 8]`.
pub(crate) fn shape(shape: &[usize]) -> String {
    format!("{shape:?}")
}

/// A name or a text out of a file, safe to print: control characters, which a terminal would obey, are
/// escaped, and those that change the direction of writing.
pub(crate) fn safe(text: &str) -> Cow<'_, str> {
    if !text.contains(is_unsafe) {
        return text.into();
    }
    let escaped = text.chars().map(|c| if is_unsafe(c) { c.escape_default().to_string() } else { c.into() });
    escaped.collect::<String>().into()
}

/// Whether a terminal would do something else with it than show it.
pub(crate) fn is_unsafe(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// An error and its causes on one line, without what one repeats of another.
pub(crate) fn one_line(error: &anyhow::Error) -> String {
    // Windows has two ways to write one path.
    let plain = |text: &str| if cfg!(windows) { text.replace('\\', "/") } else { text.to_owned() };
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        let text = text.lines().map(str::trim).collect::<Vec<_>>().join(" ");
        if plain(&text).contains(&plain(&line)) {
            line = text;
        } else if !plain(&line).contains(&plain(&text)) {
            line.push_str(": ");
            line.push_str(&text);
        }
    }
    safe(&line).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units_and_three_digits() {
        let cases = [
            (0, "0 B"),
            (999, "999 B"),
            (1_000, "1.00 kB"),
            (1_500, "1.50 kB"),
            (99_960, "100 kB"),
            (999_700, "1.00 MB"),
            (2_200_000_000, "2.20 GB"),
            (u64::MAX, "18447 PB"),
        ];
        for (count, text) in cases {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn digits_stand_in_groups() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_000), "1,000");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(plural(1, "tensor"), "1 tensor");
        assert_eq!(plural(2, "tensor"), "2 tensors");
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(safe("layers.0.weight"), "layers.0.weight");
        assert_eq!(safe("a\u{1b}[31mb\n"), "a\\u{1b}[31mb\\n");
        assert_eq!(safe("a\u{202e}b"), "a\\u{202e}b");
        assert_eq!(safe("gewicht-ü-重"), "gewicht-ü-重");
    }
}
