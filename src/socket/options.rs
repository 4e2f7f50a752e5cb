//! [`Listener::options`] and [`UdpSocket::options`]: the options of the calls that make a socket.
//! Only `SO_REUSEPORT` is set by default.

use core::ffi::c_int;
use core::fmt;
use core::marker::PhantomData;
use core::net::SocketAddr;

use crate::address::{SockAddr, socklen};
use crate::error::Error;
use crate::listener::{Descriptor, Listener};
use crate::os;
use crate::socket::destination::{is_shared, report_destination};
use crate::socket::protocol::{Tcp, Udp};
use crate::socket::udp::UdpSocket;
use crate::sys::{self, IPPROTO_IPV6, IPV6_V6ONLY, SO_REUSEADDR, SO_REUSEPORT, SOL_SOCKET};

/// Options of a [`Listener`] or a [`UdpSocket`]. The defaults make the same system calls as `bind`.
///
/// ```
/// let options = reuseport::Listener::options().backlog(128).nonblocking(true);
/// let listener = options.bind(([127, 0, 0, 1], 0))?;
/// # Ok::<(), reuseport::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Options<'a, P = Tcp> {
    pub(crate) settings: Settings,
    /// `str` prints itself by code that can panic.
    pub(crate) device: Option<DebugOpaque<&'a str>>,
    before_bind: Option<DebugOpaque<Hook<'a>>>,
    protocol: PhantomData<P>,
}

/// The options that are numbers.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::struct_excessive_bools)] // each is a switch of its own
pub(crate) struct Settings {
    backlog: c_int,
    reuse_port: bool,
    reuse_address: bool,
    only_v6: Option<bool>,
    nonblocking: bool,
    receive_buffer: Option<c_int>,
    send_buffer: Option<c_int>,
    /// The kernel reports where each datagram was sent to, also on an address of its own.
    pub(crate) destination: bool,
    pub(crate) kernel: os::KernelOptions,
}

/// Called with the new descriptor between `socket` and `bind`.
type Hook<'a> = &'a (dyn Fn(c_int) -> Result<(), Error> + 'a);

/// Wraps a value without `Debug`; prints `..`.
#[derive(Clone, Copy)]
pub(crate) struct DebugOpaque<T>(pub(crate) T);

impl<T> fmt::Debug for DebugOpaque<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("..")
    }
}

impl Listener {
    /// Returns the options of a listener, to bind it with: the general case of
    /// [`bind`](Listener::bind).
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
    /// Returns the options of a UDP socket, to bind it with: the general case of
    /// [`bind`](UdpSocket::bind). `SO_REUSEADDR` is not among them: on UDP it lets another process
    /// take the port over.
    pub const fn options<'a>() -> Options<'a, Udp> {
        Options::new()
    }
}

impl<'a> Options<'a> {
    /// Sets how many connections may be queued: the backlog of `listen(2)`. Default: the
    /// kernel's maximum (on Linux the sysctl `net.core.somaxconn`, which also cuts a larger value).
    /// Linux queues one connection more than `connections`.
    ///
    /// When the queue is full, Linux drops the SYN, and the client sends it again after 1 s.
    pub const fn backlog(mut self, connections: c_int) -> Options<'a> {
        self.settings.backlog = connections;
        self
    }

    /// Sets `SO_REUSEADDR`: the bind succeeds although connections of an earlier listener are in
    /// `TIME_WAIT`. Linux needs the option on that listener too; `SO_REUSEPORT` on both does the
    /// same. Default: off.
    pub const fn reuse_address(mut self, on: bool) -> Options<'a> {
        self.settings.reuse_address = on;
        self
    }

    /// Binds a listener: `socket`, `setsockopt` for each option, `bind`, `listen`.
    ///
    /// # Errors
    /// Those of the failed call: `EADDRINUSE`, `EADDRNOTAVAIL`, `EACCES`, `EMFILE`, and others that
    /// the manual pages list.
    pub fn bind(&self, address: impl Into<SocketAddr>) -> Result<Listener, Error> {
        let addr = SockAddr::from(address.into());
        let server = Listener(self.make(sys::SOCK_STREAM, &addr)?);
        server.0.bind(&addr)?;
        self.listen(&server)?;
        Ok(server)
    }

    /// Makes the calls before `bind`, and so runs the hook.
    #[cfg(feature = "std")]
    pub(crate) fn prepare(&self, address: SocketAddr) -> Result<Listener, Error> {
        self.make(sys::SOCK_STREAM, &address.into()).map(Listener)
    }

    /// Does the rest.
    #[cfg(feature = "std")]
    pub(crate) fn bind_prepared(
        &self,
        server: &Listener,
        address: SocketAddr,
    ) -> Result<(), Error> {
        server.0.bind(&address.into())?;
        self.listen(server)
    }

    #[inline(always)]
    pub(crate) fn listen(&self, server: &Listener) -> Result<(), Error> {
        // SAFETY: the descriptor is the listener's.
        unsafe { sys::listen(server.raw(), self.settings.backlog) }
    }
}

