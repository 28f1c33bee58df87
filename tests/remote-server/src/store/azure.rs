//! Blobs of blocks, as Azure has them.

use std::sync::Arc;

use super::{Inner, escape, refusal};
use crate::server::{Reply, Request};

impl Inner {
    pub(super) fn azure(&self, request: &Request, key: &str) -> Reply {
        if request.header("x-ms-version").is_none() {
            return refusal(400, "MissingRequiredHeader");
        }
        let kind = request.query("comp").unwrap_or_default();
        match (request.method.as_str(), kind.as_str()) {
            ("GET", "list") if key.is_empty() => self.list_blobs(request),
            ("GET" | "HEAD", "") => self.read(request, key),
            ("PUT", "block") => {
                let id = request.query("blockid").unwrap_or_default();
                self.lock().blocks.insert((key.to_owned(), id), request.body.clone());
                Reply::text(201, "")
            }
            ("PUT", "blocklist") => self.put_blocks(request, key),
            ("PUT", "") if request.header("x-ms-blob-type") != Some("BlockBlob") => {
                refusal(400, "MissingRequiredHeader")
            }
            ("PUT", "") => match self.condition(request, key) {
                Some(refused) => refused,
                None => {
                    let object = self.lock().write(key, Arc::new(request.body.clone()), self.mark(request));
                    self.tagged(Reply::text(201, ""), &object)
                }
            },
            ("DELETE", "") => match self.lock().objects.remove(key) {
                None => refusal(404, "BlobNotFound"),
                Some(_) => Reply::text(202, ""),
            },
            _ => refusal(400, "UnsupportedQueryParameter"),
        }
    }

    fn put_blocks(&self, request: &Request, key: &str) -> Reply {
        if let Some(refused) = self.condition(request, key) {
            return refused;
        }
        let body = String::from_utf8_lossy(&request.body);
        let mut state = self.lock();
        let mut content = Vec::new();
        for id in body.split("<Latest>").skip(1).filter_map(|rest| rest.split('<').next()) {
            match state.blocks.get(&(key.to_owned(), id.to_owned())) {
                Some(block) => content.extend_from_slice(block),
                None => return refusal(400, "InvalidBlockList"),
            }
        }
        let object = state.write(key, Arc::new(content), self.mark(request));
        self.tagged(Reply::text(201, ""), &object)
    }

    fn list_blobs(&self, request: &Request) -> Reply {
        let (page, next) = self.page(request, "marker");
        let blobs: String = page
            .iter()
            .map(|(key, object)| {
                format!(
                    "<Blob><Name>{}</Name><Properties><Last-Modified>{}</Last-Modified>\
                     <Etag>{}</Etag><Content-Length>{}</Content-Length></Properties></Blob>",
                    escape(key),
                    super::date::of_headers(object.modified),
                    object.tag.trim_matches('"'),
                    object.content.len()
                )
            })
            .collect();
        Reply::text(
            200,
            format!(
                "\u{feff}<?xml version=\"1.0\" encoding=\"utf-8\"?><EnumerationResults ContainerName=\"bucket\"><Blobs>{blobs}\
                 <BlobPrefix><Name>folder/</Name></BlobPrefix></Blobs><NextMarker>{}</NextMarker></EnumerationResults>",
                escape(&next.unwrap_or_default())
            ),
        )
    }
}
