//! Zip archives, read strictly: what is ambiguous in them, or meant to mislead, is refused.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::sync::{Mutex, PoisonError};

use flate2::CrcWriter;
use flate2::read::DeflateDecoder;
use weighbridge::{Error, ErrorKind, Result, Source};

use crate::input::{FilePart, Head, Sequential, unread};
use crate::spool::Spool;

/// Members of an archive.
const MOST_MEMBERS: u64 = 4 << 20;
/// The longest directory.
const LONGEST_DIRECTORY: u64 = 256 << 20;
/// All members together may become this many times as long as the archive, and a gibibyte more. Deflate reaches 1032, real
/// weights hardly 2.
const MOST_RATIO: u64 = 16;
/// Stored members up to this length have their checksum checked whenever they are opened. Larger ones, which are storages of
/// PyTorch's, would be read twice for it; PyTorch itself checks none.
const SMALL: u64 = 1 << 20;

/// An open archive.
pub(crate) struct Archive {
    file: FilePart,
    members: Vec<Member>,
    /// Places in `members` by name.
    places: HashMap<String, usize>,
    /// What was decompressed, one member after another.
    spool: Mutex<Spool>,
}

/// A file in an archive.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) name: String,
    method: u16,
    flags: u16,
    crc: u32,
    compressed: u64,
    pub(crate) size: u64,
    /// Where its local header is.
    header: u64,
    is_link: bool,
}

impl Archive {
    /// Reads the directory.
    pub(crate) fn open(file: FilePart) -> Result<Self> {
        let end = End::find(&file)?;
        if end.members > MOST_MEMBERS || end.len > LONGEST_DIRECTORY {
            return Err(malformed("its directory is too long"));
        }
        let bytes = file.head(end.start, end.len as usize)?;
        let mut members = Vec::new();
        let mut places = HashMap::new();
        let mut rest = &bytes[..];
        for _ in 0..end.members {
            let member;
            (member, rest) = Member::parse(rest).ok_or_else(|| malformed("its directory is broken"))?;
            if places.insert(member.name.clone(), members.len()).is_some() {
                return Err(malformed(&format!("two members are called {:?}", member.name)));
            }
            members.push(member);
        }
        if !rest.is_empty() {
            return Err(malformed("its directory has more entries than it says"));
        }
        // To a reader that starts at the front, what is before the first member is another archive.
        let first = members.iter().map(|member| member.header).min().unwrap_or(end.start);
        if first != 0 {
            return Err(prefixed(first));
        }
        check_overlaps(&members)?;
        Ok(Self { file, members, places, spool: Mutex::default() })
    }

    pub(crate) fn members(&self) -> &[Member] {
        &self.members
    }

    /// The member of that name.
    pub(crate) fn member(&self, name: &str) -> Option<&Member> {
        self.members.get(*self.places.get(name)?)
    }

    /// The bytes of a member: where they lie, or decompressed into a temporary file that has no name. The checksum is checked
    /// of what is decompressed and of what is small.
    pub(crate) fn bytes(&self, member: &Member) -> Result<FilePart> {
        self.checked(member, SMALL)
    }

    /// The bytes of a member, whose checksum is right.
    pub(crate) fn verified(&self, member: &Member) -> Result<FilePart> {
        self.checked(member, u64::MAX)
    }

    fn checked(&self, member: &Member, most: u64) -> Result<FilePart> {
        let read = || {
            let bytes = self.bytes_of(member)?;
            // PyTorch can be told not to compute checksums; it writes 0 then.
            if member.method == 0 && member.crc != 0 && member.size <= most {
                let crc = checksum(&bytes).map_err(unread)?;
                if crc != member.crc {
                    return Err(malformed("its checksum is another: the file was damaged, fetch it again"));
                }
            }
            Ok(bytes)
        };
        read().map_err(|error| {
            let message = format!("{:?} in the archive: {error}", member.name);
            Error::new(error.kind(), message).with_source(error)
        })
    }

