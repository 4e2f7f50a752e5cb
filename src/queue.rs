//! How many connections wait in a listener's queue (Linux, Android).

#[cfg(linux_kernel)]
use crate::{error::Error, listener::Listener, sys};

/// The queue of one listener: see `Listener::queue`, which Linux and Android have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queue {
    /// Connections that are established and wait to be accepted.
    pub waiting: u32,
    /// The backlog in force. The queue holds one more.
    pub limit: u32,
}

#[cfg(linux_kernel)]
impl Listener {
    /// Its queue now: `getsockopt(2)` with `TCP_INFO`, whose fields for sent and unacknowledged
    /// segments mean this on a listener. Handshakes under way are not counted.
    pub fn queue(&self) -> Result<Queue, Error> {
        // The first 32 bytes of `struct tcp_info`: eight of one byte each, then words.
        let (mut info, mut len) = ([0_u32; 8], 32);
        let (value, fd) = (info.as_mut_ptr().cast(), self.raw());
        // SAFETY: `info` is writable for the 32 bytes that `len` states; the kernel writes no more.
        unsafe { sys::getsockopt(fd, sys::IPPROTO_TCP, libc::TCP_INFO, value, &raw mut len) }?;
        let [_, _, _, _, _, _, waiting, limit] = info;
        Ok(Queue { waiting, limit })
    }
}
