//! Objects as wholes: written at once, looked at, deleted.

use http::{HeaderMap, Method};
use md5::Md5;
use sha2::{Digest, Sha256};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::{Call, Store, Tag, When};
use crate::address::StoreKind;
use crate::http::exchange::Exchanged;
use crate::http::headers::{content_length, text};
use crate::http::stop::Stop;
use crate::{Error, ErrorKind, Result};

/// What a HEAD says of an object.
pub(super) struct Seen {
    pub(super) tag: Tag,
    pub(super) size: Option<u64>,
    /// The mark of the write that it is of.
    pub(super) mark: Option<String>,
}

impl Store {
    /// The header with which a write is recognised, if its answer is lost.
    pub(super) fn mark_header(&self) -> &'static str {
        match self.kind {
            StoreKind::S3 => "x-amz-meta-weighbridge",
            StoreKind::Google => "x-goog-meta-weighbridge",
            StoreKind::Azure => "x-ms-meta-weighbridge",
        }
    }

    /// With what the store checks that these bytes arrived.
    pub(super) fn checksum(&self, bytes: &[u8]) -> (&'static str, String) {
        match self.kind {
            StoreKind::S3 => ("x-amz-checksum-sha256", BASE64_STANDARD.encode(Sha256::digest(bytes))),
            StoreKind::Google | StoreKind::Azure => {
                ("content-md5", BASE64_STANDARD.encode(<Md5 as md5::Digest>::digest(bytes)))
            }
        }
    }

    /// The precondition of a write.
    pub(super) fn condition(&self, when: &When) -> Option<(&'static str, String)> {
        match (self.kind, when) {
            (_, When::Always) => None,
            (StoreKind::Google, When::Absent) => Some(("x-goog-if-generation-match", "0".to_owned())),
            (StoreKind::Google, When::Unchanged(tag)) => Some(("x-goog-if-generation-match", tag.0.clone())),
            (_, When::Absent) => Some(("if-none-match", "*".to_owned())),
            (_, When::Unchanged(tag)) => Some(("if-match", tag.0.clone())),
        }
    }

    /// The version that headers speak of.
    pub(super) fn tag_of(&self, headers: &HeaderMap) -> Option<Tag> {
        let name = if self.kind == StoreKind::Google { "x-goog-generation" } else { "etag" };
        // What emulates Google's may have no generations, and preconditions neither.
        text(headers, name).or_else(|| text(headers, "etag")).map(|tag| Tag(tag.to_owned()))
    }

    /// What there is of this key, if anything.
    pub(super) fn head(&self, key: &str) -> Result<Option<Seen>> {
        let answer = self.exchange(&Call::new(&Method::HEAD, Some(key)))?;
        if answer.status.as_u16() == 404 {
            let refused = self.refused(&answer);
            return if refused.code.starts_with("NoSuchBucket") || refused.code == "ContainerNotFound" {
                Err(refused.error(self))
            } else {
                Ok(None)
            };
        }
        if !answer.status.is_success() {
            return Err(self.refused(&answer).error(self));
        }
        let headers = &answer.headers;
        let tag = self.tag_of(headers);
        Ok(Some(Seen {
            tag: tag.ok_or_else(|| Error::new(ErrorKind::Malformed, "the store gives the object no tag"))?,
            size: content_length(headers),
            mark: text(headers, self.mark_header()).map(Into::into),
        }))
    }

    pub(crate) fn tag(&self, key: &str) -> Result<Option<Tag>> {
        Ok(self.head(key)?.map(|seen| seen.tag))
    }

    /// Writes an object with one request.
    pub(crate) fn put(&self, key: &str, bytes: &[u8], when: &When, stop: Option<&Stop>) -> Result<Tag> {
        let mark = Self::mark();
        let mut headers = vec![
            (self.mark_header(), mark.clone()),
            ("content-type", "application/octet-stream".to_owned()),
            self.checksum(bytes),
        ];
        if self.kind == StoreKind::Azure {
            headers.push(("x-ms-blob-type", "BlockBlob".to_owned()));
        }
        headers.extend(self.condition(when));
        headers.extend(self.written.iter().cloned());
        let call = Call { headers: &headers, body: Some(bytes), stop, ..Call::new(&Method::PUT, Some(key)) };
        let answer = self.exchange(&call);
        self.outcome(answer, key, bytes.len() as u64, &mark, when, |answer| self.tag_of(&answer.headers))
    }

    /// What a write came to: its answer may have been lost, or be of its own second attempt.
    pub(super) fn outcome(
        &self,
        answer: Result<Exchanged>,
        key: &str,
        size: u64,
        mark: &str,
        when: &When,
        tag: impl FnOnce(&Exchanged) -> Option<Tag>,
    ) -> Result<Tag> {
        let landed = || self.landed(key, size, mark);
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) if error.kind() == ErrorKind::Io => return landed().ok_or(error),
            Err(error) => return Err(error),
        };
        if answer.status.is_success() && !super::xml::is(&answer.body, "Error") {
            return match tag(&answer) {
                Some(tag) => Ok(tag),
                None => landed().ok_or_else(|| {
                    Error::new(ErrorKind::Malformed, "the store did not say what it has written")
                }),
            };
        }
        let refused = self.refused(&answer);
        // What looks like another's write may be our own, of which no answer came.
        if answer.unsure
            && (refused.is_precondition() || refused.is_over())
            && let Some(tag) = landed()
        {
            return Ok(tag);
        }
        let absent =
            matches!(when, When::Unchanged(_)) && answer.status.as_u16() == 404 && !refused.is_over();
        match (refused.is_precondition() || absent && refused.code != "NoSuchBucket", when) {
            (true, When::Absent) => {
                Err(Error::new(ErrorKind::Changed, "it exists already, and nothing was written"))
            }
            (true, When::Unchanged(_)) => Err(Error::new(
                ErrorKind::Changed,
                "another has written or deleted it meanwhile, and nothing was written",
            )),
            _ => Err(refused.error(self)),
        }
    }

    /// The version that a write of ours has made, if it is there.
    fn landed(&self, key: &str, size: u64, mark: &str) -> Option<Tag> {
        let seen = self.head(key).ok()??;
        (seen.size == Some(size) && seen.mark.as_deref() == Some(mark)).then_some(seen.tag)
    }

    /// Deletes an object. That there is none is no error.
    pub(crate) fn delete(&self, key: &str) -> Result<()> {
        let answer = self.exchange(&Call::new(&Method::DELETE, Some(key)))?;
        let refused = self.refused(&answer);
        let absent = answer.status.as_u16() == 404
            && !matches!(refused.code.as_str(), "NoSuchBucket" | "ContainerNotFound");
        match answer.status.is_success() || absent {
            true => Ok(()),
            false => Err(refused.error(self)),
        }
    }

    /// Tries whether the store refuses what a precondition forbids, with an object of its own of this key.
    pub(crate) fn honours_preconditions(&self, key: &str) -> Result<bool> {
        let first = self.put(key, b"1", &When::Always, None)?;
        let refused = |when: &When| match self.put(key, b"2", when, None) {
            Ok(_) => Ok(false),
            Err(error) if error.kind() == ErrorKind::Changed => Ok(true),
            // That it is not supported is told, which is all that is asked for; but then it cannot be relied on.
            Err(error) if matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::Malformed) => Ok(false),
            Err(error) => Err(error),
        };
        let found = refused(&When::Absent).and_then(|absent| {
            // Of the first version there is nothing any more after this one.
            self.put(key, b"3", &When::Always, None)?;
            Ok(absent && refused(&When::Unchanged(first))?)
        });
        let deleted = self.delete(key);
        let found = found?;
        deleted?;
        Ok(found)
    }
}
