//! Where a datagram was sent to: the options by which the kernel reports it, and the control
//! messages that carry it. For IPv6 they are the same everywhere (RFC 3542).

use core::ffi::c_int;

use libc::in_addr;

/// `struct in_pktinfo` of `ip(7)`.
#[cfg(any(linux_kernel, not(accept4)))]
mod v4 {
    use super::{c_int, in_addr};

    pub(crate) const IP_RECEIVE: c_int = libc::IP_PKTINFO;
    pub(crate) const IP_SEND: c_int = libc::IP_PKTINFO;
    pub(crate) type Info = libc::in_pktinfo;

    /// Returns the address in the packet's header, and the address of this machine that it came
    /// to, which differs for multicast and broadcast (0: not reported).
    pub(crate) const fn addresses(info: &Info) -> [in_addr; 2] {
        [info.ipi_addr, info.ipi_spec_dst]
    }

    /// Makes the message that has a datagram leave from `source`.
    pub(crate) const fn from_source(source: in_addr) -> Info {
        Info {
            ipi_ifindex: 0,
            ipi_spec_dst: source,
            ipi_addr: in_addr { s_addr: 0 },
        }
    }
}

/// A bare address: `ip(4)` of the BSDs.
#[cfg(not(any(linux_kernel, not(accept4))))]
mod v4 {
    use super::{c_int, in_addr};

    pub(crate) const IP_RECEIVE: c_int = libc::IP_RECVDSTADDR;
    pub(crate) const IP_SEND: c_int = libc::IP_SENDSRCADDR;
    pub(crate) type Info = in_addr;

    pub(crate) const fn addresses(info: &Info) -> [in_addr; 2] {
        [*info, in_addr { s_addr: 0 }]
    }

    pub(crate) const fn from_source(source: in_addr) -> Info {
        source
    }
}

pub(crate) use v4::{IP_RECEIVE, IP_SEND, Info, addresses, from_source};
