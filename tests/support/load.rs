//! Clients that connect as fast as they can, send a byte, and want the answer and the end; and a
//! count of every one that did not get them.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    missing_debug_implementations
)]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::FromRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use reuseport::{Connection, Server};

use super::support::{BOUND, sent_again};

/// A SYN that was dropped is sent again after a second.
pub const LATE: Duration = Duration::from_millis(900);

#[derive(Default, Debug)]
pub struct Report {
    pub made: usize,
    /// What became of the others, and how often.
    pub lost: BTreeMap<String, usize>,
    /// Who took as long as [`LATE`], and had to send a packet again. Without that it was the
    /// machine that had no time for them.
    pub late: usize,
    pub longest: Duration,
}

impl Report {
    pub fn lost(&self) -> usize {
        self.lost.values().sum()
    }

    pub fn add(&mut self, other: Report) {
        self.made += other.made;
        self.late += other.late;
        self.longest = self.longest.max(other.longest);
        for (what, times) in other.lost {
            *self.lost.entry(what).or_default() += times;
        }
    }

    /// Says what so many retirements have proved, at 95 %: 0 lost in N is a rate below 3/N.
    pub fn say(&self, what: &str, retirements: usize) {
        let lost = self.lost();
        let below = [3.0, 4.8].get(lost).map_or(String::new(), |most| {
            let retirements = u32::try_from(retirements).expect("not that many");
            let rate = most / f64::from(retirements);
            format!("; below {rate:.5} a retirement (95 %)")
        });
        println!("{what}: {lost} lost in {retirements} retirements{below}: {self:?}");
    }
}

pub struct Load {
    end: Arc<AtomicBool>,
    made: Arc<AtomicUsize>,
    lost: Arc<AtomicUsize>,
    clients: Vec<JoinHandle<Report>>,
}

impl Load {
    pub fn start(address: SocketAddr, clients: usize) -> Load {
        Load::start_in(address, clients, || {})
    }

    /// `enter` runs first in each client's thread: to enter a network namespace.
    pub fn start_in(
        address: SocketAddr,
        clients: usize,
        enter: impl Fn() + Clone + Send + 'static,
    ) -> Load {
        let end = Arc::new(AtomicBool::new(false));
        let (made, lost) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let client = |_| {
            let (end, enter) = (Arc::clone(&end), enter.clone());
            let (made, lost) = (Arc::clone(&made), Arc::clone(&lost));
            let thread = thread::Builder::new().stack_size(256 * 1024);
            let run = move || {
                enter();
                client(address, &end, &made, &lost)
            };
            thread.spawn(run).unwrap()
        };
        let clients = (0..clients).map(client).collect();
        Load {
            end,
            made,
            lost,
            clients,
        }
    }

    /// How many have been served so far.
    pub fn made(&self) -> usize {
        self.made.load(Relaxed)
    }

    /// How many were lost so far, but for those that were refused at once.
    pub fn lost(&self) -> usize {
        self.lost.load(Relaxed)
    }

    pub fn stop(self) -> Report {
        self.end.store(true, Relaxed);
        let mut all = Report::default();
        for client in self.clients {
            all.add(client.join().unwrap());
        }
        all
    }
}

pub fn is_refused(what: &str) -> bool {
    what.ends_with("refused (os error 111)")
}

fn client(address: SocketAddr, end: &AtomicBool, made: &AtomicUsize, lost: &AtomicUsize) -> Report {
    let mut report = Report::default();
    while !end.load(Relaxed) {
        let begun = Instant::now();
        let visited = visit(address);
        let took = begun.elapsed();
        report.longest = report.longest.max(took);
        match visited {
            Ok(again) => {
                report.made += 1;
                made.fetch_add(1, Relaxed);
                report.late += usize::from(again && took >= LATE);
            }
            Err(what) => {
                lost.fetch_add(usize::from(!is_refused(&what)), Relaxed);
                *report.lost.entry(what).or_default() += 1;
            }
        }
    }
    report
}

/// Clients send their first byte with the SYN: TCP Fast Open.
pub static FAST_OPEN: AtomicBool = AtomicBool::new(false);

/// The kernel connects when the first byte is written.
fn connect_fast(address: SocketAddr) -> std::io::Result<TcpStream> {
    let to = reuseport::SockAddr::from(address);
    // SAFETY: takes three integers.
    let fd = unsafe { libc::socket(to.family(), libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the kernel has just opened it for us alone.
    let stream = unsafe { TcpStream::from_raw_fd(fd) };
    let (on, level, name) = (1, libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT);
    // SAFETY: the option takes four bytes, which are readable.
    unsafe { reuseport::sys::setsockopt(fd, level, name, (&raw const on).cast(), 4) }?;
    // SAFETY: the address is readable for its own length.
    let connected = unsafe { libc::connect(fd, to.as_ptr().cast(), to.len()) };
    if connected != 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(stream)
}

/// Whether a packet had to be sent again.
fn visit(address: SocketAddr) -> Result<bool, String> {
    let name = |call: &'static str| move |error: std::io::Error| format!("{call}: {error}");
    // Who is lost is reset, or not answered for ever: no busy machine takes that long.
    let limit = BOUND;
    let connected = if FAST_OPEN.load(Relaxed) {
        connect_fast(address)
    } else {
        TcpStream::connect_timeout(&address, limit)
    };
    let mut stream = connected.map_err(name("connect"))?;
    stream
        .set_read_timeout(Some(limit))
        .map_err(name("timeout"))?;
    stream.write_all(b"?").map_err(name("write"))?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).map_err(name("read"))?;
    if answer == b"!" {
        Ok(sent_again(&stream))
    } else {
        Err(format!("answered {answer:?}"))
    }
}

/// The server's part: reads the client's byte and answers it.
pub fn answer(connection: &Connection) {
    if connection.recv(&mut [0]) == Ok(1) {
        _ = connection.send(b"!");
    }
}

/// Replaces members, add first, the oldest but `kept` first, while `goes_on`, which is told how
/// many have left. How long each retirement took.
pub fn churn(
    server: &Server,
    kept: usize,
    mut goes_on: impl FnMut(usize) -> bool,
) -> Vec<Duration> {
    let mut took = Vec::new();
    while goes_on(took.len()) {
        server.add().unwrap();
        let mut ids: Vec<_> = server
            .members()
            .iter()
            .map(|member| member.stats.id)
            .collect();
        ids.sort_unstable();
        let begun = Instant::now();
        let count = server.retire(ids[kept]).unwrap();
        took.push(begun.elapsed());
        assert!(
            !count.running && count.error.is_none() && count.panicked == 0,
            "{count:?}"
        );
    }
    took
}
