//! Zip archives as those read them that are not strict: everything in them is looked at, and whatever two readers could see
//! differently is a problem.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use flate2::CrcWriter;
use weighbridge::Source;

use super::budget::Left;
use super::follow::Storage;
use super::search::{Place, Search, is_marked};
use super::{compressed, torch};
use crate::input::{FilePart, Head};
use crate::numpy;

/// The record at the end, and the longest comment behind it.
const END: u64 = 22;
const LONGEST_COMMENT: u64 = 0xffff;
/// Larger members that are stored are not read once more for their checksum.
const LARGEST_CHECKED: u64 = 64 << 20;

/// Whether a directory of an archive is at the end, whatever it begins with.
pub(super) fn ends_here(part: &FilePart) -> bool {
    end_record(part, part.size()).is_some()
}

/// Where the record is that ends a directory, in what ends at `end`: as Python looks for it.
fn end_record(part: &FilePart, end: u64) -> Option<u64> {
    let last = end.checked_sub(END)?;
    let record = part.head(last, END as usize).ok()?;
    if record.starts_with(b"PK\x05\x06") && record.ends_with(&[0, 0]) {
        return Some(last);
    }
    let start = last.saturating_sub(LONGEST_COMMENT);
    let tail = part.head(start, (end - start) as usize).ok()?;
    let at = tail.windows(4).rposition(|four| four == b"PK\x05\x06")?;
    (at + END as usize <= tail.len()).then_some(start + at as u64)
}

/// Looks into an archive, and into those before it in the same file.
pub(super) fn look(search: &mut Search, part: &FilePart, place: Place<'_>) -> &'static str {
    let mut end = part.size();
    while end > 0 {
        let start = match Directory::read(part, end, &mut search.budget.directories) {
            Ok(directory) => {
                let (start, len) = (directory.start, directory.len);
                archive(search, part, place, directory);
                search.budget.directories.give_back(len);
                start
            }
            Err(problem) => {
                search.problem(place, problem);
                // Whatever it is, loaders that see a pickle in it see it from the start.
                0
            }
        };
        if start == 0 {
            break;
        }
        end = start;
        // Each takes time, however small it is.
        if !search.budget.archives_before.take(1) {
            search.problem(place, "too many archives stand one behind another");
            break;
        }
        if end_record(part, end).is_none() {
            search.problem(place, format!("{end} bytes before the archive, which readers see differently"));
            if let Some(before) = part.narrow(0..end) {
                let name = place.name("(before the archive)");
                search.look(&before, place.inner(&name));
            }
            break;
        }
    }
    "zip archive"
}

/// The directory of an archive.
struct Directory {
    members: Vec<Member>,
    /// Where the archive begins, and its directory.
    start: u64,
    directory: u64,
    len: u64,
    /// What is wrong with it, but does not keep it from being read.
    problems: Vec<String>,
}

struct Member {
    name: String,
    /// Where it is not UTF-8.
    raw_name: Option<Box<[u8]>>,
    flags: u16,
    method: u16,
    crc: u32,
    compressed: u64,
    size: u64,
    header: u64,
}

impl Directory {
    /// Reads the one that ends at `end`. Its bytes are taken from `room`, to be given back when it is dropped.
    fn read(part: &FilePart, end: u64, room: &mut Left) -> Result<Self, String> {
        let at =
            end_record(part, end).ok_or("it has no directory: it was cut off, or is still being written")?;
        let record = part.head(at, END as usize).map_err(|error| error.to_string())?;
        let mut problems = Vec::new();
        let behind = (end - at - END).checked_sub(short(&record, 20).into());
        match behind {
            Some(0) => {}
            Some(len) => problems.push(format!("{len} bytes behind the archive")),
            None => problems.push("its comment is cut off".to_owned()),
        }
        if short(&record, 4) != 0 || short(&record, 6) != 0 || short(&record, 8) != short(&record, 10) {
            problems.push("it is one of several parts of an archive".to_owned());
        }
        let mut count = u64::from(short(&record, 10));
        let (mut len, mut offset) = (u64::from(long(&record, 12)), u64::from(long(&record, 16)));
        let mut directory_end = at;
        let locator = at.checked_sub(20).map(|at| part.head(at, 20).unwrap_or_default()).unwrap_or_default();
        if locator.starts_with(b"PK\x06\x07") {
            // The record stands right before the locator, wherever the locator says that it is.
            let wide_at = at.checked_sub(20 + 56).ok_or("its 64-bit end is cut off")?;
            let wide = part.head(wide_at, 56).unwrap_or_default();
            if !wide.starts_with(b"PK\x06\x06") || wide.len() < 56 {
                return Err("its 64-bit end is not where it belongs".to_owned());
            }
            let fits = |narrow: u64, wide: u64, most: u64| narrow == wide || narrow == most;
            let given = (quad(&wide, 32), quad(&wide, 40), quad(&wide, 48));
            if !fits(count, given.0, 0xffff)
                || !fits(len, given.1, 0xffff_ffff)
                || !fits(offset, given.2, 0xffff_ffff)
            {
                problems.push("its two ends do not agree".to_owned());
            }
            (count, len, offset) = given;
            directory_end = wide_at;
            if quad(&locator, 8).checked_add(directory_end.saturating_sub(len).saturating_sub(offset))
                != Some(wide_at)
            {
                problems.push("its 64-bit end is not where it says".to_owned());
            }
        }
        let directory = directory_end.checked_sub(len).ok_or("its directory is longer than the file")?;
        // What stands before the archive moves all positions, to readers that allow for it.
        let start = directory.checked_sub(offset).ok_or("its directory is not where its end says")?;
        if !room.take(len) {
            return Err("its directory is too long".to_owned());
        }
        let bytes = part.head(directory, len as usize).map_err(|error| error.to_string())?;
        let mut members = Vec::new();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let Some((member, more)) = Member::parse(rest) else {
                problems.push("its directory is broken".to_owned());
                break;
            };
            members.push(member);
            rest = more;
        }
        if members.len() as u64 != count {
            problems.push(format!("its directory has {} members, its end says {count}", members.len()));
        }
        Ok(Self { members, start, directory, len, problems })
    }
}

