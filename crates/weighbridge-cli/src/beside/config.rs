//! A configuration of which a few members are changed, and everything else stays as it is written.

use std::ops::Range;

use anyhow::{Context, Result, bail};
use serde::de::IgnoredAny;
use weighbridge::Dtype;

use crate::dtype::parse_dtype;

/// Members that say how codes are to be read.
const OF_CODES: [&str; 3] = ["quantization_config", "compression_config", "quantization"];
/// Members that may have them, too.
const INNER: [&str; 4] = ["text_config", "llm_config", "language_config", "thinker_config"];
const DTYPES: [&str; 2] = ["dtype", "torch_dtype"];

/// The text of a JSON object.
#[derive(Debug)]
pub(crate) struct Config(String);

/// A member of an object: where its key starts, and its value.
#[derive(Debug)]
struct Member {
    key: String,
    start: usize,
    value: Range<usize>,
}

impl Config {
    /// Fails unless the text is a JSON object.
    pub(super) fn parse(text: String) -> Result<Self> {
        serde_json::from_str::<IgnoredAny>(&text).context("it is not valid JSON")?;
        if !text.trim_start().starts_with('{') {
            bail!("it is not a JSON object");
        }
        Ok(Self(text))
    }

    /// The dtype that the model says it has.
    pub(super) fn dtype(&self) -> Option<Dtype> {
        self.objects().iter().flatten().filter(|member| DTYPES.contains(&&*member.key)).find_map(|member| {
            let name: String = serde_json::from_str(&self.0[member.value.clone()]).ok()?;
            let dtype = parse_dtype(name.trim_start_matches("torch.")).ok()?;
            matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16).then_some(dtype)
        })
    }

    /// The same without what says how codes are to be read. Where it has a dtype, that becomes `to`.
    pub(super) fn dense(&self, to: Option<Dtype>) -> String {
        let mut edits = Vec::new();
        for members in self.objects() {
            edits.extend(cuts(&members).into_iter().map(|range| (range, String::new())));
            let dtypes = members.iter().filter(|member| DTYPES.contains(&&*member.key));
            for member in dtypes {
                let old = &self.0[member.value.clone()];
                if let Some(new) = to.and_then(torch_name).filter(|_| old.starts_with('"')) {
                    let prefix = if old.starts_with("\"torch.") { "torch." } else { "" };
                    edits.push((member.value.clone(), format!("\"{prefix}{new}\"")));
                }
            }
        }
        // From the back, so that what is in front stays where it is. A cut takes what is in it along.
        edits.sort_by_key(|(range, _)| (range.start, std::cmp::Reverse(range.end)));
        let mut end = 0;
        edits.retain(|(range, _)| {
            let is_outside = range.start >= end;
            end = end.max(range.end);
            is_outside
        });
        let mut text = self.0.clone();
        for (range, new) in edits.into_iter().rev() {
            text.replace_range(range, &new);
        }
        text
    }

    /// The members of the object itself, and of those in it that describe models.
    fn objects(&self) -> Vec<Vec<Member>> {
        let outer = members(&self.0, 0);
        let inner = outer.iter().filter(|member| INNER.contains(&&*member.key));
        let inner: Vec<_> = inner.map(|member| members(&self.0, member.value.start)).collect();
        std::iter::once(outer).chain(inner).collect()
    }
}

/// The bytes to cut out, with the commas that are too many then.
fn cuts(members: &[Member]) -> Vec<Range<usize>> {
    let goes = |member: &Member| OF_CODES.contains(&&*member.key);
    let last = members.iter().rposition(|member| !goes(member));
    let mut cuts = Vec::new();
    for (place, member) in members.iter().enumerate().take(last.unwrap_or(0)) {
        if goes(member) {
            cuts.push(member.start..members[place + 1].start);
        }
    }
    let Some(end) = members.last().map(|member| member.value.end) else { return cuts };
    let start = match last {
        Some(last) => members[last].value.end,
        None => members[0].start,
    };
    if start < end {
        cuts.push(start..end);
    }
    cuts
}

/// The members of the object that starts at or behind a place of valid JSON; none if it is no object.
fn members(text: &str, start: usize) -> Vec<Member> {
    let bytes = text.as_bytes();
    let mut members = Vec::new();
    let mut at = blanks(bytes, start);
    if bytes.get(at) != Some(&b'{') {
        return members;
    }
    at = blanks(bytes, at + 1);
    while bytes.get(at) == Some(&b'"') {
        let start = at;
        let end = value(bytes, at);
        let key = serde_json::from_str(&text[start..end]).unwrap_or_default();
        // Behind the colon.
        at = blanks(bytes, blanks(bytes, end) + 1);
        let end = value(bytes, at);
        members.push(Member { key, start, value: at..end });
        // Behind the comma, or the bracket that ends it all.
        at = blanks(bytes, blanks(bytes, end) + 1);
    }
    members
}

fn blanks(bytes: &[u8], start: usize) -> usize {
    let rest = bytes.get(start..).unwrap_or_default();
    start + rest.iter().take_while(|byte| byte.is_ascii_whitespace()).count()
}

