//! Kernels where no program chooses the member: the same functions as `linux`.

#[cfg(feature = "std")]
pub(crate) use with_std::*;

use crate::address::SockAddr;
use crate::error::{Call, Error, check};
use crate::listener::Descriptor;
use crate::socket::names::{Name, names};

const UNSUPPORTED: Error = Error::new(Call::SetSockOpt, libc::EOPNOTSUPP);

#[cfg(not(target_vendor = "apple"))]
pub(crate) use libc::SO_LINGER;
/// In seconds; Apple's `SO_LINGER` counts ticks.
#[cfg(target_vendor = "apple")]
pub(crate) use libc::SO_LINGER_SEC as SO_LINGER;

pub(crate) const OPTION_NAMES: &[Name] = names![];

/// There are none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KernelOptions;

impl KernelOptions {
    pub(crate) const NONE: KernelOptions = KernelOptions;

    #[allow(clippy::unused_self, clippy::unnecessary_wraps)] // as on Linux
    pub(crate) fn set(&self, _: &Descriptor) -> Result<(), Error> {
        Ok(())
    }
}

pub(crate) fn bind_to_device(_: &Descriptor, _: &str) -> Result<(), Error> {
    Err(UNSUPPORTED)
}

/// `getpeername(2)`.
pub(crate) fn peer_name(socket: &Descriptor) -> Result<SockAddr, Error> {
    let mut peer = SockAddr::empty();
    let (fd, name, len) = (socket.raw(), peer.as_mut_ptr(), peer.len_mut_ptr());
    // SAFETY: both point into `peer`, whose buffer has the length it states.
    let result = unsafe { libc::getpeername(fd, name.cast(), len.cast()) };
    check(Call::GetPeerName, result)?;
    Ok(peer)
}

#[cfg(feature = "std")]
mod with_std {
    use core::ffi::{CStr, c_int};
    use core::net::SocketAddr;
    use core::time::Duration;
    use std::vec::Vec;

    use super::UNSUPPORTED;
    use crate::error::Error;
    use crate::listener::{Descriptor, Listener};
    use crate::socket::bpf::Instruction;
    use crate::socket::options::Options;
    use crate::socket::protocol::Udp;
    use crate::socket::queue::ReceiveBuffer;
    use crate::socket::udp::UdpSocket;

    /// Whether `shutdown(2)` wakes threads that are blocked in `accept` or `recvmsg`, and takes a
    /// listener out of its group.
    pub(crate) const SHUTDOWN_WAKES: bool = false;

    /// Whether a program can choose the member that gets a connection.
    pub(crate) const STEERS: bool = false;

    /// FreeBSD and `DragonFly` enter a socket into its group at `bind`, so it cannot bind
    /// exclusively first. A plain socket tries the port and closes; until the next bind another
    /// process may take it.
    pub(crate) fn bind_exclusive(
        options: &Options<'_>,
        address: SocketAddr,
    ) -> Result<Listener, Error> {
        if address.port() != 0 {
            drop(options.reuse_port(false).bind(address)?);
        }
        options.reuse_port(true).bind(address)
    }

    /// As [`bind_exclusive`].
    pub(crate) fn bind_exclusive_udp(
        options: &Options<'_, Udp>,
        address: SocketAddr,
    ) -> Result<UdpSocket, Error> {
        if address.port() != 0 {
            drop(options.reuse_port(false).bind(address)?);
        }
        options.reuse_port(true).bind(address)
    }

    pub(crate) fn bind_member_udp(
        options: &Options<'_, Udp>,
        member: &UdpSocket,
        address: SocketAddr,
    ) -> Result<(), Error> {
        options.bind_prepared(member, address)
    }

    pub(crate) fn leave_port(_: &Descriptor) -> Result<(), Error> {
        Err(UNSUPPORTED)
    }

    pub(crate) fn attach_program(_: &Descriptor, _: &[Instruction]) -> Result<(), Error> {
        Err(UNSUPPORTED)
    }

    pub(crate) fn detach_program(_: &Descriptor) -> Result<(), Error> {
        Err(UNSUPPORTED)
    }

    pub(crate) fn attach_filter(_: &Descriptor, _: &[Instruction]) -> Result<(), Error> {
        Err(UNSUPPORTED)
    }

    pub(crate) fn detach_filter(_: &Descriptor) -> Result<(), Error> {
        Err(UNSUPPORTED)
    }

    pub(crate) fn accept_queue(_: &Descriptor) -> Result<[u32; 2], Error> {
        Err(UNSUPPORTED)
    }

    pub(crate) fn receive_buffer(_: &Descriptor) -> Result<ReceiveBuffer, Error> {
        Err(UNSUPPORTED)
    }

    pub(crate) type Handshake = (SocketAddr, SocketAddr);

    pub(crate) struct Handshakes;

    impl Handshakes {
        pub(crate) fn of(_: &Descriptor, _: SocketAddr) -> Result<Handshakes, Error> {
            Err(UNSUPPORTED)
        }

        #[allow(clippy::unused_self)] // as on Linux
        pub(crate) fn list(&self) -> Result<Vec<Handshake>, Error> {
            Err(UNSUPPORTED)
        }
    }

    pub(crate) fn interface(_: c_int) -> u32 {
        0
    }

    pub(crate) fn bind_to_nowhere(_: &Descriptor) -> Result<(), Error> {
        Err(UNSUPPORTED)
    }

    pub(crate) fn namespace(_: c_int) -> Option<u64> {
        None
    }

    pub(crate) fn accept_silent_clients(_: &Descriptor) -> Result<(), Error> {
        Err(UNSUPPORTED)
    }

    /// Waits with `poll(2)`, which wakes all that wait for a socket.
    #[derive(Debug)]
    pub(crate) struct Poller;

    impl Poller {
        pub(crate) fn new(_: c_int, _: c_int) -> Result<Poller, Error> {
            Err(UNSUPPORTED)
        }

        #[allow(clippy::unused_self)] // as on Linux
        pub(crate) fn wait(&self, _: c_int, _: c_int) -> [bool; 2] {
            [false; 2]
        }
    }

    pub(crate) fn members(_: bool, _: SocketAddr, _: u32) -> Result<Vec<u32>, Error> {
        Err(UNSUPPORTED)
    }

    pub(crate) fn allowed_cpus() -> Result<Vec<u32>, Error> {
        Err(UNSUPPORTED)
    }

    pub(crate) fn start_on_cpu<T>(_: u32, _: impl FnOnce() -> T) -> Result<T, Error> {
        Err(UNSUPPORTED)
    }

    pub(crate) fn move_to_cpus(_: &[u32]) -> Result<(), Error> {
        Err(UNSUPPORTED)
    }

    pub(crate) fn wait_for_lookups(_: Duration) {}

    pub(crate) fn may_have_sent_cookies() -> bool {
        false
    }

    pub(crate) fn name_thread(_: &CStr) {}

    /// What takes the place of a UDP socket's descriptor: nothing has to, here.
    #[derive(Debug)]
    pub(crate) struct Placeholder;

    impl Placeholder {
        #[allow(clippy::unnecessary_wraps)] // as on Linux
        pub(crate) fn new() -> Result<Placeholder, Error> {
            Ok(Placeholder)
        }

        pub(crate) fn is_needless(&self) -> bool {
            true
        }

        pub(crate) fn replace(&self, _: &Descriptor) -> Result<(), Error> {
            Err(UNSUPPORTED)
        }
    }
}
