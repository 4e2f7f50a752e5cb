//! Socket options that only Linux and Android have, and the methods that set them.

use core::ffi::c_int;

use super::constants::{SO_ATTACH_REUSEPORT_CBPF, SO_DETACH_REUSEPORT_BPF, SO_MEMINFO};
#[cfg(feature = "std")]
use super::constants::{SO_BINDTOIFINDEX, SO_NETNS_COOKIE};
use crate::address::socklen;
use crate::error::Error;
use crate::listener::{Connection, Descriptor, Listener};
use crate::socket::bpf::{DROP_ALL, DROP_SYNS, Instruction};
use crate::socket::queue::{AcceptQueue, ReceiveBuffer};
use crate::socket::udp::UdpSocket;
use crate::sys::{self, SO_REUSEPORT, SOL_SOCKET};

/// C's `struct sock_fprog`.
#[repr(C)]
struct Program {
    len: u16,
    instructions: *const Instruction,
}

fn attach(socket: &Descriptor, name: c_int, program: &[Instruction]) -> Result<(), Error> {
    // The kernel refuses a program without instructions; so is one refused that is too long.
    let len = u16::try_from(program.len()).unwrap_or(0);
    let instructions = program.as_ptr();
    let program = Program { len, instructions };
    let value = (&raw const program).cast();
    // SAFETY: `program` is what both options take: it and its instructions are readable for the
    // lengths they state, and the kernel copies both.
    let set =
        unsafe { sys::setsockopt(socket.raw(), SOL_SOCKET, name, value, socklen::<Program>()) };
    set.map_err(|error| error.of_option(SOL_SOCKET, name))
}

pub(crate) fn attach_program(socket: &Descriptor, program: &[Instruction]) -> Result<(), Error> {
    attach(socket, SO_ATTACH_REUSEPORT_CBPF, program)
}

pub(crate) fn detach_program(socket: &Descriptor) -> Result<(), Error> {
    socket.set_option(SOL_SOCKET, SO_DETACH_REUSEPORT_BPF, 0)
}

pub(crate) fn attach_filter(socket: &Descriptor, filter: &[Instruction]) -> Result<(), Error> {
    attach(socket, libc::SO_ATTACH_FILTER, filter)
}

pub(crate) fn detach_filter(socket: &Descriptor) -> Result<(), Error> {
    socket.set_option(SOL_SOCKET, libc::SO_DETACH_FILTER, 0)
}

/// Returns an option whose value is C's `int`.
#[cfg(feature = "std")]
pub(super) fn option(socket: &Descriptor, level: c_int, name: c_int) -> Result<c_int, Error> {
    let (mut value, mut len) = (0, socklen::<c_int>());
    let at = (&raw mut value).cast();
    // SAFETY: `value` is writable for the four bytes that `len` states.
    unsafe { sys::getsockopt(socket.raw(), level, name, at, &raw mut len) }?;
    Ok(value)
}

/// Returns a number that stands for the network namespace of a socket; `None` where the kernel does
/// not say (before Linux 5.14).
#[cfg(feature = "std")]
pub(crate) fn namespace(socket: c_int) -> Option<u64> {
    let (mut cookie, mut len) = (0_u64, socklen::<u64>());
    let value = (&raw mut cookie).cast();
    // SAFETY: `cookie` is writable for the eight bytes that `len` states.
    let asked =
        unsafe { sys::getsockopt(socket, SOL_SOCKET, SO_NETNS_COOKIE, value, &raw mut len) };
    asked.is_ok().then_some(cookie)
}

/// Returns the index of the interface that a socket is bound to; 0 if to none, or where the kernel
/// does not say (before Linux 5.1).
#[cfg(feature = "std")]
pub(crate) fn interface(socket: c_int) -> u32 {
    let index = crate::os::option(socket, SOL_SOCKET, SO_BINDTOIFINDEX).unwrap_or_default();
    index.try_into().unwrap_or_default()
}

/// Has a client be accepted that has sent nothing yet: no `TCP_DEFER_ACCEPT`, which keeps its
/// handshake from ending.
#[cfg(feature = "std")]
pub(crate) fn accept_silent_clients(listener: &Descriptor) -> Result<(), Error> {
    listener.set_option(sys::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 0)
}

