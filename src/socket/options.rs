//! [`Listener::options`] and [`UdpSocket::options`]: every option of the calls that make a socket,
//! visible. None is set that is not asked for, but the one that this crate is about.

use core::ffi::c_int;
use core::fmt;
use core::marker::PhantomData;
use core::net::SocketAddr;

use crate::address::{SockAddr, socklen};
use crate::error::Error;
use crate::listener::{Descriptor, Listener};
#[cfg(linux_kernel)]
use crate::os::linux;
use crate::socket::protocol::{Tcp, Udp};
use crate::socket::udp::UdpSocket;
use crate::sys::{self, IPPROTO_IPV6, IPV6_V6ONLY, SO_REUSEADDR, SO_REUSEPORT, SOL_SOCKET};

/// How to make a [`Listener`] or a [`UdpSocket`]. Left alone, it makes the calls of their `bind`.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Options<'a, P = Tcp> {
    backlog: c_int,
    reuse_port: bool,
    reuse_address: bool,
    only_v6: Option<bool>,
    nonblocking: bool,
    #[cfg(linux_kernel)]
    incoming_cpu: Option<c_int>,
    before_bind: Option<Unshown<Hook<'a>>>,
    protocol: PhantomData<P>,
}

/// Called with the new descriptor between `socket` and `bind`.
type Hook<'a> = &'a (dyn Fn(c_int) -> Result<(), Error> + 'a);

/// Of what has no form that could be shown, only that it is there.
#[derive(Clone, Copy)]
pub(crate) struct Unshown<T>(pub(crate) T);

impl<T> fmt::Debug for Unshown<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("..")
    }
}

impl Listener {
    /// The general case of [`bind`](Listener::bind).
    ///
    /// ```
    /// use reuseport::Listener;
    ///
    /// let listener = Listener::options().backlog(128).only_v6(true).bind(([0; 8], 0))?;
    /// # Ok::<(), reuseport::Error>(())
    /// ```
    pub const fn options<'a>() -> Options<'a> {
        Options::new()
    }
}

impl UdpSocket {
    /// The general case of [`bind`](UdpSocket::bind). `SO_REUSEADDR` is not among the options: on
    /// UDP it lets a stranger take the port over.
    pub const fn options<'a>() -> Options<'a, Udp> {
        Options::new()
    }
}

impl<'a> Options<'a> {
    /// How many connections may wait to be accepted: `listen(2)`. Unset: as many as the kernel
    /// allows (on Linux, the sysctl `net.core.somaxconn`). Linux counts one more than told.
    ///
    /// When the queue is full, Linux drops what comes, and the client tries again after a second.
    pub const fn backlog(mut self, connections: c_int) -> Options<'a> {
        self.backlog = connections;
        self
    }

    /// `SO_REUSEADDR`: bind although connections of an earlier listener linger in `TIME_WAIT`.
    /// Linux wants it on that listener too; `SO_REUSEPORT` on both does the same.
    pub const fn reuse_address(mut self, on: bool) -> Options<'a> {
        self.reuse_address = on;
        self
    }

    /// `socket`, `setsockopt` for each option asked for, `bind`, `listen`.
    pub fn bind(&self, address: impl Into<SocketAddr>) -> Result<Listener, Error> {
        let server = self.bind_only(address.into())?;
        self.listen(&server)?;
        Ok(server)
    }

    /// All but `listen`.
    pub(crate) fn bind_only(&self, address: SocketAddr) -> Result<Listener, Error> {
        self.open(sys::SOCK_STREAM, address).map(Listener)
    }

    pub(crate) fn listen(&self, server: &Listener) -> Result<(), Error> {
        // SAFETY: the descriptor is the listener's.
        unsafe { sys::listen(server.raw(), self.backlog) }
    }
}

impl Options<'_, Udp> {
    /// `socket`, `setsockopt` for each option asked for, `bind`.
    pub fn bind(&self, address: impl Into<SocketAddr>) -> Result<UdpSocket, Error> {
        self.open(libc::SOCK_DGRAM, address.into()).map(UdpSocket)
    }

    /// Does `first` to the socket before it binds.
    #[cfg(all(feature = "std", linux_kernel))]
    pub(crate) fn bind_after(
        &self,
        address: SocketAddr,
        first: impl FnOnce(&Descriptor) -> Result<(), Error>,
    ) -> Result<UdpSocket, Error> {
        let addr = SockAddr::from(address);
        let socket = self.make(libc::SOCK_DGRAM, &addr)?;
        first(&socket)?;
        socket.bind(&addr)?;
        Ok(UdpSocket(socket))
    }
}

