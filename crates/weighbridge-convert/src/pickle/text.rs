//! The texts in pickles, read as CPython reads them: numbers in lines, and strings with escapes.

/// An integer on a line of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Integer {
    Bool(bool),
    Small(i64),
    /// It does not fit 64 bits.
    Big,
}

/// A text: Python's may hold lone surrogates, which no text of Rust's can.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Text {
    Plain(Box<str>),
    /// Surrogates are written as `\ud800`.
    Surrogates(Box<str>),
}

/// The argument of opcode `I`, without its newline: what `strtol` takes in base 0, else what Python takes for a literal.
pub(super) fn integer(line: &[u8]) -> Option<Integer> {
    match strtol(line) {
        // What protocol 1 writes for True and False.
        Some(value @ (0 | 1)) if line.len() == 2 => Some(Integer::Bool(value == 1)),
        Some(value) => Some(Integer::Small(value)),
        None => literal(line, 0).map(small),
    }
}

/// The argument of opcode `L`, whose `L` at the end may be missing.
pub(super) fn long(line: &[u8]) -> Option<Integer> {
    literal(line.strip_suffix(b"L").unwrap_or(line), 0).map(small)
}

/// The argument of `GET` and `PUT`.
pub(super) fn index(line: &[u8]) -> Option<u64> {
    u64::try_from(literal(line, 10)??).ok().filter(|&index| index <= i64::MAX as u64)
}

fn small(value: Option<i128>) -> Integer {
    match value.and_then(|value| i64::try_from(value).ok()) {
        Some(value) => Integer::Small(value),
        None => Integer::Big,
    }
}

/// C's `strtol` with base 0, if it takes the whole line, or all before a NUL.
fn strtol(line: &[u8]) -> Option<i64> {
    let (negative, rest) = sign(skip_spaces(line));
    let (base, digits) = match rest {
        [b'0', b'x' | b'X', digit, ..] if digit.is_ascii_hexdigit() => (16, &rest[2..]),
        [b'0', ..] => (8, rest),
        _ => (10, rest),
    };
    let len = digits.iter().take_while(|&&byte| char::from(byte).is_digit(base)).count();
    if len == 0 || !matches!(digits.get(len), None | Some(0)) {
        return None;
    }
    let text = std::str::from_utf8(&digits[..len]).ok()?;
    let value = i128::from_str_radix(text, base).ok()?;
    i64::try_from(if negative { -value } else { value }).ok()
}

/// CPython's `PyLong_FromString`; `Some(None)` is a number that does not fit 128 bits.
fn literal(line: &[u8], base: u32) -> Option<Option<i128>> {
    // A C string ends at the first NUL.
    let line = line.split(|&byte| byte == 0).next().unwrap_or(line);
    let (negative, mut rest) = sign(skip_spaces(line));
    let mut base = base;
    let mut only_zero = false;
    if base == 0 {
        base = match rest {
            [b'0', b'x' | b'X', ..] => 16,
            [b'0', b'o' | b'O', ..] => 8,
            [b'0', b'b' | b'B', ..] => 2,
            [b'0', ..] => {
                // `010` was octal once, and is nothing now.
                only_zero = true;
                10
            }
            _ => 10,
        };
        if base != 10 {
            rest = &rest[2..];
            rest = rest.strip_prefix(b"_").unwrap_or(rest);
        }
    }
    let mut value = Some(0_i128);
    let mut last = b'_';
    let mut len = 0;
    for &byte in rest {
        match char::from(byte).to_digit(base) {
            Some(digit) => {
                value = value.and_then(|value| value.checked_mul(base.into())?.checked_add(digit.into()));
            }
            None if byte == b'_' && last != b'_' => {}
            None => break,
        }
        last = byte;
        len += 1;
    }
    let clean = len > 0 && last != b'_' && skip_spaces(&rest[len..]).is_empty();
    if !clean || only_zero && value != Some(0) {
        return None;
    }
    Some(value.map(|value| if negative { -value } else { value }))
}

fn skip_spaces(text: &[u8]) -> &[u8] {
    let spaces = text.iter().take_while(|&&byte| matches!(byte, b' ' | 0x09..=0x0d)).count();
    &text[spaces..]
}

fn sign(text: &[u8]) -> (bool, &[u8]) {
    match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        _ => (false, text),
    }
}

/// The argument of opcode `F`.
pub(super) fn float(line: &[u8]) -> Option<f64> {
    let line = line.split(|&byte| byte == 0).next()?;
    std::str::from_utf8(line).ok()?.parse().ok()
}

/// What CPython's reader in Python takes besides: blanks around it, and underscores between digits.
pub(super) fn python_float(line: &[u8]) -> Option<f64> {
    let text = std::str::from_utf8(line).ok()?.trim_matches([' ', '\t', '\n', '\x0b', '\x0c', '\r']);
    let is_digit = |at: usize| text.as_bytes().get(at).is_some_and(u8::is_ascii_digit);
    let mut underscores = text.match_indices('_');
    if !underscores.all(|(at, _)| at > 0 && is_digit(at - 1) && is_digit(at + 1)) {
        return None;
    }
    text.replace('_', "").parse().ok()
}

