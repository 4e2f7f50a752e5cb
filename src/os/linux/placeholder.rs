//! Closing a UDP socket while a handler may still use its descriptor.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::dup3;
use crate::error::{Call, Error, check};
use crate::listener::Descriptor;

/// A descriptor that is no socket. It takes the number of a socket that has to close before its
/// owner is gone: a later use of the number fails, and cannot reach another file.
#[derive(Debug)]
pub(crate) struct Placeholder(OwnedFd);

impl Placeholder {
    pub(crate) fn new() -> Result<Placeholder, Error> {
        // SAFETY: takes two integers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        let fd = check(Call::EventFd, fd)?;
        // SAFETY: the kernel has just opened it for us alone.
        Ok(Placeholder(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Takes the number of `socket`, which closes the socket: `dup3(2)`.
    ///
    /// No thread waits in the socket: all that did were woken before.
    pub(crate) fn replace(&self, socket: &Descriptor) -> Result<(), Error> {
        // SAFETY: takes three integers. The number stays the owner's, who will close it.
        let fd = unsafe { dup3(self.0.as_raw_fd(), socket.raw(), libc::O_CLOEXEC) };
        check(Call::Dup, fd).map(drop)
    }
}
