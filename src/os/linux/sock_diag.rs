//! The kernel's list of sockets: netlink's `sock_diag(7)`, open to every user (Linux, Android).
//!
//! `/proc/net/tcp` says the same, but walks every connection of the machine, and speaks for the
//! network namespace of the process's first thread. This asks for one state and one port, in the
//! calling thread's own.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::collections::BTreeSet;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::vec::Vec;

use super::socket::{namespace, option};
use crate::error::{Call, Error};
use crate::listener::Descriptor;
use crate::sys::{self, AF_INET, AF_INET6};

/// A state, as the kernel numbers it in `struct inet_diag_msg`.
#[derive(Clone, Copy)]
pub(crate) enum State {
    /// A UDP socket that is not connected.
    Unconnected = 7,
    Listen = 10,
    /// Half open: the handshake's second step is done, its third is awaited.
    SynRecv = 3,
}

/// One socket of the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Socket {
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    /// The low 32 bits of its descriptor's inode; 0 for one without a descriptor.
    pub(crate) inode: u32,
    /// The index of the interface that it is bound to (`SO_BINDTODEVICE`), or 0.
    pub(crate) interface: u32,
    /// For IPv6: whether it leaves IPv4 alone.
    pub(crate) only_v6: bool,
}

/// All sockets in `state` on the local `port`, of both families.
pub(crate) fn sockets(state: State, port: u16) -> Result<Vec<Socket>, Error> {
    let mut found = Vec::new();
    for family in [AF_INET, AF_INET6] {
        dump(&request(family, state, port, &[]), None, &mut found)?;
    }
    Ok(found)
}

/// Returns the inodes of the listeners, or UDP sockets, on `local` that are bound to the interface
/// of `ours`, which is one of them: the members of its group, of this process and of others.
pub(crate) fn members(udp: bool, local: SocketAddr, ours: u32) -> Result<Vec<u32>, Error> {
    let state = if udp {
        State::Unconnected
    } else {
        State::Listen
    };
    let all = sockets(state, local.port())?;
    let missing = Error::new(Call::Recv, libc::ENOENT);
    let interface = all.iter().find(|socket| socket.inode == ours);
    let interface = interface.ok_or(missing)?.interface;
    let same = |socket: &&Socket| socket.local.ip() == local.ip() && socket.interface == interface;
    Ok(all.iter().filter(same).map(|socket| socket.inode).collect())
}

/// The local and the remote address of a handshake under way.
pub(crate) type Handshake = (SocketAddr, SocketAddr);

/// What lists the handshakes that a listener may have begun: the requests, and its network
/// namespace.
pub(crate) struct Handshakes(Vec<Vec<u8>>, Option<u64>);

impl Handshakes {
    /// Those on the listener's port, and on its address if it has one: the kernel does not say
    /// which of several listeners there began one. Not those on the addresses of other listeners.
    ///
    /// `IP_TRANSPARENT` lets a listener accept for any address and port (TPROXY), and the kernel
    /// lists its handshakes under these: then it may have begun any.
    pub(crate) fn of(listener: &Descriptor, local: SocketAddr) -> Result<Handshakes, Error> {
        let transparent = option(listener, libc::IPPROTO_IP, libc::IP_TRANSPARENT) == Ok(1);
        let (mut port, mut filter) = (local.port(), Vec::new());
        // A filter for an IPv4 address also finds it where it is mapped to IPv6.
        let ip = local.ip().to_canonical();
        if transparent {
            port = 0;
        } else if ip.is_unspecified() {
            filter = no_addresses(&specific_addresses(local)?);
        } else {
            filter = address(ip);
        }
        let families = [AF_INET, AF_INET6];
        let families = families.iter().take(1 + usize::from(local.is_ipv6()));
        let request = |family: &i32| request(*family, State::SynRecv, port, &filter);
        let namespace = namespace(listener.raw());
        Ok(Handshakes(families.map(request).collect(), namespace))
    }

    /// The kernel walks all its connections for each family, those in `TIME_WAIT` as well. It lists
    /// those of the calling thread's network namespace: `ENOTCONN` if that is another one.
    pub(crate) fn list(&self) -> Result<Vec<Handshake>, Error> {
        let mut found = Vec::new();
        self.0
            .iter()
            .try_for_each(|request| dump(request, self.1, &mut found))?;
        let both = |socket: Socket| (socket.local, socket.remote);
        Ok(found.into_iter().map(both).collect())
    }
}

