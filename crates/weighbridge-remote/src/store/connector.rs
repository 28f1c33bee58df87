//! Requests for credentials, which object_store makes and we send.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use http::Uri;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
};

use crate::http::Http;
use crate::http::exchange::{Asker, Exchanged};
use crate::http::redirect::host_of;
use crate::http::stop::Stop;
use crate::retry::Patience;
use crate::{Error, ErrorKind, Result};

/// What the last request for credentials came to, if it came to nothing.
#[derive(Clone, Debug, Default)]
pub(super) struct Note(Arc<Mutex<Option<String>>>);

impl Note {
    pub(super) fn take(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn set(&self, note: String) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(note);
    }
}

/// Connects by our own client.
#[derive(Clone)]
pub(super) struct Connector {
    /// For token services.
    pub(super) http: Http,
    /// For what answers within the machine's own network, at once or never: never by a proxy.
    pub(super) metadata: Http,
    pub(super) note: Note,
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connector")
    }
}

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

/// A request that somebody else made and signed.
struct Made<'a>(&'a http::request::Parts);

impl Asker for Made<'_> {
    fn ask(&self) -> Result<crate::http::Asked> {
        let mut request = http::Request::new(());
        request.method_mut().clone_from(&self.0.method);
        request.uri_mut().clone_from(&self.0.uri);
        request.headers_mut().clone_from(&self.0.headers);
        Ok(crate::http::Asked { request, guarded: false, version: 0 })
    }

    fn renew(&self, _: u64) -> bool {
        false
    }

    fn explain(&self, answer: &Exchanged) -> Error {
        Error::new(ErrorKind::Io, format!("{} answered {}", host_of(&self.0.uri), answer.status.as_u16()))
    }

    fn may_pass(&self, _: &Exchanged) -> bool {
        false
    }
}

fn is_metadata(uri: &Uri) -> bool {
    let host = uri.host().unwrap_or_default();
    host.starts_with("169.254.")
        || host.starts_with("[fd00:ec2::")
        || host == "metadata.google.internal"
        || host == "metadata"
}

#[async_trait]
impl HttpService for Connector {
    /// It blocks; nothing else runs on this thread.
    async fn call(&self, request: HttpRequest) -> std::result::Result<HttpResponse, HttpError> {
        let (parts, body) = request.into_parts();
        let bytes = body.as_bytes().cloned().unwrap_or_default();
        let none = bytes.is_empty() && matches!(parts.method.as_str(), "GET" | "HEAD" | "DELETE");
        let here = is_metadata(&parts.uri);
        let http = if here { &self.metadata } else { &self.http };
        let patience = here.then(|| Patience { attempts: 2, ..Patience::default() });
        let body = (!none).then_some(&bytes[..]);
        let answer = http.exchange(&Made(&parts), body, patience, &Stop::never()).map_err(|error| {
            self.note.set(error.message().to_owned());
            HttpError::new(HttpErrorKind::Unknown, error)
        })?;
        if !answer.status.is_success() {
            self.note.set(format!("{} answered {}", host_of(&parts.uri), answer.status.as_u16()));
        }
        let mut response = HttpResponse::new(answer.body.into());
        *response.status_mut() = answer.status;
        *response.headers_mut() = answer.headers;
        Ok(response)
    }
}
