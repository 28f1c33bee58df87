//! What a process that failed has to say: one line out of all that it printed.

/// The line that says why a program failed, of what it wrote to standard error: that of an error (`Error: ...`, with its causes),
/// of a panic or of a Python exception, whichever comes last, and not one of the backtrace behind it; otherwise the last
/// line. `None` if it wrote nothing.
///
/// ```
/// use gpu_check_common::complaint::complaint;
///
/// let text = "Error: no such file\n\nStack backtrace:\n   0: main\n   1: start\n";
/// assert_eq!(complaint(text).as_deref(), Some("no such file"));
/// ```
pub fn complaint(stderr: &str) -> Option<String> {
    let lines: Vec<&str> = stderr.lines().map(str::trim_end).collect();
    let found = (0..lines.len()).rev().find_map(|place| said_at(lines.get(place..)?));
    found.or_else(|| {
        let mut last = lines.iter().rev().filter(|line| !line.is_empty() && !is_note(line));
        last.next().map(|line| line.trim_start().to_owned())
    })
}

/// What is said where an error begins.
fn said_at(lines: &[&str]) -> Option<String> {
    let (first, rest) = lines.split_first()?;
    if let Some(error) = ["Error:", "error:"].iter().find_map(|word| first.strip_prefix(word)) {
        let mut said = error.trim().to_owned();
        for cause in causes(rest) {
            if !said.contains(cause) {
                said = if said.is_empty() { cause.to_owned() } else { format!("{said}: {cause}") };
            }
        }
        return Some(said).filter(|said| !said.is_empty());
    }
    if first.starts_with("thread '") && first.contains(" panicked at ") {
        // The message is in the next line; it may be empty, and was in this one once.
        let message = rest.first().map(|line| line.trim());
        let has_one = |line: &&str| !line.is_empty() && *line != "stack backtrace:" && !is_note(line);
        return Some(message.filter(has_one).unwrap_or(first).to_owned());
    }
    if first.starts_with("Traceback (") {
        // Frames are indented, the exception is not.
        let exception = rest.iter().find(|line| !line.starts_with(char::is_whitespace) && !line.is_empty());
        return exception.map(|&line| line.to_owned());
    }
    None
}

/// The causes that anyhow lists behind an error, without their numbers.
fn causes<'t>(lines: &'t [&'t str]) -> impl Iterator<Item = &'t str> {
    let mut behind = lines.iter().skip_while(|line| line.is_empty());
    let listed = behind.next().is_some_and(|line| *line == "Caused by:");
    let listed = behind.take_while(move |line| listed && line.starts_with(' '));
    listed.map(|line| {
        let line = line.trim_start();
        match line.split_once(": ") {
            Some((number, cause)) if number.bytes().all(|byte| byte.is_ascii_digit()) => cause,
            _ => line,
        }
    })
}

fn is_note(line: &str) -> bool {
    line.starts_with("note: ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_not_one_of_the_backtrace() {
        let backtrace = "\n\nStack backtrace:\n   0: anyhow::error::new\n             at ./src/error.rs:27:14\n   \
                         1: main\n";
        for (text, said) in [
            (format!("Error: it is broken{backtrace}"), "it is broken"),
            (
                format!("warning: old\nError: no load\n\nCaused by:\n    0: x.bin\n    1: no such file{backtrace}"),
                "no load: x.bin: no such file",
            ),
            (format!("Error: no load\n\nCaused by:\n    no such file{backtrace}"), "no load: no such file"),
            ("error: unexpected argument '--x'\n\nUsage: peers\n".to_owned(), "unexpected argument '--x'"),
            (
                "\nthread 'main' (77) panicked at src/main.rs:5:9:\nindex out of bounds: 3\nstack backtrace:\n   0: begin\n\
                 note: Some details are omitted\n"
                    .to_owned(),
                "index out of bounds: 3",
            ),
            (
                "thread 'main' panicked at 'old form', src/main.rs:5:9\nnote: run with `RUST_BACKTRACE=1`\n".to_owned(),
                "thread 'main' panicked at 'old form', src/main.rs:5:9",
            ),
            // A thread panicked, and the program ended in an error of its own.
            (
                format!("thread 'a' panicked at x.rs:1:1:\noops\nError: a reader failed{backtrace}"),
                "a reader failed",
            ),
            (
                "error: logged only\nthread 'main' panicked at x.rs:1:1:\nlost\n".to_owned(),
                "lost",
            ),
            (
                "Traceback (most recent call last):\n  File \"<string>\", line 1, in <module>\n    f()\n\
                 RuntimeError: no CUDA\nCompile with TORCH_USE_CUDA_DSA\n"
                    .to_owned(),
                "RuntimeError: no CUDA",
            ),
            ("first\n  the last one\n\n".to_owned(), "the last one"),
        ] {
            assert_eq!(complaint(&text).as_deref(), Some(said), "{text}");
        }
        assert_eq!(complaint(" \n\n"), None);
    }
}
