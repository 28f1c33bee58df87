//! The report as a page for browsers: one file that asks for nothing else.
//!
//! It carries the document that `--format json` writes, and the script that shows it. A policy in its head
//! lets the browser run this script and no other, and forbids every request, whatever names a checkpoint has.

use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest, Sha256};
use weighbridge::write::OutputFile;

use super::json::{Document, Shape};
use super::survey::Survey;
use super::tree::Sort;
use crate::interrupt;
use crate::show;
use crate::term::Term;

const PAGE: &str = include_str!("page/page.html");
const STYLE: &str = include_str!("page/page.css");
const SCRIPT: &str = concat!(
    "\"use strict\";\n(() => {\n",
    include_str!("page/format.js"),
    include_str!("page/model.js"),
    include_str!("page/treemap.js"),
    include_str!("page/table.js"),
    include_str!("page/details.js"),
    include_str!("page/main.js"),
    "})();\n"
);

/// Fails where something is there already, before any work is done.
pub(in crate::verb) fn check(path: &Path, force: bool) -> Result<()> {
    let taken = path.try_exists().with_context(|| format!("{}: it cannot be looked at", path.display()))?;
    if taken && !force {
        bail!("{}: it is there already; --force replaces it", path.display());
    }
    Ok(())
}

/// Writes the page; it appears when it is whole.
pub(in crate::verb) fn write(path: &Path, survey: &Survey<'_>, term: &Term) -> Result<()> {
    let mut file = OutputFile::atomic(path)?;
    let mut out = Counted { out: &mut file, bytes: 0 };
    let written = render(&mut out, survey);
    let bytes = out.bytes;
    written.with_context(|| format!("{}: it cannot be written", path.display()))?;
    interrupt::check()?;
    file.commit()?;
    term.note(format_args!("{}: {}", path.display(), show::bytes(bytes)));
    Ok(())
}

fn render(out: &mut impl Write, survey: &Survey<'_>) -> Result<()> {
    let policy = format!(
        "default-src 'none'; script-src '{}'; style-src '{}'; img-src data:; base-uri 'none'; form-action 'none'",
        digest(SCRIPT),
        digest(STYLE)
    );
    // What stands between the marks, and the name of the mark behind it.
    let mut rest = PAGE;
    while let Some((before, (mark, behind))) =
        rest.split_once("{{").and_then(|(before, rest)| Some((before, rest.split_once("}}")?)))
    {
        out.write_all(before.as_bytes())?;
        match mark {
            "policy" => out.write_all(policy.as_bytes())?,
            "style" => out.write_all(STYLE.as_bytes())?,
            "script" => out.write_all(SCRIPT.as_bytes())?,
            "title" => {
                let name = survey.location.file_name().unwrap_or(survey.location.as_os_str());
                out.write_all(escaped(&show::safe(&name.to_string_lossy())).as_bytes())?;
            }
            _ => {
                let shape = Shape { tree: None, sort: Sort::Name };
                Document::of(std::iter::once(survey), shape).write(InScript(&mut *out))?;
            }
        }
        rest = behind;
    }
    out.write_all(rest.as_bytes())?;
    Ok(())
}

/// As a policy names what it allows.
fn digest(text: &str) -> String {
    format!("sha256-{}", BASE64_STANDARD.encode(Sha256::digest(text)))
}

/// A text in HTML.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Writes JSON so that nothing in it ends the script element in which it stands. These characters are in
/// strings only, where JSON has another way to write them.
struct InScript<W>(W);

impl<W: Write> Write for InScript<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut plain = bytes;
        while let Some(place) = plain.iter().position(|byte| matches!(byte, b'<' | b'>' | b'&')) {
            self.0.write_all(&plain[..place])?;
            write!(self.0, "\\u{:04x}", plain[place])?;
            plain = &plain[place + 1..];
        }
        self.0.write_all(plain)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

struct Counted<W> {
    out: W,
    bytes: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_ends_the_script() -> Result<()> {
        let mut out = Vec::new();
        InScript(&mut out).write_all(b"[\"</script><!--&\"]")?;
        assert_eq!(out, br#"["\u003c/script\u003e\u003c!--\u0026"]"#);
        let text: Vec<String> = serde_json::from_slice(&out)?;
        assert_eq!(text, ["</script><!--&"]);
        Ok(())
    }

    #[test]
    fn the_browser_reads_the_script_to_its_end() {
        assert!(!SCRIPT.contains("</script") && !SCRIPT.contains("<!--") && !SCRIPT.contains('\r'));
        assert!(!STYLE.contains("</style") && !STYLE.contains('\r'));
    }
}
