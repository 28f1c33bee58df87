//! A server of HTTP/1.1: a thread for each connection, which stays open.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::log::Log;

/// What a client asks for.
#[derive(Clone, Debug)]
pub struct Request {
    /// `GET`, `HEAD` and others.
    pub method: String,
    /// Path and query, as sent.
    pub target: String,
    /// In the order sent, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body, if it has a length.
    pub body: Vec<u8>,
}

impl Request {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The path, without the query, decoded.
    pub fn path(&self) -> String {
        decode(self.target.split('?').next().unwrap_or_default())
    }

    /// A parameter of the query, decoded.
    pub fn query(&self, name: &str) -> Option<String> {
        let (_, query) = self.target.split_once('?')?;
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.into_iter().find(|(key, _)| *key == name).map(|(_, value)| decode(value))
    }

    /// The bytes asked for by `Range: bytes=a-b`, of a file of this size.
    pub fn range(&self, size: u64) -> Option<Range<u64>> {
        let (start, last) = self.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        let start: u64 = start.parse().ok()?;
        let end = last.parse::<u64>().map_or(size, |last| (last + 1).min(size));
        Some(start..end)
    }
}

fn decode(text: &str) -> String {
    let mut out = Vec::new();
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let hex =
            (bytes[at] == b'%').then(|| u8::from_str_radix(text.get(at + 1..at + 3)?, 16).ok()).flatten();
        out.push(hex.unwrap_or(bytes[at]));
        at += if hex.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// What it gets.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    /// 200 and others.
    pub status: u16,
    /// Beside `Content-Length`, which is added.
    pub headers: Vec<(String, String)>,
    /// What the body is a part of.
    pub content: Arc<Vec<u8>>,
    /// The part; the whole by default.
    pub part: Option<Range<usize>>,
    /// How it is sent.
    pub tricks: Vec<Trick>,
}

/// How a reply is sent wrongly.
#[derive(Clone, Debug)]
pub enum Trick {
    /// The connection is closed after so many bytes of the body.
    Cut(u64),
    /// The connection is closed after so many bytes of the head.
    CutHead(usize),
    /// Nothing more comes for a time after so many bytes of the body.
    Stall(u64, Duration),
    /// A byte comes each time.
    Drip(Duration),
    /// `Content-Length` says so many bytes more (or less) than are in the reply, and they are sent.
    Longer(i64),
    /// The body is sent in chunks, with so many bytes after what was asked for.
    Chunked(usize),
    /// HTTP/1.0, without a length: the end of the connection is the end of the body.
    Old,
    /// These bytes instead of any reply.
    Garbage(Vec<u8>),
}

impl Reply {
    /// One with a text.
    pub fn text(status: u16, text: impl Into<String>) -> Self {
        Self { status, content: Arc::new(text.into().into_bytes()), ..Self::default() }
    }

    /// One with bytes.
    pub fn bytes(status: u16, bytes: Vec<u8>) -> Self {
        Self { status, content: Arc::new(bytes), ..Self::default() }
    }

    /// Adds a header.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }
}

/// A server on a port of its own, until it is dropped.
pub struct Server {
    address: SocketAddr,
    over: Arc<AtomicBool>,
    connections: Arc<Mutex<Vec<TcpStream>>>,
    /// What it was asked.
    pub log: Log,
}

impl Server {
    /// Starts one that answers by a function.
    pub fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port on this machine");
        let address = listener.local_addr().expect("the port's number");
        let server = Self { address, over: Arc::default(), connections: Arc::default(), log: Log::default() };
        let (over, connections, log) = (server.over.clone(), server.connections.clone(), server.log.clone());
        let answer = Arc::new(answer);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if over.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let _ = stream.set_nodelay(true);
                if let Ok(copy) = stream.try_clone() {
                    connections.lock().unwrap_or_else(PoisonError::into_inner).push(copy);
                }
                let (answer, log) = (answer.clone(), log.clone());
                std::thread::spawn(move || {
                    log.connected();
                    let _ = serve(&stream, answer.as_ref(), &log);
                    let _ = stream.shutdown(Shutdown::Both);
                });
            }
        });
        server
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://127.0.0.1:port`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Closes all connections, as a server that is started again does.
    pub fn hang_up(&self) {
        for stream in self.connections.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        self.hang_up();
    }
}

/// Answers requests until the connection ends.
fn serve(stream: &TcpStream, answer: &dyn Fn(&Request) -> Reply, log: &Log) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    while let Some(request) = read_request(&mut reader)? {
        let entry = log.asked(&request);
        let reply = answer(&request);
        let sent = write_reply(stream, &request, &reply);
        let (bytes, go_on) = match sent {
            Ok((bytes, go_on)) => (bytes, go_on),
            Err(_) => (0, false),
        };
        log.answered(entry, reply.status, bytes);
        if !go_on {
            return Ok(());
        }
    }
    Ok(())
}