impl Options<'_, Udp> {
    /// Binds a UDP socket, as [`UdpSocket::bind`]: `socket`, `setsockopt` for each option, `bind`.
    ///
    /// # Errors
    /// Those of the failed call: `EADDRINUSE`, `EADDRNOTAVAIL`, `EACCES`, `EMFILE`, and others that
    /// the manual pages list.
    pub fn bind(&self, address: impl Into<SocketAddr>) -> Result<UdpSocket, Error> {
        self.bind_after(address.into(), |_| Ok(()))
    }

    /// Runs `before` on the socket between `socket` and `bind`.
    pub(crate) fn bind_after(
        &self,
        address: SocketAddr,
        before: impl FnOnce(&Descriptor) -> Result<(), Error>,
    ) -> Result<UdpSocket, Error> {
        let socket = self.prepare(address)?;
        before(&socket.0)?;
        self.bind_prepared(&socket, address)?;
        Ok(socket)
    }

    /// Makes the calls before `bind`, and so runs the hook.
    pub(crate) fn prepare(&self, address: SocketAddr) -> Result<UdpSocket, Error> {
        let addr = SockAddr::from(address);
        let socket = self.make(libc::SOCK_DGRAM, &addr)?;
        if self.settings.destination || is_shared(address.ip()) {
            report_destination(&socket, addr.family())?;
        }
        Ok(UdpSocket(socket))
    }

    #[allow(clippy::unused_self)] // as a listener's
    pub(crate) fn bind_prepared(
        &self,
        socket: &UdpSocket,
        address: SocketAddr,
    ) -> Result<(), Error> {
        socket.0.bind(&address.into())
    }
}