    fn bytes_of(&self, member: &Member) -> Result<FilePart> {
        if member.is_link {
            return Err(malformed("it is a symbolic link"));
        }
        if member.name.starts_with('/') || member.name.split(['/', '\\']).any(|part| part == "..") {
            return Err(malformed("its name leads out of the archive"));
        }
        if member.flags & 0x41 != 0 {
            return Err(Error::new(ErrorKind::Unsupported, "it is encrypted"));
        }
        // The local header repeats what the directory says, and says how long it is itself.
        let local = self.file.head(member.header, 30)?;
        let (Some(b"PK\x03\x04"), Some(flags), Some(method)) =
            (local.get(..4), u16_at(&local, 6), u16_at(&local, 8))
        else {
            return Err(malformed("its header is not where the directory says"));
        };
        let lengths = u16_at(&local, 26).zip(u16_at(&local, 28));
        let (name, extra) = lengths.ok_or_else(|| malformed("its header is cut off"))?;
        let own_name = self.file.head(member.header + 30, name.into())?;
        if own_name != member.name.as_bytes() || method != member.method || (flags ^ member.flags) & 1 != 0 {
            return Err(malformed("its header says otherwise than the directory"));
        }
        let start = member.header + 30 + u64::from(name) + u64::from(extra);
        let end = start.checked_add(member.compressed);
        let stored = end.and_then(|end| self.file.narrow(start..end));
        let stored = stored.ok_or_else(|| malformed("it ends behind the end of the file"))?;
        match member.method {
            0 if member.compressed != member.size => Err(malformed("it is stored, but has two sizes")),
            0 => Ok(stored),
            8 => self.inflate(&stored, member),
            method => {
                let message = format!("it is compressed by method {method}; store and deflate are read");
                Err(Error::new(ErrorKind::Unsupported, message))
            }
        }
    }

    /// Decompresses into the spool.
    fn inflate(&self, stored: &FilePart, member: &Member) -> Result<FilePart> {
        let mut spool = self.spool.lock().unwrap_or_else(PoisonError::into_inner);
        let limit = self.file.size().saturating_mul(MOST_RATIO).saturating_add(1 << 30);
        if spool.size().saturating_add(member.size) > limit {
            let message = format!("its {} bytes become {}: it is a zip bomb", member.compressed, member.size);
            return Err(Error::new(ErrorKind::Unsafe, message));
        }
        let compressed = Sequential::new(stored);
        let mut read = DeflateDecoder::new(compressed).take(member.size.saturating_add(1));
        let (part, crc) = spool.grow(|output| {
            let (mut output, mut memory) = (CrcWriter::new(output), vec![0; 256 << 10]);
            loop {
                match read.read(&mut memory)? {
                    0 => return Ok(output.crc().sum()),
                    len => output.write_all(&memory[..len])?,
                }
            }
        })?;
        let crc = crc.map_err(|error: io::Error| match error.kind() {
            io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                malformed(&format!("it cannot be decompressed: {error}"))
            }
            _ => Error::io("it cannot be decompressed", error),
        })?;
        if part.size() != member.size || crc != member.crc {
            return Err(malformed("it is not what was compressed: its size or its checksum is another"));
        }
        Ok(part)
    }
}

/// Where the directory is.
struct End {
    start: u64,
    len: u64,
    members: u64,
}

impl End {
    fn find(file: &FilePart) -> Result<Self> {
        // The record has 22 bytes and a comment of at most 65,535 behind it.
        let size = file.size();
        let tail_start = size.saturating_sub(22 + 0xffff);
        let tail = file.head(tail_start, 22 + 0xffff)?;
        let ends_here = |at: usize| {
            tail[at..].starts_with(b"PK\x05\x06")
                && u16_at(&tail, at + 20).map(|len| at + 22 + usize::from(len)) == Some(tail.len())
        };
        let place = (0..tail.len().saturating_sub(21)).rev().find(|&at| ends_here(at));
        let place = place
            .ok_or_else(|| malformed("it has no directory at its end: it was cut off, is still being written, or has bytes behind it"))?;
        let record = &tail[place..];
        let broken = || malformed("its end is broken");
        let field = |at| u16_at(record, at).map(u64::from).ok_or_else(broken);
        let long = |at| u32_at(record, at).map(u64::from).ok_or_else(broken);
        if field(4)? != field(6)? || field(8)? != field(10)? {
            return Err(Error::new(ErrorKind::Unsupported, "it is one of several parts of an archive"));
        }
        let mut end = Self { members: field(10)?, len: long(12)?, start: long(16)? };
        let record_start = tail_start + place as u64;
        let mut directory_end = record_start;
        if let Some(locator_start) = record_start.checked_sub(20) {
            let locator = file.head(locator_start, 20)?;
            if locator.starts_with(b"PK\x06\x07") {
                let at = u64_at(&locator, 8).ok_or_else(broken)?;
                let record = file.head(at, 56)?;
                if !record.starts_with(b"PK\x06\x06") || at >= locator_start {
                    return Err(broken());
                }
                let wide = |at| u64_at(&record, at).ok_or_else(broken);
                // Behind another archive the position is that of a record in the other.
                let record_end = wide(4)?.checked_add(12).and_then(|len| at.checked_add(len));
                match record_end.map(|end| locator_start.checked_sub(end)) {
                    Some(Some(0)) => {}
                    Some(Some(before)) => return Err(prefixed(before)),
                    _ => return Err(broken()),
                }
                end = Self { members: wide(32)?, len: wide(40)?, start: wide(48)? };
                directory_end = at;
            }
        }
        // What stands before an archive moves all positions, and is another file to another reader.
        match end.start.checked_add(end.len).map(|said| directory_end.checked_sub(said)) {
            Some(Some(0)) => Ok(end),
            Some(Some(before)) => Err(prefixed(before)),
            _ => Err(malformed("its directory is not where its end says")),
        }
    }
}

