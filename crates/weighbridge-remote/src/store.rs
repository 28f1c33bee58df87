//! Object stores: S3 and what speaks its protocol, Google Cloud Storage by its XML interface, Azure blobs.
//!
//! Credentials and signatures are object_store's; requests are ours, so that all of them have the same patience.

mod access;
mod connector;
mod errors;
mod file;
mod list;
mod object;
mod options;
mod upload;
mod xml;

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use http::{HeaderValue, Method, Request, Uri};
use sha2::{Digest, Sha256};

pub(crate) use self::file::StoreFile;
pub(crate) use self::options::StoreOptions;
pub use self::upload::Upload;

use self::access::Access;
use self::connector::{Connector, Note};
use self::errors::Refused;
use crate::address::{StoreAddress, StoreKind};
use crate::encode::{encode_path, encode_segment};
use crate::http::exchange::{Asker, Exchanged};
use crate::http::redirect::is_plain;
use crate::http::resolve::is_loopback;
use crate::http::stop::Stop;
use crate::http::{Asked, Http};
use crate::retry::Patience;
use crate::{Error, ErrorKind, Result};

/// The sha256 of nothing.
const EMPTY: [u8; 32] = [
    0xe3, 0xb0, 0xc4, 0x42, 0x98, 0xfc, 0x1c, 0x14, 0x9a, 0xfb, 0xf4, 0xc8, 0x99, 0x6f, 0xb9, 0x24, 0x27,
    0xae, 0x41, 0xe4, 0x64, 0x9b, 0x93, 0x4c, 0xa4, 0x95, 0x99, 0x1b, 0x78, 0x52, 0xb8, 0x55,
];
/// What has the sizes of block ids and checks of all requests to Azure. Older ones know no such blocks.
const AZURE_VERSION: &str = "2023-11-03";

/// A version of an object: an entity tag, or a generation on Google's.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tag(pub(super) String);

impl Tag {
    /// One that was kept, as [`as_str`](Self::as_str) had it; `None`: no store has such tags.
    pub fn new(text: &str) -> Option<Self> {
        let good = !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
        good.then(|| Self(text.to_owned()))
    }

    /// As the store has it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// When an object is to be written. Whether a store keeps to it,
/// [`Place::honours_preconditions`](crate::Place::honours_preconditions) finds out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum When {
    /// Whatever is there.
    Always,
    /// If there is none of that name.
    Absent,
    /// If it is still this version.
    Unchanged(Tag),
}

/// An object of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name in the place that was listed.
    pub name: String,
    /// Its length in bytes.
    pub size: u64,
    /// Its version, where the listing has it.
    pub tag: Option<Tag>,
    /// When it was written last.
    pub modified: Option<SystemTime>,
}

/// A bucket, and who asks for it.
pub(crate) struct Store {
    http: Http,
    pub(crate) kind: StoreKind,
    bucket: String,
    /// `https://host/bucket`.
    base: String,
    region: String,
    access: Access,
    /// Sent with all that is written.
    written: Vec<(&'static str, String)>,
}

/// What clients a bucket needs.
pub(crate) struct Clients {
    pub(crate) http: Http,
    /// For metadata services.
    pub(crate) metadata: Http,
    /// Whether `http://` to other machines was allowed.
    pub(crate) plain: bool,
}

/// One request.
#[derive(Clone, Copy)]
struct Call<'a> {
    method: &'a Method,
    /// `None`: it is of the bucket.
    key: Option<&'a str>,
    query: &'a [(&'a str, &'a str)],
    headers: &'a [(&'a str, String)],
    body: Option<&'a [u8]>,
    patience: Option<Patience>,
    stop: Option<&'a Stop>,
}

impl<'a> Call<'a> {
    fn new(method: &'a Method, key: Option<&'a str>) -> Self {
        Self { method, key, query: &[], headers: &[], body: None, patience: None, stop: None }
    }

    fn get(key: Option<&'a str>) -> Self {
        Self::new(&Method::GET, key)
    }
}

