//! Small files that would make a scan take long or tell much: what is too much is a problem, and what is dangerous is found
//! nevertheless.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use std::io::Write;

use weighbridge::ErrorKind;
use weighbridge_convert::{Options, Scan, Verdict, open};

const EVIL: &[u8] = b"\x80\x02cos\nsystem\n(tR.";

fn scan(bytes: &[u8]) -> Scan {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    weighbridge_convert::scan(file.path()).unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// An archive of stored members without checksums, each of which begins at a position.
fn archive(bytes: &[u8], members: &[(&str, usize, usize)]) -> Vec<u8> {
    let mut directory = Vec::new();
    for (name, start, len) in members {
        directory.extend(b"PK\x01\x02\x14\x03");
        directory.extend(fields(name, *len));
        directory.extend([0; 10]);
        directory.extend((*start as u32).to_le_bytes());
        directory.extend(name.bytes());
    }
    let (count, len) = ((members.len() as u16).to_le_bytes(), (directory.len() as u32).to_le_bytes());
    let start = (bytes.len() as u32).to_le_bytes();
    [bytes, &directory, b"PK\x05\x06\0\0\0\0", &count, &count, &len, &start, &[0, 0]].concat()
}

fn local(name: &str, data: &[u8]) -> Vec<u8> {
    [b"PK\x03\x04", &fields(name, data.len())[..], name.as_bytes(), data].concat()
}

/// What a header and an entry of the directory have in common.
fn fields(name: &str, len: usize) -> Vec<u8> {
    let len = (len as u32).to_le_bytes();
    [
        &[20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &len[..],
        &len,
        &(name.len() as u16).to_le_bytes(),
        &[0, 0],
    ]
    .concat()
}

fn one(name: &str, data: &[u8]) -> Vec<u8> {
    archive(&local(name, data), &[(name, 0, data.len())])
}

#[track_caller]
fn has_problem(scan: &Scan, part: &str) {
    assert!(scan.problems.iter().any(|problem| problem.what.contains(part)), "{:?}", scan.problems);
}

#[test]
fn a_long_name_of_many_pickles() {
    let name = "n".repeat(65_000);
    let pickles = b"K\xff.".repeat(20_000);
    let found = scan(&one(&name, &pickles));
    let names =
        found.pickles.iter().filter_map(|pickle| pickle.member.as_ref()).map(String::len).sum::<usize>();
    assert!(names < 64 << 20, "{names}");
    has_problem(&found, "more in it than can be told");
    assert_eq!(found.verdict(), Verdict::Incomplete);

    let found = scan(&one(&name, &[&pickles, EVIL].concat()));
    assert_eq!(found.verdict(), Verdict::Dangerous);
    // Twice as much is told no more.
    let more = scan(&one(&name, &[&pickles, EVIL, EVIL].concat()));
    assert_eq!(more.pickles.len(), found.pickles.len());
}

#[test]
fn long_problems_of_many_members() {
    let name = |number: usize| format!("{number:05}{}", "n".repeat(60_000));
    let (mut bytes, mut members) = (Vec::new(), Vec::new());
    for number in 0..1200 {
        members.push((name(number), bytes.len()));
        bytes.extend(local(&name(number), b"\xff\xfe\xfd"));
    }
    let members: Vec<_> = members.iter().map(|(name, start)| (&**name, *start, 3)).collect();
    // Two directories hold that many names.
    let found = scan(&archive(&bytes, &members[..1000]));
    has_problem(&found, "of no format that is understood");
    let told: usize =
        found.problems.iter().map(|problem| problem.member.as_ref().map_or(0, String::len)).sum();
    assert!(told < 64 << 20, "{told}");
    // A longer directory is not read.
    has_problem(&scan(&archive(&bytes, &members)), "its directory is too long");
}

#[test]
fn many_members_that_are_one() {
    let data = vec![0xff; 4 << 20];
    let names: Vec<String> = (0..400).map(|number| format!("{number:03}")).collect();
    let members: Vec<_> = names.iter().map(|name| (&**name, 0, data.len())).collect();
    let found = scan(&archive(&local("000", &data), &members));
    assert_eq!(found.verdict(), Verdict::Incomplete);
    has_problem(&found, "too long together to look into");

    // To convert, any two are too many.
    let file = tempfile::NamedTempFile::new().unwrap();
    let array =
        [b"\x93NUMPY\x01\x00\x36\x00{'descr': '|u1', 'fortran_order': False, 'shape': ()}\n", &[7][..]]
            .concat();
    let whole = one("a.npy", &array);
    std::fs::write(file.path(), &whole).unwrap();
    assert_eq!(open(file.path(), &Options::new()).unwrap().checkpoint().len(), 1);
    let twice = [("a.npy", 0, array.len()), ("b.npy", 0, array.len())];
    std::fs::write(file.path(), archive(&local("a.npy", &array), &twice)).unwrap();
    let error = open(file.path(), &Options::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Malformed);
    assert!(error.to_string().ends_with("its members \"a.npy\" and \"b.npy\" overlap"), "{error}");
}

#[test]
fn many_archives_one_behind_another() {
    let empty = [b"PK\x05\x06", &[0; 16][..], &[1, 0, b'x']].concat();
    assert_eq!(scan(&empty.repeat(900)).verdict(), Verdict::Harmless);
    let found = scan(&empty.repeat(1100));
    assert_eq!(found.verdict(), Verdict::Incomplete);
    has_problem(&found, "too many archives");
}

#[test]
fn many_streams_one_behind_another() {
    let frame = b"\x50\x2a\x4d\x18\x05\0\0\0abcde";
    // One of them begins at the end of what is read at a time.
    assert_eq!(65_536 % frame.len(), 3);
    for (stream, count) in [(&frame[..], 10_000), (&gzip(b"")[..], 10_000), (&gzip(b"text")[..], 10_000)] {
        let found = scan(&stream.repeat(count));
        assert_eq!(found.verdict(), Verdict::Harmless, "{:?}", found.problems);
        let found = scan(&stream.repeat(3 * count));
        assert_eq!(found.verdict(), Verdict::Incomplete);
        has_problem(&found, "too many streams");
    }
    let found = scan(&[&frame.repeat(10_000)[..], b"behind"].concat());
    has_problem(&found, "6 bytes behind");
}

#[test]
fn pictures_end_where_they_say() {
    let scans = b"\xff\xda\0\x04ab\x01\xff\0\x02\xff\xd0\x03".repeat(100_000);
    let filled = [&b"\xff".repeat(300_000)[..], b"\xd9"].concat();
    let jpeg = [b"\xff\xd8\xff\xe0\0\x02", &scans[..], &filled].concat();
    let chunk = b"\0\0\0\x01IDATa\0\0\0\0".repeat(50_000);
    let png = [b"\x89PNG\r\n\x1a\n", &chunk[..], b"\0\0\0\0IEND\0\0\0\0"].concat();
    for picture in [jpeg, png] {
        let found = scan(&picture);
        assert_eq!(found.verdict(), Verdict::Harmless, "{} {:?}", found.format, found.problems);
        has_problem(&scan(&[&picture[..], b"x"].concat()), "bytes behind its end");
        has_problem(&scan(&picture[..picture.len() - 1]), "broken or cut off");
    }
    // A segment that is shorter than its own length.
    has_problem(&scan(b"\xff\xd8\xff\xe0\0\x01\xff\xd9"), "broken or cut off");
}

#[test]
fn code_is_searched_to_its_end() {
    let filler = "# what is behind a megabyte of this runs as well\n".repeat(22_000);
    let code = |call: &str| one("a/code/x.py", format!("{filler}{call}\n").as_bytes());
    assert_eq!(scan(&code("torch.add(")).verdict(), Verdict::Harmless);
    assert_eq!(scan(&code("torch.save(")).verdict(), Verdict::Dangerous);
    // Wherever the end of what is read at a time falls.
    for before in (256 << 10) - 12..(256 << 10) + 2 {
        let code = format!("{}torch.load(x)", " ".repeat(before));
        assert_eq!(scan(&one("a/code/x.py", code.as_bytes())).verdict(), Verdict::Dangerous);
    }
}

#[test]
fn a_tar_archive_of_a_member_without_a_name() {
    let mut block = [0; 512];
    block[124..135].copy_from_slice(format!("{:011o}", EVIL.len()).as_bytes());
    block[156] = b'0';
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut member = EVIL.to_vec();
    member.resize(512, 0);
    let found = scan(&[&block[..], &member, &[0; 1024]].concat());
    assert_eq!((found.format, found.verdict()), ("tar archive", Verdict::Dangerous));
}
