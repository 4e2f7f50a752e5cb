//! One client's connection, from `connect` to the end the server sends.

use core::net::SocketAddr;
use core::time::Duration;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::thread::sleep;
use std::time::Instant;

use reuseport::{Call, Error};

/// What a client does with each connection.
pub(crate) struct Client {
    /// Tried in turn: what the name in `--addr` stands for.
    pub(crate) addresses: Vec<SocketAddr>,
    /// Stay connected for so long before reading.
    pub(crate) hold: Duration,
    /// The longest wait for an answer, to `connect` and to each read.
    pub(crate) timeout: Duration,
}

impl Client {
    /// Connects and reads to the end; only then was the connection served. A reset on the way,
    /// also while it still waited in a listener's queue, is a failure. Returns how long it took,
    /// without the time held.
    pub(crate) fn visit(&self) -> Result<Duration, String> {
        self.visit_saying(b"")
    }

    /// The same, and sends this first.
    pub(crate) fn visit_saying(&self, words: &[u8]) -> Result<Duration, String> {
        let begun = Instant::now();
        let mut stream = self
            .connect()
            .map_err(|error| self.describe(Call::Connect, &error))?;
        stream
            .write_all(words)
            .map_err(|error| self.describe(Call::Send, &error))?;
        let connected = begun.elapsed();
        if !self.hold.is_zero() {
            sleep(self.hold);
        }
        let reading = Instant::now();
        let mut buffer = [0; 4096];
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => return Ok(connected + reading.elapsed()),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(self.describe(Call::Recv, &error)),
            }
        }
    }

    fn connect(&self) -> io::Result<TcpStream> {
        self.first(|address| {
            let stream = TcpStream::connect_timeout(address, self.timeout)?;
            stream.set_read_timeout(Some(self.timeout))?;
            Ok(stream)
        })
    }

    /// What `open` makes of the first address that lets it.
    fn first<T>(&self, open: impl Fn(&SocketAddr) -> io::Result<T>) -> io::Result<T> {
        let mut failed = ErrorKind::AddrNotAvailable.into();
        for address in &self.addresses {
            match open(address) {
                Ok(opened) => return Ok(opened),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    /// Sends a datagram, from a port of its own, and waits for the answer. Returns how long that
    /// took.
    pub(crate) fn ask(&self) -> Result<Duration, String> {
        self.ask_for(1)
    }

    /// Sends `count` datagrams at once, and waits for as many answers.
    pub(crate) fn ask_for(&self, count: usize) -> Result<Duration, String> {
        let socket = self
            .connect_datagrams()
            .map_err(|error| self.describe(Call::Connect, &error))?;
        let begun = Instant::now();
        for _ in 0..count {
            let sent = socket.send(b"reuseport");
            sent.map_err(|error| self.describe(Call::Send, &error))?;
        }
        for _ in 0..count {
            let answer = socket.recv(&mut [0; 16]);
            answer.map_err(|error| self.describe(Call::Recv, &error))?;
        }
        Ok(begun.elapsed())
    }

    fn connect_datagrams(&self) -> io::Result<UdpSocket> {
        self.first(|address| {
            let any = match address {
                SocketAddr::V4(_) => SocketAddr::from(([0; 4], 0)),
                SocketAddr::V6(_) => SocketAddr::from(([0_u16; 8], 0)),
            };
            let socket = UdpSocket::bind(any)?;
            socket.connect(address)?;
            socket.set_read_timeout(Some(self.timeout))?;
            Ok(socket)
        })
    }

    fn describe(&self, call: Call, error: &io::Error) -> String {
        match error.raw_os_error() {
            Some(errno) if errno != libc::EAGAIN => Error::new(call, errno).to_string(),
            _ => format!("{}: no answer within {:?}", call.name(), self.timeout),
        }
    }
}
