//! [`Batch`]: many datagrams with one system call.

use core::mem::zeroed;
use core::slice::ChunksExactMut;
use core::{fmt, ptr};

use libc::{MSG_TRUNC, MSG_WAITFORONE, iovec, mmsghdr};

use crate::address::SockAddr;
use crate::error::{Call, Error, check};
use crate::socket::datagram::Datagram;
use crate::socket::destination::{Control, Destination, destination};
use crate::socket::udp::{UdpSocket, iovec_of, msghdr_of, set_peer_len};
use crate::sys::MSG_NOSIGNAL;

/// Up to `N` datagrams, received by one system call and answered by another.
///
/// It allocates nothing: the datagrams lie in a buffer of the caller, in `N` equal parts.
///
/// # Platforms
/// Linux and Android alone.
///
/// # Examples
/// ```
/// use reuseport::{Batch, UdpSocket};
///
/// let server = UdpSocket::bind(([127, 0, 0, 1], 0))?;
/// let client = UdpSocket::bind(([127, 0, 0, 1], 0))?;
/// client.send_to(b"one", server.local_addr()?)?;
/// client.send_to(b"two", server.local_addr()?)?;
///
/// let mut buffer = [0; 16 * 1500];
/// let mut batch = Batch::<16>::new(&mut buffer);
/// batch.receive(&server)?;
/// for datagram in batch.datagrams(&server) {
///     let len = datagram.payload().len();
///     datagram.reply(len);
/// }
/// batch.send_replies(&server)?;
/// # Ok::<(), reuseport::Error>(())
/// ```
pub struct Batch<'b, const N: usize> {
    buffer: &'b mut [u8],
    received: usize,
    lens: [usize; N],
    truncated: [bool; N],
    peers: [SockAddr; N],
    destinations: [Option<Destination>; N],
    replies: [Option<usize>; N],
}

