//! Tar archives: the oldest format of PyTorch's, which `torch.load` still opens.

use weighbridge::Source;

use super::search::{Place, Search};
use super::torch;
use crate::input::FilePart;

const BLOCK: u64 = 512;
/// The longest name or table of attributes.
const LONGEST: u64 = 1 << 20;

/// Whether these are the first bytes of one: a header whose checksum is right.
pub(super) fn is_archive(head: &[u8]) -> bool {
    Header::parse(head).is_some()
}

struct Header {
    name: String,
    size: u64,
    kind: u8,
}

impl Header {
    fn parse(block: &[u8]) -> Option<Self> {
        let block: &[u8; 512] = block.get(..512)?.try_into().ok()?;
        let sum: u64 = block
            .iter()
            .enumerate()
            .map(|(at, &byte)| {
                // The checksum itself counts as blanks.
                u64::from(if (148..156).contains(&at) { b' ' } else { byte })
            })
            .sum();
        if octal(&block[148..156])? != sum {
            return None;
        }
        let text = |field: &[u8]| {
            let end = field.iter().position(|&byte| byte == 0).unwrap_or(field.len());
            String::from_utf8_lossy(&field[..end]).into_owned()
        };
        let prefix = if &block[257..262] == b"ustar" && block[262] == 0 {
            text(&block[345..500])
        } else {
            String::new()
        };
        let name = text(&block[..100]);
        let name = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
        let size = match block[124] {
            // In binary, for what octal digits do not hold.
            0x80 => u64::from_be_bytes(block[128..136].try_into().ok()?),
            _ => octal(&block[124..136])?,
        };
        Some(Self { name, size, kind: block[156] })
    }
}

fn octal(field: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(field).ok()?.trim_matches([' ', '\0']);
    if text.is_empty() { Some(0) } else { u64::from_str_radix(text, 8).ok() }
}

/// Looks into its members.
pub(super) fn look(search: &mut Search, part: &FilePart, place: Place<'_>) -> &'static str {
    let mut at = 0;
    let (mut long_name, mut long_size) = (None, None);
    while at < part.size() {
        let block = part.head(at, BLOCK as usize).unwrap_or_default();
        if block.iter().all(|&byte| byte == 0) {
            if let Some(behind) = first_not_zero(part, at) {
                search.problem(place, format!("bytes behind its end, at {behind}"));
            }
            return "tar archive";
        }
        let Some(header) = Header::parse(&block) else {
            search.problem(place, format!("its header at byte {at} is broken"));
            return "tar archive";
        };
        let data = at + BLOCK;
        let holds_data = !matches!(header.kind, b'1'..=b'6');
        let is_table = matches!(header.kind, b'x' | b'g' | b'L' | b'K');
        let size = match long_size.take().filter(|_| !is_table) {
            Some(size) => size,
            None if holds_data => header.size,
            None => 0,
        };
        let end = data.checked_add(size).filter(|&end| end <= part.size());
        let inner = end.and_then(|end| part.part(data..end));
        let Some((inner, end)) = inner.zip(end) else {
            search.problem(place, format!("{:?} ends behind the end of the archive", header.name));
            return "tar archive";
        };
        // What is between members is filled with zeros.
        at = end.next_multiple_of(BLOCK);
        let padding = part.head(end, (at - end) as usize).unwrap_or_default();
        if padding.iter().any(|&byte| byte != 0) {
            search.problem(place, format!("bytes between members, at {end}"));
        }
        if is_table {
            let Some(table) =
                (inner.size() <= LONGEST).then(|| inner.head(0, size as usize).unwrap_or_default())
            else {
                search.problem(place, "a table of attributes is too long");
                return "tar archive";
            };
            match header.kind {
                b'L' => long_name = Some(String::from_utf8_lossy(&table).trim_end_matches('\0').to_owned()),
                b'x' | b'g' => {
                    let path = attribute(&table, "path");
                    long_name = path.or(long_name);
                    long_size = attribute(&table, "size").and_then(|size| size.parse().ok());
                    if attribute(&table, "GNU.sparse.major").is_some() {
                        search.problem(place, "a sparse member");
                    }
                }
                _ => {}
            }
            continue;
        }
        let name = long_name.take().unwrap_or(header.name);
        if !search.counts_member(place) {
            return "tar archive";
        }
        let member = place.name(&name);
        let within = place.inner(&member);
        match header.kind {
            b'0' | 0 | b'7' => {
                let own = name.rsplit('/').next().unwrap_or(&name);
                if !torch::member(search, &inner, within, own) {
                    search.look(&inner, within);
                }
            }
            // Links, devices and directories have no bytes of their own.
            b'1'..=b'6' => {}
            other => search.problem(within, format!("a member of the unknown type {:?}", char::from(other))),
        }
    }
    "tar archive"
}

fn first_not_zero(part: &FilePart, start: u64) -> Option<u64> {
    let mut at = start;
    loop {
        let bytes = part.head(at, 64 << 10).ok()?;
        if bytes.is_empty() {
            return None;
        }
        if let Some(found) = bytes.iter().position(|&byte| byte != 0) {
            return Some(at + found as u64);
        }
        at += bytes.len() as u64;
    }
}

/// A value in a table of extended attributes: lines of `LENGTH KEY=VALUE`.
fn attribute(table: &[u8], key: &str) -> Option<String> {
    let mut rest = table;
    let mut found = None;
    while let Some(space) = rest.iter().position(|&byte| byte == b' ') {
        let len: usize = std::str::from_utf8(&rest[..space]).ok()?.parse().ok()?;
        let line = rest.get(space + 1..len)?.strip_suffix(b"\n")?;
        let text = String::from_utf8_lossy(line);
        if let Some((name, value)) = text.split_once('=')
            && name == key
        {
            found = Some(value.to_owned());
        }
        rest = &rest[len..];
    }
    found
}
