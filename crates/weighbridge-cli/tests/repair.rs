//! `weighbridge repair`: what can be proven is mended, byte for byte, and everything else is refused.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::Path;

use insta::assert_snapshot;
use support::{Ran, llama, raw_file, weighbridge};
use weighbridge::Checkpoint;

/// Two tensors of four bytes.
const HEADER: &str = r#"{"__metadata__":{"k":"v"},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[2,2],"data_offsets":[4,8]}}"#;
const DATA: &[u8] = b"\x00\x00\x80\x3f\x01\x02\x03\x04";

fn repair(dir: &Path, options: &[&str]) -> Ran {
    let path = dir.join("m.safetensors");
    weighbridge(["repair", path.to_str().unwrap()].iter().chain(options))
}

/// A file as it is, its length in front.
fn file(dir: &Path, header: &[u8], data: &[u8]) {
    let len = (header.len() as u64).to_le_bytes();
    fs::write(dir.join("m.safetensors"), [&len, header, data].concat()).unwrap();
}

/// Repairs a file that readers refuse, and checks what comes out.
#[track_caller]
fn mended(dir: &Path) -> String {
    let path = dir.join("m.safetensors");
    let before = fs::read(&path).unwrap();
    let out = dir.join("out.safetensors");
    let dry = repair(dir, &[]);
    assert_eq!(dry.status, 1, "{dry:?}");
    assert_eq!(repair(dir, &["--dry-run", "-o", out.to_str().unwrap()]).status, 1);
    assert!(!out.exists());
    let ran = repair(dir, &["-o", out.to_str().unwrap()]);
    assert_eq!(ran.status, 0, "{ran:?}");
    assert_eq!(ran.stdout, "");
    assert!(fs::read(&path).unwrap() == before, "the broken file was changed");
    let repaired = Checkpoint::open(&out).unwrap();
    let bytes = |name: &str| {
        let range = repaired.tensor(name).unwrap().info().file_range();
        fs::read(&out).unwrap()[range.start as usize..range.end as usize].to_vec()
    };
    assert_eq!(repaired.len(), 2);
    assert_eq!((bytes("a"), bytes("b")), (DATA[..4].to_vec(), DATA[4..].to_vec()));
    assert_eq!(repaired.tensor("b").unwrap().shape(), [2, 2]);
    let header = repaired.shards()[0].header();
    assert_eq!(header.metadata_value("k"), Some("v"));
    assert!(header.findings().is_empty());
    assert_eq!(weighbridge(["verify", "--profile", "strict", out.to_str().unwrap()]).status, 0);
    assert_eq!(weighbridge(["repair", out.to_str().unwrap()]).status, 0);
    fs::remove_file(&out).unwrap();
    dry.without(dir).replace("[dir]/m.safetensors: ", "")
}

#[test]
fn a_valid_file_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    llama(&dir.path().join("m.safetensors"), None);
    for options in [&[][..], &["-o", "never.safetensors"], &["--dry-run"]] {
        let ran = repair(dir.path(), options);
        assert_eq!(ran.status, 0);
        assert_eq!(ran.without(dir.path()), "[dir]/m.safetensors: nothing to repair\n");
    }
    // A header that is not padded is valid, too.
    file(dir.path(), HEADER.as_bytes(), DATA);
    assert_eq!(repair(dir.path(), &[]).status, 0);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn padding_gaps_and_trailing_bytes_are_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut all = String::new();
    file(dir, &[HEADER.as_bytes(), &[0; 9]].concat(), DATA);
    all += &mended(dir);
    // In front of it, and between its parts; a byte order mark.
    file(dir, &[b"\0\0 ", HEADER.replace(":[", ":\0[").as_bytes(), b"\0 \n\0"].concat(), DATA);
    all += &mended(dir);
    file(dir, &["\u{feff}", HEADER].concat().into_bytes(), DATA);
    all += &mended(dir);
    // Gaps: before the first tensor, between two, with something in it.
    let gaps = HEADER.replace("[0,4]", "[3,7]").replace("[4,8]", "[12,16]");
    file(dir, gaps.as_bytes(), &[b"\0\0\0", &DATA[..4], b"\0x\0y\0", &DATA[4..]].concat());
    all += &mended(dir);
    file(dir, HEADER.as_bytes(), &[DATA, &[0; 4096]].concat());
    all += &mended(dir);
    file(dir, HEADER.as_bytes(), &[DATA, b"rubbish"].concat());
    all += &mended(dir);
    // All at once, and the tensors in another order.
    let header = HEADER.replace("[0,4]", "[8,12]").replace("[4,8]", "[1,5]");
    let data = [b"\0", &DATA[4..], b"\0\0\0", &DATA[..4], b"!"].concat();
    file(dir, &[header.as_bytes(), &[0; 5]].concat(), &data);
    all += &mended(dir);
    assert_snapshot!(all, @r#"
left out: 9 NUL bytes of padding in the header
1 change would make it valid; -o FILE writes a repaired file
left out: 8 NUL bytes of padding in the header
1 change would make it valid; -o FILE writes a repaired file
left out: the byte order mark before the header
1 change would make it valid; -o FILE writes a repaired file
left out: 3 bytes before tensor "a", all zero
left out: 5 bytes before tensor "b", of which 2 are not zero
2 changes would make it valid; -o FILE writes a repaired file
left out: 4,096 bytes behind the last tensor, all zero
1 change would make it valid; -o FILE writes a repaired file
left out: 7 bytes behind the last tensor, of which 7 are not zero
1 change would make it valid; -o FILE writes a repaired file
left out: 5 NUL bytes of padding in the header
left out: 1 byte before tensor "b", all zero
left out: 3 bytes before tensor "a", all zero
left out: 1 byte behind the last tensor, of which 1 is not zero
4 changes would make it valid; -o FILE writes a repaired file
"#);
}

