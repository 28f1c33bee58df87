//! A server of files, as any web server is.

use std::collections::HashMap;
use std::sync::{Arc, RwLock};

use sha1::{Digest, Sha1};
use sha2::Sha256;

use crate::fault::Faults;
use crate::log::Log;
use crate::server::{Reply, Request, Server};

/// A content and its tag.
pub(crate) type Tagged = (Arc<Vec<u8>>, String);
type Files = Arc<RwLock<HashMap<String, Tagged>>>;

/// Files at URLs.
pub struct Web {
    server: Server,
    files: Files,
    /// What goes wrong.
    pub faults: Faults,
}

impl Web {
    /// Starts one without files.
    pub fn start() -> Self {
        let files = Files::default();
        let faults = Faults::default();
        let (known, going_wrong) = (files.clone(), faults.clone());
        let server = Server::start(move |request| {
            let files = known.read().expect("nobody panics with it");
            let reply = match files.get(&request.path()) {
                Some((content, tag)) => file_reply(request, content, Some(tag)),
                None => Reply::text(404, "not found"),
            };
            drop(files);
            going_wrong.apply(request, reply)
        });
        Self { server, files, faults }
    }

    /// Puts a file at a path that begins with a slash, and says its URL. Its tag is of its content.
    pub fn put(&self, path: &str, content: impl Into<Arc<Vec<u8>>>) -> String {
        let content = content.into();
        let tag = format!("\"{}\"", &sha256(&content)[..16]);
        self.put_tagged(path, content, &tag)
    }

    /// The same, with this tag.
    pub fn put_tagged(&self, path: &str, content: impl Into<Arc<Vec<u8>>>, tag: &str) -> String {
        let mut files = self.files.write().expect("nobody panics with it");
        files.insert(path.to_owned(), (content.into(), tag.to_owned()));
        format!("{}{path}", self.server.url())
    }

    /// Its server.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// What it was asked.
    pub fn log(&self) -> &Log {
        &self.server.log
    }
}

/// A file as a good server replies: ranges, conditions, the tag.
pub fn file_reply(request: &Request, content: &Arc<Vec<u8>>, tag: Option<&str>) -> Reply {
    let size = content.len() as u64;
    let mut reply =
        Reply { status: 200, content: content.clone(), ..Reply::default() }.with("Accept-Ranges", "bytes");
    if let Some(tag) = tag {
        reply = reply.with("ETag", tag);
    }
    if let (Some(wanted), Some(tag)) = (request.header("if-match"), tag)
        && wanted != tag
    {
        return Reply::text(412, "changed");
    }
    match request.range(size) {
        None => reply,
        Some(range) if range.start >= size => {
            Reply::text(416, "no such range").with("Content-Range", format!("bytes */{size}"))
        }
        Some(range) => {
            reply.status = 206;
            let part = |n: u64| usize::try_from(n).expect("it is in memory");
            reply.part = Some(part(range.start)..part(range.end));
            reply.with("Content-Range", format!("bytes {}-{}/{size}", range.start, range.end - 1))
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The sha256, in hexadecimal.
pub fn sha256(content: &[u8]) -> String {
    hex(&Sha256::digest(content))
}

/// The name that git gives a content.
pub fn git_sha1(content: &[u8]) -> String {
    hex(&Sha1::new().chain_update(format!("blob {}\0", content.len())).chain_update(content).finalize())
}

/// Bytes that look random and are the same each time.
pub fn bytes(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(length + 8);
    while out.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    out.truncate(length);
    out
}
