//! The hub: which commit a revision is, what is in it, and how its files are asked for.

pub(crate) mod environment;
pub(crate) mod errors;
pub(crate) mod file;
pub(crate) mod nearest;
pub(crate) mod tree;

use http::{HeaderMap, Method, StatusCode, Uri};

use self::errors::Refusal;
use self::tree::Entry;
use crate::address::{HubAddress, RepoKind};
use crate::encode::{encode_path, encode_segment};
use crate::http::Http;
use crate::http::headers::text;
use crate::http::redirect::{Auth, Token, is_plain, origin_of};
use crate::http::stop::Stop;
use crate::http::visit::{Visit, Visited};
use crate::{Error, ErrorKind, Result};

/// The longest answer of the API that is read.
const LISTING: u64 = 100 << 20;

/// A hub, and with which token to ask it.
#[derive(Clone)]
pub(crate) struct Hub {
    http: Http,
    /// Without a slash at its end.
    endpoint: String,
    auth: Auth,
}

/// A repository at a revision.
#[derive(Clone)]
pub(crate) struct Repo {
    pub(crate) hub: Hub,
    pub(crate) kind: RepoKind,
    pub(crate) id: String,
}

/// What the hub is asked.
enum Question {
    /// The API's answer.
    Api,
    /// Where a file is.
    Where,
    /// The same of a file that is being read.
    WhereNow,
}

/// What the hub says of a revision.
pub(crate) enum Revision {
    /// The commit that it is now.
    Commit(String),
    /// This server does not say; the revision itself must do.
    Unknown,
}

impl Hub {
    /// The hub at an endpoint. The token is for it, and for the official hub's names if it is that.
    pub(crate) fn new(http: Http, endpoint: &str, token: Option<Token>) -> Result<Self> {
        let endpoint = endpoint.trim_end_matches('/');
        let malformed =
            || Error::new(ErrorKind::Address, "the hub's endpoint (HF_ENDPOINT) is not an http or https URL");
        let uri: Uri = endpoint.parse().map_err(|_| malformed())?;
        if !is_plain(&uri) || uri.query().is_some() || !matches!(uri.scheme_str(), Some("http" | "https")) {
            return Err(malformed());
        }
        let mut origins = vec![origin_of(&uri)];
        let official = ["https://huggingface.co:443", "https://hf.co:443"];
        if official.contains(&origins[0].as_str()) {
            origins = official.map(Into::into).to_vec();
        }
        Ok(Self { http, endpoint: endpoint.to_owned(), auth: Auth::new(token, origins) })
    }

    pub(crate) fn repo(&self, address: &HubAddress) -> Repo {
        Repo { hub: self.clone(), kind: address.kind, id: address.repo.clone() }
    }
}

impl Repo {
    /// `hf://owner/name`, for people.
    pub(crate) fn name(&self) -> String {
        format!("hf://{}{}", self.kind.prefix(), self.id)
    }

    fn uri(&self, path: &str) -> Result<Uri> {
        let url = format!("{}/{path}", self.hub.endpoint);
        url.parse().map_err(|_| Error::new(ErrorKind::Address, "the URL is malformed").at(&self.name()))
    }

    /// Where a file is asked for.
    pub(crate) fn resolve_uri(&self, revision: &str, path: &str) -> Result<Uri> {
        let (prefix, id, path) = (self.kind.prefix(), &self.id, encode_path(path, false));
        self.uri(&format!("{prefix}{id}/resolve/{}/{path}", encode_segment(revision)))
    }

    fn api_uri(&self, rest: &str) -> Result<Uri> {
        self.uri(&format!("api/{}/{}/{rest}", self.kind.plural(), self.id))
    }

