//! [`UdpSocket`]: a UDP socket, the same story without connections.
//!
//! The kernel chooses a socket for each *datagram*, by a hash of its four-tuple: all of one flow
//! come to one socket, for as long as the group stays as it is. A socket is a member of its port's
//! group from `bind` on. What waits in its queue is lost when it closes, and nobody is told.

use core::ffi::{c_int, c_void};
use core::mem::zeroed;
use core::net::SocketAddr;

use libc::{iovec, msghdr};

use crate::address::SockAddr;
use crate::error::{Call, Error, check};
use crate::listener::Descriptor;
use crate::sys::{self, MSG_NOSIGNAL};

/// A UDP socket. Any number of them may be bound to one port: see [`bind`](Self::bind).
///
/// Dropping it closes it: what waits to be received is lost.
#[derive(Debug)]
pub struct UdpSocket(pub(crate) Descriptor);

/// What [`UdpSocket::recv_from`] received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Received {
    /// The bytes of it that are in the buffer: none, for an empty datagram.
    pub len: usize,
    /// Who sent it.
    pub from: SocketAddr,
    /// It was longer than the buffer, and the rest is lost.
    pub truncated: bool,
}

impl UdpSocket {
    /// `socket`, `setsockopt` and `bind`, as [`Listener::bind`](crate::Listener::bind) for a kind
    /// of socket that does not listen.
    ///
    /// Where several are bound to one port, the kernel gives each flow to one of them
    /// ([`BALANCES`](crate::BALANCES)). Any program of the same user may bind one more.
    pub fn bind(address: impl Into<SocketAddr>) -> Result<UdpSocket, Error> {
        UdpSocket::options().bind(address)
    }

    /// Waits for a datagram and takes it: `recvmsg(2)`. What does not fit into `buffer` is lost,
    /// and that is told.
    ///
    /// Fails with `EINVAL` on a socket that was shut down and has nothing left, as `accept` does;
    /// `recvmsg` itself then returns an empty datagram from nobody. (One that does not block has
    /// `EAGAIN` all the same.) With `ECONNREFUSED` on a connected one whose peer's port is closed.
    pub fn recv_from(&self, buffer: &mut [u8]) -> Result<Received, Error> {
        let mut from = SockAddr::empty();
        let (len, truncated) = self.receive(buffer, &mut from)?;
        let nobody = Error::new(Call::RecvMsg, libc::EINVAL);
        Ok(Received {
            len,
            from: from.get().ok_or(nobody)?,
            truncated,
        })
    }

    /// The bytes received, and whether that was not all.
    pub(crate) fn receive(
        &self,
        buffer: &mut [u8],
        from: &mut SockAddr,
    ) -> Result<(usize, bool), Error> {
        let mut vector = iovec_of(buffer);
        *from = SockAddr::empty();
        let mut message = msghdr_of(&mut vector, from);
        // SAFETY: `message` points to `buffer` and to `from`, writable for the lengths it states.
        let result = unsafe { libc::recvmsg(self.raw(), &raw mut message, 0) };
        let len = check(Call::RecvMsg, result)?.unsigned_abs();
        if !set_peer_len(from, &message) {
            return Err(Error::new(Call::RecvMsg, libc::EINVAL));
        }
        Ok((len, message.msg_flags & libc::MSG_TRUNC != 0))
    }

    /// Sends one datagram: `sendto(2)`. It goes whole or not at all.
    ///
    /// Fails with `EMSGSIZE` for more than 65 507 bytes over IPv4 or 65 527 over IPv6. That nobody
    /// receives it is no error.
    pub fn send_to(&self, bytes: &[u8], to: impl Into<SocketAddr>) -> Result<(), Error> {
        self.send_to_addr(bytes, &SockAddr::from(to.into()))
    }

    pub(crate) fn send_to_addr(&self, bytes: &[u8], to: &SockAddr) -> Result<(), Error> {
        let (data, len, to_len) = (bytes.as_ptr().cast::<c_void>(), bytes.len(), to.len());
        let to = to.as_ptr().cast();
        // SAFETY: a slice is readable for its length, an address for its own.
        let result = unsafe { libc::sendto(self.raw(), data, len, MSG_NOSIGNAL, to, to_len as _) };
        check(Call::SendTo, result).map(drop)
    }

    /// From now on receives from `peer` alone, and may [`send`](Self::send) to it: `connect(2)`.
    ///
    /// On Linux 6.13 and later it leaves its port's group; before that it stays in, and is passed
    /// over.
    pub fn connect(&self, peer: impl Into<SocketAddr>) -> Result<(), Error> {
        let peer = SockAddr::from(peer.into());
        let at = peer.as_ptr().cast();
        // SAFETY: `peer` is readable for its own length.
        let result = unsafe { libc::connect(self.raw(), at, peer.len() as _) };
        check(Call::Connect, result).map(drop)
    }

    /// Sends one datagram to the peer that it is connected to: `send(2)`.
    ///
    /// Fails with `ECONNREFUSED` if an earlier one found the peer's port closed, and with
    /// `EDESTADDRREQ` if it is not connected.
    pub fn send(&self, bytes: &[u8]) -> Result<(), Error> {
        let data = bytes.as_ptr().cast();
        // SAFETY: a slice is readable for its length.
        unsafe { sys::send(self.raw(), data, bytes.len(), MSG_NOSIGNAL) }.map(drop)
    }

    /// The address it is bound to: `getsockname(2)`. Tells what port 0 became.
    pub fn local_addr(&self) -> Result<SocketAddr, Error> {
        self.0.local_addr()
    }

    /// Whether [`recv_from`](Self::recv_from) returns `EAGAIN` where nothing waits.
    pub fn set_nonblocking(&self, on: bool) -> Result<(), Error> {
        self.0.set_nonblocking(on)
    }

    pub(crate) const fn raw(&self) -> c_int {
        self.0.raw()
    }
}

pub(crate) fn iovec_of(buffer: &mut [u8]) -> iovec {
    iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    }
}

/// A message whose bytes are those of `vector`, and whose other end is `peer`'s.
pub(crate) fn msghdr_of(vector: &mut iovec, peer: &mut SockAddr) -> msghdr {
    // SAFETY: it is made of integers and pointers, for which zeros are a value.
    let mut message: msghdr = unsafe { zeroed() };
    message.msg_name = peer.as_mut_ptr();
    message.msg_namelen = peer.len();
    message.msg_iov = vector;
    message.msg_iovlen = 1;
    message
}

/// Takes over how long the name is that the kernel has written to `peer`. False: it came from
/// nobody.
pub(crate) fn set_peer_len(peer: &mut SockAddr, message: &msghdr) -> bool {
    // The kernel tells how long it would have been; only so much is there.
    let len = message.msg_namelen.min(peer.len());
    // SAFETY: it points into `peer`, which nobody else uses.
    unsafe { *peer.len_mut_ptr() = len };
    len > 0
}
