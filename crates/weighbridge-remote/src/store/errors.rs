//! What a store's refusals mean, and what to do.

use http::{HeaderMap, StatusCode};

use super::Store;
use super::xml::{self, Refusal};
use crate::address::StoreKind;
use crate::http::headers::text;
use crate::{Error, ErrorKind};

/// A refusal, its code among those that stores have.
pub(super) struct Refused {
    status: u16,
    pub(super) code: String,
    region: Option<String>,
    endpoint: Option<String>,
}

/// A word of a server's that may be shown.
fn word(text: &str) -> Option<String> {
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    ((1..=80).contains(&text.len()) && text.chars().all(good)).then(|| text.to_owned())
}

impl Refused {
    pub(super) fn read(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Self {
        let said: Refusal = xml::parse(body).unwrap_or_default();
        let code = text(headers, "x-ms-error-code").map(Into::into).or(said.code);
        let region = text(headers, "x-amz-bucket-region").map(Into::into).or(said.region);
        Self {
            status: status.as_u16(),
            code: code.and_then(|code| word(&code)).unwrap_or_default(),
            region: region.and_then(|region| word(&region)),
            endpoint: said.endpoint.and_then(|endpoint| word(&endpoint)),
        }
    }

    /// Whether the same request may fare better later.
    pub(super) fn may_pass(&self) -> bool {
        let codes = [
            "BadDigest",
            "ConditionalRequestConflict",
            "InternalError",
            "Md5Mismatch",
            "OperationAborted",
            "OperationTimedOut",
            "RequestTimeout",
            "ServerBusy",
            "ServiceUnavailable",
            "SlowDown",
            "XAmzContentChecksumMismatch",
            "XAmzContentSHA256Mismatch",
        ];
        codes.contains(&self.code.as_str())
    }

    /// Whether a precondition did not hold.
    pub(super) fn is_precondition(&self) -> bool {
        self.status == 412 || (self.status == 409 && self.code == "BlobAlreadyExists")
    }

    /// Whether a multipart upload is not, or no longer, under way.
    pub(super) fn is_over(&self) -> bool {
        self.code == "NoSuchUpload" || (self.status == 404 && self.code.is_empty())
    }

    fn shown(&self) -> String {
        match self.code.is_empty() {
            true => self.status.to_string(),
            false => format!("{} {}", self.status, self.code),
        }
    }

    pub(super) fn error(&self, store: &Store) -> Error {
        let shown = self.shown();
        let bucket = &store.bucket;
        let (kind, message) = match (self.status, self.code.as_str()) {
            (_, "NoSuchBucket" | "ContainerNotFound") => {
                (ErrorKind::NotFound, format!("no such bucket: {bucket} ({shown})"))
            }
            (_, "NoSuchUpload") => {
                (ErrorKind::NotFound, format!("the upload is over, or was aborted by another ({shown})"))
            }
            (404 | 410, _) => (ErrorKind::NotFound, format!("no such object ({shown})")),
            (300..=399, _)
            | (
                _,
                "AuthorizationHeaderMalformed" | "PermanentRedirect" | "IllegalLocationConstraintException",
            ) if store.kind == StoreKind::S3 => (ErrorKind::Address, self.elsewhere(store)),
            (300..=399, _) => {
                (ErrorKind::Unsupported, format!("the store sends elsewhere ({shown}); set its endpoint"))
            }
            (_, "ExpiredToken" | "TokenRefreshRequired" | "ExpiredTokenException") => (
                ErrorKind::Denied,
                format!("the credentials have expired ({shown}); {}", store.access.how_to_renew()),
            ),
            (_, "RequestTimeTooSkewed") => {
                (ErrorKind::Denied, format!("this machine's clock is wrong by minutes ({shown}); set it"))
            }
            (_, "InvalidAccessKeyId") => (
                ErrorKind::Denied,
                format!(
                    "the store does not know the access key ({shown}); credentials from {}",
                    store.access.from()
                ),
            ),
            (_, "SignatureDoesNotMatch" | "InvalidToken") => (
                ErrorKind::Denied,
                format!(
                    "the secret key or the token is wrong ({shown}); credentials from {}",
                    store.access.from()
                ),
            ),
            (401 | 403, _) => {
                (ErrorKind::Denied, format!("access denied ({shown}); {}", store.access.hint()))
            }
            (409 | 412, _) => {
                (ErrorKind::Changed, format!("another has written it meanwhile ({shown}); nothing was done"))
            }
            (429 | 503, _) | (_, "SlowDown" | "ServerBusy") => {
                (ErrorKind::Io, format!("the store has too much to do ({shown})"))
            }
            (405 | 501, _) => (ErrorKind::Unsupported, format!("the store does not support this ({shown})")),
            (500.., _) | (_, "InternalError") => (ErrorKind::Io, format!("the store failed ({shown})")),
            (
                _,
                "BadDigest" | "Md5Mismatch" | "XAmzContentSHA256Mismatch" | "XAmzContentChecksumMismatch",
            ) => (ErrorKind::Checksum, format!("other bytes arrived than were sent ({shown})")),
            (_, "RequestTimeout" | "OperationTimedOut" | "OperationAborted") => {
                (ErrorKind::Io, format!("the store gave up ({shown})"))
            }
            _ => (ErrorKind::Malformed, format!("the store answered {shown}")),
        };
        Error::new(kind, message)
    }

    fn elsewhere(&self, store: &Store) -> String {
        let (bucket, shown, ours) = (&store.bucket, self.shown(), &store.region);
        match (&self.region, &self.endpoint) {
            (Some(region), _) if region != ours => {
                format!("the bucket is in region {region}, not {ours} ({shown}): set AWS_REGION={region}")
            }
            (_, Some(endpoint)) => format!(
                "bucket {bucket} is to be asked for at {endpoint} ({shown}): set AWS_REGION or AWS_ENDPOINT_URL"
            ),
            _ => format!("bucket {bucket} is not in region {ours} ({shown}): set AWS_REGION"),
        }
    }
}
