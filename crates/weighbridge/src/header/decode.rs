//! Decoding without input or output of its own.

use std::ops::Range;

use super::Header;
use super::disguise::{disguise, is_header};
use super::parse::{self, MOST_TEXT, Parsed};
use super::rules::{Finding, Profile};
use crate::error::{Error, ErrorKind, Result};
use crate::source::Source;

/// How a header is decoded: profile and limits.
#[derive(Clone, Copy, Debug)]
pub struct Decode {
    profile: Profile,
    limit: u64,
}

impl Default for Decode {
    fn default() -> Self {
        Self { profile: Profile::default(), limit: Self::DEFAULT_LIMIT }
    }
}

impl Decode {
    /// The official crate's limit for the JSON: 100 MB.
    pub const DEFAULT_LIMIT: u64 = 100_000_000;

    /// [`Profile::Compat`] and the default limit.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the profile.
    #[must_use]
    pub fn profile(mut self, profile: Profile) -> Self {
        self.profile = profile;
        self
    }

    /// Sets the greatest length of the JSON in bytes; what is above 2 GiB counts as 2 GiB.
    #[must_use]
    pub fn header_limit(mut self, bytes: u64) -> Self {
        self.limit = bytes.min(MOST_TEXT);
        self
    }

    /// A decoder for a file of that size; without a size, the rule that the data ends with the file is not
    /// checked.
    pub fn decoder(self, file_size: Option<u64>) -> HeaderDecoder {
        HeaderDecoder { options: self, file_size, prefix: Vec::new(), text: Vec::new(), len: None }
    }

    /// Reads the header at the start of a source.
    ///
    /// # Errors
    ///
    /// Fails when the source cannot be read or the header breaks a rule; see [`ErrorKind`].
    pub fn read(self, source: &dyn Source) -> Result<Header> {
        self.filled(source)?.finish()
    }

    /// What is wrong with the header at the start of a source, as far as it can be told: a text that is no header has
    /// one fault, tensors that do not fit together have one each.
    ///
    /// # Errors
    ///
    /// Fails when the source cannot be read, and when memory cannot be allocated.
    pub fn diagnose(self, source: &dyn Source) -> Result<Diagnosis> {
        let diagnosis = self.filled(source).and_then(HeaderDecoder::diagnose);
        diagnosis.or_else(|error| match error.kind() {
            ErrorKind::Io | ErrorKind::NotFound | ErrorKind::Memory => Err(error),
            _ => Ok(Diagnosis { findings: Vec::new(), errors: vec![error] }),
        })
    }

    /// A decoder that has the whole header.
    fn filled(self, source: &dyn Source) -> Result<HeaderDecoder> {
        let size = source.size();
        let mut decoder = self.decoder(Some(size));
        let mut buf = Vec::new();
        while let Some(wanted) = decoder.wants()? {
            let end = wanted.end.max(FIRST_READ).min(size);
            let len = end.saturating_sub(wanted.start).min(1 << 20);
            buf.resize(len as usize, 0);
            source
                .read_at(wanted.start, &mut buf)
                .map_err(|error| Error::io("the header cannot be read", error))?;
            decoder.push(&buf)?;
        }
        Ok(decoder)
    }
}

/// The bytes that are read first: they suffice for the headers of most shards.
pub(crate) const FIRST_READ: u64 = 32 << 10;

/// What is wrong with a header.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Diagnosis {
    /// Departures from the specification that the profile lets pass.
    pub findings: Vec<Finding>,
    /// Why it is refused; at most 64 errors.
    pub errors: Vec<Error>,
}

/// Decodes a header from bytes that the caller fetches, by whatever means.
///
/// ```
/// use weighbridge::header::Decode;
///
/// # fn main() -> weighbridge::Result<()> {
/// # let file = b"\x35\0\0\0\0\0\0\0{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}xy";
/// # let fetch = |range: std::ops::Range<u64>| &file[range.start as usize..range.end as usize];
/// let mut decoder = Decode::new().decoder(Some(file.len() as u64));
/// while let Some(range) = decoder.wants()? {
///     decoder.push(fetch(range))?; // an HTTP range request, say
/// }
/// let header = decoder.finish()?;
/// assert_eq!(header.tensor("a").map(|tensor| tensor.byte_len()), Some(2));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct HeaderDecoder {
    options: Decode,
    file_size: Option<u64>,
    prefix: Vec<u8>,
    text: Vec<u8>,
    /// Of the JSON, once the prefix is there.
    len: Option<u64>,
}

/// The bytes that hold the length of the JSON.
const PREFIX: usize = 8;

/// The bytes behind it that are looked at to tell what else a file may be.
const HEAD: usize = 504;

impl HeaderDecoder {
    /// The bytes of the file that are wanted next; `None` when the header is there.
    ///
    /// # Errors
    ///
    /// Fails as soon as what was pushed, or the size of the file, cannot be right.
    pub fn wants(&self) -> Result<Option<Range<u64>>> {
        let Some(len) = self.len else {
            if let Some(size) = self.file_size.filter(|&size| size < PREFIX as u64) {
                let message = match size {
                    0 => {
                        "the file is empty, as a download or a copy leaves it that broke off: fetch it again"
                            .to_owned()
                    }
                    _ => format!("a file of {size} bytes is not a safetensors file: the header needs 8"),
                };
                return Err(Error::new(ErrorKind::HeaderTooSmall, message));
            }
            return Ok(Some(self.prefix.len() as u64..PREFIX as u64));
        };
        let have = self.text.len() as u64;
        Ok((have < len).then_some(PREFIX as u64 + have..PREFIX as u64 + len))
    }

