//! What stores say in XML.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::{Error, ErrorKind, Result};

/// One page of a listing, as S3 and Google have it.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Page {
    pub(super) contents: Vec<Object>,
    pub(super) next_continuation_token: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Object {
    pub(super) key: String,
    pub(super) size: u64,
    #[serde(rename = "ETag")]
    pub(super) tag: Option<String>,
    pub(super) generation: Option<String>,
    pub(super) last_modified: Option<String>,
}

/// One page of a listing, as Azure has it.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct AzurePage {
    pub(super) blobs: Blobs,
    pub(super) next_marker: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Blobs {
    #[serde(rename = "Blob")]
    pub(super) blobs: Vec<Blob>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Blob {
    pub(super) name: String,
    pub(super) properties: Properties,
}

#[derive(Deserialize)]
pub(super) struct Properties {
    #[serde(rename = "Content-Length")]
    pub(super) size: u64,
    #[serde(rename = "Etag")]
    pub(super) tag: Option<String>,
    #[serde(rename = "Last-Modified")]
    pub(super) last_modified: Option<String>,
    /// `directory`, where an account has those: they are no objects.
    #[serde(rename = "ResourceType")]
    pub(super) kind: Option<String>,
}

/// Uploads that were begun and not completed.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Uploads {
    #[serde(rename = "Upload")]
    pub(super) uploads: Vec<Begun>,
    pub(super) is_truncated: bool,
    pub(super) next_key_marker: Option<String>,
    pub(super) next_upload_id_marker: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Begun {
    pub(super) key: String,
    pub(super) upload_id: String,
    pub(super) initiated: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Initiated {
    pub(super) upload_id: String,
}

#[derive(Deserialize)]
pub(super) struct Completed {
    #[serde(rename = "ETag")]
    pub(super) tag: String,
}

/// A refusal. All that is in it may be anything, and is shown only after it was checked.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Refusal {
    pub(super) code: Option<String>,
    pub(super) region: Option<String>,
    pub(super) endpoint: Option<String>,
}

/// Parses an answer that has to be such a thing.
pub(super) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T> {
    let bad = || Error::new(ErrorKind::Malformed, "the store's answer is not the XML that it has to be");
    quick_xml::de::from_str(std::str::from_utf8(body).map_err(|_| bad())?).map_err(|_| bad())
}

/// Whether a document's outermost element has this name.
pub(super) fn is(body: &[u8], name: &str) -> bool {
    let text = String::from_utf8_lossy(body);
    let mut rest = text.trim_start_matches('\u{feff}').trim_start();
    if rest.starts_with("<?xml") {
        rest = rest.split_once("?>").map_or("", |(_, rest)| rest).trim_start();
    }
    rest.strip_prefix('<')
        .and_then(|rest| rest.strip_prefix(name))
        .is_some_and(|rest| rest.starts_with(['>', ' ', '\n', '\r', '\t']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages() {
        let page: Page = parse(
            br#"<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name>
            <Contents><Key>a&amp;b</Key><Size>3</Size><ETag>&quot;x&quot;</ETag><LastModified>2026-11-28T11:30:00.000Z</LastModified>
            <Owner><ID>1</ID></Owner></Contents><CommonPrefixes><Prefix>d/</Prefix></CommonPrefixes>
            <Contents><Key>c</Key><Size>4</Size></Contents><NextContinuationToken>t</NextContinuationToken></ListBucketResult>"#,
        )
        .unwrap();
        assert_eq!(page.contents.len(), 2);
        assert_eq!((page.contents[0].key.as_str(), page.contents[0].tag.as_deref()), ("a&b", Some("\"x\"")));
        assert_eq!(page.next_continuation_token.as_deref(), Some("t"));
        let page: Page = parse(b"<ListBucketResult/>").unwrap();
        assert!(page.contents.is_empty());
        let page: AzurePage = parse(
            br#"<EnumerationResults ContainerName="c"><Blobs><BlobPrefix><Name>d/</Name></BlobPrefix><Blob><Name>a</Name>
            <Properties><Content-Length>5</Content-Length><Etag>0x8</Etag></Properties></Blob></Blobs><NextMarker/></EnumerationResults>"#,
        )
        .unwrap();
        assert_eq!((page.blobs.blobs.len(), page.blobs.blobs[0].properties.size), (1, 5));
        assert!(page.next_marker.unwrap_or_default().is_empty());
        assert!(parse::<Page>(b"<ListBucketResult><Contents><Key>a").is_err());
        assert!(parse::<Page>(&[0xff]).is_err());
    }

    #[test]
    fn roots() {
        assert!(is(b"<?xml version=\"1.0\"?>\n<Error><Code>x</Code></Error>", "Error"));
        assert!(is(b"  \n<Error>", "Error"));
        assert!(!is(b"<Errors>", "Error") && !is(b"", "Error") && !is(b"<?xml", "Error"));
    }
}