impl Store {
    pub(crate) fn new(address: &StoreAddress, options: &StoreOptions, clients: Clients) -> Result<Self> {
        let Clients { http, metadata, plain } = clients;
        let (kind, bucket) = (address.kind, address.bucket.as_str());
        let of_kind = match kind {
            StoreKind::S3 => s3(bucket, options)?,
            StoreKind::Google => google(bucket, options),
            StoreKind::Azure => azure(bucket, options)?,
        };
        let Located { base, scope, plain: allowed } = of_kind;
        let uri: Option<Uri> = base.parse().ok().filter(is_plain);
        let uri = uri.ok_or_else(|| Error::new(ErrorKind::Address, "the store's endpoint is no URL"))?;
        let here = uri.host().is_some_and(is_loopback);
        match uri.scheme_str() {
            Some("https") => {}
            Some("http") if here || plain || allowed => {}
            Some("http") => {
                let message = "the endpoint is http:// on another machine, where anybody on the way can read and \
                               change it; use https://, or set AWS_ALLOW_HTTP=true (or GOOGLE_, AZURE_)";
                return Err(Error::new(ErrorKind::Denied, message));
            }
            _ => return Err(Error::new(ErrorKind::Address, "the store's endpoint is no URL")),
        }
        let connector = Connector { http: http.clone(), metadata, note: Note::default() };
        Ok(Self {
            access: Access::new(kind, bucket, &scope, options, connector),
            written: if kind == StoreKind::S3 { encryption(options)? } else { Vec::new() },
            http,
            kind,
            bucket: bucket.to_owned(),
            base,
            region: scope,
        })
    }

    /// An object's address, for people.
    pub(crate) fn address(&self, key: &str) -> String {
        StoreAddress { kind: self.kind, bucket: self.bucket.clone(), key: key.to_owned() }.to_string()
    }

    fn uri(&self, key: Option<&str>, query: &[(&str, &str)]) -> Result<Uri> {
        let mut url = self.base.clone();
        if let Some(key) = key {
            url.push('/');
            url.push_str(&encode_path(key, false));
        }
        for (n, (name, value)) in query.iter().enumerate() {
            url.push(if n == 0 { '?' } else { '&' });
            url.push_str(&format!("{}={}", encode_segment(name), encode_segment(value)));
        }
        url.parse().map_err(|_| Error::new(ErrorKind::Address, "the object's name is too long or malformed"))
    }

    /// Signs a request, to be sent at once.
    fn sign(&self, mut request: Request<()>, digest: &[u8; 32]) -> Result<Asked> {
        if self.kind == StoreKind::Azure {
            request.headers_mut().insert("x-ms-version", HeaderValue::from_static(AZURE_VERSION));
        }
        let (request, version) = self.access.sign(request, digest)?;
        Ok(Asked { request, guarded: false, version })
    }

    /// Sends a call until it is answered.
    fn exchange(&self, call: &Call<'_>) -> Result<Exchanged> {
        let digest = match call.body {
            None | Some([]) => EMPTY,
            Some(body) => Sha256::digest(body).into(),
        };
        let never = Stop::never();
        let asker = Signed { store: self, call, digest };
        self.http.exchange(&asker, call.body, call.patience, call.stop.unwrap_or(&never))
    }

    /// The same; an answer that is no success is an error.
    fn done(&self, call: &Call<'_>) -> Result<Exchanged> {
        let answer = self.exchange(call)?;
        match answer.status.is_success() {
            true => Ok(answer),
            false => Err(self.refused(&answer).error(self)),
        }
    }

    fn refused(&self, answer: &Exchanged) -> Refused {
        Refused::read(answer.status, &answer.headers, &answer.body)
    }
}

/// A call that is signed for each attempt.
struct Signed<'a> {
    store: &'a Store,
    call: &'a Call<'a>,
    digest: [u8; 32],
}

impl Asker for Signed<'_> {
    fn ask(&self) -> Result<Asked> {
        let call = self.call;
        let mut request =
            Request::builder().method(call.method.clone()).uri(self.store.uri(call.key, call.query)?);
        if let Some(body) = call.body {
            request = request.header("content-length", body.len());
        }
        for (name, value) in call.headers {
            request = request.header(*name, value);
        }
        let request = request
            .body(())
            .map_err(|_| Error::new(ErrorKind::Address, "the request has a header that none can have"))?;
        self.store.sign(request, &self.digest)
    }

    fn renew(&self, version: u64) -> bool {
        self.store.access.renew(version)
    }

    fn explain(&self, answer: &Exchanged) -> Error {
        self.store.refused(answer).error(self.store)
    }

    fn may_pass(&self, answer: &Exchanged) -> bool {
        // Completing an upload can succeed by its status and say in its body that it failed.
        let said = !answer.status.is_success() || xml::is(&answer.body, "Error");
        said && self.store.refused(answer).may_pass()
    }
}

/// Where a bucket is.
struct Located {
    base: String,
    /// The region of S3, the account of Azure.
    scope: String,
    /// Whether `http://` is allowed.
    plain: bool,
}

