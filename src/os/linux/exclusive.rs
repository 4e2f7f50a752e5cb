//! The first member of a group binds its port exclusively, also over connections in `TIME_WAIT`.

use core::hash::{BuildHasher, Hasher};
use core::net::{IpAddr, SocketAddr};
use core::time::Duration;
use std::collections::hash_map::RandomState;
use std::thread::sleep;

use super::first::create_reuseport_group;
use super::proc_net;
use super::sock_diag::{Socket, State, sockets};
use super::socket::{interface, option};
use crate::error::{Call, Error};
use crate::listener::Listener;
use crate::os;
use crate::socket::options::Options;
use crate::sys::{IPPROTO_IPV6, IPV6_V6ONLY};

/// How often two programs that bind at the same time may yield to each other.
const ATTEMPTS: usize = 20;

/// Binds a listener exclusively, then lets siblings bind.
pub(crate) fn bind_exclusive(
    options: &Options<'_>,
    address: SocketAddr,
) -> Result<Listener, Error> {
    let mut attempts = 0;
    loop {
        let refused = match options.bind_exclusive_after(address, create_reuseport_group) {
            Ok(first) => return Ok(first),
            Err(error) => error,
        };
        // A refused `listen` means that another socket listens. A refused `bind` may be due to
        // connections in TIME_WAIT.
        if (refused.call(), refused.errno()) != (Call::Bind, libc::EADDRINUSE) {
            return Err(refused);
        }
        attempts += 1;
        match bind_over_time_wait(options, address) {
            Outcome::Bound(first) => return Ok(first),
            Outcome::Conflict if attempts < ATTEMPTS => {
                let millis = 1 + RandomState::new().build_hasher().finish() % 20;
                sleep(Duration::from_millis(millis));
            }
            Outcome::Conflict | Outcome::InUse => return Err(refused),
            Outcome::Failed(error) => return Err(error),
        }
    }
}

enum Outcome {
    Bound(Listener),
    /// Another program does the same at the same time.
    Conflict,
    /// Another socket listens, or the kernel has no list: neither by netlink nor in `/proc`.
    InUse,
    /// A call failed for a reason of its own.
    Failed(Error),
}

/// Binds although connections in `TIME_WAIT` hold the port.
///
/// They are left by a server that set `SO_REUSEPORT` alone (the C program is one), and refuse a
/// bind without that option for a minute although no socket listens. With the option the bind
/// succeeds, but it would also succeed beside a running server. So this looks at the kernel's list
/// of listeners, before `listen` and after it. Of two programs that do this at the same time, the
/// one whose second look comes later sees the other and yields.
fn bind_over_time_wait(options: &Options<'_>, address: SocketAddr) -> Outcome {
    let options = options.reuse_port(true).reuse_address(true);
    let refused = |error: Error| match error.errno() {
        libc::EADDRINUSE => Outcome::InUse,
        _ => Outcome::Failed(error),
    };
    let bound = options.prepare(address).and_then(|first| {
        first.0.bind(&address.into())?;
        Ok(first)
    });
    let first = match bound {
        Ok(first) => first,
        Err(error) => return refused(error),
    };
    let Ok(false) = other_listener_exists(&first, address) else {
        return Outcome::InUse;
    };
    if let Err(error) = options.listen(&first) {
        return refused(error);
    }
    match other_listener_exists(&first, address) {
        Ok(false) => Outcome::Bound(first),
        Ok(true) => Outcome::Conflict,
        Err(_) => Outcome::InUse,
    }
}

/// Returns whether another socket listens where `ours` does or would.
fn other_listener_exists(ours: &Listener, address: SocketAddr) -> Result<bool, Error> {
    let only_v6 = address.is_ipv6() && option(&ours.0, IPPROTO_IPV6, IPV6_V6ONLY)? != 0;
    // The list has the low 32 bits.
    #[allow(clippy::cast_possible_truncation)]
    let inode = os::inode(ours.raw())? as u32;
    let interface = interface(ours.0.raw());
    let port = address.port();
    // A service manager may refuse netlink (`RestrictAddressFamilies`).
    let listed = sockets(State::Listen, port);
    let listed = listed.or_else(|error| proc_net::listeners(port).ok_or(error))?;
    let mut others = listed.iter().filter(|socket| socket.inode != inode);
    Ok(others.any(|other| {
        share_an_interface(interface, other.interface) && overlaps(address.ip(), only_v6, other)
    }))
}

/// Whether a packet of one interface could be meant for either: 0 is any interface.
fn share_an_interface(ours: u32, theirs: u32) -> bool {
    ours == 0 || theirs == 0 || ours == theirs
}

/// Whether a connection could be meant for either: equal addresses or a wildcard, across the
/// families where one of them takes IPv4 too.
fn overlaps(ours: IpAddr, only_v6: bool, theirs: &Socket) -> bool {
    let (our, their) = (ours.to_canonical(), theirs.local.ip().to_canonical());
    if our.is_ipv4() == their.is_ipv4() {
        return our == their || our.is_unspecified() || their.is_unspecified();
    }
    let (wildcard, alone) = if our.is_ipv6() {
        (our, only_v6)
    } else {
        (their, theirs.only_v6)
    };
    wildcard.is_unspecified() && !alone
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_overlap() {
        let socket = |ip: &str, only_v6| {
            let local = SocketAddr::new(ip.parse().unwrap(), 3000);
            Socket {
                local,
                remote: local,
                inode: 1,
                interface: 0,
                only_v6,
            }
        };
        for (ours, our_v6, theirs, their_v6, expected) in [
            ("127.0.0.1", false, "127.0.0.1", false, true),
            ("127.0.0.1", false, "127.0.0.2", false, false),
            ("127.0.0.1", false, "0.0.0.0", false, true),
            ("0.0.0.0", false, "127.0.0.1", false, true),
            ("127.0.0.1", false, "::", false, true),
            ("127.0.0.1", false, "::", true, false),
            ("127.0.0.1", false, "::1", false, false),
            ("::", false, "127.0.0.1", false, true),
            ("::", true, "127.0.0.1", false, false),
            ("::1", false, "::", true, true),
            ("::", true, "::1", true, true),
            ("::1", false, "0.0.0.0", false, false),
            ("::ffff:127.0.0.1", false, "127.0.0.1", false, true),
            ("127.0.0.1", false, "::ffff:0.0.0.0", false, true),
        ] {
            let overlap = overlaps(ours.parse().unwrap(), our_v6, &socket(theirs, their_v6));
            assert_eq!(overlap, expected, "{ours} and {theirs}");
        }
    }
}
