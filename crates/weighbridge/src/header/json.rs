//! A cursor over JSON text that accepts exactly what `serde_json` 1.0 accepts and allocates nothing.
//!
//! The official crate reads headers with `serde_json`, so its grammar is the format's: no depth above 127
//! containers, no lone surrogates, no numbers above the range of `f64`, no control characters in strings.

use crate::newer_std::as_chunks;
use std::borrow::Cow;

use crate::text::start_of;

/// Where and why the text is not what was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct JsonError {
    pub(crate) position: usize,
    pub(crate) message: &'static str,
}

type Result<T> = std::result::Result<T, JsonError>;

/// Containers that may be open at a time: `serde_json` refuses the 128th.
const DEPTH: u8 = 127;

/// A place in a JSON text.
#[derive(Clone, Debug)]
pub(crate) struct Cursor<'a> {
    text: &'a str,
    position: usize,
    depth: u8,
}

/// A JSON string as it is in the text, between its quotes; its escapes are known to be valid.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawStr<'a> {
    pub(crate) raw: &'a str,
    pub(crate) escaped: bool,
    /// Of the first byte after the opening quote.
    pub(crate) position: usize,
}

impl<'a> RawStr<'a> {
    /// The start of the value, for a message: the whole may be as long as the text.
    pub(crate) fn start(&self) -> Cow<'a, str> {
        Self { raw: start_of(self.raw), ..*self }.value()
    }

    pub(crate) fn value(&self) -> Cow<'a, str> {
        if !self.escaped {
            return Cow::Borrowed(self.raw);
        }
        let mut value = String::with_capacity(self.raw.len());
        unescape(self.raw, &mut value);
        Cow::Owned(value)
    }
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        Self { text, position: 0, depth: 0 }
    }

    #[inline]
    pub(crate) fn position(&self) -> usize {
        self.position
    }

    pub(crate) fn text(&self) -> &'a str {
        self.text
    }

    pub(crate) fn rest(&self) -> &'a str {
        &self.text[self.position..]
    }

    pub(crate) fn remaining(&self) -> usize {
        self.text.len() - self.position
    }

    pub(crate) fn fail<T>(&self, message: &'static str) -> Result<T> {
        Err(JsonError { position: self.position, message })
    }

    #[inline]
    fn byte(&self) -> Option<u8> {
        self.text.as_bytes().get(self.position).copied()
    }

    /// Skips white space and returns the byte after it, without taking it.
    #[inline]
    pub(crate) fn peek(&mut self) -> Option<u8> {
        while let Some(b' ' | b'\n' | b'\t' | b'\r') = self.byte() {
            self.position += 1;
        }
        self.byte()
    }

    /// Takes `byte` if it is the next one after white space.
    #[inline]
    pub(crate) fn take(&mut self, byte: u8) -> bool {
        let there = self.peek() == Some(byte);
        self.position += usize::from(there);
        there
    }

    #[inline]
    pub(crate) fn expect(&mut self, byte: u8, message: &'static str) -> Result<()> {
        if self.take(byte) { Ok(()) } else { self.fail(message) }
    }

    /// Takes `expected` if it stands right here.
    #[inline]
    pub(crate) fn took(&mut self, expected: &[u8]) -> Option<&mut Self> {
        let there = self.text.as_bytes()[self.position..].starts_with(expected);
        self.position += if there { expected.len() } else { 0 };
        there.then_some(self)
    }

    /// Takes letters, digits and underscores that stand right here, a few at most.
    #[inline]
    pub(crate) fn plain_word(&mut self) -> Option<&'a str> {
        const MOST: usize = 16;
        let start = self.position;
        let plain = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
        let len = self.text.as_bytes()[start..].iter().take(MOST).take_while(|byte| plain(byte)).count();
        self.position += len;
        self.text.get(start..self.position)
    }

    /// Takes a number that stands right here and has at most 18 digits.
    #[inline]
    pub(crate) fn plain_unsigned(&mut self) -> Option<u64> {
        const MOST: usize = 18;
        let rest = &self.text.as_bytes()[self.position..];
        let (mut number, mut len) = (0, 0);
        while let Some(digit @ b'0'..=b'9') = rest.get(len) {
            number = number * 10 + u64::from(digit - b'0');
            len += 1;
            if len > MOST {
                return None;
            }
        }
        let padded = len > 1 && rest[0] == b'0';
        self.position += len;
        // What follows a number is for the caller to look at: a point or an exponent is none of what it takes.
        (len > 0 && !padded).then_some(number)
    }

    /// Opens an object or array.
    pub(crate) fn open(&mut self, bracket: u8, message: &'static str) -> Result<()> {
        self.expect(bracket, message)?;
        if self.depth == DEPTH {
            return self.fail("more than 127 nested containers");
        }
        self.depth += 1;
        Ok(())
    }

    /// Before each element: whether there is one, with the comma taken where one is due.
    #[inline]
    pub(crate) fn more(&mut self, first: bool, close: u8) -> Result<bool> {
        if self.take(close) {
            self.depth -= 1;
            return Ok(false);
        }
        if !first {
            self.expect(b',', "expected ',' or the end of the container")?;
            if self.peek() == Some(close) {
                return self.fail("a comma stands before the end of the container");
            }
        }
        Ok(true)
    }

    /// An object's next key, with its colon taken; `None` at the end.
    #[inline]
    pub(crate) fn key(&mut self, first: bool) -> Result<Option<RawStr<'a>>> {
        if !self.more(first, b'}')? {
            return Ok(None);
        }
        let key = self.string("expected a key")?;
        self.expect(b':', "expected ':'")?;
        Ok(Some(key))
    }

    #[inline]
    pub(crate) fn string(&mut self, message: &'static str) -> Result<RawStr<'a>> {
        self.expect(b'"', message)?;
        let bytes = self.text.as_bytes();
        let start = self.position;
        let mut escaped = false;
        loop {
            self.position += plain_len(&bytes[self.position..]);
            match self.byte() {
                Some(b'"') => break,
                Some(b'\\') => {
                    escaped = true;
                    self.escape()?;
                }
                Some(_) => return self.fail("a control character in a string"),
                None => return self.fail("a string does not end"),
            }
        }
        let raw = &self.text[start..self.position];
        self.position += 1;
        Ok(RawStr { raw, escaped, position: start })
    }

    fn escape(&mut self) -> Result<()> {
        self.position += 1;
        let letter = self.byte();
        self.position += 1;
        match letter {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => Ok(()),
            Some(b'u') => match self.hex()? {
                0xDC00..=0xDFFF => self.fail("a lone surrogate in a string"),
                0xD800..=0xDBFF => {
                    let low = self.text.as_bytes()[self.position..].starts_with(b"\\u");
                    self.position += if low { 2 } else { 0 };
                    if low && matches!(self.hex()?, 0xDC00..=0xDFFF) {
                        return Ok(());
                    }
                    self.fail("a lone surrogate in a string")
                }
                _ => Ok(()),
            },
            _ => {
                self.position = self.position.min(self.text.len());
                self.fail("an unknown escape in a string")
            }
        }
    }

    fn hex(&mut self) -> Result<u16> {
        let digits = self.text.as_bytes().get(self.position..self.position + 4);
        let value = digits.and_then(|digits| {
            digits
                .iter()
                .try_fold(0_u16, |value, &digit| Some(value << 4 | char::from(digit).to_digit(16)? as u16))
        });
        let Some(value) = value else {
            return self.fail("an escape without four hexadecimal digits");
        };
        self.position += 4;
        Ok(value)
    }

    /// A whole number from 0 to 2^64-1 in plain digits.
    pub(crate) fn unsigned(&mut self, message: &'static str) -> Result<u64> {
        self.peek();
        let digits = self.digits();
        let number = digits
            .bytes()
            .try_fold(0_u64, |value, digit| value.checked_mul(10)?.checked_add(u64::from(digit - b'0')));
        let padded = digits.len() > 1 && digits.starts_with('0');
        match number {
            Some(number)
                if !digits.is_empty() && !padded && !matches!(self.byte(), Some(b'.' | b'e' | b'E')) =>
            {
                Ok(number)
            }
            _ => self.fail(message),
        }
    }

    fn digits(&mut self) -> &'a str {
        let rest = &self.text.as_bytes()[self.position..];
        let len = rest.iter().position(|b| !b.is_ascii_digit()).unwrap_or(rest.len());
        let start = self.position;
        self.position += len;
        &self.text[start..self.position]
    }

    /// Takes a value of any kind, checking it as `serde_json` would.
    pub(crate) fn skip(&mut self) -> Result<()> {
        match self.peek() {
            Some(b'{') => {
                self.open(b'{', "")?;
                let mut first = true;
                while self.key(first)?.is_some() {
                    first = false;
                    self.skip()?;
                }
                Ok(())
            }
            Some(b'[') => {
                self.open(b'[', "")?;
                let mut first = true;
                while self.more(first, b']')? {
                    first = false;
                    self.skip()?;
                }
                Ok(())
            }
            Some(b'"') => self.string("").map(drop),
            Some(b'-' | b'0'..=b'9') => self.skip_number(),
            Some(b't') => self.literal("true"),
            Some(b'f') => self.literal("false"),
            Some(b'n') => self.literal("null"),
            _ => self.fail("expected a value"),
        }
    }

    pub(crate) fn literal(&mut self, word: &str) -> Result<()> {
        if self.text.as_bytes()[self.position..].starts_with(word.as_bytes()) {
            self.position += word.len();
            return Ok(());
        }
        self.fail("expected a value")
    }

    fn skip_number(&mut self) -> Result<()> {
        let start = self.position;
        self.position += usize::from(self.byte() == Some(b'-'));
        let whole = self.digits();
        let mut plain = whole.len() < 20;
        let mut valid = !whole.is_empty() && (whole.len() == 1 || !whole.starts_with('0'));
        if self.byte() == Some(b'.') {
            self.position += 1;
            plain = false;
            valid &= !self.digits().is_empty();
        }
        if let Some(b'e' | b'E') = self.byte() {
            self.position += 1;
            plain = false;
            self.position += usize::from(matches!(self.byte(), Some(b'+' | b'-')));
            valid &= !self.digits().is_empty();
        }
        // Whether a number is out of range depends on how `serde_json` computes it, so ask it.
        let number = &self.text[start..self.position];
        if valid && (plain || serde_json::from_str::<f64>(number).is_ok()) {
            return Ok(());
        }
        self.position = start;
        self.fail("not a number")
    }

    /// Checks that nothing but white space is left.
    pub(crate) fn end(&mut self) -> Result<()> {
        match self.peek() {
            None => Ok(()),
            Some(_) => self.fail("something stands behind the end of the JSON"),
        }
    }
}