fn read_request(reader: &mut BufReader<TcpStream>) -> std::io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_ascii_whitespace();
    let (Some(method), Some(target)) = (words.next(), words.next()) else { return Ok(None) };
    let mut request = Request {
        method: method.to_owned(),
        target: origin_form(target).to_owned(),
        headers: Vec::new(),
        body: Vec::new(),
    };
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        match line.trim_end().split_once(':') {
            Some((name, value)) => request.headers.push((name.to_ascii_lowercase(), value.trim().to_owned())),
            None => break,
        }
    }
    if let Some(length) = request.header("content-length").and_then(|length| length.parse::<u64>().ok()) {
        reader.take(length).read_to_end(&mut request.body)?;
    }
    Ok(Some(request))
}

/// The bytes of the body that were sent, and whether the connection is to stay.
fn write_reply(mut stream: &TcpStream, request: &Request, reply: &Reply) -> std::io::Result<(u64, bool)> {
    let part = reply.part.clone().unwrap_or(0..reply.content.len());
    let body = &reply.content[part];
    let has = |find: fn(&Trick) -> bool| reply.tricks.iter().any(find);
    let (old, head_only) = (has(|trick| matches!(trick, Trick::Old)), request.method == "HEAD");
    let extra =
        reply.tricks.iter().find_map(|trick| if let Trick::Chunked(n) = trick { Some(*n) } else { None });
    let longer =
        reply.tricks.iter().find_map(|trick| if let Trick::Longer(n) = trick { Some(*n) } else { None });
    if let Some(bytes) = reply
        .tricks
        .iter()
        .find_map(|trick| if let Trick::Garbage(bytes) = trick { Some(bytes) } else { None })
    {
        stream.write_all(bytes)?;
        return Ok((0, false));
    }
    let mut head = format!("HTTP/1.{} {} X\r\n", u8::from(!old), reply.status);
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let length = (body.len() as u64).saturating_add_signed(longer.unwrap_or(0));
    match (old, extra) {
        (true, _) => {}
        (false, Some(_)) => head.push_str("Transfer-Encoding: chunked\r\n"),
        (false, None) => head.push_str(&format!("Content-Length: {length}\r\n")),
    }
    head.push_str("\r\n");
    if let Some(n) =
        reply.tricks.iter().find_map(|trick| if let Trick::CutHead(n) = trick { Some(*n) } else { None })
    {
        stream.write_all(&head.as_bytes()[..n.min(head.len())])?;
        return Ok((0, false));
    }
    if head_only {
        stream.write_all(head.as_bytes())?;
        return Ok((0, true));
    }
    if let Some(extra) = extra {
        head.push_str(&format!("{:x}\r\n", body.len() + extra));
        stream.write_all(head.as_bytes())?;
        stream.write_all(body)?;
        stream.write_all(&vec![b'+'; extra])?;
        stream.write_all(b"\r\n0\r\n\r\n")?;
        return Ok((body.len() as u64, true));
    }
    // A small reply is one packet.
    if body.len() < 16 << 10 && reply.tricks.is_empty() {
        head.reserve(body.len());
        let mut all = head.into_bytes();
        all.extend_from_slice(body);
        stream.write_all(&all)?;
        return Ok((body.len() as u64, true));
    }
    stream.write_all(head.as_bytes())?;
    for trick in &reply.tricks {
        match trick {
            Trick::Cut(n) => {
                let n = body.len().min(usize::try_from(*n).unwrap_or(usize::MAX));
                stream.write_all(&body[..n])?;
                return Ok((n as u64, false));
            }
            Trick::Stall(n, time) => {
                let n = body.len().min(usize::try_from(*n).unwrap_or(usize::MAX));
                stream.write_all(&body[..n])?;
                std::thread::sleep(*time);
                return Ok((n as u64, false));
            }
            Trick::Drip(time) => {
                for (sent, byte) in body.iter().enumerate() {
                    if stream.write_all(&[*byte]).is_err() {
                        return Ok((sent as u64, false));
                    }
                    std::thread::sleep(*time);
                }
                return Ok((body.len() as u64, true));
            }
            Trick::Longer(n) if *n < 0 => {
                let end = usize::try_from(length).unwrap_or(0).min(body.len());
                stream.write_all(&body[..end])?;
                return Ok((end as u64, true));
            }
            Trick::Longer(n) => {
                stream.write_all(body)?;
                stream.write_all(&vec![b'+'; usize::try_from(*n).unwrap_or(0)])?;
                return Ok((body.len() as u64, true));
            }
            Trick::Old | Trick::CutHead(_) | Trick::Chunked(_) | Trick::Garbage(_) => {}
        }
    }
    stream.write_all(body)?;
    Ok((body.len() as u64, !old))
}

/// The path and query of a target. Servers have to take whole URLs, too, and some clients send them (RFC 9112, 3.2.2).
fn origin_form(target: &str) -> &str {
    let Some(rest) = target.strip_prefix("http://") else { return target };
    rest.find('/').map_or("/", |path| &rest[path..])
}
