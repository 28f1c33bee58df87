//! A hub with a CDN on another port.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::fault::Faults;
use crate::server::{Reply, Request, Server};
use crate::web::{Tagged, file_reply, git_sha1, sha256};

/// Who may read a repository.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Access {
    /// Everybody.
    #[default]
    Public,
    /// Whoever has the token.
    Private,
    /// Nobody yet: its terms are to be accepted.
    Gated,
    /// Nobody any more.
    Disabled,
}

/// A repository.
#[derive(Clone, Debug, Default)]
pub struct RepoSpec {
    /// Who may read it.
    pub access: Access,
    /// Its files: the content, and whether it is in LFS, so that the CDN has it.
    pub files: BTreeMap<String, (Arc<Vec<u8>>, bool)>,
    /// Revisions beside `main`; all have the same commit.
    pub refs: Vec<String>,
}

impl RepoSpec {
    /// Adds a file that git has.
    #[must_use]
    pub fn small(mut self, path: &str, content: impl Into<Vec<u8>>) -> Self {
        self.files.insert(path.to_owned(), (Arc::new(content.into()), false));
        self
    }

    /// Adds a file that LFS has.
    #[must_use]
    pub fn large(mut self, path: &str, content: impl Into<Arc<Vec<u8>>>) -> Self {
        self.files.insert(path.to_owned(), (content.into(), true));
        self
    }

    /// The commit that all its revisions are.
    pub fn commit(&self) -> String {
        let names: String =
            self.files.iter().map(|(path, (content, _))| format!("{path} {}\n", content.len())).collect();
        git_sha1(names.as_bytes())
    }
}

/// How a hub is set up.
#[derive(Clone, Debug)]
pub struct HubOptions {
    /// Whether it has the API; a mirror may have files alone.
    pub api: bool,
    /// Files on a page of a listing.
    pub page: usize,
    /// The token that it knows.
    pub token: String,
    /// How long a signed URL is good, in seconds.
    pub life: u64,
}

impl Default for HubOptions {
    fn default() -> Self {
        Self { api: true, page: 1000, token: "hf_right".into(), life: 3600 }
    }
}

/// A hub.
pub struct Hub {
    hub: Server,
    cdn: Server,
    shared: Arc<Shared>,
    /// What goes wrong at the hub.
    pub faults: Faults,
    /// What goes wrong at the CDN.
    pub cdn_faults: Faults,
}

struct Shared {
    options: HubOptions,
    repos: RwLock<BTreeMap<String, RepoSpec>>,
    /// Contents of the CDN, by sha256.
    blobs: RwLock<BTreeMap<String, Tagged>>,
    /// sha256 of contents, by where they are: of a large one it takes longer than a client waits.
    digests: Mutex<Digests>,
    /// URLs signed before this count are no longer good.
    epoch: AtomicU64,
    /// Where the CDN is, as clients see it.
    cdn: RwLock<String>,
    faults: Faults,
}

/// By address; what is here stays where it is.
type Digests = BTreeMap<usize, (Arc<Vec<u8>>, String)>;

impl Shared {
    fn sha256(&self, content: &Arc<Vec<u8>>) -> String {
        let mut digests = self.digests.lock().expect("nobody panics with it");
        let kept = digests
            .entry(Arc::as_ptr(content).addr())
            .or_insert_with(|| (Arc::clone(content), sha256(content)));
        kept.1.clone()
    }
}

impl Hub {
    /// Starts one without repositories.
    pub fn start(options: HubOptions) -> Self {
        let (faults, cdn_faults) = (Faults::default(), Faults::default());
        let shared = Arc::new(Shared {
            options,
            repos: RwLock::default(),
            blobs: RwLock::default(),
            digests: Mutex::default(),
            epoch: AtomicU64::new(0),
            cdn: RwLock::default(),
            faults: faults.clone(),
        });
        let (for_hub, for_cdn, going_wrong) = (shared.clone(), shared.clone(), cdn_faults.clone());
        let hub = Server::start(move |request| {
            let reply = for_hub.answer(request);
            for_hub.faults.apply(request, reply)
        });
        let cdn = Server::start(move |request| going_wrong.apply(request, for_cdn.blob(request)));
        *shared.cdn.write().expect("nobody panics with it") = cdn.url();
        Self { hub, cdn, shared, faults, cdn_faults }
    }

    /// Puts a model there, or replaces it, and says its commit.
    pub fn put(&self, id: &str, repo: RepoSpec) -> String {
        self.put_kind("models", id, repo)
    }