/// Has the kernel send no new connection to a listener: binds it to an interface that does not
/// exist (`SO_BINDTOIFINDEX`, Linux 5.0). Handshakes under way go on, and so do their connections:
/// these have the interface that the listener had before.
///
/// Since Linux 5.7 a socket without an interface needs no privilege for it. Undoing it takes
/// `CAP_NET_RAW`, so it is for a listener that leaves.
#[cfg(feature = "std")]
pub(crate) fn bind_to_nowhere(listener: &Descriptor) -> Result<(), Error> {
    const NOWHERE: c_int = c_int::MAX;
    let bound = listener.set_option(SOL_SOCKET, SO_BINDTOIFINDEX, NOWHERE);
    // It may be there already.
    match option(listener, SOL_SOCKET, SO_BINDTOIFINDEX) {
        Ok(NOWHERE) => Ok(()),
        _ => bound,
    }
}

/// `TCP_INFO`, whose fields for sent and for unacknowledged segments are the accept queue of a
/// listener: what waits, and the limit.
pub(crate) fn accept_queue(socket: &Descriptor) -> Result<[u32; 2], Error> {
    // The first 32 bytes of `struct tcp_info`: eight of one byte each, then words.
    let (mut info, mut len) = ([0_u32; 8], 32);
    let value = info.as_mut_ptr().cast();
    let (level, name) = (sys::IPPROTO_TCP, libc::TCP_INFO);
    // SAFETY: `info` is writable for the 32 bytes that `len` states; the kernel writes no more.
    unsafe { sys::getsockopt(socket.raw(), level, name, value, &raw mut len) }?;
    let [.., queued, limit] = info;
    Ok([queued, limit])
}

/// `SO_MEMINFO` (Linux 4.12).
pub(crate) fn receive_buffer(socket: &Descriptor) -> Result<ReceiveBuffer, Error> {
    // `SK_MEMINFO_RMEM_ALLOC`, `SK_MEMINFO_RCVBUF` and so on, to `SK_MEMINFO_DROPS`.
    let (mut info, mut len) = ([0_u32; 9], socklen::<[u32; 9]>());
    let value = info.as_mut_ptr().cast();
    // SAFETY: `info` is writable for the bytes that `len` states; the kernel writes no more.
    unsafe { sys::getsockopt(socket.raw(), SOL_SOCKET, SO_MEMINFO, value, &raw mut len) }?;
    let [bytes, limit, .., drops] = info;
    Ok(ReceiveBuffer {
        bytes,
        limit,
        drops,
    })
}

impl Listener {
    /// Attaches a steering program to this listener's group, in place of the one before:
    /// `SO_ATTACH_REUSEPORT_CBPF` of `socket(7)`. The program stays when this listener closes.
    ///
    /// # Errors
    /// - `EINVAL`: the listener set `SO_REUSEPORT` after `listen` and has no siblings, or the
    ///   kernel refuses the program.
    /// - `ENOMEM`: the program is larger than the sysctl `net.core.optmem_max`.
    /// - `EPERM`: the socket is locked (`SO_LOCK_FILTER`).
    ///
    /// # Platforms
    /// Linux and Android alone.
    pub fn attach_program(&self, program: &[Instruction]) -> Result<(), Error> {
        attach_program(&self.0, program)
    }

    /// Detaches the group's program; the kernel goes back to the hash: `SO_DETACH_REUSEPORT_BPF`
    /// (Linux 5.3).
    ///
    /// # Errors
    /// `ENOENT` if there is no program.
    ///
    /// # Platforms
    /// Linux and Android alone.
    pub fn detach_program(&self) -> Result<(), Error> {
        detach_program(&self.0)
    }

    /// Attaches a packet filter that drops every SYN and lets the handshakes that are under way
    /// complete: `SO_ATTACH_FILTER`. A client sends its SYN again after 1 s.
    ///
    /// Connections that complete meanwhile inherit the filter: see [`Connection::detach_filter`].
    ///
    /// # Errors
    /// `EPERM` where the kernel wants `CAP_NET_ADMIN` for it: since commit 5d39580f68e6 of June
    /// 2026, also in stable trees.
    ///
    /// # Platforms
    /// Linux and Android alone.
    pub fn attach_syn_filter(&self) -> Result<(), Error> {
        attach_filter(&self.0, &DROP_SYNS)
    }

