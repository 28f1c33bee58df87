//! What the targets of weighbridge-convert have in common: bytes as a file, and what must hold of everything that is opened.

use std::cell::RefCell;
use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use weighbridge::write::Save;
use weighbridge::{Checkpoint, Dtype, Error, ErrorKind, Plan, Result};
use weighbridge_convert::{Aliases, Foreign, Options};

/// Imports `os.system`, and is a whole pickle.
pub const EVIL: &[u8] = b"\x80\x02cos\nsystem\n(tR.";

/// Larger checkpoints are not read: a small file may expand one value to a gibibyte.
const MOST: u64 = 1 << 20;

/// The bytes as a file, which has no name to leave behind. There is one: the next call overwrites it.
pub fn file(bytes: &[u8]) -> PathBuf {
    thread_local!(static FILE: RefCell<Option<File>> = const { RefCell::new(None) });
    FILE.with_borrow_mut(|file| {
        let file = file.get_or_insert_with(|| tempfile::tempfile().unwrap());
        file.set_len(0).unwrap();
        file.rewind().unwrap();
        file.write_all(bytes).unwrap();
        format!("/proc/self/fd/{}", file.as_raw_fd()).into()
    })
}

/// Options that a byte chooses.
pub fn options(choice: u8) -> Options {
    let mut options = Options::new();
    if choice & 1 != 0 {
        options = options.skip_unsupported();
    }
    if choice & 2 != 0 {
        options = options.raw_names();
    }
    if choice & 4 != 0 {
        options = options.aliases(Aliases::Each);
    }
    if choice & 8 != 0 {
        options = options.dequantise(if choice & 1 == 0 { Dtype::F16 } else { Dtype::BF16 });
    }
    options
}

/// Opens a file, and reads all that is in it unless it is large.
pub fn open(bytes: &[u8], options: &Options) -> Option<Foreign> {
    let foreign = told(weighbridge_convert::open(file(bytes), options))?;
    read(&foreign);
    Some(foreign)
}

/// What is read can be saved, and is the same then.
pub fn read(foreign: &Foreign) {
    for note in foreign.notes() {
        assert!(!note.to_string().contains('\n'), "{note}");
    }
    let checkpoint = foreign.checkpoint();
    if checkpoint.byte_len() > MOST {
        return;
    }
    let plan = Plan::of(checkpoint).build().unwrap();
    let Some(saved) = told(foreign.save().bytes(plan.tensors())) else { return };
    let again = Checkpoint::options().from_bytes(saved.clone()).unwrap();
    assert_eq!(again.len(), checkpoint.len());
    for tensor in checkpoint.tensors() {
        let other = again.tensor(tensor.name()).unwrap();
        assert_eq!((tensor.dtype(), tensor.shape()), (other.dtype(), other.shape()));
    }
    // Read once more, the bytes are the same.
    let twice = Save::new().bytes(Plan::of(checkpoint).build().unwrap().tensors()).unwrap();
    let once = Save::new().bytes(Plan::of(&again).build().unwrap().tensors()).unwrap();
    assert!(once == twice);
}

/// An error is one line, and no fault of ours.
pub fn told<T>(result: Result<T>) -> Option<T> {
    let check = |error: &Error| {
        let line = error.to_string();
        assert!(!line.contains('\n'), "{line}");
        assert!(error.kind() != ErrorKind::Internal, "{line}");
    };
    result.inspect_err(check).ok()
}

/// Scans bytes.
pub fn scan(bytes: &[u8]) -> weighbridge_convert::Scan {
    weighbridge_convert::scan(file(bytes)).unwrap()
}
