//! From names of hosts to addresses, and which addresses a redirect may not lead to.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::Uri;
use ureq::config::Config;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

use super::stop::{Switch, TICK};

/// A public server led to an address inside somebody's network.
#[derive(Debug)]
pub(crate) struct PrivateAddress;

impl fmt::Display for PrivateAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("it leads to a private address")
    }
}

impl std::error::Error for PrivateAddress {}

/// Whether an address is of this machine, of a network that the world does not see, or of no host at all.
pub(crate) fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_private_v4(v4),
        IpAddr::V6(v6) => is_private_v6(v6),
    }
}

fn is_private_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    address.is_loopback()
        || address.is_private()
        || address.is_link_local()
        || address.is_broadcast()
        || address.is_multicast()
        || a == 0
        || a >= 240
        || (a == 100 && (64..128).contains(&b))
        || (a == 192 && b == 0 && c == 0)
        || (a == 198 && (18..20).contains(&b))
}

fn is_private_v6(address: Ipv6Addr) -> bool {
    let s = address.segments();
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        is_private_v4(Ipv4Addr::new(a, b, c, d))
    };
    match s {
        // Mapped, compatible (of which :: and ::1 are two), and translated IPv4 addresses.
        [0, 0, 0, 0, 0, 0xffff | 0, high, low] => v4(high, low),
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => v4(high, low),
        [0x64, 0xff9b, 1, ..] => true,
        [0x2002, high, low, ..] => v4(high, low),
        _ => {
            s[0] & 0xfe00 == 0xfc00 || s[0] & 0xffc0 == 0xfe80 || s[0] & 0xffc0 == 0xfec0 || s[0] >> 8 == 0xff
        }
    }
}

