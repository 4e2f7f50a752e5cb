//! What the claims are tried with: sockets, clients, and waiting with a bound.

use core::ffi::c_int;
use core::net::SocketAddr;
use core::time::Duration;
use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::time::Instant;
use std::{fs, thread};

use reuseport::steering::Instruction;
use reuseport::{Call, Error, Listener, SockAddr, sys};

pub(super) use super::sockets::{REFUSED, any_port, bind, listen, open, told};
use super::{Snag, Tried};

/// The longest wait for anything that must happen.
pub(super) const BOUND: Duration = Duration::from_secs(10);
/// The wait for what must not happen.
pub(super) const A_WHILE: Duration = Duration::from_millis(300);
pub(super) const NOBODY: libc::uid_t = 65534;

/// Waits until `condition` holds.
pub(super) fn until(what: &str, mut condition: impl FnMut() -> bool) -> Result<(), Snag> {
    let begun = Instant::now();
    while !condition() {
        if begun.elapsed() > BOUND {
            return Err(Snag::Broken(format!(
                "waited {BOUND:?} in vain until {what}"
            )));
        }
        thread::sleep(Duration::from_micros(100));
    }
    Ok(())
}

/// `setsockopt(2)`. A value that the option does not take is an error, no more.
pub(super) fn set<T: Copy>(
    fd: &impl AsRawFd,
    level: c_int,
    name: c_int,
    value: T,
) -> Result<(), Error> {
    let len = u32::try_from(size_of::<T>()).unwrap_or(0);
    let value = (&raw const value).cast();
    // SAFETY: `value` is readable for its own length, and the kernel copies it.
    unsafe { sys::setsockopt(fd.as_raw_fd(), level, name, value, len) }
}

pub(super) fn connect(fd: &impl AsRawFd, address: SocketAddr) -> Result<(), Error> {
    let address = SockAddr::from(address);
    // SAFETY: `address` is readable for its own length.
    match unsafe { libc::connect(fd.as_raw_fd(), address.as_ptr().cast(), address.len()) } {
        0 => Ok(()),
        _ => Err(Error::last(Call::Connect)),
    }
}

/// Connects from an address and port of the caller's choice; port 0 is any. It closes by a reset:
/// nothing lingers, and the same port will do again at once.
pub(super) fn client_from(from: SocketAddr, to: SocketAddr) -> Result<TcpStream, Error> {
    let client = open::<TcpStream>(sys::SOCK_STREAM, from.ip())?;
    let reset = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    let seconds = libc::timeval {
        tv_sec: 10,
        tv_usec: 0,
    };
    set(&client, sys::SOL_SOCKET, libc::SO_LINGER, reset)?;
    set(&client, sys::SOL_SOCKET, libc::SO_SNDTIMEO, seconds)?; // bounds connect, too
    set(&client, sys::SOL_SOCKET, sys::SO_REUSEADDR, 1)?;
    set(&client, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)?;
    bind(&client, from)?;
    connect(&client, to)?;
    Ok(client)
}

pub(super) fn client(to: SocketAddr) -> Result<TcpStream, Error> {
    client_from(any_port(), to)
}

pub(super) fn clients(n: usize, to: SocketAddr) -> Result<Vec<TcpStream>, Error> {
    (0..n).map(|_| client(to)).collect()
}

/// One more listener on `address`, as the C program makes it; it does not block.
pub(super) fn member(address: impl Into<SocketAddr>) -> Result<Listener, Error> {
    Listener::options().nonblocking(true).bind(address)
}

pub(super) fn group(n: usize) -> Result<(Vec<Listener>, SocketAddr), Error> {
    let mut members = vec![member(any_port())?];
    let address = members[0].local_addr()?;
    for _ in 1..n {
        members.push(member(address)?);
    }
    Ok((members, address))
}

