//! Sealed memory, handed over by a socket.
//!
//! A client connects and gets one answer: a line of what it is, the bytes of the memory and the directory, and with the first byte
//! the descriptor of the memory. While the weights are made, the answer has no descriptor.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, Shutdown,
};

use super::Shared;
use crate::error::{Error, ErrorKind, Result};
use crate::source::MappedSource;

/// What answers begin with.
const GREETING: &str = "weighbridge share 1";

/// A process that was stopped does not answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Keeps memory and hands it over.
#[derive(Debug)]
pub(super) struct Owner {
    listener: Arc<UnixListener>,
    thread: Option<JoinHandle<()>>,
}

/// What is answered.
#[derive(Debug)]
struct Answer {
    memory: Option<OwnedFd>,
    bytes: u64,
    directory: Option<PathBuf>,
}

impl Owner {
    /// Takes a name, makes memory of so many bytes and has `write` write to it by a path; then it is sealed.
    pub(super) fn new(
        name: &str,
        bytes: u64,
        directory: Option<PathBuf>,
        write: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<Self> {
        let listener = UnixListener::bind_addr(&address(name)?).map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => {
                let message =
                    "a process shares something under this name already; choose another one with --name";
                Error::new(ErrorKind::Busy, message)
            }
            _ => Error::io("the name cannot be taken", error),
        })?;
        let listener = Arc::new(listener);
        let answer = Arc::new(Mutex::new(Answer { memory: None, bytes, directory }));
        let serve = {
            let (listener, answer) = (Arc::clone(&listener), Arc::clone(&answer));
            move || serve(&listener, &answer)
        };
        let thread = thread::Builder::new().name("weighbridge-share".to_owned()).spawn(serve);
        let thread = thread.map_err(|error| Error::io("no thread can be started", error))?;
        // From here on a failure gives the name back.
        let owner = Self { listener, thread: Some(thread) };
        check_room(bytes)?;
        let failed = |error: rustix::io::Errno| Error::io("no memory can be made", error.into());
        let memory = rustix::fs::memfd_create("weighbridge", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .map_err(failed)?;
        write(Path::new(&format!("/proc/self/fd/{}", memory.as_raw_fd())))?;
        let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&memory, seals)
            .map_err(|error| Error::io("its memory cannot be sealed", error.into()))?;
        answer.lock().unwrap_or_else(PoisonError::into_inner).memory = Some(memory);
        Ok(owner)
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        // Ends `accept`.
        let _ = rustix::net::shutdown(&*self.listener, Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Fails where less memory is free. It is no promise: others may take it meanwhile.
fn check_room(bytes: u64) -> Result<()> {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let free = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    match free.map(|kilobytes| kilobytes.saturating_mul(1024)) {
        Some(free) if free < bytes => {
            let message = format!("it needs {bytes} bytes of memory, and {free} are free");
            Err(Error::new(ErrorKind::NoRoom, message))
        }
        _ => Ok(()),
    }
}

fn prefix() -> String {
    format!("weighbridge-{}/", rustix::process::geteuid().as_raw())
}

fn address(name: &str) -> Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("{}{name}", prefix()))
        .map_err(|error| Error::io("its name is none of a socket", error))
}

/// Answers until the socket is shut down.
fn serve(listener: &UnixListener, answer: &Mutex<Answer>) {
    loop {
        match listener.accept() {
            // A client that does not listen is no reason to stop.
            Ok((stream, _)) => drop(answer.lock().unwrap_or_else(PoisonError::into_inner).send(&stream)),
            Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput) => return,
            // Of descriptors there are too few at times.
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    }
}

