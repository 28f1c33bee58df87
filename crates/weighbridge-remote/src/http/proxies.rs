//! Which proxy a request goes through.

use http::Uri;
use ureq::Proxy;

use crate::{Error, ErrorKind, Result};

/// The proxies for either scheme, and for which hosts there is none.
#[derive(Clone, Default)]
pub(crate) struct Proxies {
    http: Option<Proxy>,
    https: Option<Proxy>,
    none: Vec<String>,
}

impl Proxies {
    /// As `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` have it, in lower case too.
    pub(crate) fn from_environment(read: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let either = |name: &str| {
            let read =
                |name: &str| read(name).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
            read(&name.to_ascii_lowercase()).or_else(|| read(name))
        };
        let proxy = |name: &str| match either(name).or_else(|| either("ALL_PROXY")) {
            None => Ok(None),
            Some(text) => Self::proxy(&text).map(Some),
        };
        let none = either("NO_PROXY").unwrap_or_default();
        Ok(Self { http: proxy("HTTP_PROXY")?, https: proxy("HTTPS_PROXY")?, none: split(&none) })
    }

    /// One proxy for everything but the hosts of this machine.
    pub(crate) fn one(text: &str) -> Result<Self> {
        let proxy = Self::proxy(text)?;
        Ok(Self { http: Some(proxy.clone()), https: Some(proxy), none: split("localhost,127.0.0.1,::1") })
    }

    fn proxy(text: &str) -> Result<Proxy> {
        // A proxy's URL may hold a password, so it is not shown.
        let proxy = Proxy::new(text)
            .map_err(|_| Error::new(ErrorKind::Address, "the proxy's URL is malformed; see HTTPS_PROXY"))?;
        match proxy.protocol() {
            ureq::ProxyProtocol::Http | ureq::ProxyProtocol::Https => Ok(proxy),
            _ => {
                Err(Error::new(ErrorKind::Unsupported, "SOCKS proxies are not supported; give an HTTP proxy"))
            }
        }
    }

    pub(crate) fn of(&self, uri: &Uri) -> Option<&Proxy> {
        let proxy = match uri.scheme_str() {
            Some("https") => self.https.as_ref(),
            _ => self.http.as_ref(),
        };
        let host = uri.host()?.trim_matches(['[', ']']).to_ascii_lowercase();
        let direct = |entry: &String| {
            entry == "*"
                || *entry == host
                || host.strip_suffix(entry.as_str()).is_some_and(|rest| rest.ends_with('.'))
        };
        proxy.filter(|_| !self.none.iter().any(direct))
    }
}

/// The entries of `NO_PROXY`. Each is of a domain and those below it, with a dot or star before it or
/// without.
fn split(text: &str) -> Vec<String> {
    let entry = |text: &str| match text.trim().to_ascii_lowercase() {
        star if star == "*" => star,
        text => text.trim_start_matches('*').trim_start_matches('.').trim_matches(['[', ']']).to_owned(),
    };
    text.split([',', ' ']).map(entry).filter(|entry| !entry.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_scheme_and_host() {
        let read = |name: &str| match name {
            "HTTPS_PROXY" => Some("http://user:pass@proxy:3128".to_owned()),
            "no_proxy" => Some("internal, .corp.example,*.lab ,10.0.0.1".to_owned()),
            _ => None,
        };
        let proxies = Proxies::from_environment(&read).unwrap();
        let of = |url: &str| proxies.of(&url.parse().unwrap()).map(Proxy::port);
        assert_eq!(of("https://huggingface.co/a"), Some(3128));
        assert_eq!(of("http://huggingface.co/a"), None);
        for direct in ["internal", "a.internal", "corp.example", "x.corp.example", "a.lab", "10.0.0.1"] {
            assert_eq!(of(&format!("https://{direct}/")), None, "{direct}");
        }
        assert_eq!(of("https://notinternal/"), Some(3128));
        assert!(Proxies::one("socks5://a").is_err());
        let error = Proxies::one("http://user:secret@").err().unwrap();
        assert!(!error.to_string().contains("secret"));
    }
}
