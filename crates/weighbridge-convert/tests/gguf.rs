//! GGUF files of every kind that real ones come in: split, with metadata that is not text, with types that nobody knows.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs;
use std::path::{Path, PathBuf};

use weighbridge::{Checkpoint, ErrorKind, Names, Plan};
use weighbridge_convert::{Foreign, NoteKind, Options};

/// A file as the format has it.
#[derive(Default)]
struct File {
    entries: Vec<Vec<u8>>,
    infos: Vec<Vec<u8>>,
    data: Vec<u8>,
}

fn text(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text].concat()
}

impl File {
    fn entry(mut self, key: &[u8], kind: u32, value: &[u8]) -> Self {
        self.entries.push([&text(key), &kind.to_le_bytes()[..], value].concat());
        self
    }

    fn short(self, key: &str, value: u16) -> Self {
        self.entry(key.as_bytes(), 2, &value.to_le_bytes())
    }

    fn tensor(mut self, name: &[u8], kind: u32, values: u64, data: &[u8]) -> Self {
        let mut info = text(name);
        info.extend(1_u32.to_le_bytes());
        info.extend(values.to_le_bytes());
        info.extend(kind.to_le_bytes());
        info.extend((self.data.len() as u64).to_le_bytes());
        self.infos.push(info);
        self.data.extend(data);
        self.data.resize(self.data.len().next_multiple_of(32), 0);
        self
    }

    fn floats(self, name: &str, values: &[f32]) -> Self {
        let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.tensor(name.as_bytes(), 0, values.len() as u64, &data)
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend((self.infos.len() as u64).to_le_bytes());
        bytes.extend((self.entries.len() as u64).to_le_bytes());
        bytes.extend(self.entries.concat());
        bytes.extend(self.infos.concat());
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend(&self.data);
        bytes
    }

    fn write(&self, path: &Path) {
        fs::write(path, self.bytes()).unwrap();
    }
}

fn part(number: u16, count: u16, tensors: i32) -> File {
    File::default().short("split.no", number).short("split.count", count).entry(
        b"split.tensors.count",
        5,
        &tensors.to_le_bytes(),
    )
}

fn place(dir: &Path, number: u16, count: u16) -> PathBuf {
    dir.join(format!("m-{number:05}-of-{count:05}.gguf"))
}

fn open(path: &Path) -> Foreign {
    weighbridge_convert::open(path, &Options::new()).unwrap()
}

fn refused(path: &Path) -> (ErrorKind, String) {
    let error = weighbridge_convert::open(path, &Options::new()).unwrap_err();
    assert!(!error.to_string().contains('\n'), "{error}");
    (error.kind(), error.to_string())
}

fn values(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
    let plan = Plan::of(checkpoint).only(Names::exact(name)).build().unwrap();
    let session = plan.session().start().unwrap();
    let (_, values) = session.take(name, None).unwrap();
    values.as_bytes().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

#[test]
fn a_split_model_is_read_from_any_part() {
    let dir = tempfile::tempdir().unwrap();
    let name = b"general.name";
    part(0, 3, 3).entry(name, 8, &text(b"it")).write(&place(dir.path(), 1, 3));
    part(1, 3, 3).floats("a", &[1.0]).floats("b", &[2.0, 3.0]).write(&place(dir.path(), 2, 3));
    part(2, 3, 3).entry(name, 8, &text(b"other")).floats("c", &[4.0]).write(&place(dir.path(), 3, 3));
    for number in 1..=3 {
        let foreign = open(&place(dir.path(), number, 3));
        let names: Vec<_> = foreign.checkpoint().tensors().map(|tensor| tensor.name().to_owned()).collect();
        assert_eq!(names, ["a", "b", "c"]);
        assert_eq!(values(foreign.checkpoint(), "b"), [2.0, 3.0]);
        assert_eq!(values(foreign.checkpoint(), "c"), [4.0]);
        assert_eq!(foreign.save().metadata_value("general.name"), Some("it"));
        assert_eq!(foreign.save().metadata_value("split.count"), None);
        let dropped: Vec<_> =
            foreign.notes().iter().filter(|note| note.kind() == NoteKind::Dropped).collect();
        assert_eq!(dropped.len(), 1);
        assert_eq!(dropped[0].name(), "general.name");
    }
}

#[test]
fn a_split_model_without_a_part_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    part(0, 2, 2).floats("a", &[1.0]).write(&place(dir.path(), 1, 2));
    let (kind, error) = refused(&place(dir.path(), 1, 2));
    assert_eq!(kind, ErrorKind::NotFound);
    let told =
        "split.count is 2, but 1 of 2 parts with 1 of 2 tensors are here; missing: m-00002-of-00002.gguf";
    assert!(error.contains(told), "{error}");
    // Under another name nobody knows what the others are called.
    part(0, 2, 2).floats("a", &[1.0]).write(&dir.path().join("model.gguf"));
    let (_, error) = refused(&dir.path().join("model.gguf"));
    assert!(error.contains("it is part 1 of 2 of a model and has 1 of 2 tensors"), "{error}");
    part(0, 40, 2).floats("a", &[1.0]).write(&place(dir.path(), 1, 40));
    assert!(refused(&place(dir.path(), 1, 40)).1.contains("m-00005-of-00040.gguf, 35 more"));
}

