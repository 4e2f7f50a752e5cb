//! The options of each member's socket.

use core::ffi::c_int;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::GroupOptions;
use crate::error::{Call, Error};
use crate::socket::options::{DebugOpaque, Options};

impl<P> GroupOptions<P> {
    /// Sets an option of each member's socket.
    fn set(mut self, change: impl FnOnce(Options<'_, P>) -> Options<'_, P>) -> GroupOptions<P> {
        self.socket = change(Options::with(self.socket)).settings;
        self
    }

    /// Sets whether the sockets of further members block: not where the workers poll.
    pub(crate) fn nonblocking(self, on: bool) -> GroupOptions<P> {
        self.set(|socket| socket.nonblocking(on))
    }

    /// The options of each member's socket.
    pub(crate) fn socket_options(&self) -> Options<'_, P> {
        let mut options = Options::with(self.socket);
        options.device = self.device.as_deref().map(DebugOpaque);
        match &self.before_bind {
            Some(DebugOpaque(hook)) => options.before_bind(&**hook),
            None => options,
        }
    }

    /// Sets `IPV6_V6ONLY` on each member, as [`Options::only_v6`].
    pub fn only_v6(self, on: bool) -> GroupOptions<P> {
        self.set(|socket| socket.only_v6(on))
    }

    /// Sets `SO_RCVBUF` on each member, in bytes, as [`Options::receive_buffer`].
    pub fn receive_buffer(self, bytes: c_int) -> GroupOptions<P> {
        self.set(|socket| socket.receive_buffer(bytes))
    }

    /// Sets `SO_SNDBUF` on each member, in bytes, as [`Options::send_buffer`].
    pub fn send_buffer(self, bytes: c_int) -> GroupOptions<P> {
        self.set(|socket| socket.send_buffer(bytes))
    }

    /// Runs `hook` on each member before it is bound, also on one that is added later: for an
    /// option without a method here.
    ///
    /// An error of the hook is the error of `bind` or `add`, with the call `before_bind` and its
    /// errno; one without an errno counts as `EINVAL`.
    ///
    /// # Examples
    /// With the crate socket2, which has a safe method for nearly every option:
    /// ```ignore
    /// let options = Group::options().before_bind(|fd| SockRef::from(&fd).set_freebind_v4(true));
    /// ```
    pub fn before_bind<F>(mut self, hook: F) -> GroupOptions<P>
    where
        F: Fn(BorrowedFd<'_>) -> io::Result<()> + Send + Sync + 'static,
    {
        self.before_bind = Some(DebugOpaque(Arc::new(move |fd| {
            // SAFETY: the caller keeps it open until the hook has returned.
            hook(unsafe { BorrowedFd::borrow_raw(fd) }).map_err(|error| {
                Error::new(
                    Call::BeforeBind,
                    error.raw_os_error().unwrap_or(libc::EINVAL),
                )
            })
        })));
        self
    }
}

impl GroupOptions {
    /// Sets the backlog of each member, as [`Options::backlog`].
    pub fn backlog(self, connections: c_int) -> GroupOptions {
        self.set(|socket| socket.backlog(connections))
    }
}

#[cfg(linux_kernel)]
impl GroupOptions {
    /// Sets `TCP_DEFER_ACCEPT` on each member, as [`Options::defer_accept`].
    ///
    /// # Platforms
    /// Linux and Android alone.
    pub fn defer_accept(self, wait: core::time::Duration) -> GroupOptions {
        self.set(|socket| socket.defer_accept(wait))
    }
}

#[cfg(linux_kernel)]
impl<P> GroupOptions<P> {
    /// Sets `SO_MARK` on each member, as [`Options::mark`].
    ///
    /// # Platforms
    /// Linux and Android alone.
    pub fn mark(self, mark: u32) -> GroupOptions<P> {
        self.set(|socket| socket.mark(mark))
    }

    /// Sets `SO_BINDTODEVICE` on each member, as [`Options::bind_to_device`].
    ///
    /// # Platforms
    /// Linux and Android alone.
    pub fn bind_to_device(mut self, device: &str) -> GroupOptions<P> {
        self.device = Some(Arc::from(device));
        self
    }
}
