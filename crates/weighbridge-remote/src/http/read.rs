//! One file: its head, which says how long it is, and then ranges, each right or an error.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::failure::Failure;
use super::headers::{bare_tag, content_length, content_range, text};
use super::origin::{Origin, Wanted};
use super::redirect::{MOST, is_redirect};
use super::stop::{Interrupts, Stop};
use super::visit::too_many;
use super::{Answer, Asked, Http};
use crate::{Error, ErrorKind, Result};

/// What a file has cost so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Requests for its bytes, redirects included.
    pub requests: u64,
    /// Bytes of it that were received.
    pub received: u64,
    /// Requests that were sent again because one failed.
    pub retries: u64,
    /// Bytes that came from the cache.
    pub cached: u64,
}

#[derive(Default)]
pub(crate) struct Counters {
    requests: AtomicU64,
    received: AtomicU64,
    retries: AtomicU64,
}

impl Counters {
    fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn counts(&self) -> Counts {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            requests: load(&self.requests),
            received: load(&self.received),
            retries: load(&self.retries),
            cached: 0,
        }
    }
}

/// What is read through when a server has no ranges: such files whole, longer ones not at all.
const WHOLE: u64 = 64 << 20;
/// Fewer bytes a second than these are taken for a server that only pretends to send.
const DRIP: u64 = 1 << 10;
/// An attempt that brings less, and less than half of what was missing, is as good as none.
const PROGRESS: usize = 4 << 10;
/// How much is read at a time.
const PIECE: usize = 128 << 10;

/// A file that is open: how long it is, and what its first bytes are.
pub(crate) struct Reader {
    http: Http,
    origin: Box<dyn Origin>,
    size: u64,
    /// The first bytes, until [`Self::forget_head`]; all of them where the server has no ranges.
    head: Mutex<Vec<u8>>,
    whole: bool,
    pinned: Mutex<Pinned>,
    pub(crate) interrupts: Interrupts,
    pub(crate) counters: Counters,
}

/// The entity tag that answers have to have, and of which version of the file's place it is.
#[derive(Default)]
struct Pinned {
    version: u64,
    tag: Option<String>,
}

/// How an attempt ended, when it did not succeed.
enum Ended {
    Failed(Failure),
    /// Refused, though it was asked for properly: with what it was signed, and the error that it is.
    Refused(u64, Error),
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<Error> for Ended {
    fn from(error: Error) -> Self {
        Self::Failed(Failure::fatal(error))
    }
}

/// What the first answer says.
struct Opened {
    size: u64,
    head: Vec<u8>,
    whole: bool,
}

impl Reader {
    /// Asks for the first bytes of a file, at most `head` of them.
    pub(crate) fn open(http: Http, origin: Box<dyn Origin>, head: u64) -> Result<Self> {
        let mut reader = Self {
            http,
            origin,
            size: 0,
            head: Mutex::default(),
            whole: false,
            pinned: Mutex::default(),
            interrupts: Interrupts::default(),
            counters: Counters::default(),
        };
        let stop = reader.interrupts.watch();
        let opened = reader
            .patiently(false, &stop, |_, reader| reader.try_open(head, &stop))
            .map_err(|e| reader.named(e))?;
        reader.size = opened.size;
        reader.head = Mutex::new(opened.head);
        reader.whole = opened.whole;
        Ok(reader)
    }