    /// The same for `datasets` and `spaces`.
    pub fn put_kind(&self, kind: &str, id: &str, repo: RepoSpec) -> String {
        let mut blobs = self.shared.blobs.write().expect("nobody panics with it");
        for (content, _) in repo.files.values().filter(|(_, lfs)| *lfs) {
            let name = self.shared.sha256(content);
            blobs.insert(name.clone(), (content.clone(), format!("\"{}\"", &name[..32])));
        }
        drop(blobs);
        let commit = repo.commit();
        self.shared.repos.write().expect("nobody panics with it").insert(format!("{kind}/{id}"), repo);
        commit
    }

    /// What the CDN has under the name of a content is other from now on.
    pub fn corrupt(&self, content: &[u8], other: Vec<u8>, tag: &str) {
        let mut blobs = self.shared.blobs.write().expect("nobody panics with it");
        blobs.insert(sha256(content), (Arc::new(other), tag.to_owned()));
    }

    /// No URL signed so far is good any more.
    pub fn expire(&self) {
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
    }

    /// Clients are sent to the CDN by this URL, which may be a link to it.
    pub fn send_to(&self, cdn: &str) {
        *self.shared.cdn.write().expect("nobody panics with it") = cdn.to_owned();
    }

    /// `HF_ENDPOINT`.
    pub fn url(&self) -> String {
        self.hub.url()
    }

    /// The hub's own server.
    pub fn server(&self) -> &Server {
        &self.hub
    }

    /// The CDN's.
    pub fn cdn(&self) -> &Server {
        &self.cdn
    }
}

