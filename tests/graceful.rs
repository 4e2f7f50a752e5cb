//! The program without `std` that Ctrl-C ends with nothing lost: `graceful` in
//! tests/crates/minimal.
#![cfg(all(
    feature = "std",
    target_os = "linux",
    target_env = "gnu",
    target_arch = "x86_64"
))]

#[path = "support/minimal.rs"]
mod minimal;
mod support;

use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use reuseport::{Error, SockAddr, UdpSocket, sys};
use support::{BOUND, LONG, Running, program, reserve, start, visit, wait_until};

/// How many clients are queued when a program is told to end.
const QUEUED: usize = 60;

/// Tries of what a machine that stands still for a while makes impossible.
const TRIES: usize = 20;

/// A program that runs, and the port that it has: no other program gets it before this is dropped.
struct Server {
    child: Running,
    address: SocketAddr,
    _reserved: OwnedFd,
}

impl Server {
    /// `None` where the programs cannot be built.
    fn start(name: &str) -> Option<Server> {
        let built = minimal::build(&minimal::linker()?, "minimal", &[]).join(name);
        let (port, reserved) = reserve();
        let mut command = program(built);
        let child = start(command.arg(port.to_string()).stdout(Stdio::null()));
        support::wait_until_listening(port, 3);
        Some(Server {
            child,
            address: SocketAddr::from(([127, 0, 0, 1], port)),
            _reserved: reserved,
        })
    }

    /// Stops all threads, and returns when they have stopped.
    fn pause(&self) {
        self.child.signal(libc::SIGSTOP);
        let tasks = format!("/proc/{}/task", self.child.pid());
        let stopped = |task: io::Result<fs::DirEntry>| {
            let stat = fs::read_to_string(task.unwrap().path().join("stat")).unwrap();
            stat.contains(") T ")
        };
        wait_until("it has stopped", || {
            fs::read_dir(&tasks).unwrap().all(stopped)
        });
    }

    /// Ends the program by this signal while clients are queued. Returns what each has read.
    fn end(&self, signal: i32) -> Vec<io::Result<String>> {
        self.pause();
        let connect = |_| TcpStream::connect(self.address).unwrap();
        let clients: Vec<_> = (0..QUEUED).map(connect).collect();
        self.child.signal(signal);
        self.child.signal(libc::SIGCONT);
        clients.into_iter().map(answer).collect()
    }
}

/// What a client reads until the server closes.
fn answer(mut client: TcpStream) -> io::Result<String> {
    client.set_read_timeout(Some(BOUND))?;
    let mut answer = String::new();
    client.read_to_string(&mut answer).map(|_| answer)
}

fn is_answer(read: &io::Result<String>) -> bool {
    read.as_ref()
        .is_ok_and(|line| line.starts_with("acceptor "))
}

#[test]
fn program_has_at_most_40_lines() {
    let path = format!("{}/src/bin/graceful/main.rs", minimal::PACKAGE);
    let lines = fs::read_to_string(path).unwrap().lines().count();
    assert!(lines <= 40, "{lines} lines");
}

#[test]
fn program_ended_by_a_signal_answers_queued_clients() {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let Some(mut server) = Server::start("graceful") else {
            return;
        };
        assert!(visit(server.address).starts_with("acceptor "));

        let answers = server.end(signal);

        assert!(answers.iter().all(is_answer), "{answers:?}");
        assert!(server.child.wait().success());
    }
}

#[test]
fn plain_program_ended_by_a_signal_resets_queued_clients() {
    let Some(server) = Server::start("reuseport") else {
        return;
    };

    let answers = server.end(libc::SIGINT);

    assert!(answers.iter().all(io::Result::is_err), "{answers:?}");
}