impl Member {
    fn parse(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let head = bytes.get(..46).filter(|head| head.starts_with(b"PK\x01\x02"))?;
        let rest = &bytes[46..];
        let (raw_name, rest) = rest.split_at_checked(short(head, 28).into())?;
        let (extra, rest) = rest.split_at_checked(short(head, 30).into())?;
        let (_, rest) = rest.split_at_checked(short(head, 32).into())?;
        let mut member = Self {
            name: String::from_utf8_lossy(raw_name).into_owned(),
            raw_name: std::str::from_utf8(raw_name).is_err().then(|| raw_name.into()),
            flags: short(head, 8),
            method: short(head, 10),
            crc: long(head, 16),
            compressed: long(head, 20).into(),
            size: long(head, 24).into(),
            header: long(head, 42).into(),
        };
        let mut extra = extra;
        while extra.len() >= 4 {
            let len = 4 + usize::from(short(extra, 2));
            let field = extra.get(4..len)?;
            if short(extra, 0) == 1 {
                let mut field = field;
                for value in [&mut member.size, &mut member.compressed, &mut member.header] {
                    if *value == 0xffff_ffff {
                        let wide;
                        (wide, field) = field.split_at_checked(8)?;
                        *value = quad(wide, 0);
                    }
                }
            }
            extra = &extra[len..];
        }
        Some((member, rest))
    }

    fn raw_name(&self) -> &[u8] {
        self.raw_name.as_deref().unwrap_or(self.name.as_bytes())
    }

