//! An object store in memory: S3, Google's XML interface, or Azure's blobs, as far as clients of files need
//! them.

mod azure;
mod date;
mod multipart;
mod sign;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use md5::Md5;
use sha2::{Digest, Sha256};

pub use self::sign::Key;

use self::multipart::Upload;
use self::sign::{base64, claim, is_signed};
use crate::fault::{Fault, Faults};
use crate::log::Log;
use crate::server::{Reply, Request, Server};
use crate::web::file_reply;

/// Whose protocol it speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Amazon's, which checks signatures.
    S3,
    /// Google's, which wants a bearer's token: `token`.
    Google,
    /// Azure's; signatures are not checked.
    Azure,
}

/// How it behaves.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Whose protocol it speaks.
    pub protocol: Protocol,
    /// Whether anybody may read.
    pub public: bool,
    /// How many objects a page of a listing has.
    pub page: usize,
    /// Whether it keeps to preconditions of writes.
    pub preconditions: bool,
    /// The region of its bucket.
    pub region: &'static str,
    /// The least length of a part that is not the last.
    pub least_part: usize,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            protocol: Protocol::S3,
            public: false,
            page: 1000,
            preconditions: true,
            region: "us-east-1",
            least_part: 5 << 20,
        }
    }
}

/// A store on this machine, with one bucket, `bucket`.
pub struct ObjectStore {
    server: Server,
    inner: Arc<Inner>,
    /// What goes wrong after the request was carried out: its answer.
    pub faults: Faults,
    /// What goes wrong before that.
    pub refusals: Faults,
}

struct Inner {
    options: StoreOptions,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Object>,
    uploads: BTreeMap<String, Upload>,
    blocks: BTreeMap<(String, String), Vec<u8>>,
    keys: Vec<Key>,
    /// Sessions that were good once.
    expired: Vec<Key>,
    count: u64,
}

#[derive(Clone)]
struct Object {
    content: Arc<Vec<u8>>,
    tag: String,
    generation: u64,
    mark: Option<String>,
    modified: SystemTime,
}

impl ObjectStore {
    /// Starts one, to which the key `key` with the secret `5ecr3t` may do all.
    pub fn start(options: StoreOptions) -> Self {
        let state = State { keys: vec![Key::new("key", "5ecr3t")], ..State::default() };
        let inner = Arc::new(Inner { options, state: Mutex::new(state) });
        let (faults, refusals) = (Faults::default(), Faults::default());
        let (shared, after, before) = (inner.clone(), faults.clone(), refusals.clone());
        let server = Server::start(move |request| {
            if let Some(Fault::Status(status, headers, text)) = before.next(request, 0) {
                let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
                return Reply { headers: headers.collect(), ..Reply::text(status, text) };
            }
            after.apply(request, shared.answer(request))
        });
        Self { server, inner, faults, refusals }
    }

    /// Its server.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// Whose protocol it speaks.
    pub fn protocol(&self) -> Protocol {
        self.inner.options.protocol
    }

