//! What a server was asked.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::server::Request;

/// A request that came, and what became of it.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The request.
    pub request: Request,
    /// The status of the reply; 0 while it is sent.
    pub status: u16,
    /// The bytes of its body that were sent.
    pub bytes: u64,
}

/// All requests, in the order in which they came. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Log(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    asked: Mutex<Vec<Asked>>,
    connections: AtomicU64,
}

impl Log {
    pub(crate) fn connected(&self) {
        self.0.connections.fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn asked(&self, request: &Request) -> usize {
        let mut asked = self.lock();
        asked.push(Asked { request: request.clone(), status: 0, bytes: 0 });
        asked.len() - 1
    }

    pub(crate) fn answered(&self, entry: usize, status: u16, bytes: u64) {
        if let Some(asked) = self.lock().get_mut(entry) {
            (asked.status, asked.bytes) = (status, bytes);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Asked>> {
        self.0.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of them.
    pub fn all(&self) -> Vec<Asked> {
        self.lock().clone()
    }

    /// How many requests.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether there was none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many connections were made.
    pub fn connections(&self) -> u64 {
        self.0.connections.load(Ordering::SeqCst)
    }

    /// How many bytes of bodies were sent.
    pub fn bytes(&self) -> u64 {
        self.lock().iter().map(|asked| asked.bytes).sum()
    }

    /// How many requests had this in their target.
    pub fn count(&self, part: &str) -> usize {
        self.lock().iter().filter(|asked| asked.request.target.contains(part)).count()
    }

    /// Whether any request had this anywhere: a token that was to stay elsewhere, say.
    pub fn saw(&self, secret: &str) -> bool {
        let in_one = |request: &Request| {
            request.target.contains(secret) || request.headers.iter().any(|(_, value)| value.contains(secret))
        };
        self.lock().iter().any(|asked| in_one(&asked.request))
    }

    /// Forgets all of it.
    pub fn clear(&self) {
        self.lock().clear();
    }
}
