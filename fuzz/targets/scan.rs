//! Any bytes: scanned without a panic. A pickle that imports `os.system` is found in front of anything, and is never taken for
//! a part of what is harmless without it.
#![no_main]

use fuzz_files::{EVIL, scan};
use libfuzzer_sys::fuzz_target;
use weighbridge_convert::Verdict;

fuzz_target!(|bytes: &[u8]| {
    let found = scan(bytes);
    let is_harmless = found.verdict() == Verdict::Harmless;
    assert_eq!(is_harmless, found.is_complete() && found.globals().all(|it| it.verdict == Verdict::Harmless));
    // A text may be the start of a pickle, which goes on with anything.
    if is_harmless && found.format != "text" {
        let behind = scan(&[bytes, EVIL].concat());
        assert_ne!(behind.verdict(), Verdict::Harmless, "{behind:?}");
    }
    if bytes.len() % 4 == 0 {
        let before = scan(&[EVIL, bytes].concat());
        assert_eq!(before.verdict(), Verdict::Dangerous, "{before:?}");
    }
});