/// The number of bytes before the first quote, backslash or control character.
fn plain_len(bytes: &[u8]) -> usize {
    const ONES: u64 = u64::MAX / 255;
    const HIGHS: u64 = ONES << 7;
    let zero_byte = |x: u64| x.wrapping_sub(ONES) & !x & HIGHS;
    let (words, _) = as_chunks::<8, _>(bytes);
    for (place, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        // A byte of `word` below 0x20, equal to a quote, or equal to a backslash sets its high bit. Borrows
        // can only set bits above the first true one, and the lowest is the one that is used.
        let control = word.wrapping_sub(ONES * 0x20) & !word & HIGHS;
        let quote = zero_byte(word ^ (ONES * u64::from(b'"')));
        let backslash = zero_byte(word ^ (ONES * u64::from(b'\\')));
        let found = control | quote | backslash;
        if found != 0 {
            return place * 8 + found.trailing_zeros() as usize / 8;
        }
    }
    let done = words.len() * 8;
    let special = |b: &u8| matches!(b, b'"' | b'\\' | 0..0x20);
    done + bytes[done..].iter().position(special).unwrap_or(bytes.len() - done)
}

/// Appends what `raw` stands for; its escapes must be valid.
pub(crate) fn unescape(raw: &str, out: &mut String) {
    let mut rest = raw;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let letter = rest.as_bytes().get(at + 1).copied().unwrap_or_default();
        rest = rest.get(at + 2..).unwrap_or_default();
        out.push(match letter {
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let unit = |text: &str| text.get(..4).and_then(|hex| u16::from_str_radix(hex, 16).ok());
                let high = unit(rest).unwrap_or_default();
                rest = rest.get(4..).unwrap_or_default();
                let low = (0xD800..0xDC00)
                    .contains(&high)
                    .then(|| unit(rest.get(2..).unwrap_or_default()))
                    .flatten();
                if low.is_some() {
                    rest = rest.get(6..).unwrap_or_default();
                }
                let units = [Some(high), low].into_iter().flatten();
                let decoded = char::decode_utf16(units).next();
                decoded.and_then(std::result::Result::ok).unwrap_or(char::REPLACEMENT_CHARACTER)
            }
            other => char::from(other),
        });
    }
    out.push_str(rest);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepts(text: &str) -> bool {
        let mut cursor = Cursor::new(text);
        cursor.skip().is_ok() && cursor.end().is_ok()
    }

    #[test]
    fn agrees_with_serde_json() {
        let deep = |n: usize| "[".repeat(n) + &"]".repeat(n);
        let mut texts: Vec<String> = [
            "",
            " ",
            "0",
            "-0",
            "-1",
            "+1",
            "01",
            "-",
            "1.",
            ".5",
            "1.5",
            "1e5",
            "1e",
            "1e+",
            "1E-3",
            "-1.5e+2",
            "18446744073709551615",
            "18446744073709551616",
            "-9223372036854775809",
            "1e308",
            "1e309",
            "1e-400",
            "1.7976931348623158e308",
            "1.7976931348623159e308",
            "17976931348623159e292",
            "0e999999999999",
            "123456789012345678901234567890e290",
            "null",
            "nul",
            "true",
            "false",
            "True",
            "NaN",
            "[",
            "]",
            "[]",
            "[1,]",
            "[,1]",
            "[1 2]",
            "[1,2] ",
            "{}",
            "{\"a\":1}",
            "{\"a\":1,}",
            "{a:1}",
            "{\"a\" 1}",
            "{\"a\":}",
            "\"\\ud83d\\ude00\"",
            "\"\\ud83d\"",
            "\"\\ude00\"",
            "\"\\ud83dx\"",
            "\"\\ud83d\\n\"",
            "\"\\ud83d\\ud83d\"",
            "\"\\u12\"",
            "\"\\u12g4\"",
            "\"\\x\"",
            "\"\\",
            "\"a",
            "\"\t\"",
            "\"\u{7f}\"",
            "\"\\u0000\"",
            "\"é\u{2028}\"",
            "\"\\\"\"",
            "1 2",
            "[[[]]]x",
            "\u{feff}1",
            "// c\n1",
        ]
        .map(str::to_owned)
        .into();
        texts.extend([deep(126), deep(127), deep(128), deep(5000)]);
        texts.extend((0..0x30_u8).map(|c| format!("\"abcdefghijk{}lm\"", char::from(c))));
        for text in texts {
            let theirs = serde_json::from_str::<serde_json::Value>(&text).is_ok();
            assert_eq!(accepts(&text), theirs, "{text:?}");
        }
    }

    #[test]
    fn unescapes_as_serde_json_does() {
        for text in [r#""""#, r#""a\"\\\/\b\f\n\r\t\u0041\ud83d\ude00z""#, r#""\u005f_metadata__""#] {
            let theirs: String = serde_json::from_str(text).unwrap();
            assert_eq!(Cursor::new(text).string("").unwrap().value(), theirs);
        }
    }

    #[test]
    fn unsigned_is_plain_digits() {
        let read = |text| Cursor::new(text).unsigned("").ok();
        assert_eq!(read(" 18446744073709551615"), Some(u64::MAX));
        for text in ["18446744073709551616", "-1", "-0", "1.0", "1e0", "01", "", "\"1\"", "x"] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
