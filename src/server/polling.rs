//! How a thread waits on a listener that other processes hold too, and on every socket of a kernel
//! where a shutdown wakes nobody.

use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use crate::acceptors::{Leave, Next, Seat};
use crate::error::{Call, check};
use crate::listener::Connection;

/// Three: `poll`, `accept`, `close`. For listeners that somebody else holds too, which must not be
/// shut down; and for kernels where that would wake nobody.
pub(crate) struct Polling {
    hung_up: UnixStream,
    inherited: bool,
}

impl Polling {
    /// Leaves when the other end of `hung_up` is closed.
    pub(crate) fn new(hung_up: UnixStream, inherited: bool) -> Polling {
        Polling { hung_up, inherited }
    }
}

impl Next for Polling {
    fn next(&mut self, seat: &Seat) -> Result<Connection, Leave> {
        loop {
            wait(seat.socket.raw(), &self.hung_up, self.inherited)?;
            if let Some(connection) = seat.accept()? {
                return Ok(connection);
            }
        }
    }
}

/// Waits until something may be had from the socket `fd`, or it is time to leave.
pub(crate) fn wait(fd: RawFd, hung_up: &UnixStream, inherited: bool) -> Result<(), Leave> {
    let row = |fd| libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    let mut rows = [row(fd), row(hung_up.as_raw_fd())];
    // SAFETY: two rows, readable and writable; the descriptors are open.
    let result = unsafe { libc::poll(rows.as_mut_ptr(), 2, -1) };
    let [socket, hung_up] = rows;
    let leaving = check(Call::Poll, result).is_ok() && hung_up.revents != 0;
    // What waits on an inherited listener is for those who hold it on.
    if leaving && (inherited || socket.revents == 0) {
        return Err(Leave);
    }
    Ok(())
}