    /// Takes the bytes of the file that follow those pushed so far. There may be more or fewer of them than
    /// [`wants`](Self::wants) said; bytes behind the header are passed over.
    ///
    /// # Errors
    ///
    /// Fails when the header is longer than the file or the limit.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<()> {
        if self.len.is_none() {
            let missing = PREFIX - self.prefix.len();
            let (prefix, rest) = bytes.split_at(missing.min(bytes.len()));
            self.prefix.extend_from_slice(prefix);
            bytes = rest;
            if let Ok(prefix) = <[u8; PREFIX]>::try_from(&*self.prefix) {
                self.len = Some(self.checked_len(prefix, bytes)?);
            }
        }
        let Some(len) = self.len else {
            return Ok(());
        };
        let missing = usize::try_from(len - self.text.len() as u64).unwrap_or(usize::MAX);
        let taken = &bytes[..missing.min(bytes.len())];
        if self.text.capacity() == 0 && self.file_size.is_some() {
            // The file is as long as it claims, so the memory is no more than its reader bargained for.
            self.text.try_reserve_exact(missing).map_err(|error| {
                let message = format!("{missing} bytes of memory for the header cannot be allocated");
                Error::new(ErrorKind::Memory, message).with_source(error)
            })?;
        }
        self.text.extend_from_slice(taken);
        Ok(())
    }

    /// The length of the JSON that the prefix says, if it can be one; `rest` is what follows of the file, as far as it is there.
    fn checked_len(&self, prefix: [u8; PREFIX], rest: &[u8]) -> Result<u64> {
        let len = u64::from_le_bytes(prefix);
        let limit = self.options.limit;
        let head: Vec<u8> = prefix.iter().chain(rest.iter().take(HEAD)).copied().collect();
        let room = self.file_size.map(|size| size.saturating_sub(PREFIX as u64));
        let is_too_large = len > limit;
        let is_cut = room.is_some_and(|room| len > room);
        // A length that could be one is taken for what it says, unless what follows is seen, and no header.
        let is_doubtful = is_too_large || !rest.is_empty();
        if let Some(what) = disguise(&head).filter(|_| is_doubtful) {
            let kind = match (is_too_large, is_cut) {
                (true, _) => ErrorKind::HeaderTooLarge,
                (_, true) => ErrorKind::HeaderTruncated,
                _ => ErrorKind::HeaderSyntax,
            };
            return Err(Error::new(kind, format!("it is not safetensors; this is {what}")));
        }
        if is_too_large {
            let hint = if is_header(&head) { "" } else { "; it is not safetensors, or damaged" };
            let message = format!("the header claims {len} bytes, the limit is {limit}{hint}");
            return Err(Error::new(ErrorKind::HeaderTooLarge, message));
        }
        if let Some(room) = room.filter(|_| is_cut) {
            let message = format!(
                "the header claims {len} bytes, but only {room} follow its length: the file is cut short"
            );
            return Err(Error::new(ErrorKind::HeaderTruncated, message));
        }
        Ok(len)
    }

    /// The header, once [`wants`](Self::wants) gives `None`.
    ///
    /// # Errors
    ///
    /// Fails when bytes are missing or the header breaks a rule; see [`ErrorKind`].
    pub fn finish(self) -> Result<Header> {
        let file_size = self.file_size;
        let (parsed, data_start) = self.parse()?;
        Header::prove(parsed, data_start, file_size)
    }

    fn diagnose(self) -> Result<Diagnosis> {
        let file_size = self.file_size;
        let (parsed, data_start) = self.parse()?;
        let header = Header::sorted(parsed, data_start)?;
        let mut errors = Vec::new();
        // That it came to an end makes no difference.
        let _ = header.check(file_size, &mut |error| {
            errors.push(error.clone());
            if errors.len() < Finding::MOST { Ok(()) } else { Err(error) }
        });
        Ok(Diagnosis { findings: header.findings().to_vec(), errors })
    }

    /// The tensors that the text describes, and where their data starts.
    fn parse(self) -> Result<(Parsed, u64)> {
        if let Some(wanted) = self.wants()? {
            let message = format!("the header ends at byte {}, expected {}", wanted.start, wanted.end);
            return Err(Error::new(ErrorKind::HeaderTruncated, message));
        }
        let data_start = PREFIX as u64 + self.text.len() as u64;
        let text = String::from_utf8(self.text).map_err(|error| {
            let position = error.utf8_error().valid_up_to();
            let message = format!("the header is not UTF-8 (byte {position} of the header)");
            Error::new(ErrorKind::HeaderEncoding, message).with_source(error.utf8_error())
        })?;
        Ok((parse::parse(text, self.options.profile)?, data_start))
    }
}