/// The addresses that other listeners have on the port of a wildcard listener, which therefore gets
/// none of their connections.
fn specific_addresses(wildcard: SocketAddr) -> Result<BTreeSet<IpAddr>, Error> {
    let listening = sockets(State::Listen, wildcard.port())?;
    let unbound = listening.iter().filter(|socket| socket.interface == 0);
    let addresses = unbound.map(|socket| socket.local.ip());
    Ok(addresses.filter(|ip| !ip.is_unspecified()).collect())
}

/// A filter that the kernel runs on each socket: its local address is `ip`.
fn address(ip: IpAddr) -> Vec<u8> {
    // struct inet_diag_bc_op, then struct inet_diag_hostcond. Behind the end by four: no.
    let (family, bits, bytes) = match ip {
        IpAddr::V4(ip) => (2, 32, ip.octets().to_vec()),
        IpAddr::V6(ip) => (10, 128, ip.octets().to_vec()),
    };
    let length = 12 + bits / 8;
    let mut filter = Vec::from([
        INET_DIAG_BC_S_COND,
        length,
        length + 4,
        0,
        family,
        bits,
        0,
        0,
    ]);
    filter[2..4].copy_from_slice(&u16::from(length + 4).to_ne_bytes());
    filter.extend((-1_i32).to_ne_bytes()); // any port
    filter.extend(bytes);
    filter
}

/// A filter: the local address is none of `others`.
fn no_addresses(others: &BTreeSet<IpAddr>) -> Vec<u8> {
    let mut filter: Vec<u8> = Vec::new();
    // The last first, for a jump behind the end states how far that is.
    for ip in others {
        let Ok(end) = u16::try_from(8 + filter.len()) else {
            break; // so many addresses: the handshakes of further ones are awaited too
        };
        let mut one = address(*ip);
        // Where the address is another one, it goes on behind this jump.
        one.extend([INET_DIAG_BC_JMP, 4]);
        one.extend(end.to_ne_bytes());
        one.append(&mut filter);
        filter = one;
    }
    filter
}

// linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h
const NETLINK_SOCK_DIAG: i32 = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST_DUMP: u16 = 0x301;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const INET_DIAG_SKV6ONLY: u16 = 11;
const INET_DIAG_REQ_BYTECODE: u16 = 1;
const INET_DIAG_BC_JMP: u8 = 1;
const INET_DIAG_BC_S_COND: u8 = 7;