    /// Where its header begins, its bytes are, and what belongs to it ends.
    fn locate(&self, part: &FilePart, start: u64) -> Result<(u64, Range<u64>, u64), String> {
        let at = start.checked_add(self.header).ok_or("its header is behind the end of the file")?;
        let local = part.head(at, 30).unwrap_or_default();
        if local.len() < 30 || !local.starts_with(b"PK\x03\x04") {
            return Err("its header is not where the directory says".to_owned());
        }
        let (name, extra) = (u64::from(short(&local, 26)), u64::from(short(&local, 28)));
        let own_name = part.head(at + 30, name as usize).unwrap_or_default();
        let data = at + 30 + name + extra;
        let end = data.checked_add(self.compressed).filter(|&end| end <= part.size());
        let end = end.ok_or("it ends behind the end of the file")?;
        let streamed = short(&local, 6) & 8 != 0;
        let is = |own: u32, given: u64| u64::from(own) == given || own == u32::MAX || streamed && own == 0;
        let agrees = own_name == self.raw_name()
            && short(&local, 6) == self.flags
            && short(&local, 8) == self.method
            && is(long(&local, 14), self.crc.into())
            && is(long(&local, 18), self.compressed)
            && is(long(&local, 22), self.size);
        if !agrees {
            return Err(format!(
                "its header says otherwise than the directory: {:?}",
                String::from_utf8_lossy(&own_name)
            ));
        }
        Ok((at, data..end, if streamed { self.descriptor(part, end) } else { end }))
    }

    /// The end of what may stand behind a member that was written without knowing its size.
    fn descriptor(&self, part: &FilePart, at: u64) -> u64 {
        let bytes = part.head(at, 24).unwrap_or_default();
        let marked = if bytes.starts_with(b"PK\x07\x08") { 4 } else { 0 };
        let fields = &bytes[marked..];
        if fields.len() >= 4 && long(fields, 0) == self.crc {
            let wide =
                fields.len() >= 20 && quad(fields, 4) == self.compressed && quad(fields, 12) == self.size;
            let narrow = fields.len() >= 12
                && u64::from(long(fields, 4)) == self.compressed
                && u64::from(long(fields, 8)) == self.size;
            // The narrow one of an empty member begins as the wide one does.
            let next = |len: u64| part.head(at + len, 2).is_ok_and(|next| next == b"PK");
            match (marked as u64 + 20, marked as u64 + 12) {
                (len, _) if wide && (next(len) || !narrow) => return at + len,
                (_, len) if narrow => return at + len,
                _ => {}
            }
        }
        at
    }
}

/// Looks at every member, and at whether they are all that there is.
fn archive(search: &mut Search, part: &FilePart, place: Place<'_>, directory: Directory) {
    for problem in directory.problems {
        search.problem(place, problem);
    }
    let mut storages: HashMap<String, Storage> = HashMap::new();
    let all: HashSet<&str> = directory.members.iter().map(|member| &*member.name).collect();
    let mut names = HashSet::new();
    let scripts = torch::Scripts::of(directory.members.iter().map(|member| &*member.name));
    let mut taken: Vec<Range<u64>> = Vec::new();
    // Pickles say how large the storages are that lie beside them, so they come first.
    let mut members: Vec<_> = directory.members.iter().collect();
    members.sort_by_key(|member| !member.name.ends_with(".pkl"));
    for member in members {
        if !search.counts_member(place) {
            return;
        }
        let name = place.name(&member.name);
        let within = place.inner(&name);
        if !names.insert(member.raw_name()) {
            search.problem(within, "two members have this name");
        }
        let data = match member.locate(part, directory.start) {
            Ok((start, data, end)) => {
                taken.push(start..end);
                data
            }
            Err(problem) => {
                search.problem(within, problem);
                // Some readers go by the directory, some by the header; this is what the directory means.
                match fallback(member, part, directory.start) {
                    Some(data) => data,
                    None => continue,
                }
            }
        };
        if member.name.ends_with('/') && data.is_empty() {
            continue;
        }
        let Some(stored) = part.narrow(data) else { continue };
        let is_storage = storages.get(&member.name).is_some_and(|storage| {
            torch::width(&storage.class).and_then(|width| width.checked_mul(storage.elements))
                == Some(member.size)
        });
        // Numbers to PyTorch; but whoever unpacks the archive may find a pickle.
        if is_storage && member.method == 0 && !says_what_it_is(&stored) {
            search.shadow(&stored, within);
            continue;
        }
        if member.method == 0 && !search.counts_stored(stored.size(), within) {
            continue;
        }
        let Some(bytes) = bytes(search, member, &stored, within) else { continue };
        // Numbers begin like a pickle now and then, but do not go on to a STOP.
        let mut is_pickle = || !is_marked(&bytes, 0) || search.follow(&bytes, 0).stopped;
        if is_storage && !(says_what_it_is(&bytes) && is_pickle()) {
            search.shadow(&bytes, within);
        } else {
            let before = search.pickles.len();
            search.storages.clear();
            search.look(&bytes, within);
            if let Some(directory) = member.name.strip_suffix(".pkl") {
                let named =
                    search.storages.drain().map(|(key, storage)| (format!("{directory}/{key}"), storage));
                // Only of those that are there, or each would be as long as the name of the pickle.
                storages.extend(named.filter(|(name, _)| all.contains(&**name)));
            }
            scripts.judge(&member.name, &mut search.pickles[before..]);
            if let Some(global) = scripts.runs(&member.name, &bytes) {
                search.found(within, 0, vec![global], None);
            }
        }
    }
    // The directory follows the last member.
    taken.push(directory.directory..directory.directory);
    taken.sort_by_key(|range| (range.start, range.end));
    let mut at = directory.start;
    for range in taken {
        if range.start > at {
            search.problem(place, format!("{} bytes at {at} belong to no member", range.start - at));
        } else if range.start < at {
            search.problem(place, format!("members overlap at byte {}", range.start));
        }
        at = at.max(range.end);
    }
}

