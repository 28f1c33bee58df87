//! Percent-encoding, as far as paths need it.

use std::fmt::Write as _;

fn push(out: &mut String, byte: u8) {
    let _ = write!(out, "%{byte:02X}");
}

fn plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

/// One segment of a path, slashes encoded too.
pub(crate) fn encode_segment(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match plain(byte) {
            true => out.push(byte as char),
            false => push(&mut out, byte),
        }
    }
    out
}

/// A path, slashes kept. `encoded`: what is percent-encoded already stays so, and what a path may have in it
/// too.
pub(crate) fn encode_path(text: &str, encoded: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte == b'/' || plain(byte) || (encoded && b"%!$&'()*+,;=:@".contains(&byte)) {
            true => out.push(byte as char),
            false => push(&mut out, byte),
        }
    }
    out
}

/// What percent-encoding means; `None`: it is malformed or no UTF-8.
pub(crate) fn decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let mut digit = || (bytes.next()? as char).to_digit(16);
                let (high, low) = (digit()?, digit()?);
                out.push((high * 16 + low) as u8);
            }
            byte => out.push(byte),
        }
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoded_and_back() {
        let name = "a b/ü%2F?#+.bin";
        assert_eq!(encode_path(name, false), "a%20b/%C3%BC%252F%3F%23%2B.bin");
        assert_eq!(decode(&encode_path(name, false)).as_deref(), Some(name));
        assert_eq!(encode_segment("refs/pr/1"), "refs%2Fpr%2F1");
        assert_eq!(encode_path("/a%20b+c/é", true), "/a%20b+c/%C3%A9");
        assert_eq!(decode("%zz"), None);
        assert_eq!(decode("%ff"), None);
    }
}
