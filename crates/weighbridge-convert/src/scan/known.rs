//! Formats that hold no pickle: what is of one of them to its last byte is understood.

use weighbridge::{Checkpoint, Result, Source};

use super::Global;
use super::search::global;
use crate::cursor::Cursor;
use crate::input::{FilePart, Head};
use crate::msgpack::{self, Token};
use crate::{burn_record, flax, gguf, hdf5};

/// What a file is, why it may not be that alone, and what it would run where others load it.
pub(super) struct Known {
    pub(super) format: &'static str,
    pub(super) problem: Option<String>,
    pub(super) globals: Vec<Global>,
}

/// Extensions of texts that people write.
const TEXTS: [&str; 30] = [
    "md",
    "txt",
    "json",
    "jsonl",
    "yaml",
    "yml",
    "toml",
    "cfg",
    "ini",
    "py",
    "pyi",
    "sh",
    "csv",
    "tsv",
    "html",
    "css",
    "js",
    "ts",
    "jinja",
    "j2",
    "rst",
    "xml",
    "svg",
    "gitattributes",
    "gitignore",
    "license",
    "c",
    "h",
    "rs",
    "ipynb",
];
/// How many bytes are read at a time.
const CHUNK: u64 = 256 << 10;
/// Values of a document of MessagePack: more than a million tensors need.
const MOST_VALUES: u64 = 64 << 20;

/// Whether a file is called as texts are.
pub(super) fn is_named_text(name: &str) -> bool {
    let name = name.rsplit(['/', '!']).next().unwrap_or(name);
    let extension = name.rsplit_once('.').map_or(name, |(_, extension)| extension);
    TEXTS.iter().any(|known| extension.eq_ignore_ascii_case(known))
}

/// Whether it is UTF-8 without control characters that no text has.
pub(super) fn is_text(part: &FilePart) -> bool {
    let mut at = 0;
    while at < part.size() {
        let Ok(bytes) = part.head(at, CHUNK as usize) else { return false };
        let text = match std::str::from_utf8(&bytes) {
            Ok(text) => text,
            // A character may go on in the next chunk.
            Err(error) if error.error_len().is_none() && at + (bytes.len() as u64) < part.size() => {
                std::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default()
            }
            Err(_) => return false,
        };
        let odd = |byte: u8| byte < 32 && !matches!(byte, b'\t' | b'\n' | b'\r' | 12 | 27) || byte == 127;
        if text.is_empty() || text.bytes().any(odd) {
            return false;
        }
        at += text.len() as u64;
    }
    true
}

/// The format, if the first bytes say so.
pub(super) fn of(part: &FilePart, head: &[u8]) -> Option<Known> {
    let known = |format, problem: Option<&str>| {
        Some(Known { format, problem: problem.map(str::to_owned), globals: Vec::new() })
    };
    let cut = |is_whole: Option<bool>| match is_whole {
        Some(true) => None,
        Some(false) => Some("bytes behind its end"),
        None => Some("it is broken or cut off"),
    };
    if is_safetensors(part, head) {
        let problem = Checkpoint::from_source(part.clone()).err().map(|error| error.to_string());
        return Some(Known { format: "safetensors", problem, globals: Vec::new() });
    }
    if let Some(start) = hdf5::start(part) {
        let body = part.narrow(start..part.size())?;
        let is_whole = body.head(0, 64).ok().and_then(|head| hdf5_end(&head)).map(|end| end == body.size());
        let problem = if start > 0 { Some("a block of its user's before it") } else { cut(is_whole) };
        let lambda = holds_lambda(part).then(|| global("keras.layers", "Lambda"));
        let globals = lambda.into_iter().collect();
        return Some(Known { format: "HDF5", problem: problem.map(str::to_owned), globals });
    }
    if head.starts_with(gguf::MAGIC) {
        return known("GGUF", cut(gguf::ends(part).ok().map(|ends| ends.contains(&part.size()))));
    }
    if flax::is_tree(head) || burn_record::is_record(head) && head[0] >= 0x80 {
        let end = message_pack_end(part);
        if end.is_some() {
            return known("MessagePack", cut(end.map(|end| end == part.size())));
        }
    }
    if head.starts_with(b"\x89PNG\r\n\x1a\n") {
        return known("PNG", cut(png_end(part).map(|end| end == part.size())));
    }
    if head.starts_with(b"RIFF") && head.len() >= 12 {
        let len = u64::from(u32::from_le_bytes([head[4], head[5], head[6], head[7]]));
        return known("RIFF", cut(Some(len + 8 == part.size())));
    }
    if head.starts_with(&[0xff, 0xd8, 0xff]) {
        return known("JPEG", cut(jpeg_end(part).map(|end| end == part.size())));
    }
    if let Some(format) = message(part) {
        return known(format, None);
    }
    if matches!(head, [b'{', ..]) && is_text(part) {
        let lambda = holds_lambda(part).then(|| global("keras.layers", "Lambda"));
        return Some(Known { format: "text", problem: None, globals: lambda.into_iter().collect() });
    }
    None
}

fn is_safetensors(part: &FilePart, head: &[u8]) -> bool {
    let len = head.first_chunk().map(|len| u64::from_le_bytes(*len));
    head.get(8) == Some(&b'{') && len.is_some_and(|len| len <= part.size().saturating_sub(8))
}

