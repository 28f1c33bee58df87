//! Tar archives: the oldest format of PyTorch's, which `torch.load` still opens.

use weighbridge::Source;

use super::search::{Place, Search};
use super::torch;
use crate::input::{FilePart, Head};

const BLOCK: u64 = 512;
/// The longest name or table of attributes.
const LONGEST: u64 = 1 << 20;

/// Whether these are the first bytes of one: a header whose checksum is right.
pub(super) fn is_archive(head: &[u8]) -> bool {
    head.first_chunk().is_some_and(is_header)
}

/// Whether the checksum is right, as any reader counts and writes it.
fn is_header(block: &[u8; 512]) -> bool {
    // The checksum itself counts as blanks.
    let counted =
        || block.iter().enumerate().map(|(at, &byte)| if (148..156).contains(&at) { b' ' } else { byte });
    let unsigned: i64 = counted().map(i64::from).sum();
    let signed: i64 = counted().map(|byte| i64::from(byte.cast_signed())).sum();
    number(&block[148..156]).is_some_and(|sum| [unsigned, signed].contains(&sum))
}

struct Header {
    name: String,
    size: u64,
    kind: u8,
}

impl Header {
    fn parse(block: &[u8]) -> Option<Self> {
        let block: &[u8; 512] = block.first_chunk()?;
        if !is_header(block) {
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
        let size = u64::try_from(number(&block[124..136])?).ok()?;
        // Before there were directories of their own, they were known by their names.
        let kind = if block[156] == 0 && text(&block[..100]).ends_with('/') { b'5' } else { block[156] };
        Some(Self { name, size, kind })
    }
}

/// A field as Python reads it: in binary, or in octal digits with everything that its `int` takes.
fn number(field: &[u8]) -> Option<i64> {
    if let Some((0x80, digits)) = field.split_first() {
        let (high, low) = digits.split_at(digits.len().saturating_sub(7));
        let value = low.iter().fold(0, |value, &byte| value << 8 | i64::from(byte));
        return high.iter().all(|&byte| byte == 0).then_some(value);
    }
    let field = field.split(|&byte| byte == 0).next()?;
    let text =
        std::str::from_utf8(field).ok()?.trim_matches(|c: char| c == ' ' || ('\t'..='\x1f').contains(&c));
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if text.is_empty() {
        return Some(0);
    }
    let digits = match digits.strip_prefix("0o").or(digits.strip_prefix("0O")) {
        Some(digits) => digits.strip_prefix('_').unwrap_or(digits),
        None => digits,
    };
    if digits.starts_with('_') || digits.ends_with('_') || digits.contains("__") {
        return None;
    }
    let value = i64::from_str_radix(&digits.replace('_', ""), 8).ok()?;
    Some(if negative { -value } else { value })
}

/// Looks into its members.
pub(super) fn look(search: &mut Search, part: &FilePart, place: Place<'_>) -> &'static str {
    let mut at = 0;
    let (mut long_name, mut table_of_next) = (None, None::<Table>);
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
        let table = if is_table { None } else { table_of_next.take() };
        let size = match table.as_ref().and_then(|table| table.size) {
            _ if !holds_data => 0,
            Some(size) => size,
            None => header.size,
        };
        let end = data.checked_add(size).filter(|&end| end <= part.size());
        let inner = end.and_then(|end| part.narrow(data..end));
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
                    let table = Table::parse(&table);
                    let odd = match &table {
                        None => Some("a table of attributes is broken"),
                        Some(table) if table.is_sparse => Some("a sparse member"),
                        Some(table) if header.kind == b'g' && table.size.is_some() => {
                            Some("a size for all members")
                        }
                        Some(_) if header.kind == b'x' && table_of_next.is_some() => {
                            Some("two tables of attributes of one member")
                        }
                        Some(_) => None,
                    };
                    if let Some(odd) = odd {
                        search.problem(place, odd);
                    }
                    if header.kind == b'x' {
                        table_of_next = table;
                    }
                }
                _ => {}
            }
            continue;
        }
        let name = table.and_then(|table| table.path).or(long_name.take()).unwrap_or(header.name);
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

/// What a table of extended attributes says of the next member.
#[derive(Default)]
struct Table {
    path: Option<String>,
    size: Option<u64>,
    is_sparse: bool,
}

impl Table {
    /// Lines of `LENGTH KEY=VALUE`, and nothing else.
    fn parse(table: &[u8]) -> Option<Self> {
        let mut found = Self::default();
        let mut rest = table;
        while !rest.is_empty() {
            let space = rest.iter().position(|&byte| byte == b' ')?;
            let digits = &rest[..space];
            if !digits.iter().all(u8::is_ascii_digit) {
                return None;
            }
            let len: usize = std::str::from_utf8(digits).ok()?.parse().ok()?;
            let line = rest.get(space + 1..len)?.strip_suffix(b"\n")?;
            let equals = line.iter().position(|&byte| byte == b'=')?;
            let (key, value) = (&line[..equals], &line[equals + 1..]);
            match key {
                b"path" => found.path = Some(String::from_utf8_lossy(value).into_owned()),
                b"size" if value.iter().all(u8::is_ascii_digit) => {
                    found.size = Some(std::str::from_utf8(value).ok()?.parse().ok()?);
                }
                b"size" => return None,
                key => found.is_sparse |= key.starts_with(b"GNU.sparse"),
            }
            rest = &rest[len..];
        }
        Some(found)
    }
}
