//! Small requests: listings, and where a file is. Their answers are read whole.

use http::{HeaderMap, Method, Request, StatusCode, Uri};

use super::failure::Failure;
use super::redirect::{Auth, MOST, host_of, is_redirect, target};
use super::stop::Stop;
use super::{Asked, Http};
use crate::{Error, ErrorKind, Result};

/// A small request.
pub(crate) struct Visit<'a> {
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) auth: &'a Auth,
    /// A redirect to a server that `auth` does not know is an answer, not to be followed.
    pub(crate) stay: bool,
    /// Reads wait for it, that have begun.
    pub(crate) begun: bool,
    /// The longest answer that is read.
    pub(crate) most: u64,
}

/// Its answer, after redirects, and from where.
pub(crate) struct Visited {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
    pub(crate) uri: Uri,
}

impl Http {
    /// Sends it until there is an answer that is neither an overload nor broken.
    pub(crate) fn visit(
        &self,
        visit: &Visit<'_>,
        explain: &dyn Fn(StatusCode, &HeaderMap, &[u8]) -> Error,
        stop: &Stop,
    ) -> Result<Visited> {
        let mut budget = self.budget(visit.begun);
        loop {
            match self.try_visit(visit, explain, stop) {
                Ok(visited) => return Ok(visited),
                Err(failure) => self.after(failure, &mut budget, stop)?,
            }
        }
    }

    fn try_visit(
        &self,
        visit: &Visit<'_>,
        explain: &dyn Fn(StatusCode, &HeaderMap, &[u8]) -> Error,
        stop: &Stop,
    ) -> std::result::Result<Visited, Failure> {
        let mut uri = visit.uri.clone();
        let mut guarded = false;
        for _ in 0..=MOST {
            let mut request = Request::builder().method(visit.method.clone()).uri(&uri);
            if let Some(header) = visit.auth.header(&uri) {
                request = request.header("authorization", header);
            }
            let request = request
                .body(())
                .map_err(|_| Failure::fatal(Error::new(ErrorKind::Address, "the URL is malformed")))?;
            let mut answer = self.send(Asked { request, guarded, version: 0 }, stop)?;
            let (status, headers) = (answer.status, answer.headers.clone());
            if is_redirect(status) {
                let next = target(&uri, &headers).map_err(Failure::fatal)?;
                if !visit.stay || visit.auth.knows(&next) {
                    answer.excerpt(self, stop);
                    guarded = !visit.auth.knows(&next) && !self.is_private(&visit.uri);
                    uri = next;
                    continue;
                }
            }
            if status.is_success() || is_redirect(status) {
                let none = visit.method == Method::HEAD || is_redirect(status);
                let body = match none {
                    true => answer.excerpt_of_none(self, stop),
                    false => answer.whole(self, visit.most, stop)?,
                };
                answer.accepted();
                return Ok(Visited { status, headers, body, uri });
            }
            let body = if visit.method == Method::HEAD { Vec::new() } else { answer.excerpt(self, stop) };
            if let Some(failure) = answer.overload(|| explain(status, &headers, &body)) {
                return Err(failure);
            }
            return Ok(Visited { status, headers, body, uri });
        }
        Err(Failure::fatal(too_many(&visit.uri)))
    }
}

/// The error of a server that sends on and on.
pub(crate) fn too_many(uri: &Uri) -> Error {
    Error::new(ErrorKind::Malformed, format!("{} redirects more than {MOST} times", host_of(uri)))
}

impl super::Answer {
    /// Reads what has nothing to read, so that the connection can be used again.
    fn excerpt_of_none(&mut self, http: &Http, stop: &Stop) -> Vec<u8> {
        self.excerpt(http, stop);
        Vec::new()
    }
}
