//! The process that hands a group over to this one.

use core::ffi::c_int;
use core::sync::atomic::{AtomicUsize, Ordering::AcqRel, Ordering::Acquire};
use std::io::Write;
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::process;
use std::sync::Arc;

/// The old process, seen through the socket between the two. Each group that it hands over has one.
///
/// Dropping it before [`notify`](Self::notify) shuts the socket down, and the old process treats
/// that as a failed start.
#[derive(Debug)]
pub(crate) struct OldProcess {
    socket: Arc<(UnixStream, AtomicUsize)>,
    notified: bool,
    /// The pid of the process that may end it: not that of a child forked without `exec`.
    process: u32,
}

/// What is known of the kernel's list once the old process has left it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// The members of this process are in the order in which they were passed.
    InOrder,
    /// Their order is not known: a member has failed meanwhile, or the old process has ended before
    /// it could leave in good order.
    InAnyOrder,
}

impl OldProcess {
    /// What it writes when it has left [in order](Left::InOrder). It writes another byte otherwise.
    pub(crate) const IN_ORDER: u8 = b'!';

    /// What this process writes when it serves.
    pub(crate) const READY: u8 = b'!';

    /// Makes one for each of `groups`.
    pub(crate) fn share(socket: UnixStream, groups: usize) -> impl Iterator<Item = OldProcess> {
        let socket = Arc::new((socket, AtomicUsize::new(groups)));
        let all = core::iter::repeat_n(socket, groups);
        all.map(|socket| OldProcess {
            socket,
            notified: false,
            process: process::id(),
        })
    }

    /// Notes that the group is served. The last one notifies the old process.
    pub(crate) fn notify(&mut self) {
        let (socket, waiting) = &*self.socket;
        if !core::mem::replace(&mut self.notified, true) && waiting.fetch_sub(1, AcqRel) == 1 {
            // It fails if the old process has ended.
            _ = { socket }.write_all(&[OldProcess::READY]);
        }
    }

    /// Returns `None` while the old process has members in the kernel's group: until it has written
    /// that its last one has left, or has ended.
    pub(crate) fn left(&self) -> Option<Left> {
        const LOOK: c_int = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        let (fd, mut byte) = (self.socket.0.as_raw_fd(), [0_u8]);
        // SAFETY: `byte` is writable for the one byte stated.
        let length = unsafe { libc::recv(fd, byte.as_mut_ptr().cast(), 1, LOOK) };
        let error = std::io::Error::last_os_error().kind();
        match length {
            1 if byte == [OldProcess::IN_ORDER] => Some(Left::InOrder),
            -1 if error == std::io::ErrorKind::WouldBlock => None,
            _ => Some(Left::InAnyOrder),
        }
    }
}

impl Drop for OldProcess {
    fn drop(&mut self) {
        let (socket, waiting) = &*self.socket;
        let fails = !self.notified && waiting.load(Acquire) > 0;
        if fails && process::id() == self.process {
            _ = socket.shutdown(Shutdown::Both);
        }
    }
}
