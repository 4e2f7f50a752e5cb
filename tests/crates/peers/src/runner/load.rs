//! The load generators: our own for connections that are closed at once and for datagrams, wrk for
//! HTTP.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use crate::servers::Work;
use crate::system;

/// What the clients have got.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) served: u64,
    pub(crate) seconds: f64,
    /// What became of the others, and how often.
    pub(crate) errors: BTreeMap<String, u64>,
}

impl Seen {
    pub(crate) fn rate(&self) -> f64 {
        #[allow(clippy::cast_precision_loss)] // far below 2^52
        let served = self.served as f64;
        served / self.seconds
    }
}

/// `clients` threads that connect and read to the end, each as fast as it can.
///
/// They read to the end before they close: then it is the server's side that stays behind in
/// `TIME_WAIT`, and the client's port is free at once. They send nothing: a server that closes
/// without having read it would reset the connection.
pub(crate) fn close(address: SocketAddr, clients: u8, duration: Duration) -> Seen {
    all(clients, duration, 1, move |client| {
        // An address of its own for each, so that none waits for a free port.
        visit((Ipv4Addr::new(127, 0, 1, 1 + client), 0).into(), address)
    })
}

/// `clients` threads that send bursts of datagrams.
pub(crate) fn echo(address: SocketAddr, clients: u8, duration: Duration) -> Seen {
    all(clients, duration, u64::from(BURST), move |_| burst(address))
}

/// How many datagrams a client sends before it waits for the answers.
const BURST: u8 = 8;

/// Sends them from a port of their own, so that the hash has many to choose by, and waits until all
/// have come back. One that is dropped is an error.
pub(crate) fn burst(to: SocketAddr) -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    for number in 0..BURST {
        socket.send(&[number])?;
    }
    for _ in 0..BURST {
        socket.recv(&mut [0; 16])?;
    }
    Ok(())
}

/// `clients` threads that do `act` over and over; each time that it succeeds is `worth` so much.
fn all(
    clients: u8,
    duration: Duration,
    worth: u64,
    act: impl Fn(u8) -> io::Result<()> + Copy + Send + 'static,
) -> Seen {
    let end = Arc::new(AtomicBool::new(false));
    let (done, arrivals) = mpsc::channel();
    let begun = Instant::now();
    for client in 0..clients {
        let (end, done) = (Arc::clone(&end), done.clone());
        thread::spawn(move || {
            let mut seen = Seen::default();
            while !end.load(Relaxed) {
                match act(client) {
                    Ok(()) => seen.served += worth,
                    Err(error) => *seen.errors.entry(error.to_string()).or_default() += 1,
                }
            }
            _ = done.send(seen);
        });
    }
    drop(done);
    thread::sleep(duration);
    end.store(true, Relaxed);
    let mut all = Seen {
        seconds: begun.elapsed().as_secs_f64(),
        ..Seen::default()
    };
    for _ in 0..clients {
        match arrivals.recv_timeout(Duration::from_secs(10)) {
            Ok(seen) => {
                all.served += seen.served;
                for (what, times) in seen.errors {
                    *all.errors.entry(what).or_default() += times;
                }
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                *all.errors.entry("client never served".into()).or_default() += 1;
                break; // the server will be ended, and with it their waiting
            }
        }
    }
    all
}

fn visit(from: SocketAddr, to: SocketAddr) -> io::Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    system::leave_port_to_connect(&socket)?;
    socket.bind(&from.into())?;
    socket.connect(&to.into())?;
    match TcpStream::from(socket).read(&mut [0; 16])? {
        0 => Ok(()),
        _ => Err(io::Error::other("sent something")),
    }
}

/// wrk, as long as asked for, in whole seconds.
pub(crate) fn wrk(
    wrk: &Path,
    address: SocketAddr,
    clients: u8,
    duration: Duration,
    work: Work,
) -> Seen {
    let mut command = Command::new(wrk);
    let seconds = duration.as_secs().max(1);
    let threads = thread::available_parallelism().map_or(1, |cores| cores.get().min(2));
    command.args([
        &format!("-t{threads}"),
        &format!("-c{clients}"),
        &format!("-d{seconds}"),
    ]);
    if work == Work::OneRequest {
        command.args(["-H", "Connection: close"]);
    }
    command.arg(format!("http://{address}/"));
    let output = system::tied_to_us(&mut command).output().expect("wrk runs");
    let text = String::from_utf8_lossy(&output.stdout);
    parse(&text).unwrap_or_else(|| panic!("wrk: {:?}: {text}", output.status))
}

/// What wrk prints, such as `  31415 requests in 1.00s, 1.53MB read`.
fn parse(text: &str) -> Option<Seen> {
    let mut seen = Seen::default();
    for line in text.lines().map(str::trim) {
        if let Some((requests, rest)) = line.split_once(" requests in ") {
            seen.served = requests.parse().ok()?;
            seen.seconds = rest.split_once("s,")?.0.parse().ok()?;
        } else if let Some(errors) = line.strip_prefix("Socket errors: ") {
            for error in errors.split(", ") {
                let (what, times) = error.split_once(' ')?;
                let times = times.parse().ok()?;
                if times > 0 {
                    seen.errors.insert(what.to_owned(), times);
                }
            }
        } else if let Some(times) = line.strip_prefix("Non-2xx or 3xx responses: ") {
            seen.errors.insert("status".to_owned(), times.parse().ok()?);
        }
    }
    (seen.seconds > 0.0).then_some(seen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_wrk_says() {
        let seen = parse(
            "Running 1s test @ http://127.0.0.1:3000/\n  2 threads and 8 connections\n\
             \x20 31415 requests in 1.10s, 1.53MB read\n\
             \x20 Socket errors: connect 0, read 3, write 0, timeout 1\n\
             Requests/sec:  28559.00\n",
        );
        let seen = seen.expect("it is wrk's");
        assert_eq!(
            (seen.served, seen.seconds.to_string()),
            (31415, "1.1".to_owned())
        );
        let errors = seen
            .errors
            .iter()
            .map(|(what, times)| (what.as_str(), *times));
        assert_eq!(errors.collect::<Vec<_>>(), [("read", 3), ("timeout", 1)]);
    }
}