fn refused(status: u16, code: &str, message: &str) -> Reply {
    let reply = Reply::text(status, format!("{{\"error\":\"{message}\"}}")).with("X-Error-Message", message);
    if code.is_empty() { reply } else { reply.with("X-Error-Code", code) }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

impl Shared {
    fn signature(&self, blob: &str, expires: u64) -> String {
        let epoch = self.epoch.load(Ordering::SeqCst);
        sha256(format!("{blob} {expires} {epoch} secret").as_bytes())
    }

    /// The CDN: bytes for whoever has a signature, and nothing of the hub's headers.
    fn blob(&self, request: &Request) -> Reply {
        let path = request.path();
        let blob = path.trim_start_matches("/blob/");
        let expires = request.query("Expires").and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        let good = request.query("Signature") == Some(self.signature(blob, expires)) && expires >= now();
        if !good {
            return Reply::text(403, "<Error><Code>AccessDenied</Code></Error>");
        }
        // As some of them do: both a signature and a token are too many.
        if request.header("authorization").is_some() {
            return Reply::text(400, "<Error><Code>InvalidArgument</Code></Error>");
        }
        match self.blobs.read().expect("nobody panics with it").get(blob) {
            Some((content, tag)) => file_reply(request, content, Some(tag)),
            None => Reply::text(404, "no such blob"),
        }
    }

    fn answer(&self, request: &Request) -> Reply {
        let path = request.path();
        let encoded = request.target.split('?').next().unwrap_or_default().to_owned();
        if let Some(rest) = encoded.strip_prefix("/api/") {
            return if self.options.api { self.api(request, rest) } else { Reply::text(404, "<html>") };
        }
        let (kind, rest) = ["datasets", "spaces"]
            .iter()
            .find_map(|kind| Some((*kind, encoded.strip_prefix(&format!("/{kind}/"))?)))
            .unwrap_or(("models", encoded.trim_start_matches('/')));
        let Some((id, rest)) = rest.split_once("/resolve/") else { return Reply::text(404, path) };
        let Some((revision, _)) = rest.split_once('/') else { return Reply::text(404, "no file") };
        let file = path.split_once("/resolve/").map_or("", |(_, rest)| rest);
        let revision = revision.replace("%2F", "/").replace("%2f", "/");
        let file = file.strip_prefix(&format!("{revision}/")).unwrap_or_default();
        self.resolve(request, kind, id, &revision, file)
    }

    /// The repository, or why it may not be had.
    fn repo(&self, request: &Request, kind: &str, id: &str, revision: &str) -> Result<RepoSpec, Reply> {
        let token =
            request.header("authorization").map(|header| header.trim_start_matches("Bearer ").to_owned());
        if token.as_ref().is_some_and(|token| *token != self.options.token) {
            return Err(refused(401, "", "Invalid credentials in Authorization header"));
        }
        let repos = self.repos.read().expect("nobody panics with it");
        let absent =
            || refused(if token.is_none() { 401 } else { 404 }, "RepoNotFound", "Repository not found");
        let repo = repos.get(&format!("{kind}/{id}")).ok_or_else(absent)?;
        match repo.access {
            Access::Public => {}
            Access::Private if token.is_some() => {}
            Access::Private => return Err(absent()),
            Access::Gated => {
                let status = if token.is_none() { 401 } else { 403 };
                return Err(refused(status, "GatedRepo", "Access to this repository is restricted"));
            }
            Access::Disabled => return Err(refused(403, "", "Access to this resource is disabled.")),
        }
        let known = revision == "main"
            || revision == repo.commit()
            || repo.refs.iter().any(|other| other == revision);
        match known {
            true => Ok(repo.clone()),
            false => Err(refused(404, "RevisionNotFound", &format!("Invalid rev id: {revision}"))),
        }
    }

    fn resolve(&self, request: &Request, kind: &str, id: &str, revision: &str, file: &str) -> Reply {
        let repo = match self.repo(request, kind, id, revision) {
            Ok(repo) => repo,
            Err(reply) => return reply,
        };
        let commit = repo.commit();
        let Some((content, lfs)) = repo.files.get(file) else {
            return refused(404, "EntryNotFound", "Entry not found").with("X-Repo-Commit", commit);
        };
        if *lfs {
            let blob = self.sha256(content);
            let expires = now() + self.options.life;
            let signature = self.signature(&blob, expires);
            let cdn = self.cdn.read().expect("nobody panics with it").clone();
            let to = format!("{cdn}/blob/{blob}?Expires={expires}&Signature={signature}");
            return Reply::text(302, "Found")
                .with("Location", to)
                .with("X-Linked-Etag", format!("\"{blob}\""))
                .with("X-Linked-Size", content.len().to_string())
                .with("X-Repo-Commit", commit);
        }
        if request.query("cached").is_none() {
            // As the hub does: a relative redirect to itself.
            let path = request.target.split('?').next().unwrap_or_default();
            return Reply::text(307, "")
                .with("Location", format!("{path}?cached=1"))
                .with("X-Repo-Commit", commit);
        }
        file_reply(request, content, Some(&format!("W/\"{}\"", git_sha1(content))))
            .with("X-Repo-Commit", commit)
    }

    fn api(&self, request: &Request, rest: &str) -> Reply {
        let Some((kind, rest)) = rest.split_once('/') else { return Reply::text(404, "") };
        let (id, verb, revision) = match (rest.split_once("/revision/"), rest.split_once("/tree/")) {
            (Some((id, revision)), _) => (id, "revision", revision),
            (_, Some((id, revision))) => (id, "tree", revision),
            _ => return Reply::text(404, ""),
        };
        let revision = revision.replace("%2F", "/").replace("%2f", "/");
        let repo = match self.repo(request, kind, id, &revision) {
            Ok(repo) => repo,
            Err(reply) => return reply,
        };
        if verb == "revision" {
            let names: Vec<_> =
                repo.files.keys().map(|path| format!("{{\"rfilename\":\"{path}\"}}")).collect();
            let json = format!(
                "{{\"id\":\"{id}\",\"sha\":\"{}\",\"siblings\":[{}]}}",
                repo.commit(),
                names.join(",")
            );
            return Reply::text(200, json).with("Content-Type", "application/json");
        }
        let start: usize = request.query("cursor").and_then(|text| text.parse().ok()).unwrap_or(0);
        let page = repo.files.iter().skip(start).take(self.options.page);
        let entries: Vec<_> = page.map(|(path, (content, lfs))| entry(self, path, content, *lfs)).collect();
        let reply =
            Reply::text(200, format!("[{}]", entries.join(","))).with("Content-Type", "application/json");
        let next = start + self.options.page;
        if next >= repo.files.len() {
            return reply;
        }
        let path = request.target.split('?').next().unwrap_or_default();
        let url = format!(
            "http://{}{path}?recursive=true&cursor={next}",
            request.header("host").unwrap_or_default()
        );
        reply.with("Link", format!("<{url}>; rel=\"next\""))
    }
}

/// A file as a listing has it.
fn entry(hub: &Shared, path: &str, content: &Arc<Vec<u8>>, lfs: bool) -> String {
    let size = content.len();
    match lfs {
        false => {
            let oid = git_sha1(content);
            format!("{{\"type\":\"file\",\"oid\":\"{oid}\",\"size\":{size},\"path\":\"{path}\"}}")
        }
        true => {
            let sha256 = hub.sha256(content);
            let oid = git_sha1(
                format!("version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n")
                    .as_bytes(),
            );
            format!(
                "{{\"type\":\"file\",\"oid\":\"{oid}\",\"size\":{size},\"lfs\":{{\"oid\":\"{sha256}\",\"size\":{size},\
                 \"pointerSize\":134}},\"path\":\"{path}\"}}"
            )
        }
    }
}
