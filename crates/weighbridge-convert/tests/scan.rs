//! `scan`: what it calls harmless is harmless, whatever a file looks like; everything else is told.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

mod support;

use std::io::Write;

use support::zip::{Member, archive, member};
use weighbridge_convert::scan::Scan;
use weighbridge_convert::{Verdict, scan};

/// Imports `os.system`, and ends.
const EVIL: &[u8] = b"\x80\x02cos\nsystem\n.";

fn scanned(name: &str, bytes: &[u8]) -> Scan {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    scan(path).unwrap()
}

fn globals(scan: &Scan) -> Vec<String> {
    scan.globals().map(ToString::to_string).collect()
}

/// That it imports this alone, and was understood.
#[track_caller]
fn imports(bytes: &[u8], expected: &str) {
    let found = scanned("file.pkl", bytes);
    assert_eq!(globals(&found), [expected], "{found:?}");
    assert!(found.is_complete(), "{found:?}");
}

/// That it is not proven what it holds, and one of the reasons.
#[track_caller]
fn incomplete(bytes: &[u8], reason: &str) -> Scan {
    let found = scanned("file.pkl", bytes);
    let mut reasons = found.problems.iter().map(|problem| &*problem.what);
    let mut of_pickles = found.pickles.iter().filter_map(|pickle| pickle.problem.as_deref());
    let told = reasons.any(|what| what.contains(reason)) || of_pickles.any(|what| what.contains(reason));
    assert!(told, "{reason}: {found:?}");
    assert!(found.verdict() >= Verdict::Incomplete);
    found
}

#[track_caller]
fn dangerous(name: &str, bytes: &[u8]) -> Scan {
    let found = scanned(name, bytes);
    assert!(globals(&found).contains(&"os.system".to_owned()), "{name}: {found:?}");
    assert_eq!(found.verdict(), Verdict::Dangerous);
    found
}

#[track_caller]
fn harmless(name: &str, bytes: &[u8]) -> Scan {
    let found = scanned(name, bytes);
    assert_eq!(found.verdict(), Verdict::Harmless, "{name}: {found:?}");
    found
}

#[test]
fn names_are_read_as_cpython_reads_them() {
    for body in [
        &b"cos\nsystem\n."[..],
        b"V\\u006fs\nV\\U00000073ystem\n\x93.",
        b"S'\\x6f\\163'\nS\"system\"\n\x93.",
        b"(ios\nsystem\n.",
        b"\x8c\x02osp 0_0\n0\x8c\x06systemp +1\n0g0\ng 01\n\x93.",
        b"I 0x1F\n0L-0b11L\n0I1_000\n0F1.5\n0I010\n0cos\nsystem\n.",
        b"\x80\x04\x80\x00cos\nsystem\n.",
        b"T\x02\0\0\0osU\x06system\x93.",
        b"\x8d\x02\0\0\0\0\0\0\0osX\x06\0\0\0system\x93.",
    ] {
        imports(body, "os.system");
    }
    // A carriage return belongs to a line, and so to a name.
    imports(b"cos\r\nsystem\n.", "os\r.system");
    let long = format!("c{}\nx\n.", "a".repeat(1 << 20));
    assert_eq!(globals(&scanned("file.pkl", long.as_bytes())).len(), 1);
}

#[test]
fn what_cpython_would_not_read_is_incomplete() {
    for (body, reason) in [
        (&b"\x80\x02I0x10 0\n0cos\nsystem\n."[..], "an invalid integer"),
        (b"\x80\x02NNN\x93.", "not text"),
        (b"\x80\x02p-1\n.", "an invalid index"),
        (b"\x80\x02NR.", "nothing is on the stack"),
        (b"\x80\x02h\x07.", "nothing was memorised as 7"),
        (b"\x80\x06N.", "protocol 6"),
        (b"\x80\x02V\\u00\n.", "invalid encoding"),
        (b"\x80\x02X\x02\0\0\0\xff\xff.", "invalid encoding"),
        (b"\x80\x02S'\n.", "an invalid string"),
        (b"\x80\x02.", "nothing is on the stack"),
        (b"\x80\x02N", "the file ends"),
        (b"\x80\x02\xffN.", "unknown opcode 0xff"),
    ] {
        incomplete(body, reason);
    }
    // What was imported before counts.
    let found = incomplete(b"\x80\x02cos\nsystem\n\xff", "unknown opcode");
    assert_eq!(found.verdict(), Verdict::Dangerous);
    // CPython's reader in Python takes what the file cuts off for a line.
    assert_eq!(globals(&scanned("file.pkl", b"cos\nsystemX")), ["os.system"]);
    // It takes floats that the one in C does not, in what looks like a text.
    assert_eq!(globals(&incomplete(b"(F 1\nios\nsystem\n.", "do not agree")), ["os.system"]);
    // A text that may be a name, and cannot be written down.
    let odd = scanned("file.pkl", b"\x80\x04V\\ud800\nV\\ud801\n\x93.");
    assert_eq!(odd.verdict(), Verdict::Dangerous);
}

