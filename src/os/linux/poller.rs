//! Waiting on a socket on which others wait too.

use core::ffi::c_int;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::error::{Call, Error, check};

/// Waits until one of two descriptors is readable. Of many that wait for the `shared` one the
/// kernel wakes one: `EPOLLEXCLUSIVE` (Linux 4.5).
#[derive(Debug)]
pub(crate) struct Poller(OwnedFd);

impl Poller {
    pub(crate) fn new(shared: c_int, own: c_int) -> Result<Poller, Error> {
        // SAFETY: takes an integer.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        let fd = check(Call::EpollCreate, fd)?;
        // SAFETY: the kernel has just opened it for us alone.
        let epoll = Poller(unsafe { OwnedFd::from_raw_fd(fd) });
        epoll.add(shared, libc::EPOLLIN | libc::EPOLLEXCLUSIVE)?;
        epoll.add(own, libc::EPOLLIN)?;
        Ok(epoll)
    }

    fn add(&self, fd: c_int, events: c_int) -> Result<(), Error> {
        let mut event = libc::epoll_event {
            #[allow(clippy::cast_sign_loss)] // flags
            events: events as u32,
            u64: fd.unsigned_abs().into(),
        };
        let (epoll, at) = (self.0.as_raw_fd(), &raw mut event);
        // SAFETY: `event` is readable.
        let added = unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, at) };
        check(Call::EpollCtl, added).map(drop)
    }

    /// Returns which of the two are readable; neither if a signal has come.
    pub(crate) fn wait(&self, shared: c_int, own: c_int) -> [bool; 2] {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 2];
        // SAFETY: `events` has room for two.
        let ready = unsafe { libc::epoll_wait(self.0.as_raw_fd(), events.as_mut_ptr(), 2, -1) };
        let ready = &events[..usize::try_from(ready).unwrap_or(0).min(2)];
        let is = |event: &libc::epoll_event, fd: c_int| event.u64 == fd.unsigned_abs().into();
        [shared, own].map(|fd| ready.iter().any(|event| is(event, fd)))
    }
}