/// Where an HDF5 file ends, as its superblock says.
fn hdf5_end(head: &[u8]) -> Option<u64> {
    let at = match head.get(8)? {
        0 => 40,
        1 => 44,
        2 | 3 => 28,
        _ => return None,
    };
    // Addresses of 8 bytes; others are not written by anybody.
    let width = if head[8] < 2 { *head.get(13)? } else { *head.get(9)? };
    (width == 8).then_some(())?;
    Some(u64::from_le_bytes(head.get(at..at + 8)?.try_into().ok()?))
}

/// Whether Keras would find a layer in it that is Python code.
fn holds_lambda(part: &FilePart) -> bool {
    const SIGNS: [&str; 3] = ["\"Lambda\"", "\"__lambda__\"", "\"function_type\": \"lambda\""];
    // What cannot be read may hold one.
    find_any(part, &SIGNS).map_or(true, |found| found.is_some())
}

/// The first of some texts that a part holds, wherever.
pub(super) fn find_any<'t>(part: &FilePart, texts: &[&'t str]) -> Result<Option<&'t str>> {
    let longest = texts.iter().map(|text| text.len()).max().unwrap_or(0);
    let is_first = |byte: u8| texts.iter().any(|text| text.as_bytes().first() == Some(&byte));
    let mut at = 0;
    while at < part.size() {
        let bytes = part.head(at, CHUNK as usize + longest)?;
        let mut rest = &bytes[..];
        while let Some(start) = rest.iter().position(|&byte| is_first(byte)) {
            rest = &rest[start..];
            if let Some(found) = texts.iter().find(|text| rest.starts_with(text.as_bytes())) {
                return Ok(Some(found));
            }
            rest = &rest[1..];
        }
        at += CHUNK;
    }
    Ok(None)
}

/// Where a document of MessagePack ends.
fn message_pack_end(part: &FilePart) -> Option<u64> {
    let mut cursor = Cursor::new(part, 0, part.size());
    let (mut values, mut seen) = (1_u64, 0_u64);
    while values > 0 {
        seen += 1;
        if seen > MOST_VALUES {
            return None;
        }
        let more = match msgpack::token(&mut cursor).ok()? {
            Token::Array(count) => count,
            Token::Map(count) => count.checked_mul(2)?,
            Token::Text(range) | Token::Bytes(range) | Token::Ext(_, range) => {
                cursor.skip(range.end - range.start).ok()?;
                0
            }
            Token::Nil | Token::Value(_) => 0,
        };
        values = (values - 1).checked_add(more)?;
    }
    Some(cursor.at())
}

fn png_end(part: &FilePart) -> Option<u64> {
    let mut cursor = Cursor::new(part, 8, part.size());
    loop {
        let len = u32::from_be_bytes(cursor.array().ok()?);
        let kind: [u8; 4] = cursor.array().ok()?;
        // A checksum is behind each chunk.
        cursor.skip(u64::from(len) + 4).ok()?;
        if &kind == b"IEND" {
            return Some(cursor.at());
        }
    }
}

fn jpeg_end(part: &FilePart) -> Option<u64> {
    let mut cursor = Cursor::new(part, 2, part.size());
    loop {
        if cursor.byte().ok()? != 0xff {
            return None;
        }
        let mut marker = cursor.byte().ok()?;
        while marker == 0xff {
            marker = cursor.byte().ok()?;
        }
        match marker {
            0xd9 => return Some(cursor.at()),
            0xd0..=0xd7 | 1 => {}
            marker => {
                let len = u64::from(u16::from_be_bytes(cursor.array().ok()?));
                cursor.skip(len.checked_sub(2)?).ok()?;
                if marker == 0xda {
                    pass_scan(&mut cursor)?;
                }
            }
        }
    }
}

/// Passes over the compressed part of a JPEG, which ends at a marker that is none of those which may stand in it.
fn pass_scan(cursor: &mut Cursor<'_>) -> Option<()> {
    let mut last = cursor.byte().ok()?;
    loop {
        let byte = cursor.byte().ok()?;
        if last == 0xff && !matches!(byte, 0 | 0xd0..=0xd7) {
            cursor.seek(cursor.at() - 2);
            return Some(());
        }
        last = byte;
    }
}

/// Messages of protocol buffers, which have no first bytes of their own: ONNX models, and vocabularies of sentencepiece. All
/// fields must be known.
fn message(part: &FilePart) -> Option<&'static str> {
    let mut cursor = Cursor::new(part, 0, part.size());
    let mut fields = [0_u64; 32];
    while cursor.left() > 0 {
        let (tag, value) = (varint(&mut cursor)?, varint(&mut cursor)?);
        let field = usize::try_from(tag >> 3).ok().filter(|&field| field < 32)?;
        // Of strings and messages only the length stands here.
        let len = match tag & 7 {
            0 => 0,
            2 => value,
            _ => return None,
        };
        fields[field] += 1;
        cursor.skip(len).ok()?;
    }
    let only = |known: &[usize]| {
        fields.iter().enumerate().all(|(field, &count)| count == 0 || known.contains(&field))
    };
    if fields[1] == 1 && fields[7] == 1 && only(&[1, 2, 3, 4, 5, 6, 7, 8, 14, 20, 25, 26]) {
        return Some("ONNX");
    }
    if fields[1] > 1 && fields[2] == 1 && fields[3] == 1 && only(&[1, 2, 3, 4, 5]) {
        return Some("sentencepiece");
    }
    None
}

fn varint(cursor: &mut Cursor<'_>) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..70).step_by(7) {
        let byte = cursor.byte().ok()?;
        value |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}
