//! [`Datagram`], a datagram that can be answered where it lies; and [`Batch`], many of them in one
//! system call (Linux, Android).

use core::fmt;
use core::net::SocketAddr;

use crate::address::SockAddr;
use crate::socket::udp::UdpSocket;

/// A datagram that was received, and the room in which its answer may be written.
pub struct Datagram<'a> {
    pub(crate) socket: &'a UdpSocket,
    pub(crate) buffer: &'a mut [u8],
    pub(crate) len: usize,
    pub(crate) truncated: bool,
    pub(crate) from: &'a SockAddr,
    pub(crate) answer: &'a mut Option<usize>,
}

impl Datagram<'_> {
    /// The bytes that came.
    pub fn payload(&self) -> &[u8] {
        self.buffer.get(..self.len).unwrap_or_default()
    }

    /// Who sent it.
    pub fn peer_addr(&self) -> SocketAddr {
        let nobody = SocketAddr::from(([0; 4], 0));
        self.from.get().unwrap_or(nobody)
    }

    /// It was longer than the room, and the rest is lost.
    pub fn is_truncated(&self) -> bool {
        self.truncated
    }

    /// The socket that received it, to send by.
    pub fn socket(&self) -> &UdpSocket {
        self.socket
    }

    /// All the room, which begins with the bytes that came: write the answer there. Behind them
    /// lies what earlier datagrams left, whoever sent those.
    pub fn buffer_mut(&mut self) -> &mut [u8] {
        self.buffer
    }

    /// Sends the first `len` bytes of the [buffer](Self::buffer_mut) back to where this came from, as soon
    /// as it has been handled; of a batch, once all have been.
    pub fn reply(self, len: usize) {
        *self.answer = Some(len.min(self.buffer.len()));
    }
}

impl fmt::Debug for Datagram<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Datagram");
        shown.field("from", &self.from).field("len", &self.len);
        shown
            .field("truncated", &self.truncated)
            .finish_non_exhaustive()
    }
}

#[cfg(linux_kernel)]
pub use linux::Batch;

#[cfg(linux_kernel)]
mod linux {
    use core::mem::zeroed;
    use core::slice::ChunksExactMut;
    use core::{fmt, ptr};

    use libc::{MSG_TRUNC, MSG_WAITFORONE, iovec, mmsghdr};

    use super::{Datagram, SockAddr, UdpSocket};
    use crate::error::{Call, Error, check};
    use crate::socket::udp::{message, name_of, vector};
    use crate::sys::MSG_NOSIGNAL;

