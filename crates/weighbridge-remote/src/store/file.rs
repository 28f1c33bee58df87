//! An object that is read by ranges, each signed, all of one version.

use std::sync::{Arc, OnceLock};

use http::{HeaderMap, StatusCode, Uri};

use super::errors::Refused;
use super::{EMPTY, Store};
use crate::address::StoreKind;
use crate::http::Asked;
use crate::http::headers::text;
use crate::http::origin::{Origin, Wanted};
use crate::http::stop::Stop;
use crate::{Error, Result};

pub(crate) struct StoreFile {
    store: Arc<Store>,
    address: String,
    uri: Uri,
    /// Google's number of the version that was opened.
    generation: OnceLock<String>,
}

impl StoreFile {
    pub(crate) fn new(store: &Arc<Store>, key: &str) -> Result<Self> {
        Ok(Self {
            uri: store.uri(Some(key), &[])?,
            address: store.address(key),
            store: store.clone(),
            generation: OnceLock::new(),
        })
    }
}

impl Origin for StoreFile {
    fn address(&self) -> &str {
        &self.address
    }

    fn ask(&self, wanted: &Wanted<'_>, _: &Stop) -> Result<Asked> {
        let mut request = wanted.get(&self.uri)?;
        let headers = request.headers_mut();
        match (self.store.kind, self.generation.get(), wanted.tag) {
            (StoreKind::Google, Some(generation), Some(_)) => {
                if let Ok(value) = generation.parse() {
                    headers.insert("x-goog-if-generation-match", value);
                }
            }
            // A weak tag never matches, as servers have to compare them here.
            (_, _, Some(tag)) if !tag.starts_with("W/") => {
                if let Ok(value) = tag.parse() {
                    headers.insert("if-match", value);
                }
            }
            _ => {}
        }
        self.store.sign(request, &EMPTY)
    }

    fn redirected(&self, _: &Wanted<'_>, _: &Uri, headers: &HeaderMap) -> Result<Asked> {
        Err(Refused::read(StatusCode::MOVED_PERMANENTLY, headers, &[]).error(&self.store))
    }

    fn renew(&self, version: u64) -> bool {
        self.store.access.renew(version)
    }

    fn explain(&self, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Error {
        Refused::read(status, headers, body).error(&self.store)
    }

    fn answered(&self, headers: &HeaderMap) {
        if let Some(generation) = text(headers, "x-goog-generation") {
            let _ = self.generation.set(generation.to_owned());
        }
    }
}