/// The end of the value that starts there.
fn value(bytes: &[u8], start: usize) -> usize {
    let (mut at, mut depth) = (start, 0_usize);
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'"' => at = string(bytes, at),
            b'{' | b'[' => (at, depth) = (at + 1, depth + 1),
            b'}' | b']' if depth > 0 => (at, depth) = (at + 1, depth - 1),
            b'}' | b']' | b',' | b':' if depth == 0 => return at,
            byte if depth == 0 && byte.is_ascii_whitespace() => return at,
            _ => {
                at += 1;
                continue;
            }
        }
        if depth == 0 {
            return at;
        }
    }
    at
}

/// The end of the string that starts there.
fn string(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while let Some(&byte) = bytes.get(at) {
        at += if byte == b'\\' { 2 } else { 1 };
        if byte == b'"' {
            break;
        }
    }
    at.min(bytes.len())
}

fn torch_name(dtype: Dtype) -> Option<&'static str> {
    match dtype {
        Dtype::F32 => Some("float32"),
        Dtype::F16 => Some("float16"),
        Dtype::BF16 => Some("bfloat16"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dense(text: &str, to: Option<Dtype>) -> String {
        Config::parse(text.to_owned()).unwrap().dense(to)
    }

    #[test]
    fn members_are_cut_out_and_the_rest_stays() {
        for (text, left) in [
            (r#"{"a":1e5,"quantization_config":{"x":[1,"}"]},"b":1.0}"#, r#"{"a":1e5,"b":1.0}"#),
            (r#"{"quantization_config":{},"b":"\"{"}"#, r#"{"b":"\"{"}"#),
            ("{\n  \"b\": 0.10,\n  \"quantization\": {\"q\": 1}\n}\n", "{\n  \"b\": 0.10\n}\n"),
            (r#"{"quantization_config": null , "compression_config":[]}"#, "{}"),
            (r#"{"quantization":1,"a":2,"quantization_config":3,"compression_config":4}"#, r#"{"a":2}"#),
            (r#"{ "quantization\u005fconfig" : 7 , "z":{}, "a":[] }"#, r#"{ "z":{}, "a":[] }"#),
            (
                r#"{"text_config":{"quantization_config":{},"n":1},"other":{"quantization_config":{}}}"#,
                r#"{"text_config":{"n":1},"other":{"quantization_config":{}}}"#,
            ),
            (r#"{"a":{"b":"c"},"d":true}"#, r#"{"a":{"b":"c"},"d":true}"#),
            ("{}", "{}"),
            (" { } ", " { } "),
        ] {
            let dense = dense(text, None);
            assert_eq!(dense, left, "{text}");
            serde_json::from_str::<IgnoredAny>(&dense).unwrap();
        }
    }

    #[test]
    fn the_dtype_is_the_new_one() {
        let text = r#"{"torch_dtype":"float16","quantization_config":{"dtype":"float16"},"dtype":null,
            "llm_config":{"dtype":"torch.float32"}}"#;
        assert_eq!(Config::parse(text.to_owned()).unwrap().dtype(), Some(Dtype::F16));
        let left = r#"{"torch_dtype":"bfloat16","dtype":null,
            "llm_config":{"dtype":"torch.bfloat16"}}"#;
        assert_eq!(dense(text, Some(Dtype::BF16)), left);
        assert_eq!(dense(r#"{"a":1}"#, Some(Dtype::F32)), r#"{"a":1}"#);
    }

    #[test]
    fn what_is_no_object_is_an_error() {
        for text in ["", "[]", "{", "{\"a\":1,}", "1"] {
            assert!(Config::parse(text.to_owned()).is_err(), "{text}");
        }
    }

    proptest::proptest! {
        /// What is left is the same object without these members.
        #[test]
        fn any_object_loses_just_these_members(
            keys in proptest::collection::vec(0..6_usize, 0..7),
            values in proptest::collection::vec(0..6_usize, 7),
            blanks in proptest::collection::vec(proptest::bool::ANY, 30),
        ) {
            let names = ["quantization_config", "a", "quantization", "b\\\"", "compression_config", "dtype"];
            let texts = ["1.50", "\"x,}\\\"\"", "{\"quantization\":[]}", "[ ]", "null", "[{\"a\":\"]\"}]"];
            let mut blanks = blanks.into_iter().map(|blank| if blank { "\n " } else { "" });
            let mut blank = || blanks.next().unwrap_or_default();
            let parts: Vec<_> = keys.iter().zip(&values).enumerate().map(|(place, (&key, &value))| {
                // Keys are not repeated, so that values can be compared as maps.
                let key = if key % 2 == 0 { names[key].to_owned() } else { format!("{}{place}", names[key]) };
                format!("{}\"{key}\"{}:{}{}{}", blank(), blank(), blank(), texts[value], blank())
            }).collect();
            let text = format!("{{{}}}", parts.join(","));
            let mut expected: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text).unwrap();
            expected.retain(|key, _| !OF_CODES.contains(&&**key));
            let left: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&dense(&text, None)).unwrap();
            proptest::prop_assert_eq!(left, expected);
        }
    }
}
