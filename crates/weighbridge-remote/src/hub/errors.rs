//! What the hub's refusals mean, and what to do about them.

use std::time::SystemTime;

use http::{HeaderMap, StatusCode};

use super::Repo;
use crate::http::headers::{rate_limit, server_wait, text};
use crate::{Error, ErrorKind};

/// A request that the hub refused.
pub(crate) struct Refusal<'a> {
    pub(crate) repo: &'a Repo,
    pub(crate) revision: Option<&'a str>,
    pub(crate) path: Option<&'a str>,
    pub(crate) token_sent: bool,
}

impl Refusal<'_> {
    /// The error, without the address.
    pub(crate) fn error(&self, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Error {
        let code = text(headers, "x-error-code").unwrap_or_default();
        let message = self.message(headers, body);
        let says = |part: &str| message.to_ascii_lowercase().contains(part);
        let page = format!("{}/{}{}", self.repo.hub.endpoint, self.repo.kind.prefix(), self.repo.id);
        let sent =
            if self.token_sent { "the token that was sent has no access yet" } else { "no token was sent" };
        let (kind, text) = match (code, status.as_u16()) {
            ("GatedRepo", _) => (
                ErrorKind::Denied,
                format!("access is gated: accept its terms at {page}, then set HF_TOKEN ({sent})"),
            ),
            ("RevisionNotFound", _) => (ErrorKind::NotFound, self.no_revision()),
            ("EntryNotFound", _) => (ErrorKind::NotFound, self.no_file()),
            _ if says("access to this resource is disabled") => {
                (ErrorKind::Denied, "it has been disabled on the hub".to_owned())
            }
            (_, 401) if self.token_sent && (says("invalid credentials") || says("invalid username")) => {
                let text = "the token is not valid; set HF_TOKEN to one from your settings on the hub, or run \
                            hf auth login";
                (ErrorKind::Denied, text.to_owned())
            }
            ("RepoNotFound", _) | ("", 401) => (ErrorKind::NotFound, self.no_repo()),
            (_, 404) if self.path.is_some() => (ErrorKind::NotFound, self.no_file()),
            (_, 404) => (ErrorKind::NotFound, self.no_repo()),
            (_, 403) => (ErrorKind::Denied, format!("access denied (403){}", quoted(&message))),
            (_, 429) => (ErrorKind::Io, limited(headers)),
            (_, status @ 500..) => (ErrorKind::Io, format!("the hub failed ({status}){}", quoted(&message))),
            (_, status) => (ErrorKind::Malformed, format!("the hub answered {status}{}", quoted(&message))),
        };
        Error::new(kind, text)
    }

    /// What the hub says in words, on one line, without anything that could be a secret.
    fn message(&self, headers: &HeaderMap, body: &[u8]) -> String {
        let from_header = text(headers, "x-error-message").map(str::to_owned);
        let message = from_header.or_else(|| {
            let json: serde_json::Value = serde_json::from_slice(body).ok()?;
            json.get("error")?.as_str().map(str::to_owned)
        });
        let line = message.unwrap_or_default();
        let words = line.split_whitespace().filter(|word| !word.contains("://") && !word.contains("hf_"));
        words.collect::<Vec<_>>().join(" ").chars().filter(|c| !c.is_control()).take(200).collect()
    }

    fn no_repo(&self) -> String {
        match self.token_sent {
            true => "no such repository, or the token has no access to it".to_owned(),
            false => "no such repository, or it is private: then set HF_TOKEN (no token was sent)".to_owned(),
        }
    }

    fn no_revision(&self) -> String {
        match self.revision {
            Some(revision) => format!("no such revision: {}", plain(revision)),
            None => "no such revision".to_owned(),
        }
    }

    fn no_file(&self) -> String {
        match self.path {
            Some(path) => format!("no such file: {}", plain(path)),
            None => "no such file".to_owned(),
        }
    }
}

fn plain(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}

fn quoted(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

/// `rate limit of the hub reached (resolvers: 0 of 3000 left); it ends in 55 s`
fn limited(headers: &HeaderMap) -> String {
    let counts = rate_limit(headers).map(|limit| {
        let quota = limit.quota.map(|quota| format!(" of {quota}")).unwrap_or_default();
        format!(" ({}: {}{quota} left)", limit.name, limit.left)
    });
    let wait = server_wait(headers, SystemTime::now());
    let wait = wait.map(|wait| format!("; it ends in {} s", wait.as_secs())).unwrap_or_default();
    format!("rate limit of the hub reached{}{wait}", counts.unwrap_or_default())
}