impl<'a, P> Options<'a, P> {
    pub(crate) const fn new() -> Options<'a, P> {
        Options::with(Settings {
            backlog: sys::MAX_BACKLOG,
            reuse_port: true,
            reuse_address: false,
            only_v6: None,
            nonblocking: false,
            receive_buffer: None,
            send_buffer: None,
            destination: false,
            kernel: os::KernelOptions::NONE,
        })
    }

    pub(crate) const fn with(settings: Settings) -> Options<'a, P> {
        Options {
            settings,
            device: None,
            before_bind: None,
            protocol: PhantomData,
        }
    }

    /// Sets `SO_REUSEPORT` ([`sys::SO_REUSEPORT`]). Default: on. Without it no other socket can
    /// bind the port.
    pub const fn reuse_port(mut self, on: bool) -> Options<'a, P> {
        self.settings.reuse_port = on;
        self
    }

    /// Sets `IPV6_V6ONLY`: with it an IPv6 wildcard socket receives no IPv4. Default: the machine's
    /// setting (on Linux the sysctl `net.ipv6.bindv6only`, usually off). With an IPv4 address
    /// `bind` fails with `ENOPROTOOPT`.
    pub const fn only_v6(mut self, on: bool) -> Options<'a, P> {
        self.settings.only_v6 = Some(on);
        self
    }

    /// Sets `SOCK_NONBLOCK`: [`accept`](Listener::accept) and [`recv_from`](UdpSocket::recv_from)
    /// fail with `EAGAIN` if the queue is empty. Default: off.
    pub const fn nonblocking(mut self, on: bool) -> Options<'a, P> {
        self.settings.nonblocking = on;
        self
    }

    /// Sets `SO_RCVBUF`: the receive buffer of the socket, and of each connection that is accepted
    /// on it, in bytes. Default: the kernel's. On Linux the buffer of TCP grows by itself, up to
    /// the sysctl `net.ipv4.tcp_rmem`, and with this option it does not; that of UDP has
    /// `net.core.rmem_default`. Linux reserves twice as much, cuts the value at
    /// `net.core.rmem_max` (a negative one too), and has a minimum of some 2 KiB.
    pub const fn receive_buffer(mut self, bytes: c_int) -> Options<'a, P> {
        self.settings.receive_buffer = Some(bytes);
        self
    }

    /// Sets `SO_SNDBUF`: the send buffer, as [`receive_buffer`](Self::receive_buffer)
    /// (`net.ipv4.tcp_wmem`, `net.core.wmem_default`, `net.core.wmem_max`).
    pub const fn send_buffer(mut self, bytes: c_int) -> Options<'a, P> {
        self.settings.send_buffer = Some(bytes);
        self
    }

    /// Runs `hook` with the descriptor between `socket` and `bind`, for an option without a method
    /// here: `IP_FREEBIND`, `TCP_FASTOPEN`, `IP_TRANSPARENT` …
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
        self.before_bind = Some(DebugOpaque(hook));
        self
    }

    /// Makes the calls before `bind`.
    #[inline(always)] // a program without options contains none of them
    pub(crate) fn make(&self, kind: c_int, addr: &SockAddr) -> Result<Descriptor, Error> {
        let nonblocking = if self.settings.nonblocking {
            sys::SOCK_NONBLOCK
        } else {
            0
        };
        let kind = kind | sys::SOCK_CLOEXEC | nonblocking;
        // SAFETY: the next line owns what this one opens.
        let server = unsafe { sys::socket(addr.family(), kind, 0) }?;
        // SAFETY: the kernel has just opened it for us alone.
        let server = unsafe { Descriptor::own(server) };
        if self.settings.reuse_port {
            server.set_option(SOL_SOCKET, SO_REUSEPORT, 1)?;
        }
        if self.settings.reuse_address {
            server.set_option(SOL_SOCKET, SO_REUSEADDR, 1)?;
        }
        if let Some(on) = self.settings.only_v6 {
            server.set_option(IPPROTO_IPV6, IPV6_V6ONLY, on.into())?;
        }
        if let Some(bytes) = self.settings.receive_buffer {
            server.set_option(SOL_SOCKET, libc::SO_RCVBUF, bytes)?;
        }
        if let Some(bytes) = self.settings.send_buffer {
            server.set_option(SOL_SOCKET, libc::SO_SNDBUF, bytes)?;
        }
        self.settings.kernel.set(&server)?;
        if let Some(DebugOpaque(device)) = self.device {
            os::bind_to_device(&server, device)?;
        }
        if let Some(DebugOpaque(hook)) = self.before_bind {
            hook(server.raw())?;
        }
        Ok(server)
    }
}

impl Listener {
    /// Sets whether [`accept`](Self::accept) fails with `EAGAIN` if the queue is empty: default
    /// off. Connections do not inherit it.
    ///
    /// # Errors
    /// None is known on an open socket.
    pub fn set_nonblocking(&self, on: bool) -> Result<(), Error> {
        self.0.set_nonblocking(on)
    }
}

impl Descriptor {
    pub(crate) fn set_nonblocking(&self, on: bool) -> Result<(), Error> {
        // SAFETY: the descriptor is ours.
        unsafe { sys::fionbio(self.raw(), on.into()) }
    }

    #[inline(always)]
    pub(crate) fn bind(&self, addr: &SockAddr) -> Result<(), Error> {
        // SAFETY: `addr` is readable for its own length.
        unsafe { sys::bind(self.raw(), addr.as_ptr(), addr.len()) }
    }

    /// Sets an option whose value is C's `int`. Any other is refused by the kernel, with `EINVAL`.
    pub(crate) fn set_option(&self, level: c_int, name: c_int, value: c_int) -> Result<(), Error> {
        let (value, length) = ((&raw const value).cast(), socklen::<c_int>());
        // SAFETY: `value` is readable for `length` bytes, and the kernel reads no more.
        let set = unsafe { sys::setsockopt(self.raw(), level, name, value, length) };
        set.map_err(|error| error.of_option(level, name))
    }
}
