//! [`Listener`] and [`Connection`]: the owners of the two descriptors in the C program.

use core::ffi::c_int;
use core::net::SocketAddr;
use core::ptr::null_mut;

use crate::address::{SockAddr, socklen};
use crate::error::{Call, Error};
use crate::sys::{
    self, MAX_BACKLOG, MSG_NOSIGNAL, SO_REUSEPORT, SOCK_CLOEXEC, SOCK_STREAM, SOL_SOCKET,
};

/// An open descriptor, closed on drop.
#[derive(Debug)]
#[cfg_attr(not(feature = "std"), allow(unreachable_pub))] // `Protocol` names it
pub struct Descriptor(c_int);

impl Descriptor {
    /// # Safety
    /// `fd` is open, and nothing else closes it.
    pub(crate) const unsafe fn own(fd: c_int) -> Descriptor {
        Descriptor(fd)
    }

    pub(crate) const fn raw(&self) -> c_int {
        self.0
    }

    pub(crate) fn local_addr(&self) -> Result<SocketAddr, Error> {
        let mut addr = SockAddr::empty();
        let (address, length) = (addr.as_mut_ptr(), addr.len_mut_ptr());
        // SAFETY: both point into `addr`, whose buffer has the length it states.
        unsafe { sys::getsockname(self.raw(), address, length) }?;
        let unknown = Error::new(Call::GetSockName, libc::EAFNOSUPPORT);
        addr.get().ok_or(unknown)
    }
}

impl Drop for Descriptor {
    #[inline]
    fn drop(&mut self) {
        // A failed close has released the number too, and `drop` returns no error.
        // SAFETY: the owner does not use the number again.
        unsafe { libc::close(self.0) };
    }
}

/// A TCP socket that listens. Any number of them may listen on one port: see [`bind`](Self::bind).
///
/// Dropping it closes it. `close(2)` resets every queued connection, and every handshake under way
/// is lost; [`Server::retire`](crate::guide#5-leaving-a-group) avoids that.
#[derive(Debug)]
pub struct Listener(pub(crate) Descriptor);

impl Listener {
    /// Binds `address` and listens: the C program's four calls. Port 0 is any free port.
    ///
    /// Where several listeners have one port, the kernel gives each new connection to one of them
    /// ([`BALANCES`](crate::BALANCES)). Any program of the same user may bind one more.
    /// Two things differ from C: `execve(2)` closes the descriptor, and the backlog is the kernel's
    /// maximum. The C program's backlog of 1 makes clients wait for seconds in a burst.
    /// # Errors
    /// Those of [`sys::socket`], [`sys::setsockopt`], [`sys::bind`] and [`sys::listen`].
    /// # Examples
    /// ```
    /// assert_ne!(reuseport::Listener::bind(([127, 0, 0, 1], 0))?.local_addr()?.port(), 0);
    /// # Ok::<(), reuseport::Error>(())
    /// ```
    pub fn bind(address: impl Into<SocketAddr>) -> Result<Listener, Error> {
        let addr = SockAddr::from(address.into());
        // C: int server = check("socket", socket(AF_INET, SOCK_STREAM, 0));
        // SAFETY: the next line owns what this one opens.
        let server = unsafe { sys::socket(addr.family(), SOCK_STREAM | SOCK_CLOEXEC, 0) }?;
        // SAFETY: the kernel has just opened it for us alone.
        let server = Listener(unsafe { Descriptor::own(server) });
        // C: int on = 1;
        let on: c_int = 1;
        // C: check("setsockopt", setsockopt(server, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on));
        let (value, length) = ((&raw const on).cast(), socklen::<c_int>());
        // SAFETY: `on` is readable for `length` bytes, and the option takes an int.
        unsafe { sys::setsockopt(server.raw(), SOL_SOCKET, SO_REUSEPORT, value, length) }?;
        // C: check("bind", bind(server, (struct sockaddr *)&addr, sizeof addr));
        // SAFETY: `addr` is readable for its own length.
        unsafe { sys::bind(server.raw(), addr.as_ptr(), addr.len()) }?;
        // C: check("listen", listen(server, 1));
        // SAFETY: `server` is ours.
        unsafe { sys::listen(server.raw(), MAX_BACKLOG) }?;
        Ok(server)
    }

    /// Waits for a connection and accepts it: `accept4(2)`, with `SOCK_CLOEXEC`.
    /// # Errors
    /// All of `accept4(2)`, also `EINTR`: [`Error::accept_action`] returns what to do about each.
    #[inline]
    pub fn accept(&self) -> Result<Connection, Error> {
        // SAFETY: null stands for "no address wanted". The connection owns what is opened.
        let client = unsafe { sys::accept(self.raw(), null_mut(), null_mut(), SOCK_CLOEXEC) }?;
        // SAFETY: the kernel has just opened it for us alone.
        Ok(Connection(unsafe { Descriptor::own(client) }))
    }

    /// Returns the bound address, also what port 0 became. It fails as [`sys::getsockname`].
    pub fn local_addr(&self) -> Result<SocketAddr, Error> {
        self.0.local_addr()
    }

    pub(crate) const fn raw(&self) -> c_int {
        self.0.raw()
    }
}

/// An accepted TCP connection. Dropping it closes it: the client then reads the end of the stream.
///
/// **Read the request first.** Closing with bytes unread resets the connection, and the client may
/// lose the answer (tcp(7)). So read what the client sends, to its end, before the drop; or call
/// [`shutdown`](Self::shutdown) with [`sys::SHUT_WR`], and read until [`recv`](Self::recv) is 0.
#[cfg_attr(feature = "std", doc = include_str!("examples/connection.md"))]
#[derive(Debug)]
pub struct Connection(pub(crate) Descriptor);

impl Connection {
    /// Sends as many of `bytes` as the kernel takes, and returns how many: `send(2)`. The client
    /// may lose them if bytes of its own are unread at the drop: see [`Connection`].
    /// # Errors
    /// `EPIPE` or `ECONNRESET` if the peer has closed, without `SIGPIPE`; `EAGAIN` at a time limit.
    pub fn send(&self, bytes: &[u8]) -> Result<usize, Error> {
        // SAFETY: a slice is readable for its length.
        unsafe { sys::send(self.raw(), bytes.as_ptr().cast(), bytes.len(), MSG_NOSIGNAL) }
    }

    /// Waits for bytes and reads as many as fit into `buffer`: `recv(2)`. 0: end of stream.
    /// # Errors
    /// `ECONNRESET`, `EINTR`; `EAGAIN` after the [read timeout](Self::set_read_timeout).
    pub fn recv(&self, buffer: &mut [u8]) -> Result<usize, Error> {
        // SAFETY: a mutable slice is writable for its length.
        unsafe { sys::recv(self.raw(), buffer.as_mut_ptr().cast(), buffer.len(), 0) }
    }

    pub(crate) const fn raw(&self) -> c_int {
        self.0.raw()
    }
}
