//! How much waits in the queue of a socket, and what found no room there (Linux, Android).

#[cfg(linux_kernel)]
use crate::{
    address::socklen,
    error::Error,
    listener::{Descriptor, Listener},
    os::linux,
    socket::udp::UdpSocket,
    sys::{self, SOL_SOCKET},
};

/// The queue of one socket: see `Listener::queue` and `UdpSocket::queue`, which Linux and Android
/// have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Queue {
    /// Connections that are established and wait to be accepted; or the bytes that datagrams take
    /// up in the kernel, more than were sent.
    pub len: u32,
    /// The backlog in force, of which the queue holds one more; or as many bytes as datagrams may
    /// take up (`SO_RCVBUF`).
    pub limit: u32,
    /// How many packets the socket has dropped since it was made, mostly for want of room. A client
    /// sends a dropped SYN again, and nobody a dropped datagram.
    pub drops: u32,
}

#[cfg(linux_kernel)]
impl Listener {
    /// Its queue now: `getsockopt(2)` with `TCP_INFO`, whose fields for sent and unacknowledged
    /// segments mean this on a listener, and with `SO_MEMINFO` (Linux 4.12). Handshakes under way
    /// are not counted.
    pub fn queue(&self) -> Result<Queue, Error> {
        let [waiting, limit] = self.backlog()?;
        let [.., dropped] = self.0.memory()?;
        Ok(Queue {
            len: waiting,
            limit,
            drops: dropped,
        })
    }

    /// What waits, and the backlog.
    pub(crate) fn backlog(&self) -> Result<[u32; 2], Error> {
        // The first 32 bytes of `struct tcp_info`: eight of one byte each, then words.
        let (mut info, mut len) = ([0_u32; 8], 32);
        let (value, fd) = (info.as_mut_ptr().cast(), self.raw());
        // SAFETY: `info` is writable for the 32 bytes that `len` states; the kernel writes no more.
        unsafe { sys::getsockopt(fd, sys::IPPROTO_TCP, libc::TCP_INFO, value, &raw mut len) }?;
        let [.., waiting, limit] = info;
        Ok([waiting, limit])
    }
}

#[cfg(linux_kernel)]
impl UdpSocket {
    /// Its queue now: `getsockopt(2)` with `SO_MEMINFO` (Linux 4.12).
    pub fn queue(&self) -> Result<Queue, Error> {
        let [waiting, limit, .., dropped] = self.0.memory()?;
        Ok(Queue {
            len: waiting,
            limit,
            drops: dropped,
        })
    }
}

#[cfg(linux_kernel)]
impl Descriptor {
    /// `SK_MEMINFO_RMEM_ALLOC`, `SK_MEMINFO_RCVBUF` and so on, to `SK_MEMINFO_DROPS`
    /// (`linux/sock_diag.h`).
    fn memory(&self) -> Result<[u32; 9], Error> {
        let (mut info, mut len) = ([0_u32; 9], socklen::<[u32; 9]>());
        let (value, fd) = (info.as_mut_ptr().cast(), self.raw());
        // SAFETY: `info` is writable for the bytes that `len` states; the kernel writes no more.
        unsafe { sys::getsockopt(fd, SOL_SOCKET, linux::SO_MEMINFO, value, &raw mut len) }?;
        Ok(info)
    }
}
