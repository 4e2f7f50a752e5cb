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
    /// `fd` is open, and nobody else will close it.
    pub(crate) const unsafe fn own(fd: c_int) -> Descriptor {
        Descriptor(fd)
    }

    pub(crate) const fn raw(&self) -> c_int {
        self.0
    }

    pub(crate) fn local_addr(&self) -> Result<SocketAddr, Error> {
        let mut addr = SockAddr::empty();
        let (address, length) = (addr.as_mut_ptr(), addr.len_mut_ptr());
        // SAFETY: both point into `addr`, which has room for the length it states.
        unsafe { sys::getsockname(self.raw(), address, length) }?;
        let unknown = Error::new(Call::GetSockName, libc::EAFNOSUPPORT);
        addr.get().ok_or(unknown)
    }
}

impl Drop for Descriptor {
    #[inline]
    fn drop(&mut self) {
        // A failed close has closed all the same, and there is nobody to tell.
        // SAFETY: this is the owner's last act.
        unsafe { libc::close(self.0) };
    }
}

/// A TCP socket that listens. Any number of them may listen on one port: see [`bind`](Self::bind).
///
/// Dropping it closes it: every connection that waits to be accepted is reset, and every handshake
/// under way is lost. `close(2)` does that, not this crate.
#[derive(Debug)]
pub struct Listener(pub(crate) Descriptor);

impl Listener {
    /// The C program's four calls, in its order; port 0 lets the kernel choose a free port.
    ///
    /// Where several are bound to one port, the kernel gives each new connection to one of them
    /// ([`BALANCES`](crate::BALANCES)). Any program of the same user may bind one more: this is the
    /// C program, and asks nobody.
    ///
    /// Two things differ from C. The descriptor does not survive `execve(2)`. And the queue of
    /// connections that wait to be accepted is as long as the kernel allows, where the C program
    /// says 1: with that, a burst makes clients wait for seconds.
    ///
    /// Fails as [`sys::socket`], [`sys::setsockopt`], [`sys::bind`] and [`sys::listen`] do.
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

    /// Waits for a connection and takes it: `accept4(2)`, with `SOCK_CLOEXEC`.
    ///
    /// Returns every error as it comes, `EINTR` too; [`Error::accept_action`] says what to do about it.
    #[inline]
    pub fn accept(&self) -> Result<Connection, Error> {
        // SAFETY: null stands for "no address wanted". The connection owns what is opened.
        let client = unsafe { sys::accept(self.raw(), null_mut(), null_mut(), SOCK_CLOEXEC) }?;
        // SAFETY: the kernel has just opened it for us alone.
        Ok(Connection(unsafe { Descriptor::own(client) }))
    }

    /// As [`accept`](Self::accept), with the peer's address: known even if it has reset since.
    pub fn accept_from(&self) -> Result<(Connection, SocketAddr), Error> {
        let mut peer = SockAddr::empty();
        let (address, length) = (peer.as_mut_ptr(), peer.len_mut_ptr());
        // SAFETY: both point into `peer`, which has room for the length it states.
        let client = unsafe { sys::accept(self.raw(), address, length, SOCK_CLOEXEC) }?;
        // SAFETY: the kernel has just opened it for us alone.
        let client = Connection(unsafe { Descriptor::own(client) });
        let unknown = Error::new(Call::Accept, libc::EAFNOSUPPORT);
        Ok((client, peer.get().ok_or(unknown)?))
    }

    /// The address it is bound to: `getsockname(2)`. Tells what port 0 became.
    pub fn local_addr(&self) -> Result<SocketAddr, Error> {
        self.0.local_addr()
    }

    /// Whether [`accept`](Self::accept) returns `EAGAIN` where nothing waits. Connections never
    /// inherit it.
    pub fn set_nonblocking(&self, on: bool) -> Result<(), Error> {
        // SAFETY: the descriptor is ours.
        unsafe { sys::fionbio(self.raw(), on.into()) }
    }

    pub(crate) const fn raw(&self) -> c_int {
        self.0.raw()
    }
}

/// An accepted TCP connection. Dropping it closes it: the client reads the end.
#[derive(Debug)]
pub struct Connection(pub(crate) Descriptor);

impl Connection {
    /// Sends what the kernel takes of `bytes` and returns how many that was: `send(2)`.
    ///
    /// With `MSG_NOSIGNAL`: a peer that is gone is `EPIPE` or `ECONNRESET`, never `SIGPIPE`.
    pub fn send(&self, bytes: &[u8]) -> Result<usize, Error> {
        // SAFETY: a slice is readable for its length.
        unsafe { sys::send(self.raw(), bytes.as_ptr().cast(), bytes.len(), MSG_NOSIGNAL) }
    }

    /// Waits for bytes and reads as many as `buffer` takes: `recv(2)`. Zero: no more will come.
    pub fn recv(&self, buffer: &mut [u8]) -> Result<usize, Error> {
        // SAFETY: a mutable slice is writable for its length.
        unsafe { sys::recv(self.raw(), buffer.as_mut_ptr().cast(), buffer.len(), 0) }
    }

    pub(crate) const fn raw(&self) -> c_int {
        self.0.raw()
    }
}