/// Asks for the sockets in `state` on a local port, 0 for any, on which the `filter` ends at its
/// end.
fn request(family: i32, state: State, port: u16, filter: &[u8]) -> Vec<u8> {
    // struct nlmsghdr, then struct inet_diag_req_v2: 16 and 56 bytes.
    let mut request = Vec::from([0_u8; 72]);
    request[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request[6..8].copy_from_slice(&NLM_F_REQUEST_DUMP.to_ne_bytes());
    request[16] = u8::try_from(family).unwrap_or_default(); // 2 or 10
    request[17] = match state {
        State::Unconnected => 17, // IPPROTO_UDP
        State::Listen | State::SynRecv => 6,
    };
    request[20..24].copy_from_slice(&(1_u32 << state as u32).to_ne_bytes());
    request[24..26].copy_from_slice(&port.to_be_bytes());
    if !filter.is_empty() {
        // struct nlattr
        let length = u16::try_from(4 + filter.len()).unwrap_or_default();
        request.extend(length.to_ne_bytes());
        request.extend(INET_DIAG_REQ_BYTECODE.to_ne_bytes());
        request.extend(filter);
    }
    let length = u32::try_from(request.len()).unwrap_or_default();
    request[0..4].copy_from_slice(&length.to_ne_bytes());
    request
}

/// Asks the kernel; `of` is the network namespace that is meant, if not any.
fn dump(request: &[u8], of: Option<u64>, found: &mut Vec<Socket>) -> Result<(), Error> {
    let kind = libc::SOCK_DGRAM | sys::SOCK_CLOEXEC;
    // SAFETY: owned by the next line.
    let fd = unsafe { sys::socket(libc::AF_NETLINK, kind, NETLINK_SOCK_DIAG) }?;
    // SAFETY: the kernel has just opened it for us alone.
    let netlink = unsafe { OwnedFd::from_raw_fd(fd) };
    if of.is_some() && of != namespace(fd) {
        return Err(Error::new(Call::Socket, libc::ENOTCONN));
    }

    // SAFETY: `request` is readable for its length.
    unsafe {
        sys::send(
            netlink.as_raw_fd(),
            request.as_ptr().cast(),
            request.len(),
            0,
        )
    }?;

    let mut buffer = [0_u8; 16 * 1024];
    loop {
        let (into, room) = (buffer.as_mut_ptr().cast(), buffer.len());
        // SAFETY: `buffer` is writable for its length.
        let read = unsafe { sys::recv(netlink.as_raw_fd(), into, room, 0) };
        match read {
            Ok(length) => {
                if !messages(&buffer[..length.min(room)], found)? {
                    return Ok(());
                }
            }
            Err(error) if error.errno() == libc::EINTR => {}
            Err(error) => return Err(error),
        }
    }
}

/// Reads the messages of one datagram. False: there are no more to come.
fn messages(mut bytes: &[u8], found: &mut Vec<Socket>) -> Result<bool, Error> {
    while let (Some(length), Some(kind)) = (u32_at(bytes, 0), u16_at(bytes, 4)) {
        let length = length as usize;
        let Some(body) = bytes.get(16..length) else {
            break;
        };
        match kind {
            NLMSG_DONE if status(body) >= 0 => return Ok(false),
            NLMSG_DONE | NLMSG_ERROR => {
                return Err(Error::new(Call::Recv, status(body).wrapping_neg()));
            }
            SOCK_DIAG_BY_FAMILY => found.extend(socket(body)),
            _ => {}
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(true)
}

/// What the last message says: an errno below zero. A kernel without the module that keeps the list
/// has none either, and says so only here.
fn status(body: &[u8]) -> i32 {
    let status = body.first_chunk();
    status.map_or(-libc::EPROTO, |bytes| i32::from_ne_bytes(*bytes))
}

/// Reads a `struct inet_diag_msg` and the attribute behind it.
fn socket(body: &[u8]) -> Option<Socket> {
    let is_v6 = i32::from(*body.first()?) == AF_INET6;
    let port = |at| Some(u16::from_be(u16_at(body, at)?));
    let ip = |at| {
        let bytes: &[u8; 16] = body.get(at..)?.first_chunk()?;
        let [a, b, c, d, ..] = *bytes;
        let v6 = || IpAddr::from(Ipv6Addr::from(*bytes));
        Some(if is_v6 {
            v6()
        } else {
            Ipv4Addr::new(a, b, c, d).into()
        })
    };
    let local = SocketAddr::new(ip(8)?, port(4)?);
    let remote = SocketAddr::new(ip(24)?, port(6)?);
    let (interface, inode) = (u32_at(body, 40)?, u32_at(body, 68)?);
    let mut attributes = body.get(72..)?;
    let mut only_v6 = false;
    while let (Some(length), Some(kind)) = (u16_at(attributes, 0), u16_at(attributes, 2)) {
        only_v6 |= kind == INET_DIAG_SKV6ONLY && attributes.get(4).is_some_and(|value| *value == 1);
        let next = usize::from(length).max(4).next_multiple_of(4);
        attributes = attributes.get(next..).unwrap_or_default();
    }
    Some(Socket {
        local,
        remote,
        inode,
        interface,
        only_v6,
    })
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|bytes| u32::from_ne_bytes(*bytes))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|bytes| u16::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_that_the_kernel_has_not_is_no_empty_one() {
        let last = |kind: u16, status: i32| {
            let mut message = [0; 20];
            message[0..4].copy_from_slice(&20_u32.to_ne_bytes());
            message[4..6].copy_from_slice(&kind.to_ne_bytes());
            message[16..20].copy_from_slice(&status.to_ne_bytes());
            messages(&message, &mut Vec::new())
        };
        let missing = Err(Error::new(Call::Recv, libc::ENOENT));
        assert_eq!(last(NLMSG_ERROR, -libc::ENOENT), missing);
        assert_eq!(last(NLMSG_DONE, -libc::ENOENT), missing);
        assert_eq!(last(NLMSG_DONE, 0), Ok(false));
    }
}
