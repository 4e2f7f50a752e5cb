//! [`UdpSocket`]: a UDP socket.
//!
//! The kernel chooses a socket for each *datagram*, by a hash of its four-tuple: all datagrams of a
//! flow reach one socket while the group stays as it is. A socket is a member of its port's group
//! from `bind` on. When it closes, its queued datagrams are lost, and no error is reported.

use core::ffi::{c_int, c_void};
use core::mem::zeroed;
use core::net::SocketAddr;
#[cfg(feature = "std")]
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use libc::{iovec, msghdr};

use crate::address::SockAddr;
use crate::error::{Call, Error, check};
use crate::listener::Descriptor;
use crate::socket::destination::{Control, Destination, destination};
use crate::sys::{self, MSG_NOSIGNAL};

/// A UDP socket. Any number of them may be bound to one port: see [`bind`](Self::bind).
///
/// Dropping it closes it: queued datagrams are lost.
///
/// # Examples
/// ```
/// use reuseport::UdpSocket;
///
/// let server = UdpSocket::bind(([127, 0, 0, 1], 0))?;
/// let client = UdpSocket::bind(([127, 0, 0, 1], 0))?;
/// client.send_to(b"hello", server.local_addr()?)?;
///
/// let mut buffer = [0; 1500];
/// let received = server.recv_from(&mut buffer)?;
/// assert_eq!(&buffer[..received.len], b"hello");
/// assert_eq!(received.from, client.local_addr()?);
/// # Ok::<(), reuseport::Error>(())
/// ```
#[derive(Debug)]
pub struct UdpSocket(pub(crate) Descriptor);

/// A datagram's length and addresses, from [`UdpSocket::recv_from`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Received {
    /// The bytes of it that are in the buffer: 0 for an empty datagram.
    pub len: usize,
    /// The sender's address.
    pub from: SocketAddr,
    /// Whether it was longer than the buffer, so that the rest of it is lost.
    pub truncated: bool,
    /// Where it was sent to, if the kernel [reports](UdpSocket::bind) that.
    pub destination: Option<Destination>,
}

impl UdpSocket {
    /// Binds `address`: `socket`, `setsockopt` for `SO_REUSEPORT`, `bind`. Port 0 is any free port.
    ///
    /// Where several sockets are bound to one port, the kernel gives each flow to one of them
    /// ([`BALANCES`](crate::BALANCES)). Any program of the same user may bind one more.
    ///
    /// A socket on a wildcard or multicast address also sets `IP_PKTINFO` and `IPV6_RECVPKTINFO`
    /// (on the BSDs `IP_RECVDSTADDR`) before `bind`: the kernel then reports where each datagram
    /// was sent to, and [`reply`](Self::reply) answers from there.
    ///
    /// # Errors
    /// Those of [`sys::socket`], [`sys::setsockopt`] and [`sys::bind`].
    pub fn bind(address: impl Into<SocketAddr>) -> Result<UdpSocket, Error> {
        UdpSocket::options().bind(address)
    }

    /// Waits for a datagram and receives it: `recvmsg(2)`. What does not fit into `buffer` is lost,
    /// and [`Received::truncated`] is true.
    ///
    /// # Errors
    /// - `EINVAL`: the socket was shut down, and its queue is empty. (`recvmsg` itself then returns
    ///   an empty datagram without a sender. A socket that does not block fails with `EAGAIN`.)
    /// - `EAGAIN`: the queue is empty, and the socket does not block.
    /// - `ECONNREFUSED`: the socket is connected, and the peer's port is closed.
    /// - `EINTR`: a signal handler ran.
    pub fn recv_from(&self, buffer: &mut [u8]) -> Result<Received, Error> {
        let mut from = SockAddr::empty();
        let (len, truncated, destination) = self.receive(buffer, &mut from)?;
        let no_sender = Error::new(Call::RecvMsg, libc::EINVAL);
        Ok(Received {
            len,
            from: from.get().ok_or(no_sender)?,
            truncated,
            destination,
        })
    }

    /// Receives one datagram. Returns its length, whether it is truncated, and its destination.
    pub(crate) fn receive(
        &self,
        buffer: &mut [u8],
        from: &mut SockAddr,
    ) -> Result<(usize, bool, Option<Destination>), Error> {
        let (mut vector, mut control) = (iovec_of(buffer), Control::EMPTY);
        *from = SockAddr::empty();
        let mut message = msghdr_of(&mut vector, from);
        control.receive(&mut message);
        // SAFETY: `message` points to `buffer`, to `from` and to `control`, writable for the
        // lengths it states.
        let result = unsafe { libc::recvmsg(self.raw(), &raw mut message, 0) };
        let len = check(Call::RecvMsg, result)?.unsigned_abs();
        if !set_peer_len(from, &message) {
            return Err(Error::new(Call::RecvMsg, libc::EINVAL));
        }
        let truncated = message.msg_flags & libc::MSG_TRUNC != 0;
        Ok((len, truncated, destination(&message)))
    }

    /// Sends one datagram, whole or not at all: `sendto(2)`. That no process receives it is no
    /// error.
    ///
    /// # Errors
    /// - `EMSGSIZE`: more than 65 507 bytes over IPv4, or 65 527 over IPv6.
    /// - `EAGAIN`: the send buffer is full, and the socket does not block.
    /// - `ENETUNREACH`, `EHOSTUNREACH`, `EPERM`: there is no route, or a firewall.
    /// - `EACCES`: the address is a broadcast address, and `SO_BROADCAST` is not set.
    /// - `EINTR`: a signal handler ran.
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

