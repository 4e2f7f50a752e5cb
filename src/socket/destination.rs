//! [`Destination`]: where a datagram was sent to, so that its answer can leave from there.
//!
//! A socket on a wildcard address answers from the address that the route to the client has, not
//! from the one that the client asked: the client then drops the answer. So the kernel is asked to
//! report the destination of each datagram (`IP_PKTINFO` in `ip(7)`, `IPV6_RECVPKTINFO` in
//! `ipv6(7)`), and the answer carries it back.

use core::ffi::{c_int, c_uint};
use core::mem::zeroed;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use libc::{CMSG_DATA, CMSG_FIRSTHDR, CMSG_LEN, CMSG_NXTHDR, CMSG_SPACE};
use libc::{IPPROTO_IP, IPV6_PKTINFO, in_addr, in6_addr, in6_pktinfo, msghdr};

use crate::error::Error;
use crate::listener::Descriptor;
use crate::os::packet_info as v4;
use crate::sys::IPPROTO_IPV6;

/// The address and the interface that a datagram was sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    ip: IpAddr,
    /// What an answer leaves from; unspecified: the kernel chooses an address of the interface.
    source: IpAddr,
    interface: u32,
}

impl Destination {
    /// Returns the address in the packet's header.
    pub const fn ip(&self) -> IpAddr {
        self.ip
    }

    /// Returns whether the datagram was sent to one machine. One that was sent by multicast or
    /// broadcast has reached every member of a group, and the steering is ignored.
    ///
    /// # Platforms
    /// Elsewhere than on Linux and Android, a broadcast to a subnet is taken for unicast.
    pub fn is_unicast(&self) -> bool {
        self.ip == self.source
    }

    fn v4(info: &v4::Info) -> Destination {
        // The octets lie in memory in network order, whatever the processor's.
        let ip = |address: in_addr| Ipv4Addr::from(address.s_addr.to_ne_bytes());
        let [ip, local] = v4::addresses(info).map(ip);
        let source = match () {
            () if !local.is_unspecified() => local,
            () if ip.is_multicast() || ip.is_broadcast() => local,
            () => ip,
        };
        Destination {
            ip: ip.into(),
            source: source.into(),
            interface: 0,
        }
    }

    #[allow(clippy::cast_sign_loss, clippy::unnecessary_cast)] // Android's index has a sign
    fn v6(info: &in6_pktinfo) -> Destination {
        let ip = Ipv6Addr::from(info.ipi6_addr.s6_addr);
        let mapped_multicast = ip.to_ipv4_mapped().is_some_and(|ip| ip.is_multicast());
        let (source, interface) = match () {
            () if ip.is_multicast() => (Ipv6Addr::UNSPECIFIED, info.ipi6_ifindex),
            () if mapped_multicast => (Ipv6Addr::UNSPECIFIED, 0),
            // Without the interface such an address says nothing.
            () if ip.is_unicast_link_local() => (ip, info.ipi6_ifindex),
            // Elsewhere the route decides: it may lead through another interface.
            () => (ip, 0),
        };
        Destination {
            ip: ip.into(),
            source: source.into(),
            interface: interface as u32,
        }
    }
}

/// Returns whether a socket on this address gets datagrams that were sent to other addresses, and
/// would answer them from another one.
pub(crate) fn is_shared(bound: IpAddr) -> bool {
    bound.to_canonical().is_unspecified() || bound.is_multicast()
}

/// Asks the kernel to report the destination of each datagram.
///
/// An IPv6 socket reports those that came by IPv4 in both ways; that of IPv4 is the better one,
/// for it also has the interface's address.
pub(crate) fn report_destination(socket: &Descriptor, family: c_int) -> Result<(), Error> {
    let v4 = socket.set_option(IPPROTO_IP, v4::IP_RECEIVE, 1);
    if family == libc::AF_INET6 {
        return socket.set_option(IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1);
    }
    v4
}

/// Room for the control messages of one datagram: those of both families, and a time stamp that a
/// user may have asked for.
#[derive(Clone, Copy)]
pub(crate) struct Control([u64; 16]);