#[test]
fn texts_may_be_pickles_behind_one_another() {
    dangerous("file.pkl", b"N.cos\nsystem\n(S'id'\ntR.");
    dangerous("notes.txt", b"N.N.(ios\nsystem\n.");
    harmless("notes.txt", b"N.B. this is a text.");
}

#[test]
fn frames_that_readers_do_not_agree_about_are_incomplete() {
    let frame = |len: u64, body: &[u8]| [b"\x95", &len.to_le_bytes()[..], body].concat();
    let head = b"\x80\x04".to_vec();
    let whole = [head.clone(), frame(13, b"cos\nsystem\n0N"), frame(1, b".")].concat();
    imports(&whole, "os.system");
    // An argument, or a line, that crosses the end of its frame.
    let crossing = [head.clone(), frame(1, b"X\x02\0\0\0os."), vec![]].concat();
    assert!(scanned("file.pkl", &crossing).is_complete(), "the argument begins where the frame ends");
    incomplete(&[head.clone(), frame(3, b"X\x02\0\0\0os.")].concat(), "crosses the end of its frame");
    incomplete(&[head.clone(), frame(6, b"cos\nsystem\n.")].concat(), "crosses the end of its frame");
    incomplete(&[head.clone(), frame(11, &frame(2, b"N."))].concat(), "a frame within a frame");
    incomplete(&[head.clone(), frame(9, b"N.abcdefg")].concat(), "goes on behind");
    incomplete(&[head, frame(99, b"N.")].concat(), "behind the end of the file");
}

#[test]
fn pickles_behind_one_another_are_all_followed() {
    let found = dangerous("file.pkl", &[b"\x80\x02N.", b"I1\n.".as_slice(), EVIL].concat());
    assert_eq!(found.pickles.len(), 3);
    incomplete(b"\x80\x02N.\x00\x00\x00", "3 bytes behind what is understood");
    incomplete(&[b"\x80\x02N.".as_slice(), &[0xfe; 100]].concat(), "100 bytes behind");
    assert_eq!(scanned("many.pkl", &b"\x80\x02N.".repeat(200_000)).verdict(), Verdict::Incomplete);
}

