//! What can be proven of a broken file, and what has to change for it to be valid.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;

use anyhow::{Result, bail};
use weighbridge::Dtype;

use super::header::{Entry, Raw};
use crate::interrupt;
use crate::show::{count, plural, safe};

/// A tensor as it is in the file.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    /// Of the file.
    pub(super) bytes: Range<u64>,
}

/// A file that is valid when it is written.
pub(super) struct Mended {
    /// In the order of their data.
    pub(super) tensors: Vec<(String, Kept)>,
    pub(super) metadata: BTreeMap<String, String>,
    /// One line each.
    pub(super) changes: Vec<String>,
}

/// Proves what is in a file of that size, or says what cannot be.
pub(super) fn prove(file: &File, size: u64, raw: Raw) -> Result<Mended> {
    let mut changes = Vec::new();
    let metadata = metadata(&raw.metadata)?;
    no_duplicates(&raw.entries)?;
    let tensors = raw.entries.iter().map(|(name, entry)| tensor(name, entry));
    let mut tensors = tensors.collect::<Result<Vec<_>>>()?;
    // Those without data have no place of their own.
    tensors.sort_by_key(|(_, kept)| (kept.bytes.start, kept.bytes.end));
    let data_start = data_start(file, size, &raw, &tensors, &mut changes)?;
    let data_len = size - data_start;
    let mut end = 0;
    let mut last = "";
    let mut gaps = Vec::new();
    for (name, kept) in &tensors {
        let Range { start, end: its_end } = kept.bytes;
        if start == its_end {
            if start != end {
                changes.push(format!(
                    "tensor {:?}: its data_offsets [{start}, {start}], which hold nothing, get their place in the order",
                    safe(name)
                ));
            }
            continue;
        }
        if start < end {
            bail!(
                "it cannot be repaired: tensor {:?}: its data overlaps that of {:?}",
                safe(name),
                safe(last)
            );
        }
        if its_end > data_len {
            bail!(
                "it cannot be repaired: tensor {:?}: it is cut short: its data ends at byte {its_end}, the file has {data_len} \
                 behind the header",
                safe(name)
            );
        }
        if start > end {
            gaps.push((end..start, format!("before tensor {:?}", safe(name))));
        }
        (end, last) = (its_end, name);
    }
    if end < data_len {
        gaps.push((end..data_len, "behind the last tensor".to_owned()));
    }
    for (gap, place) in gaps {
        let census = Census::of(file, data_start + gap.start..data_start + gap.end)?;
        let (len, others) = (gap.end - gap.start, census.blanks + census.others);
        if gap.end == data_len {
            no_other_start(file, data_start, gap, others)?;
        }
        let what = match others {
            0 => "all zero".to_owned(),
            others => format!("of which {} not zero", is_or_are(others)),
        };
        changes.push(format!("left out: {} {place}, {what}", plural(len as usize, "byte")));
    }
    for (_, kept) in &mut tensors {
        // A tensor without data may have any offset.
        let place = |offset: u64| data_start + offset.min(data_len);
        kept.bytes = place(kept.bytes.start)..place(kept.bytes.end);
    }
    Ok(Mended { tensors, metadata, changes })
}

fn is_or_are(number: u64) -> String {
    format!("{} {}", count(number), if number == 1 { "is" } else { "are" })
}

fn metadata(pairs: &[(String, String)]) -> Result<BTreeMap<String, String>> {
    let mut metadata = BTreeMap::new();
    for (key, value) in pairs {
        if metadata.insert(key.clone(), value.clone()).is_some_and(|other| other != *value) {
            bail!("it cannot be repaired: the metadata has two values for {:?}", safe(key));
        }
    }
    Ok(metadata)
}

fn no_duplicates(entries: &[(String, Entry)]) -> Result<()> {
    let mut names: Vec<_> = entries.iter().map(|(name, _)| name).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => bail!("it cannot be repaired: tensor {:?}: its name appears twice", safe(pair[0])),
        None => Ok(()),
    }
}

