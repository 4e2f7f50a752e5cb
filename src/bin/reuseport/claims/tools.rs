//! What the claims are tried with: sockets, clients, and waiting with a bound.

use core::ffi::c_int;
use core::net::{Ipv4Addr, SocketAddr};
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};
use core::time::Duration;
use std::io::{self, ErrorKind, Read};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::time::Instant;
use std::{fs, process, thread};

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
pub(super) fn until(what: &str, condition: impl FnMut() -> bool) -> Result<(), Snag> {
    if comes(condition) {
        return Ok(());
    }
    let why = format!("waited {BOUND:?} in vain until {what}");
    Err(Snag::Broken(why))
}

/// Waits until `condition` holds, and returns whether it did.
pub(super) fn comes(mut condition: impl FnMut() -> bool) -> bool {
    let begun = Instant::now();
    while !condition() {
        if begun.elapsed() > BOUND {
            return false;
        }
        thread::sleep(Duration::from_micros(100));
    }
    true
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

/// An address for one client, which no other client here has: so there are ports enough, whatever
/// `net.ipv4.ip_local_port_range` is, and no four-tuple comes twice.
pub(super) fn source() -> SocketAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = process::id().wrapping_mul(4096) + NEXT.fetch_add(1, Relaxed);
    SocketAddr::from((Ipv4Addr::from(0x7F80_0000 | number & 0x7F_FFFF), 0))
}

pub(super) fn client(to: SocketAddr) -> Result<TcpStream, Error> {
    client_from(source(), to)
}

pub(super) fn clients(n: usize, to: SocketAddr) -> Result<Vec<TcpStream>, Error> {
    (0..n).map(|_| client(to)).collect()
}

/// A client whose SYN is sent. It does not wait for an answer.
pub(super) fn begin(to: SocketAddr) -> Result<Listener, Error> {
    let client: Listener = open(sys::SOCK_STREAM | sys::SOCK_NONBLOCK, to.ip())?;
    set(&client, sys::IPPROTO_TCP, libc::TCP_SYNCNT, 6)?; // whatever net.ipv4.tcp_syn_retries is
    bind(&client, source())?;
    _ = connect(&client, to); // EINPROGRESS
    Ok(client)
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

/// Connects `times`: how many each listener got. No more at a time than one queue holds. By the
/// hash one of two gets none of 60 with a chance of 2 (1/2)^60 < 2e-18, one of three with
/// 3 (2/3)^60 < 1e-10.
pub(super) fn who(members: &[Listener], to: SocketAddr, times: usize) -> Result<Vec<usize>, Snag> {
    let at_a_time = room(&members[0], 50)?;
    let (mut counts, mut left) = (vec![0; members.len()], times);
    while left > 0 {
        let now = left.min(at_a_time);
        let _clients = clients(now, to)?;
        let came = drain(members, now)?;
        counts
            .iter_mut()
            .zip(came)
            .for_each(|(count, n)| *count += n);
        left -= now;
    }
    Ok(counts)
}

/// Returns how many connections `listener` can queue, `most` at most.
pub(super) fn room(listener: &Listener, most: usize) -> Result<usize, Snag> {
    let limit = usize::try_from(listener.queue()?.limit)?;
    Ok(limit.saturating_add(1).min(most))
}

/// Waits until so many wait to be accepted.
pub(super) fn queued(listener: &Listener, waiting: usize) -> Result<(), Snag> {
    let waiting = u32::try_from(waiting)?;
    until("they wait in the queue", || {
        listener.queue().is_ok_and(|queue| queue.len == waiting)
    })
}

/// Serves the clients of `members` and refuses those of `others`, until each client has an outcome.
/// Returns how many were served by a member, refused by another listener, and reset.
pub(super) fn fates(
    members: &[Listener],
    others: &[Listener],
    clients: &[TcpStream],
) -> Result<[usize; 3], Snag> {
    let (mut fates, mut known) = ([0; 3], vec![false; clients.len()]);
    clients
        .iter()
        .try_for_each(|client| client.set_nonblocking(true))?;
    until("each client knows", || {
        for member in members {
            core::iter::from_fn(|| member.accept().ok()).for_each(|c| _ = c.send(b"y"));
        }
        for other in others {
            core::iter::from_fn(|| other.accept().ok()).for_each(drop);
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
    aside(|| {
        // SAFETY: takes nothing.
        if unsafe { libc::geteuid() } == 0 {
            // SAFETY: takes three integers. The bare call changes this thread alone, unlike the
            // library's function, and the thread ends with `f`.
            let became = unsafe { libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) };
            if became != 0 {
                let why = "root here may not become another user";
                return Err(Snag::NotHere(why.into()));
            }
        }
        give_up_capabilities()?;
        f()
    })
}

/// Takes all capabilities from this thread: `capset(2)`, for which the C library has no function.
pub(super) fn give_up_capabilities() -> io::Result<()> {
    let header = [0x2008_0522_u32, 0]; // _LINUX_CAPABILITY_VERSION_3, this thread
    let none = [[0_u32; 3]; 2]; // effective, permitted, inheritable: of 64 bits each
    // SAFETY: `header` and `none` are readable as what this version of the call takes. The call
    // writes the header only if it does not know the version, and this one is known since 2.6.26.
    let done = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) };
    if done == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
}

/// Acts as this user where files and sockets are opened, if it may. Returns the user it acts as.
pub(super) fn act_as(user: libc::uid_t) -> Result<libc::uid_t, Snag> {
    let set = |id| {
        // SAFETY: takes an integer. It changes this thread alone.
        libc::uid_t::try_from(unsafe { libc::setfsuid(id) })
    };
    set(user)?;
    // It returns as which user the thread acted. No user has the number -1, so this only asks.
    Ok(set(libc::uid_t::MAX)?)
}

/// Keeps this thread on the CPU that it runs on, and returns that.
pub(super) fn stay_on_this_cpu() -> Result<c_int, Snag> {
    // SAFETY: takes nothing.
    let cpu = unsafe { libc::sched_getcpu() };
    // SAFETY: the set is made of integers, for which zeros are a value.
    let mut only: libc::cpu_set_t = unsafe { core::mem::zeroed() };
    // SAFETY: the set has room for every CPU that the kernel here names.
    unsafe { libc::CPU_SET(usize::try_from(cpu)?, &mut only) };
    let size = size_of_val(&only);
    // SAFETY: the set is readable for its size; 0 is the calling thread.
    let set = check(unsafe { libc::sched_setaffinity(0, size, &raw const only) });
    match set {
        Ok(_) => Ok(cpu),
        Err(error) => Err(Snag::NotHere(format!("sched_setaffinity: {error}"))),
    }
}

/// Runs `f` on a thread of its own.
pub(super) fn aside(f: impl FnOnce() -> Tried + Send) -> Tried {
    let panicked = |_| Err(Snag::Broken("it panicked".into()));
    thread::scope(|scope| {
        let none = |error| Err(Snag::NotHere(format!("no thread can be started: {error}")));
        let started = thread::Builder::new().spawn_scoped(scope, f);
        started.map_or_else(none, |thread| thread.join().unwrap_or_else(panicked))
    })
}

/// Returns the result of a call, or its error.
pub(super) fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

/// Waits until the thread sleeps in the kernel.
pub(super) fn asleep(thread: libc::pid_t) -> Result<(), Snag> {
    let stat = format!("/proc/self/task/{thread}/stat");
    until("the thread sleeps", || {
        fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") S "))
    })
}