/// Accepts until `total` are in: how many each listener had.
pub(super) fn drain(members: &[Listener], total: usize) -> Result<Vec<usize>, Snag> {
    let mut counts = vec![0; members.len()];
    until("all are accepted", || {
        for (member, count) in members.iter().zip(&mut counts) {
            *count += core::iter::from_fn(|| member.accept().ok()).count();
        }
        counts.iter().sum::<usize>() == total
    })?;
    Ok(counts)
}

/// Connects `times`: how many each listener got. By the hash one of two gets none of 60 with a
/// chance of 2 (1/2)^60 < 2e-18, one of three with 3 (2/3)^60 < 1e-10.
pub(super) fn who(members: &[Listener], to: SocketAddr, times: usize) -> Result<Vec<usize>, Snag> {
    let _clients = clients(times, to)?;
    drain(members, times)
}

/// Waits until so many wait to be accepted.
pub(super) fn queued(listener: &Listener, waiting: u32) -> Result<(), Snag> {
    until("they wait in the queue", || {
        listener.queue().is_ok_and(|queue| queue.len == waiting)
    })
}

/// Serves whoever comes to `members`, until each client knows what became of it: served by them,
/// served by another, reset.
pub(super) fn fates(members: &[Listener], clients: &[TcpStream]) -> Result<[usize; 3], Snag> {
    let (mut fates, mut known) = ([0; 3], vec![false; clients.len()]);
    clients
        .iter()
        .try_for_each(|client| client.set_nonblocking(true))?;
    until("each client knows", || {
        for member in members {
            core::iter::from_fn(|| member.accept().ok()).for_each(|c| _ = c.send(b"y"));
        }
        for (mut client, known) in clients.iter().zip(&mut known).filter(|(_, known)| !**known) {
            let fate = match client.read(&mut [0]) {
                Ok(read) => 1 - read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                Err(_) => 2,
            };
            (fates[fate], *known) = (fates[fate] + 1, true);
        }
        fates.iter().sum::<usize>() == clients.len()
    })?;
    Ok(fates)
}

/// The steering program that returns `index`, whatever comes.
pub(super) const fn always(index: u32) -> [Instruction; 1] {
    [instruction(0x06, index)] // BPF_RET | BPF_K
}

pub(super) const fn instruction(code: u16, k: u32) -> Instruction {
    let (if_true, if_false) = (0, 0);
    Instruction {
        code,
        if_true,
        if_false,
        k,
    }
}

/// Runs `f` with neither user nor capabilities of root: on a thread of its own, for credentials
/// are each thread's.
pub(super) fn as_nobody(f: impl FnOnce() -> Tried + Send) -> Tried {
    // SAFETY: takes nothing.
    if unsafe { libc::geteuid() } != 0 {
        return f();
    }
    aside(|| {
        // SAFETY: takes three integers. The bare call changes this thread alone, unlike the
        // library's function, and the thread ends with `f`.
        match unsafe { libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) } {
            0 => f(),
            _ => Err(Snag::NotHere(
                "root here may not become another user".into(),
            )),
        }
    })
}

/// Runs `f` on a thread of its own.
pub(super) fn aside(f: impl FnOnce() -> Tried + Send) -> Tried {
    let panicked = |_| Err(Snag::Broken("it panicked".into()));
    thread::scope(|scope| scope.spawn(f).join().unwrap_or_else(panicked))
}

/// Waits until the thread sleeps in the kernel.
pub(super) fn asleep(thread: libc::pid_t) -> Result<(), Snag> {
    let stat = format!("/proc/self/task/{thread}/stat");
    until("the thread sleeps", || {
        fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") S "))
    })
}

/// Whether the kernel is as new as that.
pub(super) fn since(major: u32, minor: u32) -> Result<(), Snag> {
    let text = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = text
        .split(['.', '-'])
        .map_while(|word| word.trim().parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(x), Some(y)) if (x, y) < (major, minor) => {
            let why = format!("Linux does so since {major}.{minor}, and this is {x}.{y}");
            Err(Snag::NotHere(why))
        }
        _ => Ok(()),
    }
}
