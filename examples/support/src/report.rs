//! What is printed for those who watch.

use std::io::{self, Write};

/// Writes a line to standard error. Not `eprintln!`, which panics when that is closed.
pub fn note(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// An error and its causes on one line, without what one repeats of another, and without
/// backtraces, which Candle puts into its messages when `RUST_BACKTRACE` is set.
pub fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        let parts = text.lines().map(str::trim).take_while(|part| !part.starts_with("0: "));
        let text = parts.collect::<Vec<_>>().join(" ");
        if text.contains(&line) {
            line = text;
        } else if !line.contains(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn errors_have_one_line() {
        let error = anyhow!("cause\n   0: candle_core::error\n      at src/error.rs:264")
            .context("while\nloading: cause")
            .context("/dir");
        assert_eq!(one_line(&error), "/dir: while loading: cause");
        let error = anyhow!("cause\n  of it").context("while\nloading").context("/dir");
        assert_eq!(one_line(&error), "/dir: while loading: cause of it");
        let error = anyhow!("/dir/model.safetensors: too short").context("/dir");
        assert_eq!(one_line(&error), "/dir/model.safetensors: too short");
    }
}
