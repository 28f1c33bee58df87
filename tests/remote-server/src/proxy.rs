//! An HTTP proxy, which knows names that nobody else does.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

/// A proxy that connects (`CONNECT host:port`) to servers by names of its own, until the process ends.
pub struct Proxy {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    /// Starts one that knows these hosts.
    pub fn start(hosts: impl IntoIterator<Item = (&'static str, SocketAddr)>) -> Self {
        let hosts: BTreeMap<_, _> = hosts.into_iter().collect();
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port on this machine");
        let address = listener.local_addr().expect("the port's number");
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let log = asked.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (hosts, log) = (hosts.clone(), log.clone());
                std::thread::spawn(move || serve(&client, &hosts, &log));
            }
        });
        Self { address, asked }
    }

    /// `http://127.0.0.1:port`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What it was asked to connect to: `host:port`, each.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn serve(
    client: &TcpStream,
    hosts: &BTreeMap<&'static str, SocketAddr>,
    log: &Mutex<Vec<String>>,
) -> Option<()> {
    let mut reader = BufReader::new(client.try_clone().ok()?);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let target = line.strip_prefix("CONNECT ")?.split(' ').next()?.to_owned();
    let mut header = String::new();
    while reader.read_line(&mut header).ok()? > 2 {
        header.clear();
    }
    log.lock().unwrap_or_else(PoisonError::into_inner).push(target.clone());
    let mut out = client;
    let host = target.rsplit_once(':')?.0;
    let Some(server) = hosts.get(host).and_then(|address| TcpStream::connect(address).ok()) else {
        out.write_all(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n").ok()?;
        return None;
    };
    out.write_all(b"HTTP/1.1 200 OK\r\n\r\n").ok()?;
    let back = (server.try_clone().ok()?, client.try_clone().ok()?);
    std::thread::spawn(move || {
        copy(&back.0, &back.1);
        let _ = back.1.shutdown(Shutdown::Both);
    });
    copy(reader, &server);
    let _ = server.shutdown(Shutdown::Both);
    Some(())
}

fn copy(mut from: impl Read, mut to: impl Write) {
    let _ = std::io::copy(&mut from, &mut to);
}