    /// The scheme of its addresses.
    pub fn scheme(&self) -> &'static str {
        match self.protocol() {
            Protocol::S3 => "s3",
            Protocol::Google => "gs",
            Protocol::Azure => "az",
        }
    }

    /// What a client is told, as options or in its environment, to reach it and to have its key.
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        let (address, secrets): (_, &[(&str, &str)]) = match self.protocol() {
            Protocol::S3 => {
                ("AWS_ENDPOINT_URL", &[("AWS_ACCESS_KEY_ID", "key"), ("AWS_SECRET_ACCESS_KEY", "5ecr3t")])
            }
            Protocol::Google => ("GOOGLE_BASE_URL", &[("GOOGLE_BEARER_TOKEN", "token")]),
            Protocol::Azure => (
                "AZURE_STORAGE_ENDPOINT",
                &[("AZURE_STORAGE_ACCOUNT_NAME", "account"), ("AZURE_STORAGE_ACCOUNT_KEY", "c2VjcmV0")],
            ),
        };
        let secrets = secrets.iter().map(|(name, value)| (*name, (*value).to_owned()));
        [(address, self.server.url())].into_iter().chain(secrets).collect()
    }

    /// What it was asked.
    pub fn log(&self) -> &Log {
        &self.server.log
    }

    /// Puts an object there.
    pub fn put(&self, key: &str, content: impl Into<Arc<Vec<u8>>>) {
        self.inner.lock().write(key, content.into(), None);
    }

    /// The content of an object.
    pub fn content(&self, key: &str) -> Option<Arc<Vec<u8>>> {
        self.inner.lock().objects.get(key).map(|object| object.content.clone())
    }

    /// All keys.
    pub fn keys(&self) -> Vec<String> {
        self.inner.lock().objects.keys().cloned().collect()
    }

    /// Makes all objects older by this time.
    pub fn age(&self, by: Duration) {
        self.inner.lock().objects.values_mut().for_each(|object| object.modified -= by);
    }

    /// How many uploads were begun and neither completed nor aborted.
    pub fn uploads(&self) -> usize {
        self.inner.lock().uploads.len()
    }

    /// Only this key is good from now on; those before it have expired. Its metadata service, at the same
    /// address, gives it out.
    pub fn renew(&self, key: Key) {
        let mut state = self.inner.lock();
        let before = std::mem::replace(&mut state.keys, vec![key]);
        state.expired.extend(before);
    }
}

impl State {
    fn write(&mut self, key: &str, content: Arc<Vec<u8>>, mark: Option<String>) -> Object {
        self.count += 1;
        let tag = format!("\"{:x}-{}\"", Md5::digest(&content[..]), self.count);
        let modified = SystemTime::now();
        let object = Object { content, tag, generation: 1_000 + self.count, mark, modified };
        self.objects.insert(key.to_owned(), object.clone());
        object
    }
}

fn refusal(status: u16, code: &str) -> Reply {
    let text = format!("<?xml version=\"1.0\"?>\n<Error><Code>{code}</Code><Message>no</Message></Error>");
    Reply::text(status, text).with("Content-Type", "application/xml")
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}

