//! How a worker waits on a socket that other processes hold too, and on every socket of a kernel
//! where a shutdown wakes no thread: `poll(2)`, with a pipe on which it is woken.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use crate::acceptors::Stopped;
use crate::error::{Call, Error, check};

/// Wakes all workers of one member, permanently: one end hangs up, and all poll the other.
#[derive(Debug)]
pub(super) struct WakePipe {
    near: UnixStream,
    far: UnixStream,
}

impl WakePipe {
    pub(super) fn new() -> Result<WakePipe, Error> {
        let errno = |error: io::Error| error.raw_os_error().unwrap_or_default();
        let pair = UnixStream::pair();
        let (near, far) = pair.map_err(|error| Error::new(Call::SocketPair, errno(error)))?;
        Ok(WakePipe { near, far })
    }

    /// Has every worker that [waits](Self::wait) here return, and every one that will.
    pub(super) fn wake(&self) {
        _ = self.near.shutdown(Shutdown::Both);
    }

    /// Waits until the socket `fd` is readable, or the workers are woken. What is queued on an
    /// `inherited` socket is left to the processes that hold it.
    pub(super) fn wait(&self, fd: RawFd, inherited: bool) -> Result<(), Stopped> {
        let entry = |fd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        };
        let mut entries = [entry(fd), entry(self.far.as_raw_fd())];
        // SAFETY: two entries, readable and writable; the descriptors are open.
        let result = unsafe { libc::poll(entries.as_mut_ptr(), 2, -1) };
        let [socket, pipe] = entries;
        let woken = check(Call::Poll, result).is_ok() && pipe.revents != 0;
        if woken && (inherited || socket.revents == 0) {
            return Err(Stopped);
        }
        Ok(())
    }
}
