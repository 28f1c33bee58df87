//! What is compressed as a whole: joblib and pandas open it by themselves.

use std::io::{self, BufRead, BufReader, Read};

use bzip2::bufread::BzDecoder;
use flate2::bufread::{GzDecoder, ZlibDecoder};
use lzma_rust2::{LzmaReader, XzReader};
use ruzstd::decoding::StreamingDecoder;

use super::budget::Left;
use super::search::{Place, Search};
use crate::input::{FilePart, Sequential};

/// Memory that a decoder may take for what it looks back to. Python writes 64 MiB at most.
const MOST_MEMORY: u32 = 96 << 20;

/// How something is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    Gzip,
    Zlib,
    Bzip2,
    Xz,
    Lzma,
    Zstd,
    /// It is not looked into.
    Unread(&'static str),
}

impl How {
    pub(super) fn of(head: &[u8]) -> Option<Self> {
        Some(match head {
            [0x1f, 0x8b, 8, ..] => Self::Gzip,
            // The two bytes of a header are a multiple of 31.
            [0x78, flags, _, ..] if (0x7800 + u16::from(*flags)) % 31 == 0 && flags & 0x20 == 0 => Self::Zlib,
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, 0x26, 0x53, 0x59, ..]
            | [b'B', b'Z', b'h', b'1'..=b'9', 0x17, 0x72, 0x45, 0x38, 0x50, 0x90, ..] => Self::Bzip2,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            [0x5d, 0, 0, ..] => Self::Lzma,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [b'7', b'z', 0xbc, 0xaf, 0x27, 0x1c, ..] => Self::Unread("7z"),
            [b'R', b'a', b'r', b'!', 0x1a, 7, ..] => Self::Unread("RAR"),
            [0x04, 0x22, 0x4d, 0x18, ..] | [0x02, 0x21, 0x4c, 0x18, ..] => Self::Unread("LZ4"),
            [b'L', b'Z', b'I', b'P', ..] => Self::Unread("lzip"),
            [0x1f, 0x9d, ..] => Self::Unread("compress"),
            [0x89, b'L', b'Z', b'O', 0, ..] => Self::Unread("LZO"),
            [0xff, 6, 0, 0, b's', b'N', b'a', b'P', b'p', b'Y', ..] => Self::Unread("Snappy"),
            _ => return None,
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zlib => "zlib",
            Self::Bzip2 => "bzip2",
            Self::Xz => "xz",
            Self::Lzma => "lzma",
            Self::Zstd => "zstd",
            Self::Unread(name) => name,
        }
    }
}

