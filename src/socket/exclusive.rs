//! The first member of a group: it takes a port that nobody else holds, and only then shares it.
//!
//! A group whose members all set `SO_REUSEPORT` before `bind` keeps no stranger out: a second copy
//! of the program joins in silence. So the first socket binds *and listens* without the option.
//! Where anybody holds the port that is refused; bound alone it would not be, for two sockets with
//! `SO_REUSEADDR` may both bind while neither listens. Afterwards the option goes on.

use core::net::SocketAddr;

use crate::error::Error;
use crate::listener::Listener;
use crate::socket::options::Options;
use crate::socket::protocol::Udp;
use crate::socket::udp::UdpSocket;
#[cfg(linux_kernel)]
use crate::{
    listener::Descriptor,
    steering,
    sys::{SO_REUSEPORT, SOL_SOCKET},
};

/// FreeBSD and `DragonFly` enter a socket into its group at `bind`, so it cannot claim first. A
/// plain socket tries the port and gives it up again; in the moment between, another may bind.
#[cfg(not(linux_kernel))]
pub(crate) fn claim(options: &Options<'_>, address: SocketAddr) -> Result<Listener, Error> {
    if address.port() != 0 {
        drop(options.reuse_port(false).bind(address)?);
    }
    options.reuse_port(true).bind(address)
}

/// As [`claim`].
#[cfg(not(linux_kernel))]
pub(crate) fn claim_datagrams(
    options: &Options<'_, Udp>,
    address: SocketAddr,
) -> Result<UdpSocket, Error> {
    if address.port() != 0 {
        drop(options.reuse_port(false).bind(address)?);
    }
    options.reuse_port(true).bind(address)
}

/// For datagrams `bind` alone tells whether anybody is there, and nothing lingers.
#[cfg(linux_kernel)]
pub(crate) fn claim_datagrams(
    options: &Options<'_, Udp>,
    address: SocketAddr,
) -> Result<UdpSocket, Error> {
    let alone = options.reuse_port(false);
    let first = alone.bind_after(address, give_a_group)?;
    first.0.set_option(SOL_SOCKET, SO_REUSEPORT, 1)?;
    Ok(first)
}

/// A socket that has the option neither when it binds nor when it listens has no group, and without
/// a sibling it could not be steered. Attaching a program to it before makes it one. Where that
/// fails there is no steering, and who asks for it will be told.
#[cfg(linux_kernel)]
fn give_a_group(socket: &Descriptor) -> Result<(), Error> {
    socket.set_option(SOL_SOCKET, SO_REUSEPORT, 1)?;
    // There is none yet. Before Linux 5.3 there is no such option: the program would stay.
    let none = socket.detach_program().map_err(Error::errno);
    if none != Err(libc::ENOPROTOOPT) && socket.attach_program(&steering::random(1)).is_ok() {
        socket.detach_program()?;
    }
    socket.set_option(SOL_SOCKET, SO_REUSEPORT, 0)
}

#[cfg(linux_kernel)]
pub(crate) use linux::claim;

#[cfg(linux_kernel)]
mod linux {
    use core::hash::{BuildHasher, Hasher};
    use core::net::IpAddr;
    use core::time::Duration;
    use std::collections::hash_map::RandomState;
    use std::thread::sleep;

    use super::{Error, Listener, Options, SocketAddr, give_a_group};
    use crate::address::socklen;
    use crate::error::{Call, check};
    use crate::os::linux::sock_diag::{Socket, State, sockets};
    use crate::sys::{self, IPPROTO_IPV6, IPV6_V6ONLY};

    /// How often two programs that claim at the same time may make way for each other.
    const ATTEMPTS: usize = 20;

    pub(crate) fn claim(options: &Options<'_>, address: SocketAddr) -> Result<Listener, Error> {
        let alone = options.reuse_port(false).reuse_address(true);
        let mut attempts = 0;
        loop {
            let refused = match claim_alone(&alone, address) {
                Ok(first) => return Ok(first),
                Err(error) => error,
            };
            // A refused `listen` says that somebody listens. A refused `bind` may be due to no one.
            if (refused.call(), refused.errno()) != (Call::Bind, libc::EADDRINUSE) {
                return Err(refused);
            }
            attempts += 1;
            match claim_from_leftovers(options, address) {
                Outcome::Claimed(first) => return Ok(first),
                Outcome::MadeWay if attempts < ATTEMPTS => {
                    let millis = 1 + RandomState::new().build_hasher().finish() % 20;
                    sleep(Duration::from_millis(millis));
                }
                Outcome::MadeWay | Outcome::Held => return Err(refused),
                Outcome::Failed(error) => return Err(error),
            }
        }
    }

