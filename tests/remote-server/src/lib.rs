//! Servers on this machine for tests and benches of remote files: a [`Hub`] that sends to a CDN of its own, a
//! [`Web`] server, an [`ObjectStore`], and a [`Link`] with latency, a cap and cuts. They misbehave as [`Faults`] say, and keep a
//! [`Log`] of what they were asked.

mod fault;
mod hub;
mod link;
mod log;
mod proxy;
mod server;
mod store;
mod web;

pub use fault::{Fault, Faults};
pub use hub::{Access, Hub, HubOptions, RepoSpec};
pub use link::Link;
pub use log::{Asked, Log};
pub use proxy::Proxy;
pub use server::{Reply, Request, Server, Trick};
pub use store::{Key, ObjectStore, Protocol, StoreOptions};
pub use web::{Web, bytes, file_reply, git_sha1, sha256};