/// Whether it begins as a pickle or an array of NumPy's does.
fn says_what_it_is(part: &FilePart) -> bool {
    is_marked(part, 0) || part.head(0, 6).is_ok_and(|head| head == numpy::MAGIC)
}

/// The bytes of a member that its two headers do not agree about.
fn fallback(member: &Member, part: &FilePart, start: u64) -> Option<Range<u64>> {
    let at = start.checked_add(member.header)?;
    let local =
        part.head(at, 30).ok().filter(|local| local.len() == 30 && local.starts_with(b"PK\x03\x04"))?;
    let data = at + 30 + u64::from(short(&local, 26)) + u64::from(short(&local, 28));
    let end = data.checked_add(member.compressed)?.min(part.size());
    (data <= end).then_some(data..end)
}

/// What a member holds; where that is not certain, as much as there is.
fn bytes(search: &mut Search, member: &Member, stored: &FilePart, place: Place<'_>) -> Option<FilePart> {
    if member.flags & 0x41 != 0 {
        search.problem(place, "it is encrypted");
        // Or says so to be left alone: some readers do not look at that.
    }
    if member.method == 0 {
        if member.compressed != member.size {
            search.problem(place, "it is stored, but has two sizes");
        }
        if member.crc != 0 && stored.size() <= LARGEST_CHECKED && checksum(stored) != Some(member.crc) {
            search.problem(place, "its checksum is another");
        }
        return Some(stored.clone());
    }
    let (mut crc, mut left) = (0, search.budget.streams);
    let (inner, problem) = search.expand(|output| {
        let mut output = CrcWriter::new(output);
        let written = compressed::member(member.method, member.size, stored, &mut output, &mut left);
        crc = output.crc().sum();
        written
    });
    search.budget.streams = left;
    match (&inner, problem) {
        (_, Some(problem)) => search.problem(place, problem),
        (Some(inner), None) if inner.size() != member.size || crc != member.crc => {
            search.problem(place, "its size or its checksum is another");
        }
        _ => {}
    }
    inner
}

fn checksum(part: &FilePart) -> Option<u32> {
    let mut crc = flate2::Crc::new();
    let mut at = 0;
    while at < part.size() {
        let bytes = part.head(at, 256 << 10).ok()?;
        crc.update(&bytes);
        at += bytes.len() as u64;
    }
    Some(crc.sum())
}

/// Fields of records whose length was checked.
fn short(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).and_then(|field| field.try_into().ok()).map_or(0, u16::from_le_bytes)
}

fn long(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|field| field.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn quad(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|field| field.try_into().ok()).map_or(0, u64::from_le_bytes)
}
