//! Why a group could not be bound, as far as the kernel says: what to do about it.

#[cfg(linux_kernel)]
use core::net::{IpAddr, SocketAddr};
#[cfg(linux_kernel)]
use std::fs;

use reuseport::{Call, GroupError};

#[cfg(linux_kernel)]
use crate::list::{LISTEN, Socket, holders, program, sockets, user};

/// Returns what to add to the message of `failure`, of a group of datagram sockets if `udp`.
pub(crate) fn hint(failure: &GroupError, udp: bool) -> String {
    #[cfg(linux_kernel)]
    if let Some(found) = looked_up(failure, udp) {
        return found;
    }
    _ = udp;
    let Some(error) = failure.error() else {
        return match failure {
            GroupError::NoPayload => ": byte:K goes with --udp".to_owned(),
            _ => String::new(),
        };
    };
    let known = match (error.call(), error.errno()) {
        (Call::Bind | Call::Listen, libc::EADDRINUSE) => "another socket has the port",
        (Call::Bind, libc::EACCES) => "a port below 1024 needs a privilege",
        (Call::Bind, libc::EADDRNOTAVAIL) => "the address is not one of this machine's",
        (Call::Bind, libc::EINVAL) => {
            "a link-local address needs its interface, such as [fe80::1%eth0]:3000; a multicast \
             address is for datagrams"
        }
        (Call::Bind, libc::ENODEV) => "no interface has this number",
        (Call::Socket, libc::EAFNOSUPPORT) => "the kernel does not speak this address family",
        (_, libc::EMFILE) => "a larger `ulimit -n` allows more descriptors",
        _ => return String::new(),
    };
    format!("; {known}")
}

/// What this kernel says about the cause.
#[cfg(linux_kernel)]
fn looked_up(failure: &GroupError, udp: bool) -> Option<String> {
    let address = match failure {
        GroupError::Call { address, .. } | GroupError::UserMismatch { address, .. } => *address,
        GroupError::NotAListener { descriptor, .. } => return kind(*descriptor),
        _ => return None,
    };
    let error = failure.error()?;
    match (error.call(), error.errno()) {
        (Call::Bind | Call::Listen, libc::EADDRINUSE) => Some(in_use(address, udp)),
        (Call::Bind, libc::EACCES | libc::EPERM) => Some(refused(address.port())),
        (Call::Bind, libc::EADDRNOTAVAIL) => not_yet(address.ip()),
        _ => None,
    }
}

/// Which sockets have the port.
#[cfg(linux_kernel)]
fn in_use(address: SocketAddr, udp: bool) -> String {
    let all = match sockets(udp, u32::MAX, address.port()) {
        Ok(all) => all,
        Err(error) => {
            return format!("; who has the port is unknown: the kernel's list of sockets: {error}");
        }
    };
    let ours = address.ip();
    let overlaps = |socket: &&Socket| {
        let theirs = socket.local.ip().to_canonical();
        let covers = ours.is_unspecified() && (ours.is_ipv6() || theirs.is_ipv4());
        covers || socket.takes(ours)
    };
    let mut found: Vec<_> = all.iter().filter(overlaps).collect();
    // A listener, or a UDP socket that is not connected, comes before a connection.
    let is_connection = |socket: &Socket| socket.peer.port() > 0;
    found.sort_by_key(|socket| (is_connection(socket), socket.inode == 0));
    let Some(first) = found.first() else {
        return "; the socket that had the port is gone: try again".to_owned();
    };
    let holders = holders();
    let pids = holders.get(&first.inode).map_or(&[][..], Vec::as_slice);
    let user_name = user(first.user);
    let whose = match pids {
        [] => format!("a process of user {user_name}"),
        [pid, ..] => format!("pid {pid} ({}) of user {user_name}", program(*pid)),
    };
    if is_connection(first) {
        let connection = format!("the connection {} -> {}", first.local, first.peer);
        let state = match first.inode {
            0 => "has ended; the kernel keeps it for up to 60 s".to_owned(),
            _ => format!("of {whose} has the port"),
        };
        return format!(
            "; nothing listens there, but {connection} {state}, and --join is no help: wait, or \
             take a port that net.ipv4.ip_local_port_range leaves out"
        );
    }
    // SAFETY: takes nothing.
    let own = unsafe { libc::geteuid() } == first.user;
    let does = match first.state {
        LISTEN => "listens on",
        _ => "has",
    };
    let join = if own {
        "if it has set SO_REUSEPORT, --join shares it"
    } else {
        "--join is for sockets of one user"
    };
    format!(
        "; {whose} {does} {}: choose another port by --addr; {join}",
        first.local
    )
}

/// Why this process may not bind the port.
#[cfg(linux_kernel)]
fn refused(port: u16) -> String {
    const LIMIT: &str = "net.ipv4.ip_unprivileged_port_start";
    let first = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    let first = first
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(1024);
    if (1..first).contains(&port) {
        return format!("; a port below {first} ({LIMIT}) needs CAP_NET_BIND_SERVICE");
    }
    "; the port needs no privilege: a security policy refuses it (SELinux, Landlock, seccomp, BPF)"
        .to_owned()
}

/// Whether an IPv6 address is there, but not yet in use.
#[cfg(linux_kernel)]
fn not_yet(ip: IpAddr) -> Option<String> {
    const TENTATIVE: u32 = 0x40;
    const FAILED: u32 = 0x08;
    let IpAddr::V6(ip) = ip else { return None };
    let wanted = format!("{:032x}", u128::from(ip));
    let all = fs::read_to_string("/proc/thread-self/net/if_inet6").ok()?;
    let line = all.lines().find(|line| line.starts_with(&wanted))?;
    let fields: Vec<_> = line.split_whitespace().collect();
    let (flags, device) = (
        u32::from_str_radix(fields.get(4)?, 16).ok()?,
        fields.get(5)?,
    );
    if flags & FAILED != 0 {
        return Some(format!(
            "; another machine has the address (duplicate address on {device})"
        ));
    }
    let yet = "duplicate address detection takes about 1 s";
    (flags & TENTATIVE != 0).then(|| format!("; the address is still tentative on {device}: {yet}"))
}

/// What a passed descriptor is, if it is another kind of socket.
#[cfg(linux_kernel)]
fn kind(descriptor: i32) -> Option<String> {
    let option = |name| {
        let (mut value, mut length) = (0_i32, 4);
        let at = (&raw mut value).cast();
        // SAFETY: `value` is writable for the four bytes that `length` states.
        let done = unsafe {
            reuseport::sys::getsockopt(descriptor, libc::SOL_SOCKET, name, at, &raw mut length)
        };
        done.map(|()| value)
    };
    let what = match (option(libc::SO_DOMAIN), option(libc::SO_TYPE)) {
        (Ok(libc::AF_UNIX), _) => "a UNIX socket, which has no port to share",
        (Ok(_), Ok(libc::SOCK_DGRAM)) => "a datagram socket",
        (Ok(_), Ok(libc::SOCK_STREAM)) => "a stream socket that does not listen, or has no port",
        _ => return None,
    };
    Some(format!("; it is {what}"))
}
