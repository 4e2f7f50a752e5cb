//! Sockets made call by call, on every kernel.

use core::ffi::c_int;
use core::fmt::Display;
use core::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd};
use std::process;

use reuseport::{Call, Error, SockAddr, sys};

/// Any port of the loopback: on Linux at an address of this process's own, among the four million
/// that it can have, so that no other program's connections are in the way.
pub(super) fn any_port() -> SocketAddr {
    if cfg!(linux_kernel) {
        SocketAddr::from((Ipv4Addr::from(0x7F40_0000 | process::id() & 0x3F_FFFF), 0))
    } else {
        SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
    }
}

/// The error of a `bind` that the kernel refuses.
pub(super) const REFUSED: Error = Error::new(Call::Bind, libc::EADDRINUSE);

/// `socket(2)`, and no other call: the claims make them one by one.
pub(super) fn open<S: FromRawFd>(kind: c_int, ip: IpAddr) -> Result<S, Error> {
    let family = SockAddr::from(SocketAddr::new(ip, 0)).family();
    // SAFETY: the next line owns what this one opens.
    let fd = unsafe { sys::socket(family, kind | sys::SOCK_CLOEXEC, 0) }?;
    // SAFETY: the kernel has just opened it for us alone.
    Ok(unsafe { S::from_raw_fd(fd) })
}

pub(super) fn bind(fd: &impl AsRawFd, address: SocketAddr) -> Result<(), Error> {
    let address = SockAddr::from(address);
    // SAFETY: `address` is readable for its own length.
    unsafe { sys::bind(fd.as_raw_fd(), address.as_ptr(), address.len()) }
}

pub(super) fn listen(fd: &impl AsRawFd, backlog: c_int) -> Result<(), Error> {
    // SAFETY: the descriptor is its owner's, which has lent it.
    unsafe { sys::listen(fd.as_raw_fd(), backlog) }
}

/// An outcome in words.
pub(super) fn told<T>(result: &Result<T, impl Display>) -> String {
    match result {
        Ok(_) => "it succeeds".into(),
        Err(error) => error.to_string(),
    }
}
