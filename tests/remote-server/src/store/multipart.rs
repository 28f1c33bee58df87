//! Objects in parts, as S3 and Google have them.

use std::collections::BTreeMap;
use std::sync::Arc;

use md5::{Digest, Md5};

use super::{Inner, Protocol, between, escape, refusal};
use crate::server::{Reply, Request};

pub(super) struct Upload {
    key: String,
    mark: Option<String>,
    parts: BTreeMap<usize, (Vec<u8>, String, Option<String>)>,
}

impl Inner {
    pub(super) fn begin(&self, request: &Request, key: &str) -> Reply {
        let mark = self.mark(request);
        let mut state = self.lock();
        state.count += 1;
        let id = format!("upload/{}+=", state.count);
        state.uploads.insert(id.clone(), Upload { key: key.to_owned(), mark, parts: BTreeMap::new() });
        let text = format!(
            "<InitiateMultipartUploadResult><Key>{}</Key><UploadId>{id}</UploadId></InitiateMultipartUploadResult>",
            escape(key)
        );
        Reply::text(200, text)
    }

    pub(super) fn part(&self, request: &Request) -> Reply {
        let number = request.query("partNumber").and_then(|number| number.parse::<usize>().ok());
        let Some(number) = number.filter(|number| (1..=10_000).contains(number)) else {
            return refusal(400, "InvalidArgument");
        };
        let mut state = self.lock();
        let id = request.query("uploadId").unwrap_or_default();
        let Some(upload) = state.uploads.get_mut(&id) else { return refusal(404, "NoSuchUpload") };
        let tag = format!("\"{:x}\"", Md5::digest(&request.body));
        let checksum = request.header("x-amz-checksum-sha256").map(Into::into);
        upload.parts.insert(number, (request.body.clone(), tag.clone(), checksum));
        Reply::text(200, "").with("ETag", tag)
    }

    pub(super) fn complete(&self, request: &Request, key: &str) -> Reply {
        let id = request.query("uploadId").unwrap_or_default();
        if !self.lock().uploads.contains_key(&id) {
            return refusal(404, "NoSuchUpload");
        }
        if let Some(refused) = self.condition(request, key) {
            return refused;
        }
        let body = String::from_utf8_lossy(&request.body).replace("&quot;", "\"");
        let mut state = self.lock();
        let upload = &state.uploads[&id];
        let (mut content, mut last) = (Vec::new(), 0);
        let wanted: Vec<&str> = body.split("<Part>").skip(1).collect();
        for (n, part) in wanted.iter().enumerate() {
            let number = between(part, "<PartNumber>", "</PartNumber>").and_then(|n| n.parse::<usize>().ok());
            let Some((number, (bytes, tag, checksum))) =
                number.and_then(|number| Some((number, upload.parts.get(&number)?)))
            else {
                return refusal(400, "InvalidPart");
            };
            let said = between(part, "<ChecksumSHA256>", "</ChecksumSHA256>");
            if between(part, "<ETag>", "</ETag>") != Some(tag)
                || (checksum.is_some() && said != checksum.as_deref())
            {
                return refusal(400, "InvalidPart");
            }
            if number <= last {
                return refusal(400, "InvalidPartOrder");
            }
            if bytes.len() < self.options.least_part && n + 1 < wanted.len() {
                return refusal(400, "EntityTooSmall");
            }
            last = number;
            content.extend_from_slice(bytes);
        }
        let mark = upload.mark.clone();
        if upload.key != key || wanted.is_empty() {
            return refusal(400, "MalformedXML");
        }
        state.uploads.remove(&id);
        let object = state.write(key, Arc::new(content), mark);
        drop(state);
        let text = format!(
            "<?xml version=\"1.0\"?>\n<CompleteMultipartUploadResult><ETag>{}</ETag></CompleteMultipartUploadResult>",
            escape(&object.tag)
        );
        match self.options.protocol {
            Protocol::Google => self.tagged(Reply::text(200, text), &object),
            _ => Reply::text(200, text),
        }
    }

    pub(super) fn abort(&self, request: &Request) -> Reply {
        match self.lock().uploads.remove(&request.query("uploadId").unwrap_or_default()) {
            Some(_) => Reply::text(204, ""),
            None => refusal(404, "NoSuchUpload"),
        }
    }

    /// One upload a page, which is what a client has to put up with.
    pub(super) fn list_uploads(&self, request: &Request) -> Reply {
        let prefix = request.query("prefix").unwrap_or_default();
        let after = request.query("upload-id-marker").unwrap_or_default();
        let state = self.lock();
        let mut found = state
            .uploads
            .iter()
            .filter(|(id, upload)| id.as_str() > after.as_str() && upload.key.starts_with(&prefix));
        let Some((id, upload)) = found.next() else {
            return Reply::text(200, "<ListMultipartUploadsResult/>");
        };
        let key = escape(&upload.key);
        let text = format!(
            "<ListMultipartUploadsResult><IsTruncated>{}</IsTruncated><NextKeyMarker>{key}</NextKeyMarker>\
             <NextUploadIdMarker>{id}</NextUploadIdMarker><Upload><Key>{key}</Key><UploadId>{id}</UploadId>\
             <Initiated>2026-01-01T00:00:00.000Z</Initiated></Upload></ListMultipartUploadsResult>",
            found.next().is_some()
        );
        Reply::text(200, text)
    }
}
