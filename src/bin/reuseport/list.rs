//! The kernel's list of sockets, from netlink's `sock_diag(7)`; and the processes that hold them,
//! from `/proc`.

use core::fmt;
use core::net::{IpAddr, SocketAddr};
use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::FromRawFd;

use reuseport::sys;

/// The state of an unconnected UDP socket, and of a listener, as the kernel's `net/tcp_states.h`.
pub(crate) const CLOSE: u8 = 7;
pub(crate) const LISTEN: u8 = 10;

/// A socket of the list.
pub(crate) struct Socket {
    pub(crate) udp: bool,
    pub(crate) state: u8,
    pub(crate) local: SocketAddr,
    pub(crate) peer: SocketAddr,
    /// The index of its interface (`SO_BINDTODEVICE`), or 0.
    pub(crate) interface: u32,
    pub(crate) user: u32,
    pub(crate) inode: u32,
    /// Connections, or bytes.
    pub(crate) queued: u32,
    pub(crate) limit: u32,
    pub(crate) drops: u32,
    only_v6: bool,
}

impl Socket {
    /// Whether packets to `to` can reach it.
    pub(crate) fn takes(&self, to: IpAddr) -> bool {
        let (own, to) = (self.local.ip().to_canonical(), to.to_canonical());
        let family = own.is_ipv4() == to.is_ipv4() || own.is_ipv6() && !self.only_v6;
        own == to || own.is_unspecified() && family
    }
}

impl fmt::Display for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", if self.udp { "udp" } else { "tcp" }, self.local)?;
        match self.interface {
            0 => Ok(()),
            index => write!(f, "%{}", interface(index)),
        }
    }
}

/// Returns the sockets of both families that are in the set `states`, on the local `port`, or on
/// any if that is 0.
pub(crate) fn sockets(udp: bool, states: u32, port: u16) -> io::Result<Vec<Socket>> {
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC;
    // SAFETY: owned by the next line. NETLINK_SOCK_DIAG is 4.
    let fd = unsafe { sys::socket(libc::AF_NETLINK, kind, 4) }.map_err(io::Error::other)?;
    // SAFETY: the kernel has just opened it for us alone.
    let mut netlink = unsafe { File::from_raw_fd(fd) };
    let (mut found, mut buffer) = (Vec::new(), vec![0_u8; 32 * 1024]);
    for family in [2, 10] {
        // struct nlmsghdr, then struct inet_diag_req_v2: 16 and 56 bytes.
        let mut request = [0_u8; 72];
        request[0..4].copy_from_slice(&72_u32.to_ne_bytes());
        request[4..6].copy_from_slice(&20_u16.to_ne_bytes()); // SOCK_DIAG_BY_FAMILY
        request[6..8].copy_from_slice(&0x301_u16.to_ne_bytes()); // NLM_F_REQUEST | NLM_F_DUMP
        request[16] = family;
        request[17] = if udp { 17 } else { 6 };
        request[18] = 1 << 6; // INET_DIAG_SKMEMINFO
        request[20..24].copy_from_slice(&states.to_ne_bytes());
        request[24..26].copy_from_slice(&port.to_be_bytes());
        netlink.write_all(&request)?;
        let mut ended = false;
        while !ended {
            let length = netlink.read(&mut buffer)?;
            let mut rest = &buffer[..length];
            while let Some(body) = rest.get(16..u32_at(rest, 0) as usize) {
                let errno = i32::from_ne_bytes(u32_at(body, 0).to_ne_bytes());
                match u16_at(rest, 4) {
                    // NLMSG_ERROR, NLMSG_DONE
                    2 | 3 if errno < 0 => return Err(io::Error::from_raw_os_error(-errno)),
                    2 | 3 => ended = true,
                    _ => found.extend(socket(body, udp)),
                }
                let next = (u32_at(rest, 0) as usize).next_multiple_of(4);
                rest = rest.get(next..).unwrap_or_default();
            }
        }
    }
    Ok(found)
}

