//! Object stores for tests.

use std::time::Duration;

use remote_server::{ObjectStore, Protocol, StoreOptions};
use weighbridge_remote::{Remote, RemoteBuilder};

/// All that there are.
pub const PROTOCOLS: [Protocol; 3] = [Protocol::S3, Protocol::Google, Protocol::Azure];

/// A store, who may read and write it, and the scheme of its addresses. Its bucket is `bucket`.
///
/// # Panics
///
/// When it cannot be made.
pub fn store_of(protocol: Protocol) -> (ObjectStore, Remote, &'static str) {
    let store = ObjectStore::start(StoreOptions { protocol, page: 2, ..StoreOptions::default() });
    let remote = of_store(&store).build().expect("a remote without a cache can be made");
    let scheme = store.scheme();
    (store, remote, scheme)
}

/// Settings that do not wait long.
fn of_store(store: &ObjectStore) -> RemoteBuilder {
    let builder =
        Remote::builder().stall(Duration::from_millis(400)).attempts(6).patience(Duration::from_secs(5));
    store.settings().into_iter().fold(builder, |builder, (name, value)| builder.store_option(name, value))
}
