//! Any bytes as a pickle, read by choices that a first byte makes: what is read can be saved, and of what is read without
//! allowing more, `scan` does not say that it is dangerous.
#![no_main]

use fuzz_files::{open, options, scan};
use libfuzzer_sys::fuzz_target;
use weighbridge_convert::{Format, Verdict};

fuzz_target!(|input: &[u8]| {
    let Some((&choice, body)) = input.split_first() else { return };
    let marked;
    let bytes = match choice & 16 {
        0 => body,
        _ => {
            marked = [b"\x80\x04", body].concat();
            &marked
        }
    };
    let mut chosen = options(choice);
    if choice & 32 != 0 {
        chosen = chosen.allow_global("*");
    }
    if choice & 64 != 0 {
        chosen = chosen.allow_global("os.system").allow_global("builtins.eval");
    }
    let foreign = open(bytes, &chosen);
    if choice & 96 != 0 {
        return;
    }
    let is_pickle = |format| matches!(format, Format::Pickle | Format::TorchLegacy);
    if foreign.is_some_and(|foreign| is_pickle(foreign.format())) {
        // Others may stand behind the one that was read.
        let found = scan(bytes);
        let first = found.pickles.iter().find(|pickle| pickle.member.is_none() && pickle.offset == 0);
        for global in first.iter().flat_map(|pickle| &pickle.globals) {
            assert_ne!(global.verdict, Verdict::Dangerous, "{found:?}");
        }
    }
});