impl<'b, const N: usize> Batch<'b, N> {
    /// Makes an empty batch. Each datagram gets an `N`th of `buffer`.
    pub const fn new(buffer: &'b mut [u8]) -> Batch<'b, N> {
        Batch {
            buffer,
            received: 0,
            lens: [0; N],
            truncated: [false; N],
            peers: [SockAddr::empty(); N],
            destinations: [None; N],
            replies: [None; N],
        }
    }

    /// Waits for a datagram, takes it and those that are queued behind it, and returns how many:
    /// `recvmmsg(2)` with `MSG_WAITFORONE`. The datagrams received before are forgotten.
    ///
    /// # Errors
    /// As [`UdpSocket::recv_from`], and `EINVAL` if the buffer is empty.
    pub fn receive(&mut self, socket: &UdpSocket) -> Result<usize, Error> {
        self.received = 0;
        self.replies = [None; N];
        self.peers = [SockAddr::empty(); N];
        let (mut vectors, mut headers) = zeroed_headers::<N>();
        let mut controls = [Control::EMPTY; N];
        let parts = parts::<N>(self.buffer);
        let rows = vectors.iter_mut().zip(&mut headers).zip(&mut controls);
        let mut count = 0;
        for (((vector, header), control), (peer, part)) in
            rows.zip(self.peers.iter_mut().zip(parts))
        {
            *vector = iovec_of(part);
            header.msg_hdr = msghdr_of(vector, peer);
            control.receive(&mut header.msg_hdr);
            count += 1;
        }
        let (fd, first) = (socket.raw(), headers.as_mut_ptr());
        // SAFETY: each of the `count` headers points to a part of `buffer`, to an address and to
        // room for control messages, writable for the lengths it states; there is no time limit.
        let result =
            unsafe { libc::recvmmsg(fd, first, count, MSG_WAITFORONE as _, ptr::null_mut()) };
        let received = check(Call::RecvMmsg, result)?.unsigned_abs() as usize;
        let fields = self.lens.iter_mut().zip(&mut self.truncated);
        let fields = fields.zip(self.peers.iter_mut().zip(&mut self.destinations));
        for (header, ((len, truncated), (peer, to))) in headers.iter().take(received).zip(fields) {
            if !set_peer_len(peer, &header.msg_hdr) {
                break; // without a sender: the socket was shut down, and this is the end
            }
            self.received += 1;
            *len = header.msg_len as usize;
            *truncated = header.msg_hdr.msg_flags & MSG_TRUNC != 0;
            *to = destination(&header.msg_hdr);
        }
        match self.received {
            0 => Err(Error::new(Call::RecvMmsg, libc::EINVAL)),
            some => Ok(some),
        }
    }

    /// Returns the datagrams that `socket` received, in the order in which they came.
    pub fn datagrams<'a>(
        &'a mut self,
        socket: &'a UdpSocket,
    ) -> impl Iterator<Item = Datagram<'a>> {
        let parts = parts::<N>(self.buffer);
        let fields = self.lens.iter().zip(&self.truncated);
        let addresses = self.peers.iter().zip(&self.destinations);
        let fields = fields.zip(self.replies.iter_mut().zip(addresses));
        let all = parts.zip(fields).take(self.received);
        all.map(
            move |(buffer, ((len, truncated), (reply, (peer, to))))| Datagram {
                socket,
                buffer,
                len: *len,
                truncated: *truncated,
                peer,
                destination: *to,
                reply,
                routing_byte: None,
            },
        )
    }

    /// Sends every reply that was given, and returns how many were sent: `sendmmsg(2)`, as often as
    /// it takes.
    ///
    /// # Errors
    /// A reply that cannot be sent is left out and the others are sent. The first such error is
    /// returned once all have been tried.
    pub fn send_replies(&mut self, socket: &UdpSocket) -> Result<usize, Error> {
        let (sent, _, error) = self.try_replies(socket);
        error.map_or(Ok(sent), Err)
    }

    /// Returns how many were sent, how many could not be sent, and the first error.
    pub(crate) fn try_replies(&mut self, socket: &UdpSocket) -> (usize, usize, Option<Error>) {
        let (mut vectors, mut headers) = zeroed_headers::<N>();
        let parts = parts::<N>(self.buffer);
        let mut controls = [Control::EMPTY; N];
        let addresses = self.peers.iter_mut().zip(&self.destinations);
        let replies = self.replies.iter_mut().zip(addresses).zip(parts);
        let given = replies.filter_map(|((reply, to), part)| Some((reply.take()?, to, part)));
        let rows = vectors.iter_mut().zip(&mut headers).zip(&mut controls);
        let mut count = 0;
        for (((vector, header), control), (len, (peer, from), part)) in rows.zip(given) {
            *vector = iovec_of(part.get_mut(..len).unwrap_or_default());
            header.msg_hdr = msghdr_of(vector, peer);
            if let Some(from) = from {
                control.send_from(from, &mut header.msg_hdr);
            }
            count += 1;
        }
        let mut rest = headers.get_mut(..count).unwrap_or_default();
        let (mut failed, mut first_error) = (0, None);
        while let [first, ..] = rest {
            let (fd, first, left) = (socket.raw(), &raw mut *first, rest.len());
            #[allow(clippy::cast_possible_truncation)] // `left` is at most N, an array's length
            // SAFETY: each of the `left` headers points to a part of `buffer`, to an address and to
            // a control message or none, readable for the lengths it states.
            let result = unsafe { libc::sendmmsg(fd, first, left as _, MSG_NOSIGNAL as _) };
            let done = match check(Call::SendMmsg, result) {
                Ok(sent) => sent.unsigned_abs() as usize,
                Err(error) if error.errno() == libc::EINTR => 0,
                Err(error) => {
                    // The error is about the first of the rest.
                    first_error = first_error.or(Some(error));
                    failed += 1;
                    1
                }
            };
            rest = rest.get_mut(done..).unwrap_or_default();
        }
        (count - failed, failed, first_error)
    }
}

fn zeroed_headers<const N: usize>() -> ([iovec; N], [mmsghdr; N]) {
    // SAFETY: both are made of integers and pointers, for which zeros are a value.
    unsafe { zeroed() }
}

/// The parts of the buffer. An empty buffer has none.
fn parts<const N: usize>(buffer: &mut [u8]) -> ChunksExactMut<'_, u8> {
    let size = buffer.len() / N.max(1);
    buffer.chunks_exact_mut(size.max(1))
}

impl<const N: usize> fmt::Debug for Batch<'_, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch")
            .field("received", &self.received)
            .finish_non_exhaustive()
    }
}
