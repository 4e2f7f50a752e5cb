//! [`SockAddr`]: C's `struct sockaddr_in` and `sockaddr_in6`, to and from [`SocketAddr`].

use core::ffi::{c_int, c_void};
use core::fmt;
use core::mem;
use core::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use libc::{sockaddr, sockaddr_in, sockaddr_in6};

use crate::sys::{AF_INET, AF_INET6};

/// C's `struct sockaddr` with its length: what [`sys::bind`](crate::sys::bind) reads and
/// [`sys::accept`](crate::sys::accept) fills in.
#[derive(Clone, Copy)]
pub struct SockAddr {
    storage: Storage,
    len: u32,
}

/// As large as the larger of the two. Every member begins with the family.
#[derive(Clone, Copy)]
#[repr(C)]
union Storage {
    any: sockaddr,
    v4: sockaddr_in,
    v6: sockaddr_in6,
}

impl SockAddr {
    /// Makes a buffer for the kernel to write an address into.
    pub const fn empty() -> SockAddr {
        // SAFETY: all members are made of integers, for which zeros are a value.
        let storage = unsafe { mem::zeroed() };
        SockAddr {
            storage,
            len: socklen::<Storage>(),
        }
    }

    /// Returns the family: `AF_INET` or `AF_INET6`.
    pub const fn family(&self) -> c_int {
        // SAFETY: `storage` is wholly initialised, and any integer is a family.
        unsafe { self.storage.any.sa_family as c_int }
    }

    /// Returns the pointer for a call that reads the address, with [`len`](SockAddr::len).
    pub const fn as_ptr(&self) -> *const c_void {
        (&raw const self.storage).cast()
    }

    /// Returns the length of the address in bytes: C's `socklen_t`.
    #[allow(clippy::len_without_is_empty)] // no address is empty
    pub const fn len(&self) -> u32 {
        self.len
    }

    /// Returns the pointer for a call that writes it, with [`len_mut_ptr`](SockAddr::len_mut_ptr).
    pub const fn as_mut_ptr(&mut self) -> *mut c_void {
        (&raw mut self.storage).cast()
    }

    /// Returns where such a call reads the size of the buffer, and writes the address's length.
    pub const fn len_mut_ptr(&mut self) -> *mut u32 {
        &raw mut self.len
    }

    /// Returns the address as Rust has it; `None` if it is not an internet address.
    pub const fn get(&self) -> Option<SocketAddr> {
        if self.family() == AF_INET && self.len >= socklen::<sockaddr_in>() {
            // SAFETY: the family says which member was written.
            let v4 = unsafe { self.storage.v4 };
            // The octets lie in memory in network order, whatever the processor's.
            let [a, b, c, d] = v4.sin_addr.s_addr.to_ne_bytes();
            let (ip, port) = (Ipv4Addr::new(a, b, c, d), u16::from_be(v4.sin_port));
            Some(SocketAddr::V4(SocketAddrV4::new(ip, port)))
        } else if self.family() == AF_INET6 && self.len >= socklen::<sockaddr_in6>() {
            // SAFETY: the family says which member was written.
            let v6 = unsafe { self.storage.v6 };
            let ip = Ipv6Addr::from_bits(u128::from_be_bytes(v6.sin6_addr.s6_addr));
            let (flow, scope) = (v6.sin6_flowinfo, v6.sin6_scope_id);
            let port = u16::from_be(v6.sin6_port);
            Some(SocketAddr::V6(SocketAddrV6::new(ip, port, flow, scope)))
        } else {
            None
        }
    }
}

#[allow(clippy::cast_possible_truncation)] // a family is 2, or 10 to 30
impl From<SocketAddr> for SockAddr {
    fn from(address: SocketAddr) -> SockAddr {
        let mut made = SockAddr::empty();
        match address {
            SocketAddr::V4(from) => {
                made.storage.v4.sin_family = AF_INET as _;
                made.storage.v4.sin_addr.s_addr = u32::from_ne_bytes(from.ip().octets());
                made.storage.v4.sin_port = from.port().to_be();
                made.len = socklen::<sockaddr_in>();
            }
            SocketAddr::V6(from) => {
                made.storage.v6.sin6_family = AF_INET6 as _;
                made.storage.v6.sin6_addr.s6_addr = from.ip().octets();
                made.storage.v6.sin6_port = from.port().to_be();
                made.storage.v6.sin6_flowinfo = from.flowinfo();
                made.storage.v6.sin6_scope_id = from.scope_id();
                made.len = socklen::<sockaddr_in6>();
            }
        }
        made
    }
}

/// Returns C's `sizeof`, as a `socklen_t`.
#[allow(clippy::cast_possible_truncation)] // all that is measured here has a few bytes
pub(crate) const fn socklen<T>() -> u32 {
    size_of::<T>() as u32
}

impl fmt::Debug for SockAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.get(), f)
    }
}
