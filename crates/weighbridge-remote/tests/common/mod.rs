//! What the tests share.
#![allow(missing_docs, dead_code, unreachable_pub)]

use std::sync::Arc;
use std::time::Duration;

use weighbridge_remote::{Address, Place, Remote, RemoteBuilder, RemoteFile, Result};

pub use remote_server::*;

/// Settings that do not wait long.
pub fn builder() -> RemoteBuilder {
    Remote::builder().stall(Duration::from_millis(400)).attempts(4).patience(Duration::from_secs(5))
}

pub fn locate(remote: &Remote, address: &str) -> Result<Place> {
    remote.locate(&Address::parse(address).expect("a scheme")?)
}

pub fn open(remote: &Remote, url: &str) -> Result<RemoteFile> {
    let place = locate(remote, url)?;
    let name = place.file().expect("the address of a file").to_owned();
    place.open(&name)
}

pub fn content(length: usize) -> Arc<Vec<u8>> {
    Arc::new(bytes(length, 7))
}

/// Reads a file in pieces, by some threads.
pub fn read_all(file: &RemoteFile, piece: usize, threads: usize) -> Result<Vec<u8>> {
    let mut out = vec![0; usize::try_from(file.size()).expect("it fits into memory")];
    let pieces = std::sync::Mutex::new(out.chunks_mut(piece).enumerate());
    let read = || loop {
        let next = pieces.lock().expect("no thread panics with it").next();
        let Some((index, piece_of)) = next else { return Ok(()) };
        file.read_at((index * piece) as u64, piece_of)?;
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(read)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("no thread panics"))
    })?;
    Ok(out)
}

/// A remote that asks this store with its key.
pub fn of_store(store: &ObjectStore) -> RemoteBuilder {
    // Such a server works out what came, which takes its time.
    let builder = builder().attempts(6).stall(Duration::from_secs(3));
    store.settings().into_iter().fold(builder, |builder, (name, value)| builder.store_option(name, value))
}

pub fn store_of(protocol: Protocol) -> (ObjectStore, Remote, &'static str) {
    let store = ObjectStore::start(StoreOptions { protocol, page: 2, ..StoreOptions::default() });
    let remote = of_store(&store).build().expect("good settings");
    let scheme = store.scheme();
    (store, remote, scheme)
}

pub const PROTOCOLS: [Protocol; 3] = [Protocol::S3, Protocol::Google, Protocol::Azure];
