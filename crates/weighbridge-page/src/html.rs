//! One file for a browser that asks for nothing else.
//!
//! It carries data and the script that shows them. A policy in its head lets the browser run this script and no other, and
//! forbids every request, whatever names a checkpoint has.

use std::io::{self, Write};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde::Serialize;
use sha2::{Digest, Sha256};

/// The style of all pages.
pub const STYLE: &str = include_str!("../assets/page.css");

/// What stands around the body of a page.
const FRAME: &str = include_str!("../assets/frame.html");

/// What a page is made of.
#[derive(Clone, Debug)]
pub struct Page<'p> {
    /// Plain text.
    pub title: &'p str,
    /// HTML.
    pub body: &'p str,
    /// CSS.
    pub style: &'p str,
    /// JavaScript.
    pub script: &'p str,
    /// Elements that hold bytes: an id, and the bytes, which the page has as base64. See [`packed`].
    pub data: Vec<(&'p str, Vec<u8>)>,
    /// What else the script may run, as in the directive `script-src` of a policy: `'wasm-unsafe-eval'`.
    pub allow: &'p str,
    /// More directives of the policy: `worker-src blob:`.
    pub policy: &'p str,
}

impl Page<'_> {
    /// Writes it.
    ///
    /// # Errors
    ///
    /// Those of writing.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        // What stands between the marks, and the name of the mark behind it.
        let mut rest = FRAME;
        while let Some((before, (mark, behind))) =
            rest.split_once("{{").and_then(|(before, rest)| Some((before, rest.split_once("}}")?)))
        {
            out.write_all(before.as_bytes())?;
            match mark {
                "policy" => out.write_all(self.whole_policy().as_bytes())?,
                "title" => out.write_all(escaped(self.title).as_bytes())?,
                "style" => out.write_all(self.style.as_bytes())?,
                "body" => out.write_all(self.body.as_bytes())?,
                "script" => out.write_all(self.script.as_bytes())?,
                _ => self.write_data(out)?,
            }
            rest = behind;
        }
        out.write_all(rest.as_bytes())
    }

    fn whole_policy(&self) -> String {
        let Self { script, style, allow, policy, .. } = self;
        let (script, style) = (digest(script), digest(style));
        let mut whole = format!("default-src 'none'; script-src '{script}'");
        for more in [allow].into_iter().filter(|allow| !allow.is_empty()) {
            whole.push(' ');
            whole.push_str(more);
        }
        whole.push_str(&format!("; style-src '{style}'; img-src data:; base-uri 'none'; form-action 'none'"));
        if !policy.is_empty() {
            whole.push_str("; ");
            whole.push_str(policy);
        }
        whole
    }

    fn write_data(&self, out: &mut impl Write) -> io::Result<()> {
        for (id, bytes) in &self.data {
            write!(out, "<script type=\"application/octet-stream\" id=\"{id}\">")?;
            let mut encoder = base64::write::EncoderWriter::new(&mut *out, &BASE64_STANDARD);
            encoder.write_all(bytes)?;
            encoder.finish()?;
            drop(encoder);
            writeln!(out, "</script>")?;
        }
        Ok(())
    }
}

/// A document as the script of a page unpacks it: JSON in gzip.
///
/// # Errors
///
/// Those of the document.
pub fn packed(document: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut packer = io::BufWriter::with_capacity(1 << 16, GzEncoder::new(Vec::new(), Compression::new(6)));
    serde_json::to_writer(&mut packer, document)?;
    packer.into_inner().map_err(io::IntoInnerError::into_error)?.finish()
}

/// As a policy names what it allows.
fn digest(text: &str) -> String {
    format!("sha256-{}", BASE64_STANDARD.encode(Sha256::digest(text)))
}

/// A text in HTML, without characters that cannot be seen.
fn escaped(text: &str) -> String {
    let hidden = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            c if hidden(c) => escaped.extend(c.escape_default()),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_text() {
        assert_eq!(escaped("</title><b>&\u{202e}\n"), "&lt;/title&gt;&lt;b&gt;&amp;\\u{202e}\\n");
    }

    #[test]
    fn data_are_carried_whole() -> io::Result<()> {
        use std::io::Read;
        let text = "</script>\u{2028}";
        let page = Page {
            title: "{{data}}",
            body: "<p>",
            style: "p {}",
            script: "1;",
            allow: "",
            policy: "",
            data: vec![("a", packed(&text)?)],
        };
        let mut out = Vec::new();
        page.write(&mut out)?;
        let html = String::from_utf8_lossy(&out);
        let coded = html.split_once("id=\"a\">").and_then(|(_, rest)| rest.split_once("</script>"));
        let bytes = BASE64_STANDARD.decode(coded.map_or("", |(coded, _)| coded)).unwrap();
        let mut unpacked = String::new();
        flate2::read::GzDecoder::new(&*bytes).read_to_string(&mut unpacked)?;
        assert_eq!(serde_json::from_str::<String>(&unpacked)?, text);
        assert_eq!(html.matches("</script>").count(), 2);
        Ok(())
    }
}
