//! Files of web servers.

use std::sync::{Mutex, MutexGuard, PoisonError};

use http::{HeaderMap, StatusCode, Uri};

use crate::address::WebAddress;
use crate::http::headers::server_wait;
use crate::http::origin::{Origin, Wanted};
use crate::http::redirect::{origin_of, target};
use crate::http::stop::Stop;
use crate::http::{Asked, Http};
use crate::{Error, ErrorKind, Result};

/// A file at a URL, which may send on to another.
pub(crate) struct WebFile {
    http: Http,
    address: String,
    first: Uri,
    found: Mutex<Found>,
}

/// Where the server sent on to, and how often that was found anew.
#[derive(Default)]
struct Found {
    place: Option<(Uri, bool)>,
    version: u64,
}

impl WebFile {
    pub(crate) fn new(http: Http, address: &WebAddress) -> Result<Self> {
        let first =
            address.url().parse().map_err(|_| Error::new(ErrorKind::Address, "the URL is malformed"))?;
        Ok(Self { http, address: address.to_string(), first, found: Mutex::default() })
    }

    fn found(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, wanted: &Wanted<'_>, uri: &Uri, guarded: bool, version: u64) -> Result<Asked> {
        let mut request = wanted.get(uri)?;
        // A weak tag never matches, as servers have to compare them here.
        let strong = wanted.tag.filter(|tag| tag.starts_with('"'));
        if let Some(value) = strong.and_then(|tag| tag.parse().ok()) {
            request.headers_mut().insert("if-match", value);
        }
        Ok(Asked { request, guarded, version })
    }
}

impl Origin for WebFile {
    fn address(&self) -> &str {
        &self.address
    }

    fn ask(&self, wanted: &Wanted<'_>, _: &Stop) -> Result<Asked> {
        let found = self.found();
        let (uri, guarded) = found.place.clone().unwrap_or_else(|| (self.first.clone(), false));
        self.get(wanted, &uri, guarded, found.version)
    }

    fn redirected(&self, wanted: &Wanted<'_>, from: &Uri, headers: &HeaderMap) -> Result<Asked> {
        let next = target(from, headers)?;
        let guarded = origin_of(&next) != origin_of(&self.first) && !self.http.is_private(&self.first);
        let mut found = self.found();
        found.place = Some((next.clone(), guarded));
        self.get(wanted, &next, guarded, found.version)
    }

    fn renew(&self, version: u64) -> bool {
        let mut found = self.found();
        if found.version == version {
            // What was sent on to may have been signed for a time.
            if found.place.take().is_none() {
                return false;
            }
            found.version += 1;
        }
        true
    }

    fn explain(&self, status: StatusCode, headers: &HeaderMap, _: &[u8]) -> Error {
        let code = status.as_u16();
        let (kind, message) = match code {
            404 | 410 => (ErrorKind::NotFound, format!("no such file ({code})")),
            401 | 403 => (
                ErrorKind::Denied,
                format!("access denied ({code}); no password or token is sent to this server"),
            ),
            429 | 503 => {
                let wait = server_wait(headers, std::time::SystemTime::now());
                let wait =
                    wait.map(|wait| format!("; it asks to wait {} s", wait.as_secs())).unwrap_or_default();
                (ErrorKind::Io, format!("the server has too much to do ({code}){wait}"))
            }
            500.. => (ErrorKind::Io, format!("the server failed ({code})")),
            _ => (ErrorKind::Malformed, format!("the server answered {code}")),
        };
        Error::new(kind, message)
    }
}
