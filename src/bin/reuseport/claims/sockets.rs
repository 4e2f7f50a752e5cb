//! Sockets made call by call, on every kernel.

use core::ffi::c_int;
use core::fmt::Display;
use core::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd};

use reuseport::{Call, Error, SockAddr, sys};

pub(super) const ANY_PORT: ([u8; 4], u16) = ([127, 0, 0, 1], 0);
/// What `bind` says to whoever may not.
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
    // SAFETY: the descriptor is its owner's, who has lent it.
    unsafe { sys::listen(fd.as_raw_fd(), backlog) }
}

/// An outcome in words.
pub(super) fn told<T>(result: &Result<T, impl Display>) -> String {
    match result {
        Ok(_) => "it succeeds".into(),
        Err(error) => error.to_string(),
    }
}
