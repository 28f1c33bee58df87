//! Addresses of what is remote: `hf://`, `https://`, `http://`, `s3://`, `gs://`, `az://`. Nothing is asked
//! here.

use std::fmt;
use std::str::FromStr;

use crate::encode::{decode, encode_path, encode_segment};
use crate::http::redirect::is_plain;
use crate::{Error, ErrorKind, Result};

/// Where something remote is. It prints without any query, so that what signs a URL is shown to nobody.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Address {
    /// A repository of the hub, or a folder or file in it.
    Hub(HubAddress),
    /// A file or a folder of a web server.
    Web(WebAddress),
    /// An object, or a prefix of objects, in a bucket.
    Store(StoreAddress),
}

/// What a repository of the hub holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RepoKind {
    /// A model.
    Model,
    /// A dataset.
    Dataset,
    /// A space: a program.
    Space,
    /// A kernel of a GPU.
    Kernel,
}

/// `hf://[models/|datasets/|spaces/]owner/name[@revision][/path]`; repositories of the hub's first days have
/// no owner (`hf://gpt2`), and a path in such a one needs a revision (`hf://gpt2@main/config.json`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HubAddress {
    /// What the repository holds.
    pub kind: RepoKind,
    /// `owner/name`, or `name`.
    pub repo: String,
    /// A branch, tag, commit or `refs/pr/1`; `None` is `main`.
    pub revision: Option<String>,
    /// A folder or a file in the repository, without a slash at its ends; empty: the repository.
    pub path: String,
}

/// `https://host[:port]/path[?query]`, and the same with `http`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct WebAddress {
    origin: String,
    path: String,
    query: Option<String>,
}

/// The kinds of object store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StoreKind {
    /// Amazon S3 and what speaks its protocol: `s3://`.
    S3,
    /// Google Cloud Storage: `gs://`.
    Google,
    /// Azure Blob Storage: `az://`.
    Azure,
}

/// `s3://bucket/key`, `gs://bucket/key`, `az://container/key`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct StoreAddress {
    /// Which kind of store.
    pub kind: StoreKind,
    /// The bucket or container.
    pub bucket: String,
    /// The object's key, or a prefix; empty: the bucket.
    pub key: String,
}

impl Address {
    /// The address that a text is.
    ///
    /// `None`: it has none of the schemes, so it is a path. An error: it has one, and is malformed.
    pub fn parse(text: &str) -> Option<Result<Self>> {
        let (scheme, rest) = text.split_once("://")?;
        let parse: fn(&str, &str) -> Result<Self> = match scheme.to_ascii_lowercase().as_str() {
            "hf" => |_, rest| rest.parse().map(Self::Hub),
            "https" | "http" => |scheme, rest| WebAddress::parse(scheme, rest).map(Self::Web),
            "s3" => |_, rest| StoreAddress::parse(StoreKind::S3, rest).map(Self::Store),
            "gs" => |_, rest| StoreAddress::parse(StoreKind::Google, rest).map(Self::Store),
            "az" => |_, rest| StoreAddress::parse(StoreKind::Azure, rest).map(Self::Store),
            _ => return None,
        };
        Some(parse(&scheme.to_ascii_lowercase(), rest).map_err(|error| error.at(&shown(text))))
    }
}

/// A text that may be shown: without user, password, query and control characters.
fn shown(text: &str) -> String {
    let text = text.split(['?', '#']).next().unwrap_or_default();
    let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let authority = match authority.rsplit_once('@') {
        Some((_, host)) if scheme != "hf" => format!("...@{host}"),
        _ => authority.to_owned(),
    };
    let slash = if path.is_empty() { "" } else { "/" };
    format!("{scheme}://{authority}{slash}{path}").replace(char::is_control, "?")
}

fn malformed(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Address, message)
}

/// Refuses what no name on a server may have: control characters, backslashes, and segments that lead
/// upwards.
pub(crate) fn check_path(path: &str) -> Result<()> {
    if path.chars().any(char::is_control) {
        return Err(malformed("the path has a control character in it"));
    }
    if path.contains('\\') {
        return Err(malformed("the path has a backslash in it; use /"));
    }
    if path.split('/').any(|segment| segment == ".." || segment == ".") {
        return Err(malformed("the path has a . or .. in it; write it out"));
    }
    Ok(())
}

