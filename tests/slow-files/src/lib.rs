//! A file system that shows the files of a directory, and takes its time for each request, as a server does: with or
//! without the system's page cache in front of it.

#![cfg(target_os = "linux")]

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData,
    ReplyDirectory, ReplyEntry, ReplyOpen, Request,
};
use tempfile::TempDir;

/// Threads that answer requests whose time has come. However few they are, any number of requests can wait.
const ANSWERING: usize = 4;

/// How the file system behaves.
#[derive(Clone, Copy, Debug, Default)]
pub struct Behaviour {
    /// Nothing of its files is in the page cache, and nothing is read ahead.
    pub direct_io: bool,
    /// The time that each request to read takes, however many there are.
    pub delay: Duration,
    /// Reads of what lies behind this offset fail, in any file.
    pub broken_from: Option<u64>,
}

/// The file system while it is mounted, in a temporary directory.
pub struct Mounted {
    /// Unmounts when it is dropped, before the directory is removed.
    _session: BackgroundSession,
    directory: TempDir,
    counts: Arc<Counts>,
}

/// What was read, of all files.
#[derive(Debug, Default)]
struct Counts {
    requests: AtomicU64,
    bytes: AtomicU64,
    /// Requests that wait for their time, and the most that did so far.
    waiting: AtomicU64,
    most_waiting: AtomicU64,
}

impl Behaviour {
    /// Mounts what is in a directory now; its subdirectories are not shown.
    ///
    /// # Errors
    ///
    /// Fails where a process may not mount: there has to be `/dev/fuse`, and the process must be root's, or there has to
    /// be `fusermount3`.
    pub fn mount(self, directory: &Path) -> io::Result<Mounted> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            let metadata = std::fs::metadata(entry.path())?;
            if metadata.is_file() {
                files.push(Shown {
                    name: entry.file_name(),
                    file: Arc::new(File::open(entry.path())?),
                    size: metadata.size(),
                });
            }
        }
        let numbers = files.iter().zip(FIRST..).map(|(shown, number)| (shown.name.clone(), number)).collect();
        let counts = Arc::new(Counts::default());
        let (asked, to_answer) = channel();
        let to_answer = Arc::new(Mutex::new(to_answer));
        for _ in 0..ANSWERING {
            let (to_answer, counts) = (Arc::clone(&to_answer), Arc::clone(&counts));
            thread::Builder::new()
                .name("slow-files".to_owned())
                .spawn(move || answer(&to_answer, &counts))?;
        }
        let shows = Shows {
            behaviour: self,
            files,
            numbers,
            counts: Arc::clone(&counts),
            asked,
            since: SystemTime::now(),
        };
        let mut config = Config::default();
        config.mount_options = vec![MountOption::RO, MountOption::FSName("slow-files".to_owned())];
        let directory = tempfile::tempdir()?;
        let session = fuser::spawn_mount(shows, directory.path(), &config)?;
        Ok(Mounted { _session: session, directory, counts })
    }
}

impl Mounted {
    /// Where the files are.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The number of requests to read since the last call.
    pub fn requests(&self) -> u64 {
        self.counts.requests.swap(0, Ordering::Relaxed)
    }

    /// The number of bytes that were read since the last call.
    pub fn bytes(&self) -> u64 {
        self.counts.bytes.swap(0, Ordering::Relaxed)
    }

    /// The most requests to read that were in flight at a time since the last call.
    pub fn most_in_flight(&self) -> u64 {
        self.counts.most_waiting.swap(0, Ordering::Relaxed)
    }
}

/// The number of the first file; that of the root is one less.
const FIRST: u64 = 2;

/// Nothing changes while it is mounted.
const FOREVER: Duration = Duration::from_secs(1 << 20);

struct Shown {
    name: OsString,
    file: Arc<File>,
    size: u64,
}

/// A request to read, to be answered when its time has come.
struct Asked {
    due: Instant,
    file: Arc<File>,
    offset: u64,
    len: usize,
    is_broken: bool,
    reply: ReplyData,
}

