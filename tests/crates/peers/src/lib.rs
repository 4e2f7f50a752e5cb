//! What the servers written in Rust have in common: the command line, the line that says that they
//! are ready, and the answer to an HTTP request or a datagram. How they accept is their own.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, UdpSocket};

/// `ADDRESS ACCEPTORS MODE [WAY]`.
#[derive(Debug)]
pub struct Args {
    pub address: SocketAddr,
    pub acceptors: usize,
    pub mode: Mode,
    /// How to accept, for the servers that know more ways than one.
    pub way: String,
}

/// What to do with a connection, or with datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Close it.
    Close,
    /// Answer its requests.
    Http,
    /// Send datagrams back.
    Echo,
}

impl Args {
    /// Those of this process, which ends here if they make no sense.
    pub fn from_env() -> Args {
        let args: Vec<String> = std::env::args().skip(1).collect();
        Args::parse(&args).unwrap_or_else(|| {
            eprintln!("usage: ADDRESS ACCEPTORS close|http|echo [WAY]");
            std::process::exit(2)
        })
    }

    fn parse(args: &[String]) -> Option<Args> {
        let [address, acceptors, mode, rest @ ..] = args else {
            return None;
        };
        let mode = match mode.as_str() {
            "close" => Mode::Close,
            "http" => Mode::Http,
            "echo" => Mode::Echo,
            _ => return None,
        };
        Some(Args {
            address: address.parse().ok()?,
            acceptors: acceptors.parse().ok()?,
            mode,
            way: rest.first().cloned().unwrap_or_default(),
        })
    }
}

/// Tells the runner where to connect.
pub fn listening(address: SocketAddr) {
    eprintln!("listening on {address}");
}

/// An HTTP connection without its socket: bytes go in, answers come out.
pub struct Requests {
    buffer: [u8; 1024],
    filled: usize,
}

/// What to answer, and whether to end the connection afterwards.
pub struct Answer {
    pub bytes: &'static [u8],
    pub last: bool,
}

impl Requests {
    pub fn new() -> Requests {
        Requests {
            buffer: [0; 1024],
            filled: 0,
        }
    }

    /// Where the next bytes go. Empty, so that reading ends, if a request is too long.
    pub fn space(&mut self) -> &mut [u8] {
        &mut self.buffer[self.filled..]
    }

    /// So many have come.
    pub fn add(&mut self, bytes: usize) {
        self.filled += bytes;
    }

    /// The answer to the next request, if all of it is here: up to its blank line. None of the
    /// clients sends a body.
    pub fn take(&mut self) -> Option<Answer> {
        let (mut end, mut last) = (0, false);
        loop {
            let rest = &self.buffer[end..self.filled];
            let line = &rest[..=rest.iter().position(|byte| *byte == b'\n')?];
            end += line.len();
            match line {
                b"\r\n" => break,
                line => last |= line.eq_ignore_ascii_case(b"Connection: close\r\n"),
            }
        }
        self.buffer.copy_within(end..self.filled, 0);
        self.filled -= end;
        let bytes: &[u8] = if last {
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n"
        } else {
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: keep-alive\r\n\r\nok\n"
        };
        Some(Answer { bytes, last })
    }
}

impl Default for Requests {
    fn default() -> Requests {
        Requests::new()
    }
}

/// Answers a client's requests until it wants no more.
pub fn answer(mut client: impl Read + Write) -> io::Result<()> {
    let mut requests = Requests::new();
    loop {
        match client.read(requests.space())? {
            0 => return Ok(()),
            bytes => requests.add(bytes),
        }
        while let Some(answer) = requests.take() {
            client.write_all(answer.bytes)?;
            if answer.last {
                return Ok(());
            }
        }
    }
}

/// Sends every datagram back, one by one.
pub fn echo(socket: &UdpSocket) -> io::Result<()> {
    let mut buffer = vec![0; 65_535];
    loop {
        let (length, from) = socket.recv_from(&mut buffer)?;
        socket.send_to(&buffer[..length], from)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_come_in_any_pieces() {
        let text = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nConnection: close\r\n\r\n";
        for size in 1..text.len() {
            let mut requests = Requests::new();
            let mut last = Vec::new();
            for piece in text.chunks(size) {
                requests.space()[..piece.len()].copy_from_slice(piece);
                requests.add(piece.len());
                while let Some(answer) = requests.take() {
                    last.push(answer.last);
                }
            }
            assert_eq!(last, [false, true], "in pieces of {size}");
        }
    }
}