/// The argument of opcode `S`: a literal of Python 2 with its quotes, and every escape that bytes of Python have.
pub(super) fn unquoted(line: &[u8]) -> Option<Vec<u8>> {
    let ([b'\'', inner @ .., b'\''] | [b'"', inner @ .., b'"']) = line else { return None };
    let mut bytes = Vec::with_capacity(inner.len());
    let mut rest = inner;
    while let Some((&byte, more)) = rest.split_first() {
        rest = more;
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        let (&escape, more) = rest.split_first()?;
        rest = more;
        let escaped = match escape {
            b'\n' => continue,
            b'\\' | b'\'' | b'"' => escape,
            b'a' => 7,
            b'b' => 8,
            b't' => b'\t',
            b'n' => b'\n',
            b'v' => 11,
            b'f' => 12,
            b'r' => b'\r',
            b'0'..=b'7' => {
                let mut value = u32::from(escape - b'0');
                for _ in 0..2 {
                    let Some((&digit @ b'0'..=b'7', more)) = rest.split_first() else { break };
                    value = value * 8 + u32::from(digit - b'0');
                    rest = more;
                }
                // Three digits may say more than a byte holds.
                value as u8
            }
            b'x' => {
                let (digits, more) = rest.split_at_checked(2)?;
                rest = more;
                u8::try_from(hexadecimal(digits)?).ok()?
            }
            other => {
                bytes.push(b'\\');
                other
            }
        };
        bytes.push(escaped);
    }
    Some(bytes)
}

/// The argument of opcode `V`: Latin-1 with `\u` and `\U`, Python's raw-unicode-escape.
pub(super) fn raw_unicode(line: &[u8]) -> Option<Text> {
    let mut builder = Builder::default();
    let mut rest = line;
    while let Some((&byte, more)) = rest.split_first() {
        rest = more;
        let digits = match (byte, more.first()) {
            (b'\\', Some(b'u')) => 4,
            (b'\\', Some(b'U')) => 8,
            (b'\\', Some(&other)) => {
                // A backslash takes the next character with it, so that `\\u0041` has no escape.
                builder.text.extend(['\\', char::from(other)]);
                rest = &more[1..];
                continue;
            }
            _ => {
                builder.text.push(char::from(byte));
                continue;
            }
        };
        let (digits, more) = more[1..].split_at_checked(digits)?;
        rest = more;
        builder.push(hexadecimal(digits)?)?;
    }
    Some(builder.finish())
}

/// UTF-8 in which surrogates are let through, as Python's `surrogatepass` does.
pub(super) fn utf8(bytes: Vec<u8>) -> Option<Text> {
    let bytes = match String::from_utf8(bytes) {
        Ok(text) => return Some(Text::Plain(text.into())),
        Err(error) => error.into_bytes(),
    };
    let mut builder = Builder::default();
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        let valid = match std::str::from_utf8(rest) {
            Ok(text) => text,
            Err(error) => std::str::from_utf8(&rest[..error.valid_up_to()]).ok()?,
        };
        builder.text.push_str(valid);
        rest = &rest[valid.len()..];
        match *rest {
            [] => {}
            [0xed, b @ 0xa0..=0xbf, c @ 0x80..=0xbf, ..] => {
                builder.push(0xd000 | u32::from(b & 0x3f) << 6 | u32::from(c & 0x3f))?;
                rest = &rest[3..];
            }
            _ => return None,
        }
    }
    Some(builder.finish())
}

#[derive(Default)]
struct Builder {
    text: String,
    surrogates: bool,
}

impl Builder {
    fn push(&mut self, code: u32) -> Option<()> {
        match char::from_u32(code) {
            Some(c) => self.text.push(c),
            None if (0xd800..0xe000).contains(&code) => {
                self.surrogates = true;
                self.text += &format!("\\u{code:04x}");
            }
            None => return None,
        }
        Some(())
    }

    fn finish(self) -> Text {
        let text = self.text.into();
        if self.surrogates { Text::Surrogates(text) } else { Text::Plain(text) }
    }
}