    /// Detaches the packet filter: `SO_DETACH_FILTER`.
    ///
    /// # Errors
    /// `ENOENT` if there is no filter.
    ///
    /// # Platforms
    /// Linux and Android alone.
    pub fn detach_filter(&self) -> Result<(), Error> {
        detach_filter(&self.0)
    }

    /// Sets `SO_REUSEPORT` on a listener that was bound without it, so that siblings may bind its
    /// port. Until then the listener has kept all other sockets out.
    ///
    /// `socket(7)` describes the option before `bind` only; the kernel takes it at any time.
    ///
    /// # Errors
    /// None is known on an open socket.
    ///
    /// # Platforms
    /// Linux and Android alone.
    pub fn set_reuse_port(&self) -> Result<(), Error> {
        self.0.set_option(SOL_SOCKET, SO_REUSEPORT, 1)
    }

    /// Returns the length of the accept queue, its limit, and what was dropped: `getsockopt(2)`
    /// with `TCP_INFO` and `SO_MEMINFO` (Linux 4.12). Handshakes under way are not counted.
    ///
    /// # Errors
    /// `ENOPROTOOPT` before Linux 4.12.
    ///
    /// # Platforms
    /// Linux and Android alone.
    pub fn queue(&self) -> Result<AcceptQueue, Error> {
        let [len, limit] = accept_queue(&self.0)?;
        let drops = receive_buffer(&self.0)?.drops;
        Ok(AcceptQueue { len, limit, drops })
    }
}

impl UdpSocket {
    /// Attaches a steering program to this socket's group, as [`Listener::attach_program`]. The
    /// program's offset 0 is the first byte of the datagram.
    ///
    /// # Errors
    /// Those of [`Listener::attach_program`].
    ///
    /// # Platforms
    /// Linux and Android alone.
    pub fn attach_program(&self, program: &[Instruction]) -> Result<(), Error> {
        attach_program(&self.0, program)
    }

    /// Detaches the group's program, as [`Listener::detach_program`].
    ///
    /// # Errors
    /// Those of [`Listener::detach_program`].
    ///
    /// # Platforms
    /// Linux and Android alone.
    pub fn detach_program(&self) -> Result<(), Error> {
        detach_program(&self.0)
    }

    /// Attaches a packet filter that drops every datagram: `SO_ATTACH_FILTER`. What is queued
    /// already stays.
    ///
    /// # Errors
    /// `ENOMEM` beyond `net.core.optmem_max`. It needs no privilege.
    ///
    /// # Platforms
    /// Linux and Android alone.
    pub fn attach_drop_filter(&self) -> Result<(), Error> {
        attach_filter(&self.0, &DROP_ALL)
    }

    /// Detaches the packet filter: `SO_DETACH_FILTER`.
    ///
    /// # Errors
    /// `ENOENT` if there is no filter.
    ///
    /// # Platforms
    /// Linux and Android alone.
    pub fn detach_filter(&self) -> Result<(), Error> {
        detach_filter(&self.0)
    }

    /// Returns the bytes that queued datagrams take up, the limit, and what was dropped:
    /// `getsockopt(2)` with `SO_MEMINFO` (Linux 4.12).
    ///
    /// # Errors
    /// `ENOPROTOOPT` before Linux 4.12.
    ///
    /// # Platforms
    /// Linux and Android alone.
    pub fn queue(&self) -> Result<ReceiveBuffer, Error> {
        receive_buffer(&self.0)
    }
}

impl Connection {
    /// Detaches the packet filter that this connection has inherited from a listener with a
    /// [SYN filter](Listener::attach_syn_filter), if any: `SO_DETACH_FILTER`.
    ///
    /// # Platforms
    /// Linux and Android alone.
    pub fn detach_filter(&self) {
        // It fails with `ENOENT` on a connection without a filter.
        _ = detach_filter(&self.0);
    }
}
