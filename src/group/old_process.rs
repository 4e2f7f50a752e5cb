//! The process that hands a group over to this one.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

/// The old process, seen through the socket between the two.
///
/// Dropping it before [`notify`](Self::notify) closes the socket, and the old process treats that
/// as a failed start.
#[derive(Debug)]
pub(crate) struct OldProcess(UnixStream);

impl OldProcess {
    pub(crate) fn new(socket: UnixStream) -> OldProcess {
        OldProcess(socket)
    }

    /// Notifies the old process that this one serves.
    pub(crate) fn notify(&mut self) {
        // It fails if the old process has ended.
        _ = self.0.write_all(b"!");
    }

    /// Returns whether the old process still has members in the kernel's group: until it has
    /// written that its last one has left, or has ended.
    pub(crate) fn is_leaving(&self) -> bool {
        let read = self
            .0
            .set_nonblocking(true)
            .and_then(|()| (&self.0).read(&mut [0]));
        matches!(read, Err(error) if error.kind() == ErrorKind::WouldBlock)
    }
}
