//! What differs between kernels, behind one contract: `linux` (Linux and Android) and `other` offer
//! the same functions, so callers need no `cfg`. Where a kernel lacks something, `other` returns
//! `EOPNOTSUPP`, `None`, or does nothing where there is nothing to do.
//!
//! - `attach_program`, `detach_program`: steering programs; `attach_filter`,
//!   `detach_filter`: packet filters; `bind_to_nowhere`: what does without one.
//! - `KernelOptions`, `OPTION_NAMES`, `SO_LINGER`: options of a socket; `peer_name`: its peer.
//! - `interface`: which one a socket is bound to.
//! - `accept_queue`, `receive_buffer`: how much is queued on a socket.
//! - `SHUTDOWN_WAKES`: whether `shutdown(2)` wakes a thread that is blocked in `accept`, and takes
//!   a listener out of its group.
//! - `bind_exclusive`, `bind_exclusive_udp`: the first member of a group that shares its port
//!   with no other program.
//! - `Handshakes`: the connections that are not finished; `accept_silent_clients`: without
//!   `TCP_DEFER_ACCEPT`; `listeners`: all members of a group.
//! - `namespace`: the network namespace of a socket.
//! - `Poller`: waits on a socket on which other processes wait too.
//! - `allowed_cpus`, `start_on_cpu`, `move_to_cpus`, `name_thread`: threads.
//! - `packet_info`: how the kernel reports where a datagram was sent to.
//! - `may_have_sent_cookies`: not every handshake is listed.
//! - `wait_for_lookups`: no packet is on its way to a socket that was chosen before.
//! - `Placeholder`: what takes the place of a UDP socket's descriptor.

#[cfg(not(accept4))]
pub(crate) mod apple;
#[cfg(linux_kernel)]
mod linux;
#[cfg(not(linux_kernel))]
mod other;
pub(crate) mod packet_info;

#[cfg(linux_kernel)]
pub use linux::*;
#[cfg(not(linux_kernel))]
pub(crate) use other::*;

#[cfg(feature = "std")]
pub(crate) use descriptor::{inode, option};

#[cfg(feature = "std")]
mod descriptor {
    use core::ffi::c_int;

    use crate::address::socklen;
    use crate::error::{Call, Error, check};
    use crate::sys;

    /// Returns the inode number of a descriptor: `fstat(2)`.
    pub(crate) fn inode(fd: c_int) -> Result<u64, Error> {
        // SAFETY: `stat` is made of integers and pointers, for which zeros are a value.
        let mut stat: libc::stat = unsafe { core::mem::zeroed() };
        // SAFETY: `stat` is writable; the kernel checks the descriptor.
        check(Call::Fstat, unsafe { libc::fstat(fd, &raw mut stat) })?;
        #[allow(clippy::useless_conversion)] // the field has 32 bits on some systems
        Ok(stat.st_ino.into())
    }

    /// Returns an integer option of a socket.
    pub(crate) fn option(fd: c_int, level: c_int, name: c_int) -> Result<c_int, Error> {
        let (mut value, mut len) = (0, socklen::<c_int>());
        let at = (&raw mut value).cast();
        // SAFETY: `value` is writable for the four bytes that `len` states.
        unsafe { sys::getsockopt(fd, level, name, at, &raw mut len) }?;
        Ok(value)
    }
}
