//! What differs between servers: how a file is asked for, and what their refusals mean.

use std::ops::Range;

use http::{HeaderMap, Request, StatusCode, Uri};

use super::Asked;
use super::stop::Stop;
use crate::{Error, ErrorKind, Result};

/// Bytes of a file, and which version of it.
pub(crate) struct Wanted<'a> {
    pub(crate) range: Range<u64>,
    /// The entity tag that the first answer had.
    pub(crate) tag: Option<&'a str>,
}

impl Wanted<'_> {
    /// A GET of these bytes. The tag is left to who knows what this server does with it.
    pub(crate) fn get(&self, uri: &Uri) -> Result<Request<()>> {
        Request::get(uri)
            .header("range", format!("bytes={}-{}", self.range.start, self.range.end - 1))
            .body(())
            .map_err(|_| Error::new(ErrorKind::Address, "the URL is malformed"))
    }
}

/// How a file is asked for.
pub(crate) trait Origin: Send + Sync {
    /// The file, for people.
    fn address(&self) -> &str;

    /// A GET of these bytes, signed and valid now. It may ask a server where the file is.
    fn ask(&self, wanted: &Wanted<'_>, stop: &Stop) -> Result<Asked>;

    /// The server sends elsewhere: what to ask there.
    fn redirected(&self, wanted: &Wanted<'_>, from: &Uri, headers: &HeaderMap) -> Result<Asked>;

    /// The server refused what it has to grant (400, 401, 403, 410): whether [`Self::ask`] has, or will have,
    /// another URL or signature than that of this version.
    fn renew(&self, version: u64) -> bool;

    /// Whether another version of the file's place may tag the same content otherwise.
    fn tags_anew(&self) -> bool {
        false
    }

    /// The error that a status is.
    fn explain(&self, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Error;

    /// Whether the server is known to serve ranges, of all files that are not empty.
    fn serves_ranges(&self) -> bool {
        false
    }

    /// What else the first answer's headers say of the file.
    fn answered(&self, _headers: &HeaderMap) {}

    /// The tag of the file's content, where it is known from elsewhere than the answers' `ETag`.
    fn tag(&self) -> Option<String> {
        None
    }

    /// Its size, where that is known from elsewhere.
    fn size(&self) -> Option<u64> {
        None
    }
}
