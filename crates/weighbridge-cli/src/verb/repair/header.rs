//! The header of a broken file: whatever its length says, its JSON ends by itself.

use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use weighbridge::header::Decode;

use crate::verb::verify::index::Pairs;

/// What the header says, proven in nothing.
pub(super) struct Raw {
    /// Its length, as the first 8 bytes say.
    pub(super) len: u64,
    /// The byte of the file behind its JSON.
    pub(super) end: u64,
    /// NUL bytes between the parts of the JSON.
    pub(super) nuls: u64,
    /// Whether a byte order mark stands before it.
    pub(super) has_mark: bool,
    /// In the order of the text.
    pub(super) entries: Vec<(String, Entry)>,
    pub(super) metadata: Vec<(String, String)>,
}

/// A tensor.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) dtype: String,
    pub(super) shape: Vec<u64>,
    pub(super) offsets: [u64; 2],
}

/// Where the JSON begins.
const START: u64 = 8;
const MARK: [u8; 3] = [0xEF, 0xBB, 0xBF];

/// Reads it from the start of a file of that size.
pub(super) fn read(mut file: &File, size: u64) -> Result<Raw> {
    if size < START + 2 {
        bail!("it cannot be repaired: a file of {size} bytes has no header");
    }
    let (mut len, mut first) = ([0; START as usize], Vec::new());
    file.seek(SeekFrom::Start(0))?;
    file.read_exact(&mut len)?;
    file.take(MARK.len() as u64).read_to_end(&mut first)?;
    let has_mark = first == MARK;
    let start = if has_mark { START + MARK.len() as u64 } else { START };
    file.seek(SeekFrom::Start(start))?;
    let text = Blanked::of(BufReader::new(file.take(Decode::DEFAULT_LIMIT)));
    let (top, end, nuls) = parse(text).context("it cannot be repaired: its header is not JSON of tensors")?;
    let len = u64::from_le_bytes(len);
    Ok(Raw { len, end: start + end, nuls, has_mark, entries: top.0, metadata: top.1 })
}

/// The object at the start of a text, how many bytes it has, and how many of them are NUL.
fn parse(mut text: Blanked<impl Read>) -> Result<(Top, u64, u64)> {
    let mut stream = serde_json::Deserializer::from_reader(&mut text).into_iter::<Top>();
    let top = stream.next().context("there is none")??;
    let end = stream.byte_offset() as u64;
    Ok((top, end, text.nuls))
}

/// Reads NUL bytes outside strings as blanks. In strings they stay, where they are no JSON.
struct Blanked<R> {
    inner: R,
    in_string: bool,
    is_escaped: bool,
    nuls: u64,
}

impl<R> Blanked<R> {
    fn of(inner: R) -> Self {
        Self { inner, in_string: false, is_escaped: false, nuls: 0 }
    }
}

impl<R: Read> Read for Blanked<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = self.inner.read(buf)?;
        for byte in &mut buf[..len] {
            match *byte {
                _ if self.is_escaped => self.is_escaped = false,
                b'\\' => self.is_escaped = self.in_string,
                b'"' => self.in_string = !self.in_string,
                0 if !self.in_string => {
                    *byte = b' ';
                    self.nuls += 1;
                }
                _ => {}
            }
        }
        Ok(len)
    }
}

/// Tensors and metadata, in the order of the text.
struct Top(Vec<(String, Entry)>, Vec<(String, String)>);

impl<'de> Deserialize<'de> for Top {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ReadTop;
        impl<'de> Visitor<'de> for ReadTop {
            type Value = Top;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Top, A::Error> {
                let (mut entries, mut metadata) = (Vec::new(), None);
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        let pairs = map.next_value::<Option<Pairs>>()?.map_or_else(Vec::new, |pairs| pairs.0);
                        if metadata.replace(pairs).is_some() {
                            return Err(A::Error::custom("__metadata__ appears twice"));
                        }
                    } else {
                        let named = |error: A::Error| A::Error::custom(format!("tensor {name:?}: {error}"));
                        let entry = map.next_value().map_err(named)?;
                        entries.push((name, entry));
                    }
                }
                Ok(Top(entries, metadata.unwrap_or_default()))
            }
        }
        deserializer.deserialize_map(ReadTop)
    }
}

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ReadEntry;
        impl<'de> Visitor<'de> for ReadEntry {
            type Value = Entry;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of dtype, shape and data_offsets")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entry, A::Error> {
                let (mut dtype, mut shape, mut offsets) = (None, None, None);
                while let Some(key) = map.next_key::<String>()? {
                    let twice = match &*key {
                        "dtype" => dtype.replace(map.next_value::<Name>()?.0).is_some(),
                        "shape" => shape.replace(map.next_value()?).is_some(),
                        "data_offsets" => offsets.replace(map.next_value()?).is_some(),
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                            false
                        }
                    };
                    if twice {
                        return Err(A::Error::custom(format!("its {key} appears twice")));
                    }
                }
                let missing = |what| A::Error::custom(format!("it has no {what}"));
                Ok(Entry {
                    dtype: dtype.ok_or_else(|| missing("dtype"))?,
                    shape: shape.ok_or_else(|| missing("shape"))?,
                    offsets: offsets.ok_or_else(|| missing("data_offsets"))?,
                })
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Entry, A::Error> {
                let missing = || A::Error::custom("it has fewer than three elements");
                let dtype = seq.next_element::<Name>()?.ok_or_else(missing)?.0;
                let shape = seq.next_element()?.ok_or_else(missing)?;
                let offsets = seq.next_element()?.ok_or_else(missing)?;
                match seq.next_element::<IgnoredAny>()? {
                    None => Ok(Entry { dtype, shape, offsets }),
                    Some(_) => Err(A::Error::custom("it has more than three elements")),
                }
            }
        }
        deserializer.deserialize_any(ReadEntry)
    }
}

/// `"F32"`, or `{"F32": null}`.
struct Name(String);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ReadName;
        impl<'de> Visitor<'de> for ReadName {
            type Value = Name;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a dtype")
            }

            fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Name, E> {
                Ok(Name(name.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Name, A::Error> {
                let only = || A::Error::custom("its dtype is not a string");
                let (name, ()) = map.next_entry()?.ok_or_else(only)?;
                if map.next_key::<IgnoredAny>()?.is_some() {
                    return Err(only());
                }
                Ok(Name(name))
            }
        }
        deserializer.deserialize_any(ReadName)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_ends_by_itself() {
        let text = b"\0 {\0\"a\\\"}\":\0{\"dtype\":{\"U8\":null},\"shape\":[],\"x\":[{}],\"data_offsets\":[0,1]}}\0\0}";
        let (Top(entries, metadata), end, nuls) = parse(Blanked::of(&text[..])).unwrap();
        assert_eq!(end, text.len() as u64 - 3);
        assert_eq!(nuls, 3);
        assert_eq!((&*entries[0].0, &*entries[0].1.dtype, metadata.len()), ("a\"}", "U8", 0));
        for wrong in [
            &b"{\"a\0\":[\"U8\",[],[0,0]]}"[..],
            b"{\"a\":[\"U8\",[],[0,0],0]}",
            b"{\"a\":[\"U8\",[],[0]]}",
            b"{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0,0]}}",
            b"{\"a\":{\"dtype\":\"U8\",\"shape\":[-1],\"data_offsets\":[0,0]}}",
            b"{\"__metadata__\":{\"a\":1}}",
            b"{\"a\":",
            b"[]",
            b"",
        ] {
            assert!(parse(Blanked::of(wrong)).is_err(), "{}", String::from_utf8_lossy(wrong));
        }
    }
}
