//! The first member of a group: it binds its port exclusively, and only then shares it. `no_std`.
//!
//! A group whose members all set `SO_REUSEPORT` before `bind` does not keep other programs out: a
//! second copy of the program joins silently. So the first socket binds *and listens* without the
//! option; the kernel refuses that while another socket holds the port. `bind` alone is not enough:
//! two sockets with `SO_REUSEADDR` may both bind while neither listens. Afterwards the first socket
//! sets the option, and the other members can bind.

use core::net::SocketAddr;

#[cfg(feature = "std")]
use super::socket::{attach_program, detach_program};
use crate::address::SockAddr;
use crate::error::Error;
use crate::listener::{Descriptor, Listener};
#[cfg(feature = "std")]
use crate::socket::bpf;
use crate::socket::options::Options;
use crate::socket::protocol::Udp;
use crate::socket::udp::UdpSocket;
#[cfg(feature = "std")]
use crate::sys::SO_REUSEADDR;
use crate::sys::{SO_REUSEPORT, SOCK_STREAM, SOL_SOCKET};

impl Options<'_> {
    /// Binds a listener that no other socket shares its port with, then lets siblings bind:
    /// [`bind`](Self::bind) to the same address. So a second copy of the program is refused. It
    /// sets `SO_REUSEADDR`, and does not need the standard library.
    ///
    /// The listener can be steered once it has a sibling.
    ///
    /// `Group::bind` begins with the same calls, and makes the first member steerable. It also
    /// binds over connections in `TIME_WAIT` that were left by a server which set `SO_REUSEPORT`
    /// alone; this method is refused then, for a minute.
    ///
    /// # Errors
    /// `EADDRINUSE` if another socket listens on the port, or is bound to it; those of
    /// [`bind`](Self::bind).
    ///
    /// # Platforms
    /// Linux and Android alone.
    ///
    /// # Examples
    /// ```
    /// use reuseport::Listener;
    ///
    /// let first = Listener::options().bind_exclusive(([127, 0, 0, 1], 0))?;
    /// let address = first.local_addr()?;
    /// assert!(Listener::options().bind_exclusive(address).is_err());
    /// let second = Listener::bind(address)?; // a sibling
    /// # Ok::<(), reuseport::Error>(())
    /// ```
    #[inline(always)]
    pub fn bind_exclusive(&self, address: impl Into<SocketAddr>) -> Result<Listener, Error> {
        self.bind_exclusive_after(address.into(), |_| Ok(()))
    }

    /// Binds exclusively, and does `prepare` before `listen`.
    #[inline(always)]
    pub(super) fn bind_exclusive_after(
        &self,
        address: SocketAddr,
        prepare: impl FnOnce(&Descriptor) -> Result<(), Error>,
    ) -> Result<Listener, Error> {
        let exclusive = self.reuse_port(false).reuse_address(true);
        let addr = SockAddr::from(address);
        let first = Listener(exclusive.make(SOCK_STREAM, &addr)?);
        first.0.bind(&addr)?;
        prepare(&first.0)?;
        exclusive.listen(&first)?;
        first.set_reuse_port()?;
        Ok(first)
    }
}

impl Options<'_, Udp> {
    /// Binds a UDP socket that no other socket shares its port with, then lets siblings bind, as
    /// the method of a listener's options does. Nothing lingers on a UDP port, so `bind` alone
    /// tells whether another socket is there.
    ///
    /// # Errors
    /// `EADDRINUSE` if another socket is bound to the port; those of [`bind`](Self::bind).
    ///
    /// # Platforms
    /// Linux and Android alone.
    pub fn bind_exclusive(&self, address: impl Into<SocketAddr>) -> Result<UdpSocket, Error> {
        self.bind_exclusive_after(address.into(), |_| Ok(()))
    }

    fn bind_exclusive_after(
        &self,
        address: SocketAddr,
        prepare: impl FnOnce(&Descriptor) -> Result<(), Error>,
    ) -> Result<UdpSocket, Error> {
        let first = self.reuse_port(false).bind_after(address, prepare)?;
        first.0.set_option(SOL_SOCKET, SO_REUSEPORT, 1)?;
        Ok(first)
    }
}

/// For a group's first member.
#[cfg(feature = "std")]
pub(crate) fn bind_exclusive_udp(
    options: &Options<'_, Udp>,
    address: SocketAddr,
) -> Result<UdpSocket, Error> {
    options.bind_exclusive_after(address, create_reuseport_group)
}

/// For a group's further members. The kernel puts a socket into the group of the one on its port
/// that was bound last. A member that has left may still be open, and has no group: the kernel
/// would give it one, with the new member, apart from the others. So it has given up
/// `SO_REUSEPORT` ([`leave_port`]), and `bind` passes over it by `SO_REUSEADDR`, which both have.
///
/// The members do not have `SO_REUSEADDR`: no other program can bind by it.
#[cfg(feature = "std")]
pub(crate) fn bind_member_udp(
    options: &Options<'_, Udp>,
    member: &UdpSocket,
    address: SocketAddr,
) -> Result<(), Error> {
    let reuse = |on| member.0.set_option(SOL_SOCKET, SO_REUSEADDR, on);
    reuse(1)?;
    options.bind_prepared(member, address)?;
    reuse(0)
}

/// Has [`bind_member_udp`] pass over a member that has left.
#[cfg(feature = "std")]
pub(crate) fn leave_port(socket: &Descriptor) -> Result<(), Error> {
    socket.set_option(SOL_SOCKET, SO_REUSEADDR, 1)?;
    socket.set_option(SOL_SOCKET, SO_REUSEPORT, 0)
}

/// Gives the socket a group of its own. A socket that has the option neither at `bind` nor at
/// `listen` has none, and could not be steered before it has a sibling; attaching a program before
/// `listen` makes one. Where this fails, steering fails later and reports it.
#[cfg(feature = "std")]
pub(super) fn create_reuseport_group(socket: &Descriptor) -> Result<(), Error> {
    socket.set_option(SOL_SOCKET, SO_REUSEPORT, 1)?;
    // There is no program yet. Before Linux 5.3 a program cannot be detached, and would stay.
    let none = detach_program(socket).map_err(Error::errno);
    if none != Err(libc::ENOPROTOOPT) && attach_program(socket, &bpf::random(1)).is_ok() {
        detach_program(socket)?;
    }
    socket.set_option(SOL_SOCKET, SO_REUSEPORT, 0)
}