/// Whether a name that a server or an index gave names a file in the same place or in a folder below it.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let bad = name.is_empty()
        || name.starts_with('/')
        || name.contains("://")
        || name.split('/').any(str::is_empty)
        || check_path(name).is_err();
    match bad {
        true => Err(malformed(format!("{name:?} is no name of a file in this place"))),
        false => Ok(()),
    }
}

impl RepoKind {
    /// Its name in the hub's API and in addresses: `models`.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Model => "models",
            Self::Dataset => "datasets",
            Self::Space => "spaces",
            Self::Kernel => "kernels",
        }
    }

    /// What stands before the repository in URLs of files and pages; nothing for models.
    pub(crate) fn prefix(self) -> &'static str {
        match self {
            Self::Model => "",
            Self::Dataset => "datasets/",
            Self::Space => "spaces/",
            Self::Kernel => "kernels/",
        }
    }
}

impl FromStr for HubAddress {
    type Err = Error;

    /// Parses what follows `hf://`.
    fn from_str(rest: &str) -> Result<Self> {
        if rest.contains(['?', '#']) {
            return Err(malformed("an address on the hub has no ? or # in it"));
        }
        let kinds = [RepoKind::Model, RepoKind::Dataset, RepoKind::Space];
        let (kind, rest) = kinds
            .iter()
            .find_map(|kind| Some((*kind, rest.strip_prefix(kind.plural())?.strip_prefix('/')?)))
            .unwrap_or((RepoKind::Model, rest));
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (first, after) = rest.split_once('/').map_or((rest, None), |(first, after)| (first, Some(after)));
        let (repo, rest) = match after {
            Some(after) if !first.contains('@') => {
                let end = after.find(['/', '@']).unwrap_or(after.len());
                (format!("{first}/{}", &after[..end]), &after[end..])
            }
            _ => {
                let end = first.find('@').unwrap_or(first.len());
                (first[..end].to_owned(), &rest[end..])
            }
        };
        check_repo(&repo)?;
        let (revision, path) = match rest.strip_prefix('@') {
            None => (None, rest),
            Some(rest) => {
                let (revision, path) = split_revision(rest);
                (Some(check_revision(&revision)?), path)
            }
        };
        let path = path.strip_prefix('/').unwrap_or(path).to_owned();
        if !path.is_empty() && path.split('/').any(str::is_empty) {
            return Err(malformed("the path has an empty part"));
        }
        check_path(&path)?;
        Ok(Self { kind, repo, revision, path })
    }
}

/// A revision and the path after it. The revisions `refs/pr/1` and `refs/convert/parquet` have slashes in
/// them; others that have are written with `%2F`.
fn split_revision(rest: &str) -> (String, &str) {
    let mut ends = rest.match_indices('/').map(|(at, _)| at);
    let end = match rest.starts_with("refs/pr/") || rest.starts_with("refs/convert/") {
        true => ends.nth(2),
        false => ends.next(),
    };
    let (revision, path) = rest.split_at(end.unwrap_or(rest.len()));
    (decode(revision).unwrap_or_default(), path)
}

fn check_revision(revision: &str) -> Result<String> {
    let bad = revision.is_empty()
        || revision.contains("..")
        || revision.split('/').any(|part| part.is_empty() || part.starts_with('.'))
        || revision.chars().any(|c| c.is_control() || c.is_whitespace() || "\\~^:?*[".contains(c));
    match bad {
        true => Err(malformed("what follows @ is no revision; give a branch, a tag or a commit")),
        false => Ok(revision.to_owned()),
    }
}

/// The hub's own rules for `owner/name`.
fn check_repo(repo: &str) -> Result<()> {
    let good = |part: &str| {
        (1..=96).contains(&part.len())
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
            && !part.contains("..")
            && !part.contains("--")
            && !part.starts_with(['-', '.'])
            && !part.ends_with(['-', '.'])
            && !part.ends_with(".git")
    };
    match repo.split('/').all(good) {
        true => Ok(()),
        false => Err(malformed("the repository is to be owner/name, of letters, digits, -, _ and .")),
    }
}

impl HubAddress {
    /// The revision that is meant.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }
}