#[test]
fn zip_archives_are_looked_into_whatever_is_wrong_with_them() {
    let good = archive(&[member("a/x", b"words\n"), member("a/data.pkl", b"\x80\x02N.")]);
    harmless("good.zip", &good);
    let evil = archive(&[member("a/x", b"words\n"), member("a/data.pkl", EVIL)]);
    let cases = [
        evil.clone(),
        archive(&[member("outer/inner.bin", &evil)]),
        // Bytes in front, and behind.
        [b"\x80\x02N.", &evil[..]].concat(),
        [EVIL, &good[..]].concat(),
        [&evil[..], &[0; 40]].concat(),
        // Archives one behind another, as distributed checkpoints have them.
        [&evil[..], &good[..]].concat(),
        [&good[..], &evil[..]].concat(),
        archive(&[Member { flags: 1, ..member("a/data.pkl", EVIL) }]),
        archive(&[Member { crc: 5, ..member("a/data.pkl", EVIL) }]),
        archive(&[Member { own_name: "b/data.pkl", ..member("a/data.pkl", EVIL) }]),
        archive(&[member("a/data.pkl", EVIL), member("a/data.pkl", b"\x80\x02N.")]),
        archive(&[member("../data.pkl", EVIL)]),
        archive(&[member("a/.hidden", EVIL), member("a/data.pkl", b"\x80\x02N.")]),
    ];
    for (number, case) in cases.iter().enumerate() {
        dangerous(&format!("{number}.bin"), case);
    }
    assert!(scanned("chain", &[&good[..], &good[..]].concat()).is_complete());
    incomplete(&[b"front", &good[..]].concat(), "5 bytes before the archive");
    incomplete(&[&good[..], b"behind"].concat(), "6 bytes behind the archive");
    incomplete(&good[..good.len() - 30], "no directory");
    incomplete(&archive(&[Member { flags: 1, ..member("a/x", b"words") }]), "encrypted");
    incomplete(&archive(&[Member { method: 99, ..member("a/x", b"words") }]), "compression method 99");
    incomplete(&archive(&[member("a/x", b"1"), member("a/x", b"1")]), "two members");
    incomplete(&archive(&[member("a/x", b"\0\x01\x02")]), "no format that is understood");
    incomplete(&archive(&[Member { crc: 5, ..member("a/x", b"words") }]), "checksum");
    // A member that the directory does not name.
    let mut hidden = archive(&[member("a/x", b"words")]);
    let mut local = archive(&[member("b/data.pkl", EVIL)]);
    local.truncate(30 + 10 + EVIL.len());
    let directory = hidden.len() - 22 - 46 - 3;
    hidden.splice(directory..directory, local.iter().copied());
    let end = hidden.len() - 6;
    hidden[end..end + 4].copy_from_slice(&((directory + local.len()) as u32).to_le_bytes());
    incomplete(&hidden, "belong to no member");
}

#[test]
fn storages_of_torch_are_accounted_for() {
    let pickle = b"\x80\x02(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x04tQ.";
    let with = |data: &[u8]| archive(&[member("a/data.pkl", pickle), member("a/data/0", data)]);
    harmless("model.pt", &with(&[0xfe; 16]));
    incomplete(&with(&[0xfe; 17]), "no format that is understood");
    let other =
        archive(&[member("a/data.pkl", pickle), member("a/data/0", &[0; 16]), member("a/data/1", &[0; 16])]);
    incomplete(&other, "no format that is understood");
    // Numbers to PyTorch, a pickle to whoever unpacks the archive.
    dangerous("model.pt", &with(&[EVIL, b"\0\0"].concat()));
    dangerous("model.pt", &with(b"\x80\x02cos\nsystem\n"));
    // Numbers that begin as pickles do.
    for head in [*b"\x80\x06", *b"\x80\x02"] {
        let storage = [&head[..], &[0xfe; 14]].concat();
        assert!(harmless("model.pt", &with(&storage)).is_complete());
    }

    // The format before: a magic number, a version, the system, the object, the keys, and the storages.
    let magic = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}.";
    let keys = b"\x80\x02]X\x01\0\0\x000a.";
    let legacy = [&magic[..], pickle, keys, &4_u64.to_le_bytes(), &[0xfe; 16]].concat();
    assert_eq!(harmless("legacy.pt", &legacy).pickles.len(), 5);
    incomplete(&[&legacy[..], b"more"].concat(), "4 bytes behind");
    incomplete(&legacy[..legacy.len() - 1], "cut off");
    dangerous("legacy.pt", &[&magic[..], EVIL, keys, &4_u64.to_le_bytes(), &[0xfe; 16]].concat());
}

