//! Models that are split into several files: all of them, found by the rule that their names follow.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use weighbridge::{Error, ErrorKind, Result};

use super::header::Header;
use crate::cursor::{malformed, unsupported};
use crate::input::Input;

/// What each part says about the whole.
const KEYS: [&str; 3] = ["split.no", "split.count", "split.tensors.count"];

/// As many as a name and a key can tell.
const MOST_PARTS: u64 = 65535;
const MOST_TENSORS: usize = 1 << 20;
/// Missing parts that an error names.
const NAMED: usize = 4;

/// A file and what it says.
pub(super) struct Part {
    pub(super) input: Input,
    pub(super) header: Header,
}

/// Whether a key is about the split, and about nothing in the model.
pub(super) fn is_own(key: &str) -> bool {
    KEYS.contains(&key)
}

/// The parts of the model that a file belongs to, in order: often the file alone.
pub(super) fn parts(input: &Input) -> Result<Vec<Part>> {
    let first = Part { input: input.clone(), header: Header::read(input.file())? };
    let count = first.header.number("split.count")?.unwrap_or(1);
    if count <= 1 {
        return Ok(vec![first]);
    }
    if count > MOST_PARTS {
        return Err(malformed(format!("split.count is {count}; {MOST_PARTS} parts are the most")));
    }
    let total = first.header.number("split.tensors.count")?;
    let name = Name::of(input.path(), &first, count)?;
    let (mut parts, mut missing, mut tensors) = (Vec::new(), Vec::new(), 0);
    for number in 0..count {
        let path = name.path(number);
        match open(input, &path, number, count, total).map_err(|error| error.in_file(&path))? {
            Some(part) => {
                tensors += part.header.tensors.len();
                parts.push(part);
            }
            None => missing.push(path),
        }
        if tensors > MOST_TENSORS {
            return Err(malformed(format!("its parts have more than {MOST_TENSORS} tensors")));
        }
    }
    if !missing.is_empty() {
        return Err(incomplete(count, total, parts.len(), tensors, &missing));
    }
    if let Some(total) = total.filter(|&total| total != tensors as u64) {
        let message = format!("split.tensors.count is {total}, its {count} parts have {tensors} tensors");
        return Err(malformed(message));
    }
    no_duplicates(&parts)?;
    Ok(parts)
}

/// Reads a part, unless it is not there.
fn open(first: &Input, path: &Path, number: u64, count: u64, total: Option<u64>) -> Result<Option<Part>> {
    let input = match first.another(path) {
        Ok(input) => input,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let header = Header::read(input.file())?;
    for (key, expected) in KEYS.into_iter().zip([Some(number), Some(count), total]) {
        let found = header.number(key)?;
        if found != expected {
            let told = |number: Option<u64>| number.map_or("missing".to_owned(), |number| number.to_string());
            let (found, expected) = (told(found), told(expected));
            return Err(malformed(format!("{key} is {found}, it should be {expected} in this part")));
        }
    }
    Ok(Some(Part { input, header }))
}

/// The name that parts have: `NAME-00001-of-00003.gguf`.
struct Name {
    directory: PathBuf,
    start: String,
    digits: usize,
    count: u64,
    end: String,
}

impl Name {
    /// Takes the name of a part apart, which says the same as its keys.
    fn of(path: &Path, part: &Part, count: u64) -> Result<Self> {
        let number = part.header.number("split.no")?;
        let number =
            number.ok_or_else(|| malformed(format!("split.count is {count}, split.no is missing")))?;
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let split = || {
            let (name, end) = name.rsplit_once('.')?;
            let (name, own_count) = name.rsplit_once("-of-")?;
            let (start, own_number) = name.rsplit_once('-')?;
            let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            let agrees = is_number(own_number)
                && is_number(own_count)
                && own_number.len() == own_count.len()
                && own_number.parse() == Ok(number.checked_add(1)?)
                && own_count.parse() == Ok(count);
            agrees.then(|| Self {
                directory: path.parent().unwrap_or(Path::new("")).to_owned(),
                start: start.to_owned(),
                digits: own_number.len(),
                count,
                end: end.to_owned(),
            })
        };
        split().ok_or_else(|| {
            let (here, of) = (part.header.tensors.len(), part.header.number("split.tensors.count"));
            let of = of.ok().flatten().map_or(String::new(), |total| format!(" of {total}"));
            let number = number.saturating_add(1);
            unsupported(format!(
                "it is part {number} of {count} of a model and has {here}{of} tensors; the others are found only if it is \
                 called NAME-{number:05}-of-{count:05}.gguf"
            ))
        })
    }

    fn path(&self, number: u64) -> PathBuf {
        let Self { directory, start, digits, count, end } = self;
        directory.join(format!("{start}-{:0digits$}-of-{count:0digits$}.{end}", number + 1))
    }
}

fn incomplete(count: u64, total: Option<u64>, parts: usize, tensors: usize, missing: &[PathBuf]) -> Error {
    let name = |path: &PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut names: Vec<_> = missing.iter().take(NAMED).map(name).collect();
    if missing.len() > NAMED {
        names.push(format!("{} more", missing.len() - NAMED));
    }
    let of = total.map_or(String::new(), |total| format!(" of {total}"));
    let message = format!(
        "split.count is {count}, but {parts} of {count} parts with {tensors}{of} tensors are here; missing: {}",
        names.join(", ")
    );
    Error::new(ErrorKind::NotFound, message)
}

fn no_duplicates(parts: &[Part]) -> Result<()> {
    let mut found = HashMap::new();
    for (number, part) in parts.iter().enumerate() {
        for info in &part.header.tensors {
            if let Some(other) = found.insert(&*info.name, number) {
                let message = format!("parts {} and {} both have it", other + 1, number + 1);
                return Err(Error::new(ErrorKind::DuplicateTensor, message).in_tensor(&info.name));
            }
        }
    }
    Ok(())
}