impl Control {
    pub(crate) const EMPTY: Control = Control([0; 16]);

    /// Has `message` receive control messages here.
    pub(crate) fn receive(&mut self, message: &mut msghdr) {
        message.msg_control = self.0.as_mut_ptr().cast();
        message.msg_controllen = size_of::<Control>() as _;
    }

    /// Has `message` leave from where the datagram with this destination was sent to.
    pub(crate) fn send_from(&mut self, destination: &Destination, message: &mut msghdr) {
        match destination.source {
            // The kernel chooses the address, as it does without a message.
            IpAddr::V4(ip) if ip.is_unspecified() => {}
            IpAddr::V4(ip) => {
                let source = in_addr {
                    s_addr: u32::from_ne_bytes(ip.octets()),
                };
                self.put(message, IPPROTO_IP, v4::IP_SEND, v4::from_source(source));
            }
            IpAddr::V6(ip) => {
                // SAFETY: it is made of integers, for which zeros are a value.
                let mut info: in6_pktinfo = unsafe { zeroed() };
                info.ipi6_addr = in6_addr {
                    s6_addr: ip.octets(),
                };
                info.ipi6_ifindex = destination.interface as _;
                self.put(message, IPPROTO_IPV6, IPV6_PKTINFO, info);
            }
        }
    }

    /// Makes `value` the one control message of `message`.
    fn put<T>(&mut self, message: &mut msghdr, level: c_int, kind: c_int, value: T) {
        self.receive(message);
        // SAFETY: it computes.
        let len = unsafe { CMSG_LEN(size::<T>()) };
        // SAFETY: it computes.
        let space = unsafe { CMSG_SPACE(size::<T>()) };
        // SAFETY: `message` has the room of `self`, which is more than a header takes.
        let header = unsafe { CMSG_FIRSTHDR(message) };
        // SAFETY: the header lies at the beginning of `self`, which is aligned for it.
        let Some(header) = (unsafe { header.as_mut() }) else {
            return;
        };
        header.cmsg_level = level;
        header.cmsg_type = kind;
        header.cmsg_len = len as _;
        // SAFETY: it points behind the header.
        let data = unsafe { CMSG_DATA(header) }.cast::<T>();
        // SAFETY: both types of values have room there, in the 128 bytes of `self`.
        unsafe { data.write_unaligned(value) };
        message.msg_controllen = space as _;
    }
}

/// Returns the destination of a datagram that the kernel has written into `message`; `None` if it
/// was not reported.
#[allow(clippy::unnecessary_cast)] // the length has fewer bits on some systems
pub(crate) fn destination(message: &msghdr) -> Option<Destination> {
    let mut found = None;
    // SAFETY: the kernel has written the control messages, and how long they are.
    let mut next = unsafe { CMSG_FIRSTHDR(message) };
    // SAFETY: it is null, or points to a header within the control messages.
    while let Some(header) = unsafe { next.as_ref() } {
        // SAFETY: as above; it points behind the header.
        let data = unsafe { CMSG_DATA(header) };
        // SAFETY: it computes.
        let has_room = |size| header.cmsg_len as usize >= unsafe { CMSG_LEN(size) } as usize;
        match (header.cmsg_level, header.cmsg_type) {
            (IPPROTO_IP, v4::IP_RECEIVE) if has_room(size::<v4::Info>()) => {
                // SAFETY: a message of this type has this value, and is as long.
                let info = unsafe { data.cast::<v4::Info>().read_unaligned() };
                return Some(Destination::v4(&info));
            }
            (IPPROTO_IPV6, IPV6_PKTINFO) if has_room(size::<in6_pktinfo>()) => {
                // SAFETY: as above.
                let info = unsafe { data.cast::<in6_pktinfo>().read_unaligned() };
                found = Some(Destination::v6(&info));
            }
            _ => {}
        }
        // SAFETY: `header` is one of the headers of `message`.
        next = unsafe { CMSG_NXTHDR(message, header) };
    }
    found
}

#[allow(clippy::cast_possible_truncation)] // a few bytes
const fn size<T>() -> c_uint {
    size_of::<T>() as c_uint
}
