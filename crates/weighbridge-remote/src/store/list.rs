//! What is in a bucket.

use std::time::SystemTime;

use super::{Call, Listed, Store, Tag, xml};
use crate::Result;
use crate::address::StoreKind;
use crate::http::headers::{dashed_date, http_date};

impl Store {
    /// All objects whose keys begin so, by key; `flat`: without those that have a slash after that.
    pub(crate) fn list(&self, prefix: &str, flat: bool) -> Result<Vec<Listed>> {
        let mut objects = Vec::new();
        let mut next: Option<String> = None;
        loop {
            let (mut page, after) = self.page(prefix, flat, next.as_deref())?;
            objects.append(&mut page);
            // A server that names the same page for ever is not followed for ever.
            match after.filter(|after| !after.is_empty() && next.as_ref() != Some(after)) {
                Some(after) => next = Some(after),
                None => break,
            }
        }
        objects.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(objects)
    }

    fn page(&self, prefix: &str, flat: bool, next: Option<&str>) -> Result<(Vec<Listed>, Option<String>)> {
        let mut query = match self.kind {
            StoreKind::Azure => vec![("restype", "container"), ("comp", "list")],
            _ => vec![("list-type", "2")],
        };
        query.extend((!prefix.is_empty()).then_some(("prefix", prefix)));
        query.extend(flat.then_some(("delimiter", "/")));
        let marker = if self.kind == StoreKind::Azure { "marker" } else { "continuation-token" };
        query.extend(next.map(|next| (marker, next)));
        let answer = self.done(&Call { query: &query, ..Call::get(None) })?;
        if self.kind == StoreKind::Azure {
            let page: xml::AzurePage = xml::parse(&answer.body)?;
            let objects = page.blobs.blobs.into_iter().filter_map(|blob| {
                let properties = blob.properties;
                let directory = properties.kind.as_deref() == Some("directory");
                // Headers have quotes around tags, listings have none.
                let tag = properties.tag.map(|tag| match tag.starts_with('"') {
                    true => tag,
                    false => format!("\"{tag}\""),
                });
                (!directory).then(|| Listed {
                    name: blob.name,
                    size: properties.size,
                    tag: tag.map(Tag),
                    modified: properties.last_modified.as_deref().and_then(http_date),
                })
            });
            return Ok((objects.collect(), page.next_marker));
        }
        let page: xml::Page = xml::parse(&answer.body)?;
        let objects = page.contents.into_iter().map(|object| Listed {
            name: object.key,
            size: object.size,
            tag: if self.kind == StoreKind::Google { object.generation } else { object.tag }.map(Tag),
            modified: object.last_modified.as_deref().and_then(dashed_date),
        });
        Ok((objects.collect(), page.next_continuation_token))
    }

    /// Ends uploads below a prefix that were begun before a moment, and says how many. Azure lists none, and
    /// forgets them after a week by itself.
    pub(crate) fn abort_stale(&self, prefix: &str, before: SystemTime) -> Result<usize> {
        if self.kind == StoreKind::Azure {
            return Ok(0);
        }
        let (mut key, mut id): (Option<String>, Option<String>) = (None, None);
        let mut aborted = 0;
        loop {
            let mut query = vec![("uploads", ""), ("prefix", prefix)];
            query.extend(key.as_deref().map(|key| ("key-marker", key)));
            query.extend(id.as_deref().map(|id| ("upload-id-marker", id)));
            let page: xml::Uploads =
                xml::parse(&self.done(&Call { query: &query, ..Call::get(None) })?.body)?;
            for upload in &page.uploads {
                let begun = upload.initiated.as_deref().and_then(dashed_date);
                if upload.key.starts_with(prefix) && begun.is_some_and(|begun| begun < before) {
                    self.abort_upload(&upload.key, &upload.upload_id, None)?;
                    aborted += 1;
                }
            }
            let next = (page.next_key_marker, page.next_upload_id_marker);
            let more = page.is_truncated && next.0.is_some() && next != (key, id);
            (key, id) = next;
            if !more {
                return Ok(aborted);
            }
        }
    }
}
