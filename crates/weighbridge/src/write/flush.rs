//! Bytes on their way to the disk while the next ones are written.

use std::fs::File;
use std::io;
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::thread::{self, JoinHandle};

/// A thread that syncs a file again and again while it is being written, so that the disk is at work from the
/// start and the last sync has little left to do. Dropped, it ends by itself.
#[derive(Debug)]
pub(super) struct Flusher {
    wake: SyncSender<()>,
    thread: JoinHandle<io::Result<()>>,
    /// Bytes written since it was last woken.
    pending: usize,
}

/// So much is worth a sync of its own.
const STEP: usize = 64 << 20;

/// Smaller files are not worth a thread.
pub(super) const WORTH: u64 = 2 * STEP as u64;

impl Flusher {
    /// `None` where the file cannot be opened twice, or no thread started.
    pub(super) fn start(file: &File) -> Option<Self> {
        let file = file.try_clone().ok()?;
        let (wake, woken) = mpsc::sync_channel(1);
        let builder = thread::Builder::new().name("weighbridge-sync".to_owned());
        let thread = builder.spawn(move || sync(&file, &woken)).ok()?;
        Some(Self { wake, thread, pending: 0 })
    }

    /// Bytes were written.
    pub(super) fn wrote(&mut self, bytes: usize) {
        self.pending += bytes;
        if self.pending < STEP {
            return;
        }
        // While it is at work, it is left alone: what came meanwhile goes with the next sync.
        if let Ok(()) | Err(TrySendError::Disconnected(())) = self.wake.try_send(()) {
            self.pending = 0;
        }
    }

    /// Ends it, and gives the error of a sync that has failed: the kernel tells of it only once.
    pub(super) fn finish(self) -> io::Result<()> {
        drop(self.wake);
        let panicked = |_| Err(io::Error::other("the thread that syncs has panicked"));
        self.thread.join().unwrap_or_else(panicked)
    }
}

fn sync(file: &File, woken: &Receiver<()>) -> io::Result<()> {
    while woken.recv().is_ok() {
        file.sync_data()?;
    }
    Ok(())
}
