//! Signatures of version 4, worked out again from what came.

use sha2::{Digest, Sha256};

use crate::server::Request;
use crate::web::sha256;

/// Who may ask, as long as that is good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// What names it.
    pub id: String,
    /// What signs.
    pub secret: String,
    /// What has to come along.
    pub token: Option<String>,
}

impl Key {
    /// A key that is good for ever.
    pub fn new(id: &str, secret: &str) -> Self {
        Self { id: id.to_owned(), secret: secret.to_owned(), token: None }
    }
}

fn hmac(key: &[u8], message: &[u8]) -> Vec<u8> {
    let mut block = [0_u8; 64];
    match key.len() > 64 {
        true => block[..32].copy_from_slice(&Sha256::digest(key)),
        false => block[..key.len()].copy_from_slice(key),
    }
    let pad = |with: u8| block.map(|byte| byte ^ with);
    let inner = Sha256::new().chain_update(pad(0x36)).chain_update(message).finalize();
    Sha256::new().chain_update(pad(0x5c)).chain_update(inner).finalize().to_vec()
}

/// What a request claims of itself.
pub(super) struct Claim<'a> {
    pub(super) id: &'a str,
    pub(super) region: &'a str,
    date: &'a str,
    scope: &'a str,
    headers: &'a str,
    signature: &'a str,
}

/// The claim in the `Authorization` header; `None`: there is none, or none that is well-formed.
pub(super) fn claim(request: &Request) -> Option<Claim<'_>> {
    let fields = request.header("authorization")?.strip_prefix("AWS4-HMAC-SHA256 ")?;
    let field = |name: &str| fields.split(", ").find_map(|field| field.strip_prefix(name)?.strip_prefix('='));
    let (id, scope) = field("Credential")?.split_once('/')?;
    let mut parts = scope.split('/');
    let (date, region) = (parts.next()?, parts.next()?);
    Some(Claim { id, region, date, scope, headers: field("SignedHeaders")?, signature: field("Signature")? })
}

/// Whether the key signed the request, host and body and all headers that have to be.
pub(super) fn is_signed(request: &Request, claim: &Claim<'_>, key: &Key) -> bool {
    let Some(digest) = request.header("x-amz-content-sha256") else { return false };
    if digest != "UNSIGNED-PAYLOAD" && digest != sha256(&request.body) {
        return false;
    }
    let names: Vec<&str> = claim.headers.split(';').collect();
    let must = |name: &str| name == "host" || name.starts_with("x-amz-");
    if request.headers.iter().any(|(name, _)| must(name) && !names.contains(&name.as_str())) {
        return false;
    }
    let headers: String = names
        .iter()
        .map(|name| format!("{name}:{}\n", request.header(name).unwrap_or_default().trim()))
        .collect();
    let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
    let mut pairs: Vec<&str> = query.split('&').filter(|pair| !pair.is_empty()).collect();
    pairs.sort_unstable();
    let canonical =
        format!("{}\n{path}\n{}\n{headers}\n{}\n{digest}", request.method, pairs.join("&"), claim.headers);
    let time = request.header("x-amz-date").unwrap_or_default();
    let to_sign = format!("AWS4-HMAC-SHA256\n{time}\n{}\n{}", claim.scope, sha256(canonical.as_bytes()));
    let mut signing = format!("AWS4{}", key.secret).into_bytes();
    for step in [claim.date, claim.region, "s3", "aws4_request"] {
        signing = hmac(&signing, step.as_bytes());
    }
    let signature: String = hmac(&signing, to_sign.as_bytes()).iter().map(|b| format!("{b:02x}")).collect();
    time.starts_with(claim.date) && signature == claim.signature
}

/// Bytes as headers have them.
pub(super) fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for three in bytes.chunks(3) {
        let mut number = 0_u32;
        (0..3).for_each(|n| number = number << 8 | u32::from(three.get(n).copied().unwrap_or(0)));
        for n in 0..4 {
            let digit = DIGITS[(number >> (18 - 6 * n) & 63) as usize];
            out.push(if n <= three.len() { digit as char } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of Amazon's documentation, "Signature Calculations for the Authorization Header", GET Object.
    #[test]
    fn amazons_example() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let mut request = Request {
            method: "GET".into(),
            target: "/test.txt".into(),
            headers: vec![
                header("host", "examplebucket.s3.amazonaws.com"),
                header("range", "bytes=0-9"),
                header("x-amz-content-sha256", empty),
                header("x-amz-date", "20130524T000000Z"),
                header(
                    "authorization",
                    "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, \
                     SignedHeaders=host;range;x-amz-content-sha256;x-amz-date, \
                     Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
                ),
            ],
            body: Vec::new(),
        };
        let key = Key::new("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY");
        assert!(is_signed(&request, &claim(&request).unwrap(), &key));
        assert!(!is_signed(&request, &claim(&request).unwrap(), &Key::new("AKIAIOSFODNN7EXAMPLE", "other")));
        request.headers[1].1 = "bytes=0-8".into();
        assert!(!is_signed(&request, &claim(&request).unwrap(), &key));
    }

    #[test]
    fn base64_pads() {
        let texts = ["", "f", "fo", "foo", "foob"].map(|text| base64(text.as_bytes()));
        assert_eq!(texts, ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg=="]);
    }
}