impl Member {
    /// The entry at the start of the directory, and what follows it.
    fn parse(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let rest = bytes.strip_prefix(b"PK\x01\x02")?;
        let rest = rest.get(42..)?;
        let (name_len, extra_len, comment_len) = (u16_at(bytes, 28)?, u16_at(bytes, 30)?, u16_at(bytes, 32)?);
        let (name, rest) = rest.split_at_checked(name_len.into())?;
        let (extra, rest) = rest.split_at_checked(extra_len.into())?;
        let (_, rest) = rest.split_at_checked(comment_len.into())?;
        let mut member = Self {
            name: std::str::from_utf8(name).ok()?.to_owned(),
            flags: u16_at(bytes, 8)?,
            method: u16_at(bytes, 10)?,
            crc: u32_at(bytes, 16)?,
            compressed: u32_at(bytes, 20)?.into(),
            size: u32_at(bytes, 24)?.into(),
            header: u32_at(bytes, 42)?.into(),
            // The mode of Unix is in the upper half.
            is_link: u32_at(bytes, 38)? >> 16 & 0o170_000 == 0o120_000,
        };
        member.widen(extra)?;
        Some((member, rest))
    }

    /// Takes the sizes that 32 bits do not hold from the extra field.
    fn widen(&mut self, mut extra: &[u8]) -> Option<()> {
        while extra.len() >= 4 {
            let (id, len) = (u16_at(extra, 0)?, u16_at(extra, 2)?);
            let field = extra.get(4..4 + usize::from(len))?;
            if id == 1 {
                let mut at = 0;
                for value in [&mut self.size, &mut self.compressed, &mut self.header] {
                    if *value == u64::from(u32::MAX) {
                        *value = u64_at(field, at)?;
                        at += 8;
                    }
                }
            }
            extra = &extra[4 + usize::from(len)..];
        }
        Some(())
    }
}

/// Members that share bytes are a bomb: each may be as long as the archive.
fn check_overlaps(members: &[Member]) -> Result<()> {
    let mut order: Vec<&Member> = members.iter().collect();
    order.sort_by_key(|member| member.header);
    for pair in order.windows(2) {
        let end =
            pair[0].header.saturating_add(30 + pair[0].name.len() as u64).saturating_add(pair[0].compressed);
        if end > pair[1].header {
            let (first, second) = (&pair[0].name, &pair[1].name);
            return Err(malformed(&format!("its members {first:?} and {second:?} overlap")));
        }
    }
    Ok(())
}

fn checksum(source: &FilePart) -> io::Result<u32> {
    let mut memory = vec![0; source.size().min(256 << 10) as usize];
    let mut crc = flate2::Crc::new();
    let mut read = Sequential::new(source);
    loop {
        match read.read(&mut memory)? {
            0 => return Ok(crc.sum()),
            len => crc.update(&memory[..len]),
        }
    }
}

fn prefixed(len: u64) -> Error {
    malformed(&format!("{len} bytes stand before the archive, such as another one; separate the two"))
}

fn malformed(what: &str) -> Error {
    Error::new(ErrorKind::Malformed, what)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}
