//! How a worker waits on a socket that other processes hold too, and on every socket of a kernel
//! where a shutdown wakes no thread: with a pipe on which it is woken.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;
use std::thread::sleep;

use super::drain::POLL_INTERVAL;
use crate::acceptors::Stopped;
use crate::error::{Call, Error, check};
use crate::os;

/// Wakes all workers of one member, permanently: one end hangs up, and all wait for the other.
#[derive(Debug)]
pub(super) struct WakePipe {
    near: UnixStream,
    far: UnixStream,
    /// Made by the first worker that waits; none where it cannot be made.
    poller: OnceLock<Option<os::Poller>>,
}

impl WakePipe {
    pub(super) fn new() -> Result<WakePipe, Error> {
        let errno = |error: io::Error| error.raw_os_error().unwrap_or_default();
        let pair = UnixStream::pair();
        let (near, far) = pair.map_err(|error| Error::new(Call::SocketPair, errno(error)))?;
        let poller = OnceLock::new();
        Ok(WakePipe { near, far, poller })
    }

    /// Has every worker that [waits](Self::wait) here return, and every one that will.
    pub(super) fn wake(&self) {
        _ = self.near.shutdown(Shutdown::Both);
    }

    /// Waits until the socket `fd` is readable, or the workers are woken. What is queued on an
    /// `inherited` socket is left to the processes that hold it.
    pub(super) fn wait(&self, fd: RawFd, inherited: bool) -> Result<(), Stopped> {
        let pipe = self.far.as_raw_fd();
        let make = || os::Poller::new(fd, pipe).ok();
        let [readable, woken] = match self.poller.get_or_init(make) {
            Some(poller) => poller.wait(fd, pipe),
            None => poll(fd, pipe),
        };
        if woken && (inherited || !readable) {
            return Err(Stopped);
        }
        if !readable {
            // A signal, or a policy that refuses the call again and again.
            sleep(POLL_INTERVAL);
        }
        Ok(())
    }
}

/// Waits until one of two descriptors is readable, and returns which are. All that wait for a
/// socket are woken.
fn poll(fd: RawFd, pipe: RawFd) -> [bool; 2] {
    let mut entries = [fd, pipe].map(|fd| libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    });
    // SAFETY: two entries, readable and writable; the descriptors are open.
    let result = unsafe { libc::poll(entries.as_mut_ptr(), 2, -1) };
    entries.map(|entry| check(Call::Poll, result).is_ok() && entry.revents != 0)
}