/// Reads a `struct inet_diag_msg`, of 72 bytes, and the attributes behind it.
fn socket(body: &[u8], udp: bool) -> Option<Socket> {
    let address = |ip: usize, port: usize| {
        let octets: [u8; 16] = *body.get(ip..)?.first_chunk()?;
        let [a, b, c, d, ..] = octets;
        let v4 = IpAddr::from([a, b, c, d]);
        let ip = if body[0] == 2 { v4 } else { octets.into() };
        Some(SocketAddr::new(ip, u16::from_be(u16_at(body, port))))
    };
    let mut socket = Socket {
        udp,
        state: *body.get(1)?,
        local: address(8, 4)?,
        peer: address(24, 6)?,
        interface: u32_at(body, 40),
        queued: u32_at(body, 56),
        limit: u32_at(body, 60),
        user: u32_at(body, 64),
        inode: u32_at(body, 68),
        drops: 0,
        only_v6: false,
    };
    let mut rest = body.get(72..)?;
    while rest.len() >= 4 {
        match u16_at(rest, 2) {
            // INET_DIAG_SKMEMINFO: the second word is SK_MEMINFO_RCVBUF, the ninth the drops.
            7 if udp => (socket.limit, socket.drops) = (u32_at(rest, 8), u32_at(rest, 36)),
            7 => socket.drops = u32_at(rest, 36),
            11 => socket.only_v6 = rest.get(4) == Some(&1), // INET_DIAG_SKV6ONLY
            _ => {}
        }
        let next = usize::from(u16_at(rest, 0)).max(4).next_multiple_of(4);
        rest = rest.get(next..).unwrap_or_default();
    }
    Some(socket)
}

/// Returns the number at an offset, or 0 behind the end.
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let bytes = bytes.get(at..).and_then(<[u8]>::first_chunk);
    bytes.map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    let bytes = bytes.get(at..).and_then(<[u8]>::first_chunk);
    bytes.map_or(0, |bytes| u16::from_ne_bytes(*bytes))
}

/// Returns the pids that hold each socket, by inode, of the processes that this user may look into.
pub(crate) fn holders() -> HashMap<u32, Vec<u32>> {
    let mut holders: HashMap<u32, Vec<u32>> = HashMap::new();
    let entries = |path: &str| fs::read_dir(path).into_iter().flatten().flatten();
    for pid in entries("/proc").filter_map(|entry| entry.file_name().to_str()?.parse().ok()) {
        let inode = |file: fs::DirEntry| {
            let target = fs::read_link(file.path()).ok()?;
            let inode = target.to_str()?.strip_prefix("socket:[")?;
            inode.strip_suffix(']')?.parse().ok()
        };
        for inode in entries(&format!("/proc/{pid}/fd")).filter_map(inode) {
            holders.entry(inode).or_default().push(pid);
        }
    }
    holders.values_mut().for_each(Vec::dedup);
    holders
}

/// Returns the name of a process's program.
pub(crate) fn program(pid: u32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm"));
    name.unwrap_or_default().trim_end().to_owned()
}

/// Returns a user's name, or number.
pub(crate) fn user(id: u32) -> String {
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let number = id.to_string();
    let fields = |line| str::split(line, ':').collect::<Vec<_>>();
    let mut users = users.lines().map(fields);
    let found = users.find(|user| user.get(2) == Some(&&*number));
    found.map_or(number.clone(), |user| user[0].to_owned())
}

/// Returns an interface's name, or number.
pub(crate) fn interface(index: u32) -> String {
    let mut name = [0; libc::IF_NAMESIZE];
    // SAFETY: `name` has the room that the function asks for.
    if unsafe { libc::if_indextoname(index, name.as_mut_ptr()) }.is_null() {
        return index.to_string();
    }
    // SAFETY: the function has written a C string there.
    let name = unsafe { CStr::from_ptr(name.as_ptr()) };
    name.to_string_lossy().into_owned()
}