#[test]
fn a_wrong_length_is_mended_where_one_reading_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let with_len = |len: u64, padding: &[u8], data: &[u8]| {
        let bytes = [&len.to_le_bytes(), HEADER.as_bytes(), padding, data].concat();
        fs::write(dir.join("m.safetensors"), bytes).unwrap();
    };
    let len = HEADER.len() as u64;
    let mut all = String::new();
    with_len(u64::MAX, b"", DATA);
    all += &mended(dir);
    with_len(len - 20, b"", DATA);
    all += &mended(dir);
    with_len(len + 5, b"", DATA);
    all += &mended(dir);
    // Padded to a multiple of 8, as writers do.
    let padding = &b"       "[..(8 - HEADER.len() % 8) % 8];
    with_len(10_000, padding, DATA);
    all += &mended(dir);
    // Nobody knows where the data starts.
    with_len(10_000, b"", &[DATA, b"rubbish"].concat());
    all += &repair(dir, &[]).without(dir);
    with_len(10_000, b"", &DATA[1..]);
    all += &repair(dir, &[]).without(dir);
    assert_snapshot!(all, @r#"
the length of the header is 133, not 18446744073709551615
1 change would make it valid; -o FILE writes a repaired file
the length of the header is 133, not 113
1 change would make it valid; -o FILE writes a repaired file
the length of the header is 133, not 138
1 change would make it valid; -o FILE writes a repaired file
the length of the header is 136, not 10000
1 change would make it valid; -o FILE writes a repaired file
error: [dir]/m.safetensors: it cannot be repaired: the length of the header is given as 10000, its JSON ends at byte 141, and where the data starts cannot be proven
error: [dir]/m.safetensors: it cannot be repaired: the length of the header is given as 10000, its JSON ends at byte 141, and behind it are fewer bytes than the 8 of its tensors
"#);
}