/// Answers requests in the order in which they came, which is that of their times, until the file system is unmounted.
fn answer(asked: &Mutex<Receiver<Asked>>, counts: &Counts) {
    let mut memory = Vec::new();
    loop {
        let next = asked.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Asked { due, file, offset, len, is_broken, reply }) = next else { return };
        thread::sleep(due.saturating_duration_since(Instant::now()));
        counts.waiting.fetch_sub(1, Ordering::Relaxed);
        if is_broken {
            reply.error(Errno::EIO);
            continue;
        }
        memory.resize(memory.len().max(len), 0);
        let bytes = &mut memory[..len];
        match file.read_exact_at(bytes, offset) {
            Ok(()) => {
                counts.bytes.fetch_add(len as u64, Ordering::Relaxed);
                reply.data(bytes);
            }
            Err(error) => reply.error(error.into()),
        }
    }
}

struct Shows {
    behaviour: Behaviour,
    files: Vec<Shown>,
    numbers: BTreeMap<OsString, u64>,
    counts: Arc<Counts>,
    asked: Sender<Asked>,
    since: SystemTime,
}

impl Shows {
    fn file(&self, number: INodeNo) -> Option<&Shown> {
        self.files.get(usize::try_from(number.0.checked_sub(FIRST)?).ok()?)
    }

    fn attributes(&self, number: INodeNo) -> Option<FileAttr> {
        let is_root = number == INodeNo::ROOT;
        let size = if is_root { 0 } else { self.file(number)?.size };
        let owner = std::fs::metadata("/proc/self").ok()?;
        Some(FileAttr {
            ino: number,
            size,
            blocks: size.div_ceil(512),
            atime: self.since,
            mtime: self.since,
            ctime: self.since,
            crtime: self.since,
            kind: if is_root { FileType::Directory } else { FileType::RegularFile },
            perm: if is_root { 0o555 } else { 0o444 },
            nlink: 1,
            uid: owner.uid(),
            gid: owner.gid(),
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }
}

impl Filesystem for Shows {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // So that programs which can only map have their chance with `direct_io`, too; since Linux 6.6.
        let _ = config.add_capabilities(InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP);
        Ok(())
    }

    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let number = self.numbers.get(name).copied().map(INodeNo);
        match number.and_then(|number| self.attributes(number)) {
            Some(attributes) => reply.entry(&FOREVER, &attributes, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(number) {
            Some(attributes) => reply.attr(&FOREVER, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let flags = match self.behaviour.direct_io {
            true => FopenFlags::FOPEN_DIRECT_IO,
            false => FopenFlags::FOPEN_KEEP_CACHE,
        };
        reply.opened(FileHandle(0), flags);
    }

    fn read(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Some(Shown { file, size: end, .. }) = self.file(number) else {
            return reply.error(Errno::ENOENT);
        };
        self.counts.requests.fetch_add(1, Ordering::Relaxed);
        let waiting = self.counts.waiting.fetch_add(1, Ordering::Relaxed) + 1;
        self.counts.most_waiting.fetch_max(waiting, Ordering::Relaxed);
        let due = Instant::now() + self.behaviour.delay;
        let len = end.saturating_sub(offset).min(u64::from(size));
        let is_broken = self.behaviour.broken_from.is_some_and(|broken| offset + len > broken);
        let file = Arc::clone(file);
        // Without threads that answer, the request is dropped, and so refused.
        let _ = self.asked.send(Asked { due, file, offset, len: len as usize, is_broken, reply });
    }

    fn readdir(&self, _: &Request, _: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        for (index, shown) in self.files.iter().enumerate().skip(offset as usize) {
            let (number, next) = (INodeNo(FIRST + index as u64), index as u64 + 1);
            if reply.add(number, next, FileType::RegularFile, &shown.name) {
                break;
            }
        }
        reply.ok();
    }
}
