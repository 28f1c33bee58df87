//! The settings of a [`Remote`].

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::Remote;
use super::keep::Kept;
#[cfg(feature = "stores")]
use crate::address::StoreAddress;
use crate::address::{HubAddress, WebAddress};
use crate::cache::Cache;
use crate::http::agents::{Agents, Timeouts};
use crate::http::bandwidth::Bandwidth;
use crate::http::gate::Gates;
use crate::http::proxies::Proxies;
use crate::http::redirect::Token;
use crate::http::resolve::{Names, is_loopback};
use crate::http::{Common, Http};
use crate::hub::environment::{ENDPOINT, Environment};
use crate::retry::Patience;
#[cfg(feature = "stores")]
use crate::store::{Clients, Store, StoreOptions};
use crate::{Error, ErrorKind, Result};

/// What is kept on the disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum CacheMode {
    /// Nothing.
    #[default]
    None,
    /// Files of the hub, in this directory, laid out as its Python client does.
    At(PathBuf),
}

/// Settings, of which those not given have defaults that fit most.
#[derive(Clone, Default)]
#[must_use]
pub struct RemoteBuilder {
    token: Option<String>,
    endpoint: Option<String>,
    cache: CacheMode,
    offline: bool,
    concurrency: Option<usize>,
    patience: Patience,
    timeouts: Timeouts,
    bandwidth: Option<u64>,
    proxy: Option<String>,
    proxies: Option<Proxies>,
    http: bool,
    environment: Option<Environment>,
    #[cfg(feature = "stores")]
    options: StoreOptions,
}

/// The same, checked, and with what all places share.
pub(super) struct Settings {
    pub(super) token: Option<Token>,
    endpoint: String,
    cache: CacheMode,
    offline: bool,
    pub(super) concurrency: usize,
    patience: Patience,
    timeouts: Timeouts,
    bandwidth: Bandwidth,
    proxies: Proxies,
    http: bool,
    #[cfg(feature = "stores")]
    options: StoreOptions,
    gates: Gates,
    names: Names,
}

impl RemoteBuilder {
    /// As the environment has it.
    pub(super) fn from_environment() -> Result<Self> {
        let read = |name: &str| std::env::var(name).ok();
        let environment = Environment::read(&read);
        let builder = environment.stall.map_or_else(Self::default, |stall| Self::default().stall(stall));
        Ok(Self {
            endpoint: environment.endpoint.clone(),
            offline: environment.offline,
            cache: environment.cache.clone().map_or(CacheMode::None, CacheMode::At),
            proxies: Some(Proxies::from_environment(&read)?),
            environment: Some(environment),
            #[cfg(feature = "stores")]
            options: StoreOptions::from_environment(
                std::env::vars_os()
                    .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))),
            ),
            ..builder
        })
    }

    /// The token for the hub. It is sent to the hub's endpoint alone.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// The hub, `https://huggingface.co` by default. To an endpoint that is neither encrypted nor on this
    /// machine no token is sent.
    pub fn endpoint(mut self, endpoint: impl Into<String>) -> Self {
        self.endpoint = Some(endpoint.into());
        self
    }

    /// What is kept on the disk: nothing by default.
    pub fn cache(mut self, cache: CacheMode) -> Self {
        self.cache = cache;
        self
    }

    /// Whether no connection may be made.
    pub fn offline(mut self, offline: bool) -> Self {
        self.offline = offline;
        self
    }

    /// The most requests at a time to one server, 32 by default.
    pub fn concurrency(mut self, requests: usize) -> Self {
        self.concurrency = Some(requests);
        self
    }

    /// How many failures in a row, without any byte between them, are the end of a read: 12 by default,
    /// between which it waits for 22 s at least. What has not begun is given up after half as many.
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.patience.attempts = attempts.max(1);
        self
    }

    /// How long a read may go without a byte: 120 s by default. What a server asks to wait does not count,
    /// and may be 330 s at a time.
    pub fn patience(mut self, time: Duration) -> Self {
        self.patience.time = time;
        self
    }

    /// The longest wait that a server may ask for.
    pub fn server_wait(mut self, time: Duration) -> Self {
        self.patience.server_wait = time;
        self
    }

    /// After how long without a byte a connection is given up: 10 s by default. An answer may take three
    /// times as long to begin.
    pub fn stall(mut self, time: Duration) -> Self {
        self.timeouts = Timeouts { connect: time, answer: time * 3, stall: time };
        self
    }

    /// The most bytes to receive in a second; no limit by default.
    pub fn bandwidth(mut self, bytes_a_second: u64) -> Self {
        self.bandwidth = Some(bytes_a_second);
        self
    }

    /// The proxy for all hosts but this machine.
    pub fn proxy(mut self, url: impl Into<String>) -> Self {
        self.proxy = Some(url.into());
        self
    }

    /// Allows `http://` to other machines, by which anybody on the way can read and change what is sent.
    pub fn allow_http(mut self) -> Self {
        self.http = true;
        self
    }

    /// A setting of object stores, by the name that its environment variable has: `AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`,
    /// `GOOGLE_SERVICE_ACCOUNT`, `AZURE_STORAGE_ACCOUNT_NAME` and others that object_store knows. Case does not matter.
    #[cfg(feature = "stores")]
    pub fn store_option(mut self, name: &str, value: impl Into<String>) -> Self {
        self.options.set(name, value.into());
        self
    }

    /// Checks the settings. Nobody is asked yet.
    pub fn build(self) -> Result<Remote> {
        let bad_token =
            || Error::new(ErrorKind::Address, "the token has a space or another character that no token has");
        let token = self.token.as_deref().map(|token| Token::new(token).ok_or_else(bad_token)).transpose()?;
        let token = token.or_else(|| self.environment?.token);
        let proxies = match &self.proxy {
            Some(url) => Proxies::one(url)?,
            None => self.proxies.unwrap_or_default(),
        };
        #[cfg(feature = "stores")]
        self.options.check()?;
        let concurrency = self.concurrency.unwrap_or(32).clamp(1, 1024);
        Ok(Remote {
            settings: Arc::new(Settings {
                token,
                endpoint: self.endpoint.unwrap_or_else(|| ENDPOINT.to_owned()),
                cache: self.cache,
                offline: self.offline,
                concurrency,
                patience: self.patience,
                timeouts: self.timeouts,
                bandwidth: self.bandwidth.map(Bandwidth::limit).unwrap_or_default(),
                proxies,
                http: self.http,
                #[cfg(feature = "stores")]
                options: self.options,
                gates: Gates::new(concurrency),
                names: Names::default(),
            }),
        })
    }
}