#[test]
fn departures_from_the_specification_are_mended() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let odd = r#" {"__metadata__":{"k":"v"},"a":[{"F32":null},[1],[0,4]],"b":{"dtype":"U8","shape":[2,2],"x":{"dtype":1},"data_offsets":[4,8]}}
"#;
    file(dir, odd.as_bytes(), DATA);
    let mut all = mended(dir);
    // A tensor without data belongs nowhere.
    let empty = HEADER.replace(r#""a":"#, r#""e":{"dtype":"F32","shape":[0],"data_offsets":[6,6]},"a":"#);
    file(dir, empty.as_bytes(), DATA);
    let ran = repair(dir, &["-o", dir.join("out.safetensors").to_str().unwrap()]);
    all += &ran.without(dir);
    assert_eq!(Checkpoint::open(dir.join("out.safetensors")).unwrap().len(), 3);
    assert_snapshot!(all, @r#"
the header does not begin with '{' (leading-space): written anew
tensor "a": its entry is an array instead of an object (tensor-as-array): written anew
tensor "a": its dtype is an object instead of a string (dtype-as-object): written anew
tensor "b": its entry has a field other than dtype, shape and data_offsets (unknown-field): written anew
the header is padded with characters other than spaces (padding): written anew
5 changes would make it valid; -o FILE writes a repaired file
[dir]/m.safetensors: tensor "e": its data_offsets [6, 6], which hold nothing, get their place in the order
[dir]/out.safetensors: 3 tensors, 8 B
"#);
}

#[test]
fn what_cannot_be_proven_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let header = |from: &str, to: &str| HEADER.replace(from, to).into_bytes();
    let one_more = [DATA, b"1"].concat();
    // Padding that would align the data, and is not counted by the length.
    let shift = 8 - HEADER.len() % 8;
    let cases: Vec<(Vec<u8>, Vec<u8>)> = vec![
        (HEADER.into(), DATA[..7].into()),
        (header("[4,8]", "[8,12]"), DATA.into()),
        (header("[4,8]", "[3,7]"), one_more.clone()),
        (header("[4,8]", "[0,4]"), DATA.into()),
        (header(r#""b":"#, r#""a":"#), DATA.into()),
        (header(r#""v""#, r#""v","k":"w""#), one_more.clone()),
        (header("[2,2]", "[2,3]"), one_more.clone()),
        (header("[2,2]", "[4611686018427387904,8]"), one_more.clone()),
        (header("[4,8]", "[8,4]"), one_more.clone()),
        (header(r#""U8""#, r#""u8""#), DATA.into()),
        (header(r#""U8","shape":[2,2]"#, r#""F4","shape":[7]"#), DATA.into()),
        (header(r#""shape":[2,2],"#, ""), DATA.into()),
        (header("[2,2]", "[-2,2]"), DATA.into()),
        (header(r#""v""#, "1"), DATA.into()),
        (HEADER[..HEADER.len() - 1].into(), Vec::new()),
        (b"\"\x01\"".to_vec(), DATA.into()),
        (b"\x80\x04}q\x00".to_vec(), DATA.into()),
        ([HEADER.as_bytes(), b"{}"].concat(), DATA.into()),
        (HEADER.into(), [&[0; 8][..shift], DATA].concat()),
    ];
    let mut all = String::new();
    for (header, data) in &cases {
        file(dir, header, data);
        let ran = repair(dir, &["-o", dir.join("out.safetensors").to_str().unwrap()]);
        assert_eq!((ran.status, ran.stderr.lines().count()), (2, 1), "{ran:?}");
        all += &ran.without(dir);
    }
    fs::write(dir.join("m.safetensors"), b"short").unwrap();
    all += &repair(dir, &[]).without(dir);
    fs::remove_file(dir.join("m.safetensors")).unwrap();
    all += &repair(dir, &[]).without(dir);
    assert_eq!(fs::read_dir(dir).unwrap().count(), 0);
    assert_snapshot!(all, @r#"
error: [dir]/m.safetensors: it cannot be repaired: tensor "b": it is cut short: its data ends at byte 8, the file has 7 behind the header
error: [dir]/m.safetensors: it cannot be repaired: tensor "b": it is cut short: its data ends at byte 12, the file has 8 behind the header
error: [dir]/m.safetensors: it cannot be repaired: tensor "b": its data overlaps that of "a"
error: [dir]/m.safetensors: it cannot be repaired: tensor "b": its data overlaps that of "a"
error: [dir]/m.safetensors: it cannot be repaired: tensor "a": its name appears twice
error: [dir]/m.safetensors: it cannot be repaired: the metadata has two values for "k"
error: [dir]/m.safetensors: it cannot be repaired: tensor "b": dtype and shape need 6 bytes, data_offsets give 4
error: [dir]/m.safetensors: it cannot be repaired: tensor "b": the size of shape [4611686018427387904, 8] of U8 does not fit 64 bits
error: [dir]/m.safetensors: it cannot be repaired: tensor "b": its data ends before it starts: data_offsets [8, 4]
error: [dir]/m.safetensors: it cannot be repaired: tensor "b": its dtype "u8" is unknown
error: [dir]/m.safetensors: it cannot be repaired: tensor "b": shape [7] of F4 does not end on a byte
error: [dir]/m.safetensors: it cannot be repaired: its header is not JSON of tensors: tensor "b": it has no shape at line 1 column 118
error: [dir]/m.safetensors: it cannot be repaired: its header is not JSON of tensors: tensor "b": invalid value: integer `-2`, expected u64 at line 1 column 109
error: [dir]/m.safetensors: it cannot be repaired: its header is not JSON of tensors: invalid type: integer `1`, expected a string at line 1 column 23
error: [dir]/m.safetensors: it cannot be repaired: its header is not JSON of tensors: EOF while parsing an object at line 1 column 132
error: [dir]/m.safetensors: it cannot be repaired: its header is not JSON of tensors: control character (\u0000-\u001F) found while parsing a string at line 1 column 2
error: [dir]/m.safetensors: it cannot be repaired: its header is not JSON of tensors: expected value at line 1 column 1
error: [dir]/m.safetensors: it cannot be repaired: the length of the header is given as 135, its JSON ends at byte 141, and where the data starts cannot be proven
error: [dir]/m.safetensors: it cannot be repaired: there are 3 bytes more than the tensors have, and whether they are padding before the data or stand behind it cannot be proven
error: [dir]/m.safetensors: it cannot be repaired: a file of 5 bytes has no header
error: [dir]/m.safetensors: no such file or directory
"#);
}

#[test]
fn a_file_replaces_itself_only_when_forced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    raw_file(&path, HEADER, &[DATA, b"123"].concat());
    let own = ["-o", path.to_str().unwrap()];
    assert_eq!(repair(dir.path(), &own).status, 2);
    assert_eq!(repair(dir.path(), &[&own[..], &["--force"]].concat()).status, 0);
    assert_eq!(repair(dir.path(), &[]).status, 0);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    let ran = repair(dir.path(), &["-o", dir.path().join("x.bin").to_str().unwrap()]);
    assert_eq!(ran.status, 2);
    llama(&dir.path().join("set"), Some(4000));
    let ran = weighbridge(["repair", dir.path().join("set").to_str().unwrap()]);
    assert_snapshot!(ran.without(dir.path()), @r#"
error: [dir]/set: it has several files; name the one that is broken, `weighbridge verify` says which
"#);
}