    fn claim_alone(alone: &Options<'_>, address: SocketAddr) -> Result<Listener, Error> {
        let first = alone.bind_only(address)?;
        give_a_group(&first.0)?;
        alone.listen(&first)?;
        first.set_reuse_port()?;
        Ok(first)
    }

    enum Outcome {
        Claimed(Listener),
        /// Another claims at the same time.
        MadeWay,
        /// Another listens, or the kernel does not tell.
        Held,
        /// A call failed that says nothing of others.
        Failed(Error),
    }

    /// Connections in `TIME_WAIT`, left by a server that set `SO_REUSEPORT` alone (the C program
    /// is one), refuse a bind without that option for a minute although nobody listens. With the
    /// option the bind succeeds, but then it would also succeed beside a live server: so look at
    /// the kernel's list of listeners, before `listen` and after it. Of two programs that do this
    /// at the same time, the one whose second look comes later sees the other and makes way.
    fn claim_from_leftovers(options: &Options<'_>, address: SocketAddr) -> Outcome {
        let options = options.reuse_port(true).reuse_address(true);
        let refused = |error: Error| match error.errno() {
            libc::EADDRINUSE => Outcome::Held,
            _ => Outcome::Failed(error),
        };
        let first = match options.bind_only(address) {
            Ok(first) => first,
            Err(error) => return refused(error),
        };
        let Ok(false) = a_stranger_listens(&first, address) else {
            return Outcome::Held;
        };
        if let Err(error) = options.listen(&first) {
            return refused(error);
        }
        match a_stranger_listens(&first, address) {
            Ok(false) => Outcome::Claimed(first),
            Ok(true) => Outcome::MadeWay,
            Err(_) => Outcome::Held,
        }
    }

    /// Whether another socket listens where `ours` does or would.
    fn a_stranger_listens(ours: &Listener, address: SocketAddr) -> Result<bool, Error> {
        let (inode, only_v6) = (inode(ours)?, address.is_ipv6() && only_v6(ours)?);
        let listening = sockets(State::Listen, address.port())?;
        let strangers = listening.iter().filter(|socket| socket.inode != inode);
        Ok(strangers
            .into_iter()
            .any(|socket| meet(address.ip(), only_v6, socket)))
    }

    /// Whether a connection could be meant for either: equal addresses or a wildcard, across the
    /// families where one of them takes IPv4 too.
    fn meet(ours: IpAddr, only_v6: bool, theirs: &Socket) -> bool {
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

    fn only_v6(listener: &Listener) -> Result<bool, Error> {
        let (mut value, mut len) = (0_i32, socklen::<i32>());
        let (at, fd) = ((&raw mut value).cast(), listener.raw());
        // SAFETY: `value` is writable for the four bytes that `len` states.
        unsafe { sys::getsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, at, &raw mut len) }?;
        Ok(value != 0)
    }

    /// The number by which the kernel's list names the socket, where it has 32 bits.
    fn inode(listener: &Listener) -> Result<u32, Error> {
        // SAFETY: `stat` is made of integers, for which zeros are a value.
        let mut stat: libc::stat = unsafe { core::mem::zeroed() };
        // SAFETY: `stat` is writable, the descriptor the listener's.
        let result = unsafe { libc::fstat(listener.raw(), &raw mut stat) };
        check(Call::Fstat, result)?;
        #[allow(clippy::cast_possible_truncation)] // as the kernel does
        Ok(stat.st_ino as u32)
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn who_meets_whom() {
            let socket = |ip: &str, only_v6| {
                let local = SocketAddr::new(ip.parse().unwrap(), 3000);
                Socket {
                    local,
                    remote: local,
                    inode: 1,
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
                let met = meet(ours.parse().unwrap(), our_v6, &socket(theirs, their_v6));
                assert_eq!(met, expected, "{ours} and {theirs}");
            }
        }
    }
}