/// One tensor by itself; its bytes are counted from the start of the data.
fn tensor(name: &str, entry: &Entry) -> Result<(String, Kept)> {
    let refuse = |what: String| bail!("it cannot be repaired: tensor {:?}: {what}", safe(name));
    let Ok(dtype) = entry.dtype.parse::<Dtype>() else {
        let start: String = entry.dtype.chars().take(32).collect();
        return refuse(format!("its dtype {start:?} is unknown"));
    };
    let shape: Result<Vec<usize>, _> = entry.shape.iter().map(|&dim| usize::try_from(dim)).collect();
    let Ok(shape) = shape else {
        return refuse("a dimension does not fit this machine's address space".to_owned());
    };
    let [start, end] = entry.offsets;
    let needs = match dtype.size_of(&shape) {
        Ok(needs) => needs,
        Err(error) => return refuse(error.message().to_owned()),
    };
    match end.checked_sub(start) {
        None => refuse(format!("its data ends before it starts: data_offsets [{start}, {end}]")),
        Some(gives) if gives != needs => {
            refuse(format!("dtype and shape need {needs} bytes, data_offsets give {gives}"))
        }
        Some(_) => Ok((name.to_owned(), Kept { dtype, shape, bytes: start..end })),
    }
}

/// The byte of the file at which the data starts.
fn data_start(
    file: &File,
    size: u64,
    raw: &Raw,
    tensors: &[(String, Kept)],
    changes: &mut Vec<String>,
) -> Result<u64> {
    let mut nuls = raw.nuls;
    if raw.has_mark {
        changes.push("left out: the byte order mark before the header".to_owned());
    }
    let said = raw.len.checked_add(8).filter(|said| (raw.end..=size).contains(said));
    let behind = said.map(|said| Census::of(file, raw.end..said)).transpose()?;
    let start = match (said, behind) {
        (Some(said), Some(Census { nuls: padding, others: 0, .. })) => {
            nuls += padding;
            said
        }
        _ => {
            let data = tensors.iter().filter(|(_, kept)| !kept.bytes.is_empty());
            let data_len = data.map(|(_, kept)| kept.bytes.end).max().unwrap_or(0);
            let start = size.checked_sub(data_len).filter(|&start| start >= raw.end);
            let Some(start) = start else {
                bail!(
                    "it cannot be repaired: the length of the header is given as {}, its JSON ends at byte {}, and behind it \
                     are fewer bytes than the {data_len} of its tensors",
                    raw.len,
                    raw.end
                );
            };
            // Writers pad to a multiple of 8.
            let census = Census::of(file, raw.end..raw.end.saturating_add(8).min(start))?;
            let is_padding = start - raw.end < 8 && census.others == 0;
            if start > raw.end && !(is_padding && start.is_multiple_of(8)) {
                bail!(
                    "it cannot be repaired: the length of the header is given as {}, its JSON ends at byte {}, and where the \
                     data starts cannot be proven",
                    raw.len,
                    raw.end
                );
            }
            nuls += census.nuls;
            changes.push(format!("the length of the header is {}, not {}", start - 8, raw.len));
            start
        }
    };
    if nuls > 0 {
        changes.push(format!("left out: {} of padding in the header", plural(nuls as usize, "NUL byte")));
    }
    Ok(start)
}

/// Bytes too many at the end could as well be padding before the data, if there is as much padding there, and
/// it aligns the data: then nobody can tell.
fn no_other_start(file: &File, data_start: u64, rest: Range<u64>, others: u64) -> Result<()> {
    let len = rest.end - rest.start;
    let alignment = 1_u64.checked_shl((data_start + len).trailing_zeros()).unwrap_or(0);
    if others == 0 || rest.start == 0 || alignment < 8 || len >= alignment {
        return Ok(());
    }
    let first = Census::of(file, data_start..data_start + len)?;
    if first.nuls == len || first.blanks == len {
        bail!(
            "it cannot be repaired: there are {len} bytes more than the tensors have, and whether they are padding before the \
             data or stand behind it cannot be proven"
        );
    }
    Ok(())
}

/// How many bytes of a part of a file are what.
#[derive(Default)]
struct Census {
    nuls: u64,
    /// White space of JSON.
    blanks: u64,
    others: u64,
}

impl Census {
    fn of(mut file: &File, range: Range<u64>) -> Result<Self> {
        let mut census = Self::default();
        file.seek(SeekFrom::Start(range.start))?;
        let (mut rest, mut memory) = (file.take(range.end.saturating_sub(range.start)), vec![0; 1 << 16]);
        let mut left = rest.limit();
        while left > 0 {
            interrupt::check()?;
            let len = rest.read(&mut memory)?;
            if len == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            left -= len as u64;
            let bytes = memory.get(..len).unwrap_or_default();
            let nuls = bytes.iter().filter(|byte| **byte == 0).count() as u64;
            let blanks =
                bytes.iter().filter(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r')).count() as u64;
            census.nuls += nuls;
            census.blanks += blanks;
            census.others += len as u64 - nuls - blanks;
        }
        Ok(census)
    }
}
