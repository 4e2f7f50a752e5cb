//! One function for each system call: C's names, its arguments in C's order, and its −1 turned into
//! an [`Error`] that keeps the call's name and its errno. No policy, no ownership, no loop.
//!
//! All are `unsafe`, because they take bare descriptors and pointers and check neither. The owning
//! type is [`Listener`](crate::Listener). [socket(7)] has the options, [section 2] each call.
//!
//! [section 2]: https://man7.org/linux/man-pages/dir_section_2.html
//! [socket(7)]: https://man7.org/linux/man-pages/man7/socket.7.html

use core::ffi::{c_int, c_void};

use crate::error::{Call, Error, check};

type Result<T> = core::result::Result<T, Error>;

pub use libc::{AF_INET, AF_INET6, IPPROTO_IPV6, IPPROTO_TCP, IPV6_V6ONLY, MSG_NOSIGNAL};
pub use libc::{SHUT_RD, SHUT_RDWR, SHUT_WR, SO_ERROR, SO_REUSEADDR, SOCK_STREAM, SOL_SOCKET};

/// Lets several sockets bind one port. Each sets it before its own `bind`.
#[cfg(not(reuseport_lb))]
pub use libc::SO_REUSEPORT;
/// Names FreeBSD's option that balances as C does elsewhere: its `SO_REUSEPORT` does not balance.
#[cfg(reuseport_lb)]
pub use libc::SO_REUSEPORT_LB as SO_REUSEPORT;

#[cfg(not(accept4))]
use crate::os::apple as kernel; // makes accept4 of what there is
pub use kernel::{SOCK_CLOEXEC, SOCK_NONBLOCK};
#[cfg(accept4)]
use libc as kernel;

/// Asks [`listen`] for the longest queue that the kernel allows (Linux: `net.core.somaxconn`).
pub const MAX_BACKLOG: c_int = c_int::MAX;

/// `int socket(int domain, int type, int protocol);` — `socket(2)`, type also with
/// [`SOCK_CLOEXEC`] and [`SOCK_NONBLOCK`].
/// Fails with `EMFILE`, `ENFILE`, `ENOBUFS`, `ENOMEM`, `EACCES`, `EAFNOSUPPORT`.
/// # Safety
/// The descriptor returned is the caller's to close, once.
#[inline(always)]
pub unsafe fn socket(domain: c_int, kind: c_int, protocol: c_int) -> Result<c_int> {
    // SAFETY: takes three integers; any are allowed.
    let result = unsafe { kernel::socket(domain, kind, protocol) };
    check(Call::Socket, result)
}

/// `int setsockopt(int fd, int level, int name, const void *value, socklen_t len);`
/// Fails with `ENOPROTOOPT` for an option the kernel lacks, `EINVAL`, `EPERM`, `EBADF`, `ENOTSOCK`.
/// # Safety
/// `value` is readable for `len` bytes, which are of the type that the option takes.
#[inline(always)]
pub unsafe fn setsockopt(
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *const c_void,
    len: u32,
) -> Result<()> {
    // SAFETY: the caller vouches for the bytes at `value`; the kernel copies them and keeps none.
    let result = unsafe { libc::setsockopt(fd, level, name, value, len as _) };
    check(Call::SetSockOpt, result)?;
    Ok(())
}

/// `int getsockopt(int fd, int level, int name, void *value, socklen_t *len);`
/// Fails as [`setsockopt`].
/// # Safety
/// `len` is readable and writable, and `value` is writable for as many bytes as it says.
pub unsafe fn getsockopt(
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *mut c_void,
    len: *mut u32,
) -> Result<()> {
    // SAFETY: the caller vouches for both pointers; the kernel keeps neither.
    let result = unsafe { libc::getsockopt(fd, level, name, value, len.cast()) };
    check(Call::GetSockOpt, result).map(drop)
}

/// `int bind(int fd, const struct sockaddr *addr, socklen_t len);` — `bind(2)`.
/// Fails with `EADDRINUSE` if another socket has the port, unless all have set [`SO_REUSEPORT`]
/// before, under one effective user; `EADDRNOTAVAIL` for an address that is not this machine's;
/// `EACCES` for a port below 1024 without the privilege.
/// # Safety
/// `addr` is readable for `len` bytes.
#[inline(always)]
pub unsafe fn bind(fd: c_int, addr: *const c_void, len: u32) -> Result<()> {
    // SAFETY: the caller vouches for the bytes at `addr`; the kernel copies them.
    let result = unsafe { libc::bind(fd, addr.cast(), len as _) };
    check(Call::Bind, result).map(drop)
}

