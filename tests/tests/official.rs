//! Whatever the official crate accepts we accept, with the same content, and nothing else.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use std::collections::BTreeMap;

use proptest::prelude::*;
use safetensors::SafeTensors;
use weighbridge::Checkpoint;

type Content = (Option<BTreeMap<String, String>>, BTreeMap<String, (String, Vec<usize>, Vec<u8>)>);

fn theirs(file: &[u8]) -> Option<Content> {
    let tensors = SafeTensors::deserialize(file).ok()?;
    let (_, header) = SafeTensors::read_metadata(file).ok()?;
    let metadata = header.metadata().as_ref().map(|map| map.clone().into_iter().collect());
    let tensors = tensors.tensors().into_iter().map(|(name, view)| {
        (name, (format!("{:?}", view.dtype()), view.shape().to_vec(), view.data().to_vec()))
    });
    Some((metadata, tensors.collect()))
}

fn ours(file: &[u8]) -> weighbridge::Result<Content> {
    let ckpt = Checkpoint::from_bytes(file.to_vec())?;
    let header = ckpt.shards()[0].header();
    let metadata =
        header.metadata().map(|entries| entries.map(|(k, v)| (k.to_owned(), v.to_owned())).collect());
    let tensors = ckpt.tensors().map(|tensor| {
        assert_eq!(ckpt.tensor(tensor.name()).unwrap().byte_len(), tensor.byte_len());
        let range = tensor.info().file_range();
        let data = file[range.start as usize..range.end as usize].to_vec();
        let dtype = match tensor.dtype() {
            weighbridge::Dtype::Bool => "BOOL".to_owned(),
            dtype => dtype.name().to_owned(),
        };
        (tensor.name().to_owned(), (dtype, tensor.shape().to_vec(), data))
    });
    Ok((metadata, tensors.collect()))
}

fn agree(file: &[u8]) {
    let (theirs, ours) = (theirs(file), ours(file));
    let shown = String::from_utf8_lossy(&file[..file.len().min(400)]);
    match (theirs, ours) {
        (Some(theirs), Ok(ours)) => assert_eq!(theirs, ours, "{shown}"),
        (None, Err(_)) => {}
        (Some(_), Err(error)) => panic!("only the official crate accepts {shown:?}: {error}"),
        (None, Ok(_)) => panic!("only we accept {shown:?}"),
    }
}

fn with_header(header: &str, data: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend((0..data).map(|i| i as u8));
    file
}