/// The address that a host's name writes out.
fn literal(host: &str) -> Option<IpAddr> {
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

/// What can be said of a host without asking anybody; `None`: its name must be looked up.
pub(crate) fn is_private_name(host: &str) -> Option<bool> {
    if let Some(address) = literal(host) {
        return Some(is_private(address));
    }
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    (host == "localhost" || host.ends_with(".localhost")).then_some(true)
}

/// Whether a host is this machine, as its name says.
pub(crate) fn is_loopback(host: &str) -> bool {
    match literal(host) {
        Some(address) => address.is_loopback(),
        None => is_private_name(host) == Some(true),
    }
}

/// Addresses, and when they were found.
type Found = (Instant, Vec<SocketAddr>);

/// Looks names up, and keeps what it found for a minute: an agent asks before each request, though most use a
/// connection that is open.
#[derive(Clone, Default)]
pub(crate) struct Names {
    known: Arc<Mutex<HashMap<String, Found>>>,
}

const KEPT: Duration = Duration::from_secs(60);

impl Names {
    /// The addresses of `host:port`. Gives up when the time is over or the switch is thrown. Where looking up
    /// fails, what was found before is better than nothing: a network that is down comes back.
    pub(crate) fn look_up(
        &self,
        host: &str,
        port: u16,
        most: Duration,
        switch: &Switch,
    ) -> io::Result<Vec<SocketAddr>> {
        if let Some(address) = literal(host) {
            return Ok(vec![SocketAddr::new(address, port)]);
        }
        let key = format!("{host}:{port}");
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        if let Some((_, found)) = known.as_ref().filter(|(at, _)| at.elapsed() < KEPT) {
            return Ok(found.clone());
        }
        let found = match ask(key.clone(), most, switch) {
            Ok(found) if !found.is_empty() => found,
            Ok(_) => return Err(io::ErrorKind::NotFound.into()),
            Err(error) if error.kind() == io::ErrorKind::NotConnected => return Err(error),
            Err(error) => known.map(|(_, found)| found).ok_or(error)?,
        };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(key, (Instant::now(), found.clone()));
        Ok(found)
    }
}

/// Asks the system, by a thread that may be left alone.
fn ask(question: String, most: Duration, switch: &Switch) -> io::Result<Vec<SocketAddr>> {
    let (sender, answer) = sync_channel(1);
    std::thread::Builder::new().name("weighbridge-dns".into()).spawn(move || {
        let _ = sender.send(question.to_socket_addrs().map(Iterator::collect));
    })?;
    let end = Instant::now() + most;
    loop {
        match answer.recv_timeout(TICK) {
            Ok(found) => return found,
            Err(RecvTimeoutError::Disconnected) => return Err(io::ErrorKind::NotFound.into()),
            Err(RecvTimeoutError::Timeout) if switch.is_off() => {
                return Err(io::ErrorKind::NotConnected.into());
            }
            Err(RecvTimeoutError::Timeout) if Instant::now() >= end => {
                return Err(io::ErrorKind::TimedOut.into());
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

/// What an agent resolves with.
pub(crate) struct Guard {
    pub(crate) names: Names,
    /// Whether private addresses are refused.
    pub(crate) strict: bool,
    pub(crate) timeout: Duration,
    /// Off when the agent is shut down, which does not end looking names up by itself.
    pub(crate) switch: Switch,
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Guard {{ strict: {} }}", self.strict)
    }
}

impl Resolver for Guard {
    fn resolve(&self, uri: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let host = uri.host().ok_or(ureq::Error::HostNotFound)?;
        let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
        let found =
            self.names.look_up(host, port, self.timeout, &self.switch).map_err(|error| {
                match error.kind() {
                    io::ErrorKind::NotConnected => ureq::Error::Io(error),
                    io::ErrorKind::TimedOut => ureq::Error::Timeout(ureq::Timeout::Resolve),
                    _ => ureq::Error::HostNotFound,
                }
            })?;
        // One private address among others is refused too: which of them is taken is not ours to say.
        if self.strict && found.iter().any(|address| is_private(address.ip())) {
            return Err(ureq::Error::Other(Box::new(PrivateAddress)));
        }
        let mut result = self.empty();
        found.into_iter().take(16).for_each(|address| result.push(address));
        match result.is_empty() {
            true => Err(ureq::Error::HostNotFound),
            false => Ok(result),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_addresses() {
        for text in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.0.1",
            "169.254.169.254",
            "0.0.0.0",
            "100.64.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "fe80::1",
            "fc00::1",
            "fd12::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "ff02::1",
            "::127.0.0.1",
            "198.18.0.1",
        ] {
            assert!(is_private(text.parse().unwrap()), "{text}");
        }
        for text in
            ["1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
        {
            assert!(!is_private(text.parse().unwrap()), "{text}");
        }
        assert_eq!(is_private_name("localhost"), Some(true));
        assert_eq!(is_private_name("a.LOCALHOST."), Some(true));
        assert_eq!(is_private_name("[::1]"), Some(true));
        assert_eq!(is_private_name("huggingface.co"), None);
        assert!(is_loopback("127.0.0.2") && is_loopback("localhost") && !is_loopback("10.0.0.1"));
    }

    #[test]
    fn a_name_that_is_private_is_refused_by_the_strict() {
        let uri: Uri = "http://localhost:9/".parse().unwrap();
        let config = Config::default();
        let mut guard = Guard {
            names: Names::default(),
            strict: true,
            timeout: Duration::from_secs(5),
            switch: Switch::default(),
        };
        let Err(ureq::Error::Other(error)) = guard.resolve(&uri, &config, no_timeout()) else { panic!() };
        assert!(error.is::<PrivateAddress>());
        guard.strict = false;
        assert!(guard.resolve(&uri, &config, no_timeout()).is_ok());
    }

    #[test]
    fn what_was_found_is_kept_while_nobody_answers() {
        let names = Names::default();
        let address: SocketAddr = "127.0.0.1:9".parse().unwrap();
        let long_ago = Instant::now().checked_sub(KEPT * 2).unwrap();
        names.known.lock().unwrap().insert("gone.invalid:9".into(), (long_ago, vec![address]));
        let look_up = |host| names.look_up(host, 9, Duration::from_secs(5), &Switch::default());
        assert_eq!(look_up("gone.invalid").unwrap(), [address]);
        look_up("unknown.invalid").unwrap_err();
        let off = Switch::default();
        off.turn_off();
        let error = names.look_up("other.invalid", 9, Duration::from_secs(5), &off);
        assert!(error.is_err());
    }

    fn no_timeout() -> NextTimeout {
        NextTimeout::default()
    }
}
