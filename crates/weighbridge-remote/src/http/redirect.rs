//! Where a redirect may lead, and who may see the token.

use std::fmt;
use std::sync::Arc;

use http::{HeaderMap, HeaderValue, StatusCode, Uri};

use super::headers;
use super::resolve::is_loopback;
use crate::{Error, ErrorKind, Result};

/// How often a server may send on.
pub(crate) const MOST: usize = 5;

/// Scheme, host and port, the latter always written.
pub(crate) fn origin_of(uri: &Uri) -> String {
    let scheme = uri.scheme_str().unwrap_or_default();
    let port = uri.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
    format!("{scheme}://{}:{port}", uri.host().unwrap_or_default().to_ascii_lowercase())
}

/// The host, with a port if one is written: what may be shown of a URL.
pub(crate) fn host_of(uri: &Uri) -> String {
    match (uri.host(), uri.port_u16()) {
        (Some(host), Some(port)) => format!("{host}:{port}"),
        (host, _) => host.unwrap_or_default().to_owned(),
    }
}

/// Whether a URL has a host, a port that is one if any, and neither user nor password.
pub(crate) fn is_plain(uri: &Uri) -> bool {
    let Some(authority) = uri.authority() else { return false };
    let (host, text) = (authority.host(), authority.as_str());
    let port = text.strip_prefix(host).is_some_and(|rest| rest.is_empty() || authority.port_u16().is_some());
    !host.is_empty() && port && !text.contains('@')
}

/// Whether an answer sends elsewhere.
pub(crate) fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Where an answer sends.
pub(crate) fn target(from: &Uri, headers: &HeaderMap) -> Result<Uri> {
    let bad =
        |message: &str| Error::new(ErrorKind::Malformed, format!("{} redirects {message}", host_of(from)));
    let location = headers::text(headers, "location").ok_or_else(|| bad("to no place"))?;
    let location = location.split('#').next().unwrap_or_default();
    let origin = || {
        format!("{}://{}", from.scheme_str().unwrap_or_default(), from.authority().map_or("", |a| a.as_str()))
    };
    let whole = if location.contains("://") && !location.starts_with('/') {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{}:{location}", from.scheme_str().unwrap_or_default())
    } else if location.starts_with('/') {
        format!("{}{location}", origin())
    } else {
        let folder = &from.path()[..from.path().rfind('/').map_or(0, |at| at + 1)];
        format!("{}{folder}{location}", origin())
    };
    let uri: Uri = whole.parse().map_err(|_| bad("to a malformed URL"))?;
    if !is_plain(&uri) {
        return Err(bad("to a URL with a user name, or without a valid host"));
    }
    match (from.scheme_str(), uri.scheme_str()) {
        (_, Some("https")) | (Some("http"), Some("http")) => Ok(uri),
        (Some("https"), Some("http")) => Err(Error::new(
            ErrorKind::Denied,
            format!("{} redirects from https to http, which is refused", host_of(from)),
        )),
        _ => Err(bad("to something that is not HTTP")),
    }
}

/// A token. It is shown to nobody.
#[derive(Clone)]
pub(crate) struct Token(Arc<str>);

impl Token {
    /// `None`: it has characters that no header may have.
    pub(crate) fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        let good = !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
        good.then(|| Self(text.into()))
    }

    fn header(&self) -> Option<HeaderValue> {
        let mut value = HeaderValue::from_str(&format!("Bearer {}", self.0)).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// A token, and the servers that may see it.
#[derive(Clone, Debug)]
pub(crate) struct Auth {
    token: Option<Token>,
    origins: Vec<String>,
}

impl Auth {
    pub(crate) fn new(token: Option<Token>, origins: Vec<String>) -> Self {
        Self { token, origins }
    }

    /// Whether a server is one of ours.
    pub(crate) fn knows(&self, uri: &Uri) -> bool {
        self.origins.contains(&origin_of(uri))
    }

    /// The header for a request, if that server may see it: by encryption, or on this machine.
    pub(crate) fn header(&self, uri: &Uri) -> Option<HeaderValue> {
        let safe = uri.scheme_str() == Some("https") || uri.host().is_some_and(is_loopback);
        if !safe || !self.knows(uri) {
            return None;
        }
        self.token.as_ref()?.header()
    }

    pub(crate) fn has_token(&self) -> bool {
        self.token.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(from: &'static str, location: &'static str) -> Result<String> {
        let mut headers = HeaderMap::new();
        headers.insert("location", HeaderValue::from_static(location));
        target(&Uri::from_static(from), &headers).map(|uri| uri.to_string())
    }

    #[test]
    fn redirects() {
        let from = "https://a:1/x/y?q";
        assert_eq!(to(from, "/api/z?k#f").unwrap(), "https://a:1/api/z?k");
        assert_eq!(to(from, "z").unwrap(), "https://a:1/x/z");
        assert_eq!(to(from, "//b/z").unwrap(), "https://b/z");
        assert_eq!(to(from, "https://b/z").unwrap(), "https://b/z");
        assert_eq!(to("http://a/", "https://b/z").unwrap(), "https://b/z");
        assert_eq!(to(from, "http://a:1/z").unwrap_err().kind(), ErrorKind::Denied);
        for bad in [
            "ftp://b/",
            "file:///etc/passwd",
            "https://u:p@b/",
            "https:///",
            "https://b:99999/",
            "https://b:x/",
        ] {
            let error = to(from, bad).unwrap_err().to_string();
            assert!(!error.contains("u:p"), "{error}");
        }
    }

    #[test]
    fn the_token_is_for_the_origins_alone() {
        let auth = Auth::new(
            Token::new(" hf_secret\n"),
            vec!["https://hub:443".into(), "http://10.0.0.1:80".into()],
        );
        let header = |uri: &'static str| auth.header(&Uri::from_static(uri));
        let value = header("https://hub/a").unwrap();
        assert_eq!(value, "Bearer hf_secret");
        assert!(!format!("{value:?}{auth:?}").contains("secret"));
        for other in ["https://hub:444/a", "http://hub/a", "https://hub.evil/a", "http://10.0.0.1/a"] {
            assert!(header(other).is_none(), "{other}");
        }
        assert!(Token::new("a\r\nb").is_none() && Token::new(" ").is_none());
    }
}
