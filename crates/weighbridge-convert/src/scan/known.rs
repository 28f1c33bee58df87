//! Formats that hold no pickle: what is of one of them to its last byte is understood.

use weighbridge::{Checkpoint, Source};

use super::Global;
use super::search::global;
use crate::cursor::Cursor;
use crate::input::FilePart;
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
/// How many bytes are read at a time, and where little may be needed at first.
const CHUNK: u64 = 256 << 10;
const FIRST_CHUNK: usize = 4 << 10;
/// More parts than any file has: chunks of a PNG, markers of a JPEG, fields of a message.
const MOST_CHUNKS: u32 = 1 << 20;
const MOST_MARKERS: u32 = 1 << 16;
const MOST_FIELDS: u32 = 1 << 22;

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
        let body = part.part(start..part.size())?;
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
    const SIGNS: [&[u8]; 3] = [b"\"Lambda\"", b"\"__lambda__\"", b"\"function_type\": \"lambda\""];
    let longest = SIGNS.iter().map(|sign| sign.len()).max().unwrap_or(0);
    let mut at = 0;
    while at < part.size() {
        let Ok(bytes) = part.head(at, CHUNK as usize + longest) else { return true };
        let mut rest = &bytes[..];
        while let Some(quote) = rest.iter().position(|&byte| byte == b'"') {
            rest = &rest[quote..];
            if SIGNS.iter().any(|sign| rest.starts_with(sign)) {
                return true;
            }
            rest = &rest[1..];
        }
        at += CHUNK;
    }
    false
}

/// Where a document of MessagePack ends.
fn message_pack_end(part: &FilePart) -> Option<u64> {
    let mut cursor = Cursor::new(part, 0, part.size());
    let mut values = 1_u64;
    while values > 0 {
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
    let mut at = 8;
    for _ in 0..MOST_CHUNKS {
        let head = part.head(at, 8).ok().filter(|head| head.len() == 8)?;
        at += 12 + u64::from(u32::from_be_bytes([head[0], head[1], head[2], head[3]]));
        if &head[4..] == b"IEND" {
            return Some(at);
        }
    }
    None
}

fn jpeg_end(part: &FilePart) -> Option<u64> {
    let mut at = 2;
    for _ in 0..MOST_MARKERS {
        let head = part.head(at, 4).ok().filter(|head| head.len() >= 2 && head[0] == 0xff)?;
        match head[1] {
            0xd9 => return Some(at + 2),
            0xff => at += 1,
            0xd0..=0xd7 | 1 => at += 2,
            marker => {
                at += 2 + u64::from(u16::from_be_bytes([*head.get(2)?, *head.get(3)?]));
                if marker == 0xda {
                    at = scan_end(part, at)?;
                }
            }
        }
    }
    None
}

/// Where the compressed part of a JPEG ends: at a marker that is none of those which may stand in it.
fn scan_end(part: &FilePart, start: u64) -> Option<u64> {
    let (mut at, mut len) = (start, FIRST_CHUNK);
    loop {
        let bytes = part.head(at, len).ok().filter(|bytes| bytes.len() >= 2)?;
        len = (2 * len).min(CHUNK as usize);
        let marker = bytes.windows(2).position(|two| two[0] == 0xff && !matches!(two[1], 0 | 0xd0..=0xd7));
        match marker {
            Some(within) => return Some(at + within as u64),
            None => at += bytes.len() as u64 - 1,
        }
    }
}

/// Messages of protocol buffers, which have no first bytes of their own: ONNX models, and vocabularies of sentencepiece. All
/// fields must be known.
fn message(part: &FilePart) -> Option<&'static str> {
    let (mut at, mut fields) = (0, [0_u32; 32]);
    while at < part.size() {
        if fields.iter().sum::<u32>() == MOST_FIELDS {
            return None;
        }
        let bytes = part.head(at, 20).ok()?;
        let (tag, used) = varint(&bytes)?;
        let (value, more) = varint(bytes.get(used..)?)?;
        let field = usize::try_from(tag >> 3).ok().filter(|&field| field < 32)?;
        // Of strings and messages only the length stands here.
        let len = match tag & 7 {
            0 => 0,
            2 => value,
            _ => return None,
        };
        fields[field] += 1;
        at = at.checked_add((used + more) as u64)?.checked_add(len).filter(|&end| end <= part.size())?;
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

/// A number and how many bytes it takes.
fn varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut value = 0_u64;
    for (at, &byte) in bytes.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7f).checked_shl(7 * at as u32)?;
        if byte < 0x80 {
            return Some((value, at + 1));
        }
    }
    None
}
