//! HDF5 files of kinds that are not Keras': what is no number of safetensors is refused by name, what leads nowhere is noted.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use weighbridge::{Dtype, ErrorKind, Names};
use weighbridge_convert::{Foreign, Format, NoteKind, Options};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/foreign").join(name)
}

fn notes(foreign: &Foreign, kind: NoteKind) -> Vec<(&str, &str)> {
    foreign.notes().iter().filter(|note| note.kind() == kind).map(|note| (note.name(), note.why())).collect()
}

#[test]
fn what_is_not_read_is_noted() {
    for name in ["kinds_early.h5", "kinds_late.h5"] {
        let foreign = weighbridge_convert::open(fixture(name), &Options::new()).unwrap();
        let dropped = notes(&foreign, NoteKind::Dropped);
        let mut expected = vec![
            ("a_group", "a link to \"/a/b\", which is not another dataset"),
            ("dangling", "a link to \"/nothing\", which is not another dataset"),
            ("empty", "it is empty: it has neither elements nor a shape"),
            ("named_type", "it is neither dataset nor group"),
            ("words", "it is text, which safetensors cannot hold"),
        ];
        if name == "kinds_late.h5" {
            let why = "a link into the file \"other.h5\", which is not followed";
            expected.insert(3, ("external", why));
            expected.push(("many/external", why));
        }
        assert_eq!(dropped, expected);
        let changed: Vec<_> = notes(&foreign, NoteKind::Changed).into_iter().map(|note| note.0).collect();
        assert_eq!(changed, ["bf16", "bf16_chunked", "c128", "c128_big"]);
        let none = foreign.checkpoint().tensor("none").unwrap();
        assert_eq!((none.dtype(), none.shape()), (Dtype::I16, &[2, 0][..]));
    }
}

#[test]
fn odd_types_are_refused_by_name() {
    let path = fixture("odd.h5");
    let odd = [
        ("arrays", "arrays as elements"),
        ("bias", "floats of 16 bits in a form of their own"),
        ("bits", "bit fields"),
        ("byte", "raw bytes, 1 to an element"),
        ("clong", "compounds"),
        ("colour", "an enumeration"),
        ("elsewhere", "in another file"),
        ("exponent", "floats of 16 bits in a form of their own"),
        ("long", "floats of 80 bits in a form of their own, in 16 bytes"),
        ("mixed", "compounds"),
        ("native", "complex numbers in the form of HDF5 2.0"),
        ("norm", "floats of 32 bits in a form of their own"),
        ("pair", "compounds"),
        ("ragged", "sequences of any length"),
        ("reference", "references"),
        ("shifted", "integers of 8 bits from bit 4 on, in 2 bytes"),
        ("tagged", "raw bytes, 4 to an element"),
        ("three", "integers of 3 bytes"),
        ("triple", "compounds"),
        ("twelve", "integers of 12 bits from bit 0 on, in 2 bytes"),
        ("vax", "floats of 32 bits in a form of their own"),
        ("virtual", "virtual"),
    ];
    for (name, told) in odd {
        let only = Options::new().only(Names::exact(name));
        let error = weighbridge_convert::open(&path, &only).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.to_string().contains(told) && error.to_string().contains(name), "{name}: {error}");
    }
    let error = weighbridge_convert::open(&path, &Options::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let foreign = weighbridge_convert::open(&path, &Options::new().skip_unsupported()).unwrap();
    assert_eq!(foreign.checkpoint().len(), 1);
    let dropped: BTreeSet<_> = notes(&foreign, NoteKind::Dropped).into_iter().map(|note| note.0).collect();
    assert_eq!(dropped, odd.map(|odd| odd.0).into());
    let foreign = weighbridge_convert::open(&path, &Options::new().only(Names::exact("ok"))).unwrap();
    assert_eq!((foreign.checkpoint().len(), foreign.notes().len(), foreign.unchosen()), (1, 0, odd.len()));
}

#[test]
fn blocks_of_users_are_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("user.h5");
    let file = fs::read(fixture("early.h5")).unwrap();
    for (len, first) in [(512, b'{'), (2048, 0x08), (1 << 16, 0)] {
        let mut bytes = vec![0x12; len];
        bytes[0] = first;
        bytes.extend(&file);
        fs::write(&path, &bytes).unwrap();
        assert_eq!(Format::of_file(&path).unwrap(), Some(Format::Hdf5));
        let foreign = weighbridge_convert::open(&path, &Options::new()).unwrap();
        let plain = weighbridge_convert::open(fixture("early.h5"), &Options::new()).unwrap();
        assert_eq!(foreign.checkpoint().len(), plain.checkpoint().len());
    }
}

#[test]
fn errors_are_one_line_whatever_names_are() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("odd.h5");
    let mut file = fs::read(fixture("early.h5")).unwrap();
    let name = b"kernel";
    for at in 0..file.len() - name.len() {
        if file[at..].starts_with(name) {
            file[at + 1] = b'\n';
        }
    }
    let mut errors = 0;
    // Headers of objects begin with their version.
    for at in (0..file.len()).step_by(8).filter(|&at| file[at] == 1).collect::<Vec<_>>() {
        file[at] = 0;
        fs::write(&path, &file).unwrap();
        if let Err(error) = weighbridge_convert::open(&path, &Options::new()) {
            let line = error.to_string();
            assert!(!line.contains('\n'), "{line}");
            errors += usize::from(line.contains("child 'k\\nrnel"));
        }
        file[at] = 1;
    }
    assert!(errors > 0);
}
