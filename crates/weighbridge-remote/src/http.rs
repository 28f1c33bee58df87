//! What all that is read over HTTP has in common: sending, being patient, following, and one ranged read done
//! right.

pub(crate) mod agents;
pub(crate) mod bandwidth;
mod connect;
#[cfg(feature = "stores")]
pub(crate) mod exchange;
pub(crate) mod failure;
pub(crate) mod gate;
pub(crate) mod headers;
pub(crate) mod origin;
pub(crate) mod pace;
pub(crate) mod proxies;
pub(crate) mod read;
pub(crate) mod redirect;
pub(crate) mod resolve;
pub(crate) mod stop;
pub(crate) mod visit;

use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderValue, Request, StatusCode, Uri};
use ureq::BodyReader;

use self::agents::Agents;
use self::bandwidth::Bandwidth;
use self::failure::{Failure, Trouble};
use self::gate::{Gate, Gates, Permit};
use self::pace::Pace;
use self::redirect::origin_of;
use self::stop::Stop;
use crate::retry::{Budget, Next, Patience, random};
use crate::{Error, ErrorKind, Result};

/// Sends requests. Clones share connections, and what is known of servers.
#[derive(Clone)]
pub(crate) struct Http {
    shared: Arc<Shared>,
}

struct Shared {
    agents: Agents,
    gates: Gates,
    bandwidth: Bandwidth,
    patience: Patience,
    /// After this time without a byte a body is given up; three times as long may it drip.
    stall: Duration,
    offline: bool,
    pace: Pace,
    started: Instant,
}

/// What requests have in common, whoever sends them.
#[derive(Clone)]
pub(crate) struct Common {
    pub(crate) gates: Gates,
    pub(crate) bandwidth: Bandwidth,
    pub(crate) patience: Patience,
    pub(crate) stall: Duration,
    pub(crate) offline: bool,
}

/// A request that may be sent now.
pub(crate) struct Asked {
    pub(crate) request: Request<()>,
    /// A server gave the address, so it may not lead into anybody's network.
    pub(crate) guarded: bool,
    /// Counts where the file was found anew; a tag is compared with those of the same version.
    pub(crate) version: u64,
}

/// The head of an answer, and its body to be read. Whoever has it is inside the server's gate.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    body: BodyReader<'static>,
    generation: u64,
    gate: Gate,
    _permit: Permit,
    /// Between the request and the head.
    latency: Duration,
}

impl Http {
    pub(crate) fn new(agents: Agents, common: Common) -> Self {
        let Common { gates, bandwidth, patience, stall, offline } = common;
        let pace = Pace::default();
        let started = Instant::now();
        Self {
            shared: Arc::new(Shared { agents, gates, bandwidth, patience, stall, offline, pace, started }),
        }
    }

    pub(crate) fn is_offline(&self) -> bool {
        self.shared.offline
    }

    pub(crate) fn pace(&self) -> &Pace {
        &self.shared.pace
    }

    /// Ends all requests under way. Those that nobody interrupted are sent again by who sent them.
    pub(crate) fn shut_down(&self) {
        self.shared.agents.shut_down();
    }

    /// Whether what this address leads to may be in somebody's network.
    pub(crate) fn is_private(&self, uri: &Uri) -> bool {
        self.shared.agents.is_private(uri)
    }

    /// The patience with something that has begun, or not yet.
    fn budget(&self, begun: bool) -> Budget {
        let patience = self.shared.patience;
        Budget::new(if begun { patience } else { patience.at_first() }, self.now())
    }

    fn now(&self) -> Duration {
        self.shared.started.elapsed()
    }

    /// Sends one request, once, when the server's gate lets it in.
    fn send(&self, asked: Asked, stop: &Stop) -> std::result::Result<Answer, Failure> {
        self.send_with(asked, None, stop)
    }

    /// The same, with a body.
    fn send_with(
        &self,
        asked: Asked,
        body: Option<&[u8]>,
        stop: &Stop,
    ) -> std::result::Result<Answer, Failure> {
        if self.shared.offline {
            return Err(Failure::fatal(Error::new(ErrorKind::Offline, "the network is switched off")));
        }
        let mut request = asked.request;
        request.headers_mut().insert("accept-encoding", HeaderValue::from_static("identity"));
        let uri = request.uri().clone();
        let gate = self.shared.gates.of(&origin_of(&uri));
        let permit = gate.enter(stop).map_err(Failure::fatal)?;
        let generation = self.shared.agents.generation();
        // Interrupted before the line above, it has new agents that nobody will shut down.
        stop.check().map_err(Failure::fatal)?;
        let sent = Instant::now();
        let sent_to = match body {
            None => self.shared.agents.send(request, asked.guarded),
            Some(body) => self.shared.agents.send_body(request.map(|()| body), asked.guarded),
        };
        match sent_to {
            Ok(response) => {
                let (head, body) = response.into_parts();
                let latency = sent.elapsed();
                Ok(Answer {
                    status: head.status,
                    headers: head.headers,
                    body: body.into_reader(),
                    generation,
                    gate,
                    _permit: permit,
                    latency,
                })
            }
            Err(error) => Err(self.failure(&error, &uri, generation, stop)),
        }
    }