fn hexadecimal(digits: &[u8]) -> Option<u32> {
    digits
        .iter()
        .try_fold(0_u32, |value, &digit| Some(value.checked_mul(16)? + char::from(digit).to_digit(16)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_as_cpython_takes_them() {
        let cases: [(&[u8], Option<Integer>); 26] = [
            (b"00", Some(Integer::Bool(false))),
            (b"01", Some(Integer::Bool(true))),
            (b" 1", Some(Integer::Bool(true))),
            (b"+1", Some(Integer::Bool(true))),
            (b"1", Some(Integer::Small(1))),
            (b"010", Some(Integer::Small(8))),
            (b"0x1F", Some(Integer::Small(31))),
            (b"-0X10", Some(Integer::Small(-16))),
            (b"0o17", Some(Integer::Small(15))),
            (b"0b11", Some(Integer::Small(3))),
            (b"0b_1", Some(Integer::Small(1))),
            (b"1_000", Some(Integer::Small(1000))),
            (b"1__0", None),
            (b"1_", None),
            (b"_1", None),
            (b"09", None),
            (b"1 ", Some(Integer::Small(1))),
            (b"\t12\r", Some(Integer::Small(12))),
            (b"12\0x", Some(Integer::Small(12))),
            (b"12x", None),
            (b"", None),
            (b"-", None),
            (b"- 1", None),
            (b"9223372036854775807", Some(Integer::Small(i64::MAX))),
            (b"9223372036854775808", Some(Integer::Big)),
            (b"170141183460469231731687303715884105728", Some(Integer::Big)),
        ];
        for (line, expected) in cases {
            assert_eq!(integer(line), expected, "{:?}", String::from_utf8_lossy(line));
        }
        assert_eq!(long(b"12L"), Some(Integer::Small(12)));
        assert_eq!(long(b"12"), Some(Integer::Small(12)));
        assert_eq!(long(b"-0x_fL"), Some(Integer::Small(-15)));
        assert_eq!(long(b"12LL"), None);
        assert_eq!(long(b"010L"), None);
    }

    #[test]
    fn floats() {
        assert_eq!(
            (float(b"-1.5e3"), float(b"inf"), float(b"1\0x")),
            (Some(-1500.0), Some(f64::INFINITY), Some(1.0))
        );
        for (line, expected) in
            [(&b" 1 "[..], Some(1.0)), (b"1_0.5", Some(10.5)), (b"1__0", None), (b"_1", None), (b"x", None)]
        {
            assert_eq!(
                (float(line), python_float(line)),
                (None, expected),
                "{}",
                String::from_utf8_lossy(line)
            );
        }
    }

    #[test]
    fn indices_are_decimal() {
        for (line, expected) in [
            (&b"7"[..], Some(7)),
            (b"007", Some(7)),
            (b" 7 ", Some(7)),
            (b"+1_0", Some(10)),
            (b"-0", Some(0)),
            (b"-1", None),
            (b"0x7", None),
            (b"7L", None),
            (b"", None),
            (b"9223372036854775808", None),
        ] {
            assert_eq!(index(line), expected, "{:?}", String::from_utf8_lossy(line));
        }
    }

    #[test]
    fn strings_have_every_escape_of_python() {
        let cases: [(&[u8], Option<&[u8]>); 15] = [
            (b"'os'", Some(b"os")),
            (b"\"o's\"", Some(b"o's")),
            (b"'\\x6f\\163'", Some(b"os")),
            (b"'\\a\\b\\f\\v\\n\\r\\t\\\\\\'\\\"'", Some(b"\x07\x08\x0c\x0b\n\r\t\\'\"")),
            (b"'\\q'", Some(b"\\q")),
            (b"'\\18'", Some(b"\x018")),
            (b"'\\777'", Some(b"\xff")),
            (b"'\\x6'", None),
            (b"'\\xzz'", None),
            (b"'\\'", None),
            (b"'os", None),
            (b"'os\"", None),
            (b"'", None),
            (b"''", Some(b"")),
            (b"os", None),
        ];
        for (line, expected) in cases {
            assert_eq!(unquoted(line).as_deref(), expected, "{:?}", String::from_utf8_lossy(line));
        }
    }

    #[test]
    fn texts_are_raw_unicode_over_latin_1() {
        let plain = |text: &str| Some(Text::Plain(text.into()));
        assert_eq!(raw_unicode(b"\\u006fs"), plain("os"));
        assert_eq!(raw_unicode(b"\\U0000006fs"), plain("os"));
        assert_eq!(raw_unicode(b"\\\\u006fs"), plain("\\\\u006fs"));
        assert_eq!(raw_unicode(b"\\n\xe9\\"), plain("\\n\u{e9}\\"));
        assert_eq!(raw_unicode(b"\\ud800"), Some(Text::Surrogates("\\ud800".into())));
        for broken in [&b"\\u00"[..], b"\\u00g0", b"\\U00110000"] {
            assert_eq!(raw_unicode(broken), None);
        }
        assert_eq!(utf8(b"\xed\xa0\x80a".to_vec()), Some(Text::Surrogates("\\ud800a".into())));
        assert_eq!(utf8("a\u{10000}".into()), plain("a\u{10000}"));
        assert_eq!(utf8(b"\xff".to_vec()), None);
        assert_eq!(utf8(b"\xed\xa0".to_vec()), None);
    }
}
