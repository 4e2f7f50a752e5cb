//! [`AcceptQueue`], in connections, and [`ReceiveBuffer`], in bytes: what is queued on a socket.

/// The accept queue of one listener, in connections: see `Listener::queue` (Linux, Android).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AcceptQueue {
    /// Established connections that are queued and not accepted yet.
    pub len: u32,
    /// The backlog in force. The queue holds one connection more.
    pub limit: u32,
    /// Packets that the socket has dropped since it was made, mostly because the queue was full.
    /// A client sends a dropped SYN again after 1 s.
    pub drops: u32,
}

/// The receive buffer of one UDP socket, in bytes: see `UdpSocket::queue` (Linux, Android).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReceiveBuffer {
    /// Bytes of kernel memory that the queued datagrams take up: more than their payload.
    pub bytes: u32,
    /// The most bytes that they may take up (`SO_RCVBUF`).
    pub limit: u32,
    /// Datagrams that the socket has dropped since it was made, mostly because the buffer was full.
    /// A dropped datagram is lost.
    pub drops: u32,
}