/// Decompresses it, and looks into what comes out.
pub(super) fn look(search: &mut Search, part: &FilePart, place: Place<'_>, how: How) -> &'static str {
    let name = how.name();
    if let How::Unread(name) = how {
        search.problem(place, format!("it is compressed with {name}, which is not looked into"));
        return name;
    }
    let mut reader = BufReader::with_capacity(64 << 10, Sequential::new(part));
    let mut left = search.budget.streams;
    let (inner, problem) = search.expand(|output| streams(how, &mut reader, output, &mut left));
    search.budget.streams = left;
    let left = reader.get_ref().left() + reader.buffer().len() as u64;
    match problem {
        Some(problem) => search.problem(place, format!("{name}: {problem}")),
        None if left > 0 => search.behind(place, left),
        None => {}
    }
    if let Some(inner) = inner {
        let member = place.name(&format!("({name})"));
        search.look(&inner, place.inner(&member));
    }
    name
}

/// Decompresses one stream behind another, as Python's modules do, but no more than are left.
fn streams(
    how: How,
    reader: &mut BufReader<Sequential<'_>>,
    output: &mut dyn io::Write,
    left: &mut Left,
) -> io::Result<()> {
    loop {
        if !left.take(1) {
            return Err(io::Error::other("it has too many streams"));
        }
        let mut limited = |read: &mut dyn Read| io::copy(read, output).map(drop);
        match how {
            How::Gzip => limited(&mut GzDecoder::new(&mut *reader))?,
            How::Zlib => limited(&mut ZlibDecoder::new(&mut *reader))?,
            How::Bzip2 => limited(&mut BzDecoder::new(&mut *reader))?,
            How::Xz => limited(&mut XzReader::new_mem_limit(&mut *reader, true, MOST_MEMORY >> 10))?,
            How::Lzma => {
                let mut lzma = LzmaReader::new_mem_limit(&mut *reader, MOST_MEMORY >> 10, None)?;
                limited(&mut lzma)?;
                // It reads ahead, and gives back what it did not need.
                return match lzma.into_parts().1.is_empty() {
                    true => Ok(()),
                    false => Err(io::Error::new(io::ErrorKind::InvalidData, "bytes behind the stream")),
                };
            }
            How::Zstd => {
                if let [0x50..=0x5f, 0x2a, 0x4d, 0x18] = next_four(reader)?[..] {
                    skip_frame(reader)?;
                } else {
                    let decoder =
                        StreamingDecoder::new_with_max_window_size(&mut *reader, u64::from(MOST_MEMORY) as _);
                    limited(&mut decoder.map_err(io::Error::other)?)?;
                }
            }
            How::Unread(_) => return Ok(()),
        }
        let more = matches!(
            (how, &next_four(reader)?[..]),
            (How::Gzip, [0x1f, 0x8b, ..])
                | (How::Bzip2, [b'B', b'Z', b'h', ..])
                | (How::Zstd, [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18])
        );
        if !more {
            return Ok(());
        }
    }
}

/// The next bytes, which may lie across the end of what is buffered.
fn next_four(reader: &BufReader<Sequential<'_>>) -> io::Result<Vec<u8>> {
    let inner = reader.get_ref();
    inner.peek(reader.buffer().len() as u64, 4).map_err(io::Error::other)
}

/// Passes over a frame that holds no data of the stream.
fn skip_frame(reader: &mut impl BufRead) -> io::Result<()> {
    let mut head = [0; 8];
    reader.read_exact(&mut head)?;
    let len = u32::from_le_bytes([head[4], head[5], head[6], head[7]]).into();
    match io::copy(&mut reader.take(len), &mut io::sink())? == len {
        true => Ok(()),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Decompresses a member of a zip archive by one of the methods that are known, but stored and deflated ones.
pub(super) fn member(
    method: u16,
    size: u64,
    part: &FilePart,
    output: &mut dyn io::Write,
    left: &mut Left,
) -> io::Result<()> {
    let mut reader = BufReader::with_capacity(64 << 10, Sequential::new(part));
    let how = match method {
        8 => {
            io::copy(&mut flate2::bufread::DeflateDecoder::new(&mut reader), output)?;
            return nothing_more(&mut reader);
        }
        12 => How::Bzip2,
        14 => {
            // A version, the length of the properties, and these.
            let mut head = [0; 9];
            reader.read_exact(&mut head)?;
            let dict = u32::from_le_bytes([head[5], head[6], head[7], head[8]]);
            if dict > MOST_MEMORY {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "it needs too much memory"));
            }
            return io::copy(&mut LzmaReader::new_with_props(reader, size, head[4], dict, None)?, output)
                .map(drop);
        }
        93 => How::Zstd,
        95 => How::Xz,
        _ => return Err(io::Error::new(io::ErrorKind::Unsupported, format!("compression method {method}"))),
    };
    streams(how, &mut reader, output, left)?;
    nothing_more(&mut reader)
}

/// Fails if the compressed data ended early.
fn nothing_more(reader: &mut impl BufRead) -> io::Result<()> {
    match reader.fill_buf()? {
        [] => Ok(()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "bytes behind the stream")),
    }
}

impl Search {
    /// Takes what `write` gives into the spool, as far as there is room; says why it ended early.
    pub(super) fn expand(
        &mut self,
        write: impl FnOnce(&mut dyn io::Write) -> io::Result<()>,
    ) -> (Option<FilePart>, Option<String>) {
        let mut is_full = false;
        let room = &mut self.budget.decompressed;
        let grown = self.spool.grow(|output| write(&mut Limited { output, room, is_full: &mut is_full }));
        let (part, result) = match grown {
            Ok(grown) => grown,
            Err(error) => return (None, Some(error.to_string())),
        };
        let problem = match result {
            Ok(()) => None,
            Err(_) if is_full => Some("it expands too far: a bomb, or too large to look into".to_owned()),
            Err(error) => Some(format!("it cannot be decompressed: {error}")),
        };
        (Some(part), problem)
    }
}

/// Writes as long as there is room.
struct Limited<'w> {
    output: &'w mut dyn io::Write,
    room: &'w mut Left,
    is_full: &'w mut bool,
}

impl io::Write for Limited<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if !self.room.take(buf.len() as u64) {
            *self.is_full = true;
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.output.write_all(buf)?;
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
