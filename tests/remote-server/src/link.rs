//! A link between a client and a server: it takes its time, has a cap, and breaks.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A proxy of TCP. What the client sends arrives later; all that the server sends shares a cap.
pub struct Link {
    address: SocketAddr,
    inner: Arc<Inner>,
}

struct Inner {
    to: SocketAddr,
    latency: Duration,
    /// Bytes a second.
    cap: Option<f64>,
    /// When all that was passed on may have been.
    due: Mutex<Instant>,
    /// The next connections are cut after so many bytes.
    cuts: Mutex<Vec<u64>>,
    down: AtomicBool,
    over: AtomicBool,
    passed: AtomicU64,
    streams: Mutex<Vec<TcpStream>>,
}

impl Link {
    /// A link to a server: `latency` for each request, and at most `cap` bytes a second.
    pub fn start(to: SocketAddr, latency: Duration, cap: Option<u64>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port on this machine");
        let address = listener.local_addr().expect("the port's number");
        let inner = Arc::new(Inner {
            to,
            latency,
            cap: cap.map(|cap| cap as f64),
            due: Mutex::new(Instant::now()),
            cuts: Mutex::default(),
            down: AtomicBool::new(false),
            over: AtomicBool::new(false),
            passed: AtomicU64::new(0),
            streams: Mutex::default(),
        });
        let shared = inner.clone();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if shared.over.load(Ordering::SeqCst) {
                    return;
                }
                if let Ok(client) = client {
                    let inner = shared.clone();
                    std::thread::spawn(move || connect(&client, &inner));
                }
            }
        });
        Self { address, inner }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://127.0.0.1:port`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The bytes that the server sent through it.
    pub fn passed(&self) -> u64 {
        self.inner.passed.load(Ordering::SeqCst)
    }

    /// The next connections are cut after so many bytes from the server, one each.
    pub fn cut_next(&self, after: impl IntoIterator<Item = u64>) {
        self.inner.cuts.lock().unwrap_or_else(PoisonError::into_inner).extend(after);
    }

    /// How many of them are still to come.
    pub fn cuts_left(&self) -> usize {
        self.inner.cuts.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether the link is down: connections are cut, and new ones closed at once.
    pub fn down(&self, down: bool) {
        self.inner.down.store(down, Ordering::SeqCst);
        if down {
            self.inner.hang_up();
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.inner.over.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        self.inner.hang_up();
    }
}

impl Inner {
    fn hang_up(&self) {
        for stream in self.streams.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Sleeps until these bytes may have been passed on.
    fn pace(&self, bytes: usize) {
        let Some(cap) = self.cap else { return };
        let now = Instant::now();
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        let earliest = now.checked_sub(Duration::from_millis(5)).unwrap_or(now);
        *due = (*due).max(earliest) + Duration::from_secs_f64(bytes as f64 / cap);
        let wait = due.saturating_duration_since(now);
        drop(due);
        std::thread::sleep(wait);
    }
}

fn connect(client: &TcpStream, inner: &Arc<Inner>) {
    if inner.down.load(Ordering::SeqCst) {
        return;
    }
    let Ok(server) = TcpStream::connect(inner.to) else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (Ok(from_client), Ok(to_server)) = (client.try_clone(), server.try_clone()) else { return };
    if let (Ok(client), Ok(server)) = (client.try_clone(), server.try_clone()) {
        inner.streams.lock().unwrap_or_else(PoisonError::into_inner).extend([client, server]);
    }
    let latency = inner.latency;
    std::thread::spawn(move || {
        let _ = pass_on(&from_client, &to_server, |_| {
            std::thread::sleep(latency);
            true
        });
        let _ = to_server.shutdown(Shutdown::Both);
    });
    let mut left = {
        let mut cuts = inner.cuts.lock().unwrap_or_else(PoisonError::into_inner);
        if cuts.is_empty() { None } else { Some(cuts.remove(0)) }
    };
    let _ = pass_on(&server, client, |bytes| {
        if let Some(left) = &mut left {
            if (*bytes as u64) >= *left {
                *bytes = usize::try_from(*left).unwrap_or(0);
            }
            *left -= *bytes as u64;
        }
        inner.pace(*bytes);
        inner.passed.fetch_add(*bytes as u64, Ordering::SeqCst);
        left != Some(0)
    });
    let _ = (client.shutdown(Shutdown::Both), server.shutdown(Shutdown::Both));
}

/// Passes bytes on. `each` may make the number of bytes less, and says whether to go on after them.
fn pass_on(
    mut from: &TcpStream,
    mut to: &TcpStream,
    mut each: impl FnMut(&mut usize) -> bool,
) -> std::io::Result<()> {
    let mut buf = vec![0; 128 << 10];
    loop {
        let mut n = from.read(&mut buf)?;
        if n == 0 {
            return Ok(());
        }
        let go_on = each(&mut n);
        to.write_all(&buf[..n])?;
        if !go_on {
            return Ok(());
        }
    }
}