impl Answer {
    fn send(&self, stream: &UnixStream) -> io::Result<()> {
        if rustix::net::sockopt::socket_peercred(stream)?.uid != rustix::process::geteuid() {
            return Ok(());
        }
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut text = format!("{GREETING}\n{}\n", self.bytes).into_bytes();
        text.extend(self.directory.iter().flat_map(|directory| directory.as_os_str().as_bytes()));
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let memory = self.memory.as_ref().map(AsFd::as_fd);
        if let Some(memory) = &memory {
            control.push(SendAncillaryMessage::ScmRights(std::slice::from_ref(memory)));
        }
        // A few hundred bytes fit into any socket at once.
        rustix::net::sendmsg(stream, &[IoSlice::new(&text)], &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }
}

/// Asks whoever shares something under a name.
fn ask(name: &str) -> Result<(Answer, u32)> {
    let missing = |error: io::Error| match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => {
            let message =
                "no process shares anything under this name; `weighbridge share --list` says what is shared";
            Error::new(ErrorKind::NotFound, message)
        }
        _ => Error::io("it cannot be asked for", error),
    };
    let stream = UnixStream::connect_addr(&address(name)?).map_err(missing)?;
    let asked = |error: io::Error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            Error::new(ErrorKind::Busy, "the process that shares it does not answer")
        }
        _ => Error::io("it cannot be asked for", error),
    };
    let peer = rustix::net::sockopt::socket_peercred(&stream).map_err(|error| asked(error.into()))?;
    if peer.uid != rustix::process::geteuid() {
        return Err(Error::new(ErrorKind::Unsafe, "another user shares something under this name"));
    }
    stream.set_read_timeout(Some(PATIENCE)).map_err(asked)?;
    let answer = receive(stream).map_err(asked)?;
    Ok((answer, peer.pid.as_raw_nonzero().get().unsigned_abs()))
}

fn receive(mut stream: UnixStream) -> io::Result<Answer> {
    /// More than any path has.
    const MOST: u64 = 64 << 10;
    let mut first = vec![0; 1 << 10];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut first)];
    let received = rustix::net::recvmsg(&stream, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let memory = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    first.truncate(received.bytes);
    (&mut stream).take(MOST).read_to_end(&mut first)?;
    let unknown = || io::Error::other("what answers is not weighbridge, or of another version");
    let mut lines = first.splitn(3, |byte| *byte == b'\n');
    let (greeting, bytes, directory) = (lines.next(), lines.next(), lines.next());
    let bytes = bytes.and_then(|bytes| std::str::from_utf8(bytes).ok()?.parse().ok());
    let (Some(greeting), Some(bytes), Some(directory)) = (greeting, bytes, directory) else {
        return Err(unknown());
    };
    if greeting != GREETING.as_bytes() {
        return Err(unknown());
    }
    let directory =
        Some(PathBuf::from(OsStr::from_bytes(directory))).filter(|path| !path.as_os_str().is_empty());
    Ok(Answer { memory, bytes, directory })
}

/// Maps what is shared under a name.
pub(super) fn open(name: &str) -> Result<(MappedSource, Option<PathBuf>)> {
    let (answer, _) = ask(name)?;
    let Some(memory) = answer.memory else {
        return Err(Error::new(ErrorKind::Busy, "it is still being made; try again when it is there"));
    };
    let source = MappedSource::sealed(&File::from(memory))
        .map_err(|error| Error::io("its memory is not mapped", error))?;
    Ok((source, answer.directory))
}

/// What sockets there are of shares.
pub(super) fn list() -> Result<Vec<Shared>> {
    let text =
        fs::read("/proc/net/unix").map_err(|error| Error::io("/proc/net/unix cannot be read", error))?;
    let text = String::from_utf8_lossy(&text);
    let start = format!("@{}", prefix());
    // Num RefCount Protocol Flags Type St Inode Path
    let name = |line: &str| {
        let at = line.find(&start)?;
        line[..at].split_whitespace().nth(3).filter(|flags| *flags == "00010000")?;
        Some(line[at + start.len()..].to_owned())
    };
    let names: BTreeSet<String> = text.lines().filter_map(name).collect();
    let shared = |name: String| {
        let (answer, process) = ask(&name).ok()?;
        let bytes = answer.memory.is_some().then_some(answer.bytes);
        Some(Shared { name, process, bytes, directory: answer.directory })
    };
    Ok(names.into_iter().filter_map(shared).collect())
}
