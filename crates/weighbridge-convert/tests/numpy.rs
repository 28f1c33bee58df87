//! NumPy's files, made here byte by byte: what every spelling of a dtype becomes, what is refused, and what is written.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use std::io::{Cursor, Read, Write};
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use weighbridge::write::{Save, Values};
use weighbridge::{Checkpoint, ErrorKind, Names, Plan};
use weighbridge_convert::{Foreign, NoteKind, Options, numpy};

fn npy(header: &str, data: &[u8]) -> Vec<u8> {
    let len = (10 + header.len() + 1).next_multiple_of(64) - 10;
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((len as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.resize(10 + len - 1, b' ');
    bytes.push(b'\n');
    bytes.extend(data);
    bytes
}

fn array(descr: &str, data: &[u8]) -> Vec<u8> {
    npy(&format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': (2,), }}"), data)
}

/// An archive of stored members.
fn zip(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, data) in members {
        zip.start_file(*name, options).unwrap();
        zip.write_all(data).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

struct Made {
    dir: TempDir,
    name: &'static str,
}

impl Made {
    fn new(name: &'static str, bytes: &[u8]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(name), bytes).unwrap();
        Self { dir, name }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join(self.name)
    }

    fn open(&self, options: &Options) -> weighbridge::Result<Foreign> {
        weighbridge_convert::open(self.path(), options)
    }

    #[track_caller]
    fn refused(&self) -> String {
        let error = self.open(&Options::new()).unwrap_err();
        assert!(!error.to_string().contains('\n'));
        assert!(matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::Malformed), "{error}");
        error.to_string()
    }
}

/// The bytes of a tensor.
fn bytes(checkpoint: &Checkpoint, name: &str) -> Vec<u8> {
    let plan = Plan::of(checkpoint).only(Names::exact(name)).build().unwrap();
    plan.session().start().unwrap().take(name, None).unwrap().1.as_bytes().to_vec()
}

#[test]
fn every_spelling_of_a_dtype_is_read() {
    let ones: &[(&str, &str, &[u8])] = &[
        ("F32", "f4 =f4 |f4 <f4 float32 single f =f", &[0, 0, 128, 63, 0, 0, 0, 64]),
        ("F64", "f8 =f8 float64 double float d <d", &[0, 0, 0, 0, 0, 0, 240, 63, 0, 0, 0, 0, 0, 0, 0, 64]),
        ("F16", "f2 <f2 float16 half e", &[0, 60, 0, 64]),
        ("BF16", "bfloat16", &[128, 63, 0, 64]),
        ("F8_E4M3", "float8_e4m3fn", &[56, 64]),
        ("F8_E5M2", "float8_e5m2 <f1", &[60, 64]),
        ("F8_E4M3FNUZ", "float8_e4m3fnuz", &[64, 72]),
        ("F8_E5M2FNUZ", "float8_e5m2fnuz", &[64, 68]),
        ("F8_E8M0", "float8_e8m0fnu", &[127, 128]),
        ("I8", "i1 |i1 >i1 int8 byte b", &[1, 2]),
        ("U8", "u1 uint8 ubyte B", &[1, 2]),
        ("BOOL", "? bool b1 |b1 bool_", &[1, 0]),
        ("I16", "i2 int16 short h", &[1, 0, 2, 0]),
        ("U16", "u2 uint16 ushort H", &[1, 0, 2, 0]),
        ("I32", "i4 int32 intc i", &[1, 0, 0, 0, 2, 0, 0, 0]),
        ("U32", "u4 uint32 uintc I", &[1, 0, 0, 0, 2, 0, 0, 0]),
        ("I64", "i8 int64 int long l q p", &[1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]),
        ("U64", "u8 uint64 uint L Q P", &[1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]),
        ("C64", "c8 complex64 csingle F", &[0, 0, 128, 63, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0, 0, 0]),
    ];
    for (dtype, spellings, data) in ones {
        for descr in spellings.split(' ') {
            let made = Made::new("x.npy", &array(descr, data));
            let foreign = made.open(&Options::new()).unwrap();
            let tensor = foreign.checkpoint().tensor("x").unwrap();
            assert_eq!((tensor.dtype().name(), tensor.shape()), (*dtype, &[2][..]), "{descr}");
            assert_eq!(bytes(foreign.checkpoint(), "x"), *data, "{descr}");
        }
    }
    let big = Made::new("x.npy", &array(">f4", &[63, 128, 0, 0, 64, 0, 0, 0]));
    let big = big.open(&Options::new()).unwrap();
    assert_eq!(bytes(big.checkpoint(), "x"), ones[0].2);
    // As Python 2 wrote headers.
    let old = npy("{u'descr': u'<f4', 'fortran_order': False, 'shape': (2L,), }", ones[0].2);
    let old = Made::new("x.npy", &old).open(&Options::new()).unwrap();
    assert_eq!(bytes(old.checkpoint(), "x"), ones[0].2);
}

#[test]
fn what_safetensors_lacks_is_refused_by_name() {
    for (descr, why) in [
        ("float8_e4m3", "save it as float32"),
        ("float8_e3m4", "save it as float32"),
        ("float8_e4m3b11fnuz", "save it as float32"),
        ("float4_e2m1fn", "save it as float32"),
        ("float6_e2m3fn", "save it as float32"),
        ("int4", "save them as int8"),
        ("uint4", "save them as int8"),
        ("int2", "save them as int8"),
        ("|V2", "bfloat16"),
        ("<V2", "bfloat16"),
        ("|O", "Python objects"),
        ("<U3", "text"),
        ("<M8[ns]", "times"),
        ("<f16", "save them as float64"),
        ("complex128", "save them as complex64"),
        ("f4,i4", "structured"),
        (">float32", "nothing that NumPy"),
        ("F4", "nothing that NumPy"),
    ] {
        let refused = Made::new("x.npy", &array(descr, &[0; 64])).refused();
        assert!(refused.contains(why) && refused.contains(descr), "{refused}");
    }
}

#[test]
fn data_is_as_long_as_the_shape_says() {
    let short = Made::new("x.npy", &array("<f4", &[0; 7])).refused();
    assert!(short.contains("F32 of shape [2] needs 8 bytes, the file has 7"), "{short}");
    let long = Made::new("x.npy", &array("<f4", &[0; 11])).open(&Options::new()).unwrap();
    let note = long.notes()[0].to_string();
    assert_eq!(note, "dropped \"x\": 3 bytes behind the array's 8");
    // `numpy.save` twice into one file.
    let one = array("<f4", &[0; 8]);
    let twice = Made::new("x.npy", &[&one[..], &one].concat()).open(&Options::new()).unwrap();
    assert!(twice.notes()[0].why().contains("another array"));
}

#[test]
fn unsupported_arrays_can_be_left_out() {
    let (ok, objects) = (array("<f4", &[0; 8]), array("|O", b"pickle"));
    let made = Made::new("x.npz", &zip(&[("ok.npy", &ok), ("o.npy", &objects), ("read.me", b"text")]));
    assert!(made.refused().contains("tensor \"o\""), "{}", made.refused());
    for options in [
        Options::new().skip_unsupported(),
        Options::new().only(Names::exact("ok")),
        Options::new().only(Names::all().except(Names::exact("o"))),
    ] {
        let foreign = made.open(&options).unwrap();
        let names: Vec<_> = foreign.checkpoint().tensors().map(|tensor| tensor.name().to_owned()).collect();
        assert_eq!(names, ["ok"]);
        let dropped: Vec<_> = foreign
            .notes()
            .iter()
            .filter(|note| note.kind() == NoteKind::Dropped)
            .map(weighbridge_convert::Note::name)
            .collect();
        match foreign.unchosen() {
            0 => assert_eq!(dropped, ["o", "read.me"]),
            others => assert_eq!((others, dropped), (1, vec!["read.me"])),
        }
    }
    let single = Made::new("x.npy", &objects).open(&Options::new().skip_unsupported()).unwrap();
    assert!(single.checkpoint().is_empty());
}

#[test]
fn checksums_of_stored_members_are_checked() {
    let array = array("<f4", &[7; 8]);
    let whole = zip(&[("a.npy", &array), ("b.npy", &array)]);
    let at = whole.windows(8).position(|window| window == [7; 8]).unwrap();
    let mut damaged = whole.clone();
    damaged[at + 3] ^= 1;
    let made = Made::new("x.npz", &damaged);
    assert!(
        made.refused().contains("\"a.npy\" in the archive: its checksum is another"),
        "{}",
        made.refused()
    );
    // The other is read all the same.
    assert_eq!(made.open(&Options::new().only(Names::exact("b"))).unwrap().checkpoint().len(), 1);
    // A checksum of 0 was not computed. It stands in both headers.
    let mut crc = flate2::Crc::new();
    crc.update(&array);
    let sum = crc.sum().to_le_bytes();
    for at in 0..damaged.len() - 4 {
        if damaged[at..at + 4] == sum {
            damaged[at..at + 4].fill(0);
        }
    }
    let unchecked = Made::new("x.npz", &damaged).open(&Options::new()).unwrap();
    assert_eq!(bytes(unchecked.checkpoint(), "a"), [7, 7, 7, 6, 7, 7, 7, 7]);
}

#[test]
fn checksums_of_small_members_of_pytorch_are_checked() {
    let torch = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pickle/tied.bin")).unwrap();
    let mut archive = zip::ZipArchive::new(Cursor::new(&torch[..])).unwrap();
    for name in ["tied/data.pkl", "tied/data/0"] {
        let at = archive.by_name(name).unwrap().data_start().unwrap() as usize;
        let mut damaged = torch.clone();
        damaged[at + 1] ^= 0x20;
        let refused = Made::new("x.pt", &damaged).refused();
        assert!(refused.contains(&format!("{name:?} in the archive: its checksum is another")), "{refused}");
    }
}

#[test]
fn archives_one_behind_another_are_refused() {
    let array = array("<f4", &[7; 8]);
    let (one, two) = (zip(&[("a.npy", &array)]), zip(&[("b.npy", &array)]));
    let refused = Made::new("x.npz", &[&one[..], &two].concat()).refused();
    let expected =
        format!("{} bytes stand before the archive, such as another one; separate the two", one.len());
    assert!(refused.contains(&expected), "{refused}");
    let prefixed = Made::new("x.npz", &[b"PK\x03\x04 prefix", &two[..]].concat()).refused();
    assert!(prefixed.contains("11 bytes stand before the archive"), "{prefixed}");
    let behind = Made::new("x.npz", &[&one[..], b"rest"].concat()).refused();
    assert!(behind.contains("it has no directory"), "{behind}");
    // With positions that were put right, as `zip -A` does: the first is there for who reads from the front only.
    let mut moved = [&one[..], &two].concat();
    let len = one.len() as u32;
    let (end, directory) = {
        let find = |magic: &[u8]| moved.windows(4).rposition(|window| window == magic).unwrap();
        (find(b"PK\x05\x06"), find(b"PK\x01\x02"))
    };
    for at in [end + 16, directory + 42] {
        let value = u32::from_le_bytes(moved[at..at + 4].try_into().unwrap()) + len;
        moved[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    let refused = Made::new("x.npz", &moved).refused();
    assert!(refused.contains(&expected), "{refused}");
    let torch = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pickle/tied.bin")).unwrap();
    // Its positions are of 64 bits: they lead to places in the first, which are right there.
    let refused = Made::new("x.pt", &[&torch[..], &torch].concat()).refused();
    let expected = format!("{} bytes stand before the archive", torch.len());
    assert!(refused.contains(&expected), "{refused}");
}

fn checkpoint(tensors: &[(&str, &[usize])]) -> Checkpoint {
    let tensors = tensors.iter().map(|(name, shape)| (*name, Values::new(shape, &[0.5_f32]).unwrap()));
    Checkpoint::from_bytes(Save::new().bytes(tensors).unwrap()).unwrap()
}

#[test]
fn members_have_safe_names() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.npz");
    let write = |names: &[&str]| {
        let tensors: Vec<_> = names.iter().map(|name| (*name, &[1][..])).collect();
        let checkpoint = checkpoint(&tensors);
        numpy::npz(&path, Plan::of(&checkpoint).build().unwrap().tensors())
    };
    for name in ["../x", "../../x", "a/../b", "..", "/etc/x", "C:\\x", "C:x", "a\\b", ""] {
        let error = write(&["ok", name]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TensorName, "{name}: {error}");
        assert!(error.to_string().contains("--rename"), "{error}");
        assert!(!path.exists());
    }
    let error = write(&["a", "a.npy"]).unwrap_err().to_string();
    assert!(error.contains("without .npy"), "{error}");
    // What is safe is written, and read back.
    let names = ["A", "a", "..a", "a/b", "b.npy", "layers/0.weight:0", "x..y", "ä", ".", "with space"];
    assert!(write(&names).unwrap().is_empty());
    let again = weighbridge_convert::open(&path, &Options::new()).unwrap();
    let found: Vec<_> = again.checkpoint().tensors().map(|tensor| tensor.name().to_owned()).collect();
    assert_eq!(found.len(), names.len());
    assert!(names.iter().all(|name| found.iter().any(|found| found == name)), "{found:?}");
}

#[test]
fn no_more_dimensions_than_numpy_has() {
    let dir = tempfile::tempdir().unwrap();
    let write = |dims: usize| {
        let checkpoint = checkpoint(&[("w", &vec![1; dims])]);
        let plan = Plan::of(&checkpoint).build().unwrap();
        let notes = numpy::npz(dir.path().join("x.npz"), plan.tensors())?;
        assert_eq!(numpy::npy(dir.path().join("w.npy"), &plan.tensors().next().unwrap().1)?, notes);
        Ok::<_, weighbridge::Error>(notes)
    };
    assert!(write(32).unwrap().is_empty());
    let notes = write(64).unwrap();
    assert_eq!(
        notes[0].to_string(),
        "kept \"w\": it has 64 dimensions; NumPy reads more than 32 since version 2"
    );
    for name in ["x.npz", "w.npy"] {
        let again = weighbridge_convert::open(dir.path().join(name), &Options::new()).unwrap();
        assert_eq!(again.checkpoint().tensor("w").unwrap().shape(), [1; 64]);
    }
    let error = write(65).unwrap_err();
    assert!(error.to_string().contains("it has 65 dimensions, NumPy at most 64"), "{error}");
    let mut bytes = Vec::new();
    std::fs::File::open(dir.path().join("w.npy")).unwrap().read_to_end(&mut bytes).unwrap();
    assert!(bytes.starts_with(b"\x93NUMPY"), "the old file is there");
}