    fn refusal<'a>(&'a self, revision: Option<&'a str>, path: Option<&'a str>) -> Refusal<'a> {
        Refusal { repo: self, revision, path, token_sent: self.hub.auth.has_token() }
    }

    fn visit(&self, what: Question, uri: Uri, revision: &str, stop: &Stop) -> Result<Visited> {
        let (method, stay) = match what {
            Question::Api => (Method::GET, false),
            Question::Where | Question::WhereNow => (Method::HEAD, true),
        };
        let begun = matches!(what, Question::WhereNow);
        let visit = Visit { method, uri, auth: &self.hub.auth, stay, begun, most: LISTING };
        let explain = |status: StatusCode, headers: &HeaderMap, body: &[u8]| {
            self.refusal(Some(revision), None).error(status, headers, body)
        };
        self.hub.http.visit(&visit, &explain, stop).map_err(|error| error.at(&self.name()))
    }

    /// The commit that a revision is now. A commit is itself, and nobody is asked.
    pub(crate) fn commit(&self, revision: &str, stop: &Stop) -> Result<Revision> {
        if is_commit(revision) {
            return Ok(Revision::Commit(revision.to_owned()));
        }
        let uri = self.api_uri(&format!("revision/{}", encode_segment(revision)))?;
        let visited = self.visit(Question::Api, uri, revision, stop)?;
        if visited.status.is_success() {
            let answer: Option<serde_json::Value> = serde_json::from_slice(&visited.body).ok();
            let commit = answer.as_ref().and_then(|answer| answer.get("sha")?.as_str());
            if let Some(commit) = commit.filter(|commit| is_commit(commit)) {
                return Ok(Revision::Commit(commit.to_owned()));
            }
        } else if !lacks_api(&visited) {
            let error =
                self.refusal(Some(revision), None).error(visited.status, &visited.headers, &visited.body);
            return Err(error.at(&self.name()));
        }
        self.commit_by_file(revision, stop)
    }

    /// The commit as a server without the API tells it: with any file, even one that is absent.
    fn commit_by_file(&self, revision: &str, stop: &Stop) -> Result<Revision> {
        let uri = self.resolve_uri(revision, "config.json")?;
        let visited = self.visit(Question::Where, uri, revision, stop)?;
        let commit = text(&visited.headers, "x-repo-commit").filter(|commit| is_commit(commit));
        let absent = text(&visited.headers, "x-error-code") == Some("EntryNotFound");
        match (commit, visited.status.as_u16()) {
            (Some(commit), _) => Ok(Revision::Commit(commit.to_owned())),
            (None, 200..400) => Ok(Revision::Unknown),
            (None, _) if absent => Ok(Revision::Unknown),
            (None, _) => {
                let error = self.refusal(Some(revision), None).error(visited.status, &visited.headers, &[]);
                Err(error.at(&self.name()))
            }
        }
    }

    /// All files at a commit; `None`: the server has no listing.
    pub(crate) fn tree(&self, commit: &str, stop: &Stop) -> Result<Option<Vec<Entry>>> {
        let rest = format!("tree/{}?recursive=true&expand=false", encode_segment(commit));
        let mut next = Some(self.api_uri(&rest)?);
        let mut entries = Vec::new();
        let mut pages = 0;
        while let Some(uri) = next {
            pages += 1;
            if pages > 10_000 {
                return Err(Error::new(ErrorKind::Malformed, "the listing has no end").at(&self.name()));
            }
            let visited = self.visit(Question::Api, uri, commit, stop)?;
            if !visited.status.is_success() {
                if pages == 1 && lacks_api(&visited) {
                    return Ok(None);
                }
                let error =
                    self.refusal(Some(commit), None).error(visited.status, &visited.headers, &visited.body);
                return Err(error.at(&self.name()));
            }
            let page = tree::parse(&visited.body).map_err(|error| error.at(&self.name()))?;
            let empty = page.is_empty();
            entries.extend(page);
            next = self.next_page(&visited).map_err(|error| error.at(&self.name()))?.filter(|_| !empty);
        }
        Ok(Some(entries))
    }

    /// `Link: <...>; rel="next"`, on the same server.
    fn next_page(&self, visited: &Visited) -> Result<Option<Uri>> {
        let Some(link) = text(&visited.headers, "link") else { return Ok(None) };
        let next = link.split(',').find(|part| part.contains("rel=\"next\"") || part.contains("rel=next"));
        let Some(url) = next.and_then(|part| part.split_once('<')?.1.split_once('>')).map(|(url, _)| url)
        else {
            return Ok(None);
        };
        let mut headers = HeaderMap::new();
        let bad = || Error::new(ErrorKind::Malformed, "the listing's next page is no URL of this hub");
        headers.insert("location", url.parse().map_err(|_| bad())?);
        let uri = crate::http::redirect::target(&visited.uri, &headers)?;
        match self.hub.auth.knows(&uri) {
            true => Ok(Some(uri)),
            false => Err(bad()),
        }
    }
}

/// Whether a revision is the name of a commit.
pub(crate) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether an answer is that of a server that has files, but not the hub's API.
fn lacks_api(visited: &Visited) -> bool {
    matches!(visited.status.as_u16(), 404 | 405 | 501) && text(&visited.headers, "x-error-code").is_none()
}