    /// Up to `N` datagrams, received by one system call and answered by another. It allocates
    /// nothing: the bytes lie in a buffer of the caller's, in `N` equal parts. Linux and Android
    /// alone.
    ///
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
    /// for message in batch.messages(&server) {
    ///     let len = message.payload().len();
    ///     message.reply(len);
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
        answers: [Option<usize>; N],
    }

    impl<'b, const N: usize> Batch<'b, N> {
        /// Nothing yet. Each datagram has an `N`th of `buffer` as its room.
        pub const fn new(buffer: &'b mut [u8]) -> Batch<'b, N> {
            Batch {
                buffer,
                received: 0,
                lens: [0; N],
                truncated: [false; N],
                peers: [SockAddr::empty(); N],
                answers: [None; N],
            }
        }

        /// Waits for a datagram, takes it and those that wait behind it, and returns how many:
        /// `recvmmsg(2)` with `MSG_WAITFORONE`. What was received before is forgotten.
        ///
        /// Fails as [`UdpSocket::recv_from`], and with `EINVAL` if the buffer is empty.
        pub fn receive(&mut self, socket: &UdpSocket) -> Result<usize, Error> {
            self.received = 0;
            self.answers = [None; N];
            self.peers = [SockAddr::empty(); N];
            let (mut vectors, mut headers) = Self::space();
            let rooms = rooms::<N>(self.buffer);
            let rows = vectors.iter_mut().zip(&mut headers).zip(&mut self.peers);
            let mut count = 0;
            for (((at, header), peer), room) in rows.zip(rooms) {
                *at = vector(room);
                header.msg_hdr = message(at, peer);
                count += 1;
            }
            let (fd, first) = (socket.raw(), headers.as_mut_ptr());
            // SAFETY: each of the `count` headers points to a part of `buffer` and to an address,
            // writable for the lengths it states; there is no time limit.
            let result =
                unsafe { libc::recvmmsg(fd, first, count, MSG_WAITFORONE as _, ptr::null_mut()) };
            let received = check(Call::RecvMmsg, result)?.unsigned_abs() as usize;
            let told = self
                .lens
                .iter_mut()
                .zip(&mut self.truncated)
                .zip(&mut self.peers);
            for (header, ((len, truncated), peer)) in headers.iter().take(received).zip(told) {
                if !name_of(peer, &header.msg_hdr) {
                    break; // from nobody: the socket was shut down, and this is the end
                }
                self.received += 1;
                *len = header.msg_len as usize;
                *truncated = header.msg_hdr.msg_flags & MSG_TRUNC != 0;
            }
            match self.received {
                0 => Err(Error::new(Call::RecvMmsg, libc::EINVAL)),
                some => Ok(some),
            }
        }

        /// What was received by `socket`, in the order in which it came.
        pub fn messages<'a>(
            &'a mut self,
            socket: &'a UdpSocket,
        ) -> impl Iterator<Item = Datagram<'a>> {
            let rooms = rooms::<N>(self.buffer);
            let answers = self.answers.iter_mut().zip(&self.peers);
            let told = self.lens.iter().zip(&self.truncated).zip(answers);
            let all = rooms.zip(told).take(self.received);
            all.map(move |(room, ((len, truncated), (answer, from)))| Datagram {
                socket,
                buffer: room,
                len: *len,
                truncated: *truncated,
                from,
                answer,
            })
        }

        /// Sends every answer that was given: `sendmmsg(2)`, as often as it takes. Returns how many
        /// were sent.
        ///
        /// An answer that cannot be sent is left out, and the others go. Fails with the first such
        /// error, once all have been tried.
        pub fn send_replies(&mut self, socket: &UdpSocket) -> Result<usize, Error> {
            let (sent, _, error) = self.try_answers(socket);
            error.map_or(Ok(sent), Err)
        }

        /// How many were sent; how many could not be, and why the first of these could not.
        pub(crate) fn try_answers(&mut self, socket: &UdpSocket) -> (usize, usize, Option<Error>) {
            let (mut vectors, mut headers) = Self::space();
            let rooms = rooms::<N>(self.buffer);
            let answers = self.answers.iter_mut().zip(&mut self.peers).zip(rooms);
            let given =
                answers.filter_map(|((answer, peer), room)| Some((answer.take()?, peer, room)));
            let mut count = 0;
            for ((at, header), (len, peer, room)) in vectors.iter_mut().zip(&mut headers).zip(given)
            {
                *at = vector(room.get_mut(..len).unwrap_or_default());
                header.msg_hdr = message(at, peer);
                count += 1;
            }
            let mut rest = headers.get_mut(..count).unwrap_or_default();
            let (mut failed, mut why) = (0, None);
            while let [first, ..] = rest {
                let (fd, first, left) = (socket.raw(), &raw mut *first, rest.len());
                #[allow(clippy::cast_possible_truncation)] // `left` is at most N, an array's length
                // SAFETY: each of the `left` headers points to a part of `buffer` and to an
                // address, readable for the lengths it states.
                let result = unsafe { libc::sendmmsg(fd, first, left as _, MSG_NOSIGNAL as _) };
                let done = match check(Call::SendMmsg, result) {
                    Ok(sent) => sent.unsigned_abs() as usize,
                    Err(error) if error.errno() == libc::EINTR => 0,
                    Err(error) => {
                        // The first of the rest is what it is about.
                        why = why.or(Some(error));
                        failed += 1;
                        1
                    }
                };
                rest = rest.get_mut(done..).unwrap_or_default();
            }
            (count - failed, failed, why)
        }

        fn space() -> ([iovec; N], [mmsghdr; N]) {
            // SAFETY: both are made of integers and pointers, for which zeros are a value.
            unsafe { zeroed() }
        }
    }

    /// The parts of the buffer. An empty one has no part.
    fn rooms<const N: usize>(buffer: &mut [u8]) -> ChunksExactMut<'_, u8> {
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
}
