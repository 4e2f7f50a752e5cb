//! What the runner asks of the kernel beyond the standard library.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}

/// Moves this thread, and what it starts from now on, into a network of its own: nobody else's
/// ports, and nobody else suffers from the connections in `TIME_WAIT` that a run leaves behind.
/// Needs to be root.
pub(crate) fn own_network() -> io::Result<()> {
    // SAFETY: takes a flag, and touches no memory.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) })?;
    // SAFETY: the next line owns what this one opens.
    let socket = check(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0) })?;
    // SAFETY: the kernel has just opened it for us alone.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: `ifreq` is made of integers and pointers, for which zeros are a value.
    let mut loopback: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in loopback.ifr_name.iter_mut().zip(c"lo".to_bytes()) {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    let up = libc::c_short::try_from(libc::IFF_UP);
    loopback.ifr_ifru.ifru_flags = up.expect("IFF_UP is 1");
    // SAFETY: `loopback` is the structure that this request takes.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const loopback) })?;
    Ok(())
}

/// The port of a socket that is bound to an address with port 0 is chosen by `connect`, which knows
/// the other end: any that is free between these two. `bind` would want one that nobody uses.
pub(crate) fn leave_port_to_connect(socket: &impl AsRawFd) -> io::Result<()> {
    let (on, name) = (1, libc::IP_BIND_ADDRESS_NO_PORT);
    let (value, fd) = ((&raw const on).cast(), socket.as_raw_fd());
    // SAFETY: `on` is readable for the four bytes of an int, which the option takes.
    check(unsafe { libc::setsockopt(fd, libc::IPPROTO_IP, name, value, 4) }).map(drop)
}

/// Has the program end when the thread that starts it does, however that comes about.
pub(crate) fn tied_to_us(command: &mut Command) -> &mut Command {
    let tie = || {
        // SAFETY: takes two integers, and touches no memory.
        check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) }).map(drop)
    };
    // SAFETY: one system call: nothing that a forked child must not do.
    unsafe { command.pre_exec(tie) }
}

/// Ends a child of ours with SIGTERM (with SIGKILL, should it take five seconds) and tells how much
/// CPU time it has used, with its own children.
pub(crate) fn end(child: &mut Child) -> io::Result<Duration> {
    let before = time_of_children()?;
    let pid = libc::pid_t::try_from(child.id()).expect("a process number");
    // SAFETY: takes two integers. The child has not been waited for: the number is still its.
    check(unsafe { libc::kill(pid, libc::SIGTERM) })?;
    let begun = Instant::now();
    while child.try_wait()?.is_none() {
        if begun.elapsed() > Duration::from_secs(5) {
            child.kill()?;
            child.wait()?;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(time_of_children()?.saturating_sub(before))
}

/// CPU time of all children that have ended and been waited for, and of theirs.
fn time_of_children() -> io::Result<Duration> {
    // SAFETY: `rusage` is made of integers, for which zeros are a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: `usage` is what the call fills.
    check(unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage) })?;
    let time = |time: libc::timeval| {
        let [seconds, micros] = [time.tv_sec, time.tv_usec].map(|t| u64::try_from(t).unwrap_or(0));
        Duration::from_secs(seconds) + Duration::from_micros(micros)
    };
    Ok(time(usage.ru_utime) + time(usage.ru_stime))
}
