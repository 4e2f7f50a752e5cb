//! Options between `socket` and `bind` that only Linux and Android have.

use core::ffi::c_int;
use core::time::Duration;

use super::constants::{SO_ATTACH_REUSEPORT_CBPF, SO_DETACH_REUSEPORT_BPF};
use super::constants::{SO_INCOMING_CPU, SO_MEMINFO, SO_PEERNAME};
use crate::address::SockAddr;
use crate::error::{Call, Error};
use crate::listener::Descriptor;
use crate::socket::names::{Name, names};
use crate::socket::options::{DebugOpaque, Options};
use crate::sys::{self, IPPROTO_TCP, SOL_SOCKET};

pub(crate) use libc::SO_LINGER;

pub(crate) const OPTION_NAMES: &[Name] = names![
    libc, SOL_SOCKET: SO_MARK SO_BINDTODEVICE SO_ATTACH_FILTER SO_DETACH_FILTER;
    self, SOL_SOCKET: SO_INCOMING_CPU SO_MEMINFO SO_PEERNAME;
    self, SOL_SOCKET: SO_ATTACH_REUSEPORT_CBPF SO_DETACH_REUSEPORT_BPF;
    libc, IPPROTO_TCP: TCP_DEFER_ACCEPT TCP_INFO;
];

/// The longest name of a network interface: `IFNAMSIZ` with a zero at its end.
const MAX_DEVICE: usize = 15;

/// Those of [`Options`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct KernelOptions {
    incoming_cpu: Option<c_int>,
    mark: Option<u32>,
    defer_accept: Option<c_int>,
}

impl KernelOptions {
    pub(crate) const NONE: KernelOptions = KernelOptions {
        incoming_cpu: None,
        mark: None,
        defer_accept: None,
    };

    #[inline(always)]
    pub(crate) fn set(&self, socket: &Descriptor) -> Result<(), Error> {
        if let Some(cpu) = self.incoming_cpu {
            socket.set_option(SOL_SOCKET, SO_INCOMING_CPU, cpu)?;
        }
        if let Some(mark) = self.mark {
            socket.set_option(
                SOL_SOCKET,
                libc::SO_MARK,
                c_int::from_ne_bytes(mark.to_ne_bytes()),
            )?;
        }
        if let Some(seconds) = self.defer_accept {
            socket.set_option(IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, seconds)?;
        }
        Ok(())
    }
}

pub(crate) fn bind_to_device(socket: &Descriptor, device: &str) -> Result<(), Error> {
    let name = libc::SO_BINDTODEVICE;
    // Without a name the kernel would bind to none, and it would cut a long one.
    let set = if device.is_empty() || device.len() > MAX_DEVICE {
        Err(Error::new(Call::SetSockOpt, libc::ENODEV))
    } else {
        #[allow(clippy::cast_possible_truncation)] // at most 15
        let len = device.len() as u32;
        // SAFETY: a string is readable for its length, and the option takes that many bytes.
        unsafe { sys::setsockopt(socket.raw(), SOL_SOCKET, name, device.as_ptr().cast(), len) }
    };
    set.map_err(|error| error.of_option(SOL_SOCKET, name))
}

/// `SO_PEERNAME`. The kernel refuses a buffer that is longer than the address.
pub(crate) fn peer_name(socket: &Descriptor) -> Result<SockAddr, Error> {
    let mut peer = SockAddr::empty();
    let sizes = [
        size_of::<libc::sockaddr_in>(),
        size_of::<libc::sockaddr_in6>(),
    ];
    for size in sizes {
        #[allow(clippy::cast_possible_truncation)] // 16 and 28
        let mut len = size as u32;
        let (fd, value) = (socket.raw(), peer.as_mut_ptr());
        // SAFETY: `peer` is writable for the larger of the two sizes.
        unsafe { sys::getsockopt(fd, SOL_SOCKET, SO_PEERNAME, value, &raw mut len) }?;
        if peer.family() == sys::AF_INET {
            break;
        }
    }
    Ok(peer)
}

impl<'a, P> Options<'a, P> {
    /// Sets `SO_INCOMING_CPU`: among the listeners of a port, this one gets the connections that
    /// `cpu` handles. For a CPU that no listener names, the kernel takes the hash. The option has
    /// no effect while the group has a steering program.
    ///
    /// # Platforms
    /// Linux and Android alone. The kernel obeys it since 6.2, and in the stable trees 5.15.y,
    /// 6.0.y and 6.1.y; others ignore it.
    pub const fn incoming_cpu(mut self, cpu: c_int) -> Options<'a, P> {
        self.settings.kernel.incoming_cpu = Some(cpu);
        self
    }

    /// Sets `SO_MARK`: the firewall and the routing rules see `mark` on each packet that is sent.
    /// Default: 0, no mark. `bind` fails with `EPERM` without `CAP_NET_ADMIN` or, since Linux 5.17,
    /// `CAP_NET_RAW`.
    ///
    /// # Platforms
    /// Linux and Android alone.
    pub const fn mark(mut self, mark: u32) -> Options<'a, P> {
        self.settings.kernel.mark = Some(mark);
        self
    }

    /// Sets `SO_BINDTODEVICE`: only packets of the network interface `device`, such as `"eth0"`,
    /// reach the socket. Default: those of all. `bind` fails with `ENODEV` if there is none of that
    /// name, which has at most 15 bytes.
    ///
    /// # Platforms
    /// Linux and Android alone. Since Linux 5.7 it needs no privilege; before, `bind` fails with
    /// `EPERM` without `CAP_NET_RAW`.
    pub const fn bind_to_device(mut self, device: &'a str) -> Options<'a, P> {
        self.device = Some(DebugOpaque(device));
        self
    }
}

impl<'a> Options<'a> {
    /// Sets `TCP_DEFER_ACCEPT`: a connection reaches the accept queue with the client's first
    /// bytes, or after about `wait` without them. In whole seconds, rounded up; the kernel counts
    /// the SYN-ACKs that it would send again (1, 3, 7, 15 s ...). Default, and with zero: off.
    ///
    /// # Platforms
    /// Linux and Android alone.
    pub const fn defer_accept(mut self, wait: Duration) -> Options<'a> {
        let seconds = wait.as_secs() + (wait.subsec_nanos() > 0) as u64;
        #[allow(clippy::cast_possible_truncation)] // it is less than the largest
        let seconds = if seconds < c_int::MAX as u64 {
            seconds as c_int
        } else {
            c_int::MAX
        };
        self.settings.kernel.defer_accept = Some(seconds);
        self
    }
}
