//! Ctrl-C, and what else asks a program to end: long work looks here between its pieces and fails, so that
//! whatever it was writing is removed on the way out. Signals that would end it at once become errors.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, bail};

/// The exit status of a program that ended so, by the convention of shells: 128 and the signal's number.
pub(crate) const EXIT: u8 = 130;

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// From now on the first signal is noted, and a second one ends the program at once.
pub(crate) fn install() {
    // Without a handler a signal ends the program at once, which is no reason not to begin.
    let _ = ctrlc::set_handler(|| {
        if REQUESTED.swap(true, Ordering::Relaxed) {
            std::process::exit(EXIT.into());
        }
    });
    outlive_file_limits();
}

/// A file that would grow beyond the limit of the process (`ulimit -f`) is an error of the write from now on,
/// as on a full disk. Otherwise SIGXFSZ ends the program before it can remove what it was writing.
fn outlive_file_limits() {
    #[cfg(unix)]
    #[allow(unsafe_code)]
    // SAFETY: no code of ours runs in a handler, and nothing else in the program cares for this signal.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}

pub(crate) fn requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}

/// Fails once somebody wants the program to end.
pub(crate) fn check() -> Result<()> {
    if requested() {
        bail!("interrupted");
    }
    Ok(())
}