fn s3(bucket: &str, options: &StoreOptions) -> Result<Located> {
    let unsupported = |message: &str| Err(Error::new(ErrorKind::Unsupported, message));
    if bucket.ends_with("--x-s3") || bucket.ends_with("--xa-s3") || options.is(&["aws_s3_express"]) {
        return unsupported(
            "directory buckets (S3 Express) have sessions of their own, which are not supported",
        );
    }
    let region = options.get(&["aws_region", "aws_default_region"]).unwrap_or("us-east-1");
    let good = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if !good(region) {
        return Err(Error::new(ErrorKind::Address, "AWS_REGION is no region"));
    }
    let hosted = options.is(&["aws_virtual_hosted_style_request"]);
    let endpoint = options.get(&["aws_endpoint_url_s3", "aws_endpoint_url", "aws_endpoint"]);
    let base = match (endpoint.map(|endpoint| endpoint.trim_end_matches('/')), hosted) {
        // As object_store has it: such an endpoint has the bucket in its host already.
        (Some(endpoint), true) => endpoint.to_owned(),
        (Some(endpoint), false) => format!("{endpoint}/{bucket}"),
        (None, true) => format!("https://{bucket}.s3.{region}.amazonaws.com"),
        (None, false) => format!("https://s3.{region}.amazonaws.com/{bucket}"),
    };
    Ok(Located { base, scope: region.to_owned(), plain: options.is(&["aws_allow_http"]) })
}

/// What is asked for when S3 is to encrypt what it keeps.
fn encryption(options: &StoreOptions) -> Result<Vec<(&'static str, String)>> {
    let mut headers = Vec::new();
    let Some(kind) = options.get(&["aws_server_side_encryption"]) else { return Ok(headers) };
    if kind == "sse-c" || !kind.bytes().all(|b| b.is_ascii_graphic()) {
        let message = "AWS_SERVER_SIDE_ENCRYPTION: keys of the client's own (sse-c) are not supported";
        return Err(Error::new(ErrorKind::Unsupported, message));
    }
    let kind = match kind {
        "sse-kms" => "aws:kms",
        "dsse-kms" => "aws:kms:dsse",
        other => other,
    };
    headers.push(("x-amz-server-side-encryption", kind.to_owned()));
    if let Some(key) = options.get(&["aws_sse_kms_key_id"]) {
        headers.push(("x-amz-server-side-encryption-aws-kms-key-id", key.to_owned()));
    }
    if options.is(&["aws_sse_bucket_key_enabled"]) {
        headers.push(("x-amz-server-side-encryption-bucket-key-enabled", "true".to_owned()));
    }
    Ok(headers)
}

fn google(bucket: &str, options: &StoreOptions) -> Located {
    let key = || {
        let named = ["google_service_account", "google_service_account_path"];
        let text = match options.get(&["google_service_account_key"]) {
            Some(text) => text.to_owned(),
            None => std::fs::read_to_string(options.get(&named)?).ok()?,
        };
        let key: serde_json::Value = serde_json::from_str(&text).ok()?;
        // Emulators are named so.
        Some(key.get("gcs_base_url")?.as_str()?.to_owned())
    };
    let endpoint = options.get(&["google_base_url"]).map(Into::into).or_else(key);
    let endpoint = endpoint.unwrap_or_else(|| "https://storage.googleapis.com".to_owned());
    let base = format!("{}/{bucket}", endpoint.trim_end_matches('/'));
    Located { base, scope: String::new(), plain: options.is(&["google_allow_http"]) }
}

fn azure(container: &str, options: &StoreOptions) -> Result<Located> {
    let emulator = options.is(&["azure_storage_use_emulator"]);
    let account = options.get(&["azure_storage_account_name"]);
    let account = account.or(emulator.then_some("devstoreaccount1"));
    let good = |text: &&str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric());
    let account = account.filter(good).ok_or_else(|| {
        Error::new(ErrorKind::Address, "az://container/key needs an account: set AZURE_STORAGE_ACCOUNT_NAME")
    })?;
    let endpoint = options.get(&["azure_storage_endpoint", "azure_endpoint"]);
    let base = match endpoint {
        Some(endpoint) => format!("{}/{container}", endpoint.trim_end_matches('/')),
        None if emulator => format!("http://127.0.0.1:10000/{account}/{container}"),
        None if options.is(&["azure_use_fabric_endpoint"]) => {
            format!("https://{account}.blob.fabric.microsoft.com/{container}")
        }
        None => format!("https://{account}.blob.core.windows.net/{container}"),
    };
    Ok(Located {
        base,
        scope: account.to_owned(),
        plain: options.is(&["azure_allow_http", "azure_storage_allow_http"]),
    })
}

impl Store {
    /// A name that nothing else has.
    fn mark() -> String {
        let bits = || crate::retry::random_bits();
        format!("{:016x}{:016x}", bits(), bits())
    }

    /// Shared, as files of it need it.
    pub(crate) fn shared(self) -> Arc<Self> {
        Arc::new(self)
    }
}
