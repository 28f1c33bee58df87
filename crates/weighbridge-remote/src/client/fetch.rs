//! A whole file into a directory that is removed again.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::RemoteFile;
use crate::{Error, ErrorKind, Result};

const PIECE: u64 = 8 << 20;

/// A directory of its own among the system's temporary ones.
pub(super) struct TemporaryDirectory(PathBuf);

impl TemporaryDirectory {
    pub(super) fn new() -> Result<Self> {
        let parent = std::env::temp_dir();
        for _ in 0..16 {
            let path = parent.join(format!("weighbridge-{:016x}", crate::retry::random().to_bits()));
            match create_private(&path) {
                Ok(()) => return Ok(Self(path)),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(failed(&path, &error)),
            }
        }
        Err(Error::new(ErrorKind::Io, format!("{}: no temporary directory could be made", parent.display())))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

/// A directory that nobody but the user may look into. (On Windows the user's temporary directory is such a one.)
fn create_private(path: &Path) -> std::io::Result<()> {
    #[cfg(unix)]
    return std::os::unix::fs::DirBuilderExt::mode(&mut fs::DirBuilder::new(), 0o700).create(path);
    #[cfg(not(unix))]
    return fs::create_dir(path);
}

impl Drop for TemporaryDirectory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn failed(path: &Path, error: &std::io::Error) -> Error {
    Error::new(ErrorKind::Io, format!("{}: {error}", path.display()))
}

/// Reads the file by several threads into `path`, and verifies it if its tag is a checksum.
pub(super) fn fetch(
    file: &RemoteFile,
    path: &Path,
    threads: usize,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<PathBuf> {
    let io = |error: std::io::Error| failed(path, &error);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(io)?;
    }
    let size = file.size();
    let out = File::options().read(true).write(true).create(true).truncate(true).open(path).map_err(io)?;
    out.set_len(size).map_err(io)?;
    let out = Mutex::new(out);
    let (next, cancelled) = (AtomicU64::new(0), AtomicBool::new(false));
    let pieces = size.div_ceil(PIECE);
    let threads = (threads as u64).min(pieces);
    let mut result = Ok(());
    std::thread::scope(|scope| {
        let (sender, done) = mpsc::channel::<Result<u64>>();
        for _ in 0..threads {
            let (sender, next, cancelled, out) = (sender.clone(), &next, &cancelled, &out);
            scope.spawn(move || {
                let mut buf = Vec::new();
                loop {
                    let piece = next.fetch_add(1, Ordering::Relaxed);
                    if piece >= pieces || cancelled.load(Ordering::Relaxed) {
                        return;
                    }
                    let offset = piece * PIECE;
                    buf.resize((size - offset).min(PIECE) as usize, 0);
                    let copied = file.read_at(offset, &mut buf).and_then(|()| {
                        let mut out = out.lock().unwrap_or_else(PoisonError::into_inner);
                        out.seek(SeekFrom::Start(offset)).map_err(io)?;
                        out.write_all(&buf).map_err(io)
                    });
                    let _ = sender.send(copied.map(|()| buf.len() as u64));
                }
            });
        }
        drop(sender);
        let mut have = 0;
        loop {
            match done.recv_timeout(Duration::from_millis(100)) {
                Ok(Ok(bytes)) => have += bytes,
                Ok(Err(error)) => {
                    if result.is_ok() {
                        result = Err(error);
                    }
                    cancelled.store(true, Ordering::Relaxed);
                    file.interrupt();
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
            if result.is_ok() && progress(have, size).is_break() {
                result = Err(Error::new(ErrorKind::Cancelled, "interrupted"));
                cancelled.store(true, Ordering::Relaxed);
                file.interrupt();
            }
        }
    });
    result.map_err(|error: Error| error.at(file.address()))?;
    let mut out = out.into_inner().unwrap_or_else(PoisonError::into_inner);
    out.seek(SeekFrom::Start(0)).map_err(io)?;
    verify(&mut out, file)?;
    Ok(path.to_path_buf())
}

/// Compares the content with its sha256 (64 digits), or with its name in git (40 digits).
fn verify(out: &mut File, file: &RemoteFile) -> Result<()> {
    let Some(tag) = file.checksum() else { return Ok(()) };
    let found = match tag.len() {
        64 => digest(out, Sha256::new()),
        40 => digest(out, Sha1::new().chain_update(format!("blob {}\0", file.size()))),
        _ => return Ok(()),
    };
    let found = found.map_err(|error| Error::new(ErrorKind::Io, error.to_string()).at(file.address()))?;
    match found.eq_ignore_ascii_case(&tag) {
        true => Ok(()),
        false => {
            let message = format!("its bytes have the checksum {found} instead of {tag}; fetch it again");
            Err(Error::new(ErrorKind::Checksum, message).at(file.address()))
        }
    }
}

fn digest(from: &mut File, mut digest: impl Digest) -> std::io::Result<String> {
    let mut buf = vec![0; 1 << 20];
    loop {
        match from.read(&mut buf)? {
            0 => break,
            n => digest.update(&buf[..n]),
        }
    }
    Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