impl Settings {
    /// Connections for one place. What is known of servers is shared by all.
    pub(super) fn http(&self) -> Http {
        let agents = Agents::new(self.timeouts, self.proxies.clone(), self.names.clone(), self.concurrency);
        Http::new(
            agents,
            Common {
                gates: self.gates.clone(),
                bandwidth: self.bandwidth.clone(),
                patience: self.patience,
                stall: self.timeouts.stall,
                offline: self.offline,
            },
        )
    }

    /// A bucket, with connections of its own.
    #[cfg(feature = "stores")]
    pub(super) fn store(&self, address: &StoreAddress) -> Result<Store> {
        let quick = Timeouts { connect: Duration::from_secs(1), ..Timeouts::default() };
        let metadata = Agents::new(quick, Proxies::default(), self.names.clone(), 2);
        let common = Common {
            gates: self.gates.clone(),
            bandwidth: Bandwidth::default(),
            patience: self.patience,
            stall: quick.stall,
            offline: self.offline,
        };
        let clients = Clients { http: self.http(), metadata: Http::new(metadata, common), plain: self.http };
        Store::new(address, &self.options, clients)
    }

    pub(super) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Refuses what is not encrypted, unless it is on this machine or was allowed.
    pub(super) fn allow(&self, address: &WebAddress) -> Result<()> {
        let uri: Option<http::Uri> = address.url().parse().ok();
        let here = uri.as_ref().and_then(http::Uri::host).is_some_and(is_loopback);
        match address.is_plain() && !here && !self.http {
            true => {
                let message =
                    "http:// to another machine is refused: anybody on the way can change it; use https://";
                Err(Error::new(ErrorKind::Denied, message).at(&address.to_string()))
            }
            false => Ok(()),
        }
    }

    /// The repository's part of the cache.
    pub(super) fn repo_cache(&self, address: &HubAddress) -> Option<Kept> {
        self.cache()?.repo(address.kind, &address.repo).ok().map(Kept::new)
    }

    pub(super) fn cache(&self) -> Option<Cache> {
        match &self.cache {
            CacheMode::None => None,
            CacheMode::At(root) => Some(Cache::at(root)),
        }
    }
}