impl WebAddress {
    fn parse(scheme: &str, rest: &str) -> Result<Self> {
        let rest = rest.split('#').next().unwrap_or_default();
        let (rest, query) = rest.split_once('?').map_or((rest, None), |(rest, query)| (rest, Some(query)));
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        if authority.contains('@') {
            return Err(malformed(
                "user names and passwords in URLs are not sent; use a token or a signed URL",
            ));
        }
        let host_ok = |b: u8| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b);
        if authority.is_empty() || !authority.bytes().all(host_ok) {
            return Err(malformed("the URL has no valid host"));
        }
        let decoded = decode(path).ok_or_else(|| malformed("the path has a % that encodes nothing"))?;
        check_path(&decoded)?;
        let path = if path.is_empty() { "/".to_owned() } else { encode_path(path, true) };
        if query.is_some_and(|query| {
            query.chars().any(|c| c.is_control() || c == ' ' || c == '\\' || !c.is_ascii())
        }) {
            return Err(malformed("the query has a character in it that must be percent-encoded"));
        }
        let address = Self {
            origin: format!("{scheme}://{}", authority.to_ascii_lowercase()),
            path,
            query: query.map(Into::into),
        };
        match address.url().parse::<http::Uri>() {
            Ok(uri) if is_plain(&uri) => Ok(address),
            _ => Err(malformed("the URL has no valid host or port")),
        }
    }

    /// The whole URL, with its query, which may be a secret.
    pub fn url(&self) -> String {
        let query = self.query.as_ref().map(|query| format!("?{query}")).unwrap_or_default();
        format!("{}{}{query}", self.origin, self.path)
    }

    /// Whether it is `http`, so that nothing is encrypted.
    pub fn is_plain(&self) -> bool {
        self.origin.starts_with("http://")
    }

    /// `https://host:port`.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The name of the file that it names, after the last slash; `None`: it is a folder.
    pub fn file(&self) -> Option<String> {
        let name = self.path.rsplit('/').next().filter(|name| !name.is_empty())?;
        decode(name)
    }

    /// The file of this name in the folder that this address is in. What it names itself keeps its query;
    /// another has none, for a signature is of one file.
    pub fn beside(&self, name: &str) -> Result<Self> {
        check_name(name)?;
        if self.file().as_deref() == Some(name) {
            return Ok(self.clone());
        }
        let folder = &self.path[..=self.path.rfind('/').unwrap_or(0)];
        let path = format!("{folder}{}", encode_path(name, false));
        Ok(Self { origin: self.origin.clone(), path, query: None })
    }
}

impl StoreAddress {
    fn parse(kind: StoreKind, rest: &str) -> Result<Self> {
        if rest.contains(['?', '#']) {
            return Err(malformed("an object's address has no ? or # in it"));
        }
        let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
        let good = |b: u8| b.is_ascii_alphanumeric() || b"-_.$".contains(&b);
        if bucket.contains('@') {
            return Err(malformed(
                "an account or password before the bucket is not read; it comes from the environment",
            ));
        }
        if bucket.is_empty() || !bucket.bytes().all(good) || bucket.contains("..") {
            return Err(malformed("the bucket is missing, or is none"));
        }
        check_path(key)?;
        if key.starts_with('/') || key.contains("//") {
            return Err(malformed("the key has an empty part"));
        }
        Ok(Self { kind, bucket: bucket.to_owned(), key: key.to_owned() })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hub(address) => address.fmt(f),
            Self::Web(address) => address.fmt(f),
            Self::Store(address) => address.fmt(f),
        }
    }
}

impl fmt::Display for HubAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hf://{}{}", self.kind.prefix(), self.repo)?;
        if let Some(revision) = &self.revision {
            let whole = revision.starts_with("refs/pr/") || revision.starts_with("refs/convert/");
            match whole && revision.matches('/').count() == 2 {
                true => write!(f, "@{revision}")?,
                false => write!(f, "@{}", encode_segment(revision))?,
            }
        }
        if !self.path.is_empty() {
            write!(f, "/{}", self.path)?;
        }
        Ok(())
    }
}

impl fmt::Display for WebAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.origin, self.path)
    }
}

impl fmt::Debug for WebAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WebAddress({self})")
    }
}

impl fmt::Display for StoreAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.kind {
            StoreKind::S3 => "s3",
            StoreKind::Google => "gs",
            StoreKind::Azure => "az",
        };
        write!(f, "{scheme}://{}/{}", self.bucket, self.key)
    }
}
