//! Objects written in parts, by several threads.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::Method;

use super::{Call, Store, Tag, When, xml};
use crate::address::StoreKind;
use crate::http::headers::text;
use crate::http::stop::Interrupts;
use crate::retry::Patience;
use crate::{Error, ErrorKind, Result};

const MIB: u64 = 1 << 20;
/// S3 and Google allow 10,000 parts of at least 5 MiB.
const MOST_PARTS: u64 = 9_000;
/// What they allow in one part.
const LARGEST: u64 = 5 << 30;

/// An object that is being written. It exists when [`complete`](Self::complete) has succeeded, and not before. Dropped
/// without that, the upload is aborted, which takes a few seconds at most if the store does not answer.
///
/// Of a process that is killed the store keeps the parts, which nobody sees: see
/// [`Place::abort_stale`](crate::Place::abort_stale).
pub struct Upload {
    store: Arc<Store>,
    key: String,
    size: u64,
    part_size: u64,
    how: How,
    /// By which the object is recognised as that of this upload.
    mark: String,
    parts: Mutex<Vec<Option<Part>>>,
    over: bool,
    interrupts: Interrupts,
}

enum How {
    /// One request at the end.
    Whole,
    /// A multipart upload of S3 or Google with this id.
    Multipart(String),
    /// Blocks of Azure, which need no beginning.
    Blocks,
}

/// A part that has arrived.
#[derive(Clone)]
enum Part {
    Kept(Vec<u8>),
    Sent { tag: String, checksum: Option<String> },
    Block,
}

/// The size of the parts of an upload: all but the last have it.
fn part_size(size: u64) -> u64 {
    (16 * MIB).max(size.div_ceil(MOST_PARTS).div_ceil(MIB) * MIB)
}