    fn named(&self, error: Error) -> Error {
        error.at(self.origin.address())
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    pub(crate) fn address(&self) -> &str {
        self.origin.address()
    }

    /// The tag of the content: the hub's checksum, or the server's entity tag.
    pub(crate) fn tag(&self) -> Option<String> {
        let pinned = || self.pinned.lock().unwrap_or_else(PoisonError::into_inner).tag.clone();
        self.origin.tag().or_else(|| pinned().map(|tag| bare_tag(&tag).to_owned()))
    }

    /// The checksum of the content, where the origin has one.
    pub(crate) fn checksum(&self) -> Option<String> {
        self.origin.tag()
    }

    /// The bytes that the first answer brought.
    pub(crate) fn take_head(&self) -> Vec<u8> {
        self.head.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Frees the first bytes, unless the server has no ranges.
    pub(crate) fn forget_head(&self) {
        if !self.whole {
            *self.head.lock().unwrap_or_else(PoisonError::into_inner) = Vec::new();
        }
    }

    /// Whether these bytes need no request.
    pub(crate) fn has(&self, range: &Range<u64>) -> bool {
        let head = self.head.lock().unwrap_or_else(PoisonError::into_inner);
        range.is_empty() || range.end <= head.len() as u64
    }

    /// Wakes all reads under way, with an error.
    pub(crate) fn interrupt(&self) {
        self.interrupts.interrupt();
        self.http.shut_down();
    }

    pub(crate) fn read_through(&self) -> usize {
        self.http.pace().read_through()
    }

    /// Fills the buffer with the bytes from `offset` on.
    pub(crate) fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.read_telling(offset, buf, &mut |_| {})
    }

    /// The same; `told` is called with as much of the buffer as is filled, again and again while bytes come.
    pub(crate) fn read_telling(
        &self,
        offset: u64,
        buf: &mut [u8],
        told: &mut dyn FnMut(&[u8]),
    ) -> Result<()> {
        let stop = self.interrupts.watch();
        self.read_stoppable(offset, buf, &stop, told).map_err(|error| self.named(error))?;
        told(buf);
        Ok(())
    }

    fn read_stoppable(
        &self,
        offset: u64,
        buf: &mut [u8],
        stop: &Stop,
        told: &mut dyn FnMut(&[u8]),
    ) -> Result<()> {
        let end = offset.checked_add(buf.len() as u64).filter(|end| *end <= self.size);
        let Some(end) = end else {
            let message = format!(
                "bytes {offset}-{} are beyond its {} bytes",
                offset.saturating_add(buf.len() as u64),
                self.size
            );
            return Err(Error::new(ErrorKind::Malformed, message));
        };
        let mut done = self.copy_head(offset, buf);
        if done == buf.len() {
            return Ok(());
        }
        self.patiently(true, stop, |progress, reader| {
            let before = done;
            let result = reader.attempt(offset, &mut done, buf, stop, told);
            *progress = done - before >= PROGRESS.min((buf.len() - before).div_ceil(2));
            result
        })
        .map_err(|error| match error.kind() {
            ErrorKind::Io => Error::new(
                ErrorKind::Io,
                format!("bytes {offset}-{}: {} after {done} bytes", end - 1, error.message()),
            ),
            _ => error,
        })
    }

    fn copy_head(&self, offset: u64, buf: &mut [u8]) -> usize {
        let head = self.head.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(rest) = usize::try_from(offset).ok().and_then(|offset| head.get(offset..)) else { return 0 };
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        n
    }

    /// Does it until it succeeds, patience is at its end, or there is no hope.
    fn patiently<T>(
        &self,
        begun: bool,
        stop: &Stop,
        mut attempt: impl FnMut(&mut bool, &Self) -> std::result::Result<T, Ended>,
    ) -> Result<T> {
        let mut budget = self.http.budget(begun);
        let mut renewed = false;
        loop {
            stop.check()?;
            let mut progress = false;
            let ended = match attempt(&mut progress, self) {
                Ok(done) => return Ok(done),
                Err(ended) => ended,
            };
            Counters::add(&self.counters.retries, 1);
            if progress {
                budget.progressed(self.http.now());
                renewed = false;
            }
            match ended {
                Ended::Refused(version, error) => {
                    if renewed || !self.origin.renew(version) {
                        return Err(error);
                    }
                    renewed = true;
                }
                // What was received is worth more than a wait.
                Ended::Failed(failure) if progress && failure.is_passing() => stop.check()?,
                Ended::Failed(failure) => self.http.after(failure, &mut budget, stop)?,
            }
        }
    }

    /// Asks, follows redirects, and returns the answer of a server that has the file.
    fn ask(&self, wanted: &Wanted<'_>, stop: &Stop) -> std::result::Result<(Answer, u64), Ended> {
        let mut asked = self.origin.ask(wanted, stop)?;
        let first = asked.request.uri().clone();
        for _ in 0..=MOST {
            let Asked { version, .. } = asked;
            let uri = asked.request.uri().clone();
            Counters::add(&self.counters.requests, 1);
            let mut answer = self.http.send(asked, stop)?;
            if !is_redirect(answer.status) {
                return self.judge(answer, version, stop).map(|answer| (answer, version));
            }
            asked = self.origin.redirected(wanted, &uri, &answer.headers)?;
            answer.excerpt(&self.http, stop);
            answer.accepted();
        }
        Err(too_many(&first).into())
    }

    /// Passes answers on that have bytes, or say that there are none.
    fn judge(&self, mut answer: Answer, version: u64, stop: &Stop) -> std::result::Result<Answer, Ended> {
        let status = answer.status;
        if matches!(status.as_u16(), 200 | 206 | 416) {
            if let Some(encoding) =
                text(&answer.headers, "content-encoding").filter(|e| !e.eq_ignore_ascii_case("identity"))
            {
                let encoding: String =
                    encoding.chars().filter(char::is_ascii_alphanumeric).take(16).collect();
                let message = format!("the server compresses it ({encoding}) though it was asked not to");
                return Err(Error::new(ErrorKind::Unsupported, message).into());
            }
            return Ok(answer);
        }
        let body = answer.excerpt(&self.http, stop);
        let explain = || self.origin.explain(status, &answer.headers, &body);
        if status.as_u16() == 412 {
            return Err(changed("its tag is another").into());
        }
        if let Some(failure) = answer.overload(explain) {
            return Err(failure.into());
        }
        match status.as_u16() {
            400 | 401 | 403 | 410 => Err(Ended::Refused(version, explain())),
            _ => Err(explain().into()),
        }
    }

    fn try_open(&self, head: u64, stop: &Stop) -> std::result::Result<Opened, Ended> {
        let head = self.origin.size().map_or(head, |size| head.min(size)).max(1);
        let wanted = Wanted { range: 0..head, tag: None };
        let (mut answer, version) = self.ask(&wanted, stop)?;
        let range = content_range(&answer.headers);
        let opened = match (answer.status.as_u16(), range) {
            (416, range) if range.as_ref().and_then(|range| range.size).or(self.origin.size()) == Some(0) => {
                Opened { size: 0, head: Vec::new(), whole: true }
            }
            (206, Some(range)) => {
                let size = range.size.ok_or_else(|| unsupported("the server does not say how long it is"))?;
                let expected = 0..head.min(size);
                if range.range != Some(expected.clone()) {
                    return Err(other_range(&wanted.range, &answer).into());
                }
                self.check_size(size)?;
                let mut bytes =
                    vec![0; usize::try_from(expected.end).map_err(|_| unsupported("it is too long"))?];
                let mut done = 0;
                self.pour(&mut answer, &mut bytes, &mut done, stop, &mut |_| {})?;
                Opened { size, head: bytes, whole: false }
            }
            (206, None) => return Err(other_range(&wanted.range, &answer).into()),
            (200, _) => {
                let length = content_length(&answer.headers);
                if let Some(length) = length.filter(|length| *length > WHOLE) {
                    let message = format!(
                        "the server does not serve ranges (200 instead of 206), and {length} bytes are too many to \
                         read whole; download it first"
                    );
                    return Err(Error::new(ErrorKind::Unsupported, message).into());
                }
                let bytes = answer.whole(&self.http, WHOLE, stop)?;
                Counters::add(&self.counters.received, bytes.len() as u64);
                self.check_size(bytes.len() as u64)?;
                Opened { size: bytes.len() as u64, head: bytes, whole: true }
            }
            // Only of nothing the first byte cannot be had.
            (416, None) if self.origin.serves_ranges() => Opened { size: 0, head: Vec::new(), whole: true },
            _ => {
                let body = answer.excerpt(&self.http, stop);
                return Err(self.origin.explain(answer.status, &answer.headers, &body).into());
            }
        };
        answer.accepted();
        self.origin.answered(&answer.headers);
        *self.pinned.lock().unwrap_or_else(PoisonError::into_inner) =
            Pinned { version, tag: entity_tag(&answer) };
        Ok(opened)
    }

    fn check_size(&self, size: u64) -> Result<()> {
        match self.origin.size() {
            Some(known) if known != size => Err(Error::new(
                ErrorKind::Malformed,
                format!("it is {size} bytes long, and listed with {known}"),
            )),
            _ => Ok(()),
        }
    }

    /// One request for what is still missing.
    fn attempt(
        &self,
        offset: u64,
        done: &mut usize,
        buf: &mut [u8],
        stop: &Stop,
        told: &mut dyn FnMut(&[u8]),
    ) -> std::result::Result<(), Ended> {
        let (start, end) = (offset + *done as u64, offset + buf.len() as u64);
        let tag = self.pinned.lock().unwrap_or_else(PoisonError::into_inner).tag.clone();
        let wanted = Wanted { range: start..end, tag: tag.as_deref() };
        let (mut answer, version) = self.ask(&wanted, stop)?;
        match (answer.status.as_u16(), content_range(&answer.headers)) {
            (206, Some(range)) if range.size.is_some_and(|size| size != self.size) => {
                let size = range.size.unwrap_or_default();
                return Err(changed(&format!("{} bytes before, {size} now", self.size)).into());
            }
            (206, Some(range)) if range.range == Some(start..end) && range.size.is_some() => {}
            (206, _) => return Err(other_range(&wanted.range, &answer).into()),
            (200, _) if start == 0 && end == self.size => {}
            (200, _) => {
                let message = "the server does not serve ranges (200 instead of 206); download it first";
                return Err(Error::new(ErrorKind::Unsupported, message).into());
            }
            _ => return Err(changed("it is shorter now").into()),
        }
        if content_length(&answer.headers).is_some_and(|length| length > end - start) {
            let message = "the answer is longer than what it says to be";
            return Err(Error::new(ErrorKind::Malformed, message).into());
        }
        self.check_tag(&answer, version)?;
        self.pour(&mut answer, buf, done, stop, told)?;
        answer.accepted();
        Ok(())
    }

    /// The tag is that of the first answer, or the first of a new version.
    fn check_tag(&self, answer: &Answer, version: u64) -> Result<()> {
        let Some(now) = entity_tag(answer) else { return Ok(()) };
        let mut pinned = self.pinned.lock().unwrap_or_else(PoisonError::into_inner);
        if pinned.tag.is_none() || (version > pinned.version && self.origin.tags_anew()) {
            *pinned = Pinned { version, tag: Some(now) };
            return Ok(());
        }
        match &pinned.tag {
            Some(before) if self.must_fit(version, &pinned) && bare_tag(before) != bare_tag(&now) => {
                let shown = |tag: &str| tag.chars().filter(|c| !c.is_control()).take(80).collect::<String>();
                Err(changed(&format!("ETag {} before, {} now", shown(before), shown(&now))))
            }
            _ => Ok(()),
        }
    }

    /// Whether a tag of this version has to be the pinned one.
    fn must_fit(&self, version: u64, pinned: &Pinned) -> bool {
        version == pinned.version || !self.origin.tags_anew()
    }

    /// Reads a body into what is left of a buffer, which it has to fill, and to its end.
    fn pour(
        &self,
        answer: &mut Answer,
        whole: &mut [u8],
        done: &mut usize,
        stop: &Stop,
        told: &mut dyn FnMut(&[u8]),
    ) -> std::result::Result<(), Failure> {
        let began = Instant::now();
        let first = *done;
        let (mut filled, mut window) = (0, (Duration::ZERO, 0));
        let longest = self.http.shared.stall * 3;
        let mut reading = Duration::ZERO;
        while *done < whole.len() {
            stop.check().map_err(Failure::fatal)?;
            let end = whole.len().min(*done + PIECE);
            let start = Instant::now();
            let n = answer.read(&self.http, &mut whole[*done..end], stop)?;
            reading += start.elapsed();
            if n == 0 {
                return Err(Failure::passing("connection closed"));
            }
            (filled, *done) = (filled + n, *done + n);
            told(&whole[..*done]);
            Counters::add(&self.counters.received, n as u64);
            let (time, bytes) = (reading - window.0, (filled - window.1) as u64);
            if time >= longest {
                if (bytes as f64) < DRIP as f64 * time.as_secs_f64() {
                    return Err(Failure::passing(format!("only {bytes} bytes came in {} s", time.as_secs())));
                }
                window = (reading, filled);
            }
        }
        self.http.pace().record(answer.latency, filled as u64, began.elapsed());
        match answer.read(&self.http, &mut [0], stop) {
            Ok(0) => Ok(()),
            Ok(_) => {
                *done = first;
                Err(Failure::fatal(Error::new(
                    ErrorKind::Malformed,
                    "the answer is longer than what it says to be",
                )))
            }
            // All that was asked for is there; the connection is not used again.
            Err(failure) if failure.is_fatal() => Err(failure),
            Err(_) => Ok(()),
        }
    }
}

impl Failure {
    fn is_passing(&self) -> bool {
        matches!(self.trouble, super::failure::Trouble::Passing | super::failure::Trouble::Unreachable)
    }

    fn is_fatal(&self) -> bool {
        self.trouble == super::failure::Trouble::Fatal
    }
}

fn entity_tag(answer: &Answer) -> Option<String> {
    text(&answer.headers, "etag").map(Into::into)
}

fn changed(how: &str) -> Error {
    Error::new(ErrorKind::Changed, format!("it was changed while it was read ({how}); open it again"))
}

fn unsupported(message: &str) -> Error {
    Error::new(ErrorKind::Unsupported, message)
}

fn other_range(wanted: &Range<u64>, answer: &Answer) -> Error {
    let said = text(&answer.headers, "content-range").unwrap_or("no Content-Range");
    let said: String = said.chars().filter(|c| !c.is_control()).take(60).collect();
    let message = format!(
        "bytes {}-{} were asked for, and the answer is of others ({said})",
        wanted.start,
        wanted.end - 1
    );
    Error::new(ErrorKind::Malformed, message)
}
