//! What is known of an accepted [`Connection`], and its options.

use core::ffi::c_int;
use core::net::SocketAddr;
use core::time::Duration;

use crate::address::{SockAddr, socklen};
use crate::error::{Call, Error};
use crate::listener::{Connection, Descriptor, Listener};
use crate::os;
use crate::sys::{self, IPPROTO_TCP, SOCK_CLOEXEC, SOL_SOCKET};

impl Listener {
    /// Accepts as [`accept`](Self::accept), and returns the peer's address too, also after a reset.
    ///
    /// # Errors
    /// Those of [`accept`](Self::accept).
    pub fn accept_from(&self) -> Result<(Connection, SocketAddr), Error> {
        let mut peer = SockAddr::empty();
        let (address, length) = (peer.as_mut_ptr(), peer.len_mut_ptr());
        // SAFETY: both point into `peer`, whose buffer has the length it states.
        let client = unsafe { sys::accept(self.raw(), address, length, SOCK_CLOEXEC) }?;
        // SAFETY: the kernel has just opened it for us alone.
        let client = Connection(unsafe { Descriptor::own(client) });
        let unknown = Error::new(Call::Accept, libc::EAFNOSUPPORT);
        Ok((client, peer.get().ok_or(unknown)?))
    }
}

impl Connection {
    /// Returns the address of the peer, also of one that has reset the connection since.
    ///
    /// An IPv4 client of a listener on `::` has an address such as `::ffff:192.0.2.1`, of which
    /// [`IpAddr::to_canonical`](core::net::IpAddr::to_canonical) is the IPv4 one.
    ///
    /// The kernel is asked by this call, not by every `accept`: most handlers do not need it.
    ///
    /// # Errors
    /// `ENOTCONN` on other kernels after a reset.
    ///
    /// # Platforms
    /// On Linux and Android `getsockopt(2)` with `SO_PEERNAME`, which does not look whether the
    /// connection still lives; elsewhere `getpeername(2)`, which fails after a reset.
    ///
    /// # Examples
    /// ```
    /// use reuseport::Listener;
    ///
    /// let listener = Listener::bind(([127, 0, 0, 1], 0))?;
    /// let client = std::net::TcpStream::connect(listener.local_addr()?)?;
    /// assert_eq!(listener.accept()?.peer_addr()?, client.local_addr()?);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn peer_addr(&self) -> Result<SocketAddr, Error> {
        let unknown = Error::new(Call::GetSockOpt, libc::EAFNOSUPPORT);
        os::peer_name(&self.0)?.get().ok_or(unknown)
    }

    /// Returns the address that the client has connected to: on a wildcard listener the one of this
    /// machine's that it chose.
    ///
    /// # Errors
    /// Those of [`sys::getsockname`].
    pub fn local_addr(&self) -> Result<SocketAddr, Error> {
        self.0.local_addr()
    }

    /// Sets whether small segments are sent at once, and not held back until the peer has
    /// acknowledged those before them: `TCP_NODELAY` of `tcp(7)`. Default: off.
    ///
    /// # Errors
    /// Those of [`sys::setsockopt`]. `EINVAL` on macOS after a reset.
    pub fn set_nodelay(&self, on: bool) -> Result<(), Error> {
        self.0.set_option(IPPROTO_TCP, libc::TCP_NODELAY, on.into())
    }

    /// Sets whether the kernel asks a silent peer from time to time whether it is still there:
    /// `SO_KEEPALIVE`. Default: off. A peer that does not answer ends the connection; `recv` then
    /// fails with `ETIMEDOUT`.
    ///
    /// The kernel begins after 2 hours (on Linux the sysctl `net.ipv4.tcp_keepalive_time`). A
    /// [read timeout](Self::set_read_timeout) finds a silent client sooner.
    ///
    /// # Errors
    /// Those of [`sys::setsockopt`].
    pub fn set_keepalive(&self, on: bool) -> Result<(), Error> {
        self.0.set_option(SOL_SOCKET, libc::SO_KEEPALIVE, on.into())
    }

    /// Sets how long closing waits until the peer has acknowledged what was sent: `SO_LINGER`. The
    /// kernel takes whole seconds, and `wait` is rounded up. Default: `None`, closing does not
    /// wait, and the kernel goes on sending. With zero closing resets the connection, and what was
    /// not yet sent is lost.
    ///
    /// # Errors
    /// Those of [`sys::setsockopt`].
    pub fn set_linger(&self, wait: Option<Duration>) -> Result<(), Error> {
        let wait_or_zero = wait.unwrap_or_default();
        let seconds = wait_or_zero.as_secs() + u64::from(wait_or_zero.subsec_nanos() > 0);
        let value = libc::linger {
            l_onoff: wait.is_some().into(),
            l_linger: seconds.try_into().unwrap_or(c_int::MAX),
        };
        let (at, len) = ((&raw const value).cast(), socklen::<libc::linger>());
        // SAFETY: `value` is readable for `len` bytes, and the option takes that struct.
        let set = unsafe { sys::setsockopt(self.raw(), SOL_SOCKET, os::SO_LINGER, at, len) };
        set.map_err(|error| error.of_option(SOL_SOCKET, os::SO_LINGER))
    }

    /// Ends one direction or both: `shutdown(2)` with [`sys::SHUT_RD`], [`sys::SHUT_WR`] or
    /// [`sys::SHUT_RDWR`]. After `SHUT_WR` the peer reads the end of the stream, and may still
    /// send.
    ///
    /// # Errors
    /// `ENOTCONN` if the peer has reset the connection; `EINVAL` for another value.
    pub fn shutdown(&self, how: c_int) -> Result<(), Error> {
        // SAFETY: the descriptor is ours.
        unsafe { sys::shutdown(self.raw(), how) }
    }

    /// Sets how long [`recv`](Self::recv) waits for the client: `SO_RCVTIMEO`. After that it fails
    /// with `EAGAIN`. `None`, the default, waits without limit.
    ///
    /// With a limit `recv` also fails with `EINTR` after a signal, even one whose handler has
    /// `SA_RESTART`, and after `SIGSTOP` (signal(7)): call it again.
    ///
    /// # Errors
    /// `EINVAL` if the time is zero.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> Result<(), Error> {
        let set = self.set_timeout(libc::SO_RCVTIMEO, timeout);
        set.map_err(|error| error.of_option(SOL_SOCKET, libc::SO_RCVTIMEO))
    }

    /// Sets how long [`send`](Self::send) waits for space in the send buffer: `SO_SNDTIMEO`.
    /// After that it fails with `EAGAIN`. `None`, the default, waits without limit.
    ///
    /// # Errors
    /// `EINVAL` if the time is zero.
    pub fn set_write_timeout(&self, timeout: Option<Duration>) -> Result<(), Error> {
        let set = self.set_timeout(libc::SO_SNDTIMEO, timeout);
        set.map_err(|error| error.of_option(SOL_SOCKET, libc::SO_SNDTIMEO))
    }

    fn set_timeout(&self, name: c_int, timeout: Option<Duration>) -> Result<(), Error> {
        // To the kernel zero means no limit.
        if timeout == Some(Duration::ZERO) {
            return Err(Error::new(Call::SetSockOpt, libc::EINVAL));
        }
        let timeout = timeout.unwrap_or_default();
        // SAFETY: `timeval` is made of integers, for which zeros are a value.
        let mut value: libc::timeval = unsafe { core::mem::zeroed() };
        value.tv_sec = timeout.as_secs().try_into().unwrap_or(i32::MAX.into());
        // Not to zero, and at most 999 999, which every type of the field holds.
        let micros = timeout.subsec_nanos().div_ceil(1000).min(999_999);
        #[allow(clippy::cast_lossless)] // the field has 32 bits on some systems, 64 on others
        let micros = micros as _;
        value.tv_usec = micros;
        let (at, len) = ((&raw const value).cast(), socklen::<libc::timeval>());
        // SAFETY: `value` is readable for `len` bytes, and the option takes that struct.
        unsafe { sys::setsockopt(self.raw(), SOL_SOCKET, name, at, len) }
    }
}
