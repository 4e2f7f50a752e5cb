//! How a UDP socket leaves its group while a handler may still use its descriptor.

use core::net::SocketAddr;
use core::time::Duration;
use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;

use super::{attach_program, dup3};
use crate::error::{Call, Error, check};
use crate::listener::Descriptor;
use crate::socket::bpf;
use crate::socket::udp::UdpSocket;

/// `linux/membarrier.h`.
const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;

/// How long `membarrier` is waited for. It takes some 20 ms, but a flood of packets can hold it up
/// for a minute.
const LONGEST_BARRIER: Duration = Duration::from_secs(1);

/// Waits until every packet for which the kernel has begun to look for a socket has reached one:
/// `membarrier(2)`, which waits for all processors to leave what they do in the kernel.
///
/// The call cannot be interrupted, so a thread makes it. A lookup takes microseconds: after a
/// second it has ended, too. It is waited for `longest` at most.
pub(crate) fn wait_for_lookups(longest: Duration) {
    let (done, ended) = mpsc::channel();
    let barrier = move || {
        // SAFETY: takes three integers.
        let failed = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
        _ = done.send(failed == 0);
    };
    let started = thread::Builder::new()
        .name("membarrier".into())
        .spawn(barrier);
    let waited = started
        .is_ok()
        .then(|| ended.recv_timeout(LONGEST_BARRIER.min(longest)));
    if !matches!(waited, Some(Ok(true) | Err(RecvTimeoutError::Timeout))) {
        // There is no thread, the kernel lacks it, or is built for undisturbed processors
        // (nohz_full).
        thread::sleep(Duration::from_millis(1));
    }
}

/// Returns whether the kernel may have sent a SYN cookie in this network namespace. It remembers no
/// such handshake, and so lists none.
pub(crate) fn may_have_sent_cookies() -> bool {
    let counters = fs::read_to_string("/proc/thread-self/net/netstat").unwrap_or_default();
    let mut rows = counters.lines().filter(|row| row.starts_with("TcpExt:"));
    let mut row = || rows.next().unwrap_or_default().split(' ');
    let mut counters = row().zip(row());
    counters.find(|(name, _)| *name == "SyncookiesSent") != Some(("SyncookiesSent", "0"))
}

/// A descriptor that is no socket, for kernels on which a connected socket stays in its group
/// (before Linux 6.13). It takes the number of the socket, which closes that: a later use of the
/// number fails, and cannot reach another file.
#[derive(Debug)]
pub(crate) struct Placeholder(Option<OwnedFd>);

impl Placeholder {
    pub(crate) fn new() -> Result<Placeholder, Error> {
        if connecting_leaves() == Ok(true) {
            return Ok(Placeholder(None));
        }
        // SAFETY: takes two integers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        let fd = check(Call::EventFd, fd)?;
        // SAFETY: the kernel has just opened it for us alone.
        Ok(Placeholder(Some(unsafe { OwnedFd::from_raw_fd(fd) })))
    }

    /// Whether a socket leaves its group before it is closed.
    pub(crate) fn is_needless(&self) -> bool {
        self.0.is_none()
    }

    /// Takes the number of `socket`, which closes the socket: `dup3(2)`. No thread uses it any
    /// more.
    pub(crate) fn replace(&self, socket: &Descriptor) -> Result<(), Error> {
        let Some(placeholder) = &self.0 else {
            return Ok(());
        };
        // SAFETY: takes three integers. The number stays the owner's, which will close it.
        let fd = unsafe { dup3(placeholder.as_raw_fd(), socket.raw(), libc::O_CLOEXEC) };
        check(Call::Dup, fd).map(drop)
    }
}

/// Tries on a socket of its own whether one that connects leaves its group: then it cannot have a
/// program.
fn connecting_leaves() -> Result<bool, Error> {
    let socket = UdpSocket::bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    socket.connect(socket.local_addr()?)?;
    let attached = attach_program(&socket.0, &bpf::random(1));
    Ok(attached.map_err(Error::errno) == Err(libc::EINVAL))
}
