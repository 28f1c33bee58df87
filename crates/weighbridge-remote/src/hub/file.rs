//! A file of a repository: found once by the hub, then read from where the hub sent to, until that expires.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{HeaderMap, StatusCode, Uri};

use super::tree::Entry;
use super::{Question, Repo};
use crate::encode::decode;
use crate::http::Asked;
use crate::http::headers::{bare_tag, compact_date, text};
use crate::http::origin::{Origin, Wanted};
use crate::http::redirect::{is_redirect, target};
use crate::http::stop::Stop;
use crate::{Error, ErrorKind, Result};

/// A file at a commit.
pub(crate) struct HubFile {
    repo: Repo,
    revision: String,
    path: String,
    address: String,
    first: Uri,
    /// As the listing has it.
    entry: Option<Entry>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    place: Option<Place>,
    /// Counts how often the place was found.
    version: u64,
    /// What the hub said of the content, when it sent elsewhere or answered itself.
    tag: Option<String>,
    size: Option<u64>,
}

/// Where the bytes are.
#[derive(Clone)]
struct Place {
    uri: Uri,
    guarded: bool,
    until: SystemTime,
}

/// A signature that says nothing of its end is taken to last so long.
const DEFAULT_LIFE: Duration = Duration::from_secs(600);
/// It is renewed so long before its end.
const MARGIN: Duration = Duration::from_secs(60);