impl<'a, P> Options<'a, P> {
    pub(crate) const fn new() -> Options<'a, P> {
        Options {
            backlog: sys::MAX_BACKLOG,
            reuse_port: true,
            reuse_address: false,
            only_v6: None,
            nonblocking: false,
            #[cfg(linux_kernel)]
            incoming_cpu: None,
            before_bind: None,
            protocol: PhantomData,
        }
    }

    /// `SO_REUSEPORT` ([`sys::SO_REUSEPORT`]). Set unless turned off: without it the port is this
    /// listener's alone.
    pub const fn reuse_port(mut self, on: bool) -> Options<'a, P> {
        self.reuse_port = on;
        self
    }

    /// `IPV6_V6ONLY`: whether an IPv6 wildcard leaves IPv4 alone. Unset: as the machine is set up
    /// (on Linux, the sysctl `net.ipv6.bindv6only`). An error for an IPv4 address.
    pub const fn only_v6(mut self, on: bool) -> Options<'a, P> {
        self.only_v6 = Some(on);
        self
    }

    /// `SOCK_NONBLOCK`: [`accept`](Listener::accept) fails with `EAGAIN` where nothing waits.
    pub const fn nonblocking(mut self, on: bool) -> Options<'a, P> {
        self.nonblocking = on;
        self
    }

    /// `SO_INCOMING_CPU`: among the listeners of a port, this one gets what this CPU handles; a
    /// CPU that none of them names falls to the hash. Linux and Android; the kernel obeys since
    /// 6.2 (and before 4.6). It has no effect on a group that is steered by a program.
    #[cfg(linux_kernel)]
    pub const fn incoming_cpu(mut self, cpu: c_int) -> Options<'a, P> {
        self.incoming_cpu = Some(cpu);
        self
    }

    /// Runs between `socket` and `bind`, for any option that has no method here:
    /// `SO_BINDTODEVICE`, `IP_FREEBIND`, `TCP_DEFER_ACCEPT`, `TCP_FASTOPEN` …
    ///
    /// ```
    /// use core::ffi::c_int;
    /// use reuseport::{Listener, sys};
    ///
    /// let keep_alive = |fd| {
    ///     let on: c_int = 1;
    ///     let value = (&raw const on).cast();
    ///     // SAFETY: `on` is readable for the four bytes stated, and the option takes an int.
    ///     unsafe { sys::setsockopt(fd, sys::SOL_SOCKET, libc::SO_KEEPALIVE, value, 4) }
    /// };
    /// let listener = Listener::options().before_bind(&keep_alive).bind(([127, 0, 0, 1], 0))?;
    /// # Ok::<(), reuseport::Error>(())
    /// ```
    pub const fn before_bind(mut self, hook: Hook<'a>) -> Options<'a, P> {
        self.before_bind = Some(Unshown(hook));
        self
    }

    fn open(&self, kind: c_int, address: SocketAddr) -> Result<Descriptor, Error> {
        let addr = SockAddr::from(address);
        let socket = self.make(kind, &addr)?;
        socket.bind(&addr)?;
        Ok(socket)
    }

    /// All before `bind`.
    fn make(&self, kind: c_int, addr: &SockAddr) -> Result<Descriptor, Error> {
        let nonblocking = if self.nonblocking {
            sys::SOCK_NONBLOCK
        } else {
            0
        };
        let kind = kind | sys::SOCK_CLOEXEC | nonblocking;
        // SAFETY: the next line owns what this one opens.
        let server = unsafe { sys::socket(addr.family(), kind, 0) }?;
        // SAFETY: the kernel has just opened it for us alone.
        let server = unsafe { Descriptor::own(server) };
        if self.reuse_port {
            server.set_option(SOL_SOCKET, SO_REUSEPORT, 1)?;
        }
        if self.reuse_address {
            server.set_option(SOL_SOCKET, SO_REUSEADDR, 1)?;
        }
        if let Some(on) = self.only_v6 {
            server.set_option(IPPROTO_IPV6, IPV6_V6ONLY, on.into())?;
        }
        #[cfg(linux_kernel)]
        if let Some(cpu) = self.incoming_cpu {
            server.set_option(SOL_SOCKET, linux::SO_INCOMING_CPU, cpu)?;
        }
        if let Some(Unshown(hook)) = self.before_bind {
            hook(server.raw())?;
        }
        Ok(server)
    }
}

impl Listener {
    /// Lets siblings bind the port of this listener, although it listens already (Linux, Android;
    /// `socket(7)` speaks of the time before `bind` alone). Bound until then without
    /// [`reuse_port`](Options::reuse_port), it has kept everybody else out.
    #[cfg(linux_kernel)]
    pub fn set_reuse_port(&self) -> Result<(), Error> {
        self.0.set_option(SOL_SOCKET, SO_REUSEPORT, 1)
    }
}

impl Descriptor {
    pub(crate) fn set_nonblocking(&self, on: bool) -> Result<(), Error> {
        // SAFETY: the descriptor is ours.
        unsafe { sys::fionbio(self.raw(), on.into()) }
    }

    fn bind(&self, addr: &SockAddr) -> Result<(), Error> {
        // SAFETY: `addr` is readable for its own length.
        unsafe { sys::bind(self.raw(), addr.as_ptr(), addr.len()) }
    }

    /// Sets an option whose value is C's `int`. Any other is refused by the kernel, with `EINVAL`.
    pub(crate) fn set_option(&self, level: c_int, name: c_int, value: c_int) -> Result<(), Error> {
        let (value, length) = ((&raw const value).cast(), socklen::<c_int>());
        // SAFETY: `value` is readable for `length` bytes, and the kernel reads no more.
        unsafe { sys::setsockopt(self.raw(), level, name, value, length) }
    }
}