/// A client whose socket drops what the server sends, so that its handshake stays under way.
fn half_open(address: SocketAddr) -> Result<TcpStream, Error> {
    let kind = sys::SOCK_STREAM | sys::SOCK_NONBLOCK | sys::SOCK_CLOEXEC;
    // SAFETY: the next line owns what this one opens.
    let fd = unsafe { sys::socket(sys::AF_INET, kind, 0) }?;
    // SAFETY: opened by the line above.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let socket = UdpSocket::from(fd); // for its filter, which is any socket's
    socket.attach_drop_filter()?;
    let to = SockAddr::from(address);
    // SAFETY: `to` is readable for its own length.
    let done = unsafe { libc::connect(socket.as_raw_fd(), to.as_ptr().cast(), to.len()) };
    assert_eq!(done, -1, "the handshake has ended");
    let client = TcpStream::from(OwnedFd::from(socket));
    client.set_nonblocking(false).unwrap();
    Ok(client)
}

/// Detaches the filter.
fn complete(client: &TcpStream) {
    let (level, none) = (sys::SOL_SOCKET, 0_i32);
    let value = (&raw const none).cast();
    // SAFETY: `none` is readable for its four bytes; the option takes no value.
    unsafe { sys::setsockopt(client.as_raw_fd(), level, libc::SO_DETACH_FILTER, value, 4) }
        .unwrap();
}

#[test]
fn handshakes_under_way_are_served() {
    for _ in 0..TRIES {
        let Some(mut server) = Server::start("graceful") else {
            return;
        };
        let begun = Instant::now();
        let clients: Result<Vec<_>, _> = (0..20).map(|_| half_open(server.address)).collect();
        let clients = match clients {
            // Recent kernels give a TCP socket a filter only with CAP_NET_ADMIN.
            Err(error) if error.errno() == libc::EPERM => return support::skip("no filter"),
            clients => clients.unwrap(),
        };
        server.child.signal(libc::SIGINT);
        wait_until("it refuses clients", || {
            TcpStream::connect(server.address).is_err()
        });

        // The kernel sends each SYN-ACK again after 1 s, and the program waits for 1.2 s.
        clients.iter().for_each(complete);
        let is_in_time = begun.elapsed() < Duration::from_secs(1);

        let answers: Vec<_> = clients.into_iter().map(answer).collect();
        assert!(server.child.wait().success());
        if is_in_time {
            assert!(answers.iter().all(is_answer), "{answers:?}");
            return;
        }
    }
    panic!("this machine was too late for the SYN-ACKs in each of {TRIES} tries");
}

/// Puts a server under load, ends it, and returns whether it refused clients before it ended.
fn refuses_while_it_waits(server: &mut Server) -> bool {
    let (served, address) = (AtomicUsize::new(0), server.address);
    let begun = Instant::now();
    let load = || {
        while let Ok(client) = TcpStream::connect(address) {
            assert!(begun.elapsed() < LONG, "it does not stop");
            let read = answer(client);
            assert!(is_answer(&read), "{read:?}");
            served.fetch_add(1, SeqCst);
        }
    };
    let listening = thread::scope(|scope| {
        let mut clients = [(); 4].map(|()| scope.spawn(load)).into_iter();
        wait_until("it serves", || served.load(SeqCst) > 100);
        server.child.signal(libc::SIGINT);
        wait_until("it refuses clients", || {
            TcpStream::connect(address).is_err()
        });
        let table = fs::read_to_string("/proc/thread-self/net/tcp").unwrap();
        clients
            .try_for_each(thread::ScopedJoinHandle::join)
            .expect("all are answered");
        table
            .lines()
            .any(|line| line.contains(&format!(":{:04X} 00000000:0000 0A ", address.port())))
    });
    assert!(server.child.wait().success());
    listening
}

#[test]
fn clients_are_answered_until_they_are_refused() {
    for _ in 0..TRIES {
        let Some(mut server) = Server::start("graceful") else {
            return;
        };
        if refuses_while_it_waits(&mut server) {
            return;
        }
    }
    panic!("new clients are not refused before the listeners are shut down");
}

#[test]
fn second_signal_ends_the_program_at_once() {
    let Some(mut server) = Server::start("graceful") else {
        return;
    };
    // Both are pending when it goes on; of two, `sigwait` takes SIGINT first.
    for signal in [libc::SIGSTOP, libc::SIGINT, libc::SIGTERM, libc::SIGCONT] {
        server.child.signal(signal);
    }

    let ended = server.child.wait();

    assert_eq!(ended.signal(), Some(libc::SIGTERM), "{ended}");
}