#[test]
fn parts_that_do_not_belong_together_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (place(dir.path(), 1, 2), place(dir.path(), 2, 2));
    part(0, 2, 2).floats("a", &[1.0]).write(&one);
    for (other, told) in [
        (part(0, 2, 2).floats("b", &[1.0]), "split.no is 0, it should be 1"),
        (part(1, 3, 2).floats("b", &[1.0]), "split.count is 3, it should be 2"),
        (part(1, 2, 9).floats("b", &[1.0]), "split.tensors.count is 9, it should be 2"),
        (File::default().floats("b", &[1.0]), "split.no is missing"),
        (part(1, 2, 2), "split.tensors.count is 2, its 2 parts have 1 tensors"),
        (part(1, 2, 2).floats("a", &[1.0]), "parts 1 and 2 both have it"),
    ] {
        other.write(&two);
        let (_, error) = refused(&one);
        assert!(error.contains(told), "{error}");
    }
    fs::write(&two, b"GGUF\x03\0\0\0").unwrap();
    assert!(refused(&one).1.contains("m-00002-of-00002.gguf"));
}

#[test]
fn one_part_is_the_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("whole.gguf");
    part(0, 1, 1).floats("a", &[1.0]).write(&path);
    assert_eq!(open(&path).checkpoint().len(), 1);
}

#[test]
fn metadata_that_is_not_text_is_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let file = File::default().entry(b"a.text", 8, &text(b"\xFF\xFE")).entry(b"\xFF", 4, &[1, 0, 0, 0]);
    file.short("a.number", 7).floats("w", &[1.0, 2.0]).write(&path);
    let foreign = open(&path);
    assert_eq!(values(foreign.checkpoint(), "w"), [1.0, 2.0]);
    assert_eq!(foreign.save().metadata_value("a.number"), Some("7"));
    let dropped: Vec<_> = foreign.notes().iter().map(|note| (note.kind(), note.name())).collect();
    assert_eq!(dropped, [(NoteKind::Dropped, "a.text"), (NoteKind::Dropped, "\u{FFFD}")]);
    File::default().tensor(b"\xFF", 0, 1, &[0; 4]).write(&path);
    assert!(refused(&path).1.contains("not UTF-8"));
}

#[test]
fn unknown_types_are_refused_only_where_they_are_wanted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    // The second has no data at all.
    let file = File::default().tensor(b"odd", 99, 32, &[0; 20]).floats("ok", &[1.0]);
    file.tensor(b"cut", 0, 1 << 40, &[]).write(&path);
    let (kind, error) = refused(&path);
    assert_eq!(kind, ErrorKind::Unsupported);
    assert!(error.contains("\"odd\"") && error.contains("unknown GGUF type 99"), "{error}");
    let ok = Options::new().only(Names::exact("ok"));
    let foreign = weighbridge_convert::open(&path, &ok).unwrap();
    assert_eq!(values(foreign.checkpoint(), "ok"), [1.0]);
    assert!(foreign.notes().is_empty());
    let skip = Options::new().skip_unsupported();
    let error = weighbridge_convert::open(&path, &skip).unwrap_err().to_string();
    assert!(error.contains("\"cut\"") && error.contains("not within the file"), "{error}");
    File::default().tensor(b"odd", 99, 32, &[0; 20]).floats("ok", &[1.0]).write(&path);
    let foreign = weighbridge_convert::open(&path, &skip).unwrap();
    assert_eq!(values(foreign.checkpoint(), "ok"), [1.0]);
    assert_eq!(foreign.notes()[0].name(), "odd");
}

#[test]
fn q8_1_has_two_layouts() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let numbers: Vec<u8> = (0..32_i8).map(|number| (number - 16).cast_unsigned()).collect();
    // Halves: 0.5, and a sum that nobody needs.
    let short = [&[0x00, 0x38, 0x12, 0x34], &numbers[..]].concat();
    let long = [&0.5_f32.to_le_bytes(), &[9; 4], &numbers[..]].concat();
    let expected: Vec<f32> = (0..32_i8).map(|number| f32::from(number - 16) * 0.5).collect();
    for (block, count) in [(&short, 1), (&short, 8), (&short, 5), (&long, 8), (&long, 5)] {
        let data = block.repeat(count);
        let file = File::default().tensor(b"a", 9, 32 * count as u64, &data).floats("b", &[1.0]);
        file.tensor(b"c", 9, 32 * count as u64, &data).write(&path);
        let foreign = open(&path);
        for name in ["a", "c"] {
            assert_eq!(
                values(foreign.checkpoint(), name),
                expected.repeat(count),
                "{count} blocks of {}",
                block.len()
            );
        }
    }
}

#[test]
fn tensors_behind_every_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("far.gguf");
    let file = File::default().floats("a", &[1.0]);
    for offset in [64, u64::MAX / 2, u64::MAX - 63, u64::MAX - 31, u64::MAX - 4, u64::MAX] {
        let mut far = File { infos: file.infos.clone(), data: file.data.clone(), ..File::default() };
        let at = far.infos[0].len() - 8;
        far.infos[0][at..].copy_from_slice(&offset.to_le_bytes());
        far.write(&path);
        let error = weighbridge_convert::open(&path, &Options::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Malformed, "{error}");
        let found = weighbridge_convert::scan(&path).unwrap();
        assert_eq!((found.format, found.is_complete()), ("GGUF", false));
    }
    file.write(&path);
    assert!(weighbridge_convert::scan(&path).unwrap().is_complete());
}