    /// Sends one datagram to the sender of the one `received`, from the address which that was sent
    /// to: `sendmsg(2)`. An answer to a multicast or broadcast leaves from the address of the
    /// interface that it came through.
    ///
    /// Without a [destination](Received::destination) it is [`send_to`](Self::send_to).
    ///
    /// # Errors
    /// Those of [`send_to`](Self::send_to), and `EINVAL` or `EADDRNOTAVAIL` if the machine has lost
    /// that address.
    ///
    /// # Examples
    /// ```
    /// use reuseport::UdpSocket;
    ///
    /// let server = UdpSocket::bind(([0, 0, 0, 0], 0))?;
    /// let asked = ([127, 0, 0, 2], server.local_addr()?.port()).into();
    /// let client = UdpSocket::bind(([127, 0, 0, 1], 0))?;
    /// # if cfg!(target_os = "linux") {
    /// client.send_to(b"hello", asked)?;
    ///
    /// let mut buffer = [0; 1500];
    /// let received = server.recv_from(&mut buffer)?;
    /// server.reply(&buffer[..received.len], &received)?;
    /// assert_eq!(client.recv_from(&mut buffer)?.from, asked);
    /// # }
    /// # Ok::<(), reuseport::Error>(())
    /// ```
    pub fn reply(&self, bytes: &[u8], received: &Received) -> Result<(), Error> {
        self.send_from(bytes, &SockAddr::from(received.from), received.destination)
    }

    /// Sends one datagram from where another was sent to.
    pub(crate) fn send_from(
        &self,
        bytes: &[u8],
        to: &SockAddr,
        from: Option<Destination>,
    ) -> Result<(), Error> {
        let Some(from) = from else {
            return self.send_to_addr(bytes, to);
        };
        let (mut to, mut control) = (*to, Control::EMPTY);
        let mut vector = iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        };
        let mut message = msghdr_of(&mut vector, &mut to);
        control.send_from(&from, &mut message);
        // SAFETY: `message` points to `bytes`, to `to` and to `control`, readable for the lengths
        // it states; the kernel writes to none of them.
        let result = unsafe { libc::sendmsg(self.raw(), &raw const message, MSG_NOSIGNAL) };
        check(Call::SendMsg, result).map(drop)
    }

    /// Connects the socket to `peer`: `connect(2)`. From then on it receives from `peer` only, and
    /// [`send`](Self::send) sends to it.
    ///
    /// On Linux 6.13 and later the socket leaves its port's group. Before 6.13 it stays a member,
    /// and gets no datagrams of other senders.
    ///
    /// # Errors
    /// Those of `connect(2)`: `EAFNOSUPPORT` for an address of the other family, for example.
    pub fn connect(&self, peer: impl Into<SocketAddr>) -> Result<(), Error> {
        let peer = SockAddr::from(peer.into());
        let at = peer.as_ptr().cast();
        // SAFETY: `peer` is readable for its own length.
        let result = unsafe { libc::connect(self.raw(), at, peer.len() as _) };
        check(Call::Connect, result).map(drop)
    }

    /// Connects it to the loopback address, which takes it out of its group, whatever copies of it
    /// there are: see [`connect`](Self::connect).
    #[cfg(feature = "std")]
    pub(crate) fn connect_to_loopback(&self) -> Result<(), Error> {
        let mut peer = self.local_addr()?;
        peer.set_ip(match peer.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some() => {
                Ipv4Addr::LOCALHOST.to_ipv6_mapped().into()
            }
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
        self.connect(peer)
    }

    /// Sends one datagram to the connected peer: `send(2)`.
    ///
    /// # Errors
    /// - `ECONNREFUSED`: an earlier datagram found the peer's port closed.
    /// - `EDESTADDRREQ`: the socket is not connected.
    /// - `EMSGSIZE`: as for [`send_to`](Self::send_to).
    pub fn send(&self, bytes: &[u8]) -> Result<(), Error> {
        let data = bytes.as_ptr().cast();
        // SAFETY: a slice is readable for its length.
        unsafe { sys::send(self.raw(), data, bytes.len(), MSG_NOSIGNAL) }.map(drop)
    }

    /// Returns the bound address, with the port that port 0 became.
    ///
    /// # Errors
    /// Those of [`sys::getsockname`].
    pub fn local_addr(&self) -> Result<SocketAddr, Error> {
        self.0.local_addr()
    }

    /// Sets whether [`recv_from`](Self::recv_from) fails with `EAGAIN` if the queue is empty.
    /// Default: off.
    ///
    /// # Errors
    /// None is known on an open socket.
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

/// Makes a message header for the bytes of `vector` and the address of `peer`.
pub(crate) fn msghdr_of(vector: &mut iovec, peer: &mut SockAddr) -> msghdr {
    // SAFETY: it is made of integers and pointers, for which zeros are a value.
    let mut message: msghdr = unsafe { zeroed() };
    message.msg_name = peer.as_mut_ptr();
    message.msg_namelen = peer.len();
    message.msg_iov = vector;
    message.msg_iovlen = 1;
    message
}

/// Takes over the length of the address that the kernel has written to `peer`. Returns false if
/// there is no sender.
pub(crate) fn set_peer_len(peer: &mut SockAddr, message: &msghdr) -> bool {
    // The kernel returns the full length; the buffer has no more than its own.
    let len = message.msg_namelen.min(peer.len());
    // SAFETY: it points into `peer`, which this function borrows exclusively.
    unsafe { *peer.len_mut_ptr() = len };
    len > 0
}