fn tar(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, data) in members {
        let mut header = [0; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
        header[156] = b'0';
        header[257..263].copy_from_slice(b"ustar\0");
        header[148..156].fill(b' ');
        let sum: u64 = header.iter().map(|&byte| u64::from(byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        out.extend(header);
        out.extend(*data);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.resize(out.len() + 1024, 0);
    out
}

#[test]
fn tar_archives_are_looked_into() {
    // Python takes checksums that are written oddly; where it does not, this would be of no format.
    for write in
        [|sum| format!("\t{sum:05o}\0 "), |sum| format!("0o{sum:06o}"), |sum| format!("+{sum:06o}\0")]
            as [fn(u32) -> String; 3]
    {
        let mut odd = tar(&[("x", EVIL)]);
        let sum: u32 = odd[..512].iter().map(|&byte| u32::from(byte)).sum();
        let sum = sum + 8 * 32 - odd[148..156].iter().map(|&byte| u32::from(byte)).sum::<u32>();
        odd[148..156].copy_from_slice(write(sum).as_bytes());
        dangerous("file.tar", &odd);
    }
    harmless("good.tar", &tar(&[("a.txt", b"words\n"), ("b.pkl", b"\x80\x02N.")]));
    dangerous("model.pt", &tar(&[("sys_info", b"\x80\x02N."), ("pickle", EVIL)]));
    dangerous("a.bin", &tar(&[("inner.tar", &tar(&[("x", EVIL)]))]));
    incomplete(&tar(&[("a", b"\x00\x01")]), "no format that is understood");
    let mut behind = tar(&[("a.txt", b"words\n")]);
    behind.extend(EVIL);
    incomplete(&behind, "bytes behind its end");
    incomplete(&tar(&[("a.txt", &[b'a'; 2000])])[..1024], "behind the end");
    // PyTorch's oldest format.
    let storages = [
        &b"\x80\x02K\x01."[..],
        b"\x80\x02(X\x01\0\0\x000X\x03\0\0\0cpuctorch\nFloatStorage\nt.",
        &2_u64.to_le_bytes(),
        &[0xfe; 8],
        b"\x80\x02].",
    ]
    .concat();
    let tensors =
        [&b"\x80\x02K\x01."[..], b"\x80\x02K\x01K\x00N\x87.", &1_u32.to_le_bytes(), &[0; 4], &[1; 24]]
            .concat();
    harmless("old.pt", &tar(&[("storages", &storages), ("tensors", &tensors), ("pickle", b"\x80\x02N.")]));
    incomplete(&tar(&[("storages", &storages[..storages.len() - 10])]), "cut off");
}

#[test]
fn what_is_compressed_is_looked_into() {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(EVIL).unwrap();
    let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    zlib.write_all(EVIL).unwrap();
    let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    bzip2.write_all(EVIL).unwrap();
    // What Python's lzma and zstandard make of it.
    let xz = b"\xfd7zXZ\0\0\x04\xe6\xd6\xb4F\x02\0!\x01\x16\0\0\0t/\xe5\xa3\x01\0\x0d\x80\x02cos\nsystem\n.\0\0\0\x3a\0\xea\x5b\
        \xa8\x83\x3d\xcc\0\x01&\x0e\x08\x1b\xe0\x04\x1f\xb6\xf3\x7d\x01\0\0\0\0\x04YZ";
    let lzma =
        b"\x5d\x00\x00\x80\x00\xff\xff\xff\xff\xff\xff\xff\xff\x00\x40\x00\x88\x03\xbc\x30\xbd\x34\xde\x2f\
        \x5e\x26\xd0\x69\xf4\x47\x2c\x16\x3f\xff\xf6\x9a\x00\x00";
    let zstd = b"\x28\xb5\x2f\xfd\x20\x0eq\0\0\x80\x02cos\nsystem\n.";
    let (gzip, zlib, bzip2) = (gzip.finish().unwrap(), zlib.finish().unwrap(), bzip2.finish().unwrap());
    for (name, bytes) in
        [("gz", &gzip[..]), ("zlib", &zlib), ("bz2", &bzip2), ("xz", xz), ("lzma", lzma), ("zst", zstd)]
    {
        assert!(dangerous(name, bytes).is_complete(), "{name}");
    }
    // Several streams are one to Python; other bytes are not.
    assert!(dangerous("twice.gz", &[&gzip[..], &gzip].concat()).pickles.len() == 2);
    incomplete(&[&gzip[..], b"behind"].concat(), "behind");
    incomplete(&gzip[..gzip.len() - 4], "cannot be decompressed");
    dangerous("deep.gz", &archive(&[member("x.gz", &gzip)]));
    incomplete(b"7z\xbc\xaf\x27\x1c\0\x04more", "7z");
    incomplete(b"Rar!\x1a\x07\x01\0more", "RAR");
    incomplete(b"\x04\x22\x4d\x18more", "LZ4");
}

#[test]
fn arrays_of_numpy_are_numbers_only_if_they_say_so() {
    let array = |descr: &str, data: &[u8]| {
        let header = format!("{{'descr': {descr}, 'fortran_order': False, 'shape': (1,), }}\n");
        [b"\x93NUMPY\x01\0", &(header.len() as u16).to_le_bytes()[..], header.as_bytes(), data].concat()
    };
    harmless("a.npy", &array("'<f4'", &[0x80; 4]));
    incomplete(&array("'<f4'", &[0x80; 5]), "1 bytes behind the array");
    incomplete(&array("'<f4'", &[0x80; 3]), "cut off");
    // What NumPy reads without a pickle, though safetensors does not have it.
    for (descr, size) in [
        ("'<U1'", 4),
        ("'|S3'", 3),
        ("'<c16'", 16),
        ("'<M8[ns]'", 8),
        ("'|V2'", 2),
        ("[('a', '<f4'), ('b', '|u1', (2,))]", 6),
    ] {
        harmless("a.npy", &array(descr, &vec![0x80; size]));
        incomplete(&array(descr, &vec![0x80; size + 1]), "1 bytes behind the array");
    }
    for descr in
        ["'|O'", "'O'", "'=O'", "'object'", "[('a', 'O')]", "[('a', [('b', '|O')])]", "'\\x4f'", "'<f4' 'x'"]
    {
        dangerous("a.npy", &array(descr, EVIL));
        dangerous("a.npz", &archive(&[member("a.npy", &array(descr, EVIL))]));
    }
    // A header of megabytes.
    let header =
        [b"{'descr': 'O', 'fortran_order': False, 'shape': (1,), }".to_vec(), vec![b' '; 3 << 20]].concat();
    let long = [b"\x93NUMPY\x02\0", &(header.len() as u32).to_le_bytes()[..], &header, EVIL].concat();
    dangerous("long.npy", &long);
}

#[test]
fn other_formats_are_accounted_for_to_the_last_byte() {
    let header = b"{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}";
    let safetensors = &[&(header.len() as u64).to_le_bytes()[..], header, b"ab"].concat()[..];
    harmless("m.safetensors", safetensors);
    incomplete(&[safetensors, b"c"].concat(), "safetensors");
    for (name, text) in [
        ("config.json", "{\"a\": 1}\n"),
        ("README.md", "---\nlicense: mit\n---\n# Model\n"),
        ("modeling.py", "import os\nimport sys\n"),
        ("a.py", "class A:\n    x = 1\n"),
        ("merges.txt", "i n\nt h\n"),
        ("LICENSE", "                Apache License\n"),
        ("empty.txt", ""),
    ] {
        harmless(name, text.as_bytes());
    }
    // A text that imports what can be imported is a pickle, whatever it is called.
    dangerous("README.md", b"cos\nsystem\n(S'ls'\ntR.");
    let png = b"\x89PNG\r\n\x1a\n\0\0\0\x02IHDRab\0\0\0\0\0\0\0\0IEND\0\0\0\0";
    harmless("a.png", png);
    incomplete(&[&png[..], b"x"].concat(), "PNG");
    dangerous("a.png", &[&png[..], &archive(&[member("a/data.pkl", EVIL)])].concat());
    incomplete(&[0xfe; 100], "no format that is understood");
    // What Keras would run.
    let keras = archive(&[member("config.json", b"{\"class_name\": \"Lambda\", \"config\": {}}")]);
    assert_eq!(scanned("m.keras", &keras).verdict(), Verdict::Dangerous);
}

#[test]
fn what_changes_globals_themselves_is_not_harmless() {
    for body in [
        &b"\x80\x02cbuiltins\nset\n}(Va\nNub."[..],
        b"\x80\x02cbuiltins\nset\nVa\nNs.",
        b"\x80\x02cbuiltins\nset\nNa.",
    ] {
        let found = scanned("file.pkl", body);
        assert_eq!(found.verdict(), Verdict::Unknown, "{found:?}");
        assert_eq!(globals(&found)[1], "a change of builtins.set itself");
    }
    let through = b"\x80\x02ctorch._utils\n_set_obj_state\n(ctorch.nn.modules.linear\nLinear\n}Vforward\nctorch\nSize\nstR.";
    assert_eq!(scanned("file.pkl", through).verdict(), Verdict::Unknown);
    // Modules are no classes.
    let rewired =
        scanned("file.pkl", b"\x80\x02ctorch.nn.modules.activation\nF\n}(Vrelu\ncbuiltins\nint\nub.");
    assert_eq!(rewired.verdict(), Verdict::Unknown);
}

#[test]
fn types_of_numpy_that_take_bytes_for_objects_are_not_harmless() {
    let dtype = |name: &str, fields: &[u8], flags: u8| {
        let head =
            [b"cnumpy\ndtype\nX\x02\0\0\0", name.as_bytes(), b"\x89\x88\x87R(K\x03X\x01\0\0\0|N"].concat();
        [&head[..], fields, b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK", &[flags], b"tb"].concat()
    };
    let file = |body: &[u8]| [b"\x80\x02", body, b"."].concat();
    let fields = |inner: &[u8]| [b"X\x01\0\0\0a\x85}X\x01\0\0\0a", inner, b"K\0\x86s"].concat();
    let (objects, numbers) = (dtype("O8", b"NN", 63), dtype("f8", b"NN", 0));
    for harmless_type in
        [&objects, &numbers, &dtype("V8", &fields(&numbers), 16), &dtype("V8", &fields(&objects), 27)]
    {
        harmless("a.pkl", &file(harmless_type));
    }
    for body in [dtype("O8", b"NN", 0), dtype("O8", b"NN", 1), dtype("V8", &fields(&objects), 16)] {
        assert_eq!(scanned("a.pkl", &file(&body)).verdict(), Verdict::Unknown);
    }
    assert_eq!(scanned("a.pkl", b"\x80\x02cnumpy\nndarray\n)R.").verdict(), Verdict::Dangerous);
}

#[test]
fn joblibs_arrays_are_passed_over() {
    let array = |dtype: &str, data: &[u8]| {
        let flags = if dtype == "O8" { '?' } else { '\0' };
        let state = format!(
            "}}(X\x05\0\0\0shapeK\x02\u{1}X\x05\0\0\0dtypecnumpy\ndtype\nX\x02\0\0\0{dtype}\u{1}R\
             (K\x04NNNNK\x08K\x08K{flags}tbX\x0a\0\0\0allow_mmap\u{1f}\
             X\x1b\0\0\0numpy_array_alignment_bytesK\x10ub"
        );
        // U+0001 stands for TUPLE1 and U+001F for NEWFALSE, which are no characters. The alignment of types is not read.
        let code = |byte| match byte {
            1 => 0x85,
            0x1f => 0x89,
            byte => byte,
        };
        let state: Vec<u8> = state.bytes().map(code).collect();
        [b"\x80\x02cjoblib.numpy_pickle\nNumpyArrayWrapper\n)\x81", &state[..], data, b"."].concat()
    };
    // Three bytes of padding, and sixteen of numbers.
    let numbers = [&[3, 0xff, 0xff, 0xff][..], &[0xfe; 16]].concat();
    harmless("x.joblib", &array("f8", &numbers));
    dangerous("x.joblib", &array("O8", EVIL));
    incomplete(&array("f8", &numbers[..10]), "cut off");
    incomplete(&array("q8", &numbers), "size is not known");
    // An object that is made so that nobody sees what it is.
    let wrapped = b"\x80\x02ccopyreg\n_reconstructor\n(cjoblib.numpy_pickle\nNumpyArrayWrapper\ncbuiltins\nobject\nNtR.";
    incomplete(wrapped, "made in another way");
    // Other loaders go on within the bytes.
    let hidden = [b"(", &b"N0".repeat(20)[..], b"cos\nsystem\nN0N0."].concat();
    dangerous("x.joblib", &array("f8", &hidden));
}

#[test]
fn bombs_and_depths_are_bounded() {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    for _ in 0..290 {
        gzip.write_all(&[0; 1 << 20]).unwrap();
    }
    incomplete(&gzip.finish().unwrap(), "it expands too far");
    let mut nested = EVIL.to_vec();
    for _ in 0..20 {
        nested = archive(&[member("x", &nested)]);
    }
    incomplete(&nested, "too deeply");
    incomplete(&[b"\x80\x02".to_vec(), vec![b'('; 42 << 20]].concat(), "too much memory");
    let texts = [b"\x80\x02".to_vec(), b"X\x04\0\0\0abcd".repeat(3 << 20)].concat();
    incomplete(&texts, "too much memory");
}