impl HubFile {
    pub(crate) fn new(repo: &Repo, revision: &str, path: &str, entry: Option<Entry>) -> Result<Self> {
        Ok(Self {
            first: repo.resolve_uri(revision, path)?,
            address: format!("{}@{revision}/{path}", repo.name()),
            repo: repo.clone(),
            revision: revision.to_owned(),
            path: path.to_owned(),
            entry,
            state: Mutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, wanted: &Wanted<'_>, uri: &Uri, guarded: bool, version: u64) -> Result<Asked> {
        let mut request = wanted.get(uri)?;
        if let Some(header) = self.repo.hub.auth.header(uri) {
            request.headers_mut().insert("authorization", header);
        }
        Ok(Asked { request, guarded, version })
    }

    /// Keeps what the hub says of the content, which must be what the listing says.
    fn note(&self, state: &mut State, headers: &HeaderMap) -> Result<()> {
        let hex = |tag: &str| matches!(tag.len(), 40 | 64) && tag.bytes().all(|b| b.is_ascii_hexdigit());
        let tag = text(headers, "x-linked-etag").or_else(|| text(headers, "etag")).map(bare_tag);
        let tag = tag.filter(|tag| hex(tag)).map(str::to_ascii_lowercase);
        let size = text(headers, "x-linked-size").and_then(|size| size.parse::<u64>().ok());
        let other = |what| {
            let message = format!("the hub gives it another {what} than its listing; open it again");
            Error::new(ErrorKind::Changed, message)
        };
        if let Some(entry) = &self.entry {
            // The tag of a file that git has a pointer to may be either.
            if tag.as_deref().is_some_and(|tag| tag != entry.tag() && tag != entry.blob) {
                return Err(other("checksum"));
            }
            if size.is_some_and(|size| size != entry.size) {
                return Err(other("size"));
            }
        }
        let before = (state.tag.take(), state.size.take());
        if before.0.is_some() && tag.is_some() && before.0 != tag
            || before.1.is_some() && size.is_some() && before.1 != size
        {
            return Err(Error::new(ErrorKind::Changed, "it was changed while it was read; open it again"));
        }
        (state.tag, state.size) = (tag.or(before.0), size.or(before.1));
        Ok(())
    }

    /// Where a redirect leads that leaves the hub.
    fn place(&self, uri: Uri) -> Place {
        let guarded = !self.repo.hub.http.is_private(&self.first);
        let until = expiry(&uri, SystemTime::now());
        Place { uri, guarded, until }
    }

    /// Asks the hub once more where the file is. The state is locked, so that no two threads ask.
    fn find_again(&self, state: &mut State, stop: &Stop) -> Result<()> {
        let visited = self.repo.visit(Question::WhereNow, self.first.clone(), &self.revision, stop)?;
        if is_redirect(visited.status) {
            self.note(state, &visited.headers)?;
            state.place = Some(self.place(target(&visited.uri, &visited.headers)?));
        } else if visited.status.is_success() {
            self.note(state, &visited.headers)?;
            let until = SystemTime::now() + Duration::from_secs(86_400);
            state.place = Some(Place { uri: visited.uri, guarded: false, until });
        } else {
            return Err(self.explain(visited.status, &visited.headers, &[]));
        }
        state.version += 1;
        Ok(())
    }
}

impl Origin for HubFile {
    fn address(&self) -> &str {
        &self.address
    }

    fn ask(&self, wanted: &Wanted<'_>, stop: &Stop) -> Result<Asked> {
        let mut state = self.state();
        if state.place.as_ref().is_some_and(|place| place.until <= SystemTime::now()) {
            self.find_again(&mut state, stop)?;
        }
        match &state.place {
            Some(place) => self.get(wanted, &place.uri, place.guarded, state.version),
            None => self.get(wanted, &self.first, false, state.version),
        }
    }

    fn redirected(&self, wanted: &Wanted<'_>, from: &Uri, headers: &HeaderMap) -> Result<Asked> {
        let next = target(from, headers)?;
        let auth = &self.repo.hub.auth;
        if auth.knows(&next) {
            return self.get(wanted, &next, false, self.state().version);
        }
        let mut state = self.state();
        if auth.knows(from) {
            self.note(&mut state, headers)?;
        }
        let place = self.place(next);
        let asked = self.get(wanted, &place.uri, place.guarded, state.version);
        state.place = Some(place);
        asked
    }

    fn renew(&self, version: u64) -> bool {
        let mut state = self.state();
        let current = state.version == version;
        match &mut state.place {
            // The hub itself refused.
            None => return false,
            Some(place) if current && self.repo.hub.auth.knows(&place.uri) => return false,
            Some(place) if current => place.until = UNIX_EPOCH,
            Some(_) => {}
        }
        true
    }

    fn tags_anew(&self) -> bool {
        true
    }

    fn explain(&self, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Error {
        // A CDN has refused if the file was found; the hub, if not.
        let elsewhere = self.state.try_lock().is_ok_and(|state| state.place.is_some());
        match status.as_u16() {
            code @ 400..500 if elsewhere && code != 429 => Error::new(
                ErrorKind::Denied,
                format!("the server that the hub sent to refused it ({code}), twice"),
            ),
            _ => self.repo.refusal(Some(&self.revision), Some(&self.path)).error(status, headers, body),
        }
    }

    fn answered(&self, headers: &HeaderMap) {
        let mut state = self.state();
        if state.place.is_none() {
            // The hub answered itself, with the git sha1.
            let _ = self.note(&mut state, headers);
        }
    }

    fn tag(&self) -> Option<String> {
        self.entry.as_ref().map(|entry| entry.tag().to_owned()).or_else(|| self.state().tag.clone())
    }

    fn size(&self) -> Option<u64> {
        self.entry.as_ref().map(|entry| entry.size).or_else(|| self.state().size)
    }
}

/// Until when a signed URL is good: what it says, less a minute, or ten minutes.
fn expiry(uri: &Uri, now: SystemTime) -> SystemTime {
    let pairs = || uri.query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
    let value = |name: &str| {
        pairs().find(|(key, _)| key.eq_ignore_ascii_case(name)).and_then(|(_, value)| decode(value))
    };
    let seconds = |text: String| text.parse::<u64>().ok().filter(|n| *n < 1 << 40).map(Duration::from_secs);
    let absolute = value("Expires").and_then(seconds).and_then(|at| UNIX_EPOCH.checked_add(at));
    let relative = |life: &str, date: &str| {
        let life = value(life).and_then(seconds)?;
        let from = value(date).and_then(|date| compact_date(&date)).unwrap_or(now);
        from.checked_add(life)
    };
    let amazon = relative("X-Amz-Expires", "X-Amz-Date");
    let google = relative("X-Goog-Expires", "X-Goog-Date");
    match [absolute, amazon, google].into_iter().flatten().min() {
        // A server's clock that is wrong must not make every request look for the file again.
        Some(end) => end
            .checked_sub(MARGIN)
            .filter(|end| *end > now + Duration::from_secs(5))
            .unwrap_or(now + Duration::from_secs(30)),
        None => now + DEFAULT_LIFE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_end() {
        let now = UNIX_EPOCH + Duration::from_secs(784_111_777);
        let life =
            |url: &'static str| expiry(&Uri::from_static(url), now).duration_since(now).unwrap().as_secs();
        assert_eq!(life("https://cdn/a?X-Amz-Expires=3600&X-Amz-Date=19941106T084937Z"), 3540);
        assert_eq!(life("https://cdn/a?Expires=784113777&Signature=x"), 1940);
        assert_eq!(life("https://cdn/a?Expires=784113777&X-Amz-Expires=300"), 240);
        assert_eq!(life("https://cdn/a"), 600);
        assert_eq!(life("https://cdn/a?Expires=5"), 30);
        assert_eq!(life("https://cdn/a?Expires=99999999999999999999999"), 600);
    }
}
