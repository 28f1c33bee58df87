//! Pickles and archives that mean harm: nothing runs, memory and time stay bounded, and the error names what was refused.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

mod support;

use std::io::Write;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use support::zip::{Member, archive, member};
use tempfile::TempDir;
use weighbridge::{Error, ErrorKind};
use weighbridge_convert::{Options, Scan, Verdict, open, scan};

struct Made {
    dir: TempDir,
}

impl Made {
    fn new(bytes: &[u8]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file.pkl"), bytes).unwrap();
        Self { dir }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("file.pkl")
    }

    #[track_caller]
    fn refused(&self) -> Error {
        open(self.path(), &Options::new()).unwrap_err()
    }

    fn scan(&self) -> Scan {
        scan(self.path()).unwrap()
    }
}

/// A pickle that reaches its end.
fn pickle(body: &[u8]) -> Vec<u8> {
    [b"\x80\x04", body, b"."].concat()
}

fn found(scan: &Scan) -> Vec<(String, Verdict)> {
    scan.globals().map(|global| (format!("{}.{}", global.module, global.name), global.verdict)).collect()
}

fn deflated(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// One tensor of four floats in the storage "0".
const TENSOR: &[u8] =
    b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0\
    0X\x03\0\0\0cpuK\x04tQK\0K\x04\x85K\x01\x85\x89NtR.";

#[test]
fn the_archives_made_here_are_good() {
    let data = [7; 16];
    let file = Made::new(&archive(&[member("a/data.pkl", TENSOR), member("a/data/0", &data)]));
    let foreign = open(file.path(), &Options::new()).unwrap();
    let tensor = foreign.checkpoint().tensor("tensor").unwrap();
    assert_eq!((tensor.shape(), tensor.byte_len()), (&[4][..], 16));
}

#[test]
fn code_is_named_and_not_run() {
    let dir = tempfile::tempdir().unwrap();
    let witness = dir.path().join("witness");
    let command = format!("touch {}", witness.display());
    let text = |text: &str| [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat();
    let run = [text(&command), b"\x85R".to_vec()].concat();
    let stack_global = [text("os"), text("system"), b"\x93".to_vec(), run.clone()].concat();
    // The names come out of the memo.
    let memorised =
        [text("system"), b"\x940".to_vec(), text("posix"), b"\x940h\x01h\x00\x93".to_vec(), run.clone()]
            .concat();
    let nested = [
        b"cbuiltins\ngetattr\n(cbuiltins\n__import__\n".to_vec(),
        text("os"),
        b"\x85R".to_vec(),
        text("system"),
        b"tR".to_vec(),
        run.clone(),
    ]
    .concat();
    let cases = [
        ([b"cos\nsystem\n".to_vec(), run.clone()].concat(), "os.system"),
        (stack_global, "os.system"),
        (memorised, "posix.system"),
        ([b"(".to_vec(), text(&command), b"ios\nsystem\n".to_vec()].concat(), "os.system"),
        ([b"(cos\nsystem\n".to_vec(), text(&command), b"o".to_vec()].concat(), "os.system"),
        (nested, "builtins.getattr"),
        ([b"cbuiltins\neval\n".to_vec(), run.clone()].concat(), "builtins.eval"),
        ([b"c__builtin__\nexec\n".to_vec(), run.clone()].concat(), "__builtin__.exec"),
        ([b"ctorch\nos.system\n".to_vec(), run.clone()].concat(), "torch.os.system"),
        ([b"cmy.module\nThing\n".to_vec(), run].concat(), "my.module.Thing"),
    ];
    for (body, name) in cases {
        let file = Made::new(&pickle(&body));
        let error = file.refused();
        assert_eq!(error.kind(), ErrorKind::Unsafe, "{error}");
        assert!(error.to_string().contains(&format!("imports {name:?}")), "{name}: {error}");
        let found = found(&file.scan());
        let verdict = if name.starts_with("my.") { Verdict::Unknown } else { Verdict::Dangerous };
        assert!(found.contains(&(name.to_owned(), verdict)), "{found:?}");
    }
    assert!(!witness.exists());
}

#[test]
fn an_allowed_class_is_a_record_and_nothing_else() {
    let file = Made::new(&pickle(b"cmy.module\nThing\n)\x81}X\x01\0\0\0aK\x05sb"));
    let foreign = open(file.path(), &Options::new().allow_global("my.module.Thing")).unwrap();
    assert_eq!(foreign.save().metadata_value("a"), Some("5"));
}

#[test]
fn scan_sees_what_breaks_hides_or_follows() {
    // It breaks behind what it has run by then.
    let file = Made::new(b"\x80\x02cos\nsystem\nX\x02\0\0\0ls\x85R\xff");
    let found_in = file.scan();
    assert_eq!((found_in.verdict(), found_in.is_complete()), (Verdict::Dangerous, false));
    // A second pickle behind the first.
    let file = Made::new(&[pickle(b"N"), pickle(b"cos\nsystem\n")].concat());
    let scan = file.scan();
    assert_eq!((scan.pickles.len(), scan.pickles[1].offset, scan.verdict()), (2, 4, Verdict::Dangerous));
    // A name that is computed, a registry.
    let computed = Made::new(&pickle(b"cbuiltins\nstr\n)R\x94h\0\x93")).scan();
    assert_eq!(computed.verdict(), Verdict::Dangerous);
    assert_eq!(Made::new(&pickle(b"NN\x93")).scan().verdict(), Verdict::Incomplete);
    let registry = Made::new(&pickle(b"\x82\x05"));
    assert_eq!(registry.scan().verdict(), Verdict::Unknown);
    assert!(registry.refused().to_string().contains("extension 5"));
    // In any member, and in archives in archives, compressed or not.
    let evil = pickle(b"cos\nsystem\n");
    let inner = archive(&[member("x/deep.bin", &evil)]);
    let file = Made::new(&archive(&[member("a/data.pkl", TENSOR), member("a/inner.zip", &inner)]));
    let scan = file.scan();
    assert_eq!(scan.pickles[1].member.as_deref(), Some("a/inner.zip!x/deep.bin"));
    assert_eq!(scan.verdict(), Verdict::Dangerous);
    // An array of objects.
    let header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n";
    let array = [b"\x93NUMPY\x01\x00", &(header.len() as u16).to_le_bytes()[..], header, &evil].concat();
    assert_eq!(Made::new(&array).scan().verdict(), Verdict::Dangerous);
}

#[test]
fn broken_pickles_are_refused() {
    // A tensor that NumPy made, below 100,000 lists.
    let array = b"cnumpy._core.numeric\n_frombuffer\n(C\x04abcdcnumpy\ndtype\nX\x02\0\0\0f4\x85RK\x01\x85X\x01\0\0\0CtR";
    let deep = [vec![b']'; 100_000], array.to_vec(), vec![b'a'; 100_000]].concat();
    let cases: Vec<(Vec<u8>, ErrorKind, &str)> = vec![
        (b"R".to_vec(), ErrorKind::Malformed, "too little is on the stack"),
        (b"".to_vec(), ErrorKind::Malformed, "nothing is on the stack"),
        (b"t".to_vec(), ErrorKind::Malformed, "no mark"),
        (b"(K\x01u".to_vec(), ErrorKind::Malformed, "a key without a value"),
        (b"h\x07".to_vec(), ErrorKind::Malformed, "nothing was memorised as 7"),
        (b"\xfe".to_vec(), ErrorKind::Malformed, "unknown opcode 0xfe"),
        (b"K\x01K\x02\x85R".to_vec(), ErrorKind::Malformed, "a call of what is not a global"),
        (b"X\xff\xff\xff\x7fa".to_vec(), ErrorKind::Malformed, "not in the file"),
        (b"\x8e\xff\xff\xff\xff\xff\xff\xff\xff".to_vec(), ErrorKind::Malformed, "not in the file"),
        (b"\x8b\x00\x00\x00\x40".to_vec(), ErrorKind::Malformed, "not in the file"),
        (b"T\xff\xff\xff\xff".to_vec(), ErrorKind::Malformed, "a negative length"),
        (b"(Pwhat\n".to_vec(), ErrorKind::Unsupported, "persistent id"),
        (b"\x97".to_vec(), ErrorKind::Unsupported, "outside"),
        (deep, ErrorKind::Unsafe, "nested too deeply"),
        (b"ctorch.nn.modules.linear\nLinear\n}b".to_vec(), ErrorKind::Malformed, "a state for a global"),
    ];
    for (body, kind, message) in cases {
        let error = Made::new(&pickle(&body)).refused();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(message), "{message}: {error}");
    }
    let version = Made::new(b"\x80\x05\x80\x06N.").refused();
    assert!(version.to_string().contains("protocol 6"), "{version}");
}

#[test]
fn a_large_integer_costs_nothing() {
    let file = Made::new(&[]);
    let mut whole = std::fs::File::create(file.path()).unwrap();
    whole.write_all(b"\x80\x02\x8b\x00\x00\x00\x40").unwrap();
    // A gibibyte that is a hole in the file.
    whole.set_len(7 + (1 << 30)).unwrap();
    use std::io::{Seek, SeekFrom};
    whole.seek(SeekFrom::End(0)).unwrap();
    whole.write_all(b".").unwrap();
    let foreign = open(file.path(), &Options::new()).unwrap();
    assert!(foreign.notes()[0].to_string().contains("more than 64 bits"));
    assert!(file.scan().is_complete());
}

#[test]
fn a_bomb_of_references_is_bounded() {
    // Forty lists, each ten times the one before: 10^40 values, a tensor at the bottom of each.
    let array = b"cnumpy._core.numeric\n_frombuffer\n(C\x04abcdcnumpy\ndtype\nX\x02\0\0\0f4\x85RK\x01\x85X\x01\0\0\0CtR";
    let with_tensor = Made::new(&pickle(&bomb(&[&b"]\x94"[..], array, b"a"].concat())));
    let error = with_tensor.refused();
    assert_eq!(error.kind(), ErrorKind::Unsafe, "{error}");
    assert!(error.to_string().contains("too many places"), "{error}");
    // Without one nothing is lost.
    let foreign = open(Made::new(&pickle(&bomb(b"]\x94}a"))).path(), &Options::new()).unwrap();
    assert!(foreign.notes()[0].to_string().contains("too many places"));
}

fn bomb(bottom: &[u8]) -> Vec<u8> {
    let mut body = bottom.to_vec();
    for level in 0..40 {
        body.extend(b"](");
        for _ in 0..10 {
            body.extend([b'h', level]);
        }
        body.extend(b"e\x94");
    }
    body
}

#[test]
fn copies_are_counted() {
    // One long list, and a dict of it made again and again.
    let mut body = b"ccollections\nOrderedDict\n\x940(".to_vec();
    body.extend(b"K\x01K\x02\x86".repeat(200_000));
    body.extend(b"l\x94");
    body.extend(b"h\0h\x01\x85R0".repeat(100_000));
    body.extend(b"N");
    let error = Made::new(&pickle(&body)).refused();
    assert_eq!(error.kind(), ErrorKind::Memory, "{error}");
}

#[test]
fn archives_that_lie_are_refused() {
    let data = [7; 16];
    let good = || vec![member("a/data.pkl", TENSOR), member("a/data/0", &data)];
    let small = deflated(&data);
    let bomb = deflated(&vec![0; 4 << 20]);
    let with = |odd: Member<'static>| -> Vec<u8> { archive(&[member("a/data.pkl", TENSOR), odd]) };
    let leak = |bytes: &[u8]| -> &'static [u8] { bytes.to_vec().leak() };
    let (data, small, bomb) = (leak(&data), leak(&small), leak(&bomb));
    let cases = [
        (with(member("a/data/1", data)), "a/data/0\" is not in the archive"),
        (with(member("a/data/0", &data[..15])), "its storage has 15 bytes, the pickle says 16"),
        (with(Member { mode: 0o120_777, ..member("a/data/0", data) }), "symbolic link"),
        (with(Member { flags: 1, ..member("a/data/0", data) }), "encrypted"),
        (with(Member { size: 17, ..member("a/data/0", data) }), "two sizes"),
        (with(Member { method: 99, ..member("a/data/0", data) }), "method 99"),
        (with(Member { method: 8, size: 16, ..member("a/data/0", small) }), "its checksum"),
        (with(Member { method: 8, size: 15, ..member("a/data/0", small) }), "its size"),
        (with(Member { method: 8, size: 16, ..member("a/data/0", bomb) }), "its size"),
        (with(Member { method: 8, size: u32::MAX - 1, ..member("a/data/0", bomb) }), "zip bomb"),
        (with(Member { method: 8, size: 16, ..member("a/data/0", &data[..4]) }), "cannot be decompressed"),
        (archive(&[member("a/data.pkl", TENSOR), member("a/data.pkl", TENSOR)]), "two members"),
        (archive(&good())[..200].to_vec(), "no directory"),
        ([b"PK\x03\x04 before".to_vec(), archive(&good())].concat(), "stand before the archive"),
        (archive(&[member("../data.pkl", TENSOR)]), "leads out"),
        (archive(&[member("/data.pkl", TENSOR)]), "leads out"),
        (archive(&[member("readme", data)]), "an unknown kind"),
    ];
    for (bytes, message) in cases {
        let error = Made::new(&bytes).refused();
        assert!(error.to_string().contains(message), "{message}: {error}");
        assert!(!error.to_string().contains('\n'));
    }
}

#[test]
fn storages_that_are_missing_matter_where_they_are_wanted() {
    let none = || Options::new().only(weighbridge::Names::exact("other"));
    let file = Made::new(&archive(&[member("a/data.pkl", TENSOR)]));
    assert!(file.refused().to_string().contains("is not in the archive"));
    let foreign = open(file.path(), &none()).unwrap();
    assert_eq!((foreign.checkpoint().len(), foreign.unchosen()), (0, 1));
    // A file of old that is cut.
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pickle");
    let bytes = std::fs::read(fixtures.join("legacy2.pt")).unwrap();
    let file = Made::new(&bytes[..bytes.len() - 1]);
    assert!(file.refused().to_string().contains("ends behind the end of the file"));
    let names = |options: &Options| {
        let foreign = open(file.path(), options)?;
        Ok::<_, Error>(
            foreign.checkpoint().tensors().map(|tensor| tensor.name().to_owned()).collect::<Vec<_>>(),
        )
    };
    assert_eq!(names(&none()).unwrap(), [""; 0]);
    let all = open(fixtures.join("legacy2.pt"), &Options::new()).unwrap();
    let one = |name: &str| Options::new().only(weighbridge::Names::exact(name));
    let read = all.checkpoint().tensors().filter(|it| names(&one(it.name())).is_ok()).count();
    assert!(read > 0 && read < all.checkpoint().len());
}

#[test]
fn tensors_that_reach_too_far_are_refused() {
    let data = [7; 16];
    let with = |args: &[u8]| {
        let start = TENSOR.len() - b"K\0K\x04\x85K\x01\x85\x89NtR.".len();
        let body = [&TENSOR[..start], args, b"\x89NtR."].concat();
        Made::new(&archive(&[member("a/data.pkl", &body), member("a/data/0", &data)]))
    };
    let cases: [(&[u8], &str); 6] = [
        (b"K\x01K\x04\x85K\x01\x85", "reaches to byte 20 of a storage of 16 bytes"),
        (b"K\0K\x04\x85K\x02\x85", "reaches to byte 28"),
        (b"K\0K\x04\x85K\x01K\x01\x86", "more dimensions than strides"),
        (b"K\0J\xff\xff\xff\xff\x85K\x01\x85", "a negative size"),
        (b"K\0\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f\x85K\x01\x85", "does not fit 64 bits"),
        // A terabyte of one value.
        (b"K\0\x8a\x06\0\0\0\0\x40\0\x85K\0\x85", "meant to fill the disk"),
    ];
    for (args, message) in cases {
        let error = with(args).refused();
        assert!(error.to_string().contains(message), "{message}: {error}");
    }
}

#[test]
fn real_files_that_are_cut_or_changed_make_no_panic() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pickle");
    for name in ["views4.pt", "legacy2.pt", "quantised.pt", "numpy5.pkl", "module.pt"] {
        let bytes = std::fs::read(fixtures.join(name)).unwrap();
        for place in (0..bytes.len()).step_by(13) {
            let _ = open(Made::new(&bytes[..place]).path(), &Options::new());
            let mut changed = bytes.clone();
            changed[place] ^= 0x55;
            let file = Made::new(&changed);
            let _ = open(file.path(), &Options::new());
            let _ = scan(file.path());
        }
    }
}

