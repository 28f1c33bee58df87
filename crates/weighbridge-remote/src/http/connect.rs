//! Connections of TCP that can be given up while they are made, as nothing of the client's own can.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use ureq::Error;
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, Either, LazyBuffers, NextTimeout, ShutdownHandle, Transport,
};

use super::stop::{Switch, TICK};

/// Connects, unless there is a connection, to a proxy say.
pub(crate) struct Tcp {
    /// Off when the agent is shut down.
    pub(crate) switch: Switch,
}

impl fmt::Debug for Tcp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tcp")
    }
}

impl<In: Transport> Connector<In> for Tcp {
    type Out = Either<In, Socket>;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        chained: Option<In>,
    ) -> Result<Option<Self::Out>, Error> {
        if let Some(chained) = chained {
            return Ok(Some(Either::A(chained)));
        }
        let most = details.timeout.not_zero().map_or(Duration::from_secs(60), |time| *time);
        let stream =
            self.stream(details.addrs.iter().copied().collect(), most).map_err(|error| {
                match error.kind() {
                    io::ErrorKind::TimedOut => Error::Timeout(ureq::Timeout::Connect),
                    _ => Error::Io(error),
                }
            })?;
        stream.set_nodelay(details.config.no_delay())?;
        let stream = Arc::new(Stream(stream));
        let weak = Arc::downgrade(&stream);
        (details.register_shutdown)(weak)?;
        let buffers =
            LazyBuffers::new(details.config.input_buffer_size(), details.config.output_buffer_size());
        Ok(Some(Either::B(Socket { stream, buffers, timeouts: [None; 2] })))
    }
}

impl Tcp {
    /// A thread of its own connects; nobody waits for it who does not want to any more.
    fn stream(&self, addresses: Vec<SocketAddr>, most: Duration) -> io::Result<TcpStream> {
        let end = Instant::now() + most;
        let (sender, connected) = sync_channel(1);
        std::thread::Builder::new().name("weighbridge-connect".into()).spawn(move || {
            let _ = sender.send(first_that_connects(&addresses, end));
        })?;
        loop {
            match connected.recv_timeout(TICK) {
                Ok(result) => return result,
                Err(_) if self.switch.is_off() => return Err(io::ErrorKind::NotConnected.into()),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(io::ErrorKind::NotConnected.into()),
            }
        }
    }
}

/// Tries one after the other. Each gets half of the time that is left, the last all of it.
fn first_that_connects(addresses: &[SocketAddr], end: Instant) -> io::Result<TcpStream> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for (index, address) in addresses.iter().enumerate() {
        let left = end.saturating_duration_since(Instant::now());
        let time = if index + 1 == addresses.len() { left } else { left / 2 };
        if time.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match TcpStream::connect_timeout(address, time) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

struct Stream(TcpStream);

impl ShutdownHandle for Stream {
    fn shutdown(&self) {
        // An error means that it is closed already.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

/// A connection.
pub(crate) struct Socket {
    stream: Arc<Stream>,
    buffers: LazyBuffers,
    /// Of reading and of writing, as the system knows them.
    timeouts: [Option<Duration>; 2],
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Socket")
    }
}

/// The time that is left, of which none is an error.
fn left(timeout: NextTimeout) -> Result<Option<Duration>, Error> {
    if timeout.after.is_zero() {
        return Err(Error::Timeout(timeout.reason));
    }
    Ok(timeout.not_zero().map(|time| *time))
}

fn timed_out(error: io::Error, timeout: NextTimeout) -> Error {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Error::Timeout(timeout.reason),
        _ => Error::Io(error),
    }
}

impl Transport for Socket {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let timeout = timeout.for_write();
        let time = left(timeout)?;
        if self.timeouts[1] != time {
            self.stream.0.set_write_timeout(time)?;
            self.timeouts[1] = time;
        }
        let output = self.buffers.output().get(..amount).unwrap_or_default();
        (&self.stream.0).write_all(output).map_err(|error| timed_out(error, timeout))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let timeout = timeout.for_read();
        let time = left(timeout)?;
        if self.timeouts[0] != time {
            self.stream.0.set_read_timeout(time)?;
            self.timeouts[0] = time;
        }
        let input = self.buffers.input_append_buf();
        let read = loop {
            match (&self.stream.0).read(input) {
                // A signal came, which is nobody's business here.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        let amount = read.map_err(|error| timed_out(error, timeout))?;
        self.buffers.input_appended(amount);
        Ok(amount > 0)
    }

    fn is_open(&mut self) -> bool {
        // A connection that waits for a request has nothing to say; one at its end has.
        let silent = || -> io::Result<bool> {
            self.stream.0.set_nonblocking(true)?;
            let silent = match self.stream.0.peek(&mut [0]) {
                Err(error) => error.kind() == io::ErrorKind::WouldBlock,
                Ok(_) => false,
            };
            self.stream.0.set_nonblocking(false)?;
            Ok(silent)
        };
        silent().unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_address_is_tried() {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let gone = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
        let tcp = Tcp { switch: Switch::default() };
        let address = listener.local_addr().unwrap();
        let stream = tcp.stream(vec![gone, address], Duration::from_secs(5)).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), address);
        let error = tcp.stream(vec![gone], Duration::from_secs(5)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        tcp.stream(vec![], Duration::from_secs(5)).unwrap_err();
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn given_up_while_it_connects() {
        // The queue of connections that nobody takes is short; when it is full, more of them wait.
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let address = listener.local_addr().unwrap();
        let connect = || TcpStream::connect_timeout(&address, Duration::from_millis(200));
        let full: Vec<_> = std::iter::from_fn(|| connect().ok()).take(64).collect();
        assert!(full.len() < 64);
        let switch = Switch::default();
        let tcp = Tcp { switch: switch.clone() };
        std::thread::scope(|scope| {
            let waiting =
                scope.spawn(|| (tcp.stream(vec![address], Duration::from_secs(20)), Instant::now()));
            std::thread::sleep(Duration::from_millis(100));
            assert!(!waiting.is_finished());
            let start = Instant::now();
            switch.turn_off();
            let (result, end) = waiting.join().unwrap();
            assert_eq!(result.unwrap_err().kind(), io::ErrorKind::NotConnected);
            assert!(end - start < Duration::from_millis(100));
        });
        let tcp = Tcp { switch: Switch::default() };
        let error = tcp.stream(vec![address], Duration::from_millis(100)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
