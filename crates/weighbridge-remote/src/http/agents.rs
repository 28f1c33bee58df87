//! The agents that send requests, which are replaced when somebody wakes what waits for them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{Request, Response, Uri};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::unversioned::transport::{ConnectProxyConnector, Connector, RustlsConnector};
use ureq::{Agent, AsSendBody, Body, Proxy};

use super::connect::Tcp;
use super::proxies::Proxies;
use super::resolve::{Guard, Names, PrivateAddress, is_private, is_private_name};
use super::stop::Switch;

/// Times after which a server is taken to be silent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timeouts {
    pub(crate) connect: Duration,
    /// From the request to the end of the answer's headers.
    pub(crate) answer: Duration,
    /// Between two pieces of a body.
    pub(crate) stall: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { connect: seconds(10), answer: seconds(30), stall: seconds(10) }
    }
}

/// How a request gets to its server.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Route {
    /// To any address.
    Direct,
    /// To public addresses only.
    Guarded,
    Proxy {
        https: bool,
    },
}

/// Agents for each route, made when they are needed.
#[derive(Clone)]
pub(crate) struct Agents {
    shared: Arc<Shared>,
}

struct Shared {
    timeouts: Timeouts,
    proxies: Proxies,
    names: Names,
    connections: usize,
    current: Mutex<Current>,
}

/// Those that are used now, and how often they were replaced.
#[derive(Default)]
struct Current {
    agents: Vec<(Route, Agent)>,
    switch: Switch,
    generation: u64,
}

impl Agents {
    pub(crate) fn new(timeouts: Timeouts, proxies: Proxies, names: Names, connections: usize) -> Self {
        let current = Mutex::default();
        Self { shared: Arc::new(Shared { timeouts, proxies, names, connections, current }) }
    }

    /// Sends a request, and returns the answer's head with its body yet to be read. `guarded`: a server, not
    /// the user, gave the address.
    pub(crate) fn send(
        &self,
        request: Request<impl AsSendBody>,
        guarded: bool,
    ) -> Result<Response<Body>, ureq::Error> {
        let route = self.route(request.uri(), guarded)?;
        self.agent(route).run(request)
    }

    /// The same with a body, of which the server may make much before it answers: an object of ten thousand
    /// parts.
    pub(crate) fn send_body(
        &self,
        request: Request<&[u8]>,
        guarded: bool,
    ) -> Result<Response<Body>, ureq::Error> {
        let agent = self.agent(self.route(request.uri(), guarded)?);
        let answer = self.shared.timeouts.answer * 4;
        let request = agent.configure_request(request).timeout_recv_response(Some(answer)).build();
        agent.run(request)
    }

    /// Whether requests go through a proxy.
    pub(crate) fn is_proxied(&self, uri: &Uri) -> bool {
        self.shared.proxies.of(uri).is_some()
    }

    fn route(&self, uri: &Uri, guarded: bool) -> Result<Route, ureq::Error> {
        let proxied = self.shared.proxies.of(uri).is_some();
        // Behind a proxy only it knows a name's address.
        if guarded && proxied && uri.host().and_then(is_private_name) == Some(true) {
            return Err(ureq::Error::Other(Box::new(PrivateAddress)));
        }
        Ok(match (proxied, guarded) {
            (true, _) => Route::Proxy { https: uri.scheme_str() == Some("https") },
            (false, true) => Route::Guarded,
            (false, false) => Route::Direct,
        })
    }

    fn current(&self) -> std::sync::MutexGuard<'_, Current> {
        self.shared.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn agent(&self, route: Route) -> Agent {
        let mut current = self.current();
        if let Some((_, agent)) = current.agents.iter().find(|(of, _)| *of == route) {
            return agent.clone();
        }
        let agent = self.shared.agent(route, current.switch.clone());
        current.agents.push((route, agent.clone()));
        agent
    }

    /// Ends all requests under way. Later ones use new connections.
    pub(crate) fn shut_down(&self) {
        let mut current = self.current();
        let generation = current.generation + 1;
        let old = std::mem::replace(&mut *current, Current { generation, ..Current::default() });
        drop(current);
        old.switch.turn_off();
        old.agents.into_iter().for_each(|(_, agent)| agent.shutdown());
    }

    /// How often requests were ended. One that failed meanwhile failed for that.
    pub(crate) fn generation(&self) -> u64 {
        self.current().generation
    }

    /// Whether a host is in somebody's network, or this machine: what it leads to may be so too.
    pub(crate) fn is_private(&self, uri: &Uri) -> bool {
        let Some(host) = uri.host() else { return false };
        if let Some(private) = is_private_name(host) {
            return private;
        }
        if self.shared.proxies.of(uri).is_some() {
            return false;
        }
        let port = uri.port_u16().unwrap_or(443);
        let found = self.shared.names.look_up(host, port, self.shared.timeouts.connect, &Switch::default());
        found.is_ok_and(|found| found.iter().any(|address| is_private(address.ip())))
    }
}

impl Shared {
    fn agent(&self, route: Route, switch: Switch) -> Agent {
        let proxy: Option<Proxy> = match route {
            Route::Direct | Route::Guarded => None,
            Route::Proxy { https: true } => self.proxies.of(&Uri::from_static("https://x.invalid")).cloned(),
            Route::Proxy { https: false } => self.proxies.of(&Uri::from_static("http://x.invalid")).cloned(),
        };
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(proxy)
            .tls_config(TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build())
            .user_agent(concat!("weighbridge/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(self.timeouts.connect))
            .timeout_send_request(Some(self.timeouts.stall))
            .timeout_recv_response(Some(self.timeouts.answer))
            .timeout_per_read(Some(self.timeouts.answer.min(self.timeouts.stall)))
            .timeout_per_write(Some(self.timeouts.stall))
            .max_idle_connections(self.connections * 2)
            .max_idle_connections_per_host(self.connections)
            .build();
        let names = self.names.clone();
        let tcp = Tcp { switch: switch.clone() };
        let connector =
            ().chain(ConnectProxyConnector::default()).chain(tcp).chain(RustlsConnector::default());
        let guard = Guard { names, strict: route == Route::Guarded, timeout: self.timeouts.connect, switch };
        Agent::with_parts(config, connector, guard)
    }
}