/// `int listen(int fd, int backlog);` — `listen(2)`. On Linux this, not `bind`, makes a TCP socket
/// a member of its port's group. `backlog`: how many connections may be queued (Linux: one more).
/// Fails with `EADDRINUSE`, `EBADF`, `ENOTSOCK`, `EOPNOTSUPP`.
/// # Safety
/// `fd` is the caller's.
#[inline(always)]
pub unsafe fn listen(fd: c_int, backlog: c_int) -> Result<()> {
    // SAFETY: takes two integers.
    let result = unsafe { libc::listen(fd, backlog) };
    check(Call::Listen, result).map(drop)
}

/// `int accept4(int fd, struct sockaddr *addr, socklen_t *len, int flags);` — `accept(2)`,
/// flags [`SOCK_CLOEXEC`] and [`SOCK_NONBLOCK`].
/// [`Error::accept_action`] returns what each of its many errors means for a loop.
/// # Safety
/// Both pointers are null; or `len` is readable and writable, and `addr` is writable for as
/// many bytes as it says. The descriptor returned is the caller's to close, once.
#[inline]
pub unsafe fn accept(fd: c_int, addr: *mut c_void, len: *mut u32, flags: c_int) -> Result<c_int> {
    // SAFETY: the caller vouches for both pointers; the kernel keeps neither.
    let result = unsafe { kernel::accept4(fd, addr.cast(), len.cast(), flags) };
    check(Call::Accept, result)
}

/// `ssize_t send(int fd, const void *buf, size_t len, int flags);` — `send(2)`. Returns the
/// bytes taken, which may be fewer than given.
/// With [`MSG_NOSIGNAL`] a closed connection is `EPIPE` alone, not also the signal `SIGPIPE`.
/// Fails with `ECONNRESET`, `EPIPE`, `EAGAIN`, `EINTR`.
/// # Safety
/// `buf` is readable for `len` bytes.
pub unsafe fn send(fd: c_int, buf: *const c_void, len: usize, flags: c_int) -> Result<usize> {
    // SAFETY: the caller vouches for `buf`; the kernel copies from it.
    let result = unsafe { libc::send(fd, buf, len, flags) };
    check(Call::Send, result).map(isize::unsigned_abs)
}

/// `ssize_t recv(int fd, void *buf, size_t len, int flags);` — `recv(2)`. Returns the bytes
/// read; 0 at the end of the stream. Fails with `ECONNRESET`, `EAGAIN`, `EINTR`.
/// # Safety
/// `buf` is writable for `len` bytes.
pub unsafe fn recv(fd: c_int, buf: *mut c_void, len: usize, flags: c_int) -> Result<usize> {
    // SAFETY: the caller vouches for `buf`; the kernel keeps no pointer to it.
    let result = unsafe { libc::recv(fd, buf, len, flags) };
    check(Call::Recv, result).map(isize::unsigned_abs)
}

/// `int shutdown(int fd, int how);` — `shutdown(2)`. On a Linux listener [`SHUT_RD`] wakes a
/// blocked [`accept`], which fails with `EINVAL`, and resets every queued connection. Fails with
/// `ENOTCONN`, `EBADF`, `ENOTSOCK`.
/// # Safety
/// `fd` is the caller's.
pub unsafe fn shutdown(fd: c_int, how: c_int) -> Result<()> {
    // SAFETY: takes two integers.
    let result = unsafe { libc::shutdown(fd, how) };
    check(Call::Shutdown, result).map(drop)
}

/// `int close(int fd);` — `close(2)`. On Linux the number is free even if `close` fails: a failed
/// close (`EINTR`, `EIO`) is not repeated. It does not wake a blocked [`accept`].
/// # Safety
/// `fd` is the caller's, and is not used again.
#[inline]
pub unsafe fn close(fd: c_int) -> Result<()> {
    // SAFETY: the caller gives the descriptor up.
    let result = unsafe { libc::close(fd) };
    check(Call::Close, result).map(drop)
}

/// `int getsockname(int fd, struct sockaddr *addr, socklen_t *len);` — `getsockname(2)`: the
/// bound address, with the port that port 0 became. Fails with `EBADF`, `ENOTSOCK`, `ENOBUFS`.
/// # Safety
/// `len` is readable and writable, and `addr` is writable for as many bytes as it says.
pub unsafe fn getsockname(fd: c_int, addr: *mut c_void, len: *mut u32) -> Result<()> {
    // SAFETY: the caller vouches for both pointers; the kernel keeps neither.
    let result = unsafe { libc::getsockname(fd, addr.cast(), len.cast()) };
    check(Call::GetSockName, result).map(drop)
}

/// `int ioctl(int fd, FIONBIO, int *on);` — `ioctl(2)`: `fd` blocks (0) or not (1).
/// # Safety
/// `fd` is the caller's.
pub unsafe fn fionbio(fd: c_int, on: c_int) -> Result<()> {
    // SAFETY: this command reads one integer, which outlives the call.
    let result = unsafe { libc::ioctl(fd, libc::FIONBIO, &raw const on) };
    check(Call::Ioctl, result).map(drop)
}