impl Upload {
    pub(crate) fn start(store: &Arc<Store>, key: &str, size: u64) -> Result<Self> {
        let part_size = part_size(size);
        if part_size > LARGEST {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("{size} bytes are too many for one object"),
            ));
        }
        let mark = Store::mark();
        let how = match store.kind {
            _ if size <= part_size => How::Whole,
            StoreKind::Azure => How::Blocks,
            StoreKind::S3 | StoreKind::Google => How::Multipart(begin(store, key, &mark)?),
        };
        let parts = usize::try_from(size.div_ceil(part_size).max(1))
            .map_err(|_| Error::new(ErrorKind::Unsupported, "it has too many parts"))?;
        Ok(Self {
            store: store.clone(),
            key: key.to_owned(),
            size,
            part_size,
            over: matches!(how, How::Whole | How::Blocks),
            how,
            mark,
            parts: Mutex::new(vec![None; parts]),
            interrupts: Interrupts::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Option<Part>>> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn named(&self, error: Error) -> Error {
        error.at(&self.store.address(&self.key))
    }

    /// The object's address, for people.
    pub fn address(&self) -> String {
        self.store.address(&self.key)
    }

    /// The length in bytes of every part but the last, which has what is left.
    pub fn part_size(&self) -> u64 {
        self.part_size
    }

    /// How many parts there are: at least one.
    pub fn parts(&self) -> usize {
        self.lock().len()
    }

    fn length_of(&self, number: usize) -> u64 {
        let start = number as u64 * self.part_size;
        self.size.saturating_sub(start).min(self.part_size)
    }

    /// Sends a part; they are numbered from 0. In any order, by several threads, and again if that is of use: the last one
    /// counts. A copy is kept only where the whole object is one part.
    pub fn part(&self, number: usize, bytes: &[u8]) -> Result<()> {
        let parts = self.parts();
        if number >= parts {
            let message = format!("it has no part {number}, for there are {parts}");
            return Err(self.named(Error::new(ErrorKind::Malformed, message)));
        }
        if bytes.len() as u64 != self.length_of(number) {
            let message =
                format!("part {number} has {} bytes instead of {}", bytes.len(), self.length_of(number));
            return Err(self.named(Error::new(ErrorKind::Malformed, message)));
        }
        let part = match &self.how {
            How::Whole => Part::Kept(bytes.to_vec()),
            How::Multipart(id) => self.send_part(id, number, bytes).map_err(|error| self.named(error))?,
            How::Blocks => self.send_block(number, bytes).map_err(|error| self.named(error))?,
        };
        self.lock()[number] = Some(part);
        Ok(())
    }

    fn send_part(&self, id: &str, number: usize, bytes: &[u8]) -> Result<Part> {
        let number = (number + 1).to_string();
        let query = [("partNumber", number.as_str()), ("uploadId", id)];
        let headers = [self.store.checksum(bytes)];
        let stop = self.interrupts.watch();
        let answer = self.store.done(&Call {
            query: &query,
            headers: &headers,
            body: Some(bytes),
            stop: Some(&stop),
            ..Call::new(&Method::PUT, Some(&self.key))
        })?;
        let tag = text(&answer.headers, "etag").filter(|tag| tag.bytes().all(|b| b.is_ascii_graphic()));
        let tag = tag
            .ok_or_else(|| Error::new(ErrorKind::Malformed, "the store gives the part no tag"))?
            .to_owned();
        let [(_, checksum)] = headers;
        Ok(Part::Sent { tag, checksum: (self.store.kind == StoreKind::S3).then_some(checksum) })
    }

    fn block_id(&self, number: usize) -> String {
        BASE64_STANDARD.encode(format!("{}{number:06}", self.mark))
    }

    fn send_block(&self, number: usize, bytes: &[u8]) -> Result<Part> {
        let id = self.block_id(number);
        let stop = self.interrupts.watch();
        self.store.done(&Call {
            query: &[("comp", "block"), ("blockid", &id)],
            headers: &[self.store.checksum(bytes)],
            body: Some(bytes),
            stop: Some(&stop),
            ..Call::new(&Method::PUT, Some(&self.key))
        })?;
        Ok(Part::Block)
    }

    /// Wakes all that is being sent, with [`ErrorKind::Cancelled`], at once.
    pub fn interrupt(&self) {
        self.interrupts.interrupt();
        self.store.http.shut_down();
    }

    /// Makes the object of its parts, if the precondition holds, and says which version it is.
    ///
    /// Where the answer is lost, the store is asked whether the object is that of this upload.
    pub fn complete(mut self, when: When) -> Result<Tag> {
        let parts = self.lock().clone();
        let done = self.make(parts, &when);
        // What was completed is over; so is what somebody else ended.
        self.over = self.over || done.is_ok();
        done.map_err(|error| self.named(error))
    }

    fn make(&self, mut parts: Vec<Option<Part>>, when: &When) -> Result<Tag> {
        let missing = || Error::new(ErrorKind::Malformed, "not all parts were sent");
        let stop = self.interrupts.watch();
        match &self.how {
            How::Whole => match parts.pop().flatten() {
                Some(Part::Kept(bytes)) => self.store.put(&self.key, &bytes, when, Some(&stop)),
                None if self.size == 0 => self.store.put(&self.key, &[], when, Some(&stop)),
                _ => Err(missing()),
            },
            How::Blocks => {
                if parts.iter().any(Option::is_none) {
                    return Err(missing());
                }
                let blocks = (0..parts.len()).map(|n| format!("<Latest>{}</Latest>", self.block_id(n)));
                let body =
                    format!("<?xml version=\"1.0\"?><BlockList>{}</BlockList>", blocks.collect::<String>());
                let mut headers = vec![
                    ("content-type", "text/xml".to_owned()),
                    ("x-ms-blob-content-type", "application/octet-stream".to_owned()),
                    (self.store.mark_header(), self.mark.clone()),
                ];
                headers.extend(self.store.condition(when));
                let answer = self.store.exchange(&Call {
                    query: &[("comp", "blocklist")],
                    headers: &headers,
                    body: Some(body.as_bytes()),
                    stop: Some(&stop),
                    ..Call::new(&Method::PUT, Some(&self.key))
                });
                self.store.outcome(answer, &self.key, self.size, &self.mark, when, |answer| {
                    self.store.tag_of(&answer.headers)
                })
            }
            How::Multipart(id) => {
                let mut body = "<CompleteMultipartUpload>".to_owned();
                for (number, part) in (1..).zip(parts) {
                    let Some(Part::Sent { tag, checksum }) = part else { return Err(missing()) };
                    let tag = quick_xml::escape::escape(&tag);
                    body.push_str(&format!("<Part><ETag>{tag}</ETag><PartNumber>{number}</PartNumber>"));
                    if let Some(checksum) = checksum {
                        body.push_str(&format!("<ChecksumSHA256>{checksum}</ChecksumSHA256>"));
                    }
                    body.push_str("</Part>");
                }
                body.push_str("</CompleteMultipartUpload>");
                let mut headers = vec![("content-type", "application/xml".to_owned())];
                headers.extend(self.store.condition(when));
                let answer = self.store.exchange(&Call {
                    query: &[("uploadId", id)],
                    headers: &headers,
                    body: Some(body.as_bytes()),
                    stop: Some(&stop),
                    ..Call::new(&Method::POST, Some(&self.key))
                });
                self.store.outcome(answer, &self.key, self.size, &self.mark, when, |answer| {
                    match self.store.kind {
                        StoreKind::Google => {
                            text(&answer.headers, "x-goog-generation").map(|tag| Tag(tag.to_owned()))
                        }
                        _ => xml::parse::<xml::Completed>(&answer.body).ok().map(|done| Tag(done.tag)),
                    }
                })
            }
        }
    }

    /// Gives it up. What was sent is deleted, as far as the store can be reached.
    pub fn abort(self) {
        drop(self);
    }
}

/// Begins a multipart upload, and says its id.
fn begin(store: &Store, key: &str, mark: &str) -> Result<String> {
    let mut headers =
        vec![(store.mark_header(), mark.to_owned()), ("content-type", "application/octet-stream".to_owned())];
    if store.kind == StoreKind::S3 {
        headers.push(("x-amz-checksum-algorithm", "SHA256".to_owned()));
    }
    headers.extend(store.written.iter().cloned());
    let answer = store.done(&Call {
        query: &[("uploads", "")],
        headers: &headers,
        body: Some(&[]),
        ..Call::new(&Method::POST, Some(key))
    })?;
    Ok(xml::parse::<xml::Initiated>(&answer.body)?.upload_id)
}

impl Store {
    /// Ends a multipart upload. That there is none is no error.
    pub(super) fn abort_upload(&self, key: &str, id: &str, patience: Option<Patience>) -> Result<()> {
        let query = [("uploadId", id)];
        let answer =
            self.exchange(&Call { query: &query, patience, ..Call::new(&Method::DELETE, Some(key)) })?;
        match answer.status.is_success() || answer.status.as_u16() == 404 {
            true => Ok(()),
            false => Err(self.refused(&answer).error(self)),
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let (false, How::Multipart(id)) = (self.over, &self.how) {
            let time = Duration::from_secs(5);
            let patience = Patience { attempts: 3, time, server_wait: time };
            let _ = self.store.abort_upload(&self.key, id, Some(patience));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_parts() {
        assert_eq!(part_size(0), 16 * MIB);
        assert_eq!(part_size(9_000 * 16 * MIB), 16 * MIB);
        assert_eq!(part_size(9_000 * 16 * MIB + 1), 17 * MIB);
        let size = 5_u64 << 40;
        assert!(size.div_ceil(part_size(size)) <= 9_000 && part_size(size) <= LARGEST);
    }
}
