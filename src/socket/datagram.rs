//! [`Datagram`]: a datagram that was received, with the buffer for its reply.

use core::fmt;
use core::net::SocketAddr;

use crate::address::SockAddr;
use crate::socket::destination::Destination;
use crate::socket::udp::{Received, UdpSocket};

/// A datagram that was received, and the buffer in which its reply may be written.
///
/// The handler of a [`Group`](crate#where-to-start) of UDP sockets gets one, as in the [second
/// example](crate#what-to-type); so does the user of a `Batch`.
pub struct Datagram<'a> {
    pub(crate) socket: &'a UdpSocket,
    pub(crate) buffer: &'a mut [u8],
    pub(crate) len: usize,
    pub(crate) truncated: bool,
    pub(crate) peer: &'a SockAddr,
    pub(crate) destination: Option<Destination>,
    pub(crate) reply: &'a mut Option<usize>,
    pub(crate) routing_byte: Option<u8>,
}

impl Datagram<'_> {
    /// Returns the bytes that were received.
    pub fn payload(&self) -> &[u8] {
        self.buffer.get(..self.len).unwrap_or_default()
    }

    /// Returns the sender's address.
    pub fn peer_addr(&self) -> SocketAddr {
        let unspecified = SocketAddr::from(([0; 4], 0));
        self.peer.get().unwrap_or(unspecified)
    }

    /// Returns what [`UdpSocket::recv_from`] returns: it can be kept, to
    /// [reply](UdpSocket::reply) later.
    pub fn received(&self) -> Received {
        Received {
            len: self.len,
            from: self.peer_addr(),
            truncated: self.truncated,
            destination: self.destination,
        }
    }

    /// Returns whether the datagram was longer than the buffer, so that the rest of it is lost.
    pub fn is_truncated(&self) -> bool {
        self.truncated
    }

    /// Returns the socket that received the datagram.
    pub fn socket(&self) -> &UdpSocket {
        self.socket
    }

    /// Returns the routing byte of the member that received it, for the connection ids that its
    /// server makes: see `MemberStats::routing_byte`. `None` if no `Server` received it.
    pub fn routing_byte(&self) -> Option<u8> {
        self.routing_byte
    }

    /// Returns the whole buffer, to write the reply into. It begins with the payload; the bytes
    /// after the payload are from earlier datagrams, also of other senders.
    pub fn buffer_mut(&mut self) -> &mut [u8] {
        self.buffer
    }

    /// Sends the first `len` bytes of the [buffer](Self::buffer_mut) to the sender, once this
    /// datagram has been handled; in a batch, once all have been. It leaves from the address that
    /// the datagram was sent to, as with [`UdpSocket::reply`]. A `len` beyond the buffer is cut.
    pub fn reply(self, len: usize) {
        *self.reply = Some(len.min(self.buffer.len()));
    }
}

impl fmt::Debug for Datagram<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Datagram")
            .field("peer", &self.peer)
            .field("len", &self.len)
            .field("truncated", &self.truncated)
            .finish_non_exhaustive()
    }
}