/// What is between two words.
fn between<'a>(text: &'a str, start: &str, end: &str) -> Option<&'a str> {
    text.split_once(start)?.1.split_once(end).map(|(inside, _)| inside)
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, request: &Request) -> Reply {
        if request.target.starts_with("/latest/") {
            return self.metadata(request);
        }
        if request.query("Action").as_deref() == Some("AssumeRoleWithWebIdentity") {
            return self.assume_role(request);
        }
        if let Some(refused) = self.refuse(request) {
            return refused;
        }
        let path = request.path();
        let Some(rest) = path.strip_prefix("/bucket") else {
            let code =
                if self.options.protocol == Protocol::Azure { "ContainerNotFound" } else { "NoSuchBucket" };
            return refusal(404, code);
        };
        let key = rest.trim_start_matches('/');
        if !self.arrived(request) {
            return refusal(400, "BadDigest");
        }
        match self.options.protocol {
            Protocol::Azure => self.azure(request, key),
            _ => self.amazon(request, key),
        }
    }

    /// Why this one may not ask.
    fn refuse(&self, request: &Request) -> Option<Reply> {
        if self.options.public && matches!(request.method.as_str(), "GET" | "HEAD") {
            return None;
        }
        match self.options.protocol {
            Protocol::Azure => None,
            Protocol::Google => {
                let good = request.header("authorization") == Some("Bearer token");
                (!good).then(|| refusal(401, "AuthenticationRequired"))
            }
            Protocol::S3 => {
                let Some(claim) = claim(request) else { return Some(refusal(403, "AccessDenied")) };
                if claim.region != self.options.region {
                    let text = format!(
                        "<Error><Code>AuthorizationHeaderMalformed</Code><Region>{}</Region></Error>",
                        self.options.region
                    );
                    return Some(Reply::text(400, text));
                }
                let token = request.header("x-amz-security-token");
                let state = self.lock();
                let of = |keys: &[Key]| {
                    keys.iter().find(|key| key.id == claim.id && key.token.as_deref() == token).cloned()
                };
                let (good, bad) = (of(&state.keys), of(&state.expired));
                drop(state);
                match (good, bad) {
                    (Some(key), _) if is_signed(request, &claim, &key) => None,
                    (Some(_), _) => Some(refusal(403, "SignatureDoesNotMatch")),
                    (None, Some(_)) => Some(refusal(400, "ExpiredToken")),
                    (None, None) => Some(refusal(403, "InvalidAccessKeyId")),
                }
            }
        }
    }

    /// Whether the body is the one that was sent.
    fn arrived(&self, request: &Request) -> bool {
        let sha = request.header("x-amz-checksum-sha256");
        let md5 = request.header("content-md5");
        sha.is_none_or(|sha| sha == base64(&Sha256::digest(&request.body)))
            && md5.is_none_or(|md5| md5 == base64(&Md5::digest(&request.body)))
    }

    /// Gives out the key that is good now, as the metadata service of a machine at Amazon does.
    fn metadata(&self, request: &Request) -> Reply {
        let role = "/latest/meta-data/iam/security-credentials/";
        let path = request.path();
        match path.strip_prefix(role) {
            _ if path == "/latest/api/token" => Reply::text(200, "metadata"),
            Some("") => Reply::text(200, "role"),
            Some(_) => {
                let state = self.lock();
                let key = &state.keys[0];
                let token = key.token.as_deref().unwrap_or_default();
                Reply::text(
                    200,
                    format!(
                        "{{\"AccessKeyId\":\"{}\",\"SecretAccessKey\":\"{}\",\"Token\":\"{token}\",\
                         \"Expiration\":\"2099-01-01T00:00:00Z\"}}",
                        key.id, key.secret
                    ),
                )
            }
            None => Reply::text(404, "no"),
        }
    }

    /// Gives out the key that is good now, as Amazon's token service does for the token `identity`.
    fn assume_role(&self, request: &Request) -> Reply {
        if request.query("WebIdentityToken").as_deref() != Some("identity") {
            return refusal(403, "InvalidIdentityToken");
        }
        let state = self.lock();
        let key = &state.keys[0];
        Reply::text(
            200,
            format!(
                "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials><SessionToken>{}\
                 </SessionToken><SecretAccessKey>{}</SecretAccessKey><AccessKeyId>{}</AccessKeyId>\
                 <Expiration>2099-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleWithWebIdentityResult>\
                 </AssumeRoleWithWebIdentityResponse>",
                key.token.as_deref().unwrap_or_default(),
                key.secret,
                key.id
            ),
        )
    }

    /// What S3 and Google have in common.
    fn amazon(&self, request: &Request, key: &str) -> Reply {
        let has = |name: &str| request.query(name).is_some();
        match request.method.as_str() {
            "GET" if key.is_empty() && has("uploads") => self.list_uploads(request),
            "GET" if key.is_empty() => self.list(request),
            "GET" | "HEAD" => self.read(request, key),
            "POST" if has("uploads") => self.begin(request, key),
            "POST" if has("uploadId") => self.complete(request, key),
            "PUT" if has("uploadId") => self.part(request),
            "PUT" => match self.condition(request, key) {
                Some(refused) => refused,
                None => {
                    let object = self.lock().write(key, Arc::new(request.body.clone()), self.mark(request));
                    self.tagged(Reply::text(200, ""), &object)
                }
            },
            "DELETE" if has("uploadId") => self.abort(request),
            "DELETE" => match self.lock().objects.remove(key) {
                None if self.options.protocol == Protocol::Google => refusal(404, "NoSuchKey"),
                _ => Reply::text(204, ""),
            },
            _ => refusal(405, "MethodNotAllowed"),
        }
    }

    fn mark(&self, request: &Request) -> Option<String> {
        let name = match self.options.protocol {
            Protocol::S3 => "x-amz-meta-weighbridge",
            Protocol::Google => "x-goog-meta-weighbridge",
            Protocol::Azure => "x-ms-meta-weighbridge",
        };
        request.header(name).map(Into::into)
    }

    /// A reply with the headers that say which version an object is.
    fn tagged(&self, reply: Reply, object: &Object) -> Reply {
        let reply = reply.with("ETag", object.tag.clone());
        match self.options.protocol {
            Protocol::Google => reply.with("x-goog-generation", object.generation.to_string()),
            _ => reply,
        }
    }

    /// The refusal of a write whose precondition does not hold.
    fn condition(&self, request: &Request, key: &str) -> Option<Reply> {
        if !self.options.preconditions {
            return None;
        }
        let now = self.lock().objects.get(key).cloned();
        let refused = |good: bool| (!good).then(|| refusal(412, "PreconditionFailed"));
        if let Some(generation) = request.header("x-goog-if-generation-match") {
            return refused(now.map_or(0, |object| object.generation).to_string() == generation);
        }
        match (request.header("if-none-match"), request.header("if-match"), now, self.options.protocol) {
            (Some("*"), _, Some(_), Protocol::Azure) => Some(refusal(409, "BlobAlreadyExists")),
            (Some("*"), _, now, _) => refused(now.is_none()),
            (_, Some(_), None, Protocol::S3) => Some(refusal(404, "NoSuchKey")),
            (_, Some(tag), now, _) => refused(now.is_some_and(|object| object.tag == tag)),
            _ => None,
        }
    }

    fn read(&self, request: &Request, key: &str) -> Reply {
        let Some(object) = self.lock().objects.get(key).cloned() else {
            let code = if self.options.protocol == Protocol::Azure { "BlobNotFound" } else { "NoSuchKey" };
            return refusal(404, code);
        };
        if request.header("x-goog-if-generation-match").is_some_and(|n| n != object.generation.to_string()) {
            return refusal(412, "PreconditionFailed");
        }
        let mut reply = file_reply(request, &object.content, Some(&object.tag));
        if reply.status == 416 && self.options.protocol == Protocol::S3 {
            // It does not say how long the object is.
            return refusal(416, "InvalidRange");
        }
        if self.options.protocol == Protocol::Google {
            reply = reply.with("x-goog-generation", object.generation.to_string());
        }
        let name = match self.options.protocol {
            Protocol::S3 => "x-amz-meta-weighbridge",
            Protocol::Google => "x-goog-meta-weighbridge",
            Protocol::Azure => "x-ms-meta-weighbridge",
        };
        match object.mark {
            Some(mark) => reply.with(name, mark),
            None => reply,
        }
    }

    /// The objects of a page, and the key after which the next begins. Those in folders are left out if they
    /// are asked for so.
    fn page(&self, request: &Request, marker: &str) -> (Vec<(String, Object)>, Option<String>) {
        let prefix = request.query("prefix").unwrap_or_default();
        let after = request.query(marker).unwrap_or_default();
        let flat = request.query("delimiter").is_some_and(|delimiter| delimiter == "/");
        let state = self.lock();
        let mut found = state.objects.iter().filter(|(key, _)| {
            key.as_str() > after.as_str()
                && key.strip_prefix(&prefix).is_some_and(|rest| !flat || !rest.contains('/'))
        });
        let page: Vec<_> = found
            .by_ref()
            .take(self.options.page)
            .map(|(key, object)| (key.clone(), object.clone()))
            .collect();
        let next = found.next().and(page.last().map(|(key, _)| key.clone()));
        (page, next)
    }

    fn list(&self, request: &Request) -> Reply {
        let (page, next) = self.page(request, "continuation-token");
        let objects: String = page
            .iter()
            .map(|(key, object)| {
                format!(
                    "<Contents><Key>{}</Key><LastModified>{}</LastModified><ETag>{}</ETag>\
                     <Generation>{}</Generation><Size>{}</Size><StorageClass>STANDARD</StorageClass></Contents>",
                    escape(key),
                    date::dashed(object.modified),
                    escape(&object.tag),
                    object.generation,
                    object.content.len()
                )
            })
            .collect();
        let next =
            next.map(|next| format!("<NextContinuationToken>{}</NextContinuationToken>", escape(&next)));
        Reply::text(
            200,
            format!(
                "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ListBucketResult><Name>bucket</Name>{objects}\
                 <CommonPrefixes><Prefix>folder/</Prefix></CommonPrefixes>{}</ListBucketResult>",
                next.unwrap_or_default()
            ),
        )
    }
}
