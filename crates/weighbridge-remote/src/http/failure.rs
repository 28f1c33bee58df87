//! Why a request came to nothing, and whether another may fare better.

use std::io;
use std::time::Duration;

use http::Uri;

use super::redirect::host_of;
use super::resolve::PrivateAddress;
use crate::retry::Budget;
use crate::{Error, ErrorKind};

/// A request that failed.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) trouble: Trouble,
    pub(crate) error: Error,
}

/// What kind of failure, for who decides whether to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// It would fail again.
    Fatal,
    /// It may pass.
    Passing,
    /// As [`Self::Passing`]; there was no connection.
    Unreachable,
    /// As [`Self::Unreachable`], but names seldom come into being.
    NoSuchHost,
    /// The server said when to come back.
    ToldToWait(Duration),
    /// Somebody else's requests were interrupted.
    Woken,
}

/// What to do where there is no connection.
const CURE: &str = "; check the address and the network, and HTTPS_PROXY where a proxy is needed";

impl Failure {
    pub(crate) fn fatal(error: Error) -> Self {
        Self { trouble: Trouble::Fatal, error }
    }

    pub(crate) fn passing(message: impl Into<String>) -> Self {
        Self { trouble: Trouble::Passing, error: Error::new(ErrorKind::Io, message) }
    }

    fn unreachable(message: impl Into<String>) -> Self {
        Self { trouble: Trouble::Unreachable, error: Error::new(ErrorKind::Io, message) }
    }

    pub(crate) fn told_to_wait(wait: Duration, error: Error) -> Self {
        Self { trouble: Trouble::ToldToWait(wait), error }
    }

    pub(crate) fn woken() -> Self {
        Self { trouble: Trouble::Woken, error: Error::new(ErrorKind::Cancelled, "interrupted") }
    }

    /// What an error of the agent means. No text of it has a URL in it, which could be a signed one.
    pub(crate) fn of(error: &ureq::Error, uri: &Uri, is_proxied: bool) -> Self {
        let host = host_of(uri);
        let from = match (host.is_empty(), is_proxied) {
            (true, _) => String::new(),
            (false, false) => format!(" ({host})"),
            (false, true) => format!(" ({host}, through the proxy that HTTPS_PROXY or HTTP_PROXY names)"),
        };
        let fatal = |kind, message: String| Self::fatal(Error::new(kind, message));
        match error {
            ureq::Error::Io(error) => Self::of_io(error, &host, &from),
            ureq::Error::Timeout(ureq::Timeout::Connect) => {
                Self::unreachable(format!("no connection in time{from}"))
            }
            ureq::Error::Timeout(ureq::Timeout::Resolve) => {
                Self::unreachable(format!("the name was not looked up in time{from}"))
            }
            ureq::Error::Timeout(_) => Self::passing(format!("the server was silent for too long{from}")),
            ureq::Error::HostNotFound => {
                let error = Error::new(ErrorKind::Io, format!("host not found{from}"));
                Self { trouble: Trouble::NoSuchHost, error }
            }
            ureq::Error::Other(error) if error.is::<PrivateAddress>() => {
                fatal(ErrorKind::Denied, format!("a server led to a private address{from}, which is refused"))
            }
            ureq::Error::Protocol(_) | ureq::Error::BodyStalled => {
                Self::passing(format!("the answer is not valid HTTP{from}"))
            }
            ureq::Error::LargeResponseHeader(..) => {
                fatal(ErrorKind::Malformed, format!("the answer's headers are too long{from}"))
            }
            ureq::Error::ConnectProxyFailed(_) => {
                Self::unreachable(format!("the proxy could not connect{from}"))
            }
            ureq::Error::ConnectionFailed => Self::unreachable(format!("no connection{from}")),
            ureq::Error::Tls(_) | ureq::Error::Rustls(_) | ureq::Error::TlsRequired => {
                fatal(ErrorKind::Io, format!("no encrypted connection could be made{from}"))
            }
            ureq::Error::Http(_) | ureq::Error::BadUri(_) => {
                fatal(ErrorKind::Address, format!("the URL or a header is malformed{from}"))
            }
            _ => fatal(ErrorKind::Io, format!("the request failed{from}")),
        }
    }

    fn of_io(error: &io::Error, host: &str, from: &str) -> Self {
        let text = error.to_string();
        if error.kind() == io::ErrorKind::InvalidData && text.contains("certificate") {
            let message = format!(
                "the certificate of {host} is not trusted ({text}); name your authority's in SSL_CERT_FILE"
            );
            return Self::fatal(Error::new(ErrorKind::Denied, message));
        }
        let what = match error.kind() {
            io::ErrorKind::UnexpectedEof => "connection closed".to_owned(),
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => "connection reset".to_owned(),
            io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
                "the server was silent for too long".to_owned()
            }
            // What else ureq wraps in such an error may have a URL in it.
            _ if error.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<ureq::Error>) => {
                "connection failed".to_owned()
            }
            _ => text,
        };
        let message = format!("{what}{from}");
        match error.kind() {
            io::ErrorKind::ConnectionRefused
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkDown => Self::unreachable(message),
            _ => Self::passing(message),
        }
    }

    /// The error to report when it was tried often enough.
    pub(crate) fn given_up(self, budget: &Budget, now: Duration) -> Error {
        let message = self.error.message();
        let message = match self.trouble {
            Trouble::ToldToWait(wait) => {
                let times = budget.refusals() - 1;
                format!("{message}; that would be to wait {} s, after {times} times", wait.as_secs())
            }
            _ => {
                let attempts = budget.failures();
                let noun = if attempts == 1 { "attempt" } else { "attempts" };
                let cure = match self.trouble {
                    Trouble::Unreachable | Trouble::NoSuchHost => CURE,
                    _ => "",
                };
                let seconds = budget.waited(now).as_secs();
                format!("{message}, {attempts} {noun} in {seconds} s without progress{cure}")
            }
        };
        Error::new(self.error.kind(), message)
    }
}