const OPCODES: &[u8] = b"(.012FGIJKLMNPQRSTUVX]abcdeghijloprstqu})\x80\x81\x82\x83\x84\x85\x86\x87\x88\x89\x8a\x8bBC\x8c\x8d\x8e\
    \x8f\x90\x91\x92\x93\x94\x95\x96\x97\x98";

/// Opcodes with arguments that are not always wrong.
fn opcodes() -> impl Strategy<Value = Vec<u8>> {
    let global = prop::sample::select(vec![
        &b"ccollections\nOrderedDict\n"[..],
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"ctorch._utils\n_rebuild_qtensor\n",
        b"ctorch._utils\n_rebuild_parameter\n",
        b"ctorch._tensor\n_rebuild_from_type_v2\n",
        b"ctorch\nFloatStorage\n",
        b"cnumpy.core.multiarray\n_reconstruct\n",
        b"cnumpy.core.multiarray\nscalar\n",
        b"cnumpy\ndtype\n",
        b"cargparse\nNamespace\n",
        b"cbuiltins\nlist\n",
        b"X\x07\0\0\0storage",
        b"X\x02\0\0\0f4",
        b"C\x04abcd",
    ]);
    let piece = prop_oneof![
        4 => prop::sample::select(OPCODES).prop_map(|code| vec![code]),
        2 => global.prop_map(<[u8]>::to_vec),
        2 => any::<u8>().prop_map(|value| vec![b'K', value]),
        1 => any::<u8>().prop_map(|value| vec![b'h', value % 8]),
        1 => prop::collection::vec(any::<u8>(), 0..6),
    ];
    prop::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn any_opcodes_end(body in opcodes()) {
        let file = Made::new(&pickle(&body));
        if let Ok(foreign) = open(file.path(), &Options::new()) {
            for tensor in foreign.checkpoint().tensors() {
                let mut bytes = vec![0; tensor.byte_len().min(1 << 16) as usize];
                tensor.shard().source().read_at(tensor.info().file_range().start, &mut bytes).unwrap();
            }
            // What was read is what a scan finds harmless.
            let scan = file.scan();
            let read = scan.pickles.iter().find(|pickle| pickle.offset == 0);
            let is_harmless = |global: &weighbridge_convert::scan::Global| global.verdict == Verdict::Harmless;
            prop_assert!(read.is_none_or(|pickle| pickle.globals.iter().all(is_harmless)), "{:?}", scan);
        } else {
            file.scan();
        }
    }
}

#[test]
fn one_value_millions_of_times_is_left_out() {
    let many = [&b"("[..], &b"h\0".repeat(1000), b"e"].concat().repeat(2000);
    let file = Made::new(&pickle(&[b"}(X\x01\0\0\0a]q\0", &many[..], b"X\x01\0\0\0bK\x07u"].concat()));
    let foreign = open(file.path(), &Options::new()).unwrap();
    let notes: Vec<String> = foreign.notes().iter().map(ToString::to_string).collect();
    assert!(
        notes.iter().any(|note| note.contains("\"a\": too many values, or the same in too many places")),
        "{notes:?}"
    );
    assert!(notes.iter().any(|note| note.contains("\"b\"")), "{notes:?}");
}