    /// What an error of the agent means.
    fn failure(&self, error: &ureq::Error, uri: &Uri, generation: u64, stop: &Stop) -> Failure {
        if let Err(cancelled) = stop.check() {
            return Failure::fatal(cancelled);
        }
        match self.shared.agents.generation() == generation {
            true => Failure::of(error, uri, self.shared.agents.is_proxied(uri)),
            false => Failure::woken(),
        }
    }

    /// Waits after a failure, or says that it is the end.
    fn after(&self, failure: Failure, budget: &mut Budget, stop: &Stop) -> Result<()> {
        let next = match failure.trouble {
            Trouble::Fatal => return Err(failure.error),
            Trouble::Woken => return stop.check(),
            Trouble::ToldToWait(wait) => budget.told_to_wait(wait, random()),
            // Asking again for a name that nobody knows is in vain but for the first time.
            Trouble::NoSuchHost if budget.failures() > 0 => Next::GiveUp,
            Trouble::NoSuchHost | Trouble::Unreachable | Trouble::Passing => {
                budget.failed(self.now(), random())
            }
        };
        match next {
            Next::Again(wait) => stop.sleep(wait),
            Next::GiveUp => Err(failure.given_up(budget, self.now())),
        }
    }
}

impl Answer {
    /// Reads some of the body. Zero: it is at its end.
    fn read(&mut self, http: &Http, buf: &mut [u8], stop: &Stop) -> std::result::Result<usize, Failure> {
        match self.body.read(buf) {
            Ok(0) if self.generation != http.shared.agents.generation() => {
                // A connection that was shut down can look like a body at its end.
                stop.check().map_err(Failure::fatal)?;
                Err(Failure::woken())
            }
            Ok(n) => {
                http.shared.bandwidth.spend(n, stop).map_err(Failure::fatal)?;
                Ok(n)
            }
            Err(error) => {
                let error = ureq::Error::from(error);
                Err(http.failure(&error, &Uri::default(), self.generation, stop))
            }
        }
    }

    /// The whole body, of at most so many bytes.
    pub(crate) fn whole(
        &mut self,
        http: &Http,
        most: u64,
        stop: &Stop,
    ) -> std::result::Result<Vec<u8>, Failure> {
        let declared = headers::content_length(&self.headers);
        let too_long = || {
            Failure::fatal(Error::new(
                ErrorKind::Malformed,
                format!("the answer is longer than {most} bytes"),
            ))
        };
        if declared.is_some_and(|length| length > most) {
            return Err(too_long());
        }
        let mut body = Vec::new();
        let mut buf = vec![0; 64 << 10];
        loop {
            match self.read(http, &mut buf, stop)? {
                0 if declared.is_some_and(|length| length != body.len() as u64) => {
                    return Err(Failure::passing("the connection was closed before the answer's end"));
                }
                0 => return Ok(body),
                n if (body.len() + n) as u64 > most => return Err(too_long()),
                n => body.extend_from_slice(&buf[..n]),
            }
        }
    }

    /// What the body says, as far as an error is worth it, so that the connection can be used again.
    pub(crate) fn excerpt(&mut self, http: &Http, stop: &Stop) -> Vec<u8> {
        let short = headers::content_length(&self.headers).is_none_or(|length| length <= 64 << 10);
        if short { self.whole(http, 64 << 10, stop).unwrap_or_default() } else { Vec::new() }
    }

    /// The failure that a status is which asks for patience; `None`: it is another status.
    pub(crate) fn overload(&self, explain: impl FnOnce() -> Error) -> Option<Failure> {
        let wait = headers::server_wait(&self.headers, std::time::SystemTime::now());
        match self.status.as_u16() {
            429 | 503 => {
                // The hub counts whole seconds: one more is on the safe side.
                let told = wait.map(|wait| wait + Duration::from_secs(u64::from(!wait.is_zero())));
                // What is too long to wait for must not keep others from asking.
                self.gate.overloaded(told.unwrap_or_default().min(Duration::from_secs(331)));
                Some(match told {
                    Some(wait) => Failure::told_to_wait(wait, explain()),
                    None => Failure { trouble: Trouble::Passing, error: explain() },
                })
            }
            408 | 500 | 502 | 504 => Some(Failure { trouble: Trouble::Passing, error: explain() }),
            _ => None,
        }
    }

    /// Any answer that is no overload lets the gate open further.
    pub(crate) fn accepted(&self) {
        self.gate.succeeded();
    }
}