#[test]
fn quirks() {
    let whole = |info: &str| format!(r#"{{"a":{info}}}"#);
    let fields = |dtype: &str, shape: &str, offsets: &str| {
        format!(r#"{{"a":{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}}}}}"#)
    };
    let good = r#"{"dtype":"U8","shape":[4],"data_offsets":[0,4]}"#;
    let mut headers = vec![
        String::new(),
        "{}".into(),
        "[]".into(),
        "null".into(),
        " \t\r\n{}".into(),
        "{} \t\r\n".into(),
        "{}\0".into(),
        "\u{feff}{}".into(),
        whole(good),
        format!("{}   \n", whole(good)),
        format!(r#"{{"a":{good},"a":{good}}}"#),
        format!(r#"{{"a":{{"dtype":"U8","shape":[2],"data_offsets":[0,2]}},"a":{good}}}"#),
        format!(r#"{{"a":{good},"a":{{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}}}"#),
        format!(r#"{{"a":{good},"\u0061":{good}}}"#),
        format!(r#"{{"a":{{"dtype":"U9"}},"a":{good}}}"#),
        format!(r#"{{"a":{good},}}"#),
        format!(r#"{{"":{good}}}"#),
        format!(r#"{{"\u0000":{good}}}"#),
        format!(r#"{{"\ud83d\ude00":{good}}}"#),
        format!(r#"{{"\ud83d":{good}}}"#),
        format!(r#"{{"__metadata__":{good}}}"#),
        format!(r#"{{"__metadata__":null,"a":{good}}}"#),
        format!(r#"{{"__metadata__":nul,"a":{good}}}"#),
        format!(r#"{{"__metadata__":{{}},"a":{good}}}"#),
        format!(r#"{{"__metadata__":{{"k":"v","k":"w"}},"a":{good}}}"#),
        format!(r#"{{"__metadata__":{{"k":"v","\u006b":"w","l":"\n"}},"a":{good}}}"#),
        format!(r#"{{"__metadata__":{{"k":1}},"a":{good}}}"#),
        format!(r#"{{"__metadata__":[],"a":{good}}}"#),
        format!(r#"{{"__metadata__":null,"__metadata__":null,"a":{good}}}"#),
        format!(r#"{{"__metadata__":{{}},"__metadata__":{{}},"a":{good}}}"#),
        format!(r#"{{"\u005f_metadata__":{{"k":"v"}},"a":{good}}}"#),
        whole(r#"["U8",[4],[0,4]]"#),
        whole(r#"["U8",[4],[0,4],1]"#),
        whole(r#"["U8",[4]]"#),
        whole(r"[]"),
        whole("{}"),
        whole("1"),
        whole("null"),
        whole(r#"{"shape":[4],"data_offsets":[0,4]}"#),
        whole(r#"{"dtype":"U8","data_offsets":[0,4]}"#),
        whole(r#"{"dtype":"U8","shape":[4]}"#),
        whole(r#"{"dtype":"U8","dtype":"U8","shape":[4],"data_offsets":[0,4]}"#),
        whole(r#"{"\u0064type":"U8","shape":[4],"data_offsets":[0,4]}"#),
        whole(r#"{"x":1,"x":{"y":[]},"dtype":"U8","shape":[4],"data_offsets":[0,4]}"#),
        whole(r#"{"x":1e999,"dtype":"U8","shape":[4],"data_offsets":[0,4]}"#),
        whole(r#"{"x":"\ud800","dtype":"U8","shape":[4],"data_offsets":[0,4]}"#),
        whole(r#"{"x":-0.5e-3,"dtype":"U8","shape":[4],"data_offsets":[0,4]}"#),
        whole(r#"{"x":[1,],"dtype":"U8","shape":[4],"data_offsets":[0,4]}"#),
    ];
    for dtype in [
        r#""U8""#,
        r#""u8""#,
        r#""I8""#,
        r#""BOOL""#,
        r#""U\u0038""#,
        r#"{"U8":null}"#,
        r#"{"U8":{}}"#,
        r#"{"U8":[]}"#,
        r#"{"U8":1}"#,
        r#"{"U8":null,"I8":null}"#,
        "{}",
        "null",
        "4",
        r#"["U8"]"#,
        r#"{"U8": }"#,
        r#"{ "U8" : null }"#,
        r#"{"U8":{"x":1}}"#,
        r#"{"U8":true}"#,
    ] {
        headers.push(fields(dtype, "[4]", "[0,4]"));
    }
    for shape in [
        "[4]",
        "[2,2]",
        "[4,1]",
        "[]",
        "[0]",
        "[0,9223372036854775808,4]",
        "[9223372036854775808,4,0]",
        "[4294967296,4294967296]",
        "[18446744073709551615]",
        "[18446744073709551616]",
        "[-4]",
        "[-0]",
        "[4.0]",
        "[4e0]",
        "[04]",
        "[\"4\"]",
        "[4,]",
        "4",
        "{}",
        "null",
        "[[4]]",
        "[ 4 ]",
        "[true]",
    ] {
        headers.push(fields(r#""U8""#, shape, "[0,4]"));
        headers.push(fields(r#""U8""#, shape, "[0,0]"));
        headers.push(fields(r#""F4""#, shape, "[0,2]"));
    }
    for offsets in [
        "[0,4]",
        "[0,3]",
        "[0,5]",
        "[1,5]",
        "[4,0]",
        "[4,8]",
        "[0]",
        "[0,4,8]",
        "[]",
        "{}",
        "[0,4.0]",
        "[-0,4]",
        "[0,18446744073709551615]",
        "[18446744073709551615,18446744073709551615]",
        "[0,\"4\"]",
        "null",
    ] {
        headers.push(fields(r#""U8""#, "[4]", offsets));
    }
    for (dtype, shape) in [("F4", 3), ("F4", 8), ("F6_E2M3", 4), ("F6_E3M2", 2), ("C64", 1), ("F8_E8M0", 4)] {
        for end in 0..9 {
            headers.push(fields(&format!("{dtype:?}"), &format!("[{shape}]"), &format!("[0,{end}]")));
        }
    }
    let nested = |depth: usize| {
        let x = "[".repeat(depth) + &"]".repeat(depth);
        whole(&format!(r#"{{"x":{x},"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#))
    };
    headers.extend((120..130).map(nested));
    for header in &headers {
        for data in [0, 2, 3, 4, 8] {
            agree(&with_header(header, data));
        }
    }
    for (first, second) in
        [([0, 2], [2, 4]), ([2, 4], [0, 2]), ([0, 2], [1, 4]), ([0, 2], [3, 4]), ([0, 0], [0, 4])]
    {
        let entry = |[begin, end]: [i64; 2]| {
            format!(r#"{{"dtype":"U8","shape":[{}],"data_offsets":[{begin},{end}]}}"#, end - begin)
        };
        agree(&with_header(&format!(r#"{{"b":{},"a":{}}}"#, entry(first), entry(second)), 4));
    }
}

#[test]
fn lengths() {
    let file = with_header(r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#, 4);
    for len in 0..=file.len() {
        agree(&file[..len]);
    }
    let longer = [&file[..], &[0]].concat();
    agree(&longer);
    for claim in [0, 1, 51, 53, 54, 57, 1 << 20, 100_000_000, 100_000_001, u64::MAX - 7, u64::MAX] {
        let mut file = file.clone();
        file[..8].copy_from_slice(&claim.to_le_bytes());
        agree(&file);
    }
    agree(&[&3_u64.to_le_bytes()[..], b"{\xff}"].concat());
}

/// A file that is right but for what the mutation does to it.
fn files() -> impl Strategy<Value = Vec<u8>> {
    let dtypes = prop::sample::select(weighbridge::Dtype::all().collect::<Vec<_>>());
    let tensor = ("[a-c]{0,3}|é|__metadata__", dtypes, prop::collection::vec(0..4_usize, 0..4));
    let metadata = prop::option::of(prop::collection::vec(("[k-m]{1}", "[ -~]{0,6}"), 0..3));
    (prop::collection::vec(tensor, 0..5), metadata, 0..4_usize, any::<bool>()).prop_map(
        |(tensors, metadata, padding, reversed)| {
            let mut end = 0;
            let mut entries = Vec::new();
            for (name, dtype, mut shape) in tensors {
                if dtype.bits() % 8 != 0 {
                    shape.push(8);
                }
                let elements = shape.iter().product::<usize>() as u64;
                let begin = end;
                end += dtype.byte_len(elements).unwrap();
                entries.push(format!(
                    r#"{name:?}:{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{begin},{end}]}}"#
                ));
            }
            if let Some(metadata) = metadata {
                let pairs: Vec<_> = metadata.iter().map(|(k, v)| format!("{k:?}:{v:?}")).collect();
                entries.push(format!(r#""__metadata__":{{{}}}"#, pairs.join(",")));
            }
            if reversed {
                entries.reverse();
            }
            with_header(&format!("{{{}}}{}", entries.join(","), " ".repeat(padding)), end as usize)
        },
    )
}

/// Bytes that mean something in a header.
const TOKENS: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"",
    "\\",
    "\\u0061",
    "\\ud800",
    " ",
    "\t",
    "\n",
    "0",
    "1",
    "9",
    "-",
    ".",
    "e5",
    "null",
    "true",
    "\0",
    "é",
    "\"dtype\"",
    "\"shape\"",
    "\"data_offsets\"",
    "\"__metadata__\"",
    "\"U8\"",
    "\"F4\"",
    "18446744073709551616",
    "[0,0]",
    "{}",
    "1e400",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 12_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn sound_files(file in files()) {
        agree(&file);
    }

    #[test]
    fn mutated_files(
        mut file in files(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0..4_u8, 0..TOKENS.len()), 1..4),
        keep_length in prop::bool::weighted(0.8),
    ) {
        let size = file.len();
        for (place, kind, token) in edits {
            let place = 8 + place.index(file.len() - 7);
            let end = (place + kind as usize).min(file.len());
            file.splice(place.min(end)..end, TOKENS[token].bytes());
        }
        if keep_length {
            // The header grew or shrank: let its length say so.
            let claim = u64::from_le_bytes(file[..8].try_into().unwrap());
            let claim = (claim + file.len() as u64).saturating_sub(size as u64);
            file[..8].copy_from_slice(&claim.to_le_bytes());
        }
        agree(&file);
    }
}
